"""Letters in a database file: rows that every listener reads, and that go after a minute.

While nobody listens nothing is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from minicelery.broker.post import AT_ONCE, Box, Letter, Listening, Open, Unreadable
from minicelery.broker.sqlite.file import File, Watch
from minicelery.exceptions import BrokerUnavailable, MiniCeleryError
from minicelery.message import new_id
from minicelery.serialization import encode_json

KEPT = 60.0
"""Seconds that a letter is kept, and that a listener is believed in after its last sign of life."""
MOST = 2000
"""Letters that are kept: a file that has grown never shrinks."""
RENEW = KEPT / 3
"""Seconds after which it gives the next one."""

_WANTED = "SELECT 1 FROM listeners WHERE (exchange = ? OR queue = ?) AND until > ? LIMIT 1"
_WRITE = (
    "INSERT INTO letters (exchange, routing_key, headers, persistent, sent, body) VALUES (?, ?, ?, ?, ?, ?)"
)
_LATEST = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'letters'"
_LISTEN = "INSERT INTO listeners (listener, exchange, queue, until) VALUES (?, ?, ?, ?)"
_STAY = "UPDATE listeners SET until = ? WHERE listener = ? AND until > ?"
_LEAVE = "DELETE FROM listeners WHERE listener = ?"
_UNHEARD = "DELETE FROM letters WHERE NOT EXISTS (SELECT 1 FROM listeners)"


class SQLitePost:
    """See `Post`."""

    def __init__(self, file: File, url: str) -> None:
        self.file = file
        self.url = url
        self._open = Open()

    def send(self, letters: Sequence[Letter]) -> int | None:
        """See `Post.send`."""
        if not (rows := self.rows(letters)):
            return 0
        self.file.write(lambda connection: write_letters(connection, rows))
        return None  # who was killed is among the listeners for a while

    def rows(self, letters: Sequence[Letter]) -> list[tuple[Any, ...]]:
        """The rows of those letters that somebody may want."""
        now = time.time()
        places = {(one.exchange, "" if one.exchange else one.routing_key) for one in letters}

        def look(connection: sqlite3.Connection) -> set[tuple[str, str]]:
            return {
                (exchange, queue)
                for exchange, queue in places
                if connection.execute(_WANTED, (exchange, queue, now)).fetchone() is not None
            }

        wanted = self.file.read(look) if places else set()
        return [
            (one.exchange, one.routing_key, encode_json(one.headers), one.persistent, now, one.body)
            for one in letters
            if (one.exchange, "" if one.exchange else one.routing_key) in wanted
        ]

    def listen(self, boxes: Sequence[Box]) -> SQLiteListening:
        """See `Post.listen`."""
        listening = SQLiteListening(self, boxes)
        self._open.add(listening)
        return listening

    def close(self) -> None:
        """See `Post.close`."""
        self._open.end()


def write_letters(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Have all listeners find these letters, once the transaction is committed."""
    connection.executemany(_WRITE, rows)


def drop_letters(connection: sqlite3.Connection, now: float) -> None:
    """Drop old letters, and listeners that are gone."""
    connection.execute("DELETE FROM letters WHERE sent <= ?", (now - KEPT,))
    connection.execute("DELETE FROM letters WHERE id <= (SELECT max(id) FROM letters) - ?", (MOST,))
    connection.execute("DELETE FROM listeners WHERE until <= ?", (now,))


class SQLiteListening(Listening):
    """See `Listening`: it looks at the file's version, as a consumer does that waits."""

    def __init__(self, post: SQLitePost, boxes: Sequence[Box]) -> None:
        self._file = post.file
        self._watch = Watch(post.file)
        self._boxes = tuple(boxes)
        self._name = new_id()
        self._unreadable = Unreadable(post.url)
        self._process = os.getpid()
        self._ended = False
        exchanges = sorted({box.exchange for box in boxes})
        self._values = (*exchanges, *(box.name for box in boxes))
        self._since = (
            "SELECT id, exchange, routing_key, headers, persistent, body FROM letters"
            f" WHERE id > ? AND id <= ? AND (exchange IN ({','.join('?' * len(exchanges))})"
            f" OR exchange = '' AND routing_key IN ({','.join('?' * len(boxes))}))"
            f" ORDER BY id LIMIT {AT_ONCE}"
        )
        self._renew_at = time.monotonic() + RENEW
        self._last: int = self._file.write(self._begin)

    def _begin(self, connection: sqlite3.Connection) -> int:
        now = time.time()
        drop_letters(connection, now)
        rows = [(self._name, box.exchange, box.name, now + KEPT) for box in self._boxes]
        connection.executemany(_LISTEN, rows)
        latest: int = connection.execute(_LATEST).fetchone()[0]
        return latest

    # -- taking ----------------------------------------------------------------------------

    def take(self, wait: float) -> list[Letter]:
        """See `Listening.take`."""
        end = time.monotonic() + wait
        while True:
            if self._ended:
                raise BrokerUnavailable("the broker was closed: nothing is heard any more")
            if time.monotonic() >= self._renew_at:
                self._stay()
            version = self._file.version()
            if found := self._read():
                self._watch.found()
                return found
            if time.monotonic() >= end:
                return []
            if self._watch.wait(version, min(end, self._renew_at)) and not self._ended:
                return []

    def _stay(self) -> None:
        """Say that it listens still.  Raises BrokerUnavailable where it was given up."""

        def work(connection: sqlite3.Connection) -> int:
            now = time.time()
            kept = connection.execute(_STAY, (now + KEPT, self._name, now)).rowcount
            drop_letters(connection, now)
            return kept

        if not self._file.write(work):
            raise BrokerUnavailable(
                f"nobody has listened here for {KEPT:.0f} s, and letters may have been missed: listen anew"
            )
        self._renew_at = time.monotonic() + RENEW

    def _read(self) -> list[Letter]:
        last, rows = self._file.read(self._news)
        self._last = last
        found: list[Letter] = []
        for _, exchange, key, headers, persistent, body in rows:
            letter = Letter(exchange, key, body, {}, bool(persistent))
            mine = next((mine for box in self._boxes if (mine := box.found(letter)) is not None), None)
            if mine is None:
                continue
            try:
                mine.headers = json.loads(headers)
            except ValueError as error:
                self._unreadable.add(exchange, error)
                continue
            found += self._unreadable.read(mine)
        return found

    def _news(self, connection: sqlite3.Connection) -> tuple[int, list[Any]]:
        latest: int = connection.execute(_LATEST).fetchone()[0]
        if latest <= self._last:
            return self._last, []
        rows = connection.execute(self._since, (self._last, latest, *self._values)).fetchall()
        return (rows[-1][0] if len(rows) == AT_ONCE else latest), rows

    # -- the end ---------------------------------------------------------------------------

    def wake(self) -> None:
        """See `Listening.wake`."""
        self._watch.wake()

    def end(self) -> None:
        """See `Listening.end`."""
        self.close()
        self._watch.wake()

    def close(self) -> None:
        """See `Listening.close`."""
        if self._ended or self._process != os.getpid():
            return
        self._ended = True
        # Where that fails it is given up after a while.
        with contextlib.suppress(MiniCeleryError):
            self._file.write(self._leave, 1.0)

    def _leave(self, connection: sqlite3.Connection) -> None:
        connection.execute(_LEAVE, (self._name,))
        connection.execute(_UNHEARD)
