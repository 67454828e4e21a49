"""Chords in Redis: a hash for each group, and a sorted set of the bodies that are owed.

===============================  ======  ======================================================
`minicelery.groups:<id>`         hash    ids (JSON list), size, passes, envelope, queue, step,
                                         due (``""``, unix seconds, or ``+`` and seconds), until
                                         (unix seconds, results are kept so long), owed (the zset);
                                         sent (when), tries and claimed once they are
`minicelery.groups:<id>:ended`   set     ids of the parts that have ended
`minicelery.owed:<place>`        zset    ids of groups: score unix seconds, when to send the body
===============================  ======  ======================================================

They are in the database of the results, and begin with its `global_keyprefix`.  A record of a
part says so where others have their time to live: ``*ttl well base group`` and the part's id,
`base` and `group` being the lengths of ``minicelery.groups`` with its prefix, and of the group's
id, which follow.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from minicelery.broker.chords import LOOK_AGAIN, RESEND, as_copy
from minicelery.broker.redis.envelope import decode, encode, step_of
from minicelery.broker.redis.link import Script
from minicelery.message import Group, Message, Record
from minicelery.states import IGNORED, SUCCESS

if TYPE_CHECKING:
    from collections.abc import Sequence

# `bodies` are the keys of groups whose body is now to be sent.
COUNT = """
local bodies = {}
local function seconds(more)
  local t = redis.call('TIME')
  return string.format('%.6f', tonumber(t[1]) + tonumber(t[2]) / 1000000 + (more or 0))
end
local function ended(text)
  local ttl, well, base, length = string.match(text, '^%*(%d*) (%d) (%d+) (%d+) ')
  local from = #ttl + #well + #base + #length + 6
  local id = string.sub(text, from + base, from + base + length - 1)
  local group = string.sub(text, from, from + base - 1) .. ':' .. id
  local fields = redis.call('HMGET', group, 'size', 'until', 'owed', 'sent')
  local size, last, owed = fields[1], fields[2], fields[3]
  if not size or fields[4] then return ttl end
  if last == '' then ttl = '' end
  if ttl ~= '' then  -- the body has to find it
    ttl = string.format('%.0f', math.max(tonumber(ttl), (tonumber(last) - tonumber(seconds())) * 1000))
  end
  local parts = group .. ':ended'
  if redis.call('SADD', parts, string.sub(text, from + base + length)) == 0 then return ttl end
  local count = redis.call('SCARD', parts)
  if count == 1 then
    local left = redis.call('PTTL', group)
    if left > 0 then redis.call('PEXPIRE', parts, left) end
  end
  if (well == '0' or count >= tonumber(size)) and redis.call('HSETNX', group, 'sent', seconds()) == 1 then
    redis.call('ZREM', owed, id)
    redis.call('DEL', parts)
    if redis.call('PTTL', group) < 0 then redis.call('PEXPIRE', group, 172800000) end
    bodies[#bodies + 1] = {group, owed, id}
  end
  return ttl
end
local function due_of(text)
  if string.sub(text, 1, 1) ~= '+' then return text end
  return seconds(tonumber(string.sub(text, 2)))
end
"""

# KEYS: the groups' base.  ARGV: for each group its id, milliseconds to live or nothing, deadline or
# nothing, the zset, how many fields and values follow, and these.
_OPEN = Script(
    "",
    """
local at = 1
while at < #ARGV do
  local group, count = KEYS[1] .. ':' .. ARGV[at], tonumber(ARGV[at + 4])
  -- Of what nothing has ended yet it may be another run that means something else.
  if redis.call('HEXISTS', group, 'sent') == 0 and redis.call('EXISTS', group .. ':ended') == 0 then
    redis.call('DEL', group)
    redis.call('HSET', group, 'owed', ARGV[at + 3], unpack(ARGV, at + 5, at + 4 + count))
    if ARGV[at + 1] ~= '' then redis.call('PEXPIRE', group, ARGV[at + 1]) end
    if ARGV[at + 2] ~= '' then redis.call('ZADD', ARGV[at + 3], ARGV[at + 2], ARGV[at]) end
  end
  at = at + 5 + count
end
return 1
""",
)

# KEYS: the base.  ARGV: id, copy.
_CLAIM = Script(
    "",
    """
local group = KEYS[1] .. ':' .. ARGV[1]
local owed = redis.call('HGET', group, 'owed')
if not owed then return 1 end
redis.call('ZREM', owed, ARGV[1])
redis.call('HSETNX', group, 'claimed', ARGV[2])
return redis.call('HGET', group, 'claimed') == ARGV[2] and 1 or 0
""",
)

# KEYS: the base.  ARGV: now, seconds to the first look, ids…
_SAID = Script(
    "",
    """
for at = 3, #ARGV do
  local fields = redis.call('HMGET', KEYS[1] .. ':' .. ARGV[at], 'owed', 'tries')
  local pause = tonumber(ARGV[2]) * 2 ^ math.min(tonumber(fields[2] or 0), 10)
  if fields[1] then redis.call('ZADD', fields[1], 'XX', tonumber(ARGV[1]) + pause, ARGV[at]) end
end
return 1
""",
)

# KEYS: the base.  ARGV: id, the part's id as JSON.
_JOIN = Script(
    "",
    """
local group = KEYS[1] .. ':' .. ARGV[1]
local ids = redis.call('HGET', group, 'ids')
if not ids or redis.call('HEXISTS', group, 'sent') == 1 then return 0 end
if not string.find(ids, ARGV[2], 1, true) then
  local comma = ids == '[]' and '' or ', '
  redis.call('HSET', group, 'ids', string.sub(ids, 1, -2) .. comma .. ARGV[2] .. ']')
  redis.call('HINCRBY', group, 'size', 1)
end
return 1
""",
)

# KEYS: the base, the zset.  ARGV: now, seconds to the next try.
_OWED = Script(
    COUNT,
    """
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', 0, 100)) do
  local group = KEYS[1] .. ':' .. id
  local fields = redis.call('HMGET', group, 'envelope', 'queue', 'due')
  if not fields[1] then
    redis.call('ZREM', KEYS[2], id)
  else
    redis.call('HSETNX', group, 'sent', seconds())
    local tries = redis.call('HINCRBY', group, 'tries', 1)
    local pause = tonumber(ARGV[2]) * 2 ^ math.min(tries - 1, 10)
    redis.call('ZADD', KEYS[2], tonumber(ARGV[1]) + pause, id)
    found[#found + 1] = fields[1]
    found[#found + 1] = fields[2]
    found[#found + 1] = due_of(fields[3])
  end
end
return found
""",
)


# KEYS: the base.  ARGV: ids.
_DROP = Script(
    "",
    """
for _, id in ipairs(ARGV) do
  local group = KEYS[1] .. ':' .. id
  local owed = redis.call('HGET', group, 'owed')
  if owed then redis.call('ZREM', owed, id) end
  redis.call('DEL', group, group .. ':ended')
end
return 1
""",
)


def ended_text(record: Record, base: str, ttl: str) -> str:
    """What stands for the time to live of a part's record."""
    well = int(record.state in (SUCCESS, IGNORED))
    group = record.part_of
    lengths = f"{len(base.encode())} {len(group.encode())}"
    return f"*{ttl} {well} {lengths} {base}{group}{record.id}"


def bodies_of(answer: Sequence[Any]) -> list[Message]:
    """The bodies that a script says are to be sent: envelope, queue and due of each."""
    bodies = []
    for at in range(0, len(answer), 3):
        body = decode(answer[at], answer[at + 1].decode(), 0).message
        body.due = float(answer[at + 2]) if answer[at + 2] else None
        bodies.append(as_copy(body))
    return bodies


class Groups:
    """The groups of one result store."""

    def __init__(self, run: Any, call: Any, prefix: str) -> None:
        self._run = run  # a script, with keys and arguments
        self._call = call  # a command
        self._prefix = prefix
        self.base = f"{prefix}minicelery.groups"

    def open(self, groups: Sequence[Group]) -> None:
        """See `CountingBackend.open_groups`."""
        arguments: list[Any] = []
        for group in groups:
            body = group.body
            assert body is not None
            due = "" if body.due is None else f"{body.due:.6f}"
            fields = {
                "ids": json.dumps(group.members), "size": len(set(group.members)), "passes": int(group.passes),
                "envelope": encode(body), "queue": body.queue, "step": step_of(body.priority),
                "until": "" if group.until is None else f"{group.until:.3f}",
                "due": due if group.countdown is None else f"+{group.countdown:.6f}",
            }  # fmt: skip
            arguments += (
                group.id,
                "" if group.ttl is None else max(1, int(group.ttl * 1000)),
                "" if group.deadline is None else f"{group.deadline:.6f}",
                self.owed_key(group.place),
                2 * len(fields),
                *(text for pair in fields.items() for text in pair),
            )
        if arguments:
            self._run(_OPEN, [self.base], arguments)

    def load(self, id: str) -> Group | None:
        """See `CountingBackend.load_group`."""
        ids, passes, sent = self._call("HMGET", f"{self.base}:{id}", "ids", "passes", "sent")
        if ids is None:
            return None
        return Group(id, json.loads(ids), None, passes == b"1", sent=None if sent is None else float(sent))

    def claim(self, id: str, copy: str) -> bool:
        """See `CountingBackend.claim_group`."""
        return bool(self._run(_CLAIM, [self.base], [id, copy]))

    def said(self, ids: Sequence[str]) -> None:
        """See `CountingBackend.group_sent`."""
        self._run(_SAID, [self.base], [f"{time.time():.6f}", LOOK_AGAIN, *ids])

    def join(self, id: str, member: str) -> bool:
        """See `CountingBackend.add_member`."""
        return bool(self._run(_JOIN, [self.base], [id, json.dumps(member)]))

    def drop(self, ids: Sequence[str]) -> None:
        """See `CountingBackend.drop_groups`."""
        self._run(_DROP, [self.base], ids)

    def owed(self, now: float, place: str) -> list[Message]:
        """See `CountingBackend.owed_groups`."""
        keys = [self.base, self.owed_key(place)]
        return bodies_of(self._run(_OWED, keys, [f"{now:.6f}", RESEND]))

    def owed_key(self, place: str) -> str:
        """The sorted set of the bodies for the broker at `place`."""
        return f"{self._prefix}minicelery.owed:{place}"


def owe_at() -> str:
    """When a body is sent again that is not known to be sent."""
    return f"{time.time() + RESEND:.6f}"
