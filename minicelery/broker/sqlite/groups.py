"""Chords and saved groups in a database file, each call within the transaction that is open."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence

from minicelery.broker.chords import LOOK_AGAIN, RESEND, as_copy, pause
from minicelery.broker.sqlite.rows import message_of, row_of
from minicelery.message import Group, Message, Record
from minicelery.serialization import decode_json, encode_json
from minicelery.states import IGNORED, SUCCESS

_OPEN = "INSERT OR IGNORE INTO chords (id, size, place, owed, until, expires) VALUES (?, ?, ?, ?, ?, ?)"
_WRITE = "INSERT OR IGNORE INTO chord_texts (id, members, passes, body, payload, countdown) VALUES (?, ?, ?, ?, ?, ?)"
_END = "INSERT OR IGNORE INTO ended (chord, member) SELECT id, ? FROM chords WHERE id = ? AND sent IS NULL"
# `well` is whether the part has ended well: if not, nothing more is waited for.
_RELEASE = "UPDATE chords SET sent = :now, owed = :owed, expires = coalesce(expires, :now + 172800) WHERE id = :id AND sent IS NULL AND (NOT :well OR done >= size)"
_BODY = "SELECT body, payload, countdown FROM chord_texts WHERE id = ?"
# NULL is for ever, of both.
_KEEP = (
    "UPDATE results SET expires = (SELECT max(results.expires, until) FROM chords WHERE id = ?) WHERE id = ?"
)
_COUNT = "UPDATE chords SET done = done + 1 WHERE id = ?"
_LATE = "SELECT id, tries FROM chords WHERE place = ? AND owed <= ? ORDER BY owed LIMIT 100"
_ANY_LATE = (
    "SELECT 1 FROM chords WHERE place = :place AND owed <= :now UNION ALL SELECT 1 FROM chords WHERE expires <= :now"
    " UNION ALL SELECT 1 FROM saved WHERE expires <= :now LIMIT 1"
)
_OWE = "UPDATE chords SET sent = coalesce(sent, ?), owed = ?, tries = tries + 1 WHERE id = ?"
_CLAIM = "UPDATE chords SET claimed = :copy, owed = NULL WHERE id = :id AND claimed IN ('', :copy)"
_SAID = "UPDATE chords SET owed = ? WHERE id = ? AND owed IS NOT NULL AND sent IS NOT NULL"


def open_groups(connection: sqlite3.Connection, groups: Iterable[Group]) -> None:
    """See `CountingBackend`."""
    now = time.time()
    for group in groups:
        assert group.body is not None
        *described, payload = row_of(group.body)
        expires = None if group.ttl is None else now + group.ttl
        size = len(set(group.members))
        # Of what nothing has ended yet it may be another run that means something else.
        again = "SELECT id FROM chords WHERE id = ? AND sent IS NULL AND done = 0"
        if connection.execute(again, (group.id,)).fetchone() is not None:
            drop_groups(connection, [group.id])
        connection.execute(_OPEN, (group.id, size, group.place, group.deadline, group.until, expires))
        members, body = encode_json(group.members), encode_json(described)
        connection.execute(_WRITE, (group.id, members, group.passes, body, payload, group.countdown))


def count(
    connection: sqlite3.Connection,
    parts: Iterable[Record],
    now: float,
    send: Callable[[Message], None] | None,
) -> list[Message]:
    """Count ended parts; the bodies that are due are given to `send`, or else returned, and owed."""
    bodies = []
    for record in parts:
        if connection.execute(_END, (record.id, record.part_of)).rowcount < 1:
            continue
        connection.execute(_COUNT, (record.part_of,))
        connection.execute(_KEEP, (record.part_of, record.id))
        well = record.state in (SUCCESS, IGNORED)
        owed = None if send is not None else now + RESEND
        release = {"well": well, "owed": owed, "id": record.part_of, "now": now}
        if connection.execute(_RELEASE, release).rowcount == 1:
            connection.execute("DELETE FROM ended WHERE chord = ?", (record.part_of,))
            body = _body(connection, record.part_of, now)
            if send is not None:
                send(body)
            else:
                bodies.append(as_copy(body))
    return bodies


def load_group(connection: sqlite3.Connection, id: str) -> Group | None:
    """See `CountingBackend`."""
    row = connection.execute(
        "SELECT members, passes, sent FROM chords JOIN chord_texts USING (id) WHERE id = ?", (id,)
    ).fetchone()
    if row is None:
        return None
    members, passes, sent = row
    return Group(id, decode_json(members), None, bool(passes), sent=sent)


def claim_group(connection: sqlite3.Connection, id: str, copy: str) -> bool:
    """See `CountingBackend`."""
    connection.execute(_CLAIM, {"copy": copy, "id": id})
    row = connection.execute("SELECT claimed FROM chords WHERE id = ?", (id,)).fetchone()
    return row is None or row[0] == copy


def add_member(connection: sqlite3.Connection, id: str, member: str) -> bool:
    """See `CountingBackend`."""
    row = connection.execute(
        "SELECT members FROM chords JOIN chord_texts USING (id) WHERE id = ? AND sent IS NULL", (id,)
    ).fetchone()
    if row is None:
        return False
    members = decode_json(row[0])
    if member not in members:
        members.append(member)
        connection.execute("UPDATE chord_texts SET members = ? WHERE id = ?", (encode_json(members), id))
        connection.execute("UPDATE chords SET size = size + 1 WHERE id = ?", (id,))
    return True


def has_late(connection: sqlite3.Connection, now: float, place: str) -> bool:
    """Whether there is anything for `owed_groups` to do."""
    return connection.execute(_ANY_LATE, {"now": now, "place": place}).fetchone() is not None


def owed_groups(connection: sqlite3.Connection, now: float, place: str) -> list[Message]:
    """See `CountingBackend`; drops what has expired as well."""
    _drop_expired(connection, now)
    bodies = []
    for id, tries in connection.execute(_LATE, (place, now)).fetchall():
        connection.execute(_OWE, (now, now + pause(RESEND, tries), id))
        bodies.append(as_copy(_body(connection, id, now)))
    return bodies


def group_sent(connection: sqlite3.Connection, ids: Sequence[str], now: float) -> None:
    """See `CountingBackend`."""
    for id in ids:
        row = connection.execute("SELECT tries FROM chords WHERE id = ?", (id,)).fetchone()
        if row is not None:
            connection.execute(_SAID, (now + pause(LOOK_AGAIN, row[0]), id))


def drop_groups(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    """See `CountingBackend`."""
    rows = [(id,) for id in ids]
    connection.executemany("DELETE FROM ended WHERE chord = ?", rows)
    connection.executemany("DELETE FROM chords WHERE id = ?", rows)
    connection.executemany("DELETE FROM chord_texts WHERE id = ?", rows)


def _drop_expired(connection: sqlite3.Connection, now: float) -> None:
    gone = connection.execute("SELECT id FROM chords WHERE expires <= ? LIMIT 100", (now,)).fetchall()
    drop_groups(connection, [id for (id,) in gone])
    connection.execute("DELETE FROM saved WHERE expires <= ?", (now,))


def _body(connection: sqlite3.Connection, id: str, now: float) -> Message:
    described, payload, countdown = connection.execute(_BODY, (id,)).fetchone()
    queue, priority, due, message_id, task, envelope = decode_json(described)
    body = message_of(queue, priority, message_id, task, envelope, payload)
    body.due = due if countdown is None else now + countdown
    return body
