"""Results in Redis: Celery's keys and documents, its channels for who waits."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minicelery.broker.redis import celery_chords, scripts
from minicelery.broker.redis.chords import Groups, bodies_of, ended_text, owe_at
from minicelery.broker.redis.link import FAILED, LOST, Link, Pool, Script, Server
from minicelery.broker.url import ServerURL
from minicelery.exceptions import BackendError, BackendUnavailable
from minicelery.message import Group, Message, Record

_DEADLINE = 5.0
_KEY = "celery-task-meta-"
_GROUP_KEY = "celery-taskset-meta-"


class RedisBackend:
    """Result documents under ``celery-task-meta-<id>``, published on the channel of that name."""

    def __init__(self, url: ServerURL, options: Mapping[str, Any]) -> None:
        self.server = Server(url, options)
        self.url = url.masked
        given: str = options.get("global_keyprefix") or ""
        given = f"{given}_" if given and given[-1] not in ":_-." else given
        self.prefix = given + _KEY
        self._groups = Groups(self._run, self._call, given)
        self._saved = given + _GROUP_KEY
        limit = int(options.get("pool_limit") or 10)
        self.pool = Pool(self.server, limit)
        # A waiting thread needs a connection of its own for as long as it waits.
        self.listeners = Pool(self.server, int(options.get("max_listeners") or 1000), protocol=3)

    def _ask(self, pool: Pool, end: float, work: Any) -> Any:
        try:
            return pool.call(end, work)
        except LOST as error:
            raise BackendUnavailable(self.server.explain(error)) from error
        except FAILED as error:
            raise BackendError(self.server.explain(error)) from error

    def _run(self, script: Script, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        end = time.monotonic() + _DEADLINE
        return self._ask(self.pool, end, lambda link: link.run(script, keys, arguments))

    def _call(self, *command: Any) -> Any:
        return self._ask(self.pool, time.monotonic() + _DEADLINE, lambda link: link.call(*command))

    def arguments(self, record: Record) -> tuple[str, bytes, str]:
        """Key, document and time to live in milliseconds, as the scripts take them."""
        ttl = "" if not record.ttl else str(max(1, int(record.ttl * 1000)))
        if record.part_of:
            ttl = ended_text(record, self._groups.base, ttl)
        return self.prefix + record.id, record.document, ttl

    def store(self, records: Sequence[Record]) -> list[Message]:
        """See `Backend.store`."""
        if not records:
            return []
        arguments: list[Any] = [owe_at()]
        for record in records:
            arguments += self.arguments(record)
        return bodies_of(self._run(scripts.STORE, arguments[1:2], arguments))

    def count_part(
        self, group: str, id: str, index: int | None, entry: bytes, **options: Any
    ) -> tuple[str, bytes | None, list[bytes]] | None:
        """Count a part of a chord of Celery's: see `celery_chords.count`."""
        return celery_chords.count(
            self._run, self._saved, self.prefix + id, group, id, index, entry, **options
        )

    def open_celery_group(self, id: str, size: int, ttl: float | None) -> None:
        """Say how many parts a chord of Celery's has."""
        self._call("SET", f"{self._saved}{id}.s", size, *(("EX", max(1, int(ttl))) if ttl else ()))

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        """See `Backend.load`."""
        if not ids:
            return []
        keys = [self.prefix + id for id in ids]
        found = self._call("MGET", *keys)
        return [
            None if document is None else Record(id, document)
            for id, document in zip(ids, found, strict=True)
        ]

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        """See `Backend.watch`: SUBSCRIBE, then read, so that nothing falls between; one trip."""
        if not ids:
            return []
        end = time.monotonic() + wait
        names = {(self.prefix + id).encode(): id for id in ids}
        keys = list(names)

        def work(link: Link) -> list[Record]:
            link.send_all([("SUBSCRIBE", *keys), ("MGET", *keys)])
            news: dict[str, bytes] = {}
            while not self._is_read(answer := link.read_any(), names, news):
                pass
            for id, document in zip(names.values(), answer, strict=True):
                if document is not None:
                    news.setdefault(id, document)
            while not (found := [Record(id, new) for id, new in news.items() if seen.get(id) != new]):
                left = end - time.monotonic()
                if left <= 0 or not link.readable(left):
                    break
                self._is_read(link.read_any(), names, news)
            # Not waited for: what it pushes is passed over by the next one who listens.
            link.send("UNSUBSCRIBE", *keys)
            return found

        try:
            found: list[Record] = self._ask(self.listeners, end + _DEADLINE, work)
        except BackendUnavailable:
            # The server drops a listener that a document is too big for (32 MB by default),
            # but any other connection may read it.
            found = [
                record
                for record in self.load(list(ids))
                if record is not None and seen.get(record.id) != record.document
            ]
            if not found:
                raise
        return found

    def _is_read(self, answer: list[Any], names: Mapping[bytes, str], news: dict[str, bytes]) -> bool:
        """Whether `answer` is that of MGET; a pushed document goes to `news`."""
        if answer and answer[0] == b"message":
            if answer[1] in names:
                news[names[answer[1]]] = answer[2]
            return False
        return not (answer and answer[0] in (b"subscribe", b"unsubscribe"))

    def forget(self, ids: Sequence[str]) -> None:
        """See `Backend.forget`."""
        if ids:
            self._call("DEL", *(self.prefix + id for id in ids))

    # -- chords, and saved groups: see `CountingBackend` ---------------------------------

    def open_groups(self, groups: Sequence[Group]) -> None:
        self._groups.open(groups)

    def load_group(self, id: str) -> Group | None:
        return self._groups.load(id)

    def claim_group(self, id: str, copy: str) -> bool:
        return self._groups.claim(id, copy)

    def add_member(self, id: str, member: str) -> bool:
        return self._groups.join(id, member)

    def drop_groups(self, ids: Sequence[str]) -> None:
        self._groups.drop(ids)

    def owed_groups(self, now: float, place: str) -> list[Message]:
        return self._groups.owed(now, place)

    def group_sent(self, ids: Sequence[str]) -> None:
        self._groups.said(ids)

    def save_group(self, id: str, document: bytes, ttl: float | None) -> None:
        expiry = () if ttl is None else ("PX", max(1, int(ttl * 1000)))
        self._call("SET", self._saved + id, document, *expiry)

    def restore_group(self, id: str) -> bytes | None:
        document: bytes | None = self._call("GET", self._saved + id)
        return document

    def delete_group(self, id: str) -> None:
        self._call("DEL", self._saved + id)

    def close(self) -> None:
        """See `Backend.close`."""
        self.pool.close()
        self.listeners.close()
