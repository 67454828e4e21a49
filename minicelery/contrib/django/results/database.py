"""Results in the project's database: `result_backend="django-db"`."""

from __future__ import annotations

import base64
import contextlib
import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from django.db import connections, router, transaction
from django.db.models import Q
from django.db.utils import Error, InterfaceError, OperationalError
from django.utils import timezone

from minicelery.awaiting import beside_loop
from minicelery.broker.listening import Listener
from minicelery.broker.polling import PollingListener, watch
from minicelery.contrib.django.connections import borrowed, forget_inherited
from minicelery.contrib.django.models import GroupResult, TaskResult
from minicelery.contrib.django.problems import MIGRATE
from minicelery.contrib.django.results import chords
from minicelery.contrib.django.results.columns import BINARY, JSON, columns_of, document_of, key_of
from minicelery.exceptions import BackendUnavailable
from minicelery.forking import call_in_forked_children
from minicelery.message import Group, Message, Record
from minicelery.states import STARTED, SUCCESS

T = TypeVar("T")

CHUNK = 500
"""Ids asked for by one statement."""
PATIENCE = 10.0
"""Seconds for which a write is tried again where others hold the rows, or the file."""
CLEAN_EVERY = 60.0
"""Seconds between two looks for results that have expired."""
CLEAN_FOR = 0.5
"""Seconds for which one look removes them; where more are left the next call goes on."""
_MISSING = re.compile(
    r"no such (table|column)|(relation|column) .* does not exist|Table .* doesn't exist|Unknown column"
)
_BUSY = ("locked", "deadlock", "could not serialize", "lock wait timeout")

call_in_forked_children(forget_inherited)


class DatabaseBackend:
    """The result store; see `minicelery.broker.CountingBackend`.

    It uses the connection that the thread has: what is stored within a transaction is seen by
    others when that is committed.
    """

    url = "django-db"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._cleaned = float("-inf")

    # -- results -----------------------------------------------------------------------------

    def store(self, records: Sequence[Record]) -> list[Message]:
        if not records:
            return []
        latest: dict[str, Record] = {}
        for record in records:
            if (known := latest.get(record.id)) is None or known.state != SUCCESS:
                latest[record.id] = record
        # In the order of their ids, as everybody does: so nobody waits for who waits for him.
        wanted = [latest[id] for id in sorted(latest, key=key_of)]
        parts = [record for record in records if record.part_of]

        def work(alias: str) -> list[Message]:
            now = time.time()
            _store(alias, wanted, now)
            return chords.count(alias, parts, now) if parts else []

        return self._write(work)

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        found = {record.id: record for record, _ in self.records(ids)}
        return [found.get(id) for id in ids]

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        return watch(Look(self), ids, seen, wait)

    def listener(self) -> Listener:
        """Hears of many results in one thread."""
        return PollingListener(Look(self))

    def forget(self, ids: Sequence[str]) -> None:
        def work(alias: str) -> None:
            for some in _chunks(map(key_of, ids)):
                TaskResult.objects.using(alias).filter(task_id__in=some).delete()

        self._write(work)

    def versions(self, ids: Collection[str]) -> dict[str, int]:
        """Which version of which record there is."""
        asked = {key_of(id): id for id in ids}

        def work(alias: str) -> dict[str, int]:
            found: dict[str, int] = {}
            for some in _chunks(asked):
                rows = TaskResult.objects.using(alias).filter(_alive(time.time()), task_id__in=some)
                found.update(rows.order_by().values_list("task_id", "version"))
            return found

        return {asked[key]: version for key, version in self._read(work).items()}

    def records(self, ids: Collection[str]) -> list[tuple[Record, int]]:
        """Records with their versions."""
        asked = {key_of(id): id for id in ids}

        def work(alias: str) -> list[TaskResult]:
            now = time.time()
            found: list[TaskResult] = []
            for some in _chunks(asked):
                found += TaskResult.objects.using(alias).filter(_alive(now), task_id__in=some).order_by()
            return found

        return [
            (Record(asked[row.task_id], document_of(row), row.status), row.version)
            for row in self._read(work)
        ]

    # -- chords, and saved groups --------------------------------------------------------------

    def open_groups(self, groups: Sequence[Group]) -> None:
        chords.refuse_transaction(_alias())
        self._write(lambda alias: chords.open_groups(alias, groups))

    def load_group(self, id: str) -> Group | None:
        return self._read(lambda alias: chords.load_group(alias, key_of(id)))

    def claim_group(self, id: str, copy: str) -> bool:
        return self._write(lambda alias: chords.claim_group(alias, key_of(id), copy))

    def add_member(self, id: str, member: str) -> bool:
        return self._write(lambda alias: chords.add_member(alias, key_of(id), member))

    def drop_groups(self, ids: Sequence[str]) -> None:
        self._write(lambda alias: chords.drop_groups(alias, list(map(key_of, ids))))

    def owed_groups(self, now: float, place: str) -> list[Message]:
        self._clean(now)
        if not self._read(lambda alias: chords.has_late(alias, now, place)):
            return []
        return self._write(lambda alias: chords.owed_groups(alias, now, place))

    def _clean(self, now: float) -> None:
        """Remove what has expired: all of it, or as much as is removed in a while."""
        begin = time.monotonic()
        if begin - self._cleaned < CLEAN_EVERY:
            return
        while self._write(lambda alias: _drop_expired(alias, now)):
            if time.monotonic() - begin > CLEAN_FOR:
                return  # the next call goes on
        self._cleaned = begin

    def group_sent(self, ids: Sequence[str]) -> None:
        self._write(lambda alias: chords.group_sent(alias, list(map(key_of, ids)), time.time()))

    def save_group(self, id: str, document: bytes, ttl: float | None) -> None:
        try:
            text, kind = document.decode(), JSON
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:  # PostgreSQL has no such texts
            text, kind = base64.b64encode(document).decode(), (BINARY[0], "base64")
        values = {
            "result": text, "content_type": kind[0], "content_encoding": kind[1],
            "expires": None if ttl is None else time.time() + ttl,
        }  # fmt: skip
        self._write(
            lambda alias: GroupResult.objects.using(alias).update_or_create(
                group_id=key_of(id), defaults=values
            )
        )

    def restore_group(self, id: str) -> bytes | None:
        def work(alias: str) -> bytes | None:
            row = GroupResult.objects.using(alias).filter(_alive(time.time()), group_id=key_of(id)).first()
            if row is None or row.result is None:
                return None
            text = str(row.result)
            return base64.b64decode(text) if row.content_encoding == "base64" else text.encode()

        return self._read(work)

    def delete_group(self, id: str) -> None:
        self._write(lambda alias: GroupResult.objects.using(alias).filter(group_id=key_of(id)).delete())

    def close(self) -> None:
        connection = connections[_alias()]
        if not connection.in_atomic_block:
            connection.close()

    # -- the database --------------------------------------------------------------------------

    def _write(self, work: Callable[[str], T]) -> T:
        alias = _alias()

        def together() -> T:
            with transaction.atomic(using=alias):
                return work(alias)

        return _persist(alias, together)

    def _read(self, work: Callable[[str], T]) -> T:
        alias = _alias()
        return _persist(alias, lambda: work(alias))


class Look:
    """What one who waits has seen of the results; loads only those that have changed."""

    def __init__(self, backend: DatabaseBackend) -> None:
        self._backend = backend
        self._versions: dict[str, int] = {}

    def looking(self) -> contextlib.AbstractContextManager[None]:
        """See `polling.Looker`."""
        return borrowed(_alias(), now=True)

    def news(self, ids: Collection[str], seen: Mapping[str, bytes]) -> list[Record]:
        """See `polling.Looker`."""
        if not ids:
            return []
        versions = self._versions
        now = self._backend.versions(ids)
        changed = [id for id, version in now.items() if versions.get(id) != version]
        found = []
        for record, version in self._backend.records(changed) if changed else ():
            if seen.get(record.id) == record.document:
                versions[record.id] = version
            else:
                found.append(record)
        return found


def _alias() -> str:
    return str(router.db_for_write(TaskResult))


def _persist(alias: str, work: Callable[[], T]) -> T:
    def borrowing() -> T:
        with borrowed(alias):
            return _insist(alias, work)

    return beside_loop(borrowing)


def _insist(alias: str, work: Callable[[], T]) -> T:
    """Do it; again on a new connection if the old one is gone, or if others are in the way."""
    connection = connections[alias]
    until = time.monotonic() + PATIENCE
    fresh = False
    while True:
        try:
            return work()
        except Error as error:
            said = str(error).strip().partition("\n")[0]  # without where in the statement
            text = f"{type(error).__name__}: {said}"
            gone = isinstance(error, (OperationalError, InterfaceError)) or "closed" in text
            again = gone and not connection.in_atomic_block
            busy = any(word in text for word in _BUSY)
            if again and busy and time.monotonic() < until:
                time.sleep(random.uniform(0.005, 0.05))
                continue
            if again and not busy and not fresh:
                fresh = True
                connection.close()
                continue
            hint = ""
            if _MISSING.search(text):
                hint = f"; {MIGRATE}"
            raise BackendUnavailable(
                f"the results in the database {alias!r} can't be reached: {text}{hint}"
            ) from error


def _store(alias: str, records: Sequence[Record], now: float) -> None:
    """Keep records, each id once, within the transaction that is open."""
    rows = TaskResult.objects.using(alias)
    version = random.getrandbits(62)
    at = timezone.now()
    columns = {key_of(record.id): _columns(record, now, at, version) for record in records}
    # First what writes: so SQLite's file is taken before anything is read in it.
    fresh_rows = [TaskResult(task_id=id, date_created=at, **row) for id, row in columns.items()]
    rows.bulk_create(fresh_rows, ignore_conflicts=True)
    fresh: set[str] = set()
    for some in _chunks(columns):
        fresh.update(
            rows.filter(task_id__in=some, version=version).order_by().values_list("task_id", flat=True)
        )
    for id, row in columns.items():
        if id not in fresh:
            changeable = ~Q(status=SUCCESS) | Q(expires__lte=now)
            rows.filter(changeable, task_id=id).update(**row, date_done=at)


def _columns(record: Record, now: float, at: Any, version: int) -> dict[str, Any]:
    row = columns_of(record)
    row["version"] = version
    row["expires"] = None if record.ttl is None else now + record.ttl
    if record.state == STARTED:
        row["date_started"] = at
    return row


def _alive(now: float) -> Q:
    return Q(expires=None) | Q(expires__gt=now)


def _drop_expired(alias: str, now: float) -> bool:
    """Remove some of what has expired; whether there may be more."""
    most = 0
    for table in (TaskResult, GroupResult):
        rows: Any = table.objects.using(alias)
        gone = list(rows.filter(expires__lte=now).order_by().values_list("pk", flat=True)[:CHUNK])
        if gone:
            rows.filter(pk__in=gone, expires__lte=now).delete()
        most = max(most, len(gone))
    return most == CHUNK


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    all_ids = list(ids)
    for start in range(0, len(all_ids), CHUNK):
        yield all_ids[start : start + CHUNK]
