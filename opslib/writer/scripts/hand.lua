-- Give a task's saved state to the one that goes on from it: a copy under a new key, and a word in the old one; or undo
-- that.
--
-- KEYS: 4.. the keys
-- ARGV, for each: old key no., new key no., 'hand' or 'back', old value as seen, new value as seen (for 'back'), old
--   value from now on, new value from now on (for 'hand'), life of what is written in ms ('' = for ever)
-- Letters: A done, G the old one is gone, C one of them was written since, X the new one is there already.
-- Seen: life of the old one in ms before, -1 for ever.
local items = {}
for at = FIRST, #ARGV, 8 do
  local item = {
    old = KEYS[tonumber(ARGV[at])], new = KEYS[tonumber(ARGV[at + 1])], verb = ARGV[at + 2], was = ARGV[at + 3],
    copied = ARGV[at + 4], from_now = ARGV[at + 5], copy = ARGV[at + 6], life = ARGV[at + 7],
  }
  may('SET', item.old, item.from_now)
  may('SET', item.new, item.copy)
  may('PEXPIRE', item.old, '1')
  may('PEXPIRE', item.new, '1')
  may('UNLINK', item.new)
  items[#items + 1] = item
end
if problem then return problem end

local function value(key)
  local kind = redis.call('TYPE', key).ok
  return kind == 'string' and redis.call('GET', key) or kind ~= 'none'
end

local function write(key, text, life)
  redis.call('SET', key, text)
  if life ~= '' then redis.call('PEXPIRE', key, life) end
end

begin()
local letters, seen = {}, {}
for n, item in ipairs(items) do
  local old, new = value(item.old), value(item.new)
  seen[n] = redis.call('PTTL', item.old)
  local letter = 'A'
  if not old then
    letter = 'G'
  elseif old ~= item.was then
    letter = 'C'
  elseif item.verb == 'hand' then
    if new then
      letter = 'X'
    else
      write(item.new, item.copy, item.life)
      write(item.old, item.from_now, item.life)
    end
  elseif new and new ~= item.copied then
    letter = 'C'
  else
    write(item.old, item.from_now, item.life)
    redis.call('UNLINK', item.new)
  end
  letters[n] = letter
end
return done(table.concat(letters), table.concat(seen, ','))
