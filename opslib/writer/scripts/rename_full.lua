-- Give whole lists another name on a server that has no memory for a lock or a journal.
-- KEYS: 1 lock, then for each list: the list and its new name      ARGV: for each list the most that it may hold
-- Answers DONE and for each list how many messages were renamed, '-' for none; or, with nothing written, HELD, or
-- WRONGTYPE and the key.
if redis.call('EXISTS', KEYS[1]) == 1 then return {'HELD'} end
for n = 2, #KEYS, 2 do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= 'list' and found ~= 'none' then return {'WRONGTYPE', KEYS[n]} end
end

local counts = {'DONE'}
for n = 2, #KEYS, 2 do
  local length = redis.call('LLEN', KEYS[n])
  local fits = length > 0 and length <= tonumber(ARGV[n / 2])
  local renamed = fits and redis.call('RENAMENX', KEYS[n], KEYS[n + 1]) == 1
  if renamed then redis.call('PERSIST', KEYS[n + 1]) end -- a queue may be bound to expire; what is kept must not
  counts[#counts + 1] = renamed and tostring(length) or '-'
end
return counts
