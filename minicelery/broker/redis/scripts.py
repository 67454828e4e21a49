"""The Lua scripts: each is one step for the server, and one trip for us.

Keys of a queue `q` (all begin with the queue's own list key):

===================  ======  ==================================================================
`q`, `q\\x06\\x163`…    list    Celery's lists: priorities 0–2, 3–5, 6–8, 9; LPUSH in, RPOP out
`q.due`              zset    delayed messages: score unix seconds, member step + envelope
`q.held:<consumer>`  hash    receipt[:step] -> envelope; `s<receipt>` -> why a run of it ended
`q.leases`           zset    consumer -> server time at which what it holds is up for others
`q.bell`             list    at most one worthless token: idle children wait for it
`q.served`           string  a minicelery worker serves the queue, so delays may go to `q.due`
`q.dead`             list    rejected messages: a line of JSON, then the envelope as it came
`q.tended`, `q.grace`  string  when leases were last looked at; not before that time again
===================  ======  ==================================================================

What Celery's workers hold is in kombu's `unacked` (hash: delivery tag -> [envelope, exchange,
routing key]) and `unacked_index` (zset: delivery tag -> when it was taken).

The first write of SWAP removes from the held hash: a script that began with SET would be
refused when memory is full, nothing would be acknowledged, and memory never fall.
"""

from __future__ import annotations

from minicelery.broker.redis.link import Script

_COMMON = """
local SEP = '\\6\\22'
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end
local function list(q, step)
  if step == '0' then return q end
  return q .. SEP .. step
end
local function ring(q)
  local bell = q .. '.bell'
  if redis.call('LLEN', bell) == 0 then
    redis.call('LPUSH', bell, '1')
    redis.call('EXPIRE', bell, 60)
  end
end
-- Put a new message on its queue, or into the delays if its time is yet to come.  With `!` before
-- it, `due` needs nobody who serves the queue.
local function push(q, step, due, envelope, served)
  if string.sub(due, 1, 1) == '!' then
    due, served = string.sub(due, 2), true
  end
  if due ~= '' and tonumber(due) > now() and (served or redis.call('EXISTS', q .. '.served') == 1) then
    local member = step .. envelope
    redis.call('ZADD', q .. '.due', due, member)
    if redis.call('ZRANGE', q .. '.due', 0, 0)[1] == member then ring(q) end
  else
    redis.call('LPUSH', list(q, step), envelope)
    ring(q)
  end
end
-- A stored SUCCESS is never overwritten; most records are the first of their key.
local function store(key, document, ttl, final)
  local set
  if ttl == '' then
    set = redis.call('SET', key, document, 'NX')
  else
    set = redis.call('SET', key, document, 'NX', 'PX', ttl)
  end
  if not set then
    local old = redis.call('GET', key)
    if old and (string.find(old, '"status": "SUCCESS"', 1, true)
        or string.find(old, '\\166status\\167SUCCESS', 1, true)) then return end
    if ttl == '' then
      redis.call('SET', key, document)
    else
      redis.call('SET', key, document, 'PX', ttl)
    end
  end
  redis.call('PUBLISH', key, document)
end
local function rest(field)
  local receipt, step = string.match(field, '^(%d+):?(%d*)$')
  return receipt, step == '' and '0' or step
end
"""

SWAP = Script(
    _COMMON,
    """
-- The first "id" of an envelope is its header: the body before it is base64.
local function id_of(envelope)
  local id = string.match(envelope, '"id":%s*"([^"\\\\]*)"')
  if id then return id end
  local read, value = pcall(cjson.decode, envelope)
  return read and type(value) == 'table' and type(value.headers) == 'table'
    and type(value.headers.id) == 'string' and value.headers.id or nil
end
local name, lease, want, most, base = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local turn, db, own, n = tonumber(ARGV[6]), ARGV[7], ARGV[8], tonumber(ARGV[9])
local at = 10
local records = {}
local pushes = {}
for i = 1, n do
  -- queue index, field, verdict, text, key, document, ttl, messages
  local q, field, verdict, text = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local held = q .. '.held:' .. name
  local key, count = ARGV[at + 4], tonumber(ARGV[at + 7])
  local envelope
  if verdict == 'd' or (verdict == 'r' and text == '') then envelope = redis.call('HGET', held, field) end
  if redis.call('HDEL', held, field) == 1 then
    if verdict ~= 'a' then  -- 'A' is an ack of a delivery that was marked as started
      local receipt, step = rest(field)
      redis.call('HDEL', held, 's' .. receipt)
      if verdict == 'd' then
        redis.call('LPUSH', q .. '.dead', text .. '\\n' .. envelope)
        redis.call('LTRIM', q .. '.dead', 0, 9999)
      elseif verdict == 'r' then
        redis.call('RPUSH', list(q, step), text ~= '' and text or envelope)
        ring(q)
      end
    end
    if key ~= '' then records[#records + 1] = at end
    for m = 1, count do pushes[#pushes + 1] = at + 4 + m * 4 end
  end
  at = at + 8 + count * 4
end
if #records > 0 then
  if db ~= '' then redis.call('SELECT', db) end
  for _, r in ipairs(records) do store(ARGV[r + 4], ARGV[r + 5], ARGV[r + 6]) end
  if db ~= '' then redis.call('SELECT', own) end
end
local served = {}  -- what this consumer serves needs no mark
for i = 1, #KEYS - 1 do served[KEYS[i]] = true end
for _, p in ipairs(pushes) do push(ARGV[p], ARGV[p + 1], ARGV[p + 2], ARGV[p + 3], served[ARGV[p]]) end
if want == 0 then return {} end

local moment = now()
local queues = #KEYS - 1  -- the last key is that of the revoked ids
local found, bytes, full = {}, 0, false
for i = 1, queues do
  local due = KEYS[i] .. '.due'
  local ready = redis.call('ZRANGEBYSCORE', due, '-inf', string.format('%.6f', moment), 'LIMIT', 0, 128)
  if #ready > 0 then
    redis.call('ZREM', due, unpack(ready))
    for _, member in ipairs(ready) do
      redis.call('LPUSH', list(KEYS[i], string.sub(member, 1, 1)), string.sub(member, 2))
    end
    ring(KEYS[i])
  end
end
for _, step in ipairs({'0', '3', '6', '9'}) do
  for i = 0, queues - 1 do
    if want <= 0 or full then break end
    local index = (turn + i) % queues + 1
    local q = KEYS[index]
    local key = list(q, step)
    -- A queue's share of a batch, so that a full one does not starve the others.
    local share = want
    if queues > 1 then share = math.ceil(want / (queues - i)) end
    local got = redis.call('RPOP', key, share)
    if got then
      local fields = {}
      for g, envelope in ipairs(got) do
        if full then
          for back = #got, g, -1 do redis.call('RPUSH', key, got[back]) end
          break
        end
        base = base + 1
        local field = tostring(base)
        if step ~= '0' then field = field .. ':' .. step end
        fields[#fields + 1] = field
        fields[#fields + 1] = envelope
        found[#found + 1] = index
        found[#found + 1] = field
        found[#found + 1] = envelope
        want = want - 1
        bytes = bytes + #envelope
        full = bytes > most
      end
      redis.call('HSET', q .. '.held:' .. name, unpack(fields))
      redis.call('ZADD', q .. '.leases', moment + lease, name)
    end
  end
end
if #found == 0 then
  local soonest = ''
  for i = 1, queues do
    local first = redis.call('ZRANGE', KEYS[i] .. '.due', 0, 0, 'WITHSCORES')[2]
    if first and (soonest == '' or tonumber(first) < tonumber(soonest)) then soonest = first end
  end
  if soonest ~= '' then soonest = tostring(tonumber(soonest) - moment) end
  return {soonest}
end
-- The baton: whoever took some and sees more wakes the next one.
for i = 1, queues do
  local q = KEYS[i]
  if redis.call('LLEN', q) > 0 or redis.call('LLEN', q .. SEP .. '3') > 0
      or redis.call('LLEN', q .. SEP .. '6') > 0 or redis.call('LLEN', q .. SEP .. '9') > 0 then
    ring(q)
  end
end
local revoked = KEYS[#KEYS]
local flags = ''
if redis.call('EXISTS', revoked) == 1 then
  for f = 3, #found, 3 do
    local id = id_of(found[f])
    local score = id and redis.call('ZSCORE', revoked, id)
    flags = flags .. ((score and tonumber(score) > moment) and '1' or '0')
  end
end
found[#found + 1] = flags
return found
""",
)

# KEYS: the queues' lists, the producer.  ARGV: sequence, then either 0, the step and the envelopes
# of one list, or queue index, step, due and envelope of each message.
PUBLISH = Script(
    _COMMON,
    """
local producer = KEYS[#KEYS]
local last = redis.call('GET', producer)
-- Sent again because the answer was lost, or late after being sent again.
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
if ARGV[2] == '0' then
  redis.call('LPUSH', list(KEYS[1], ARGV[3]), unpack(ARGV, 4))
  ring(KEYS[1])
else
  local many, rung = {}, {}
  for at = 2, #ARGV, 4 do
    local q = KEYS[tonumber(ARGV[at])]
    if ARGV[at + 2] ~= '' then
      push(q, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
    else
      local key = list(q, ARGV[at + 1])
      local batch = many[key]
      if not batch then batch = {}; many[key] = batch; rung[q] = true end
      batch[#batch + 1] = ARGV[at + 3]
    end
  end
  for key, batch in pairs(many) do redis.call('LPUSH', key, unpack(batch)) end
  for q in pairs(rung) do ring(q) end
end
redis.call('SET', producer, ARGV[1], 'EX', 60)
return 1
""",
)

# ARGV: consumer, lease, db, own db, number of marks, (queue index, receipt)…, (key, document, ttl)…
EXTEND = Script(
    _COMMON,
    """
local name, moment = ARGV[1], now()
local marks = tonumber(ARGV[5])
for i = 1, #KEYS do
  if redis.call('ZSCORE', KEYS[i] .. '.leases', name) then
    redis.call('ZADD', KEYS[i] .. '.leases', moment + tonumber(ARGV[2]), name)
  end
end
local at = 6
for i = 1, marks do
  local held = KEYS[tonumber(ARGV[at])] .. '.held:' .. name
  if redis.call('HEXISTS', held, ARGV[at + 1]) == 1 then
    local receipt = rest(ARGV[at + 1])
    redis.call('HSET', held, 's' .. receipt, '')
  end
  at = at + 2
end
if at < #ARGV then
  if ARGV[3] ~= '' then redis.call('SELECT', ARGV[3]) end
  for r = at, #ARGV, 3 do store(ARGV[r], ARGV[r + 1], ARGV[r + 2]) end
  if ARGV[3] ~= '' then redis.call('SELECT', ARGV[4]) end
end
return 1
""",
)

# ARGV: old name, new name, lease, then (receipt, reason) of what is known to have been started.
ADOPT = Script(
    _COMMON,
    """
local old, new, moment = ARGV[1], ARGV[2], now()
local out = {}
for i = 1, #KEYS do
  local from, to = KEYS[i] .. '.held:' .. old, KEYS[i] .. '.held:' .. new
  if redis.call('EXISTS', from) == 1 then
    local all = redis.call('HGETALL', from)
    for f = 1, #all, 2 do redis.call('HSET', to, all[f], all[f + 1]) end
    redis.call('DEL', from)
  end
  redis.call('ZREM', KEYS[i] .. '.leases', old)
  local all = redis.call('HGETALL', to)
  if #all > 0 then
    redis.call('ZADD', KEYS[i] .. '.leases', moment + tonumber(ARGV[3]), new)
    local fields = {}
    for f = 1, #all, 2 do
      local receipt = rest(all[f])
      if receipt then fields[receipt] = true end
    end
    for s = 4, #ARGV, 2 do
      if fields[ARGV[s]] then redis.call('HSET', to, 's' .. ARGV[s], ARGV[s + 1]) end
    end
    all = redis.call('HGETALL', to)
    for f = 1, #all, 2 do
      out[#out + 1] = i
      out[#out + 1] = all[f]
      out[#out + 1] = all[f + 1]
    end
  end
end
return out
""",
)

# ARGV: consumer, then (queue index, field) in the order in which they were fetched.
GIVE_BACK = Script(
    _COMMON,
    """
local name = ARGV[1]
for i = 1, #KEYS do
  local held = KEYS[i] .. '.held:' .. name
  local all = redis.call('HGETALL', held)
  local order = {}
  for f = 1, #all, 2 do
    local receipt, step = rest(all[f])
    if receipt then order[#order + 1] = {tonumber(receipt), step, all[f + 1]} end
  end
  table.sort(order, function(a, b) return a[1] > b[1] end)
  for _, item in ipairs(order) do redis.call('RPUSH', list(KEYS[i], item[2]), item[3]) end
  redis.call('DEL', held)
  redis.call('ZREM', KEYS[i] .. '.leases', name)
  if #order > 0 then ring(KEYS[i]) end
end
return 1
""",
)

# ARGV: lease, then the names of the consumers that are alive.
TEND = Script(
    _COMMON,
    """
local moment, lease = now(), tonumber(ARGV[1])
local ended, seen = {}, {}
for i = 1, #KEYS do
  local q = KEYS[i]
  redis.call('SET', q .. '.served', '1', 'EX', 3600)
  for a = 2, #ARGV do redis.call('ZADD', q .. '.leases', 'XX', moment + lease, ARGV[a]) end
  -- After an outage every lease would have ended: nobody is reaped for one lease more.
  local last = redis.call('GET', q .. '.tended')
  if not last or moment - tonumber(last) > math.min(3, lease / 2) then
    redis.call('SET', q .. '.grace', '1', 'PX', math.ceil(lease * 1000))
  end
  redis.call('SET', q .. '.tended', string.format('%.3f', moment), 'EX', 86400)
  if redis.call('EXISTS', q .. '.grace') == 0 then
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', q .. '.leases', '-inf', moment, 'LIMIT', 0, 100)) do
      if redis.call('EXISTS', q .. '.held:' .. name) == 1 then
        if not seen[name] then ended[#ended + 1] = name; seen[name] = true end
      else
        redis.call('ZREM', q .. '.leases', name)
      end
    end
  end
end
return ended
""",
)

# KEYS: kombu's unacked, unacked_index and unacked_mutex, then the queues' lists.
# ARGV: prefix of all keys, visibility timeout, offset, most.  The answer: where to go on (-1: all
# have been looked at), and the ids of what is back in its queue.
RESTORE = Script(
    _COMMON,
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

# ARGV: (key, document, ttl)…
STORE = Script(
    _COMMON,
    """
for r = 1, #ARGV, 3 do store(ARGV[r], ARGV[r + 1], ARGV[r + 2]) end
return 1
""",
)
