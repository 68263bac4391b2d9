-- Take the lock from a run that cannot let go of it, for a person who names this very lock.
-- KEYS: 1 lock, 2 audit        ARGV: 1 lock id: the beginning of its token, 2 audit line, 3 audit entries kept
-- Answers FREED and who held it; or, with nothing changed: FREE, OTHER and who holds it, WRONGTYPE or NOPERM and the key.
local LOCK, AUDIT, ID = KEYS[1], KEYS[2], ARGV[1]
local SHORTEST = 8

local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

if not is(LOCK, 'string') then return {'WRONGTYPE', LOCK} end
if not is(AUDIT, 'stream') then return {'WRONGTYPE', AUDIT} end
local held = redis.call('GET', LOCK)
if not held then return {'FREE'} end

local _, holder = pcall(cjson.decode, held)
local known = type(holder) == 'table' and type(holder.token) == 'string'
local token = known and holder.token or redis.sha1hex(held) -- what is no lock of ours is named by its content
if #ID < SHORTEST or string.sub(token, 1, #ID) ~= ID then return {'OTHER', held} end

local function allowed(...)
  return not redis.acl_check_cmd or redis.acl_check_cmd(...)
end

if not allowed('UNLINK', LOCK) then return {'NOPERM', LOCK} end
redis.call('XADD', AUDIT, 'MAXLEN', '~', ARGV[3], '*', 'unlock', ID, 'line', ARGV[2])
redis.call('UNLINK', LOCK)
return {'FREED', held}
