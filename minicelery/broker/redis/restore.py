"""Giving back what Celery's workers have left behind.

What they hold is in kombu's `unacked` (hash: delivery tag -> [envelope, exchange, routing key])
and `unacked_index` (zset: delivery tag -> when it was taken).
"""

from __future__ import annotations

from minicelery.broker.redis.link import Script
from minicelery.broker.redis.scripts import COMMON

# KEYS: kombu's unacked, unacked_index and unacked_mutex, then the queues' lists.
# ARGV: prefix of all keys, visibility timeout, offset, most.  The answer: where to go on (-1: all
# have been looked at), and the ids of what is back in its queue.
RESTORE = Script(
    COMMON,
    """
local unacked, index = KEYS[1], KEYS[2]
local prefix, offset, most = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', index) == 0 then return {-1} end
-- A Celery worker is at it.  We need no mutex for one step, and what we have taken it leaves alone.
if redis.call('EXISTS', KEYS[3]) == 1 then return {offset} end
local served = {}
for i = 4, #KEYS do served[KEYS[i]] = true end
local function matches(key, binding, pattern)
  if pattern == '' then return key == binding end
  local wanted = string.gsub(binding, '([^.]*)(%.?)', function(word, dot)
    if word == '*' then word = '[^.]+'
    elseif word == '#' then word = '.*'
    else word = string.gsub(word, '%W', '%%%0') end
    return word .. (dot == '' and '' or '%.')
  end)
  return string.find(key, '^' .. wanted .. '$') ~= nil
end
-- All lists kombu would put it back to, if one of them is of a queue that is served here.
local function homes(exchange, key)
  if exchange == '' then return served[prefix .. key] and {[prefix .. key] = true} or {} end
  local found, ours = {}, false
  for _, member in ipairs(redis.call('SMEMBERS', prefix .. '_kombu.binding.' .. exchange)) do
    local binding, pattern, queue = string.match(member, '^(.-)' .. SEP .. '(.-)' .. SEP .. '(.*)$')
    if binding and matches(key, binding, pattern) then
      found[prefix .. queue] = true
      ours = ours or served[prefix .. queue]
    end
  end
  return ours and found or {}
end
local function decoded(text)
  local read, value = pcall(cjson.decode, text)
  return read and type(value) == 'table' and value or nil
end
local function part(value, name)
  return type(value[name]) == 'table' and value[name] or {}
end
-- The text is edited: cjson would make an object of an empty list, and round long numbers.
local function marked(text)
  local new = text
  for _, name in ipairs({'headers', 'delivery_info'}) do
    new = string.gsub(new, '("' .. name .. '":%s*{%s*)(}?)', function(head, last)
      return head .. '"redelivered": true' .. (last == '' and ', ' or last)
    end, 1)
  end
  local value = decoded(new)
  if value and part(value, 'headers').redelivered == true
      and part(part(value, 'properties'), 'delivery_info').redelivered == true then return new end
  return text
end
local latest = string.format('%.6f', now() - tonumber(ARGV[2]))
local tags = redis.call('ZREVRANGEBYSCORE', index, latest, '-inf', 'LIMIT', offset, most)
local answer, removed = {0}, 0
for _, tag in ipairs(tags) do
  local entry = redis.call('HGET', unacked, tag)
  local text = entry and string.match(entry, '^%[(.*}),[^}]*%]$')
  local envelope, whole = text and decoded(text), text and decoded(entry)
  local lists = {}
  if envelope and whole and type(whole[3]) == 'string' then
    lists = homes(type(whole[2]) == 'string' and whole[2] or '', whole[3])
  end
  if not entry or next(lists) then
    redis.call('HDEL', unacked, tag)
    redis.call('ZREM', index, tag)
    removed = removed + 1
  end
  if next(lists) then
    local headers, priority = part(envelope, 'headers'), tonumber(part(envelope, 'properties').priority) or 0
    if headers.redelivered ~= true then text = marked(text) end
    local step = priority >= 9 and '9' or priority >= 6 and '6' or priority >= 3 and '3' or '0'
    for q in pairs(lists) do
      redis.call('RPUSH', list(q, step), text)
      if served[q] then ring(q) end
    end
    answer[#answer + 1] = type(headers.id) == 'string' and headers.id or tag
  end
end
answer[1] = #tags < most and -1 or offset + #tags - removed
return answer
""",
)
