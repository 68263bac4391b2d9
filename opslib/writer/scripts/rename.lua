-- Give whole lists another name: all that they hold, at once, in constant time and without any memory for it.
--
-- KEYS: 4.. the lists and their new names
-- ARGV, for each: list key no., new name's key no., the most that it may hold ('' = any number)
-- Letters: A renamed, G gone or empty, C holds more than it may, X the new name is taken. Seen: its length.
local renames = {}
for at = FIRST, #ARGV, 3 do
  local from, to = KEYS[tonumber(ARGV[at])], KEYS[tonumber(ARGV[at + 1])]
  need(from, 'list')
  may('RENAMENX', from, to)
  renames[#renames + 1] = {from, to, tonumber(ARGV[at + 2])}
end
if problem then return problem end

begin()
local letters, seen = {}, {}
for n, each in ipairs(renames) do
  local length = redis.call('LLEN', each[1])
  seen[n] = length
  if length == 0 then
    letters[n] = 'G'
  elseif each[3] and length > each[3] then
    letters[n] = 'C'
  else
    letters[n] = redis.call('RENAMENX', each[1], each[2]) == 1 and 'A' or 'X'
  end
end
return done(table.concat(letters), table.concat(seen, ','))
