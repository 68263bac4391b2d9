-- Delete keys that still hold what was saved of them, write them again, or change how long they live.
--
-- KEYS: 4.. the keys
-- ARGV, for each: key no., 'delete', 'put' or 'expire', type, fingerprint as saved ('' = any), life in ms ('' = for
--   ever, for 'put' and 'expire'), life as seen in ms ('' = any; for 'expire'), number of parts, the parts (for 'put')
-- Letters: A done, G gone, C changed since, X it exists again. Seen: life in ms before, -1 for ever.
local items = {}
local at = FIRST
while at <= #ARGV do
  local item = {
    key = KEYS[tonumber(ARGV[at])], verb = ARGV[at + 1], kind = ARGV[at + 2], print = ARGV[at + 3],
    life = ARGV[at + 4], was = ARGV[at + 5], parts = {},
  }
  for n = 1, tonumber(ARGV[at + 6]) do item.parts[n] = ARGV[at + 6 + n] end
  at = at + 7 + #item.parts
  items[#items + 1] = item
  if item.verb == 'delete' then may('UNLINK', item.key) end
  if item.verb ~= 'delete' then
    may('PEXPIRE', item.key, '1')
    may('PERSIST', item.key)
  end
  if item.verb == 'put' then
    local adds = {string = 'SET', hash = 'HSET', set = 'SADD', zset = 'ZADD', list = 'RPUSH'}
    if item.kind == 'hash' then
      may('HSET', item.key, 'field', 'value')
    elseif item.kind == 'zset' then
      may('ZADD', item.key, '0', 'member')
    else
      may(adds[item.kind], item.key, 'value')
    end
  end
end
if problem then return problem end

local function put(item)
  local key, parts = item.key, item.parts
  if item.kind == 'string' then
    redis.call('SET', key, parts[1])
  elseif item.kind == 'hash' then
    for n = 1, #parts, 2 do redis.call('HSET', key, parts[n], parts[n + 1]) end
  elseif item.kind == 'zset' then
    for n = 1, #parts, 2 do redis.call('ZADD', key, parts[n + 1], parts[n]) end
  else
    local add = item.kind == 'set' and 'SADD' or 'RPUSH'
    for n = 1, #parts do redis.call(add, key, parts[n]) end
  end
  if item.life ~= '' then redis.call('PEXPIRE', key, item.life) end
end

begin()
local letters, seen = {}, {}
for n, item in ipairs(items) do
  local kind, life = redis.call('TYPE', item.key).ok, redis.call('PTTL', item.key)
  local letter = 'A'
  if item.verb == 'put' then
    if kind == 'none' then put(item) else letter = 'X' end
  elseif kind == 'none' then
    letter = 'G'
  elseif item.print ~= '' and (kind ~= item.kind or fingerprint(item.key, kind) ~= item.print) then
    letter = 'C'
  elseif item.verb == 'delete' then
    redis.call('UNLINK', item.key)
  elseif item.was ~= '' and (tonumber(item.was) < 0) ~= (life < 0) then
    letter = 'C'
  elseif item.life == '' then
    redis.call('PERSIST', item.key)
  else
    redis.call('PEXPIRE', item.key, item.life)
  end
  letters[n], seen[n] = letter, life
end
return done(table.concat(letters), table.concat(seen, ','))
