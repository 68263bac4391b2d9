-- Move messages from where they are to where they should be: each one whole, or not at all.
--
-- KEYS: 4 notes, 5.. every list, hash and index that an item names
-- ARGV, for each item: source key no., its index key no. (0: a list), tag, score ('' = none seen), bytes as seen,
--   destination key no., its index key no. (0: a list), tag, score ('' = none), place ('next' is served first, 'last'
--   last, 'P/L' = P messages are served before it, if the list still has L, 'P/' = whatever it has), bytes to write
--   ('' = as seen), note field, note
-- Letters: A moved, N moved, but next to be served, for the list has moved on; G gone; C changed since it was seen, or
--   'P/' is too far from either end by now; X something is in its place.
-- Seen: for each item 'P/L' of the list that it left, or the score that it had.
local NOTES, FIELDS = KEYS[FIRST_KEY], 13
-- So far from either end a message is searched for, and so many others step aside for one: each less than 5 ms.
local REACH, ASIDE = 2500, 1000

local items = {}
for at = FIRST, #ARGV, FIELDS do
  items[#items + 1] = {
    source = KEYS[tonumber(ARGV[at])], index = KEYS[tonumber(ARGV[at + 1])], tag = ARGV[at + 2], score = ARGV[at + 3],
    seen = ARGV[at + 4], to = KEYS[tonumber(ARGV[at + 5])], to_index = KEYS[tonumber(ARGV[at + 6])],
    to_tag = ARGV[at + 7], to_score = ARGV[at + 8], place = ARGV[at + 9],
    written = ARGV[at + 10] ~= '' and ARGV[at + 10] or ARGV[at + 4], field = ARGV[at + 11], note = ARGV[at + 12],
  }
end

need(NOTES, 'hash')
may('HSET', NOTES, 'field', 'note')
for _, item in ipairs(items) do
  need(item.source, item.index and 'hash' or 'list')
  need(item.to, item.to_index and 'hash' or 'list')
  if item.index then
    need(item.index, 'zset')
    may('HDEL', item.source, item.tag)
    may('ZREM', item.index, item.tag)
  else
    may('LREM', item.source, '-1', item.seen)
    may('LPOS', item.source, item.seen)
    may('LLEN', item.source)
  end
  if item.to_index then
    need(item.to_index, 'zset')
    may('HSET', item.to, item.to_tag, item.written)
    may('ZADD', item.to_index, '0', item.to_tag)
  else
    if item.place ~= 'next' then may('LPUSH', item.to, item.written) end
    if item.place ~= 'last' then may('RPUSH', item.to, item.written) end
    if item.place ~= 'last' and item.place ~= 'next' or item.source == item.to then may('LSET', item.to, '0', 'x') end
  end
end
if problem then return problem end

-- Put a value behind so many others that are served before it, by moving the nearer end of the list one step aside.
local function insert(list, value, served)
  local behind = redis.call('LLEN', list) - served
  if served == 0 then
    redis.call('RPUSH', list, value)
  elseif behind == 0 then
    redis.call('LPUSH', list, value)
  elseif served <= behind then
    local others = redis.call('LRANGE', list, -served, -1)
    redis.call('RPUSH', list, value)
    for n = 1, served do redis.call('LSET', list, n - served - 1, others[n]) end
    redis.call('LSET', list, -served - 1, value)
  else
    local others = redis.call('LRANGE', list, 0, behind - 1)
    redis.call('LPUSH', list, value)
    for n = 1, behind do redis.call('LSET', list, n - 1, others[n]) end
    redis.call('LSET', list, behind, value)
  end
end

-- Find a value near either end of a list; answer its place from the left, and the end that it is near.
local function find(list, value)
  local at = redis.call('LPOS', list, value, 'RANK', '-1', 'MAXLEN', REACH)
  if at then return at, '-1' end
  if redis.call('LLEN', list) <= REACH then return nil end
  return redis.call('LPOS', list, value, 'MAXLEN', REACH), '1'
end

-- Answer how many are served before a place in a list, and whether too many would have to step aside for it.
local function place_in(list, served, from)
  local length = redis.call('LLEN', list)
  served = math.min(served, length - (from and 1 or 0))
  return served, served > ASIDE and length - served > ASIDE
end

-- Add a message to a list; answer whether it is where it was wanted.
local function add(item, from)
  local served, expected = string.match(item.place, '^(%d+)/(%d*)$')
  if item.place == 'last' then
    redis.call('LPUSH', item.to, item.written)
  elseif not served or expected ~= '' and tonumber(expected) ~= redis.call('LLEN', item.to) then
    redis.call('RPUSH', item.to, item.written)
    return not served
  else
    local too_deep
    served, too_deep = place_in(item.to, tonumber(served), from)
    if too_deep then
      redis.call('RPUSH', item.to, item.written)
      return false
    end
    -- It leaves the same list: from in front of its new place, it still counts until it has left.
    if from and from <= served then served = served + 1 end
    insert(item.to, item.written, served)
  end
  return true
end

-- Take a message out of the list that it was added to as well: the copy that lay there before.
local function leave_same(item, length, from, near)
  local mark = 'opslib:leaving:' .. ARGV[1] .. ':' .. BATCH
  local grown = redis.call('LLEN', item.source)
  local at -- its place from the left now, whichever side the new one was put in
  for _, candidate in ipairs({length - 1 - from, grown - 1 - from}) do
    if redis.call('LINDEX', item.source, candidate) == item.seen then at = candidate end
  end
  redis.call('LSET', item.source, at, mark)
  redis.call('LREM', item.source, near, mark)
end

begin()
local letters, seen = {}, {}
for n, item in ipairs(items) do
  local letter, from, length, near = 'A', nil, nil, nil
  seen[n] = ''
  if item.index then
    local value, score = redis.call('HGET', item.source, item.tag), redis.call('ZSCORE', item.index, item.tag)
    if not value then
      letter = 'G'
    elseif value ~= item.seen or (item.score ~= '' and (not score or tonumber(score) ~= tonumber(item.score))) then
      letter = 'C'
    end
    seen[n] = score or ''
  else
    local at
    at, near = find(item.source, item.seen)
    if at then
      length = redis.call('LLEN', item.source)
      from = length - 1 - at
      seen[n] = from .. '/' .. length
    else
      letter = 'G'
    end
  end
  local within = item.source == item.to and from or nil
  if letter == 'A' and not item.to_index then
    -- Without a length somebody said so: no other place will do, while what is put back must not stay where it is.
    local served = string.match(item.place, '^(%d+)/$')
    if served and select(2, place_in(item.to, tonumber(served), within)) then letter = 'C' end
  end
  if letter == 'A' and item.to_index and redis.call('HEXISTS', item.to, item.to_tag) == 1 then letter = 'X' end
  if letter == 'A' then
    if item.field ~= '' then redis.call('HSET', NOTES, item.field, item.note) end
    if item.to_index then
      redis.call('HSET', item.to, item.to_tag, item.written)
      if item.to_score ~= '' then redis.call('ZADD', item.to_index, item.to_score, item.to_tag) end
    elseif not add(item, within) then
      letter = 'N'
    end
    if item.index then
      redis.call('HDEL', item.source, item.tag)
      redis.call('ZREM', item.index, item.tag)
    elseif item.source == item.to then
      leave_same(item, length, from, near)
    else
      redis.call('LREM', item.source, near, item.seen)
    end
  end
  letters[n] = letter
end
return done(table.concat(letters), table.concat(seen, ','))
