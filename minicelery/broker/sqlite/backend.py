"""Results in a database file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from minicelery.broker.sqlite import groups
from minicelery.broker.sqlite.file import File, Watch
from minicelery.broker.url import ServerURL
from minicelery.exceptions import BackendUnavailable
from minicelery.message import Group, Message, Record

# REPLACE gives a new, higher version: who watches reads what has come since.
_STORE = """
INSERT OR REPLACE INTO results (id, state, document, expires) SELECT ?, ?, ?, ?
WHERE NOT EXISTS (
    SELECT 1 FROM results WHERE id = ? AND state = 'SUCCESS' AND (expires IS NULL OR expires > ?)
)
"""
_LATEST = "SELECT coalesce(max(version), 0) FROM results"
_SINCE = "SELECT version, id FROM results WHERE version > ? ORDER BY version"
CHUNK = 1000
"""Ids asked for by one statement."""


class SQLiteBackend:
    """The result store; see `minicelery.broker.Backend`."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any]) -> None:
        self.url = server.masked
        self.file = File(server, options, BackendUnavailable)

    def store(self, records: Sequence[Record]) -> list[Message]:
        if not records:
            return []
        return self.file.write(lambda connection: store_records(connection, records, time.time()))

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        found = self.file.read(lambda connection: _load(connection, ids))
        return [found.get(id) for id in ids]

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        until = time.monotonic() + wait
        watch = Watch(self.file)
        wanted = frozenset(ids)
        latest = -1
        while True:
            version = self.file.version()
            latest, found = self.file.read(partial(_news, ids=wanted, latest=latest))
            news = [record for record in found if record.document != seen.get(record.id)]
            if news or time.monotonic() >= until:
                return news
            watch.wait(version, until)

    def forget(self, ids: Sequence[str]) -> None:
        rows = [(id,) for id in ids]
        if rows:
            self.file.write(
                lambda connection: connection.executemany("DELETE FROM results WHERE id = ?", rows)
            )

    # -- chords, and saved groups --------------------------------------------------------

    def open_groups(self, chords: Sequence[Group]) -> None:
        self.file.write(lambda connection: groups.open_groups(connection, chords))

    def load_group(self, id: str) -> Group | None:
        return self.file.read(lambda connection: groups.load_group(connection, id))

    def claim_group(self, id: str, copy: str) -> bool:
        return self.file.write(lambda connection: groups.claim_group(connection, id, copy))

    def add_member(self, id: str, member: str) -> bool:
        return self.file.write(lambda connection: groups.add_member(connection, id, member))

    def drop_groups(self, ids: Sequence[str]) -> None:
        self.file.write(lambda connection: groups.drop_groups(connection, ids))

    def owed_groups(self, now: float, place: str) -> list[Message]:
        if not self.file.read(lambda connection: groups.has_late(connection, now, place)):
            return []
        return self.file.write(lambda connection: groups.owed_groups(connection, now, place))

    def group_sent(self, ids: Sequence[str]) -> None:
        self.file.write(lambda connection: groups.group_sent(connection, ids, time.time()))

    def save_group(self, id: str, document: bytes, ttl: float | None) -> None:
        row = (id, document, None if ttl is None else time.time() + ttl)
        statement = "REPLACE INTO saved (id, document, expires) VALUES (?, ?, ?)"
        self.file.write(lambda connection: connection.execute(statement, row))

    def restore_group(self, id: str) -> bytes | None:
        statement = "SELECT document FROM saved WHERE id = ? AND (expires IS NULL OR expires > ?)"
        found = self.file.read(lambda connection: connection.execute(statement, (id, time.time())).fetchone())
        return None if found is None else bytes(found[0])

    def delete_group(self, id: str) -> None:
        self.file.write(lambda connection: connection.execute("DELETE FROM saved WHERE id = ?", (id,)))

    def close(self) -> None:
        self.file.close()


def store_records(
    connection: sqlite3.Connection,
    records: Sequence[Record],
    now: float,
    send: Callable[[Message], None] | None = None,
) -> list[Message]:
    """Keep the records, within the transaction that is open; for the answer see `groups.count`."""
    connection.executemany(
        _STORE,
        [
            (one.id, one.state, one.document, None if one.ttl is None else now + one.ttl, one.id, now)
            for one in records
        ],
    )
    parts = [record for record in records if record.part_of]
    return groups.count(connection, parts, now, send) if parts else []


def _load(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Record]:
    now = time.time()
    found: dict[str, Record] = {}
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        rows = connection.execute(
            f"SELECT id, state, document FROM results WHERE id IN ({','.join('?' * len(part))})"
            " AND (expires IS NULL OR expires > ?)",
            (*part, now),
        )
        for id, state, document in rows:
            found[id] = Record(id, document, state)
    return found


def _news(connection: sqlite3.Connection, ids: frozenset[str], latest: int) -> tuple[int, list[Record]]:
    """The newest version there is, and the records of `ids` with a newer one than `latest`."""
    if latest < 0:
        newest: int = connection.execute(_LATEST).fetchone()[0]
        return newest, list(_load(connection, list(ids)).values())
    # Not all of them again: what a big group waits for stays linear in its members.
    rows = connection.execute(_SINCE, (latest,)).fetchall()
    changed = [id for _, id in rows if id in ids]
    return (rows[-1][0] if rows else latest), list(_load(connection, changed).values())
