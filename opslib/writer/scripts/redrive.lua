-- Send dead letters again: each message into its queue, and each letter out of its list in the same step.
--
-- KEYS: 4 the dead-letter list, 5 where this run keeps the letters that it has sent, 6.. the queues' lists
-- ARGV: life of the kept ones in ms, letters at the served end that are passed over, keys before the lists, this database
--   and that of results and chords ('' = this one), what the keys of results begin with ('' = they are not on this
--   server) and those of checkpoints, and, as msgpack, all letters from there on, the oldest first: what knows the first
--   and the last of them again ('i' and its entry id, or 's' and the sha1 of its bytes); then of each the number of its
--   list (0: it stays), its message, and its task's id; and by its place among them what is of a chord: key of the group,
--   its id among them, its index
-- Letters: A sent, S stays, R its task has succeeded, E another task has gone on from it, K its chord's count cannot be
--   mended; or C for each, with nothing written: the list has moved on. Seen: how many letters this run kept before.
local DEAD, KEPT, LIFE, PASSED = KEYS[FIRST_KEY], KEYS[FIRST_KEY + 1], ARGV[FIRST], tonumber(ARGV[FIRST + 1])
local BASE = tonumber(ARGV[FIRST + 2])
local HOME, RESULTS, ROOT, STATES = ARGV[FIRST + 3], ARGV[FIRST + 4], ARGV[FIRST + 5], ARGV[FIRST + 6]
local told = cmsgpack.unpack(ARGV[FIRST + 7])
local ENDS, NUMBERS, MESSAGES, TASKS, CHORDS = told[1], told[2], told[3], told[4], {}
for _, each in ipairs(told[5]) do CHORDS[each[1]] = {group = each[2], id = each[3], index = each[4]} end
local COUNT = #NUMBERS

need(DEAD, 'list')
need(KEPT, 'list')
may('LPUSH', KEPT, 'x')
may('PEXPIRE', KEPT, LIFE)
may('LMOVE', DEAD, KEPT, 'RIGHT', 'LEFT')
may('LSET', DEAD, '0', 'x')
may('LREM', DEAD, '0', 'x')
if RESULTS ~= '' then may('SELECT', RESULTS) end
for n = BASE + 1, #KEYS do
  need(KEYS[n], 'list')
  may('LPUSH', KEYS[n], 'x')
end
for _, chord in pairs(CHORDS) do
  may('ZREM', chord.group .. '.j', 'x')
  may('LREM', chord.group .. '.j', '0', 'x')
  may('SREM', chord.group .. '.d', 'x')
  may('SET', chord.group .. '.s', '1')
  may('DEL', chord.group .. '.c')
end
if problem then return problem end

local function go_to(database)
  if database ~= '' and RESULTS ~= '' then redis.call('SELECT', database) end
end

-- Answer what a chord has of one of its tasks; nil where nobody can say any more how many those are.
local function part_of(chord)
  local results = chord.group .. '.j'
  local kind = redis.call('TYPE', results).ok
  local found = {}
  if kind == 'zset' then
    local score = chord.index ~= '' and chord.index or '+inf'
    found = redis.call('ZRANGE', results, score, score, 'BYSCORE')
  elseif kind == 'list' then
    found = redis.call('LRANGE', results, 0, -1)
  end
  for _, entry in ipairs(found) do
    local read, value = pcall(cjson.decode, entry)
    if read and type(value) == 'table' and value[2] == chord.id then return {kind = kind, entry = entry} end
  end
  -- It has not been counted yet, or was mended before: its size is still there.
  if redis.call('GET', chord.group .. '.s') then return {} end
  return nil
end

-- Have a chord wait for one of its tasks again: Celery forgets the size once the last task of a failed one has returned.
local function mend(chord)
  local part, results = chord.part, chord.group .. '.j'
  if not part.entry then return end
  if not redis.call('GET', chord.group .. '.s') then
    local size = redis.call(part.kind == 'zset' and 'ZCARD' or 'LLEN', results)
    size = size - tonumber(redis.call('GET', chord.group .. '.t') or '0')
    local life = redis.call('PTTL', results)
    redis.call('SET', chord.group .. '.s', size)
    if life > 0 then redis.call('PEXPIRE', chord.group .. '.s', life) end
  end
  if part.kind == 'zset' then redis.call('ZREM', results, part.entry) else redis.call('LREM', results, 1, part.entry) end
  redis.call('SREM', chord.group .. '.d', chord.id .. ':' .. (chord.index ~= '' and chord.index or '+inf'))
  redis.call('DEL', chord.group .. '.c')
end

-- Letters come at one end and go at the other, or from in between; none is put in between. So if the first and the last
-- of a window are those that were seen, and as far apart, all between them are.
local function is_there(n, known)
  local letter = redis.call('LINDEX', DEAD, -PASSED - n)
  local how, what = string.sub(known, 1, 1), string.sub(known, 2)
  return letter and (how == 'i' and string.find(letter, what, 1, true) or how == 's' and redis.sha1hex(letter) == what)
end

if not (is_there(1, ENDS[1]) and is_there(COUNT, ENDS[2])) then
  begin()
  return done(string.rep('C', COUNT), '')
end

local letters, states = {}, {}
for n = 1, COUNT do states[n] = STATES .. TASKS[n] end
states = redis.call('MGET', unpack(states))
for n = 1, COUNT do
  letters[n] = NUMBERS[n] > 0 and 'A' or 'S'
  if NUMBERS[n] > 0 and states[n] and string.find(states[n], '"resumed_as":"[^"]') then letters[n] = 'E' end
end
go_to(RESULTS)
local names = {}
for n = 1, COUNT do names[n] = ROOT .. TASKS[n] end
local any = ROOT ~= '' and redis.call('EXISTS', unpack(names)) > 0
for n = 1, COUNT do
  if any and letters[n] == 'A' and TASKS[n] ~= '' then
    -- What has run by now, by whoever's hand, is not sent again; the state stands first in a result.
    local head = redis.pcall('GETRANGE', names[n], 0, 95)
    if type(head) == 'string' and string.find(head, '^%s*{%s*"status":%s*"SUCCESS"') then letters[n] = 'R' end
  end
  if letters[n] == 'A' and CHORDS[n] then
    CHORDS[n].part = part_of(CHORDS[n])
    if not CHORDS[n].part then letters[n] = 'K' end
  end
end
go_to(HOME)

local before = redis.call('LLEN', KEPT)
begin()
go_to(RESULTS)
for n, chord in pairs(CHORDS) do
  if letters[n] == 'A' then mend(chord) end
end
go_to(HOME)
local taken, lists, messages = {}, {}, {}
for n = 1, COUNT do
  if letters[n] == 'A' then
    local list = NUMBERS[n]
    taken[#taken + 1] = n
    if not messages[list] then
      lists[#lists + 1] = list
      messages[list] = {}
    end
    messages[list][#messages[list] + 1] = MESSAGES[n]
  end
end
for _, list in ipairs(lists) do redis.call('LPUSH', KEYS[BASE + list], unpack(messages[list])) end
if PASSED == 0 and #taken == COUNT then
  for _ = 1, COUNT do redis.call('LMOVE', DEAD, KEPT, 'RIGHT', 'LEFT') end
elseif #taken > 0 then
  local mark = 'opslib:leaving:' .. ARGV[1] .. ':' .. BATCH
  for _, n in ipairs(taken) do
    redis.call('LPUSH', KEPT, redis.call('LINDEX', DEAD, -PASSED - n))
    redis.call('LSET', DEAD, -PASSED - n, mark)
  end
  redis.call('LREM', DEAD, -#taken, mark)
end
if #taken > 0 then redis.call('PEXPIRE', KEPT, LIFE) end
return done(table.concat(letters), tostring(before))
