-- One run at a time may change this broker.
-- KEYS: 1 lock, 2 epoch        ARGV: 1 holder as JSON, 2 its token, 3 life in ms
-- Answers TAKEN and the fencing number, or HELD and who holds it; whatever is there under the lock's name holds it.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' then return {'HELD', kind == 'string' and redis.call('GET', KEYS[1]) or ''} end

local holder = cjson.decode(ARGV[1])
holder.token = ARGV[2]
holder.epoch = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], cjson.encode(holder), 'PX', ARGV[3])
return {'TAKEN', tostring(holder.epoch)}
