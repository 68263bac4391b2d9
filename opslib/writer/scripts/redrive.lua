-- Send dead letters again: each message into its queue, and each letter out of its list in the same step.
--
-- KEYS: 4 the dead-letter list, 5 where this run keeps the letters that it has sent, 6.. the queues' lists
-- ARGV: life of the kept ones in ms, letters at the served end that are passed over, this database and that of results
--   and chords ('' = this one), what the keys of results begin with ('' = they are not on this server) and those of
--   checkpoints, and all letters from there on, the oldest first, as msgpack. Of each: what knows it again ('i' and its entry id, or 's' and the sha1
--   of its bytes), list key no. (0: it stays), message, its task's id before, its chord (key of the group, its id and its
--   index in there; '' = none)
-- Letters: A sent, S stays, R its task has succeeded, E another task has gone on from it, K its chord's count cannot be mended; or C for each, with nothing
--   written: the list has moved on. Seen: how many letters this run kept before.
local DEAD, KEPT, LIFE, PASSED = KEYS[FIRST_KEY], KEYS[FIRST_KEY + 1], ARGV[FIRST], tonumber(ARGV[FIRST + 1])
local HOME, RESULTS, ROOT, STATES = ARGV[FIRST + 2], ARGV[FIRST + 3], ARGV[FIRST + 4], ARGV[FIRST + 5]

local items, chords = {}, false
for n, item in ipairs(cmsgpack.unpack(ARGV[FIRST + 6])) do
  items[n] = {
    known = item[1], list = KEYS[item[2]], message = item[3], was = item[4], group = item[5], id = item[6], index = item[7],
  }
  chords = chords or item[5] ~= ''
end

need(DEAD, 'list')
need(KEPT, 'list')
may('LPUSH', KEPT, 'x')
may('PEXPIRE', KEPT, LIFE)
may('LSET', DEAD, '0', 'x')
may('LREM', DEAD, '0', 'x')
may('LTRIM', DEAD, '0', '0')
if RESULTS ~= '' then may('SELECT', RESULTS) end
local checked = {}
for _, item in ipairs(items) do
  if item.list and not checked[item.list] then
    checked[item.list] = true
    need(item.list, 'list')
    may('LPUSH', item.list, item.message)
  end
  if item.group ~= '' then
    may('ZREM', item.group .. '.j', 'x')
    may('LREM', item.group .. '.j', '0', 'x')
    may('SREM', item.group .. '.d', 'x')
    may('SET', item.group .. '.s', '1')
    may('DEL', item.group .. '.c')
  end
end
if problem then return problem end

local function go_to(database)
  if database ~= '' and RESULTS ~= '' then redis.call('SELECT', database) end
end

-- Answer what a chord has of one of its tasks; nil where nobody can say any more how many those are.
local function part_of(item)
  local results = item.group .. '.j'
  local kind = redis.call('TYPE', results).ok
  local found = {}
  if kind == 'zset' then
    local score = item.index ~= '' and item.index or '+inf'
    found = redis.call('ZRANGE', results, score, score, 'BYSCORE')
  elseif kind == 'list' then
    found = redis.call('LRANGE', results, 0, -1)
  end
  for _, entry in ipairs(found) do
    local read, value = pcall(cjson.decode, entry)
    if read and type(value) == 'table' and value[2] == item.id then return {kind = kind, entry = entry} end
  end
  -- It has not been counted yet, or was mended before: its size is still there.
  if redis.call('GET', item.group .. '.s') then return {} end
  return nil
end

-- Have a chord wait for one of its tasks again: Celery forgets the size once the last task of a failed one has returned.
local function mend(item)
  local part, results = item.part, item.group .. '.j'
  if not part.entry then return end
  if not redis.call('GET', item.group .. '.s') then
    local size = redis.call(part.kind == 'zset' and 'ZCARD' or 'LLEN', results)
    size = size - tonumber(redis.call('GET', item.group .. '.t') or '0')
    local life = redis.call('PTTL', results)
    redis.call('SET', item.group .. '.s', size)
    if life > 0 then redis.call('PEXPIRE', item.group .. '.s', life) end
  end
  if part.kind == 'zset' then redis.call('ZREM', results, part.entry) else redis.call('LREM', results, 1, part.entry) end
  redis.call('SREM', item.group .. '.d', item.id .. ':' .. (item.index ~= '' and item.index or '+inf'))
  redis.call('DEL', item.group .. '.c')
end

local here = redis.call('LRANGE', DEAD, -PASSED - #items, -PASSED - 1)
local as_seen = #here == #items
for n, item in ipairs(items) do
  item.letter = here[#here + 1 - n]
  local how, known = string.sub(item.known, 1, 1), string.sub(item.known, 2)
  as_seen = as_seen and (how == 'i' and string.find(item.letter, known, 1, true)
    or how == 's' and redis.sha1hex(item.letter) == known)
end
if not as_seen then
  begin()
  return done(string.rep('C', #items), '')
end

local letters, taken = {}, {}
for n, item in ipairs(items) do
  letters[n] = item.list and 'A' or 'S'
  if item.list and item.was ~= '' then
    local state = redis.pcall('GET', STATES .. item.was)
    if type(state) == 'string' and string.find(state, '"resumed_as":"[^"]') then letters[n] = 'E' end
  end
end
go_to(RESULTS)
for n, item in ipairs(items) do
  if letters[n] == 'A' and ROOT ~= '' and item.was ~= '' then
    -- What has run by now, by whoever's hand, is not sent again; the state stands first in a result.
    local head = redis.pcall('GETRANGE', ROOT .. item.was, 0, 95)
    if type(head) == 'string' and string.find(head, '^%s*{%s*"status":%s*"SUCCESS"') then letters[n] = 'R' end
  end
  if letters[n] == 'A' and item.group ~= '' then
    item.part = part_of(item)
    if not item.part then letters[n] = 'K' end
  end
end
go_to(HOME)

local before = redis.call('LLEN', KEPT)
begin()
if chords then
  go_to(RESULTS)
  for n, item in ipairs(items) do
    if letters[n] == 'A' and item.group ~= '' then mend(item) end
  end
  go_to(HOME)
end
local values, lists, messages = {}, {}, {}
for n, item in ipairs(items) do
  if letters[n] == 'A' then
    taken[#taken + 1] = n
    values[#values + 1] = item.letter
    if not messages[item.list] then
      lists[#lists + 1] = item.list
      messages[item.list] = {}
    end
    messages[item.list][#messages[item.list] + 1] = item.message
  end
end
for _, list in ipairs(lists) do redis.call('LPUSH', list, unpack(messages[list])) end
if #taken > 0 then
  redis.call('LPUSH', KEPT, unpack(values))
  redis.call('PEXPIRE', KEPT, LIFE)
end
if PASSED == 0 and #taken == #items then
  redis.call('LTRIM', DEAD, 0, -#items - 1)
elseif #taken > 0 then
  local mark = 'opslib:leaving:' .. ARGV[1] .. ':' .. BATCH
  for _, n in ipairs(taken) do redis.call('LSET', DEAD, -PASSED - n, mark) end
  redis.call('LREM', DEAD, -#taken, mark)
end
return done(table.concat(letters), tostring(before))
