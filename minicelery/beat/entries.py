"""Entries: what is sent by which schedule, read and checked."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import ImproperlyConfigured
from minicelery.options import check_arguments_shape, check_call, check_dates
from minicelery.schedules import BaseSchedule, maybe_schedule

if TYPE_CHECKING:
    from minicelery.app import Celery

FIELDS = ("task", "schedule", "args", "kwargs", "options", "relative", "catch_up")
CATCH_UP = ("once", "skip")
"""What becomes of the runs that were missed: one makes up for all of them, or none does."""
_COMPOSITIONS = frozenset({"celery.chain", "celery.group", "celery.chord"})
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_OF_RUNS = uuid.UUID("a1d7c1f0-0d2c-5b55-9b0e-6d5f4e2c9a37")
"""Namespace of the ids of runs."""


class BadEntry(ImproperlyConfigured):
    """An entry that can't be sent; names the entry, the field, the value and what is accepted."""


class BeatLazyFunc:
    """An argument that is computed when its entry is sent: ``BeatLazyFunc(function, *args, **kwargs)``."""

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not callable(func):
            raise TypeError(f"BeatLazyFunc takes a function and its arguments, not {func!r:.80}")
        self._func = func
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> Any:
        return self.delay()

    def delay(self) -> Any:
        """The value."""
        return self._func(*self._args, **self._kwargs)


@dataclass(slots=True, eq=False)
class Entry:
    """One periodic task, and how far it has come.  Times are unix seconds."""

    name: str
    task: str
    timing: Any
    """A schedule, or whatever has an `is_due` like Celery's."""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    catch_up: str = "once"
    last: float = 0.0
    """The due time of its last run, or when it was first seen."""
    due: float = 0.0
    """The time of its next run; 0 where that is not known."""
    wake: float = 0.0
    """When it is looked at again: at `due`, or later where something went wrong."""
    runs: int = 0
    refusals: int = 0
    """How often its next run could not be sent."""
    ran: float = 0.0
    """The due time of its last run; 0 where it has not run."""
    enabled: bool = True
    """One that is not is never due."""
    since: float = 0.0
    """When it was stored, or enabled: it makes up for nothing before."""
    begins: float = 0.0
    """What its first run follows, or that of a new schedule; 0: when beat first sees it."""

    @property
    def polls(self) -> bool:
        """Whether its schedule has to be asked again and again, as only its `is_due` tells."""
        for kind in type(self.timing).__mro__:
            if "next" in vars(kind):
                return kind is BaseSchedule
            if "is_due" in vars(kind):  # made for Celery
                return True
        return True

    @property
    def schedule(self) -> Any:
        """Celery's name of `timing`."""
        return self.timing

    @property
    def last_run_at(self) -> datetime:
        """`last`, as Celery has it."""
        return datetime.fromtimestamp(self.last, timezone.utc)

    @property
    def total_run_count(self) -> int:
        """`runs`, as Celery calls it."""
        return self.runs

    def is_due(self) -> Any:
        """What its schedule says: whether a run is due, and when to ask again."""
        return self.timing.is_due(self.last_run_at)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Those of the next run: what is lazy among them is computed."""
        return [_value(one) for one in self.args], {key: _value(one) for key, one in self.kwargs.items()}


class Template(Entry):
    """An entry that nobody changes any more: whoever has it run makes a copy."""

    __slots__ = ()

    def copy(self) -> Entry:
        """The copy."""
        return Entry(
            self.name, self.task, self.timing, self.args, self.kwargs, self.options, self.catch_up,
            enabled=self.enabled, since=self.since, begins=self.begins,
        )  # fmt: skip


def run_id(lead: str, entry: str, due: float) -> str:
    """The task id of the run of an entry that is due then: always the same one, whoever sends it.

    A UUID of version 5 whose name is the lead, the entry and the due time in microseconds, a line each.
    """
    return str(uuid.uuid5(_OF_RUNS, f"{lead}\n{entry}\n{round(due * 1e6)}"))


def read_entry(app: Celery, name: str, given: Any, label: str | None = None) -> Entry:
    """The entry that is written as `given`.  Raises BadEntry, which calls it `label`."""
    if not is_text(name):
        raise BadEntry(f"beat_schedule: the name {name!r:.80} of an entry; accepted: text")
    if isinstance(given, Entry):
        return given.copy() if isinstance(given, Template) else given
    label = label or f"beat_schedule[{name!r}]"
    if not isinstance(given, Mapping):
        raise bad(label, f"is {_a(given)}", f"a mapping with {', '.join(FIELDS)}")
    for key in given:
        if key not in FIELDS:
            near = get_close_matches(str(key), FIELDS, 1)
            raise bad(
                label, f"{key!r:.80} is unknown" + (f", did you mean {near[0]!r}?" if near else ""), _fields()
            )
    task, args = _task(label, given.get("task")), given.get("args") or ()
    kwargs, options = given.get("kwargs") or _NOTHING, given.get("options") or _NOTHING
    catch_up = given.get("catch_up", "once")
    if catch_up not in CATCH_UP:
        raise bad(label, f"catch_up={catch_up!r:.80}", " or ".join(map(repr, CATCH_UP)))
    timing = _timing(app, label, given)
    _check_call(app, label, task, args, kwargs, options)
    return Entry(name, task, timing, args, kwargs, options, catch_up)


def unknown_tasks(app: Celery, entries: Iterable[Entry]) -> Iterator[str]:
    """What to say of tasks that entries name and that are not registered here, a line for each."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.task not in app.tasks:
            found.setdefault(entry.task, []).append(entry.name)
    for task, names in found.items():
        near = get_close_matches(task, list(app.tasks), 1, 0.7)
        hint = f"did you mean {near[0]!r}?" if near else "only workers that have it can run it"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"entry {names[0]!r}{more}: no task named {task!r} is registered here; {hint}"


def _task(label: str, task: Any) -> str:
    if not isinstance(task, str):
        task = getattr(task, "name", task)
    if not isinstance(task, str) or not task:
        raise bad(label, f"task={task!r:.80}", "the name of a task")
    if task in _COMPOSITIONS:
        raise bad(label, f"task={task!r}", "a single task; have one call the composition")
    return task


def _timing(app: Celery, label: str, given: Mapping[str, Any]) -> Any:
    wanted = "a number of seconds, a timedelta, a crontab, schedule or solar"
    if "schedule" not in given:
        raise bad(label, "schedule is missing", wanted)
    timing = given["schedule"]
    try:
        found = maybe_schedule(timing, bool(given.get("relative", False)), app=app)
    except Exception as error:
        raise BadEntry(f"{label}: schedule={timing!r:.80}: {error}") from error
    if found is None:
        raise bad(label, "schedule=None", wanted)
    return found


def _check_call(app: Celery, label: str, task: str, args: Any, kwargs: Any, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise bad(label, f"options={options!r:.80}", "a mapping, such as {'queue': 'slow', 'expires': 60}")
    if options.get("queue") == "":
        raise bad(label, "options: queue=''", "the name of a queue")
    try:
        check_arguments_shape(task, args, kwargs)
        check_call(task, options, app.conf)
        check_dates(task, options, app.conf.zone())
        found = app.tasks.get(task)
        if found is not None and found.typing:
            found.check_arguments(args, kwargs)
    except (TypeError, ValueError, ImproperlyConfigured) as error:
        raise BadEntry(f"{label}: {error}") from error
    if "task_id" in options:
        raise bad(
            label, f"options: task_id={options['task_id']!r:.80}", "none; each run has an id of its own"
        )


def bad(label: str, fault: str, accepted: str) -> BadEntry:
    """The error that says so."""
    return BadEntry(f"{label}: {fault}; accepted: {accepted}")


def is_text(name: object) -> bool:
    """Whether it is a text of one or more whole characters: JSON may have halves."""
    return (
        isinstance(name, str)
        and name != ""
        and not any("\ud800" <= character <= "\udfff" for character in name)
    )


def _fields() -> str:
    return ", ".join(FIELDS)


def _a(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _value(argument: Any) -> Any:
    return argument() if isinstance(argument, BeatLazyFunc) else argument
