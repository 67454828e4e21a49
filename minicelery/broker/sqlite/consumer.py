"""One child's hold on queues in a file: settle and fetch are one transaction."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minicelery.broker import Backend, Leased
from minicelery.broker.chords import Apart
from minicelery.broker.post import Outbox, Posting
from minicelery.broker.sqlite.backend import SQLiteBackend, store_records
from minicelery.broker.sqlite.file import File, Watch
from minicelery.broker.sqlite.limits import SQLiteGates
from minicelery.broker.sqlite.post import SQLitePost, write_letters
from minicelery.broker.sqlite.rows import ADD, delivery_of, row_of, rows_of
from minicelery.exceptions import MiniCeleryError
from minicelery.message import Delivery, Outcome, Record, Verdict

log = logging.getLogger(__name__)

CHUNK = 1000
"""Rows that one transaction of regular work may touch."""

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
RENEW = "REPLACE INTO leases (consumer, until) VALUES (?, ?)"
_MARK = "UPDATE messages SET started = 1 WHERE consumer = ? AND receipt = ?"
_MARK_WITH_REASON = "UPDATE messages SET started = 1, reason = ? WHERE consumer = ? AND receipt = ?"


class SQLiteConsumer(Leased, Posting):
    """The consumer; see `minicelery.broker.Consumer`."""

    def __init__(
        self,
        file: File,
        post: SQLitePost,
        queues: Sequence[str],
        name: str,
        backend: Backend | None,
        lease: float,
    ) -> None:
        self.name = name
        self._file = file
        self._post = post
        self._outbox = Outbox()
        self._queues = deque(queues)
        self._skipped: list[str] = []
        self._lease = lease
        self.renew = lease / 3
        self._renew_at = 0.0
        self._watch = Watch(file)
        self._shared = isinstance(backend, SQLiteBackend) and backend.file.path == file.path
        self._apart = Apart(backend) if backend is not None and not self._shared else None
        self._receipt = 0  # the last one given

    def swap(self, done: Sequence[Outcome], want: int, wait: float) -> list[Delivery]:
        until = time.monotonic() + wait
        letters = self._letters() if self._outbox.waiting else ()
        if done or letters:
            self._keep_elsewhere(done)
            fresh = self._turn(done, want, letters)
            if self._apart is not None and done:
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
            connection.execute(RENEW, (self.name, now + self._lease))
            connection.executemany(_MARK, marks)
            if self._shared:
                store_records(connection, records, now)
            if letters:
                write_letters(connection, letters)

        letters = self._letters() if self._outbox.waiting else ()
        self._file.write(work)
        if records and self._apart is not None:
            self._apart.backend.store(records)

    def adopt(self, name: str, started: Mapping[int, str] | None = None) -> list[Delivery]:
        now = time.time()
        marks = [(reason, self.name, receipt) for receipt, reason in (started or {}).items()]

        def work(connection: sqlite3.Connection) -> list[Any]:
            connection.execute(RENEW, (self.name, now + self._lease))
            connection.execute("UPDATE messages SET consumer = ? WHERE consumer = ?", (self.name, name))
            connection.executemany(_MARK_WITH_REASON, marks)
            return connection.execute(_READ_HELD, (now, self.name, 0)).fetchall()

        rows = self._file.write(work)
        if rows:
            self._receipt = max(rows[-1][0], self._receipt)
        return [delivery_of(row) for row in rows]

    def skip(self, queues: Collection[str]) -> None:
        every = [*self._queues, *self._skipped]
        self._queues = deque(queue for queue in every if queue not in queues)
        self._skipped = [queue for queue in every if queue in queues]

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

    def _letters(self) -> Sequence[tuple[Any, ...]]:
        """The rows of the letters that leave with this trip; none where nobody listens."""
        letters = self._outbox.take()
        try:
            return self._post.rows(letters)
        except MiniCeleryError as error:
            self._outbox.drop(letters, error)
            return ()

    def _turn(
        self, done: Sequence[Outcome], want: int, letters: Sequence[tuple[Any, ...]] = ()
    ) -> list[Delivery]:
        """Settle and fetch, in one transaction."""
        # Encoded before the file is locked, as deliveries are decoded after.
        follow_ups = {o.delivery.receipt: rows_of(o.publish) for o in done if o.publish}
        if want > 0:
            self._queues.rotate(-1)

        def work(connection: sqlite3.Connection) -> list[Any]:
            now = time.time()
            if done:
                self._settle(connection, done, follow_ups, now)
            if letters:
                write_letters(connection, letters)
            if want <= 0:
                return []
            return self._take(connection, want, now)

        return [delivery_of(row) for row in self._file.write(work)]

    def _keep_elsewhere(self, done: Sequence[Outcome]) -> None:
        """Store the records of what is still held, where the results are not in this file."""
        if self._apart is None or not done:
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
            connection.executemany(ADD, rows)
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
            connection.execute(RENEW, (self.name, now + self._lease))
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
