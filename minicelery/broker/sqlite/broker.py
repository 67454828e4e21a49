"""Queues in a database file: settle and fetch are one transaction."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from minicelery.broker import LEASE, Backend, Leased
from minicelery.broker.chords import Apart
from minicelery.broker.sqlite.backend import SQLiteBackend, store_records
from minicelery.broker.sqlite.file import File, Watch
from minicelery.broker.sqlite.limits import SQLiteGates, SQLiteLimits
from minicelery.broker.sqlite.rows import delivery_of, raw, row_of, rows_of
from minicelery.broker.url import ServerURL
from minicelery.exceptions import BrokerUnavailable, MiniCeleryError
from minicelery.limits import LEAD
from minicelery.message import DeadLetter, Delivery, Message, Outcome, Record, Verdict

log = logging.getLogger(__name__)

TENDING_GAP = 3.0
"""Seconds without `tend` after which leases are not trusted: nobody could renew them."""
CHUNK = 1000
"""Rows that one transaction of regular work may touch."""

_ADD = (
    "INSERT INTO messages (queue, priority, due, message_id, task, envelope, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_RELEASE = (
    "UPDATE messages SET due = NULL WHERE id IN"
    f" (SELECT id FROM messages WHERE queue = ? AND due <= ? ORDER BY due LIMIT {CHUNK})"
)
_NEXT_DUE = "SELECT min(due) FROM messages WHERE queue = ? AND due IS NOT NULL"
_READY = (
    "SELECT priority, id FROM messages WHERE queue = ? AND consumer IS NULL AND due IS NULL"
    " ORDER BY priority, position, id LIMIT ?"
)
_HOLD = "UPDATE messages SET consumer = ?, receipt = ? WHERE id = ?"
# By the index `held`, so in the order of the fetch.
_READ_HELD = (
    "SELECT receipt, queue, priority, message_id, task, envelope, body, deliveries, started, reason, turn,"
    " EXISTS (SELECT 1 FROM topics WHERE topic = 'revoked' AND key = message_id AND expires > ?)"
    " FROM messages WHERE consumer = ? AND receipt >= ? ORDER BY receipt"
)
_HELD = "SELECT receipt, id FROM messages WHERE consumer = ?"
_DROP = "DELETE FROM messages WHERE id = ?"
_BURY = (
    "INSERT INTO dead (queue, reason, rejected, message_id, task, envelope, body)"
    " SELECT queue, ?, ?, message_id, task, envelope, body FROM messages WHERE id = ?"
)
_GIVE_BACK = (
    "UPDATE messages AS mine SET consumer = NULL, receipt = NULL, started = 0, reason = NULL,"
    " deliveries = max(deliveries, ?), position = (SELECT coalesce(min(position), 0) - 1 FROM messages"
    " WHERE queue = mine.queue AND priority = mine.priority AND consumer IS NULL AND due IS NULL)"
    " WHERE id = ?"
)
_RENEW = "REPLACE INTO leases (consumer, until) VALUES (?, ?)"
_MARK = "UPDATE messages SET started = 1 WHERE consumer = ? AND receipt = ?"
_MARK_WITH_REASON = "UPDATE messages SET started = 1, reason = ? WHERE consumer = ? AND receipt = ?"


class SQLiteBroker:
    """The broker; see `minicelery.broker.Broker`."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any]) -> None:
        self.url = server.masked
        self.file = File(server, options, BrokerUnavailable)
        self.place = f"sqlite:{os.path.basename(self.file.path)}"
        self._lease = float(options.get("lease", LEASE))
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
        self.file.write(lambda connection: connection.executemany(_ADD, rows), deadline)
        return None

    def limits(self, *, parks: bool) -> SQLiteLimits:
        """Where the limits are kept: in the file."""
        return SQLiteLimits(self.file, parks)

    def consumer(self, queues: Sequence[str], name: str, backend: Backend | None) -> SQLiteConsumer:
        return SQLiteConsumer(self.file, queues, name, backend, self._lease)

    def tend(self, queues: Sequence[str], alive: Sequence[str]) -> list[str]:
        now = time.time()

        def work(connection: sqlite3.Connection) -> list[str]:
            _drop_expired(connection, now)
            connection.executemany(_RENEW, [(name, now + self._lease) for name in alive])
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
        self.file.close()

    def _count(self, condition: str, *values: object) -> int:
        statement = f"SELECT count(*) FROM messages WHERE {condition}"
        return self.file.read(lambda connection: int(connection.execute(statement, values).fetchone()[0]))


class SQLiteConsumer(Leased):
    """The consumer; see `minicelery.broker.Consumer`."""

    def __init__(
        self, file: File, queues: Sequence[str], name: str, backend: Backend | None, lease: float
    ) -> None:
        self.name = name
        self._file = file
        self._queues = deque(queues)
        self._lease = lease
        self.renew = lease / 3
        self._renew_at = 0.0
        self._watch = Watch(file)
        self._shared = isinstance(backend, SQLiteBackend) and backend.file.path == file.path
        self._apart = Apart(backend) if backend is not None and not self._shared else None
        self._receipt = 0  # the last one given

    def swap(self, done: Sequence[Outcome], want: int, wait: float) -> list[Delivery]:
        until = time.monotonic() + wait
        if done:
            self._keep_elsewhere(done)
            fresh = self._turn(done, want)
            if self._apart is not None:
                self._apart.settled()
        else:
            fresh = self._turn((), want) if want > 0 and self._next_at() <= 0 else []
        if not fresh and want > 0 and wait > 0:
            fresh = self._wait(want, until)
        if fresh:
            self._watch.found()
        return fresh

    def extend(self, held: Sequence[Delivery], records: Sequence[Record] = ()) -> None:
        now = time.time()
        marks = [(self.name, delivery.receipt) for delivery in held]

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_RENEW, (self.name, now + self._lease))
            connection.executemany(_MARK, marks)
            if self._shared:
                store_records(connection, records, now)

        self._file.write(work)
        if records and self._apart is not None:
            self._apart.backend.store(records)

    def adopt(self, name: str, started: Mapping[int, str] | None = None) -> list[Delivery]:
        now = time.time()
        marks = [(reason, self.name, receipt) for receipt, reason in (started or {}).items()]

        def work(connection: sqlite3.Connection) -> list[Any]:
            connection.execute(_RENEW, (self.name, now + self._lease))
            connection.execute("UPDATE messages SET consumer = ? WHERE consumer = ?", (self.name, name))
            connection.executemany(_MARK_WITH_REASON, marks)
            return connection.execute(_READ_HELD, (now, self.name, 0)).fetchall()

        rows = self._file.write(work)
        if rows:
            self._receipt = max(rows[-1][0], self._receipt)
        return [delivery_of(row) for row in rows]

    def wake(self) -> None:
        self._watch.wake()

    def close(self) -> None:
        def work(connection: sqlite3.Connection) -> None:
            held = sorted(connection.execute(_HELD, (self.name,)).fetchall(), reverse=True)
            connection.executemany(_GIVE_BACK, [(0, id) for _, id in held])
            connection.execute("DELETE FROM leases WHERE consumer = ?", (self.name,))

        try:
            self._file.write(work)
        except MiniCeleryError as error:
            log.warning(
                "consumer %s could not give back what it holds; that comes back when its lease ends: %s",
                self.name,
                error,
            )

    def _turn(self, done: Sequence[Outcome], want: int) -> list[Delivery]:
        """Settle and fetch, in one transaction."""
        # Encoded before the file is locked, as deliveries are decoded after.
        follow_ups = {o.delivery.receipt: rows_of(o.publish) for o in done if o.publish}
        if want > 0:
            self._queues.rotate(-1)

        def work(connection: sqlite3.Connection) -> list[Any]:
            now = time.time()
            if done:
                self._settle(connection, done, follow_ups, now)
            if want <= 0:
                return []
            return self._take(connection, want, now)

        return [delivery_of(row) for row in self._file.write(work)]

    def _keep_elsewhere(self, done: Sequence[Outcome]) -> None:
        """Store the records of what is still held, where the results are not in this file."""
        if self._apart is None:
            return
        held = dict(self._file.read(lambda connection: connection.execute(_HELD, (self.name,)).fetchall()))
        if still := [outcome for outcome in done if outcome.delivery.receipt in held]:
            self._apart.store(still)

    def _settle(
        self,
        connection: sqlite3.Connection,
        done: Sequence[Outcome],
        follow_ups: Mapping[int, list[tuple[Any, ...]]],
        now: float,
    ) -> None:
        held = dict(connection.execute(_HELD, (self.name,)).fetchall())
        records, rows, drops, buried, given_back, limited = [], [], [], [], [], []
        for outcome in done:
            delivery = outcome.delivery
            id = held.pop(delivery.receipt, None)
            if id is None:
                continue
            if outcome.record is not None:
                records.append(outcome.record)
            if outcome.more:
                records += outcome.more
            if outcome.publish:
                rows += follow_ups[delivery.receipt]
            if outcome.release or outcome.park is not None:
                limited.append((id, outcome))
                if outcome.park is not None:
                    continue
            if outcome.verdict is Verdict.REQUEUE or outcome.verdict is Verdict.PARK:
                given_back.append((delivery.receipt, delivery.deliveries, id))
                continue
            if outcome.verdict is Verdict.REJECT:
                buried.append((outcome.reason or "rejected", now, id))
            drops.append((id,))
        if records and self._shared:
            store_records(connection, records, now, lambda body: rows.append(row_of(body, now)))
        if rows:
            connection.executemany(_ADD, rows)
        if buried:
            connection.executemany(_BURY, buried)
        connection.executemany(_DROP, drops)
        if given_back:
            # The last fetched first: they stand in their old order again.
            given_back.sort(reverse=True)
            connection.executemany(_GIVE_BACK, [item[1:] for item in given_back])
        if limited:
            gates = SQLiteGates(connection, now)
            for id, outcome in limited:
                if outcome.park is not None:
                    gates.park(id, *outcome.park)
                gates.free(outcome.delivery.message.id, outcome.release, now)

    def _take(self, connection: sqlite3.Connection, want: int, now: float) -> list[Any]:
        found: list[tuple[int, int]] = []
        for queue in self._queues:
            connection.execute(_RELEASE, (queue, now))
            found += connection.execute(_READY, (queue, want)).fetchall()
        if not found:
            return []
        if len(self._queues) > 1:
            found.sort(key=lambda item: item[0])
            del found[want:]
        if (clock := time.monotonic()) >= self._renew_at:
            connection.execute(_RENEW, (self.name, now + self._lease))
            self._renew_at = clock + self._lease / 4
        # Two statements for the batch: a quarter faster than one with RETURNING per message.
        # Receipts by the clock differ between consumers too: writers take turns.
        first = max(self._receipt + 1, int(now * 1e6))
        holds = [(self.name, first + turn, id) for turn, (_, id) in enumerate(found)]
        self._receipt = holds[-1][1]
        connection.executemany(_HOLD, holds)
        return connection.execute(_READ_HELD, (now, self.name, first)).fetchall()

    def _wait(self, want: int, until: float) -> list[Delivery]:
        while True:
            version = self._file.version()
            if (left := self._next_at()) <= 0 and (fresh := self._turn((), want)):
                return fresh
            end = min(until, time.monotonic() + max(left, 0.0))
            if self._watch.wait(version, end) or time.monotonic() >= until:
                return []

    def _next_at(self) -> float:
        """Seconds until a message can be fetched, 0 or less for now; without a write lock."""

        def work(connection: sqlite3.Connection) -> float:
            earliest = float("inf")
            for queue in self._queues:
                if connection.execute(_READY, (queue, 1)).fetchone() is not None:
                    return 0.0
                due = connection.execute(_NEXT_DUE, (queue,)).fetchone()[0]
                if due is not None:
                    earliest = min(earliest, due)
            return earliest - time.time()

        return self._file.read(work)


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
        connection.execute(_ADD, row)
    return there or None


def _drop_expired(connection: sqlite3.Connection, now: float) -> None:
    connection.execute(
        "DELETE FROM results WHERE version IN"
        f" (SELECT version FROM results WHERE expires <= ? LIMIT {CHUNK})",
        (now,),
    )
    connection.execute("DELETE FROM topics WHERE expires <= ?", (now,))
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
