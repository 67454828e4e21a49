"""Dead letters in the file: put back on their queue, or thrown away, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from minicelery.broker.dead import as_new, chosen
from minicelery.broker.sqlite.rows import message_of, row_of
from minicelery.exceptions import DecodeError

_LETTERS = "SELECT id, message_id, task, envelope, body FROM dead WHERE queue = ? ORDER BY id"
_ADD = (
    "INSERT INTO messages (queue, priority, due, message_id, task, envelope, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)


def settle(connection: sqlite3.Connection, queue: str, ids: Collection[str] | None, *, replay: bool) -> int:
    """Put the letters of these ids back on the queue, or throw them away; how many."""
    rows, drops = [], []
    for number, id, task, envelope, body in connection.execute(_LETTERS, (queue,)):
        if not chosen(id, ids):
            continue
        drops.append((number,))
        if replay:
            try:
                rows.append(row_of(as_new(message_of(queue, 0, id, task, envelope, body), queue)))
            except (DecodeError, ValueError, TypeError):
                # As it came: perhaps a worker can read it by now.
                rows.append((queue, 0, None, id, task, envelope, body))
    connection.executemany(_ADD, rows)
    connection.executemany("DELETE FROM dead WHERE id = ?", drops)
    return len(drops)
