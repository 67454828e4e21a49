"""The schedule that can be listed and changed while beats run: ``app.schedule``."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from minicelery.beat.documents import Stored, read_document, with_flags, write_document
from minicelery.beat.entries import BadEntry, Entry, read_entry
from minicelery.beat.lease import lead_of
from minicelery.beat.ledger import Ledger
from minicelery.beat.planned import PROGRAM, STORED, PlannedEntry, planned
from minicelery.broker.archives import Archive, open_archive
from minicelery.exceptions import MiniCeleryError, OperationalError

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.result import AsyncResult

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds for which a change is tried that others' changes of the same entry come before."""


class UnknownEntry(MiniCeleryError, KeyError):
    """No entry has that name."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(slots=True)
class Loaded:
    """What is stored; an entry that has not changed is the same object as the last time."""

    version: str
    stored: dict[str, Stored] = field(default_factory=dict)
    errors: dict[str, BadEntry] = field(default_factory=dict)
    """Of what is left out."""


class StoredSchedule:
    """The entries that are kept in the broker, and what is known of all entries.  Thread-safe.

    Whatever reaches the broker raises OperationalError where it is away: nothing is changed then,
    or all that was to be.
    """

    def __init__(self, app: Celery, now: Callable[[], float] = time.time) -> None:
        self.app = app
        self._now = now
        self._lock = threading.Lock()
        self._known: dict[str, tuple[bytes, Stored | BadEntry]] = {}  # with a digest of the document

    # -- what there is ---------------------------------------------------------------------

    def entries(self) -> dict[str, PlannedEntry]:
        """All that is sent by beat: the program's entries, and the stored ones.

        What is no good is warned of, and left out.
        """
        found, errors = self.overview()
        for error in errors:
            log.warning("%s; it is left out", error)
        return found

    def overview(self) -> tuple[dict[str, PlannedEntry], list[BadEntry]]:
        """The same, and what is no good."""
        loaded, now = self.load(), self._now()
        given = self.app.periodic_entries()
        errors = list(loaded.errors.values())
        kept = Ledger(self.app.broker, lead_of(self.app), is_stream=False).load()
        found = {}
        for name, fields in merged(self.app, given, loaded).items():
            try:
                entry = read_entry(self.app, name, fields)
            except BadEntry as error:
                errors.append(error)
                continue
            found[name] = planned(entry, PROGRAM if name in given else STORED, kept.get(name), now)
        return found, errors

    # -- changes ---------------------------------------------------------------------------

    def add(
        self,
        name: str,
        task: Any,
        schedule: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        catch_up: str = "once",
        enabled: bool = True,
        replace: bool = False,
    ) -> None:
        """Store an entry; the arguments are the fields of `beat_schedule`, and as JSON can carry them.

        One that is stored already is changed with `replace` only.  Raises BadEntry.
        """
        given = {
            "task": task, "schedule": schedule, "args": args, "kwargs": kwargs or {},
            "options": options or {}, "catch_up": catch_up,
        }  # fmt: skip
        write_document(self.app, name, given, enabled, 0.0)  # what is wrong is refused before anything else
        if name in self.app.periodic_entries():
            raise BadEntry(f"{_of_the_program(name)}; change it there, or choose another name")

        def change(there: bytes | None) -> bytes:
            found = self._told(name, there)
            if found is not None and found.entry is not None and not replace:
                raise BadEntry(
                    f"entry {name!r} is stored already; choose another name, or replace it with replace=True"
                )
            goes_on = found is not None and found.entry is not None and found.enabled and enabled
            since = found.since if found is not None and goes_on else round(self._now(), 3)
            return write_document(self.app, name, given, enabled, since)

        self._change(name, change)

    def remove(self, name: str) -> None:
        """Forget a stored entry.  Raises UnknownEntry; BadEntry for one of the program."""
        in_program = name in self.app.periodic_entries()

        def change(there: bytes | None) -> None:
            found = self._told(name, there)
            if in_program and (there is None or (found is not None and found.entry is None)):
                raise BadEntry(
                    f"{_of_the_program(name)}; take it out there, or disable it: "
                    f"app.schedule.disable({name!r}), or minicelery schedule disable"
                )
            if there is None:
                raise self._unknown(name)

        self._change(name, change)

    def enable(self, name: str) -> None:
        """Have an entry sent again, from now on.  Raises UnknownEntry."""
        self._set_enabled(name, True)

    def disable(self, name: str) -> None:
        """Have an entry not sent any more, by whatever beat, until it is enabled.  Raises UnknownEntry."""
        self._set_enabled(name, False)

    def run(self, name: str) -> AsyncResult[Any]:
        """Send an entry's task now, besides its schedule, whether it is enabled or not."""
        entry = self._find(name)
        args, kwargs = entry.arguments()
        task = self.app.tasks.get(entry.task)
        if task is None:
            return self.app.send_task(entry.task, args, kwargs, **entry.options)
        sent: AsyncResult[Any] = task.apply_async(args, kwargs, **entry.options)
        return sent

    def _set_enabled(self, name: str, enabled: bool) -> None:
        in_program = name in self.app.periodic_entries()

        def change(there: bytes | None) -> bytes | None:
            if there is None and not in_program:
                raise self._unknown(name)
            found = self._told(name, there)
            if there is not None and found is None and not in_program:
                read_document(self.app, name, there)  # says what is wrong with it
            if (found is None or found.enabled) == enabled:
                return there
            return with_flags(there if found is not None else None, enabled, round(self._now(), 3))

        self._change(name, change)

    def _change(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Put what `change` makes of the document in its place; again where somebody came first."""
        archive, end = self._archive(), time.monotonic() + PATIENCE
        while True:
            there = archive.get(name)
            wanted = change(there)
            if wanted == there or archive.swap(name, there, wanted):
                return
            if time.monotonic() > end:
                raise OperationalError(f"entry {name!r} is changed by others all the time; try again")
            time.sleep(random.uniform(0.001, 0.02))

    # -- reading ---------------------------------------------------------------------------

    def version(self) -> str:
        """Differs from that of `load` once something was changed; cheap."""
        return self._archive().version()

    def load(self) -> Loaded:
        """What is stored."""
        return self._parse(*self._archive().read())

    def follow(self) -> Loaded:
        """The same for who asks for the `version` again and again; may lag by some milliseconds."""
        return self._parse(*self._archive().news())

    def _parse(self, version: str, documents: Mapping[str, bytes]) -> Loaded:
        """What the documents say; only what has changed is read anew."""
        loaded = Loaded(version)
        with self._lock:
            before, self._known = self._known, {}
            for name, text in documents.items():
                digest, known = blake2b(text, digest_size=16).digest(), before.get(name)
                if known is None or known[0] != digest:
                    known = digest, _read(self.app, name, text)
                self._known[name] = known
                found = known[1]
                if isinstance(found, BadEntry):
                    loaded.errors[name] = found
                else:
                    loaded.stored[name] = found
        return loaded

    def _archive(self) -> Archive:
        return open_archive(self.app.broker, f"schedule.{lead_of(self.app)}")

    def _told(self, name: str, text: bytes | None) -> Stored | None:
        """What a document says; None where it is no good, or there is none."""
        found = None if text is None else _read(self.app, name, text)
        return found if isinstance(found, Stored) else None

    def _find(self, name: str) -> Entry:
        given = self.app.periodic_entries()
        if name in given:
            return read_entry(self.app, name, given[name])
        text = self._archive().get(name)
        if text is None:
            raise self._unknown(name)
        found = read_document(self.app, name, text)
        if found.entry is None:
            raise self._unknown(name)
        return found.entry

    def _unknown(self, name: str) -> UnknownEntry:
        known = list(merged(self.app, self.app.periodic_entries(), self.load()))
        near = get_close_matches(name, known, 3, 0.6)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?" if near else "minicelery schedule list shows all"
        )
        return UnknownEntry(f"no entry is named {name!r:.200}; {hint}")


def merged(app: Celery, given: Mapping[str, Any], loaded: Loaded) -> dict[str, Any]:
    """The entries of the program, as they are `given`, with those that are stored.

    A name that both have is the program's, and whether it is enabled is told by what is stored.
    """
    found = dict(given)
    for name, stored in loaded.stored.items():
        if name in given:
            if stored.enabled and not stored.since:
                continue
            try:
                entry = read_entry(app, name, given[name])
            except BadEntry:
                continue  # whoever reads it next says so
            found[name] = replace(entry, enabled=stored.enabled, since=stored.since)
        elif stored.entry is not None:
            found[name] = stored.entry
    return found


def _read(app: Celery, name: str, text: bytes) -> Stored | BadEntry:
    try:
        return read_document(app, name, text)
    except BadEntry as error:
        return error


def _of_the_program(name: str) -> str:
    return f"entry {name!r} is the program's, from beat_schedule or add_periodic_task"
