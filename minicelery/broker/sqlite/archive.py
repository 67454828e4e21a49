"""Documents in SQLite: a topic that does not expire; see `minicelery.broker.archives`."""

from __future__ import annotations

import sqlite3
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minicelery.broker.sqlite.broker import SQLiteBroker

_FOR_EVER = float("inf")
_GET = "SELECT value FROM topics WHERE topic = ? AND key = ?"
_PUT = "REPLACE INTO topics (topic, key, value, expires) VALUES (?, ?, ?, ?)"


class SQLiteArchive:
    """A topic; the document without a name is its version."""

    def __init__(self, broker: SQLiteBroker, name: str) -> None:
        self._file = broker.file
        self._topic = f"archive.{name}"

    def version(self) -> str:
        return (self.get("") or b"").decode()

    def get(self, key: str) -> bytes | None:
        return self._file.read(lambda connection: self._one(connection, key))

    def read(self) -> tuple[str, dict[str, bytes]]:
        statement = "SELECT key, value FROM topics WHERE topic = ?"
        found: dict[str, bytes] = self._file.read(
            lambda connection: dict(connection.execute(statement, (self._topic,)))
        )
        return found.pop("", b"").decode(), found

    news = read

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            there = self._one(connection, key)
            if there == new:
                return True
            if there != old:
                return False
            if new is None:
                connection.execute("DELETE FROM topics WHERE topic = ? AND key = ?", (self._topic, key))
            else:
                connection.execute(_PUT, (self._topic, key, new, _FOR_EVER))
            connection.execute(_PUT, (self._topic, "", uuid.uuid4().hex.encode(), _FOR_EVER))
            return True

        return self._file.write(work)

    def _one(self, connection: sqlite3.Connection, key: str) -> bytes | None:
        row = connection.execute(_GET, (self._topic, key)).fetchone()
        return None if row is None else bytes(row[0])
