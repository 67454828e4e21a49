"""Hearing of many results in a database file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping

from minicelery.broker.sqlite.backend import SQLiteBackend
from minicelery.broker.sqlite.file import Watch
from minicelery.message import Record

_LATEST = "SELECT coalesce(max(version), 0) FROM results"
_SINCE = "SELECT version, id FROM results WHERE version > ? ORDER BY version"


class SQLiteListener:
    """Reads what has been stored since it last looked; see `minicelery.broker.listening.Listener`."""

    overlooks = False

    def __init__(self, backend: SQLiteBackend) -> None:
        self._backend = backend
        self._watch = Watch(backend.file)
        self._ids: dict[str, None] = {}
        self._added: list[str] = []
        self._latest: int | None = None

    def add(self, id: str) -> None:
        """See `Listener.add`."""
        self._ids[id] = None
        self._added.append(id)
        self._watch.wake()

    def drop(self, id: str) -> None:
        """See `Listener.drop`."""
        self._ids.pop(id, None)

    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]:
        """See `Listener.wait`."""
        until = time.monotonic() + seconds
        while True:
            version = self._backend.file.version()
            news = [record for record in self._read() if seen.get(record.id) != record.document]
            if news or time.monotonic() >= until or self._watch.wait(version, until):
                self._watch.found()
                return news

    def wake(self) -> None:
        """See `Listener.wake`."""
        self._watch.wake()

    def _read(self) -> list[Record]:
        """What is stored of the ids that were added, or has changed, since the last time."""
        added = list(self._added)
        latest, changed = self._backend.file.read(self._changed)
        wanted = [id for id in dict.fromkeys([*added, *changed]) if id in self._ids]
        found = self._backend.load(wanted) if wanted else []
        # Not before it has been read: the next time looks again for what could not be.
        self._latest = latest
        del self._added[: len(added)]
        return [record for record in found if record is not None]

    def _changed(self, connection: sqlite3.Connection) -> tuple[int, list[str]]:
        if self._latest is None:
            newest: int = connection.execute(_LATEST).fetchone()[0]
            return newest, []
        rows = connection.execute(_SINCE, (self._latest,)).fetchall()
        return (rows[-1][0] if rows else self._latest), [id for _, id in rows]

    def close(self, *, keep: bool = False) -> None:
        """The connection of this thread is closed when another one connects."""
