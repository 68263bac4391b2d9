-- The beginning of every script that changes what is in a broker; one kind of change follows it in the same text.
--
-- KEYS: 1 lock, 2 journal, 3 audit, 4.. the change's own
-- ARGV: 1 token, 2 batch, 3 life of the lock in ms, 4 the run as JSON, with the run_id of its server, 5 audit entries
--   kept, 6 receipt, 7.. its own
-- Answers APPLIED, a letter for each item and what was seen of each; or, with nothing written: FENCED, ELSEWHERE if a
-- failover or a restart made another server of it, REPLAY and the answer of the first call, PARTIAL, WRONGTYPE or NOPERM
-- and the key.
--
-- Lua does not roll back. So everything that can fail is checked before `begin`, whose write needs memory (a full
-- server refuses there), and each thing is added before it is removed. Whatever was done is in the journal, with the
-- receipt from which it can be undone, because both were written in the same step.
local LOCK, JOURNAL, AUDIT, BATCH = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
local FIRST_KEY, FIRST = 4, 7

local ours, holder = pcall(cjson.decode, redis.call('GET', LOCK) or '')
if not ours or type(holder) ~= 'table' or holder.token ~= ARGV[1] then return {'FENCED'} end

-- The lock is replicated, and a client that has to connect again asks a Sentinel who is master by now.
local server = cjson.decode(ARGV[4]).server
if server and not string.find(redis.call('INFO', 'server'), 'run_id:' .. server, 1, true) then return {'ELSEWHERE'} end

local before = redis.call('HGET', JOURNAL, BATCH)
if before == 'intent' then return {'PARTIAL'} end
if before then return {'REPLAY', before, redis.call('HGET', JOURNAL, BATCH .. ':p') or ''} end

local problem

local function need(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then problem = problem or {'WRONGTYPE', key} end
end

local function may(command, key, ...)
  if redis.acl_check_cmd and not redis.acl_check_cmd(command, key, ...) then problem = problem or {'NOPERM', key} end
end

need(JOURNAL, 'hash')
need(AUDIT, 'stream')
may('HSET', JOURNAL, BATCH, 'intent')
may('XADD', AUDIT, 'MAXLEN', '~', ARGV[5], '*', 'line', ARGV[4])
may('PEXPIRE', LOCK, ARGV[3])

local function begin()
  redis.call('HSET', JOURNAL, BATCH, 'intent', BATCH .. ':u', ARGV[6])
  if redis.call('HEXISTS', JOURNAL, 'run') == 0 then redis.call('HSET', JOURNAL, 'run', ARGV[4]) end
end

local function done(letters, seen)
  redis.call('HSET', JOURNAL, BATCH, letters, BATCH .. ':p', seen)
  redis.call('XADD', AUDIT, 'MAXLEN', '~', ARGV[5], '*', 'batch', BATCH, 'letters', letters, 'line', ARGV[4])
  redis.call('PEXPIRE', LOCK, ARGV[3])
  return {'APPLIED', letters, seen}
end

