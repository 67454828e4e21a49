"""Letters: control requests, their replies, and events, for whoever listens at that moment.

Nobody keeps a letter for who does not listen, and nothing waits for one to arrive.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from minicelery.exceptions import DecodeError
from minicelery.serialization import decode_json

log = logging.getLogger(__name__)

LONGEST = 4 << 20
"""Bytes of a body; a letter with a longer one is left out."""
WAITING = 1000
"""Letters that wait in a consumer for its next trip."""
WAITING_BYTES = 4 << 20
"""Bytes of their bodies: the trip is to be no slower for them."""
AT_ONCE = 250
"""Letters after which a `take` reads no further."""
REPLY_TTL = 300.0
"""Seconds for which a reply stays where its asker has gone."""
_QUIET = 60.0
"""Seconds between two log lines about letters that can't be read."""


@dataclass(slots=True)
class Letter:
    """A control request, a reply, or an event."""

    exchange: str  # "celery.pidbox", "reply.celery.pidbox", "celeryev"; "" sends to a queue by its name
    routing_key: str  # "", the asker's oid, "task.multi", "worker.heartbeat", …
    body: bytes  # JSON, UTF-8
    headers: dict[str, Any] = field(default_factory=dict)  # clock, expires, ticket, hostname
    persistent: bool = False  # delivery mode 2, as Celery has it for requests
    content: Any = field(
        default=None, compare=False, repr=False
    )  # what `body` says, of a letter that was taken


class Box(NamedTuple):
    """What a listener wants: a queue of its own, bound to an exchange."""

    exchange: str
    kind: str  # fanout, topic, direct
    name: str  # as Celery names it: "<node>.celery.pidbox", "<oid>.reply.celery.pidbox", "celeryev.<uuid>"
    routing_key: str = ""  # "", the oid, "#", "task.#", "worker.#"
    ttl: float | None = None  # seconds a letter stays in it, on RabbitMQ; None: as Celery has it
    expires: float | None = None  # seconds it outlives its listener, there; None: as Celery has it

    def wants(self, exchange: str, key: str) -> bool:
        """Whether a letter to that exchange, under that key, is for this box."""
        if exchange != self.exchange:
            return False
        if self.kind == "topic":
            return topic_matches(self.routing_key, key)
        return self.kind == "fanout" or key == self.routing_key

    def found(self, letter: Letter) -> Letter | None:
        """The letter as this box has it: one to its queue's name is like one that it is bound to."""
        if not letter.exchange and letter.routing_key == self.name:
            return replace(letter, exchange=self.exchange, routing_key=self.routing_key)
        return letter if self.wants(letter.exchange, letter.routing_key) else None


class Listening(Protocol):
    """One thread's hearing of some boxes, except `wake` and `end`; a context manager."""

    def take(self, wait: float) -> list[Letter]:
        """The letters that have come; waits up to `wait` seconds for the first one.

        Empty after that, or once after `wake`.  What can't be read is left out.  Raises
        BrokerUnavailable where the connection is lost, and with it whatever came meanwhile:
        close this one and listen anew.
        """

    def wake(self) -> None:
        """End the `take` that waits, or the next one at once.  From any thread."""

    def end(self) -> None:
        """Have `take` raise BrokerUnavailable: the broker is closed.  From any thread."""

    def close(self) -> None:
        """Listen no more; never raises.  What a forked child closes its parent has still."""

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Post(Protocol):
    """Where a broker sends letters and listens for them.  Thread-safe; after a fork it connects anew."""

    def send(self, letters: Sequence[Letter]) -> int | None:
        """Send the letters, in one trip, in their order; how many listen to them, where the broker can tell.

        Nobody may hear them, and where a connection is lost they may be, or arrive twice.
        Raises OperationalError, within five seconds.
        """

    def listen(self, boxes: Sequence[Box]) -> Listening:
        """Listen: once it returns, nothing that is sent later is missed.  Raises OperationalError."""

    def close(self) -> None:
        """End whoever listens: their `take` raises BrokerUnavailable."""


def kind_of(exchange: str) -> str:
    """The type of an exchange that Celery's control and events use."""
    if not exchange or exchange.startswith("reply."):
        return "direct"
    return "fanout" if exchange.endswith(".pidbox") else "topic"


@functools.lru_cache(maxsize=256)
def _topic(pattern: str) -> re.Pattern[str]:
    words = pattern.split(".")
    text = r"\.".join("\0" if word == "#" else r"[^.]*" if word == "*" else re.escape(word) for word in words)
    # Of the dots around `#` one goes with it where it stands for nothing.
    text = text.replace("\\.\0", r"(?:\.[^.]*)*").replace("\0\\.", r"(?:[^.]*\.)*").replace("\0", ".*")
    return re.compile(text, re.DOTALL)


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a topic exchange passes `key` for `pattern`: `*` is one word, `#` any number of them."""
    return pattern == "#" or pattern == key or _topic(pattern).fullmatch(key) is not None


def opened(letter: Letter) -> Letter:
    """The letter with its `content`.  Raises ValueError where it can't be read, or is not to be."""
    if len(letter.body) > LONGEST:
        raise ValueError(f"its body has {len(letter.body)} bytes, and {LONGEST} are read")
    try:
        letter.content = decode_json(letter.body)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return letter


class Outbox:
    """Letters that leave with a consumer's next trip.  Any thread may add some."""

    def __init__(self) -> None:
        self.waiting: deque[Letter] = deque()
        self.dropped = 0
        self._size = 0
        self._lock = threading.Lock()

    def add(self, letters: Sequence[Letter]) -> None:
        """Keep the letters; the oldest are dropped where they are too many."""
        with self._lock:
            self.waiting.extend(letters)
            self._bound(letters)

    def restore(self, letters: Sequence[Letter]) -> None:
        """Keep letters that were taken, and may not have left, for the next trip."""
        with self._lock:
            self.waiting.extendleft(reversed(letters))
            self._bound(letters)

    def _bound(self, added: Sequence[Letter]) -> None:
        waiting = self.waiting
        self._size += sum(len(letter.body) for letter in added)
        while len(waiting) > WAITING or (self._size > WAITING_BYTES and waiting):
            self._size -= len(waiting.popleft().body)
            self.dropped += 1

    def take(self) -> list[Letter]:
        """All that wait; they are not kept."""
        with self._lock:
            found = list(self.waiting)
            self.waiting.clear()
            self._size = 0
        return found

    def drop(self, letters: Sequence[Letter], why: object) -> None:
        """Count letters that can't be sent: they are news, and nothing is to fail by them."""
        self.dropped += len(letters)
        log.debug("%d letters are dropped: %s", len(letters), why)


class Posting:
    """What consumers have in common that take letters along."""

    _outbox: Outbox

    def post(self, letters: Sequence[Letter]) -> None:
        """See `Consumer.post`."""
        self._outbox.add(letters)

    @property
    def letters_dropped(self) -> int:
        """See `Consumer.letters_dropped`."""
        return self._outbox.dropped


class Open:
    """Who listens through one broker, in this process: a forked child ends nothing of its parent's."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._found: weakref.WeakSet[Listening] = weakref.WeakSet()

    def add(self, listening: Listening) -> None:
        """One more."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            self._found.add(listening)

    def end(self) -> None:
        """End them all."""
        if self._process != os.getpid():
            return
        with self._lock:
            found = list(self._found)
        for one in found:
            one.end()


class Unreadable:
    """Counts letters that are left out, and says so once a minute."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = 0
        self._next = 0.0

    def add(self, exchange: str, why: object) -> None:
        """One more, and what is wrong with it."""
        self._count += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _QUIET
        log.warning(
            "left out %d letters to %r on %s that can't be read; of the last one: %.200s",
            self._count, exchange, self._where, why,
        )  # fmt: skip
        self._count = 0

    def read(self, letter: Letter) -> list[Letter]:
        """The letter with its content; nothing where it can't be read."""
        try:
            return [opened(letter)]
        except ValueError as error:
            self.add(letter.exchange, error)
            return []
