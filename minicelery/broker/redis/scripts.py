"""The Lua scripts: each is one step for the server, and one trip for us.

Keys of a queue `q` (all begin with the queue's own list key):

===================  ======  ==================================================================
`q`, `q\\x06\\x163`…    list    Celery's lists: priorities 0–2, 3–5, 6–8, 9; LPUSH in, RPOP out
`q.due`              zset    delayed messages: score unix seconds, member step + envelope; with
                             ``adgj`` for ``0369`` those that go to the front when they are due
`q.held:<consumer>`  hash    receipt[:step] -> envelope; `s<receipt>` -> why a run of it ended
`q.leases`           zset    consumer -> server time at which what it holds is up for others
`q.bell`             list    at most one worthless token: idle children wait for it
`q.served`           string  a minicelery worker serves the queue, so delays may go to `q.due`
`q.dead`             list    rejected messages: a line of JSON, then the envelope as it came
`q.tended`, `q.grace`  string  when leases were last looked at; not before that time again
===================  ======  ==================================================================

Those of limits are in `gates`, of chords in `chords`, those of Celery's workers in `restore`.

The first write of SWAP removes from the held hash: a script that began with SET would be
refused when memory is full, nothing would be acknowledged, and memory never fall.
"""

from __future__ import annotations

from minicelery.broker.redis.chords import COUNT
from minicelery.broker.redis.gates import GATES
from minicelery.broker.redis.link import Script

COMMON = (
    COUNT
    + """
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
-- A stored SUCCESS, which alone may be compressed, is never overwritten; most records are the first of
-- their key.
-- How long it is kept is milliseconds, or nothing for ever; `=` stands before them where the record
-- is among the messages of an outcome, `*` where it is of a part: see `chords`.
local function store(key, document, kept)
  local mark = string.byte(kept)
  if mark == 61 then
    kept = string.sub(kept, 2)
    mark = string.byte(kept)
  end
  if mark == 42 then kept = ended(kept) end
  local set
  if kept == '' then
    set = redis.call('SET', key, document, 'NX')
  else
    set = redis.call('SET', key, document, 'NX', 'PX', kept)
  end
  if not set then
    local old = redis.call('GET', key)
    if old and (string.find(old, '"status": "SUCCESS"', 1, true) or string.byte(old) == 0
        or string.find(old, '\\166status\\167SUCCESS', 1, true)) then return end
    if kept == '' then
      redis.call('SET', key, document)
    else
      redis.call('SET', key, document, 'PX', kept)
    end
  end
  redis.call('PUBLISH', key, document)
end
local function rest(field)
  local receipt, step = string.match(field, '^(%d+):?(%d*)$')
  return receipt, step == '' and '0' or step
end
"""
)

_PUSH = """
-- Put a new message on its queue, or into the delays if its time is yet to come.  With `!` before
-- it, `due` needs nobody who serves the queue; with `#` it is a line to wait in, and with `-` nothing
-- is put anywhere: `step` is the name of a limit that the holder `envelope` releases.
local function push(q, step, due, envelope, served)
  local mark = string.sub(due, 1, 1)
  if mark == '!' then
    due, served = string.sub(due, 2), true
  elseif mark == '-' then
    return gates(string.sub(due, 2), now()).free(step, envelope, 0)
  elseif mark == '#' then
    local turn, gate, id, names = string.match(due, '^#(%S+) (%d+) (%d+) (.*)$')
    gate, id = tonumber(gate), tonumber(id)
    return gates(string.sub(names, gate + id + 1), now()).park(
      string.sub(names, 1, gate), turn, string.sub(names, gate + 1, gate + id), q, step .. envelope)
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
"""

SWAP = Script(
    COMMON + GATES + _PUSH,
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
local active = #KEYS - 1  -- the last key is that of the revoked ids; of the queues these are fetched from
if not want then
  local wanted, first = string.match(ARGV[3], '^(%d+)/(%d+)$')
  want, active = tonumber(wanted), tonumber(first)
end
local turn, db, own, prefix, n = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
local at = 11
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
    if key ~= '' then records[#records + 1] = at + 4 end
    for m = 1, count do
      local p = at + 4 + m * 4
      if string.byte(ARGV[p + 2]) == 61 then records[#records + 1] = p else pushes[#pushes + 1] = p end
    end
  end
  at = at + 8 + count * 4
end
local leaving = {}  -- queue, step, due and envelope of bodies
if #records > 0 then
  if db ~= '' then redis.call('SELECT', db) end
  for _, r in ipairs(records) do store(ARGV[r], ARGV[r + 1], ARGV[r + 2]) end
  for b, body in ipairs(bodies) do
    leaving[b] = redis.call('HMGET', body[1], 'queue', 'step', 'due', 'envelope')
    redis.call('HDEL', body[1], 'queue', 'step', 'due', 'envelope')  -- nobody needs them any more
  end
  if db ~= '' then redis.call('SELECT', own) end
end
local served = {}  -- what this consumer serves needs no mark
for i = 1, #KEYS - 1 do served[KEYS[i]] = true end
for _, body in ipairs(leaving) do
  push(prefix .. body[1], body[2], due_of(body[3]), body[4], true)  -- none but ours run it
end
for _, p in ipairs(pushes) do push(ARGV[p], ARGV[p + 1], ARGV[p + 2], ARGV[p + 3], served[ARGV[p]]) end
if want == 0 then return {} end

local moment = now()
local queues = active
local found, bytes, full = {}, 0, false
for i = 1, queues do
  local due = KEYS[i] .. '.due'
  local ready = redis.call('ZRANGEBYSCORE', due, '-inf', string.format('%.6f', moment), 'LIMIT', 0, 128)
  if #ready > 0 then
    redis.call('ZREM', due, unpack(ready))
    local first = {}
    for _, member in ipairs(ready) do
      local step = string.byte(member)
      if step > 57 then
        first[#first + 1] = member
      else
        redis.call('LPUSH', list(KEYS[i], string.char(step)), string.sub(member, 2))
      end
    end
    for f = #first, 1, -1 do
      redis.call('RPUSH', list(KEYS[i], string.char(string.byte(first[f]) - 49)), string.sub(first[f], 2))
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
# of one list, or queue index, step, due and envelope of each message.  Where due is `~`, milliseconds
# and base, the next message has the unique key `step` and the id `envelope`.  The answer has the ids
# of those that are not sent, and who holds their keys.
PUBLISH = Script(
    COMMON + GATES + _PUSH,
    """
local producer = KEYS[#KEYS]
local last = redis.call('GET', producer)
-- Sent again because the answer was lost, or late after being sent again.
if last and (tonumber(last) or tonumber(string.match(last, '^%d+'))) >= tonumber(ARGV[1]) then
  local answer = string.match(last, '^' .. ARGV[1] .. ' (.*)$')
  return answer and cjson.decode(answer) or 0
end
local there, left = {}, nil
if ARGV[2] == '0' then
  redis.call('LPUSH', list(KEYS[1], ARGV[3]), unpack(ARGV, 4))
  ring(KEYS[1])
else
  local many, rung = {}, {}
  for at = 2, #ARGV, 4 do
    local q, due = KEYS[tonumber(ARGV[at])], ARGV[at + 2]
    if left == at then
      left = nil
    elseif string.sub(due, 1, 1) == '~' then
      local length, base = string.match(due, '^~(%d+) (.*)$')
      local holder = gates(base, now()).claim(ARGV[at + 1], ARGV[at + 3], tonumber(length), q)
      if holder ~= ARGV[at + 3] then
        there[#there + 1] = ARGV[at + 3]
        there[#there + 1] = holder
        left = at + 4
      end
    elseif due ~= '' then
      push(q, ARGV[at + 1], due, ARGV[at + 3])
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
if #there > 0 then
  redis.call('SET', producer, ARGV[1] .. ' ' .. cjson.encode(there), 'EX', 60)
  return there
end
redis.call('SET', producer, ARGV[1], 'EX', 60)
return 1
""",
)

# ARGV: consumer, lease, db, own db, number of marks, (queue index, receipt)…, (key, document, ttl)…
EXTEND = Script(
    COMMON,
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
    COMMON,
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
    COMMON,
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

# ARGV: lease, base of the gates, then the names of the consumers that are alive.
TEND = Script(
    COMMON + GATES,
    """
local moment, lease = now(), tonumber(ARGV[1])
if redis.call('EXISTS', ARGV[2] .. 'lines') == 1 then
  local G = gates(ARGV[2], moment)
  local at = string.format('%.6f', moment)
  for _, gate in ipairs(redis.call('ZRANGEBYSCORE', ARGV[2] .. 'lines', '-inf', at, 'LIMIT', 0, 200)) do
    G.look(gate)
  end
end
local ended, seen = {}, {}
for i = 1, #KEYS do
  local q = KEYS[i]
  redis.call('SET', q .. '.served', '1', 'EX', 3600)
  for a = 3, #ARGV do redis.call('ZADD', q .. '.leases', 'XX', moment + lease, ARGV[a]) end
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

# ARGV: when bodies are owed that nobody sends, then (key, document, ttl)…
# The answer has envelope, queue and due of each body that the caller is to send.
STORE = Script(
    COMMON,
    """
for r = 2, #ARGV, 3 do store(ARGV[r], ARGV[r + 1], ARGV[r + 2]) end
local found = {}
for _, body in ipairs(bodies) do
  redis.call('ZADD', body[2], ARGV[1], body[3])
  local fields = redis.call('HMGET', body[1], 'envelope', 'queue', 'due')
  found[#found + 1] = fields[1]
  found[#found + 1] = fields[2]
  found[#found + 1] = due_of(fields[3])
end
return found
""",
)
