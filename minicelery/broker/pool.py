"""Connections that several threads share, one thread at a time each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from minicelery.forking import call_in_forked_children
from minicelery.message import new_id


def pool_limit(options: Mapping[str, Any]) -> int:
    """How many links a pool may have by `broker_pool_limit`: 10 by default, 0 is no limit."""
    limit = options.get("pool_limit")
    return 10 if limit is None else int(limit) or 1_000_000


class Slot:
    """A link that is replaced when it breaks, and the name its publishes are counted under."""

    __slots__ = ("epoch", "link", "name", "sequence")

    def __init__(self) -> None:
        self.link: Any = None
        self.epoch = 0  # how often the pool had been closed when this was taken
        self.name = new_id()
        self.sequence = 0

    def drop(self) -> None:
        """Give up the link."""
        link, self.link = self.link, None
        if link is not None:
            link.close()


class Pool:
    """At most `limit` slots, handed out newest first; empty again in a forked child."""

    def __init__(self, limit: int, late: Callable[[str], Exception]) -> None:
        self.limit = max(1, limit)
        self._late = late
        self._reset()
        call_in_forked_children(self._reset)

    def _reset(self) -> None:
        # The parent's sockets are left alone: closing our copy does not close theirs.
        self._idle: list[Slot] = []
        self._made = 0
        self._waiting = 0
        self._epoch = 0
        self._changed = threading.Condition()

    def take(self, end: float) -> Slot:
        """A slot for this thread's use; waits until monotonic time `end` for one to be free."""
        while True:
            try:
                slot = self._idle.pop()
                slot.epoch = self._epoch
                return slot
            except IndexError:
                pass
            with self._changed:
                if self._made < self.limit:
                    self._made += 1
                    slot = Slot()
                    slot.epoch = self._epoch
                    return slot
                self._waiting += 1
                try:
                    # A slot that is put back between the pop and the wait must be seen.
                    free = self._changed.wait_for(lambda: self._idle, max(0.0, end - time.monotonic()))
                finally:
                    self._waiting -= 1
                if not free:
                    raise self._late(
                        f"all {self.limit} pooled connections are in use; raise broker_pool_limit"
                    )

    def put_back(self, slot: Slot) -> None:
        """Hand a slot in again."""
        if slot.epoch != self._epoch:  # the pool has been closed meanwhile
            slot.drop()
        self._idle.append(slot)
        if self._waiting:
            with self._changed:
                self._changed.notify()

    def close(self) -> None:
        """Close the links, those in use when they are put back; their slots are used again."""
        self._epoch += 1
        for slot in list(self._idle):
            slot.drop()
