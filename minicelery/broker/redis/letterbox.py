"""Connections on which letters come: one for what is published, one for replies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from minicelery.broker.post import Box
from minicelery.broker.redis.letters import Places
from minicelery.broker.redis.link import Link

PATIENCE = 10.0
"""Seconds of silence after which the server is asked whether it is there."""
LONGEST_ASKING = 86_400.0
"""Seconds after which who has asked is not there any more."""
_FORGOTTEN_AT_ONCE = 100
_BINDING_TTL = 3_600_000


class Arrival(NamedTuple):
    """A letter's envelope, and what it has come by."""

    raw: bytes
    exchange: str
    routing_key: str | None  # None: the envelope tells it
    boxes: Sequence[Box]


class _Channel(NamedTuple):
    exchange: str
    cut: int | None  # where the routing key begins in a channel's name; None: nowhere
    boxes: list[Box]


class Subscription:
    """A connection that subscribes to what fanout and topic boxes want."""

    def __init__(self, link: Link, places: Places, boxes: Sequence[Box]) -> None:
        self.link = link
        self._channels: dict[bytes, _Channel] = {}
        self._asked_at: float | None = None
        commands: dict[tuple[str, str], None] = {}
        for box in boxes:
            how, name = "PSUBSCRIBE", places.pattern(box)
            if name is None:
                key = "" if box.kind == "fanout" else box.routing_key
                how, name = "SUBSCRIBE", places.channel(box.exchange, key)
            start = len(places.channel(box.exchange, "-").encode()) - 1
            channel = _Channel(box.exchange, start if places.patterns else None, [])
            self._channels.setdefault(name.encode(), channel).boxes.append(box)
            commands[how, name] = None
        link.send_all(list(commands))
        for _ in commands:
            link.read()
        self._heard_at = time.monotonic()

    def hear(self, most: int) -> Iterator[Arrival]:
        """What has come, of at most so many messages."""
        for _ in range(most):
            if not self.link.readable(0):
                return
            self._heard_at, self._asked_at = time.monotonic(), None
            if (arrival := self._arrival(*self.link.read())) is not None:
                yield arrival

    def _arrival(self, kind: bytes, source: bytes, *rest: Any) -> Arrival | None:
        name = rest[0] if kind == b"pmessage" else source
        if kind not in (b"message", b"pmessage") or (channel := self._channels.get(source)) is None:
            return None
        key = None if channel.cut is None else name[channel.cut :].decode(errors="replace")
        return Arrival(rest[-1], channel.exchange, key, channel.boxes)

    def patience(self, now: float, timeout: float) -> float:
        """Seconds until the server must have said something; it is asked to after some silence."""
        if self._asked_at is None and now - self._heard_at >= PATIENCE:
            self.link.send("PING")
            self._asked_at = now
        return (self._heard_at + PATIENCE if self._asked_at is None else self._asked_at + timeout) - now


class Replies:
    """A connection that pops from the lists of direct boxes."""

    def __init__(self, link: Link, places: Places, boxes: Sequence[Box]) -> None:
        self.link = link
        self._boxes = {places.queue(box.name).encode(): box for box in boxes}
        for box in boxes:
            self._bind(places, box)
        self._pop()

    def _bind(self, places: Places, box: Box) -> None:
        (bound, binding), asked, now = places.binding(box), places.asked(box), time.time()
        old = "-inf", f"({now - LONGEST_ASKING}", "LIMIT", 0, _FORGOTTEN_AT_ONCE
        # Celery drops a table of bindings whose deadline has passed.
        deadline = places.deadlines, "GT", int(now * 1000) + _BINDING_TTL, box.exchange
        gone = self._ask(
            ("ZADD", *deadline), ("SADD", bound, binding), ("ZADD", asked, now, binding),
            ("ZRANGEBYSCORE", asked, *old),
        )  # fmt: skip
        if gone:
            self._ask(("SREM", bound, *gone), ("ZREM", asked, *gone))

    def _ask(self, *commands: tuple[Any, ...]) -> Any:
        """The last answer."""
        self.link.send_all(commands)
        return [self.link.read() for _ in commands][-1]

    def _pop(self) -> None:
        # It ends now and then: a silent server is noticed.
        self.link.send("BRPOP", *self._boxes, PATIENCE)
        self._popping_since = time.monotonic()

    def hear(self, most: int) -> Iterator[Arrival]:
        """What has come, at most so many."""
        if most <= 0 or not self.link.readable(0):
            return
        answer = self.link.read()
        if answer is not None:
            box = self._boxes[answer[0]]
            for raw in (answer[1], *(self.link.call("RPOP", answer[0], most) or ())):
                yield Arrival(raw, box.exchange, box.routing_key, (box,))
        self._pop()

    def patience(self, now: float, timeout: float) -> float:
        """Seconds until the server must have said something."""
        return self._popping_since + PATIENCE + timeout - now
