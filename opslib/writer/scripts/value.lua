-- What a key holds, as one text: the same text for the same value, whatever the order in which the server keeps it.
-- A long string counts by its length and both its ends: hashing all of it would stop every other client.
local WHOLE = 1048576

local function flat(key, kind)
  if kind == 'hash' then
    local fields, values, all = redis.call('HKEYS', key), {}, {}
    table.sort(fields)
    for _, field in ipairs(fields) do values[#values + 1] = redis.call('HGET', key, field) end
    for n, field in ipairs(fields) do
      all[#all + 1] = field
      all[#all + 1] = values[n]
    end
    return all
  elseif kind == 'set' then
    local members = redis.call('SMEMBERS', key)
    table.sort(members)
    return members
  elseif kind == 'zset' then
    return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then
    return redis.call('LRANGE', key, 0, -1)
  end
  local length = redis.call('STRLEN', key)
  if length <= WHOLE then return {redis.call('GET', key)} end
  return {redis.call('GETRANGE', key, 0, WHOLE / 2 - 1), tostring(length), redis.call('GETRANGE', key, -WHOLE / 2, -1)}
end

local function fingerprint(key, kind)
  local parts = {kind}
  for _, part in ipairs(flat(key, kind)) do
    parts[#parts + 1] = #part .. ':' .. part
  end
  return redis.sha1hex(table.concat(parts, '\n'))
end

