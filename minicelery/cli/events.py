"""`minicelery events`: what workers and clients tell, as it happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import click

from minicelery.cli import ui
from minicelery.cli.cells import plain
from minicelery.cli.session import Session, common_options
from minicelery.exceptions import OperationalError

NAMES = 4096
"""Tasks whose names are remembered: only the first events of a task tell it."""
_COLOURS = {
    "task-succeeded": "green", "task-failed": "red", "task-retried": "yellow", "task-revoked": "magenta",
    "task-rejected": "magenta",
}  # fmt: skip
_CELERY_TYPES = {"worker-offline": "shutdown", "worker-online": "started", "worker-heartbeat": "heartbeat"}
_ALWAYS = frozenset(
    {"type", "timestamp", "hostname", "uuid", "name", "utcoffset", "pid", "clock", "local_received"}
)


class Names:
    """The names of tasks by their ids."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}  # and how they were called

    def of(self, event: Mapping[str, Any]) -> str:
        """The task's name; empty where it has not been told."""
        return self._look(event)[0]

    def call(self, event: Mapping[str, Any]) -> str:
        """The task's name, id and arguments; empty where they have not been told."""
        return self._look(event)[1]

    def _look(self, event: Mapping[str, Any]) -> tuple[str, str]:
        id, name = str(event.get("uuid")), event.get("name")
        if isinstance(name, str):
            self._known[id] = name, f"{name}({id}) args={event.get('args')} kwargs={event.get('kwargs')}"
            while len(self._known) > NAMES:
                del self._known[next(iter(self._known))]
        return self._known.get(id, ("", ""))


def as_line(event: Mapping[str, Any], names: Names) -> str:
    """An event as one line, for people."""
    type = str(event.get("type"))
    moment = datetime.fromtimestamp(_seconds(event)).strftime("%H:%M:%S.%f")[:-3]
    shown = plain(type) if type not in _COLOURS else click.style(type, fg=_COLOURS[type])
    head = f"{moment} {plain(event.get('hostname'))} {shown}"
    if type.startswith("worker-"):
        load = event.get("loadavg") or ["?"]
        first = load[0] if isinstance(load, list) and load else "?"
        return f"{head} {plain(event.get('active'))} active, {plain(event.get('processed'))} processed, load {plain(first)}"
    task = f"{names.of(event) or '?'}[{event.get('uuid')}]" if "uuid" in event else ""
    return " ".join(part for part in (head, plain(task), plain(_details(type, event))) if part)


def _details(type: str, event: Mapping[str, Any]) -> str:
    get = event.get
    if type in ("task-received", "task-sent"):
        tries = f" try {get('retries')}" if get("retries") else ""
        where = f" to {get('queue')}" if type == "task-sent" else ""
        return f"args={get('args')} kwargs={get('kwargs')}{tries}{where}"
    if type == "task-succeeded":
        runtime: Any = get("runtime")
        told = isinstance(runtime, (int, float)) and 0 <= runtime < 1e9
        took = f" in {ui.duration(runtime)}" if told else ""
        return f"{get('result')}{took}"
    if type in ("task-failed", "task-retried"):
        return str(get("exception"))
    return " ".join(f"{name}={value}" for name, value in event.items() if name not in _ALWAYS)


def as_celery_line(event: Mapping[str, Any], names: Names) -> str:
    """An event as ``celery events --dump`` prints it."""
    left = dict(event)
    type, hostname = str(left.pop("type")).lower(), left.pop("hostname", None)
    moment = datetime.fromtimestamp(_seconds(left), timezone.utc)
    left.pop("timestamp", None)
    task = ""
    if type.startswith("task-"):
        task = names.call(event)
        left.pop("uuid", None)
        if type in ("task-received", "task-sent"):
            for name in ("name", "args", "kwargs"):
                left.pop(name, None)
    fields = ", ".join(f"{key}={left[key]}" for key in sorted(left))
    what = _CELERY_TYPES.get(type) or type.replace("-", " ")
    middle = f"{task} " if type.startswith("task-") else ""
    return plain(f"{hostname} [{moment}] {what}{':' if fields else ''} {middle}{fields}")


def as_json(event: Mapping[str, Any], names: Names) -> str:
    """An event as one line of JSON."""
    return json.dumps(event, default=str)


def _seconds(event: Mapping[str, Any]) -> float:
    found = event.get("timestamp")
    return found if isinstance(found, (int, float)) and 0 <= found < 2**33 else time.time()


def _refused(hint: str) -> Any:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            raise ui.CommandError(
                f"{'/'.join(parameter.opts)} is not part of this version", hint=hint, exit_code=ui.USAGE
            )

    return callback


_STORE = "write what --json prints to where you want it: minicelery events --json >> events.ndjson"


@click.command(short_help="Print what workers and clients tell, as it happens.")
@common_options()
@click.option("--json", "wanted", flag_value="json", help="A JSON document for each event, one a line.")
@click.option("-d", "--dump", "wanted", flag_value="dump", help="Lines as Celery's.")
@click.option(
    "-t", "--type", "types", multiple=True, metavar="TYPE",
    help="Only these: task-failed, or by the first word: task, worker.",
)  # fmt: skip
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="End when nothing has come for so long; exit code 1.",
)  # fmt: skip
@click.option("-c", "--camera", hidden=True, expose_value=False, callback=_refused(_STORE))
@click.option("-F", "--frequency", "--freq", hidden=True, expose_value=False, callback=_refused(_STORE))
@click.option("-r", "--maxrate", hidden=True, expose_value=False, callback=_refused(_STORE))
@click.option(
    "--detach", is_flag=True, hidden=True, expose_value=False,
    callback=_refused("let a service manager run it"),
)  # fmt: skip
@click.option("-l", "--loglevel", hidden=True, expose_value=False)
@click.pass_obj
def events(
    session: Session,
    /,
    *,
    wanted: str | None,
    types: tuple[str, ...],
    limit: int | None,
    timeout: float | None,
) -> int:
    """Print events until stopped: of workers always, of tasks where workers send them (-E)."""
    app = session.app()
    names, write = Names(), {"json": as_json, "dump": as_celery_line, None: as_line}[wanted]
    _look_at(session, types)
    count = 0

    def show(event: dict[str, Any]) -> None:
        nonlocal count
        names.of(event)  # also of those that are not printed
        if types and not _is_wanted(event["type"], types):
            return
        ui.say(write(event, names))
        count += 1
        if count == limit:
            receiver.should_stop = True

    receiver = app.events.Receiver(handlers={"*": show})
    if wanted != "json":
        session.note(f"listening on {app.broker.url}; events of tasks come from workers started with -E")
    return _follow(session, receiver, timeout)


def _follow(session: Session, receiver: Any, timeout: float | None) -> int:
    if timeout is None:
        receiver.capture_on(_told(session))
        return 0
    try:
        receiver.capture(timeout=timeout)
    except TimeoutError as error:
        raise ui.CommandError(
            f"{error}, on {session.app().broker.url}",
            hint="is a worker running there?  minicelery status shows them; -E has them send events of tasks",
        ) from error
    return 0


def _told(session: Session) -> Callable[[OperationalError], None]:
    """Says once for each outage that the broker is lost."""
    last = 0.0

    def told(error: OperationalError) -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            ui.warning(f"{error}; listening again when it is back")
        last = time.monotonic()

    return told


def _is_wanted(type: str, wanted: tuple[str, ...]) -> bool:
    return any(type == one or type.partition("-")[0] == one for one in wanted)


def _look_at(session: Session, types: tuple[str, ...]) -> None:
    from minicelery.events.records import FIELDS

    known = [*FIELDS, "task", "worker"]
    for type in types:
        if type not in known and (near := ui.did_you_mean(type, known)):
            session.note(f"workers send no events {type!r} by themselves; {near}")
