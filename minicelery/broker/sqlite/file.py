"""The database file: its connections, its transactions, its tables, its errors."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from minicelery.broker.url import ServerURL
from minicelery.exceptions import ImproperlyConfigured, MiniCeleryError

T = TypeVar("T")

SCHEMA_VERSION = 4
OLDEST_SQLITE = (3, 35, 0)  # RETURNING
TIMEOUT = 5.0
"""Seconds to wait for the file's write lock, all attempts together."""
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.05
"""Seconds between two looks at an idle file; 50 ms cost 0.1 % of a core."""

# `position` is 0 but for what was given back: that goes below the lowest, to the front.
# A message is delayed (`due`), held (`consumer`) or, with neither, ready.
SCHEMA = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    position INTEGER NOT NULL DEFAULT 0,
    due REAL,
    consumer TEXT,
    receipt INTEGER,
    started INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0,
    message_id TEXT NOT NULL,
    task TEXT NOT NULL,
    envelope TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX ready ON messages (queue, priority, position) WHERE consumer IS NULL AND due IS NULL;
CREATE INDEX delayed ON messages (queue, due) WHERE due IS NOT NULL;
CREATE INDEX held ON messages (consumer, receipt) WHERE consumer IS NOT NULL;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    reason TEXT NOT NULL,
    rejected REAL NOT NULL,
    message_id TEXT NOT NULL,
    task TEXT NOT NULL,
    envelope TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX dead_by_queue ON dead (queue);
CREATE TABLE leases (consumer TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE tending (one INTEGER PRIMARY KEY CHECK (one = 1), tended REAL NOT NULL, reap_from REAL NOT NULL);
CREATE TABLE topics (
    topic TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (topic, key)
) WITHOUT ROWID;
CREATE TABLE results (
    version INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT,
    document BLOB NOT NULL,
    expires REAL
);
CREATE INDEX expiring ON results (expires) WHERE expires IS NOT NULL;
"""

# What waits for a limit stands in the line of its `gate`, and is due in the far future.
SCHEMA_2 = """
ALTER TABLE messages ADD COLUMN gate TEXT;
ALTER TABLE messages ADD COLUMN turn REAL;
CREATE INDEX waiting ON messages (gate, turn) WHERE gate IS NOT NULL;
CREATE TABLE gates (
    name TEXT PRIMARY KEY, interval REAL NOT NULL, next REAL NOT NULL, tail REAL NOT NULL, late REAL NOT NULL,
    size INTEGER NOT NULL, took REAL NOT NULL, seen REAL NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX unused ON gates (used);
CREATE TABLE places (
    gate TEXT NOT NULL, holder TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (gate, holder)
) WITHOUT ROWID;
CREATE TABLE uniques (key TEXT PRIMARY KEY, holder TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX unique_until ON uniques (until);
"""
# `owed` is when a body has to be sent by somebody who is not settling its last part.  What is long is
# in a table of its own: each part that ends writes the row of its chord anew.
SCHEMA_3 = """
CREATE TABLE chords (
    id TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    sent REAL,
    place TEXT NOT NULL,
    owed REAL,
    tries INTEGER NOT NULL DEFAULT 0,
    claimed TEXT NOT NULL DEFAULT '',
    until REAL,
    expires REAL
) WITHOUT ROWID;
CREATE TABLE chord_texts (
    id TEXT PRIMARY KEY,
    members TEXT NOT NULL,
    passes INTEGER NOT NULL,
    body TEXT NOT NULL,
    payload BLOB NOT NULL,
    countdown REAL
);
CREATE INDEX owed_chords ON chords (place, owed) WHERE owed IS NOT NULL;
CREATE INDEX expiring_chords ON chords (expires) WHERE expires IS NOT NULL;
CREATE TABLE ended (chord TEXT NOT NULL, member TEXT NOT NULL, PRIMARY KEY (chord, member)) WITHOUT ROWID;
CREATE TABLE saved (id TEXT PRIMARY KEY, document BLOB NOT NULL, expires REAL) WITHOUT ROWID;
"""
# Nobody reads a letter again: it stays for a minute, in which every listener has looked.
SCHEMA_4 = """
CREATE TABLE letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    headers TEXT NOT NULL,
    persistent INTEGER NOT NULL,
    sent REAL NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX letters_by_age ON letters (sent);
CREATE TABLE listeners (
    listener TEXT NOT NULL, exchange TEXT NOT NULL, queue TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (listener, queue)
) WITHOUT ROWID;
"""
SCHEMAS = (SCHEMA, SCHEMA_2, SCHEMA_3, SCHEMA_4)
"""What makes tables of each version out of those of the one before."""

_HINTS = (
    ("locked", "another process kept it locked for longer than the `timeout` of {timeout:g} s"),
    ("locking protocol", "another process kept it locked for longer than the `timeout` of {timeout:g} s"),
    ("not a database", "the file is not an SQLite database; name another one, or move it away"),
    ("malformed", "the file is damaged; move it away, a new one is made at the next start"),
    ("readonly", "the file and its directory must be writable for the user this process runs as"),
    ("full", "free some space on the disk"),
    ("disk I/O", "the disk or file system refuses; is it full, or a network file system?"),
    ("unable to open", "the path must be a file in a directory this process may write to"),
)


class _Mine:
    """A thread's own connection; it goes with the thread."""

    __slots__ = ("__weakref__", "connection")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection


class File:
    """One database file.  Thread-safe: every thread of every process has its own connection."""

    def __init__(self, server: ServerURL, options: Mapping[str, Any], failure: type[MiniCeleryError]) -> None:
        self.path = _path(server)
        self.timeout = float(options.get("timeout", TIMEOUT))
        self._failure = failure
        self._lock = threading.Lock()
        self._here = threading.local()  # `.mine`: this thread's connection
        self._opened: list[tuple[weakref.ref[_Mine], sqlite3.Connection]] = []
        _files.add(self)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns; repeated while the file is locked, until the timeout."""
        return self._insist(work, self.timeout)

    def write(self, work: Callable[[sqlite3.Connection], T], timeout: float | None = None) -> T:
        """What `work` returns, all it does in one transaction; repeated while the file is locked."""

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                value = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise
            return value

        return self._insist(transaction, self.timeout if timeout is None else timeout)

    def version(self) -> int:
        """A number that differs from the last one in this thread if anybody else has committed."""
        return self.read(_data_version)

    def close(self) -> None:
        """Close what this process has opened, in whatever thread."""
        with self._lock:
            opened, self._opened = self._opened, []
            self._here = threading.local()
        with _gate.held:
            for _, connection in opened:
                connection.close()

    def _insist(self, work: Callable[[sqlite3.Connection], T], timeout: float) -> T:
        # Not SQLite's own busy handler: it sleeps 1, 2, 5, 10, … ms where a batch takes 0.5.
        end = time.monotonic() + timeout
        pause = 0.0003
        while True:
            try:
                with _gate.held:
                    return work(self._connection())
            except sqlite3.Error as error:
                left = end - time.monotonic()
                if left <= 0 or not _is_busy(error):
                    raise self._explained(error) from error
            time.sleep(min(left, pause * random.uniform(0.5, 1.5)))
            pause = min(pause * 1.5, 0.02)

    def _connection(self) -> sqlite3.Connection:
        mine: _Mine | None = getattr(self._here, "mine", None)
        return mine.connection if mine is not None else self._connect()

    def _connect(self) -> sqlite3.Connection:
        try:
            # Created here for its mode: results and arguments are nobody else's business.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass  # not opened even for a look: closing it would drop this process's locks on it
        except OSError as error:
            raise self._failure(
                f"cannot create the database {self.path}: {error.strerror}; "
                "its directory must exist and be writable"
            ) from error
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if self._schema_version(connection) == SCHEMA_VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        version = self._schema_version(connection)  # somebody else may have been first
        if version == 0:
            self._refuse_foreign(connection)
        for schema in SCHEMAS[version:]:
            for statement in schema.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def _schema_version(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise self._failure(
                f"the database {self.path} has tables of version {version}, this minicelery knows "
                f"{SCHEMA_VERSION}: upgrade minicelery, or name another file"
            )
        return version

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        names = "SELECT name FROM sqlite_master WHERE name IN ('messages', 'results')"
        if connection.execute(names).fetchall():
            raise self._failure(
                f"the database {self.path} belongs to another program: it has tables of "
                "minicelery's names that minicelery did not make; name another file"
            )

    def _keep(self, connection: sqlite3.Connection) -> None:
        """Keep the connection for this thread, and close those of threads that have ended."""
        mine = _Mine(connection)
        with self._lock:
            ended = [one for one in self._opened if one[0]() is None]
            self._opened = [one for one in self._opened if one not in ended]
            self._opened.append((weakref.ref(mine), connection))
            self._here.mine = mine
        for _, old in ended:
            old.close()

    def forsake(self) -> None:
        """In the child of a fork: never touch, close or free what the parent has opened.

        Closing a copy rolls back in the memory that it shares with the parent's WAL, and the
        interpreter closes at its exit whatever it can free.
        """
        inherited, self._opened = self._opened, []
        self._here = threading.local()
        self._lock = threading.Lock()
        if inherited:
            from ctypes import py_object, pythonapi  # a few ms, and few processes come here

            for _, connection in inherited:
                pythonapi.Py_IncRef(py_object(connection))

    def _explained(self, error: sqlite3.Error) -> MiniCeleryError:
        text = str(error)
        hint = next((hint for sign, hint in _HINTS if sign in text), "")
        return self._failure(
            f"cannot use the database {self.path}: {text}"
            + (f"; {hint.format(timeout=self.timeout)}" if hint else "")
        )


_files: weakref.WeakSet[File] = weakref.WeakSet()


class _Gate:
    """Nobody forks while a thread is inside SQLite.

    Its own mutexes would be held for ever in the child, which has not got that thread.
    """

    def __init__(self) -> None:
        self.held = threading.RLock()

    def close(self) -> None:
        self.held.acquire()

    def open(self) -> None:
        self.held.release()

    def open_in_child(self) -> None:
        self.held = threading.RLock()
        for file in list(_files):
            file.forsake()


_gate = _Gate()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_gate.close, after_in_parent=_gate.open, after_in_child=_gate.open_in_child)


class Watch:
    """Waiting for others to change a file: looks at its version ever less often."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._pause = FIRST_PAUSE
        self._woken = threading.Event()

    def wake(self) -> None:
        """End the wait that is on, or the next one at once.  From any thread."""
        self._woken.set()

    def found(self) -> None:
        """Something came: look often again."""
        self._pause = FIRST_PAUSE

    def wait(self, version: int, until: float) -> bool:
        """Wait for a change since `version` or the monotonic time `until`; True if `wake` ended it."""
        while (left := until - time.monotonic()) > 0 and self._file.version() == version:
            if self._woken.wait(min(left, self._pause)):
                break
            self._pause = min(self._pause * 1.2, LONGEST_PAUSE)
        if woken := self._woken.is_set():
            self._woken.clear()
        return woken


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def _is_busy(error: sqlite3.Error) -> bool:
    # 3.10 has no sqlite_errorcode.
    text = str(error)
    return "locked" in text or "locking protocol" in text


def _path(server: ServerURL) -> str:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ImproperlyConfigured(
            f"{server.masked}: this Python has SQLite {sqlite3.sqlite_version}; it takes 3.35 or newer"
        )
    name = server.path[1:]
    if server.host or not name:
        raise ImproperlyConfigured(
            f"{server.masked!r} names no file; write sqlite:///queue.db (three slashes) for a file in the "
            "current directory, sqlite:////var/lib/app/queue.db (four) for an absolute path"
        )
    if name == ":memory:":
        raise ImproperlyConfigured(
            f"{server.masked!r}: a database in memory can't be shared; use memory:// instead"
        )
    return os.path.realpath(name)
