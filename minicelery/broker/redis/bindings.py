"""Which queues Celery has bound to which exchanges: kombu's sets `_kombu.binding.<exchange>`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from minicelery.broker.redis.envelope import SEPARATOR

if TYPE_CHECKING:
    from minicelery.broker.redis.broker import RedisBroker
    from minicelery.broker.redis.link import Link

_BATCH = 1000


class Binding(NamedTuple):
    """One member of such a set."""

    queue: str
    exchange: str
    type: str  # kombu does not keep it: topic where a pattern is kept, else direct
    key: str


def read_bindings(broker: RedisBroker, link: Link, seconds: float) -> tuple[list[Binding], bool]:
    """The bindings, and whether they are all: nothing lists the sets, so every key is looked at.

    That takes a trip for each thousand keys, and ends after `seconds`.
    """
    end = time.monotonic() + seconds
    found: list[Binding] = []
    start = f"{broker.prefix}_kombu.binding."
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", start) + "*"
    cursor = b"0"
    while True:
        cursor, keys = link.call("SCAN", cursor, "MATCH", pattern, "COUNT", _BATCH, "TYPE", "set")
        for key in keys:
            found += _members(key.decode()[len(start) :], link.call("SMEMBERS", key))
        if cursor == b"0" or time.monotonic() > end:
            return sorted(set(found)), cursor == b"0"


def _members(exchange: str, members: list[bytes]) -> Iterator[Binding]:
    for member in members:
        key, pattern, queue = member.decode().split(SEPARATOR)
        yield Binding(queue, exchange, "topic" if pattern else "direct", key)
