-- A batch of one queue's dead letters: into their list, newest left, no longer than its bound; once.
-- KEYS: number of the sender's last batch, counts of what was dropped, the list, the routes of a queue of its name
-- ARGV: number of this batch, life of that number in seconds, bound, queue, how many were lost before, the letters
-- Returns how many were written, how many were dropped, and why none was; nothing if it was done before.
-- An error is raised before the number is noted, or takes it back: whoever meets one may send the same again.
if redis.call('GET', KEYS[1]) == ARGV[1] then return {} end

local count = #ARGV - 5
local kind = redis.call('TYPE', KEYS[3]).ok
local problem = ''
if kind ~= 'none' and kind ~= 'list' then
  problem = 'it is a ' .. kind .. ' and not a list'
elseif redis.call('EXISTS', KEYS[4]) == 1 then
  problem = 'it is a queue, whose workers would take letters for messages'
end

redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local dropped = tonumber(ARGV[5])
if problem == '' then
  for each = 6, #ARGV do
    local said = redis.pcall('LPUSH', KEYS[3], ARGV[each])
    if type(said) == 'table' and said.err then
      if each == 6 then
        redis.call('SET', KEYS[1], '', 'EX', ARGV[2])
        return said
      end
      return {each - 6, #ARGV - each + 1, said.err}
    end
  end
  local length = redis.pcall('LLEN', KEYS[3])
  local over = type(length) == 'number' and length - tonumber(ARGV[3]) or 0
  if over > 0 then
    local said = redis.pcall('LTRIM', KEYS[3], 0, tonumber(ARGV[3]) - 1)
    if not said.err then dropped = dropped + over end
  end
else
  dropped = dropped + count
end
if dropped > 0 then redis.pcall('HINCRBY', KEYS[2], ARGV[4], dropped) end
return {problem == '' and count or 0, dropped, problem}
