"""Queues and results inside one process: for tests, examples, and as the protocols' reference.

``memory://name`` shares one store by name between everything in the process;
``memory://`` is the store without a name.  Nothing survives the process.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minicelery.broker import LEASE, Backend, Leased
from minicelery.broker.chords import Apart
from minicelery.broker.memory_groups import MemoryGroups
from minicelery.broker.memory_limits import MemoryGates, MemoryLimits
from minicelery.broker.url import ServerURL
from minicelery.limits import HELD, LEAD, ONCE
from minicelery.message import TURN_HEADER, DeadLetter, Delivery, Group, Message, Outcome, Record, Verdict
from minicelery.states import SUCCESS

TENDING_GAP = 3.0
"""Seconds without `tend` after which leases are not trusted: nobody could renew them."""


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
    dead: dict[str, list[DeadLetter]] = field(default_factory=dict)
    topics: dict[str, dict[str, tuple[float, bytes]]] = field(default_factory=dict)
    results: dict[str, tuple[Record, float]] = field(default_factory=dict)  # with the time they expire
    uniques: dict[str, tuple[str, float]] = field(default_factory=dict)  # key -> holder, until
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    tended: float = float("-inf")
    reap_from: float = float("inf")

    def __post_init__(self) -> None:
        self.gates = MemoryGates(self)
        self.groups = MemoryGroups()

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


def _open(server: ServerURL) -> Store:
    return _stores.setdefault(server.host, Store())


class MemoryBroker:
    """The broker; see `minicelery.broker.Broker`."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any]) -> None:
        self.url = server.masked
        self.place = f"memory:{server.host}"
        self._store = _open(server)
        self._lease = float(options.get("lease", LEASE))

    def publish(
        self, messages: Sequence[Message], *, deadline: float | None = None, attempts: int | None = None
    ) -> dict[str, str] | None:
        there: dict[str, str] = {}
        with self._store.changed:
            for message in messages:
                if message.unique is not None:
                    key, seconds = message.unique
                    holder = self._store.claim(key, message.id, seconds)
                    if holder != message.id:
                        there[message.id] = holder
                        continue
                self._store.add(message)
            self._store.changed.notify_all()
        return there or None

    def limits(self, *, parks: bool) -> MemoryLimits:
        """Where the limits are kept: here."""
        return MemoryLimits(self._store, parks)

    def consumer(self, queues: Sequence[str], name: str, backend: Backend | None) -> MemoryConsumer:
        return MemoryConsumer(self._store, queues, name, backend, self._lease)

    def tend(self, queues: Sequence[str], alive: Sequence[str]) -> list[str]:
        store, now = self._store, time.time()
        with store.changed:
            if not 0 <= now - store.tended <= TENDING_GAP:
                store.reap_from = now + self._lease
            store.tended = now
            for id in [id for id, (_, expires) in store.results.items() if expires <= now]:
                del store.results[id]
            store.leases.update(dict.fromkeys(alive, now + self._lease))
            for name in list(store.gates.lines):
                store.gates.look(name, now)
                store.changed.notify_all()
            store.uniques = {key: held for key, held in store.uniques.items() if held[1] > now}
            if now < store.reap_from:
                return []
            return [
                name
                for name, held in store.held.items()
                if store.leases.get(name, 0.0) <= now
                and any(entry.message.queue in queues for entry in held.values())
            ]

    def size(self, queue: str) -> int:
        with self._store.changed:
            self._store.release_due(time.time())
            return sum(len(lane) for lane in self._store.ready.get(queue, {}).values())

    def delayed(self, queue: str) -> int:
        with self._store.changed:
            self._store.release_due(time.time())
            waiting = self._store.gates.waiting(queue)
            return waiting + sum(entry.message.queue == queue for _, _, entry in self._store.delayed)

    def purge(self, queue: str) -> int:
        store = self._store
        with store.changed:
            lines = store.gates.lines.values()
            waiting = [entry for line in lines for _, _, entry in line] + [item[2] for item in store.delayed]
            gone = [entry.message.id for entry in waiting if entry.message.queue == queue]
            for lane in store.ready.pop(queue, {}).values():
                gone += [entry.message.id for entry in lane]
            store.delayed = [item for item in store.delayed if item[2].message.queue != queue]
            heapq.heapify(store.delayed)
            store.gates.drop(queue)
            ids = set(gone)
            store.uniques = {key: held for key, held in store.uniques.items() if held[0] not in ids}
        return len(gone)

    def dead(self, queue: str) -> int:
        with self._store.changed:
            return len(self._store.dead.get(queue, ()))

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        with self._store.changed:
            return list(itertools.islice(reversed(self._store.dead.get(queue, [])), limit))

    def remember(self, topic: str, key: str, ttl: float, value: bytes = b"") -> None:
        with self._store.changed:
            self._store.topics.setdefault(topic, {})[key] = (time.time() + ttl, value)

    def remember_all(self, topic: str, records: Mapping[str, bytes], ttl: float) -> None:
        for key, value in records.items():
            self.remember(topic, key, ttl, value)

    def lead(self, name: str, holder: str, seconds: float) -> str:
        with self._store.changed:
            return self._store.claim(LEAD + name, holder, seconds)

    def leader(self, name: str) -> str:
        with self._store.changed:
            holder, until = self._store.uniques.get(LEAD + name, ("", 0.0))
            return holder if until > time.time() else ""

    def step_down(self, name: str, holder: str) -> None:
        with self._store.changed:
            self._store.gates.forget(LEAD + name, holder)

    def recall(self, topic: str) -> dict[str, bytes]:
        now = time.time()
        with self._store.changed:
            kept = {k: v for k, v in self._store.topics.get(topic, {}).items() if v[0] > now}
            self._store.topics[topic] = kept
            return {key: value for key, (_, value) in kept.items()}

    def close(self) -> None:
        """Nothing is open; what is stored lasts as long as the process."""


class MemoryConsumer(Leased):
    """The consumer; see `minicelery.broker.Consumer`."""

    def __init__(
        self, store: Store, queues: Sequence[str], name: str, backend: Backend | None, lease: float
    ) -> None:
        self.name = name
        self._store = store
        self._queues = deque(queues)
        self._lease = lease
        self.renew = lease / 3
        self._woken = False
        self._shared = isinstance(backend, MemoryBackend) and backend._store is store
        self._apart = Apart(backend) if backend is not None and not self._shared else None

    def swap(self, done: Sequence[Outcome], want: int, wait: float) -> list[Delivery]:
        if done:
            self._keep_elsewhere(done)
        until = time.monotonic() + wait
        with self._store.changed:
            self._renew()
            if done:
                self._settle(done)
            fresh = self._take(want)
        if self._apart is not None and done:
            self._apart.settled()
        with self._store.changed:
            while want > 0 and not fresh and not self._woken and self._pause(until):
                fresh = self._take(want)
            if not fresh and want > 0 and wait > 0:
                self._woken = False
            return fresh

    def extend(self, held: Sequence[Delivery], records: Sequence[Record] = ()) -> None:
        with self._store.changed:
            self._renew()
            mine = self._store.held.get(self.name, {})
            for delivery in held:
                if (entry := mine.get(delivery.receipt)) is not None:
                    entry.started = True
            if self._shared:
                for record in records:
                    self._store.keep(record)
                self._store.changed.notify_all()
        if records and self._apart is not None:
            self._apart.backend.store(records)

    def adopt(self, name: str, started: Mapping[int, str] | None = None) -> list[Delivery]:
        with self._store.changed:
            self._renew()
            mine = self._store.held.setdefault(self.name, {})
            if name != self.name:
                mine.update(self._store.held.pop(name, {}))
            for receipt, reason in (started or {}).items():
                if receipt in mine:
                    mine[receipt].started, mine[receipt].reason = True, reason
            return [self._delivery(receipt, mine[receipt]) for receipt in sorted(mine)]

    def wake(self) -> None:
        with self._store.changed:
            self._woken = True
            self._store.changed.notify_all()

    def close(self) -> None:
        with self._store.changed:
            held = self._store.held.pop(self.name, {})
            for receipt in sorted(held, reverse=True):
                self._store.put_back(held[receipt])
            self._store.leases.pop(self.name, None)
            self._store.changed.notify_all()

    def _keep_elsewhere(self, done: Sequence[Outcome]) -> None:
        """Store the records of what is still held, where the results are not in this store."""
        if self._apart is None:
            return
        with self._store.changed:
            held = set(self._store.held.get(self.name, ()))
        if still := [outcome for outcome in done if outcome.delivery.receipt in held]:
            self._apart.store(still)

    def _settle(self, done: Sequence[Outcome]) -> None:
        store = self._store
        mine = store.held.get(self.name, {})
        now = time.time()
        given_back = []
        for outcome in done:
            entry = mine.pop(outcome.delivery.receipt, None)
            if entry is None:
                continue
            for record in outcome.records() if self._shared else ():
                if (body := store.keep(record)) is not None:
                    store.add(body)
            for message in outcome.publish:
                store.add(message)
            if outcome.park is not None:
                entry.started, entry.reason = False, None
                store.gates.park(*outcome.park, entry, now)
            elif outcome.verdict is Verdict.REQUEUE or outcome.verdict is Verdict.PARK:
                entry.deliveries = max(entry.deliveries, outcome.delivery.deliveries)
                given_back.append((outcome.delivery.receipt, entry))
            elif outcome.verdict is Verdict.REJECT:
                letter = _dead_letter(entry.message, outcome.reason or "rejected")
                store.dead.setdefault(entry.message.queue, []).append(letter)
            if outcome.release:
                store.gates.free(entry.message.id, outcome.release, now)
        for _, entry in sorted(given_back, key=lambda item: item[0], reverse=True):
            store.put_back(entry)
        store.changed.notify_all()

    def _take(self, want: int) -> list[Delivery]:
        now = time.time()
        self._store.release_due(now)
        self._queues.rotate(-1)
        mine = self._store.held.setdefault(self.name, {})
        fresh: list[Delivery] = []
        while len(fresh) < want and (entry := self._store.pop(self._queues)) is not None:
            receipt = next(self._store.numbers)
            mine[receipt] = entry
            fresh.append(self._delivery(receipt, entry))
        return fresh

    def _pause(self, until: float) -> bool:
        """Wait for a change or the next due time; False when `until` has passed."""
        left = until - time.monotonic()
        if left <= 0:
            return False
        due = self._store.next_due(self._queues)
        self._store.changed.wait(left if due is None else min(left, max(due - time.time(), 0.0)))
        self._renew()
        return True

    def _delivery(self, receipt: int, entry: Entry) -> Delivery:
        headers = dict(entry.message.headers)
        if entry.started or entry.deliveries:
            headers["redelivered"] = True
        if entry.turn is not None:
            headers[TURN_HEADER] = entry.turn
        return Delivery(
            replace(entry.message, headers=headers, due=None),
            receipt,
            entry.deliveries,
            entry.started,
            entry.reason,
            revoked=self._store.topics.get("revoked", {}).get(entry.message.id, (0.0,))[0] > time.time(),
        )

    def _renew(self) -> None:
        self._store.leases[self.name] = time.time() + self._lease


def _dead_letter(message: Message, reason: str) -> DeadLetter:
    body = base64.b64encode(message.body).decode()
    raw = {"headers": message.headers, "properties": message.properties, "body": body}
    return DeadLetter(reason, time.time(), json.dumps(raw, default=repr).encode(), message.id, message.task)


class MemoryBackend:
    """The result store; see `minicelery.broker.Backend`."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any]) -> None:
        self.url = server.masked
        self._store = _open(server)

    def store(self, records: Sequence[Record]) -> list[Message]:
        with self._store.changed:
            bodies = [self._store.keep(record, apart=True) for record in records]
            self._store.changed.notify_all()
        return [body for body in bodies if body is not None]

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        now = time.time()
        with self._store.changed:
            return [self._store.find(id, now) for id in ids]

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        until = time.monotonic() + wait
        with self._store.changed:
            while True:
                now = time.time()
                found = [record for id in ids if (record := self._store.find(id, now)) is not None]
                news = [record for record in found if record.document != seen.get(record.id)]
                left = until - time.monotonic()
                if news or left <= 0:
                    return news
                self._store.changed.wait(left)

    def forget(self, ids: Sequence[str]) -> None:
        with self._store.changed:
            for id in ids:
                self._store.results.pop(id, None)

    def open_groups(self, groups: Sequence[Group]) -> None:
        with self._store.changed:
            self._store.groups.add(groups)

    def load_group(self, id: str) -> Group | None:
        with self._store.changed:
            return self._store.groups.load(id)

    def claim_group(self, id: str, copy: str) -> bool:
        with self._store.changed:
            return self._store.groups.claim(id, copy)

    def add_member(self, id: str, member: str) -> bool:
        with self._store.changed:
            return self._store.groups.join(id, member)

    def drop_groups(self, ids: Sequence[str]) -> None:
        with self._store.changed:
            for id in ids:
                self._store.groups.open.pop(id, None)

    def owed_groups(self, now: float, place: str) -> list[Message]:
        with self._store.changed:
            return self._store.groups.owed(now, place)

    def group_sent(self, ids: Sequence[str]) -> None:
        with self._store.changed:
            self._store.groups.told(ids)

    def save_group(self, id: str, document: bytes, ttl: float | None) -> None:
        until = float("inf") if ttl is None else time.time() + ttl
        with self._store.changed:
            self._store.groups.saved[id] = (document, until)

    def restore_group(self, id: str) -> bytes | None:
        with self._store.changed:
            document, until = self._store.groups.saved.get(id, (None, 0.0))
        return document if until > time.time() else None

    def delete_group(self, id: str) -> None:
        with self._store.changed:
            self._store.groups.saved.pop(id, None)

    def close(self) -> None:
        """Nothing is open; what is stored lasts as long as the process."""
