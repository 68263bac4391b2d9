-- One run at a time may change this broker.
-- KEYS: 1 lock, 2 epoch        ARGV: 1 holder as JSON, 2 its token, 3 life in ms
-- Answers TAKEN and the fencing number, or HELD and who holds it.
local held = redis.call('GET', KEYS[1])
if held then return {'HELD', held} end

local holder = cjson.decode(ARGV[1])
holder.token = ARGV[2]
holder.epoch = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], cjson.encode(holder), 'PX', ARGV[3])
return {'TAKEN', tostring(holder.epoch)}
