"""Results in Redis: Celery's keys and documents, its channels for who waits."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minicelery.broker.redis import scripts
from minicelery.broker.redis.link import FAILED, LOST, Link, Pool, Server
from minicelery.broker.url import ServerURL
from minicelery.exceptions import BackendError, BackendUnavailable
from minicelery.message import Record

_DEADLINE = 5.0
_KEY = "celery-task-meta-"


def record_arguments(prefix: str, record: Record) -> tuple[str, bytes, str]:
    """Key, document and time to live in milliseconds, as the scripts take them."""
    ttl = record.ttl
    return prefix + record.id, record.document, "" if not ttl else str(max(1, int(ttl * 1000)))


class RedisBackend:
    """Result documents under ``celery-task-meta-<id>``, published on the channel of that name."""

    def __init__(self, url: ServerURL, options: Mapping[str, Any]) -> None:
        self.server = Server(url, options)
        self.url = url.masked
        given: str = options.get("global_keyprefix") or ""
        self.prefix = (f"{given}_" if given and given[-1] not in ":_-." else given) + _KEY
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

    def store(self, records: Sequence[Record]) -> None:
        """See `Backend.store`."""
        arguments: list[Any] = []
        for record in records:
            arguments += record_arguments(self.prefix, record)
        if arguments:
            self._ask(
                self.pool,
                time.monotonic() + _DEADLINE,
                lambda link: link.run(scripts.STORE, arguments[:1], arguments),
            )

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        """See `Backend.load`."""
        if not ids:
            return []
        keys = [self.prefix + id for id in ids]
        found = self._ask(self.pool, time.monotonic() + _DEADLINE, lambda link: link.call("MGET", *keys))
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
            keys = [self.prefix + id for id in ids]
            self._ask(self.pool, time.monotonic() + _DEADLINE, lambda link: link.call("DEL", *keys))

    def close(self) -> None:
        """See `Backend.close`."""
        self.pool.close()
        self.listeners.close()
