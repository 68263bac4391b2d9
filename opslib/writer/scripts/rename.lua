-- Give whole lists another name: all that they hold, at once, in constant time and without any memory for it.
--
-- KEYS: 4.. the lists and their new names
-- ARGV, for each: list key no., new name's key no., the most that it may hold ('' = any number)
-- Letters: A renamed, G gone or empty, C holds more than it may, X the new name is taken, K kept as it is because
--   another one did not fit. Seen: its length.
local renames = {}
for at = FIRST, #ARGV, 3 do
  local from, to = KEYS[tonumber(ARGV[at])], KEYS[tonumber(ARGV[at + 1])]
  need(from, 'list')
  may('RENAMENX', from, to)
  may('PERSIST', to)
  renames[#renames + 1] = {from, to, tonumber(ARGV[at + 2])}
end
if problem then return problem end

-- All or nothing: what does not fit keeps the others as well.
local fits = true
local letters, seen = {}, {}
for n, each in ipairs(renames) do
  local length = redis.call('LLEN', each[1])
  seen[n] = length
  if length == 0 then
    letters[n] = 'G'
  elseif each[3] and length > each[3] then
    letters[n], fits = 'C', false
  end
end

begin()
for n, each in ipairs(renames) do
  if not letters[n] then
    if not fits then
      letters[n] = 'K'
    elseif redis.call('RENAMENX', each[1], each[2]) == 1 then
      redis.call('PERSIST', each[2]) -- a queue may be bound to expire; what is kept must not
      letters[n] = 'A'
    else
      letters[n] = 'X'
    end
  end
end
return done(table.concat(letters), table.concat(seen, ','))
