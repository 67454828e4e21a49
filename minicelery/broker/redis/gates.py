"""The rules of limits as Lua, for the scripts that need them; in Python: `minicelery.broker.gates`.

Keys; `base` is the prefix of all keys and ``minicelery.``, a gate's name begins with ``rate.`` or ``room.``:

======================  ======  ===============================================================
`base<gate>`            hash    interval, next, tail, late; size, took, seen: see `Gate`
`base.line.<gate>`      zset    who waits: score is the turn, member is ticket, separator, queue
`base.inside.<gate>`    zset    who has a place in a room -> until when
`base.lines`            zset    gates with a line -> when somebody must look at them
`q.waiting`             hash    ticket -> step + envelope of a message of the queue that waits
`base<unique…>`         string  the id of the call that holds a unique key, separator, queue
`q.unique`              zset    unique keys of calls that were sent to the queue -> until when
======================  ======  ===============================================================

A ticket is the turn, 17 characters, and the message's id.
"""

from __future__ import annotations

from minicelery.broker.gates import CALLED, NEAR, OVERDUE, SILENCE, TOLERATED
from minicelery.limits import HELD, ONCE, ROOM

KEPT = 3600
"""Seconds that a gate is remembered which nobody asks for, and whose times are past."""

GATES = f"""
local NEAR, CALLED, OVERDUE, SILENCE, TOLERATED = {NEAR}, {CALLED}, {OVERDUE}, {SILENCE}, {TOLERATED}
-- The gates under `base`, as of `moment`; made only where a script comes to need them.
local function gates(base, moment)
  local G = {{}}
  local FIRST = {{['0'] = 'a', ['3'] = 'd', ['6'] = 'g', ['9'] = 'j'}}  -- steps of what is due at the front
  local function stamp(at) return string.format('%.6f', at) end
  local function numbers(gate, ...)
    local found = redis.call('HMGET', base .. gate, ...)
    for i = 1, #found do found[i] = tonumber(found[i] or 0) end
    return unpack(found)
  end
  local function lengthen(key, seconds)
    if redis.call('TTL', key) < seconds then redis.call('EXPIRE', key, math.ceil(seconds)) end
  end
  local function save(gate, ...)
    redis.call('HSET', base .. gate, ...)
    local next, tail, late = numbers(gate, 'next', 'tail', 'late')
    lengthen(base .. gate, math.max(moment, next, tail, late) - moment + {KEPT})
  end
  -- The first of the line goes to its queue's front, or into the delay; its id, or nil.
  local function call(gate, due)
    while true do
      local member = redis.call('ZPOPMIN', base .. 'line.' .. gate)[1]
      if not member then return nil end
      local ticket, q = string.match(member, '^(.*)' .. SEP .. '(.-)$')
      local text = redis.call('HGET', q .. '.waiting', ticket)
      if text then  -- else it was purged
        redis.call('HDEL', q .. '.waiting', ticket)
        local step, envelope = string.sub(text, 1, 1), string.sub(text, 2)
        if due then
          local first = FIRST[step] .. envelope
          redis.call('ZADD', q .. '.due', stamp(due), first)
          if redis.call('ZRANGE', q .. '.due', 0, 0)[1] == first then ring(q) end
        else
          redis.call('RPUSH', list(q, step), envelope)
          ring(q)
        end
        return string.sub(ticket, 18)
      end
    end
  end
  local function take(gate, holder, until_)
    local key = base .. 'inside.' .. gate
    redis.call('ZADD', key, stamp(until_), holder)
    lengthen(key, until_ - moment + {KEPT})
  end
  -- After an outage every place would be up: nobody could renew it.
  local function trust(gate, seen)
    if seen > 0 and moment - seen > SILENCE then
      local key = base .. 'inside.' .. gate
      for _, holder in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', stamp(moment + CALLED))) do
        redis.call('ZADD', key, stamp(moment + CALLED), holder)
      end
    end
    save(gate, 'seen', stamp(moment))
  end
  -- When somebody must look at the line, should those who were called be gone.
  local function note(gate)
    if redis.call('EXISTS', base .. 'line.' .. gate) == 0 then
      redis.call('ZREM', base .. 'lines', gate)
      return
    end
    local at = moment + 1
    if string.sub(gate, 1, {len(ROOM)}) == '{ROOM}' then
      local first = redis.call('ZRANGE', base .. 'inside.' .. gate, 0, 0, 'WITHSCORES')[2]
      if first then at = math.max(at, tonumber(first)) end
    else
      local interval, next, tail = numbers(gate, 'interval', 'next', 'tail')
      at = math.max(at, next + OVERDUE, tail - interval + OVERDUE)
    end
    redis.call('ZADD', base .. 'lines', stamp(at), gate)
    lengthen(base .. gate, at - moment + {KEPT})
  end
  -- Those at the head of a room's line take its free places.
  local function fill(gate)
    local size, seen = numbers(gate, 'size', 'seen')
    trust(gate, seen)
    local inside = base .. 'inside.' .. gate
    redis.call('ZREMRANGEBYSCORE', inside, '-inf', stamp(moment))
    if redis.call('EXISTS', base .. 'line.' .. gate) == 0 then return end
    -- Of a room that nobody remembers, one is called: it says how large it is.
    local left = size > 0 and size - redis.call('ZCARD', inside) or 1
    while left > 0 do
      local holder = call(gate)
      if not holder then break end
      if size > 0 then take(gate, holder, moment + CALLED) end
      left = left - 1
    end
    note(gate)
  end
  -- Those of a rate's line are called whose turn is near, and at least the next one.
  local function move(gate)
    if redis.call('EXISTS', base .. 'line.' .. gate) == 0 then return end
    local interval, next, tail = numbers(gate, 'interval', 'next', 'tail')
    for _ = 1, 200 do
      local turn = math.max(next, tail)
      if turn > moment + NEAR and tail > next then break end
      if not call(gate, turn > moment and turn) or interval == 0 then break end
      tail = math.max(turn, moment) + interval
    end
    save(gate, 'tail', stamp(tail))
    note(gate)
  end
  -- One that had been called does not begin: its turn goes to the next one.
  local function skip(gate)
    local interval, next, tail = numbers(gate, 'interval', 'next', 'tail')
    save(gate, 'tail', stamp(math.max(next, tail - interval)))
    move(gate)
  end
  local function leave(gate, holder, took)
    redis.call('ZREM', base .. 'inside.' .. gate, holder)
    if took > 0 then
      local old = tonumber(redis.call('HGET', base .. gate, 'took') or 1)
      save(gate, 'took', stamp(old + (took - old) * 0.2))
    end
    fill(gate)
  end
  function G.let_in(gate)
    if string.sub(gate, 1, {len(ROOM)}) == '{ROOM}' then fill(gate) else move(gate) end
    note(gate)
  end
  -- When `note` has said so: those who were called are gone.
  function G.look(gate)
    G.purged(gate)
    G.let_in(gate)
  end
  function G.purged(gate)
    if string.sub(gate, 1, {len(ROOM)}) ~= '{ROOM}' then
      save(gate, 'tail', redis.call('HGET', base .. gate, 'next') or '0')
    end
  end
  function G.park(gate, turn, id, q, text)
    local ticket = turn .. id
    redis.call('HSET', q .. '.waiting', ticket, text)
    redis.call('ZADD', base .. 'line.' .. gate, turn, ticket .. SEP .. q)
    G.let_in(gate)
  end
  local function held_by(name)
    return string.match(redis.call('GET', base .. name) or '', '^(.*)' .. SEP .. '(.-)$')
  end
  G.held_by = held_by
  function G.free(name, holder, took)
    local kind = string.sub(name, 1, 5)
    if kind == 'room.' then
      leave(name, holder, took)
    elseif kind == 'rate.' then
      skip(name)
    else
      local found, q = held_by(name)
      if found == holder then
        redis.call('DEL', base .. name)
        if q ~= '' then redis.call('ZREM', q .. '.unique', name) end
      end
    end
  end
  function G.renew(gate, holder, seconds)
    trust(gate, (numbers(gate, 'seen')))
    if redis.call('ZSCORE', base .. 'inside.' .. gate, holder) then take(gate, holder, moment + seconds) end
  end
  -- When a message is to come back that can't begin yet: each has a time of its own.
  local function slot(gate, turn, next, tail, late, interval)
    local at
    if turn and turn > moment then
      at = math.max(next, turn)  -- before its time
    elseif turn and moment - turn < math.max(1, interval) then
      at = math.max(next, late)
      late = at + interval
    else
      at = math.max(next, tail, late)
      tail = at + interval
    end
    save(gate, 'tail', stamp(tail), 'late', stamp(late))
    return {{gate, stamp(at), stamp(math.max(0, at - moment))}}
  end
  -- When a message is to come back that found no place: about as many do as places come free.
  local function estimate(gate, turn, size)
    local took, tail, late = numbers(gate, 'took', 'tail', 'late')
    local each = math.min(math.max((took > 0 and took or 1) / size, 0.02), 60)
    local which, at = 'tail', tail
    if turn then which, at = 'late', late end
    at = math.min(math.max(at, moment) + each, moment + 600)
    save(gate, which, stamp(at))
    return {{gate, stamp(turn or moment), stamp(math.max(0.2, at - moment))}}
  end
  function G.admit(holder, turn, parks, room, size, lease, rate, interval)
    local mine = false
    if size > 0 then
      save(room, 'size', size)
      fill(room)
      local inside = base .. 'inside.' .. room
      mine = redis.call('ZSCORE', inside, holder)
      if not mine and redis.call('ZCARD', inside) >= size then
        if not parks then return estimate(room, turn, size) end
        if interval > 0 and turn then skip(rate) end
        return {{room, stamp(turn or moment), '0'}}
      end
    end
    if interval > 0 then
      local next, tail, late = numbers(rate, 'next', 'tail', 'late')
      save(rate, 'interval', interval)
      local free = turn
        or (math.max(tail, late) <= moment and redis.call('EXISTS', base .. 'line.' .. rate) == 0)
      if moment < next or not free then
        local refused = parks and {{rate, stamp(turn or moment), '0'}}
          or slot(rate, turn, next, tail, late, interval)
        if mine then leave(room, holder, 0) end
        return refused
      end
      local start = moment
      if turn and moment - next <= math.min(interval, TOLERATED) then start = next end
      save(rate, 'next', stamp(start + interval))
      move(rate)
    end
    if size > 0 then take(room, holder, moment + lease) end
    return {{}}
  end
  -- Who holds a unique key: `holder`, unless another did before.
  function G.claim(name, holder, milliseconds, q)
    local found = held_by(name)
    if found and found ~= holder then return found end
    if found and string.sub(name, 1, {len(ONCE)}) == '{ONCE}' then return '{HELD}' end
    redis.call('SET', base .. name, holder .. SEP .. (q or ''), 'PX', milliseconds)
    if q then
      local of = q .. '.unique'
      redis.call('ZREMRANGEBYSCORE', of, '-inf', stamp(moment))
      redis.call('ZADD', of, stamp(moment + milliseconds / 1000), name)
      lengthen(of, milliseconds / 1000 + 60)
    end
    return holder
  end
  return G
end
"""
"""To be put behind the common part of `scripts`."""
