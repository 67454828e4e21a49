"""The memory broker's consumer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from minicelery.broker import Backend, Leased
from minicelery.broker.chords import Apart
from minicelery.broker.memory.backend import MemoryBackend
from minicelery.broker.memory.dead import grave
from minicelery.broker.memory.store import Entry, Store
from minicelery.broker.post import Outbox, Posting
from minicelery.message import TURN_HEADER, Delivery, Outcome, Record, Verdict


class MemoryConsumer(Leased, Posting):
    """The consumer; see `minicelery.broker.Consumer`."""

    def __init__(
        self, store: Store, queues: Sequence[str], name: str, backend: Backend | None, lease: float
    ) -> None:
        self.name = name
        self._store = store
        self._queues = deque(queues)
        self._skipped: list[str] = []
        self._lease = lease
        self.renew = lease / 3
        self._woken = False
        self._outbox = Outbox()
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
        if self._outbox.waiting:
            self._store.ears.send(self._outbox.take())
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
        if self._outbox.waiting:
            self._store.ears.send(self._outbox.take())
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

    def skip(self, queues: Collection[str]) -> None:
        every = [*self._queues, *self._skipped]
        self._queues = deque(queue for queue in every if queue not in queues)
        self._skipped = [queue for queue in every if queue in queues]

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
                found = grave(entry.message, outcome.reason or "rejected")
                store.dead.setdefault(entry.message.queue, []).append(found)
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
