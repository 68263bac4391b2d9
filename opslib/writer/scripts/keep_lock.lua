-- Renew the lock, or let go of it; only its holder can.
-- KEYS: 1 lock                 ARGV: 1 token, 2 life in ms, 0 to let go
-- Answers 1 if the token holds the lock; 0 also where something that is no lock has its name.
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return 0 end
local _, holder = pcall(cjson.decode, redis.call('GET', KEYS[1]))
if type(holder) ~= 'table' or holder.token ~= ARGV[1] then return 0 end

if ARGV[2] == '0' then redis.call('UNLINK', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
