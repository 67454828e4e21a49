"""The results in memory."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minicelery.broker.memory.store import open_store
from minicelery.broker.url import ServerURL
from minicelery.message import Group, Message, Record


class MemoryBackend:
    """The result store; see `minicelery.broker.Backend`."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any]) -> None:
        self.url = server.masked
        self._store = open_store(server)

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
