"""`minicelery schedule`: what beat sends, and changes of it while beats run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone, tzinfo
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minicelery.cli import ui
from minicelery.cli.call import json_list, json_object
from minicelery.cli.session import Session, common_options
from minicelery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.beat import PlannedEntry

F = TypeVar("F", bound=Callable[..., Any])

SHOWN = 100
"""Characters of a name that a line has room for; --json has all."""
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_HEADER = ("name", "task", "schedule", "next run", "UTC", "in", "last run", "runs", "source", "enabled")


def seconds(text: str) -> float:
    """A span such as ``30``, ``5m`` or ``1h30m``, in seconds."""
    try:
        return float(text)
    except ValueError:
        pass
    if not _SPAN.fullmatch(text.lower()):
        raise click.BadParameter(
            f"{text!r} is no span of time; accepted: seconds such as 30, or days, hours, minutes and "
            f"seconds such as 5m, 1h30m and 1d"
        )
    parts = re.findall(r"([\d.]+)([dhms])", text.lower())
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@click.group("schedule", invoke_without_command=True, short_help="Show and change what beat sends.")
@common_options()
@click.pass_context
def schedule(context: click.Context) -> int | None:
    """Show what beat sends, and change it: running beats take changes up within seconds."""
    if context.invoked_subcommand is None:
        ui.say(context.get_help())
        return ui.USAGE
    return None


@schedule.command("list", short_help="All entries, and when they run next.")
@common_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def list_entries(session: Session, /, *, as_json: bool) -> int:
    """Print every entry: of the program, and those that were added."""
    app = _app(session)
    entries, errors = app.schedule.overview()
    for error in errors:
        ui.warning(f"{error}; it is left out")
    now, zone = datetime.now(timezone.utc), app.conf.zone()
    if as_json:
        ui.say_json([_document(entry, now, zone) for entry in entries.values()])
        return 0
    if not entries:
        ui.say("No entries: minicelery schedule add adds one, as do beat_schedule and app.add_periodic_task.")
        return 0
    ui.say(ui.table(_HEADER, [_row(entry, now, zone) for entry in entries.values()]))
    _note_missing_beat(session, app)
    return 0


def _in_order(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@schedule.command("add", short_help="Add an entry, or replace one.")
@click.argument("name", metavar="NAME")
@common_options()
@_in_order(
    click.option("-t", "--task", required=True, metavar="TASK", help="Name of the task."),
    click.option("--every", type=seconds, metavar="SPAN", help="Run it each 30 (seconds), 5m, 1h30m, 1d."),
    click.option("--crontab", "line", metavar="LINE", help="Run it by a line such as '0 4 * * mon-fri'."),
    click.option(
        "--solar", "event", metavar="EVENT", help="Run it at sunrise, sunset, …; needs --lat, --lon."
    ),
    click.option("--lat", type=float, metavar="DEGREES", help="Latitude, north is positive."),
    click.option("--lon", type=float, metavar="DEGREES", help="Longitude, east is positive."),
    click.option("--tz", metavar="ZONE", help="Time zone of the schedule, if not the app's."),
    click.option("--relative", is_flag=True, help="With --every: run it at round times."),
    click.option("-a", "--args", type=json_list, metavar="JSON", help="Arguments, as a list."),
    click.option("-k", "--kwargs", type=json_object, metavar="JSON", help="Keyword arguments, as an object."),
    click.option("-Q", "--queue", metavar="NAME", help="Queue to send it to."),
    click.option("--priority", type=click.IntRange(0, 9), help="0 to 9."),
    click.option("--expires", type=seconds, metavar="SPAN", help="Don't run it that long after it was due."),
    click.option(
        "--catch-up", type=click.Choice(["once", "skip"]), default="once", help="What missed runs become."
    ),
    click.option("--disabled", is_flag=True, help="Don't send it before it is enabled."),
    click.option("--replace", is_flag=True, help="Change an entry that is there."),
)
@click.pass_obj
def add(
    session: Session,
    /,
    *,
    name: str,
    task: str,
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    catch_up: str,
    disabled: bool,
    replace: bool,
    **given: Any,
) -> int:
    """Have beat send TASK by a schedule:

    minicelery schedule add nightly --task shop.tidy --crontab '0 4 * * *'
    """
    app = _app(session)
    options = {key: given[key] for key in ("queue", "priority", "expires") if given[key] is not None}
    from minicelery.beat import BadEntry
    from minicelery.registry import OWN_TASKS

    try:
        timing = _timing(app, given)
        app.schedule.add(
            name, task, timing, args or [], kwargs,
            options=options, catch_up=catch_up, enabled=not disabled, replace=replace,
        )  # fmt: skip
    except BadEntry as failure:
        text, hint = ui.split_hint(failure)
        raise ui.CommandError(
            text, hint=(hint or "").replace("replace=True", "--replace") or None, exit_code=ui.USAGE
        ) from failure
    if task not in app.tasks:
        near = ui.did_you_mean(task, [known for known in app.tasks if not known.startswith(OWN_TASKS)])
        ui.warning(
            f"no task {task!r} is known here{', ' + near if near else ''}; only workers that have it can run it"
        )
    _say_next(app, name, "stored")
    return 0


@schedule.command("remove", short_help="Forget an entry that was added.")
@click.argument("name", metavar="NAME")
@common_options()
@click.pass_obj
def remove(session: Session, /, *, name: str) -> int:
    """Forget the entry NAME.  One of the program can be disabled only."""
    from minicelery.beat import BadEntry

    try:
        _app(session).schedule.remove(name)
    except BadEntry as failure:
        text, hint = ui.split_hint(failure)
        raise ui.CommandError(text, hint=hint) from failure
    ui.say(f"Entry {name!r} is removed.")
    return 0


@schedule.command("enable", short_help="Have an entry sent again.")
@click.argument("name", metavar="NAME")
@common_options()
@click.pass_obj
def enable(session: Session, /, *, name: str) -> int:
    """Have the entry NAME sent again, from now on."""
    app = _app(session)
    app.schedule.enable(name)
    _say_next(app, name, "enabled")
    return 0


@schedule.command("disable", short_help="Have an entry not sent for now.")
@click.argument("name", metavar="NAME")
@common_options()
@click.pass_obj
def disable(session: Session, /, *, name: str) -> int:
    """Have the entry NAME not sent until it is enabled."""
    _app(session).schedule.disable(name)
    ui.say(f"Entry {name!r} is disabled.")
    return 0


@schedule.command("run", short_help="Send an entry's task now.")
@click.argument("name", metavar="NAME")
@common_options()
@click.pass_obj
def run(session: Session, /, *, name: str) -> int:
    """Send the task of the entry NAME now, besides its schedule, and print its id."""
    ui.say(_app(session).schedule.run(name).id)
    return 0


def _app(session: Session) -> Celery:
    app = session.app()
    app.set_current()
    app.import_task_modules()
    if app.broker.url.startswith("memory:"):
        session.note("broker memory:// lives in one process: what is changed here no beat will see")
    from minicelery.beat.choosing import scheduler_class
    from minicelery.beat.scheduler import Scheduler

    if scheduler_class(app) is not Scheduler:
        session.note(
            f"beat_scheduler={app.conf.beat_scheduler!r} says what is sent: stored entries only if it asks for them"
        )
    return app


# -- what is added -------------------------------------------------------------------------


def _timing(app: Celery, given: Mapping[str, Any]) -> Any:
    kinds = {"--every": given["every"], "--crontab": given["line"], "--solar": given["event"]}
    chosen = [kind for kind, value in kinds.items() if value is not None]
    if len(chosen) != 1:
        raise ui.CommandError(
            f"{' and '.join(chosen) or 'no schedule'} given",
            hint=f"give exactly one of {', '.join(kinds)}",
            exit_code=ui.USAGE,
        )
    (kind,) = chosen
    _refuse_strangers(kind, given)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        timing = _made(app, kind, given)
    for one in told:  # a step that is longer than its range
        ui.warning(str(one.message))
    return timing


def _made(app: Celery, kind: str, given: Mapping[str, Any]) -> Any:
    from minicelery.schedules import crontab
    from minicelery.schedules import schedule as interval

    try:
        if kind == "--every":
            return interval(given["every"], given["relative"], app=app, tz=given["tz"])
        if kind == "--crontab":
            return crontab.from_string(given["line"], app=app, tz=given["tz"])
        return _solar(app, given)
    except (ValueError, TypeError, OverflowError, ImproperlyConfigured) as failure:
        text, hint = ui.split_hint(failure)
        raise ui.CommandError(f"{kind}: {text}", hint=hint, exit_code=ui.USAGE) from failure


def _refuse_strangers(kind: str, given: Mapping[str, Any]) -> None:
    """Refuse options that belong to another kind of schedule."""
    others = (("--relative", given["relative"] or None, "--every"),
              ("--lat", given["lat"], "--solar"), ("--lon", given["lon"], "--solar"))  # fmt: skip
    for option, value, belongs in others:
        if value is not None and kind != belongs:
            raise ui.CommandError(f"{option} goes with {belongs} only, not with {kind}", exit_code=ui.USAGE)
        if value is None and kind == belongs == "--solar":
            raise ui.CommandError(f"{option} is missing: --solar needs a place", exit_code=ui.USAGE)


def _solar(app: Celery, given: Mapping[str, Any]) -> Any:
    from minicelery.schedules import solar

    return solar(given["event"], given["lat"], given["lon"], app=app, tz=given["tz"])


def _say_next(app: Celery, name: str, done: str) -> None:
    entry = app.schedule.overview()[0].get(name)
    text = f"Entry {name!r} is {done}"
    if entry is not None and entry.next_run is not None:
        now, at = datetime.now(timezone.utc), entry.next_run.astimezone(app.conf.zone())
        text += f", and runs {_words(entry)}; next at {at:%Y-%m-%d %H:%M:%S %Z}, {_when(entry.next_run, now)}"
    elif entry is not None and not entry.enabled:
        text += ", and disabled"
    ui.say(f"{text}.")


# -- what is shown -------------------------------------------------------------------------


def _row(entry: PlannedEntry, now: datetime, zone: tzinfo) -> Sequence[object]:
    following = entry.next_run
    return (
        printable(entry.name),
        printable(entry.task),
        _words(entry),
        "-" if following is None else f"{following.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}",
        "-" if following is None else f"{following:%m-%d %H:%M:%S}",
        "-" if following is None else _when(following, now),
        "-" if entry.last_run is None else _when(entry.last_run, now),
        entry.runs,
        entry.source,
        "yes" if entry.enabled else "no",
    )


def printable(text: str) -> str:
    """A text that anybody may have stored, without what moves the cursor, and not too long."""
    safe = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:SHOWN])
    return safe if len(text) <= SHOWN else f"{safe}…"


def _document(entry: PlannedEntry, now: datetime, zone: tzinfo) -> dict[str, Any]:
    following, last = entry.next_run, entry.last_run
    return {
        "name": entry.name, "task": entry.task, "schedule": _words(entry), "form": _form(entry.schedule),
        "args": list(entry.args), "kwargs": dict(entry.kwargs), "options": dict(entry.options),
        "catch_up": entry.catch_up, "enabled": entry.enabled, "source": entry.source, "runs": entry.runs,
        "last_run": last and last.isoformat(),
        "next_run": following and following.astimezone(zone).isoformat(),
        "next_run_utc": following and following.isoformat(),
        "next_run_in": following and _when(following, now),
    }  # fmt: skip


def _form(timing: Any) -> dict[str, Any] | None:
    from minicelery.schedules import to_form

    try:
        return to_form(timing)
    except TypeError:  # of a class of the program's own
        return None


def _words(entry: PlannedEntry) -> str:
    from minicelery.schedules.words import in_words

    return in_words(entry.schedule)


def _when(moment: datetime, now: datetime) -> str:
    from minicelery.schedules.words import from_now

    return from_now((moment - now).total_seconds())


def _note_missing_beat(session: Session, app: Celery) -> None:
    from minicelery.beat.lease import lead_of

    if not app.broker.leader(lead_of(app)):
        session.note("no beat is running: minicelery beat sends what is due, or minicelery worker --beat")
