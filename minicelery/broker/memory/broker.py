"""The broker in memory."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from typing import Any

from minicelery.broker import LEASE, Backend
from minicelery.broker.memory.consumer import MemoryConsumer
from minicelery.broker.memory.dead import MemoryDeadLetters
from minicelery.broker.memory.limits import MemoryLimits
from minicelery.broker.memory.post import MemoryPost
from minicelery.broker.memory.store import open_store
from minicelery.broker.url import ServerURL
from minicelery.limits import LEAD
from minicelery.message import Message

TENDING_GAP = 3.0
"""Seconds without `tend` after which leases are not trusted: nobody could renew them."""


class MemoryBroker(MemoryDeadLetters):
    """The broker; see `minicelery.broker.Broker`."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any]) -> None:
        self.url = server.masked
        self.place = f"memory:{server.host}"
        self._store = open_store(server)
        self._lease = float(options.get("lease", LEASE))
        self.post = MemoryPost(self._store.ears)

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
        """Nothing is open but for who listens; what is stored lasts as long as the process."""
        self.post.close()
