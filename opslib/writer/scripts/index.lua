-- Make the unacked hash and its index agree on a delivery tag that only one of them has.
--
-- KEYS: 4 unacked, 5 its index
-- ARGV, for each tag: the tag, 'add' to the index or 'drop' from it, the score to add or the score as seen
--   ('' = any), 'agree' (only where they disagree) or 'undo' (whatever the hash has)
-- Letters: A done, G they agree by now, C another score than was seen. Seen: the score that was dropped, or ''.
local UNACKED, INDEX = KEYS[FIRST_KEY], KEYS[FIRST_KEY + 1]
need(UNACKED, 'hash')
need(INDEX, 'zset')
may('ZADD', INDEX, 'NX', '0', 'tag')
may('ZREM', INDEX, 'tag')
if problem then return problem end

begin()
local letters, seen = {}, {}
for at = FIRST, #ARGV, 4 do
  local tag, verb, score, mode = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local held, indexed = redis.call('HEXISTS', UNACKED, tag) == 1, redis.call('ZSCORE', INDEX, tag)
  local letter = 'G'
  if verb == 'add' and not indexed and (held or mode == 'undo') then
    redis.call('ZADD', INDEX, 'NX', score, tag)
    letter = 'A'
  elseif verb == 'drop' and indexed and (not held or mode == 'undo') then
    letter = (score == '' or tonumber(score) == tonumber(indexed)) and 'A' or 'C'
    if letter == 'A' then redis.call('ZREM', INDEX, tag) end
  end
  letters[#letters + 1] = letter
  seen[#seen + 1] = letter == 'A' and verb == 'drop' and indexed or ''
end
return done(table.concat(letters), table.concat(seen, ','))
