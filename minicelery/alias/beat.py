"""Schedulers written for Celery: what `celery.beat` has for them to build on.

`minicelery.beat.ticking` drives them: it makes one when its beat begins to lead, calls `tick` as
often as that asks for, `sync` now and then, and `close` at the end.
"""

from __future__ import annotations

import copy
import heapq
import logging
import shelve
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from functools import cached_property, total_ordering
from typing import Any, NamedTuple

from minicelery.beat import BeatLazyFunc
from minicelery.beat import scheduler as ours
from minicelery.exceptions import MiniCeleryError, OperationalError
from minicelery.schedules import crontab, maybe_schedule

__all__ = [
    "BeatLazyFunc",
    "PersistentScheduler",
    "ScheduleEntry",
    "Scheduler",
    "SchedulingError",
    "event_t",
]

log = logging.getLogger(__name__)

EDITABLE = ("task", "schedule", "args", "kwargs", "options")
"""Fields of an entry that `update` takes over, and by which two of them are the same."""
SYNC_EVERY = 1.0
"""Seconds after which what has run is written back: so much a beat that takes over may not know."""
SOONEST = 0.05
"""Seconds between two questions to a schedule."""
PRIORITY = 5
UTC = timezone.utc


class SchedulingError(MiniCeleryError):
    """The run of an entry could not be sent."""


class event_t(NamedTuple):  # noqa: N801 - Celery's name
    """A place in the heap: when an entry is looked at, in unix seconds."""

    time: float
    priority: int
    entry: Any


@total_ordering
class ScheduleEntry:
    """A periodic task, when it ran last, and how often it has."""

    name: Any = None
    schedule: Any = None
    args: Any = None
    kwargs: Any = None
    options: Any = None
    last_run_at: Any = None
    total_run_count: int = 0

    def __init__(
        self, name: Any = None, task: Any = None, last_run_at: Any = None, total_run_count: int | None = None,
        schedule: Any = None, args: Any = (), kwargs: Any = None, options: Any = None, relative: bool = False,
        app: Any = None,
    ) -> None:  # fmt: skip
        self.app = app
        self.name = name
        self.task = task
        self.args = args
        self.kwargs = kwargs or {}
        self.options = options or {}
        self.schedule = maybe_schedule(schedule, relative, app=app)
        self.last_run_at = last_run_at or self.default_now()
        self.total_run_count = total_run_count or 0

    def default_now(self) -> Any:
        """The time, by its schedule's clock."""
        return (self.schedule or self.app).now()

    _default_now = default_now

    def _next_instance(self, last_run_at: Any = None) -> Any:
        """The entry as it is once it has run."""
        fields = {**dict(self), "last_run_at": last_run_at or self.default_now()}
        return type(self)(**{**fields, "total_run_count": self.total_run_count + 1})

    __next__ = next = _next_instance

    def update(self, other: Any) -> None:
        """Take over what may be edited; when it ran, and how often, stays."""
        vars(self).update({name: getattr(other, name) for name in EDITABLE})

    def is_due(self) -> Any:
        """What its schedule says: whether a run is due, and when to ask again."""
        return self.schedule.is_due(self.last_run_at)

    def editable_fields_equal(self, other: Any) -> bool:
        """Whether what may be edited is the same."""
        return all(getattr(self, name) == getattr(other, name) for name in EDITABLE)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(vars(self).items())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.name, self.task, self.last_run_at, self.total_run_count, self.schedule, self.args,
            self.kwargs, self.options,
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.name} {self.task}(*{self.args}, **{self.kwargs}) {self.schedule}>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScheduleEntry) and self.editable_fields_equal(other)

    def __lt__(self, other: object) -> bool:
        # In a heap it only matters that they can be compared.
        return id(self) < id(other) if isinstance(other, ScheduleEntry) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as what is compared by fields that change


class Scheduler:
    """Knows the entries, and sends those that are due, one for each `tick`."""

    Entry: Any = ScheduleEntry
    max_interval: float = 300
    """The longest time between two ticks, in seconds."""
    sync_every: float = SYNC_EVERY
    sync_every_tasks: int | None = None
    logger = log

    _last_sync: float | None = None
    _tasks_since_sync = 0
    _heap: Any = None
    old_schedulers: Any = None

    def __init__(
        self, app: Any, schedule: Any = None, max_interval: float | None = None, Producer: Any = None,  # noqa: N803
        lazy: bool = False, sync_every_tasks: int | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.app = app
        found = schedule() if callable(schedule) else schedule
        self.data: Any = {} if found is None else found
        self.max_interval = max_interval or app.conf.beat_max_loop_interval or self.max_interval
        self.Producer = Producer
        if sync_every_tasks is not None:
            self.sync_every_tasks = sync_every_tasks
        if not lazy:
            self.setup_schedule()

    # -- entries ---------------------------------------------------------------------------

    def get_schedule(self) -> Any:
        """The entries by their names."""
        return self.data

    def set_schedule(self, schedule: Any) -> None:
        """Have other ones."""
        self.data = schedule

    schedule: Any = property(get_schedule, set_schedule)

    def setup_schedule(self) -> None:
        """Read the entries, at the start."""
        self.install_default_entries(self.data)
        self.merge_inplace(self.app.periodic_entries())

    def install_default_entries(self, data: Any) -> None:
        """Add the entry that has expired results dropped, where their store does not do so itself."""
        expire_by_themselves = getattr(self.app.backend, "supports_autoexpire", True)
        if not self.app.conf.result_expires or expire_by_themselves:
            return
        if "celery.backend_cleanup" not in data:
            nightly = {
                "task": "celery.backend_cleanup",
                "schedule": crontab("0", "4", "*"),
                "options": {"expires": 12 * 3600},
            }
            self.update_from_dict({"celery.backend_cleanup": nightly})

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Add entries, or replace them; as in `beat_schedule`, or as entries."""
        self.schedule.update({name: self._maybe_entry(name, entry) for name, entry in dict_.items()})

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Have these entries and no others; those that are there already keep when they ran."""
        schedule = self.schedule
        for name in set(schedule) ^ set(b):
            schedule.pop(name, None)
        for name, fields in b.items():
            entry = self.Entry(**{**dict(fields), "name": name, "app": self.app})
            if schedule.get(name):
                schedule[name].update(entry)
            else:
                schedule[name] = entry

    def add(self, **kwargs: Any) -> Any:
        """Add an entry, and return it."""
        entry = self.Entry(app=self.app, **kwargs)
        self.schedule[entry.name] = entry
        return entry

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        if isinstance(entry, self.Entry):
            entry.app = self.app
            return entry
        return self.Entry(**{**dict(entry), "name": name, "app": self.app})

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> bool:
        """Whether nothing was added, removed or edited."""
        if old_schedules is None or new_schedules is None:
            return old_schedules is new_schedules
        return set(old_schedules) == set(new_schedules) and all(
            new_schedules.get(name) and new_schedules.get(name) == entry
            for name, entry in old_schedules.items()
        )

    # -- time ------------------------------------------------------------------------------

    def tick(self) -> float:
        """Send what is due first, if it is; in how many seconds to be called again.

        Raises OperationalError where the broker is away: then it is due still.
        """
        if self._heap is None or not self.schedules_equal(self.old_schedulers, self.schedule):
            self.old_schedulers = copy.copy(self.schedule)
            self.populate_heap()
        if not self._heap:
            return self.max_interval
        event = self._heap[0]
        ahead: float = event.time - self._when(event.entry, 0)
        if ahead > 0:
            return min(ahead, self.max_interval)
        is_due, again = self._ask(self.is_due, event.entry)
        entry = event.entry
        if is_due:
            self.apply_entry(entry, producer=self.producer)
            entry = self.reserve(entry)
        if self._heap and self._heap[0] is event:  # else it was made anew meanwhile
            heapq.heapreplace(self._heap, event_t(self._when(entry, self._number(again)), PRIORITY, entry))
        return 0 if is_due or self._heap[0].entry is not entry else self._number(again)

    def populate_heap(self) -> None:
        """Order the entries by when they are to be looked at."""
        heap = []
        for entry in self.schedule.values():
            is_due, again = self._ask(lambda one: one.is_due(), entry)
            heap.append(event_t(self._when(entry, 0 if is_due else self._number(again)), PRIORITY, entry))
        heapq.heapify(heap)
        self._heap = heap

    def is_due(self, entry: Any) -> Any:
        """Whether a run of the entry is due, and in how many seconds to ask again."""
        return entry.is_due()

    def adjust(self, n: Any, drift: float = -0.010) -> Any:
        """A pause, a little shorter: so that a run is not late by what a tick takes."""
        return n + drift if n and n > 0 else n

    def _ask(self, ask: Any, entry: Any) -> tuple[bool, Any]:
        try:
            is_due, again = ask(entry)
        except Exception:  # the schedule's own code: the others go on
            log.exception(
                "beat: when %r runs next can't be told; asked again in %s s", entry.name, self.max_interval
            )
            return False, self.max_interval
        return is_due, again

    def _number(self, again: Any) -> float:
        is_number = isinstance(again, (int, float)) and not isinstance(again, bool)
        return min(max(SOONEST, again), self.max_interval) if is_number else float(self.max_interval)

    def _when(self, entry: Any, next_time_to_run: Any) -> float:
        """Unix seconds at which the entry is to be looked at, by its own clock."""
        now: datetime = entry.default_now()
        aware = now if now.tzinfo is not None else now.replace(tzinfo=UTC)
        ahead: float = self.adjust(next_time_to_run) or 0
        return aware.timestamp() + ahead

    # -- sending ---------------------------------------------------------------------------

    def reserve(self, entry: Any) -> Any:
        """Note that the entry has run; the entry as it is from now on."""
        found = self.schedule[entry.name] = next(entry)
        return found

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a run of the entry; what it is refused for is logged.

        Raises OperationalError where the broker is away.
        """
        if isinstance(self, _Asked):
            return
        log.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            result = self.apply_async(entry, producer=producer, advance=False)
        except OperationalError:
            raise
        except Exception as error:
            log.exception("beat: entry %r can't be sent, the others go on: %s", entry.name, error)
        else:
            log.debug("%s sent. id->%s", entry.task, getattr(result, "id", None))

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send a run of the entry, after noting it with `advance`.  Raises SchedulingError, OperationalError."""
        if advance:
            entry = self.reserve(entry)
        task = self.app.tasks.get(entry.task)
        try:
            args = [_value(one) for one in entry.args or ()]
            kwargs = {name: _value(one) for name, one in (entry.kwargs or {}).items()}
            options = {**entry.options, "producer": producer}
            options["headers"] = {**(options.get("headers") or {}), "celery_beat_task": True}
            if task:
                return task.apply_async(args, kwargs, **options)
            return self.send_task(entry.task, args, kwargs, **options)
        except OperationalError:
            raise
        except Exception as error:
            raise SchedulingError(f"entry {entry.name!r}: {entry.task} can't be sent: {error}") from error
        finally:
            self._tasks_since_sync += 1
            if self.should_sync():
                self._do_sync()

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        """Send a call of a task that is not registered here."""
        return self.app.send_task(*args, **kwargs)

    @cached_property
    def connection(self) -> Any:
        """A handle on the app's broker."""
        return self.app.connection_for_write()

    @cached_property
    def producer(self) -> Any:
        """What `apply_async` is given; calls go to the app's broker in any case."""
        return (self.Producer or self.app.producer_pool.acquire)(
            *([self.connection] if self.Producer else ())
        )

    # -- writing back ----------------------------------------------------------------------

    def should_sync(self) -> bool:
        """Whether it is time to write back."""
        if self.sync_every_tasks and self._tasks_since_sync >= self.sync_every_tasks:
            return True
        return self._last_sync is None or time.monotonic() - self._last_sync > self.sync_every

    def _do_sync(self) -> None:
        try:
            self.sync()
        finally:
            self._last_sync = time.monotonic()
            self._tasks_since_sync = 0

    def sync(self) -> None:
        """Write back what has run."""

    def close(self) -> None:
        """Write back, and let go of what is open."""
        self.sync()

    @property
    def info(self) -> str:
        """A line about it."""
        return ""


class PersistentScheduler(Scheduler):
    """Keeps in a file when its entries ran, for schedulers that build on Celery's.

    Where no scheduler is named, beat remembers that in the broker, and needs no file.
    """

    persistence: Any = shelve
    _store: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.schedule_filename = kwargs.get("schedule_filename") or "celerybeat-schedule"
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        self._store = self._open_schedule()
        try:
            self._store.setdefault("entries", {})
        except Exception as error:  # of another version, or torn
            log.error("beat: %s can't be read, and begins anew: %r", self.schedule_filename, error)
            self._store.close()
            self._store = self.persistence.open(self.schedule_filename, flag="n", writeback=True)
            self._store["entries"] = {}
        self.merge_inplace(self.app.periodic_entries())
        self.install_default_entries(self.schedule)
        self.sync()

    def _open_schedule(self) -> Any:
        return self.persistence.open(self.schedule_filename, writeback=True)

    def get_schedule(self) -> Any:
        """The entries by their names."""
        return self._store["entries"]

    def set_schedule(self, schedule: Any) -> None:
        """Have other ones."""
        self._store["entries"] = schedule

    schedule = property(get_schedule, set_schedule)

    def sync(self) -> None:
        """Write the file."""
        if self._store is not None:
            self._store.sync()

    def close(self) -> None:
        """Write the file, and close it."""
        self.sync()
        if self._store is not None:
            self._store.close()
            self._store = None

    @property
    def info(self) -> str:
        """Where the file is."""
        return f"    . db -> {self.schedule_filename}"


def _value(argument: Any) -> Any:
    return argument() if isinstance(argument, BeatLazyFunc) else argument


class _Asked(Scheduler):
    """In whose place `apply_entry` is called for an entry that minicelery's own beat sends."""

    def __init__(self, app: Any) -> None:
        self.app = app


_plain_apply_entry = Scheduler.apply_entry


def _options(app: Any, entry: Any) -> Mapping[str, Any]:
    """The options of a run: with what somebody does who has put his `apply_entry` in the place of Celery's."""
    given: Mapping[str, Any] = entry.options
    if Scheduler.apply_entry is _plain_apply_entry:
        return given
    asked = copy.copy(entry)
    asked.options = copy.deepcopy(dict(given))
    Scheduler.apply_entry(_Asked(app), asked)
    changed: Mapping[str, Any] = asked.options
    return changed


def on_served() -> None:
    """From now on minicelery's own beat looks whether somebody is around `apply_entry`."""
    ours.find_options = _options
