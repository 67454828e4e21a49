"""Queues in a database file."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minicelery.broker import LEASE, Backend
from minicelery.broker.sqlite.consumer import CHUNK, RENEW, SQLiteConsumer
from minicelery.broker.sqlite.dead import settle
from minicelery.broker.sqlite.file import File
from minicelery.broker.sqlite.limits import SQLiteGates, SQLiteLimits
from minicelery.broker.sqlite.post import SQLitePost, drop_letters
from minicelery.broker.sqlite.rows import ADD, raw, rows_of
from minicelery.broker.url import ServerURL
from minicelery.exceptions import BrokerUnavailable
from minicelery.limits import LEAD
from minicelery.message import DeadLetter, Message

TENDING_GAP = 3.0
"""Seconds without `tend` after which leases are not trusted: nobody could renew them."""


class SQLiteBroker:
    """The broker; see `minicelery.broker.Broker`."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any]) -> None:
        self.url = server.masked
        self.file = File(server, options, BrokerUnavailable)
        self.place = f"sqlite:{os.path.basename(self.file.path)}"
        self._lease = float(options.get("lease", LEASE))
        self.post = SQLitePost(self.file, self.url)
        self._looked_at = ""  # the last line that was looked after

    def publish(
        self, messages: Sequence[Message], *, deadline: float | None = None, attempts: int | None = None
    ) -> dict[str, str] | None:
        """See `Broker.publish`.  Waiting for another's lock is part of one attempt."""
        if not messages:
            return None
        rows = rows_of(messages)
        for message in messages:
            if message.unique is not None:
                return self.file.write(lambda connection: _add_unique(connection, messages, rows), deadline)
        self.file.write(lambda connection: connection.executemany(ADD, rows), deadline)
        return None

    def limits(self, *, parks: bool) -> SQLiteLimits:
        """Where the limits are kept: in the file."""
        return SQLiteLimits(self.file, parks)

    def consumer(self, queues: Sequence[str], name: str, backend: Backend | None) -> SQLiteConsumer:
        return SQLiteConsumer(self.file, self.post, queues, name, backend, self._lease)

    def tend(self, queues: Sequence[str], alive: Sequence[str]) -> list[str]:
        now = time.time()

        def work(connection: sqlite3.Connection) -> list[str]:
            _drop_expired(connection, now)
            connection.executemany(RENEW, [(name, now + self._lease) for name in alive])
            self._look_after_lines(connection, now)
            row = connection.execute("SELECT tended, reap_from FROM tending").fetchone()
            gap = min(TENDING_GAP, self._lease / 2)
            trusted = row is not None and 0 <= now - row[0] <= gap
            reap_from = row[1] if trusted else now + self._lease
            connection.execute(
                "REPLACE INTO tending (one, tended, reap_from) VALUES (1, ?, ?)", (now, reap_from)
            )
            return _ended(connection, queues, now) if now >= reap_from else []

        return self.file.write(work)

    def _look_after_lines(self, connection: sqlite3.Connection, now: float) -> None:
        gates = SQLiteGates(connection, now)
        gates.sweep()
        last = ""
        for last in gates.lines(self._looked_at):
            gates.look(last, now)
        self._looked_at = last

    def size(self, queue: str) -> int:
        condition = "queue = ? AND consumer IS NULL"
        return self._count(f"{condition} AND due IS NULL", queue) + self._count(
            f"{condition} AND due <= ?", queue, time.time()
        )

    def delayed(self, queue: str) -> int:
        return self._count("queue = ? AND due > ?", queue, time.time())

    def purge(self, queue: str) -> int:
        which = "messages WHERE queue = ? AND consumer IS NULL"

        def work(connection: sqlite3.Connection) -> int:
            gates = SQLiteGates(connection, time.time())
            for (name,) in connection.execute(f"SELECT DISTINCT gate FROM {which} AND gate > ''", (queue,)):
                gates.purged(name)
            connection.execute(
                f"DELETE FROM uniques WHERE holder IN (SELECT message_id FROM {which})", (queue,)
            )
            return connection.execute(f"DELETE FROM {which}", (queue,)).rowcount

        return self.file.write(work)

    def dead(self, queue: str) -> int:
        statement = "SELECT count(*) FROM dead WHERE queue = ?"
        count: int = self.file.read(lambda connection: connection.execute(statement, (queue,)).fetchone()[0])
        return count

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        statement = (
            "SELECT reason, rejected, message_id, task, envelope, body FROM dead"
            " WHERE queue = ? ORDER BY id DESC LIMIT ?"
        )
        rows = self.file.read(lambda connection: connection.execute(statement, (queue, limit)).fetchall())
        return [
            DeadLetter(reason, rejected, raw(envelope, body), id, task)
            for reason, rejected, id, task, envelope, body in rows
        ]

    def replay_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        return self.file.write(lambda connection: settle(connection, queue, ids, replay=True))

    def discard_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        return self.file.write(lambda connection: settle(connection, queue, ids, replay=False))

    def remember(self, topic: str, key: str, ttl: float, value: bytes = b"") -> None:
        row = (topic, key, value, time.time() + ttl)
        statement = "REPLACE INTO topics (topic, key, value, expires) VALUES (?, ?, ?, ?)"
        self.file.write(lambda connection: connection.execute(statement, row))

    def remember_all(self, topic: str, records: Mapping[str, bytes], ttl: float) -> None:
        until = time.time() + ttl
        rows = [(topic, key, value, until) for key, value in records.items()]
        statement = "REPLACE INTO topics (topic, key, value, expires) VALUES (?, ?, ?, ?)"
        self.file.write(lambda connection: connection.executemany(statement, rows))

    def lead(self, name: str, holder: str, seconds: float) -> str:
        return self.limits(parks=True).claim(LEAD + name, holder, seconds)

    def leader(self, name: str) -> str:
        statement = "SELECT max(holder) FROM uniques WHERE key = ? AND until > ?"
        key = LEAD + name
        return self.file.read(
            lambda connection: str(connection.execute(statement, (key, time.time())).fetchone()[0] or "")
        )

    def step_down(self, name: str, holder: str) -> None:
        self.limits(parks=True).free(holder, [LEAD + name])

    def recall(self, topic: str) -> dict[str, bytes]:
        statement = "SELECT key, value FROM topics WHERE topic = ? AND expires > ?"
        return dict(
            self.file.read(lambda connection: connection.execute(statement, (topic, time.time())).fetchall())
        )

    def close(self) -> None:
        self.post.close()
        self.file.close()

    def _count(self, condition: str, *values: object) -> int:
        statement = f"SELECT count(*) FROM messages WHERE {condition}"
        return self.file.read(lambda connection: int(connection.execute(statement, values).fetchone()[0]))


def _add_unique(
    connection: sqlite3.Connection, messages: Sequence[Message], rows: Sequence[tuple[Any, ...]]
) -> dict[str, str] | None:
    """Add the rows of messages whose unique key is free; of the others, who holds it."""
    gates = SQLiteGates(connection, time.time())
    there: dict[str, str] = {}
    for message, row in zip(messages, rows, strict=True):
        if message.unique is not None:
            key, seconds = message.unique
            holder = gates.claim(key, message.id, seconds)
            if holder != message.id:
                there[message.id] = holder
                continue
        connection.execute(ADD, row)
    return there or None


def _drop_expired(connection: sqlite3.Connection, now: float) -> None:
    connection.execute(
        "DELETE FROM results WHERE version IN"
        f" (SELECT version FROM results WHERE expires <= ? LIMIT {CHUNK})",
        (now,),
    )
    connection.execute("DELETE FROM topics WHERE expires <= ?", (now,))
    drop_letters(connection, now)
    connection.execute(
        "DELETE FROM leases WHERE until <= ? AND consumer NOT IN"
        " (SELECT consumer FROM messages WHERE consumer IS NOT NULL)",
        (now,),
    )


def _ended(connection: sqlite3.Connection, queues: Sequence[str], now: float) -> list[str]:
    """The consumers that hold messages of `queues` and have no lease any more."""
    rows = connection.execute(
        "SELECT DISTINCT messages.consumer FROM messages LEFT JOIN leases USING (consumer)"
        " WHERE messages.consumer IS NOT NULL AND (until IS NULL OR until <= ?)"
        f" AND queue IN ({','.join('?' * len(queues))})",
        (now, *queues),
    )
    return [name for (name,) in rows.fetchall()]
