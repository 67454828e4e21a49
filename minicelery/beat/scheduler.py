"""Where beat finds its entries: the app's settings, or what a class of the program's own says."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minicelery.beat.entries import BadEntry, Entry
from minicelery.beat.stored import Loaded, merged
from minicelery.exceptions import OperationalError

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)


find_options: Callable[[Celery, Entry], Mapping[str, Any]] | None = None
"""Gives the options of an entry's next run in place of the entry's own, where another library is to see it."""


class Scheduler:
    """Says what the entries are: the program's, and those of `app.schedule`.

    A subclass may read them from wherever it likes, and has the stored ones by `super().entries()`.
    `entries` is asked at the start, and whenever `changed` has said so.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._seen: Mapping[str, Any] = {}
        self._stored = Loaded("")
        self._is_loaded = False
        self._found: Loaded | None = None  # by `changed`
        self._warned: Mapping[str, BadEntry] = {}

    def entries(self) -> Mapping[str, Any]:
        """Each entry by its name, as in `beat_schedule`, or as an `Entry`.

        While the broker is away: with what was stored when it was last there.
        """
        self._seen = self.app.periodic_entries()
        try:
            self._stored, self._is_loaded = self._found or self.app.schedule.follow(), True
        except OperationalError as error:
            self._is_loaded = False
            log.warning("beat: the stored entries can't be read yet: %s", error)
        self._found = None
        for name, bad in self._stored.errors.items():
            if self._warned.get(name) is not bad:
                log.warning("beat: %s; it is left out, the others go on", bad)
        self._warned = self._stored.errors
        return merged(self.app, self._seen, self._stored)

    def changed(self) -> bool:
        """Whether `entries` would say anything else than the last time.  Asked every few seconds.

        Raises OperationalError where the broker is away.
        """
        if not self._is_loaded:
            self._found = self.app.schedule.follow()  # or else nothing is known, and nothing may be sent
            return True
        if self.app.periodic_entries() != self._seen:
            return True
        if self.app.schedule.version() == self._stored.version:
            return False
        self._found = self.app.schedule.follow()
        if (self._found.stored, self._found.errors) != (self._stored.stored, self._stored.errors):
            return True
        self._stored, self._found = self._found, None
        return False

    def ran(self, entry: Entry) -> None:
        """Called when a run of the entry has been sent: the last one was due at `entry.ran`.

        Must be quick and raise nothing: others are due.
        """

    def lead(self) -> None:
        """Called when this beat begins to lead, and again where others may have led meanwhile."""

    def rest(self) -> None:
        """Called while another beat leads."""

    def send(self, holds: Callable[[], bool]) -> float:
        """Send what it sends besides its entries, while `holds`; in how many seconds to be asked again."""
        return math.inf

    def close(self) -> None:
        """Called when beat ends."""
