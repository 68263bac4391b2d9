-- Remove a list whose messages are in a file, on a server that has no memory for a lock or a journal.
-- KEYS: 1 lock, 2 the list      ARGV: 1 how many messages the file has
-- Answers DONE; or, with nothing written, HELD, or CHANGED for a list of another length, or that is none.
if redis.call('EXISTS', KEYS[1]) == 1 then return {'HELD'} end
if redis.call('TYPE', KEYS[2]).ok ~= 'list' then return {'CHANGED'} end
if redis.call('LLEN', KEYS[2]) ~= tonumber(ARGV[1]) then return {'CHANGED'} end
redis.call('UNLINK', KEYS[2])
return {'DONE'}
