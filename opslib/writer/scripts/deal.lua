-- Deal messages from the ends of lists to the ends of others, as many as said, in the order said.
-- For lists that nobody else touches, or whose every message is meant: nothing is compared.
--
-- KEYS: 4.. the lists
-- ARGV, for each run of messages: source key no., end that they leave, destination key no., end that they join, count
-- Letters: how many of each run were there, with commas.
local runs = {}
for at = FIRST, #ARGV, 5 do
  local run = {KEYS[tonumber(ARGV[at])], KEYS[tonumber(ARGV[at + 2])], ARGV[at + 1], ARGV[at + 3], tonumber(ARGV[at + 4])}
  need(run[1], 'list')
  need(run[2], 'list')
  may('LMOVE', run[1], run[2], run[3], run[4])
  runs[#runs + 1] = run
end
if problem then return problem end

begin()
local counts = {}
for n, run in ipairs(runs) do
  counts[n] = 0
  while counts[n] < run[5] and redis.call('LMOVE', run[1], run[2], run[3], run[4]) do counts[n] = counts[n] + 1 end
end
return done(table.concat(counts, ','), '')
