"""How far each entry has come, kept in the broker: whoever leads next goes on from there."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterable
from itertools import islice
from typing import NamedTuple

from minicelery.beat.entries import Entry
from minicelery.beat.timing import is_elapsed, mark, taken_up
from minicelery.broker import Broker
from minicelery.exceptions import BrokerUnavailable, OperationalError

log = logging.getLogger(__name__)

KEPT = 400 * 86400.0
"""Seconds that an entry is remembered which nobody schedules any more."""
CHUNK = 500
"""Entries that are written in one trip."""
ANEW = 300.0
"""Seconds after which all is written again: the server may have lost it."""
STREAM_ANEW, STREAM_BYTES = 86400.0, 8_000_000
"""The same where records are added to a stream, and bytes after which it is done before that: the server
drops what is old, or too much."""
_OVERHEAD = 300
"""Bytes of a record in a stream beside its text, about."""


class Kept(NamedTuple):
    """What was written of an entry."""

    last: float
    runs: int
    mark: str
    ran: float = 0.0


class Ledger:
    """Reads and writes it."""

    def __init__(self, broker: Broker, lead: str, *, is_stream: bool) -> None:
        self._broker = broker
        self._is_stream = is_stream
        self._dirty: dict[str, Entry] = {}
        self._bytes = 0  # written since all was
        self._anew_at = 0.0
        self.topic = f"beat.{lead}"
        self.usable = True
        """Whether the broker has a place for it."""

    def load(self) -> dict[str, Kept]:
        """What is known of each entry.  What can't be read is warned of, and left out.

        Raises BrokerUnavailable.
        """
        found: dict[str, Kept] = {}
        try:
            texts = self._broker.recall(self.topic)
            self.usable = True
        except BrokerUnavailable:
            raise
        except OperationalError as error:
            self.usable = False
            log.error("beat: the last runs are not known, all entries begin anew: %s", error)
            return found
        for name, text in texts.items():
            kept = _read(text)
            if kept is None:
                log.warning(
                    "beat: what is stored of entry %r can't be read; it begins anew: %.80r", name, text
                )
            else:
                found[name] = kept
        return found

    def records(self, sent: Iterable[tuple[Entry, float]]) -> dict[str, bytes]:
        """What is to be written of entries whose runs, due then, are being sent."""
        if not self.usable:
            return {}
        found = {entry.name: _text(entry, due, entry.runs + 1, due) for entry, due in sent}
        self._count(found)
        return found

    def is_written(self, entries: Iterable[Entry]) -> None:
        """The `records` of these have gone with their runs."""
        if self.usable:
            for entry in entries:
                self._dirty.pop(entry.name, None)

    def note(self, entries: Iterable[Entry]) -> None:
        """Have `flush` write how far these have come."""
        for entry in entries:
            self._dirty[entry.name] = entry

    def note_all(self, entries: Collection[Entry], steady: float) -> None:
        """The same of all entries there are."""
        self.note(entries)
        self._bytes = 0
        self._anew_at = steady + (STREAM_ANEW if self._is_stream else ANEW)

    def is_old(self, steady: float) -> bool:
        """Whether all should be written again."""
        return steady >= self._anew_at or (self._is_stream and self._bytes > STREAM_BYTES)

    def flush(self) -> None:
        """Write what was noted.  Raises OperationalError: it is kept, and written the next time."""
        while self._dirty:
            some = dict(islice(self._dirty.items(), CHUNK))
            texts = {name: _text(entry, entry.last, entry.runs, entry.ran) for name, entry in some.items()}
            self._broker.remember_all(self.topic, texts, KEPT)
            self._count(texts)
            for name in some:
                del self._dirty[name]
            self.usable = True

    def _count(self, texts: dict[str, bytes]) -> None:
        self._bytes += sum(map(len, texts.values())) + _OVERHEAD * len(texts)


def resume(entry: Entry, kept: Kept | None, now: float) -> bool:
    """Set the entry to how far it has come; whether it begins anew, and that is to be noted.

    A new schedule does not make up for times before it, nor does an entry for those at which it
    was not enabled, or not there.
    """
    begins = min(entry.begins or now, now)
    if kept is None:
        entry.last = begins
        return True
    entry.runs, entry.ran = kept.runs, kept.ran
    same = kept.mark == mark(entry.timing) or is_elapsed(entry.timing)
    entry.last = taken_up(entry.timing, kept.last, now) if same else begins
    since = min(entry.since, now)
    if entry.last < since:
        entry.last = since
        return True
    return not same


def known(entry: Entry) -> Kept:
    """How far the entry has come."""
    return Kept(entry.last, entry.runs, mark(entry.timing), entry.ran)


def _text(entry: Entry, last: float, runs: int, ran: float) -> bytes:
    fields = {"last": last, "runs": runs, "schedule": mark(entry.timing), "ran": ran}
    return json.dumps(fields).encode()


def _read(text: bytes) -> Kept | None:
    try:
        fields = json.loads(text)
        kept = Kept(
            float(fields["last"]), int(fields["runs"]), str(fields["schedule"]), float(fields.get("ran", 0.0))
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return kept if all(math.isfinite(at) and 0 <= at < 1e11 for at in (kept.last, kept.ran)) else None
