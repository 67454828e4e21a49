"""Hearing of many results on one connection to Redis."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import redis.exceptions

from minicelery.broker.pool import Slot
from minicelery.broker.redis.backend import RedisBackend
from minicelery.broker.redis.link import FAILED, LOST, Link
from minicelery.exceptions import BackendError, BackendUnavailable
from minicelery.message import Record

_AGAIN = 5.0
"""Seconds after which all is read again, should a notice have been lost."""
_CHUNK = 1000
"""Ids named by one command."""
_PUSHED = frozenset({b"message", b"subscribe", b"unsubscribe"})


class RedisListener:
    """Subscribes to what is added, without a word about the rest.

    See `minicelery.broker.listening.Listener`.  An id costs one trip, however many others
    there are; `RedisBackend.watch` names them all each time.
    """

    overlooks = False

    def __init__(self, backend: RedisBackend) -> None:
        self._backend = backend
        self._server = backend.server
        self._lock = threading.Lock()  # around the three below and the pipe
        self._ids: dict[bytes, str] = {}  # by channel
        self._added: dict[bytes, None] = {}
        self._dropped: dict[bytes, None] = {}
        self._slot: Slot | None = None
        self._asked: deque[list[bytes]] = deque()  # keys whose documents the server owes, by MGET
        self._asked_at = self._read_at = float("-inf")
        self._woken = self._ended = False
        self._wake_read, self._wake_write = os.pipe()

    def add(self, id: str) -> None:
        """See `Listener.add`."""
        channel = (self._backend.prefix + id).encode()
        with self._lock:
            self._ids[channel] = id
            self._dropped.pop(channel, None)
            self._added[channel] = None
            self._wake()

    def wake(self) -> None:
        """See `Listener.wake`."""
        with self._lock:
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        if not self._woken and self._wake_write >= 0:
            self._woken = True
            os.write(self._wake_write, b"w")

    def drop(self, id: str) -> None:
        """See `Listener.drop`."""
        channel = (self._backend.prefix + id).encode()
        with self._lock:
            if self._ids.pop(channel, None) is not None:
                self._added.pop(channel, None)
                self._dropped[channel] = None

    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]:
        """See `Listener.wait`."""
        end = time.monotonic() + seconds
        try:
            return self._listen(end)
        except LOST as error:
            # Subscribed anew on a new connection.  A document may have been too big for a listener
            # (32 MB by default): any other connection may read it.
            self._drop_link()
            news = [
                record
                for record in self._backend.load(list(self._ids.values()))
                if record is not None and seen.get(record.id) != record.document
            ]
            if not news:
                raise BackendUnavailable(self._server.explain(error)) from error
            return news
        except FAILED as error:
            self._drop_link()
            raise BackendError(self._server.explain(error)) from error

    def _listen(self, end: float) -> list[Record]:
        idle = self._slot is None
        link = self._connected()
        try:
            return self._hear(link, end)
        except LOST:
            if not idle:
                raise
        self._drop_link()  # it had died in the pool
        return self._hear(self._connected(), end)

    def _connected(self) -> Link:
        if self._slot is None:
            self._slot = self._backend.listeners.take(time.monotonic() + self._server.timeout)
            self._asked.clear()
            self._read_at = float("-inf")
        if self._slot.link is None:
            self._slot.link = self._server.link(protocol=self._backend.listeners.protocol)
        link: Link = self._slot.link
        return link

    def _hear(self, link: Link, end: float) -> list[Record]:
        found: list[Record] = []
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            self._tell(link)
            while link.readable(0):
                self._take(link.read_any(), found)
            now = time.monotonic()
            if found or self._ended or now >= end:
                self._ended = False
                return found
            left = min(end, self._read_at + _AGAIN) - now
            if self._asked:
                late = self._asked_at + self._server.timeout
                if now >= late:
                    raise redis.exceptions.TimeoutError("no answer in time")
                left = min(left, late - now)
            poll.poll(max(0.0, left) * 1000)
            with self._lock:
                if self._woken:
                    os.read(self._wake_read, 1)
                    self._woken = False

    def _tell(self, link: Link) -> None:
        """Subscribe to what was added and read it; leave what was dropped; all in one send."""
        with self._lock:
            if time.monotonic() - self._read_at >= _AGAIN:
                added = list(self._ids)
                self._read_at = time.monotonic()
            else:
                added = list(self._added)
            dropped = list(self._dropped)
            self._added.clear()
            self._dropped.clear()
        commands: list[tuple[Any, ...]] = []
        for start in range(0, len(added), _CHUNK):
            keys = added[start : start + _CHUNK]
            # In this order nothing falls between.  To subscribe twice is to subscribe.
            commands += [("SUBSCRIBE", *keys), ("MGET", *keys)]
            if not self._asked:
                self._asked_at = time.monotonic()
            self._asked.append(keys)
        for start in range(0, len(dropped), _CHUNK):
            commands.append(("UNSUBSCRIBE", *dropped[start : start + _CHUNK]))
        if commands:
            link.send_all(commands)

    def _take(self, answer: Any, found: list[Record]) -> None:
        ids = self._ids
        if answer and answer[0] in _PUSHED:
            if answer[0] == b"message" and (id := ids.get(answer[1])) is not None:
                found.append(Record(id, answer[2]))
            return
        keys = self._asked.popleft()
        self._asked_at = time.monotonic()
        for key, document in zip(keys, answer, strict=True):
            if document is not None and (id := ids.get(key)) is not None:
                found.append(Record(id, document))

    def _drop_link(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.drop()
            self._backend.listeners.put_back(slot)

    def close(self, *, keep: bool = False) -> None:
        """See `Listener.close`."""
        slot = self._slot
        if keep and slot is not None and slot.link is not None and not self._asked:
            try:
                # Not waited for: what it pushes is passed over by the next one who listens.
                slot.link.send("UNSUBSCRIBE")
                self._slot = None
                self._backend.listeners.put_back(slot)
            except FAILED:
                pass
        self._drop_link()
        with self._lock:
            for fd in (self._wake_read, self._wake_write):
                os.close(fd)
            self._wake_read = self._wake_write = -1
