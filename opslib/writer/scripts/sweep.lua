-- Delete many keys that still hold what was saved of them, let them expire, or undo either; one item in the journal.
--
-- KEYS: 4.. the keys
-- ARGV: 'delete', 'expire', 'put' or 'keep'; then for each key: type, fingerprint as saved, life as seen in ms (-1 for
--   ever, '' = any), life to give in ms ('' = for ever), number of parts, the parts (for 'put')
-- Letters: A. Seen, a letter for each key: A done, G gone, C changed since, X it exists again.
local verb = ARGV[FIRST]
local items, at = {}, FIRST + 1
for n = FIRST_KEY, #KEYS do
  local item = {
    key = KEYS[n], kind = ARGV[at], print = ARGV[at + 1], was = tonumber(ARGV[at + 2]), life = ARGV[at + 3], parts = {},
  }
  for part = 1, tonumber(ARGV[at + 4]) do item.parts[part] = ARGV[at + 4 + part] end
  at = at + 5 + #item.parts
  items[#items + 1] = item
  if verb == 'delete' then may('UNLINK', item.key) else may('PEXPIRE', item.key, '1') end
  if verb == 'keep' then may('PERSIST', item.key) end
  if verb == 'put' then
    local adds = {string = 'SET', set = 'SADD', list = 'RPUSH'}
    if item.kind == 'zset' then
      may('ZADD', item.key, '0', 'member')
    elseif item.kind == 'hash' then
      may('HSET', item.key, 'field', 'value')
    else
      may(adds[item.kind], item.key, 'value')
    end
  end
end
if problem then return problem end

-- A life only becomes shorter. One that is longer was given anew, with the same value.
local function renewed(item, life)
  if not item.was then return false end
  if item.was < 0 then return life >= 0 end
  return life < 0 or life > item.was
end

local function put(key, kind, parts)
  if kind == 'string' then
    redis.call('SET', key, parts[1])
  elseif kind == 'hash' then
    for n = 1, #parts, 2 do redis.call('HSET', key, parts[n], parts[n + 1]) end
  elseif kind == 'zset' then
    for n = 1, #parts, 2 do redis.call('ZADD', key, parts[n + 1], parts[n]) end
  else
    for n = 1, #parts do redis.call(kind == 'set' and 'SADD' or 'RPUSH', key, parts[n]) end
  end
end

begin()
local seen = {}
for n, item in ipairs(items) do
  local kind = redis.call('TYPE', item.key).ok
  local letter = 'A'
  if verb == 'put' then
    if kind ~= 'none' then
      letter = 'X'
    else
      put(item.key, item.kind, item.parts)
      if item.life ~= '' then redis.call('PEXPIRE', item.key, item.life) end
    end
  elseif kind == 'none' then
    letter = 'G'
  elseif renewed(item, redis.call('PTTL', item.key)) then
    letter = 'C'
  elseif kind ~= item.kind or fingerprint(item.key, kind) ~= item.print then
    letter = 'C'
  elseif verb == 'delete' then
    redis.call('UNLINK', item.key)
  elseif verb == 'keep' then
    redis.call('PERSIST', item.key)
  else
    redis.call('PEXPIRE', item.key, item.life)
  end
  seen[n] = letter
end
return done('A', table.concat(seen))
