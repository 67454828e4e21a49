"""Chords in the project's database, each call within the transaction that is open.

Ids of chords and parts are those of the columns: see `key_of`.

A chord's row is locked by writing to it, before it is read: on every database, SQLite too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections
from django.db.models import F, Q

from minicelery.broker.chords import LOOK_AGAIN, RESEND, as_copy, pause
from minicelery.broker.sqlite.rows import message_of, row_of
from minicelery.contrib.django.models import ChordCounter, ChordPart, TaskResult
from minicelery.contrib.django.results.columns import key_of
from minicelery.contrib.django.transactions import within
from minicelery.exceptions import BackendError
from minicelery.message import Group, Message, Record
from minicelery.serialization import decode_json, encode_json
from minicelery.states import IGNORED, SUCCESS

KEPT = 172800.0
"""Seconds for which a chord is kept after its body was sent, if nothing else is said."""
MOST = 100
"""Chords that one call looks after."""


def refuse_transaction(alias: str) -> None:
    """Raise BackendError where a transaction is open: workers would not see the chord in time."""
    if within(connections[alias]):
        raise BackendError(
            f"a chord can't be sent within a transaction of the database {alias!r}, where its results are: its "
            "parts would end before it is there; send it with transaction.on_commit(lambda: ….apply_async())"
        )


def open_groups(alias: str, groups: Iterable[Group]) -> None:
    """See `CountingBackend`."""
    now = time.time()
    for group in groups:
        assert group.body is not None
        # Of what nothing has ended yet it may be another run that means something else.
        _rows(alias).filter(group_id=key_of(group.id), sent=None, count=F("size")).delete()
        *described, payload = row_of(group.body)
        size = len(set(group.members))
        row = ChordCounter(
            group_id=key_of(group.id), sub_tasks=encode_json(group.members), count=size, size=size, passes=group.passes,
            body=encode_json(described), payload=payload, place=key_of(group.place), countdown=group.countdown,
            owed=group.deadline, until=group.until, expires=None if group.ttl is None else now + group.ttl,
        )  # fmt: skip
        _rows(alias).bulk_create([row], ignore_conflicts=True)


def count(alias: str, parts: Iterable[Record], now: float) -> list[Message]:
    """Count ended parts; the bodies that are due are returned, and owed."""
    groups: dict[str, list[Record]] = {}
    for record in parts:
        groups.setdefault(key_of(record.part_of), []).append(record)
    bodies = []
    for id in sorted(groups):
        row = _locked(alias, id)
        if row is not None and _counted(alias, row, groups[id], now):
            bodies.append(as_copy(_body(row, now)))
    return bodies


def _counted(alias: str, row: ChordCounter, parts: Sequence[Record], now: float) -> bool:
    """Whether these parts release the body."""
    ended = ChordPart.objects.using(alias).filter(group_id=row.group_id)
    keys = {key_of(part.id): part for part in reversed(parts)}  # of two, the first
    known = set(ended.filter(task_id__in=list(keys)).values_list("task_id", flat=True))
    fresh = {key: part for key, part in keys.items() if key not in known}
    ended.bulk_create([ChordPart(group_id=row.group_id, task_id=key) for key in fresh], ignore_conflicts=True)
    _keep(alias, list(fresh), row.until)
    left = row.count - len(fresh)
    well = all(part.state in (SUCCESS, IGNORED) for part in fresh.values())
    changes: dict[str, Any] = {"count": left}
    released = not well or left <= 0
    if released:
        changes |= {"sent": now, "owed": now + RESEND}
        if row.expires is None:
            changes["expires"] = now + KEPT
        ended.delete()
    _rows(alias).filter(pk=row.pk).update(**changes)
    return released


def _keep(alias: str, ids: Sequence[str], until: float | None) -> None:
    """Have the parts' results stay until the body may need them."""
    for start in range(0, len(ids), 500):
        rows = TaskResult.objects.using(alias).filter(task_id__in=ids[start : start + 500])
        if until is None:
            rows.exclude(expires=None).update(expires=None)
        else:
            rows.filter(expires__lt=until).update(expires=until)


def load_group(alias: str, id: str) -> Group | None:
    """See `CountingBackend`."""
    row = _rows(alias).filter(group_id=id).first()
    if row is None:
        return None
    return Group(id, decode_json(row.sub_tasks), None, row.passes, sent=row.sent)


def claim_group(alias: str, id: str, copy: str) -> bool:
    """See `CountingBackend`."""
    if _rows(alias).filter(group_id=id, claimed__in=("", copy)).update(claimed=copy, owed=None):
        return True
    return not _rows(alias).filter(group_id=id).exists()


def add_member(alias: str, id: str, member: str) -> bool:
    """See `CountingBackend`."""
    row = _locked(alias, id)
    if row is None:
        return False
    members = decode_json(row.sub_tasks)
    if member not in members:
        members.append(member)
        _rows(alias).filter(pk=row.pk).update(
            sub_tasks=encode_json(members), count=row.count + 1, size=row.size + 1
        )
    return True


def has_late(alias: str, now: float, place: str) -> bool:
    """Whether there is anything for `owed_groups` to do."""
    return bool(_rows(alias).filter(Q(place=key_of(place), owed__lte=now) | Q(expires__lte=now)).exists())


def owed_groups(alias: str, now: float, place: str) -> list[Message]:
    """See `CountingBackend`; drops what has expired as well."""
    gone = list(_rows(alias).filter(expires__lte=now).values_list("group_id", flat=True)[:MOST])
    drop_groups(alias, gone)
    bodies = []
    late = list(_rows(alias).filter(place=key_of(place), owed__lte=now).order_by("owed")[:MOST])
    for row in late:
        mine = _rows(alias).filter(pk=row.pk, owed=row.owed)
        sent = now if row.sent is None else row.sent
        if mine.update(sent=sent, owed=now + pause(RESEND, row.tries), tries=F("tries") + 1):
            bodies.append(as_copy(_body(row, now)))
    return bodies


def group_sent(alias: str, ids: Sequence[str], now: float) -> None:
    """See `CountingBackend`."""
    for id in ids:
        row = _rows(alias).filter(group_id=id).first()
        if row is not None:
            said = _rows(alias).filter(pk=row.pk).exclude(owed=None).exclude(sent=None)
            said.update(owed=now + pause(LOOK_AGAIN, row.tries))


def drop_groups(alias: str, ids: Sequence[str]) -> None:
    """See `CountingBackend`."""
    if ids:
        _rows(alias).filter(group_id__in=ids).delete()
        ChordPart.objects.using(alias).filter(group_id__in=ids).delete()


def _rows(alias: str) -> Any:
    return ChordCounter.objects.using(alias)


def _locked(alias: str, id: str) -> ChordCounter | None:
    """The chord whose body waits, for this transaction alone."""
    if not _rows(alias).filter(group_id=id, sent=None).update(tries=F("tries")):
        return None
    row: ChordCounter = _rows(alias).get(group_id=id)
    return row


def _body(row: ChordCounter, now: float) -> Message:
    queue, priority, due, id, task, envelope = decode_json(row.body)
    body = message_of(queue, priority, id, task, envelope, bytes(row.payload))
    body.due = due if row.countdown is None else now + row.countdown
    return body
