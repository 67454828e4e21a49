"""Where beat finds its entries: the app's settings, or what a class of the program's own says."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minicelery.beat.entries import BadEntry
from minicelery.beat.stored import Loaded, merged
from minicelery.exceptions import ImproperlyConfigured, OperationalError

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

_CELERYS = ("celery.beat", "minicelery.beat")
_ITS_CLASSES = ("PersistentScheduler", "Scheduler")


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


def open_scheduler(app: Celery, named: str | type[Scheduler] | None = None) -> Scheduler:
    """The scheduler that is named, or else that of `beat_scheduler`.  Raises ImproperlyConfigured."""
    return scheduler_class(app, named)(app)


def scheduler_class(app: Celery, named: str | type[Scheduler] | None = None) -> type[Scheduler]:
    """Its class."""
    given = named or app.conf.beat_scheduler
    kind = _find(given) if isinstance(given, str) else given
    if not (isinstance(kind, type) and issubclass(kind, Scheduler)):
        raise ImproperlyConfigured(
            f"beat_scheduler={given!r:.100}: expected a subclass of minicelery.beat.Scheduler, which has "
            "entries() and changed()"
        )
    return kind


def _find(name: str) -> Any:
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if module in _CELERYS and attribute in _ITS_CLASSES:
        return Scheduler
    if module.startswith("django_celery_beat"):
        raise ImproperlyConfigured(
            f"beat_scheduler={name!r}: django-celery-beat is not part of this version; "
            "entries are read from beat_schedule, or by a subclass of minicelery.beat.Scheduler"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(
            f"beat_scheduler={name!r}: {error}; expected module:Class, a subclass of minicelery.beat.Scheduler"
        ) from error
