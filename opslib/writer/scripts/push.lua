-- Put new messages into lists, behind all that waits there.
--
-- KEYS: 4.. the lists
-- ARGV, for each: list key no., bytes
-- Letters: A for each.
local items = {}
for at = FIRST, #ARGV, 2 do
  local list = KEYS[tonumber(ARGV[at])]
  need(list, 'list')
  may('LPUSH', list, ARGV[at + 1])
  items[#items + 1] = {list, ARGV[at + 1]}
end
if problem then return problem end

begin()
for _, item in ipairs(items) do redis.call('LPUSH', item[1], item[2]) end
return done(string.rep('A', #items), '')
