-- What a key holds, how long it lives, and the fingerprint by which a later script knows it again. Writes nothing.
-- KEYS: 1 the key      ARGV: 1 the most elements of a collection
-- Answers its type, its life in ms (-1 for ever), its fingerprint, and its parts; or TOOLARGE and its size.
local kind = redis.call('TYPE', KEYS[1]).ok
local sizes = {hash = 'HLEN', set = 'SCARD', zset = 'ZCARD', list = 'LLEN'}
if kind ~= 'string' and not sizes[kind] then return {kind} end
if sizes[kind] then
  local size = redis.call(sizes[kind], KEYS[1])
  if size > tonumber(ARGV[1]) then return {'TOOLARGE', tostring(size)} end
end
local parts = kind == 'string' and {redis.call('GET', KEYS[1])} or flat(KEYS[1], kind)
return {kind, tostring(redis.call('PTTL', KEYS[1])), fingerprint(KEYS[1], kind), parts}
