"""The schedule in Django's database: ``minicelery beat -S django``."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured as DjangoImproperlyConfigured
from django.core.exceptions import ValidationError

from minicelery.beat import BadEntry, Entry, Scheduler
from minicelery.beat.entries import Template, read_entry
from minicelery.contrib.django.times import aware, moment_of
from minicelery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

APP = "minicelery.contrib.django"
COMPLAIN = 60.0
"""Seconds between two complaints about a database that is away."""
_COLUMNS = (
    "name", "task", "args", "kwargs", "queue", "exchange", "routing_key", "headers", "priority", "expires",
    "expire_seconds", "one_off", "start_time", "enabled", "date_changed",
)  # fmt: skip


class DatabaseScheduler(Scheduler):
    """Says that the entries are the rows of `PeriodicTask`, with the program's, and those of `app.schedule`.

    Rows are read again within seconds after they were changed.  What has run is written back into
    them, for people to see: beats themselves go by what the broker knows.
    """

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        _prepare()
        self._rows: dict[str, Any] | None = None  # by name
        self._change: Any = None
        self._templates: dict[str, tuple[Any, Template]] = {}
        self._ran: dict[str, tuple[float, int]] = {}
        self._said: dict[str, str] = {}
        self._complain_at = 0.0
        self._check_table()

    # -- entries ---------------------------------------------------------------------------

    def entries(self) -> Mapping[str, Any]:
        """Each entry by its name.  While the database is away: with the rows as they were."""
        found = dict(super().entries())
        with self._patience("the schedule can't be read"):
            self._load()
        known, self._templates = self._templates, {}
        for row in (self._rows or {}).values():
            if row.name in found:
                self._combine(found, row)
                continue
            try:
                template = self._template(row, known.get(row.name))
            except Exception as error:  # what stands there may be anything
                self._say(row.name, f"periodic task {row.name!r} is left out, the others go on: {error}")
                continue
            self._said.pop(row.name, None)
            found[row.name] = template
        return found

    def changed(self) -> bool:
        """Whether rows, or other entries, are not as they were.  Writes back what has run."""
        self._write_back()
        if super().changed():
            return True
        with self._patience("the schedule can't be read"):
            return self._rows is None or self._last_change() != self._change
        return False

    def _load(self) -> None:
        from minicelery.contrib.django.models import PeriodicTask
        from minicelery.contrib.django.models.schedule import KINDS

        with _connection():
            change = self._last_change()  # first: what comes between is read again
            rows = PeriodicTask.objects.select_related(*KINDS).order_by("pk")
            self._rows = {row.name: row for row in rows}
            self._change = change

    def _combine(self, found: dict[str, Any], row: Any) -> None:
        """A row with the name of an entry of the program: that one is sent, if the row is enabled."""
        if row.enabled:
            return
        with contextlib.suppress(BadEntry):  # whoever reads it next says so
            found[row.name] = replace(read_entry(self.app, row.name, found[row.name]), enabled=False)

    def _template(self, row: Any, known: tuple[Any, Template] | None) -> Template:
        """The entry of a row; the same object as the last time where nothing of it has changed."""
        scheduler = row.scheduler
        key = [getattr(row, name) for name in _COLUMNS], scheduler and (
            type(scheduler), [str(getattr(scheduler, field.attname)) for field in scheduler._meta.fields]
        )  # fmt: skip
        if known is None or known[0] != key:
            known = key, self._read(row)
        self._templates[row.name] = known
        return known[1]

    def _read(self, row: Any) -> Template:
        label = f"periodic task {row.name!r}"
        try:
            args, kwargs, options = row.call()
        except ValidationError as error:
            raise BadEntry(f"{label}: {'; '.join(error.messages)}") from error
        given = {
            "task": row.task,
            "schedule": row.timing(self.app),
            "args": args,
            "kwargs": kwargs,
            "options": options,
        }
        entry = read_entry(self.app, row.name, given, label)
        begins = aware(row.date_changed).timestamp()
        # Where it has not run since it was enabled, nothing before is made up for.
        since = begins if row.last_run_at is None and not row.one_off else 0.0
        if row.clocked is not None:
            begins = min(begins, aware(row.clocked.clocked_time).timestamp() - 1.0)
        return Template(
            row.name, entry.task, entry.timing, entry.args, entry.kwargs, entry.options,
            enabled=row.enabled, since=since, begins=begins,
        )  # fmt: skip

    # -- what has run ----------------------------------------------------------------------

    def ran(self, entry: Entry) -> None:
        """Note it, to be written within seconds; at once where there is to be no other run."""
        if entry.name not in self._templates:
            return
        self._ran[entry.name] = entry.ran, self._ran.get(entry.name, (0.0, 0))[1] + 1
        row = (self._rows or {}).get(entry.name)
        if row is not None and row.one_off:
            self._write_back()

    def close(self) -> None:
        """Write what is unwritten."""
        self._write_back()

    def _write_back(self) -> None:
        if not self._ran:
            return
        from django.db import router, transaction

        from minicelery.contrib.django.models import PeriodicTask

        using = router.db_for_write(PeriodicTask)
        with self._patience("what has run can't be written"), _connection():
            with transaction.atomic(using=using):
                for name, (at, count) in self._ran.items():
                    if (row := (self._rows or {}).get(name)) is not None:
                        _report(row, at, count)
            self._ran.clear()

    # -- the database ----------------------------------------------------------------------

    def _last_change(self) -> Any:
        from minicelery.contrib.django.models import PeriodicTasks

        with _connection():
            return PeriodicTasks.last_change()

    def _check_table(self) -> None:
        """Raises ImproperlyConfigured where the tables are not there."""
        from django.db import connections, router

        from minicelery.contrib.django.models import PeriodicTask

        with self._patience("the tables can't be looked for"), _connection():
            connection = connections[router.db_for_read(PeriodicTask)]
            if PeriodicTask._meta.db_table not in connection.introspection.table_names():
                raise ImproperlyConfigured(
                    f"the schedule's table {PeriodicTask._meta.db_table} is not there; "
                    "hint: python manage.py migrate"
                )

    @contextlib.contextmanager
    def _patience(self, what: str) -> Iterator[None]:
        """Go on where the database is away, or has what can't be read: that is said now and then."""
        from django.db import Error

        try:
            yield
        except (Error, ValueError, TypeError, ArithmeticError) as error:
            if time.monotonic() >= self._complain_at:
                self._complain_at = time.monotonic() + COMPLAIN
                log.warning("beat: %s, trying on: %s", what, str(error).strip())
        else:
            self._complain_at = 0.0

    def _say(self, name: str, text: str) -> None:
        if self._said.get(name) != text:
            self._said[name] = text
            log.error("beat: %s", text)


def _report(row: Any, at: float, count: int) -> None:
    """Write into a row that it has run `count` times more, the last time at `at`."""
    from django.db.models import F

    from minicelery.contrib.django.models import PeriodicTask, PeriodicTasks

    mine = PeriodicTask.objects.filter(pk=row.pk, enabled=True)
    mine.report(last_run_at=moment_of(at), total_run_count=F("total_run_count") + count)
    if row.one_off and mine.filter(date_changed=row.date_changed).report(enabled=False):
        PeriodicTasks.update_changed()  # else somebody has changed it since


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Use the database without keeping a connection that has grown old, or has broken."""
    from minicelery.contrib.django.connections import close_aged

    close_aged()
    try:
        yield
    finally:
        close_aged()


def _prepare() -> None:
    """Raises ImproperlyConfigured unless Django is set up, with minicelery's app."""
    if not apps.ready:
        try:
            django.setup()
        except DjangoImproperlyConfigured as error:
            raise ImproperlyConfigured(
                f"the schedule is to come from Django's database, and Django is not set up: {error}; "
                f"DJANGO_SETTINGS_MODULE is {os.environ.get('DJANGO_SETTINGS_MODULE')!r}"
            ) from error
    if not apps.is_installed(APP):
        raise ImproperlyConfigured(
            f"the schedule is to come from Django's database, which needs {APP!r} in INSTALLED_APPS"
        )
