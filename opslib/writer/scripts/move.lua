-- Move messages from where they are to where they should be: each one whole, or not at all.
--
-- KEYS: 1 lock, 2 journal, 3 audit, 4 notes, 5.. every list, hash and index that an item names
-- ARGV: 1 token, 2 batch, 3 life of the lock in ms, 4 audit line, 5 audit entries kept, then for each item:
--       source key no., index key no. (0: the source is a list), delivery tag, score ('' = none seen), bytes as seen,
--       destination key no., end ('next' is served first, 'last' last), bytes to write ('' = as seen), note field, note
-- Answers APPLIED and a letter for each item: A moved, G gone, C changed since it was seen; or, with nothing
-- written: FENCED, REPLAY and the letters of the first call, PARTIAL, or WRONGTYPE and the key.
--
-- Lua does not roll back. So everything is checked before the first write, the first write needs memory (a full
-- server refuses there), and each message is added before it is removed.
local LOCK, JOURNAL, AUDIT, NOTES = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FIRST, FIELDS = 6, 10

local lock = redis.call('GET', LOCK)
if not lock or cjson.decode(lock).token ~= ARGV[1] then return {'FENCED'} end

local before = redis.call('HGET', JOURNAL, ARGV[2])
if before == 'intent' then return {'PARTIAL'} end
if before then return {'REPLAY', before} end

local items = {}
for at = FIRST, #ARGV, FIELDS do
  items[#items + 1] = {
    source = KEYS[tonumber(ARGV[at])], index = KEYS[tonumber(ARGV[at + 1])], tag = ARGV[at + 2], score = ARGV[at + 3],
    seen = ARGV[at + 4], destination = KEYS[tonumber(ARGV[at + 5])],
    push = ARGV[at + 6] == 'next' and 'RPUSH' or 'LPUSH',
    written = ARGV[at + 7] ~= '' and ARGV[at + 7] or ARGV[at + 4], field = ARGV[at + 8], note = ARGV[at + 9],
  }
end

local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

local function allowed(...)
  return not redis.acl_check_cmd or redis.acl_check_cmd(...)
end

local typed = {{JOURNAL, 'hash'}, {AUDIT, 'stream'}, {NOTES, 'hash'}}
for _, item in ipairs(items) do
  typed[#typed + 1] = {item.source, item.index and 'hash' or 'list'}
  typed[#typed + 1] = {item.destination, 'list'}
  if item.index then typed[#typed + 1] = {item.index, 'zset'} end
end
for _, pair in ipairs(typed) do
  if not is(pair[1], pair[2]) then return {'WRONGTYPE', pair[1]} end
end

local writable = allowed('HSET', JOURNAL, ARGV[2], 'intent') and allowed('HSET', NOTES, 'field', 'note')
  and allowed('XADD', AUDIT, 'MAXLEN', '~', ARGV[5], '*', 'line', ARGV[4]) and allowed('PEXPIRE', LOCK, ARGV[3])
if not writable then return {'NOPERM', JOURNAL} end

local letters = {}
for n, item in ipairs(items) do
  local removable
  if item.index then
    local value, score = redis.call('HGET', item.source, item.tag), redis.call('ZSCORE', item.index, item.tag)
    if not value then
      letters[n] = 'G'
    elseif value ~= item.seen or (item.score ~= '' and (not score or tonumber(score) ~= tonumber(item.score))) then
      letters[n] = 'C'
    end
    removable = allowed('HDEL', item.source, item.tag) and allowed('ZREM', item.index, item.tag)
  else
    if not redis.call('LPOS', item.source, item.seen, 'RANK', '-1') then letters[n] = 'G' end
    removable = allowed('LREM', item.source, '-1', item.seen)
  end
  if not removable or not allowed(item.push, item.destination, item.written) then return {'NOPERM', item.source} end
end

local function there(item)
  if item.index then return redis.call('HEXISTS', item.source, item.tag) == 1 end
  return redis.call('LPOS', item.source, item.seen, 'RANK', '-1')
end

redis.call('HSET', JOURNAL, ARGV[2], 'intent')
local taken = {}
for n, item in ipairs(items) do
  local same = table.concat({item.source, item.tag, item.seen}, '\0')
  if not letters[n] and taken[same] and not there(item) then letters[n] = 'G' end -- an equal item took the only copy
  if not letters[n] then
    taken[same] = true
    if item.field ~= '' then redis.call('HSET', NOTES, item.field, item.note) end
    redis.call(item.push, item.destination, item.written)
    if item.index then
      redis.call('HDEL', item.source, item.tag)
      redis.call('ZREM', item.index, item.tag)
    else
      redis.call('LREM', item.source, '-1', item.seen)
    end
    letters[n] = 'A'
  end
end

local answer = table.concat(letters)
redis.call('HSET', JOURNAL, ARGV[2], answer)
redis.call('XADD', AUDIT, 'MAXLEN', '~', ARGV[5], '*', 'batch', ARGV[2], 'letters', answer, 'line', ARGV[4])
redis.call('PEXPIRE', LOCK, ARGV[3])
return {'APPLIED', answer}
