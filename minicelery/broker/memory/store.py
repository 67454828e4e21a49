"""What `memory://` keeps: one store by name for everything in the process."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from minicelery.broker.memory.dead import Grave
from minicelery.broker.memory.groups import MemoryGroups
from minicelery.broker.memory.limits import MemoryGates
from minicelery.broker.memory.post import Ears
from minicelery.broker.url import ServerURL
from minicelery.limits import HELD, ONCE
from minicelery.message import Message, Record
from minicelery.states import SUCCESS


@dataclass(slots=True)
class Entry:
    """A message and what has happened to it."""

    message: Message
    deliveries: int = 0
    started: bool = False
    reason: str | None = None
    first: bool = False  # to the front of its queue when it is due
    turn: float | None = None  # it has waited for a limit since then


@dataclass
class Store:
    """One named store.  Every field is read and written under `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    ready: dict[str, dict[int, deque[Entry]]] = field(default_factory=dict)  # queue -> priority -> entries
    delayed: list[tuple[float, int, Entry]] = field(default_factory=list)  # a heap
    held: dict[str, dict[int, Entry]] = field(default_factory=dict)  # consumer -> receipt -> entry
    leases: dict[str, float] = field(default_factory=dict)
    dead: dict[str, list[Grave]] = field(default_factory=dict)
    topics: dict[str, dict[str, tuple[float, bytes]]] = field(default_factory=dict)
    results: dict[str, tuple[Record, float]] = field(default_factory=dict)  # with the time they expire
    uniques: dict[str, tuple[str, float]] = field(default_factory=dict)  # key -> holder, until
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    tended: float = float("-inf")
    reap_from: float = float("inf")

    def __post_init__(self) -> None:
        self.gates = MemoryGates(self)
        self.groups = MemoryGroups()
        self.ears = Ears()

    def claim(self, key: str, holder: str, seconds: float) -> str:
        """Who holds the key: `holder`, unless another did before."""
        now = time.time()
        found, until = self.uniques.get(key, (holder, 0.0))
        if until > now and (found != holder or key.startswith(ONCE)):
            return HELD if found == holder else found
        self.uniques[key] = (holder, now + seconds)
        return holder

    def add(self, message: Message) -> None:
        # A copy: what a real server hands out shares nothing with what was sent.
        message = replace(message, headers=dict(message.headers), properties=dict(message.properties))
        if message.due is not None and message.due > time.time():
            heapq.heappush(self.delayed, (message.due, next(self.numbers), Entry(message)))
        else:
            self.lane(message).append(Entry(message))

    def lane(self, message: Message) -> deque[Entry]:
        """The entries of the message's queue and priority, first come first served."""
        return self.ready.setdefault(message.queue, {}).setdefault(message.priority or 0, deque())

    def put_back(self, entry: Entry) -> None:
        entry.started, entry.reason = False, None
        self.lane(entry.message).appendleft(entry)

    def release_due(self, now: float) -> None:
        first = []
        while self.delayed and self.delayed[0][0] <= now:
            entry = heapq.heappop(self.delayed)[2]
            if entry.first:
                first.append(entry)
            else:
                self.lane(entry.message).append(entry)
        for entry in reversed(first):
            entry.first = False
            self.lane(entry.message).appendleft(entry)

    def next_due(self, queues: Collection[str]) -> float | None:
        return min((due for due, _, entry in self.delayed if entry.message.queue in queues), default=None)

    def pop(self, queues: Iterable[str]) -> Entry | None:
        """The most urgent entry of `queues`; of equals, one from the queue named first."""
        lanes = (
            (priority, turn, lane)
            for turn, queue in enumerate(queues)
            for priority, lane in self.ready.get(queue, {}).items()
            if lane
        )
        found = min(lanes, key=lambda lane: lane[:2], default=None)
        return found[2].popleft() if found is not None else None

    def keep(self, record: Record, apart: bool = False) -> Message | None:
        """Store a record; where that was the last that a chord's body waits for, the body."""
        now = time.time()
        stored = self.results.get(record.id)
        if stored is None or stored[0].state != SUCCESS or stored[1] <= now:
            until = float("inf") if record.ttl is None else now + record.ttl
            self.results[record.id] = (record, max(until, self.groups.until(record.part_of)))
        return self.groups.count(record, apart) if record.part_of else None

    def find(self, id: str, now: float) -> Record | None:
        record, expires = self.results.get(id, (None, 0.0))
        return record if expires > now else None


_stores: dict[str, Store] = {}


def open_store(server: ServerURL) -> Store:
    return _stores.setdefault(server.host, Store())
