"""Chords that Celery's producers send: counted as Celery 5.7 counts them, in the keys it uses.

Keys of a group, all `celery-taskset-meta-<group id>` and one of these:

===============  ==========  ==================================================================
`.s`, `.t`       string      how many parts there are, and how many have joined since
`.j`             zset, list  `[1, id, state, result]` of each that has ended, by its place
`.d`             set         `id:place` of those that are counted
`.c`             string      who sends the body; ``done`` once that is settled
(nothing)        string      how the results nest, where the header does
`.taken:<part>`  zset, list  ours: what was `.j`, for the part that has ended last
===============  ==========  ==================================================================

Whoever ends the last part settles the chord there and then.  The body leaves with that part's
outcome; should the worker die before, the part comes back and finds under `.taken` what it is
to send.  That its record is there tells a copy of a part from one that has come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minicelery.broker.redis.link import Script

KEEP = 3600
"""Seconds for which the part that has ended last may come back."""

# KEYS: .j .t .s .d .c, the group's own, .taken, the part's record; then what to drop.
# ARGV: `id:place`, place, entry, whether in order, seconds to live of the chord and of the group,
# 1, 0 or -1 for `resume`, KEEP.  Answers with the group and all entries, or nothing.
_COUNT = Script(
    """
local j, t, s, d, c, group, taken, record = unpack(KEYS, 1, 8)
local ordered, ttl, group_ttl = ARGV[4] == '1', tonumber(ARGV[5]), tonumber(ARGV[6])
for i = 9, #KEYS do redis.call('DEL', KEYS[i]) end
local function entries()
  local all = redis.call(ordered and 'ZRANGE' or 'LRANGE', taken, 0, -1)
  return {redis.call('GET', group), all}
end
if redis.call('GET', c) == 'done' then
  local resume = ARGV[7] == '1' or (ARGV[7] == '0' and redis.call('EXISTS', record) == 0)
  if resume and redis.call('EXISTS', taken) == 1 then return entries() end
  return false
end
if redis.call('SADD', d, ARGV[1]) == 1 then
  if ordered then
    redis.call('ZADD', j, ARGV[2], ARGV[3])
  else
    redis.call('RPUSH', j, ARGV[3])
  end
end
if ttl > 0 then
  for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ttl) end
  if group_ttl > 0 then redis.call('EXPIRE', group, group_ttl) end
end
local size = tonumber(redis.call('GET', s) or '')
local count = redis.call(ordered and 'ZCARD' or 'LLEN', j)
-- Not only when it is equal: Celery writes a smaller size where a part unfolds to a group.
if not size or count == 0 or count < size + tonumber(redis.call('GET', t) or 0) then return false end
if not redis.call('SET', c, 'done', 'NX', 'EX', ARGV[8]) then return false end
redis.call('RENAME', j, taken)
redis.call('EXPIRE', taken, ARGV[8])
redis.call('DEL', t, s, d)
return entries()
"""
)


def count(
    run: Any, base: str, record: str, group: str, id: str, index: int | None, entry: bytes, *,
    ordered: bool, ttl: float | None, group_ttl: float | None, resume: bool | None, drop: Sequence[str] = (),
) -> tuple[str, bytes | None, list[bytes]] | None:  # fmt: skip
    """Count a part that has ended; where its chord is now to be settled, how results nest and all entries.

    Before these comes the key under which they are kept.  `run` runs a script; `base` is what keys of
    groups begin with, `record` the key of the part's record; `ordered` is the setting
    result_chord_ordered; `drop` are keys of entries that nobody comes back for.  Seconds to live are
    None for ever.  A chord that this part has settled before is settled again if `resume`; where that
    is None, if the part has no record.
    """
    key, place = base + group, "+inf" if index is None else str(index)
    member = f"{id}:{place}"
    taken = f"{key}.taken:{member}"
    keys = [f"{key}.{suffix}" for suffix in "jtsdc"] + [key, taken, record, *drop]
    options = [
        int(ordered),
        int(ttl or 0),
        int(group_ttl or 0),
        0 if resume is None else 1 if resume else -1,
        KEEP,
    ]
    found = run(_COUNT, keys, [member, place, entry, *options])
    return None if found is None else (taken, found[0], found[1])
