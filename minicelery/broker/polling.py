"""Waiting for results where no server tells of them: looking again, at growing intervals."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from minicelery.message import Record

FIRST, LONGEST, GROWTH = 0.02, 0.5, 1.5
"""Seconds between two looks: at first, at last, and how they grow."""


class Looker(Protocol):
    """What remembers what it has seen, and looks for what is new."""

    def looking(self) -> AbstractContextManager[None]:
        """Around several looks: what they need stays open."""

    def news(self, ids: Collection[str], seen: Mapping[str, bytes]) -> list[Record]:
        """The records of `ids` that differ from the documents in `seen`."""


def watch(looker: Looker, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
    """See `Backend.watch`."""
    until = time.monotonic() + wait
    pause = FIRST
    with looker.looking():
        while True:
            found = looker.news(ids, seen)
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            time.sleep(min(pause, left))
            pause = min(pause * GROWTH, LONGEST)


class PollingListener:
    """Many results in one thread; see `minicelery.broker.listening.Listener`."""

    overlooks = False

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._ids: dict[str, None] = {}
        self._called = threading.Event()
        self._pause = FIRST

    def add(self, id: str) -> None:
        """See `Listener.add`."""
        self._ids[id] = None
        self._called.set()

    def drop(self, id: str) -> None:
        """See `Listener.drop`."""
        self._ids.pop(id, None)

    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]:
        """See `Listener.wait`; the pauses grow from one call to the next, until there is something new."""
        with self._looker.looking():
            return self._wait(seen, time.monotonic() + seconds)

    def _wait(self, seen: Mapping[str, bytes], until: float) -> list[Record]:
        while True:
            found = self._looker.news(list(self._ids), seen)
            if found:
                self._pause = FIRST
                return found
            left = until - time.monotonic()
            if left <= 0:
                return []
            if self._called.wait(min(self._pause, left)):
                self._called.clear()
                self._pause = FIRST
                return self._looker.news(list(self._ids), seen)
            self._pause = min(self._pause * GROWTH, LONGEST)

    def wake(self) -> None:
        """See `Listener.wake`."""
        self._called.set()

    def close(self, *, keep: bool = False) -> None:
        """Nothing is open."""
