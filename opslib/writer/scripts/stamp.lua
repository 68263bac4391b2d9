-- Say once and for all which environment this database belongs to.
-- KEYS: 1 stamp        ARGV: 1 the stamp as JSON
-- Answers STAMPED, or TAKEN and what stands there already: empty where that is no text.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' then return {'TAKEN', kind == 'string' and redis.call('GETRANGE', KEYS[1], 0, 4095) or ''} end
redis.call('SET', KEYS[1], ARGV[1])
return {'STAMPED', ARGV[1]}
