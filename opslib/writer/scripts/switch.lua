-- Have beat leave out entries of redbeat's schedule, or send them again; or undo that.
--
-- KEYS: 4.. the entries' hashes
-- ARGV, for each: its key's number, its definition as it was seen, its definition from now on
-- Letters: A done, G it is gone, C it was written since.
local items = {}
for at = FIRST, #ARGV, 3 do
  local item = {key = KEYS[tonumber(ARGV[at])], was = ARGV[at + 1], from_now = ARGV[at + 2]}
  need(item.key, 'hash')
  may('HSET', item.key, 'definition', item.from_now)
  items[#items + 1] = item
end
if problem then return problem end

begin()
local letters = {}
for n, item in ipairs(items) do
  local found = redis.call('HGET', item.key, 'definition')
  letters[n] = not found and 'G' or found ~= item.was and 'C' or 'A'
  if letters[n] == 'A' then redis.call('HSET', item.key, 'definition', item.from_now) end
end
return done(table.concat(letters), '')
