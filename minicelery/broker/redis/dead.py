"""Dead letters in Redis: looked at, put back on their queue, thrown away."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from minicelery.broker.dead import as_new, chosen
from minicelery.broker.redis.envelope import decode, encode, step_of
from minicelery.broker.redis.link import Script
from minicelery.broker.redis.scripts import COMMON
from minicelery.message import DeadLetter

if TYPE_CHECKING:
    from minicelery.broker.redis.broker import RedisBroker

_CHUNK, _CHUNK_BYTES = 100, 1 << 20

# KEYS: the queue, its dead letters.  ARGV: entry, step, envelope (empty: throw it away), …; oldest first.
# What another one has taken meanwhile is left alone.
SETTLE = Script(
    COMMON,
    """
local settled = 0
for at = 1, #ARGV, 3 do
  if redis.call('LREM', KEYS[2], -1, ARGV[at]) == 1 then
    settled = settled + 1
    if ARGV[at + 2] ~= '' then redis.call('LPUSH', list(KEYS[1], ARGV[at + 1]), ARGV[at + 2]) end
  end
end
if redis.call('LLEN', KEYS[1]) > 0 then ring(KEYS[1]) end
return settled
""",
)


def settle(broker: RedisBroker, queue: str, ids: Collection[str] | None, *, replay: bool) -> int:
    """Put the letters of these ids back on the queue, or throw them away; how many."""
    key = f"{broker.prefix}{queue}"
    entries: list[bytes] = broker.ask(lambda link: link.call("LRANGE", f"{key}.dead", 0, -1))
    count = 0
    for arguments in _chunks(entries, queue, ids, replay):
        count += broker.ask(lambda link, chunk=arguments: link.run(SETTLE, [key, f"{key}.dead"], chunk))
    return count


def letter_of(entry: bytes) -> DeadLetter:
    """An element of the list as a letter."""
    head, _, raw = entry.partition(b"\n")
    try:
        return DeadLetter(raw=raw, **json.loads(head))
    except (ValueError, TypeError, RecursionError):  # written by somebody else
        return DeadLetter("this entry can't be read", 0.0, entry, None, None)


def _chunks(
    entries: list[bytes], queue: str, ids: Collection[str] | None, replay: bool
) -> Iterator[list[Any]]:
    arguments: list[Any] = []
    size = 0
    for entry in reversed(entries):
        letter = letter_of(entry)
        if not chosen(letter.id, ids):
            continue
        if len(arguments) >= 3 * _CHUNK or (arguments and size + len(entry) > _CHUNK_BYTES):
            yield arguments
            arguments, size = [], 0
        step, envelope = "0", ""
        if replay:
            delivery = decode(letter.raw, queue, 0)
            # What can't be read goes back as it came: perhaps a worker can, by now.
            step = step_of(delivery.message.priority)
            envelope = (
                letter.raw.decode(errors="replace")
                if delivery.broken is not None
                else encode(as_new(delivery.message, queue))
            )
        arguments += (entry, step, envelope)
        size += len(entry)
    if arguments:
        yield arguments
