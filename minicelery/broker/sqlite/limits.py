"""Limits in a database file."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator, Sequence

from minicelery.broker.gates import Gate, Gates
from minicelery.broker.sqlite.file import File
from minicelery.limits import HELD, ONCE, Ask, Wait

FAR = 1e18
"""When what waits in a line is due."""
KEPT = 86400.0
"""Seconds that a gate is remembered which nobody asks for."""
_SWEEP = 0.01
_LOOKS = 100

_LOAD = "SELECT interval, next, tail, late, size, took, seen FROM gates WHERE name = ?"
_SAVE = (
    "REPLACE INTO gates (name, interval, next, tail, late, size, took, seen, used)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PARK = (
    "UPDATE messages SET consumer = NULL, receipt = NULL, started = 0, reason = NULL,"
    f" due = {FAR!r}, gate = ?, turn = ? WHERE id = ?"
)
_FIRST = "SELECT id, message_id FROM messages WHERE gate = ? ORDER BY turn, id LIMIT 1"
_CALL = (
    "UPDATE messages AS mine SET gate = NULL, due = NULL,"
    " position = (SELECT coalesce(min(position), 0) - 1 FROM messages"
    " WHERE queue = mine.queue AND priority = mine.priority AND consumer IS NULL AND due IS NULL)"
    " WHERE id = ?"
)
_CALL_LATER = "UPDATE messages SET gate = NULL, due = ?, position = -1 WHERE id = ?"
_NEXT_LINE = "SELECT min(gate) FROM messages WHERE gate > ?"


class SQLiteGates(Gates):
    """What limits are kept in, within the transaction that is open."""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._execute = connection.execute
        self._now = now

    def load(self, name: str) -> Gate:
        row = self._execute(_LOAD, (name,)).fetchone()
        return Gate(*row) if row is not None else Gate()

    def save(self, name: str, gate: Gate) -> None:
        self._execute(
            _SAVE,
            (name, gate.interval, gate.next, gate.tail, gate.late, gate.size, gate.took, gate.seen, self._now),
        )  # fmt: skip

    def places(self, name: str, now: float) -> int:
        self._execute("DELETE FROM places WHERE gate = ? AND until <= ?", (name, now))
        taken: int = self._execute("SELECT count(*) FROM places WHERE gate = ?", (name,)).fetchone()[0]
        return taken

    def has_place(self, name: str, holder: str) -> bool:
        statement = "SELECT 1 FROM places WHERE gate = ? AND holder = ?"
        return self._execute(statement, (name, holder)).fetchone() is not None

    def take_place(self, name: str, holder: str, until: float) -> None:
        self._execute("REPLACE INTO places (gate, holder, until) VALUES (?, ?, ?)", (name, holder, until))

    def leave_place(self, name: str, holder: str) -> None:
        self._execute("DELETE FROM places WHERE gate = ? AND holder = ?", (name, holder))

    def prolong(self, name: str, until: float) -> None:
        self._execute("UPDATE places SET until = max(until, ?) WHERE gate = ?", (until, name))

    def has_line(self, name: str) -> bool:
        return self._execute(_FIRST, (name,)).fetchone() is not None

    def call(self, name: str, due: float | None) -> str | None:
        row = self._execute(_FIRST, (name,)).fetchone()
        if row is None:
            return None
        id, holder = row
        if due is None:
            self._execute(_CALL, (id,))
        else:
            self._execute(_CALL_LATER, (due, id))
        called: str = holder
        return called

    def forget(self, key: str, holder: str) -> None:
        self._execute("DELETE FROM uniques WHERE key = ? AND holder = ?", (key, holder))

    def claim(self, key: str, holder: str, seconds: float) -> str:
        """Who holds the key: `holder`, unless another did before."""
        row = self._execute(
            "SELECT holder FROM uniques WHERE key = ? AND until > ?", (key, self._now)
        ).fetchone()
        if row is not None and (row[0] != holder or key.startswith(ONCE)):
            other: str = HELD if row[0] == holder else row[0]
            return other
        self._execute(
            "REPLACE INTO uniques (key, holder, until) VALUES (?, ?, ?)", (key, holder, self._now + seconds)
        )
        return holder

    def park(self, id: int, name: str, turn: float) -> None:
        """Have the message of that row wait in the line before a gate."""
        self._execute(_PARK, (name, turn, id))
        self.let_in(name, self._now)

    def lines(self, after: str) -> Iterator[str]:
        """The gates with a line, in the order of their names; some of them, if they are many."""
        for _ in range(_LOOKS):
            row = self._execute(_NEXT_LINE, (after,)).fetchone()
            if row[0] is None:
                return
            yield (after := row[0])

    def sweep(self) -> None:
        """Drop what nobody needs any more."""
        self._execute("DELETE FROM uniques WHERE until <= ?", (self._now,))
        self._execute("DELETE FROM places WHERE until <= ?", (self._now - KEPT,))
        self._execute(
            "DELETE FROM gates WHERE used <= ? AND max(next, tail, late) <= ?", (self._now - KEPT, self._now)
        )


class SQLiteLimits:
    """The store of limits; see `minicelery.broker.Limits`."""

    def __init__(self, file: File, parks: bool) -> None:
        self.parks = parks
        self._file = file

    def admit(self, ask: Ask) -> Wait | None:
        def work(connection: sqlite3.Connection) -> Wait | None:
            now = time.time()
            gates = SQLiteGates(connection, now)
            if not self.parks and random.random() < _SWEEP:
                gates.sweep()  # no agent looks after this file
            return gates.admit(ask, now, parks=self.parks)

        return self._file.write(work)

    def renew(self, places: Sequence[tuple[str, str, float]]) -> None:
        now = time.time()
        self._file.write(lambda connection: SQLiteGates(connection, now).renew(places, now))

    def free(self, holder: str, release: Sequence[str], took: float = 0.0) -> None:
        now = time.time()
        self._file.write(lambda connection: SQLiteGates(connection, now).free(holder, release, now, took))

    def claim(self, key: str, holder: str, seconds: float) -> str:
        now = time.time()
        return self._file.write(lambda connection: SQLiteGates(connection, now).claim(key, holder, seconds))

    def close(self) -> None:
        self._file.close()
