"""Limits in this process's memory."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minicelery.broker.gates import Gate, Gates
from minicelery.limits import Ask, Wait

if TYPE_CHECKING:
    from minicelery.broker.memory.store import Entry, Store


class MemoryGates(Gates):
    """What limits are kept in; every call is made under the store's lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gates: dict[str, Gate] = {}
        self.taken: dict[str, dict[str, float]] = {}  # room -> holder -> until
        self.lines: dict[str, list[tuple[float, int, Entry]]] = {}  # heaps

    def load(self, name: str) -> Gate:
        return self.gates.get(name) or Gate()

    def save(self, name: str, gate: Gate) -> None:
        self.gates[name] = gate

    def places(self, name: str, now: float) -> int:
        taken = self.taken.get(name, {})
        for holder in [holder for holder, until in taken.items() if until <= now]:
            del taken[holder]
        return len(taken)

    def has_place(self, name: str, holder: str) -> bool:
        return holder in self.taken.get(name, ())

    def take_place(self, name: str, holder: str, until: float) -> None:
        self.taken.setdefault(name, {})[holder] = until

    def leave_place(self, name: str, holder: str) -> None:
        self.taken.get(name, {}).pop(holder, None)

    def prolong(self, name: str, until: float) -> None:
        taken = self.taken.get(name, {})
        taken.update({holder: max(until, old) for holder, old in taken.items()})

    def has_line(self, name: str) -> bool:
        return name in self.lines

    def call(self, name: str, due: float | None) -> str | None:
        line = self.lines.get(name)
        if line is None:
            return None
        entry = heapq.heappop(line)[2]
        if not line:
            del self.lines[name]
        if due is None:
            self._store.lane(entry.message).appendleft(entry)
        else:
            entry.first = True
            heapq.heappush(self._store.delayed, (due, next(self._store.numbers), entry))
        return entry.message.id

    def forget(self, key: str, holder: str) -> None:
        if self._store.uniques.get(key, ("", 0.0))[0] == holder:
            del self._store.uniques[key]

    def park(self, name: str, turn: float, entry: Entry, now: float) -> None:
        """Have a message wait in the line before a gate."""
        entry.turn = turn
        heapq.heappush(self.lines.setdefault(name, []), (turn, next(self._store.numbers), entry))
        self.let_in(name, now)

    def waiting(self, queue: str) -> int:
        """How many messages of the queue wait in lines."""
        return sum(entry.message.queue == queue for line in self.lines.values() for _, _, entry in line)

    def drop(self, queue: str) -> None:
        """Drop those."""
        for name, line in list(self.lines.items()):
            kept = [item for item in line if item[2].message.queue != queue]
            self.purged(name)
            heapq.heapify(kept)
            self.lines[name] = kept
            if not kept:
                del self.lines[name]


class MemoryLimits:
    """The store of limits; see `minicelery.broker.Limits`."""

    def __init__(self, store: Store, parks: bool) -> None:
        self.parks = parks
        self._store = store

    def admit(self, ask: Ask) -> Wait | None:
        with self._store.changed:
            wait = self._store.gates.admit(ask, time.time(), parks=self.parks)
            self._store.changed.notify_all()
            return wait

    def renew(self, places: Sequence[tuple[str, str, float]]) -> None:
        with self._store.changed:
            self._store.gates.renew(places, time.time())

    def free(self, holder: str, release: Sequence[str], took: float = 0.0) -> None:
        with self._store.changed:
            self._store.gates.free(holder, release, time.time(), took)
            self._store.changed.notify_all()

    def claim(self, key: str, holder: str, seconds: float) -> str:
        with self._store.changed:
            return self._store.claim(key, holder, seconds)

    def close(self) -> None:
        """Nothing is open; what is stored lasts as long as the process."""
