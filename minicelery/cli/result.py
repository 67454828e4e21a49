"""`minicelery result`: what a task has left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from minicelery import states
from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.result import AsyncResult


@click.command(short_help="Show the result of a task.")
@click.argument("id", metavar="ID")
@common_options()
@click.option("-t", "--task", hidden=True, expose_value=False)
@click.option("--traceback", is_flag=True, help="Print the traceback of a failed task instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def result(session: Session, /, *, id: str, traceback: bool, as_json: bool) -> int:
    """Print the value that the task ID has returned, as JSON, and its state on stderr."""
    app = session.app()
    found = app.AsyncResult(id)
    if not found.exists():
        raise ui.CommandError(
            f"task {id}: unknown or expired ({_kept(app)})",
            hint="nothing has been sent by that id, or its result is not kept any more"
            if app.conf.task_track_sent
            else "a task that nobody has begun has no result yet either: is a worker running?",
        )
    if as_json:
        ui.say_json(found.as_dict(traceback=True))
        return 0
    session.note(_summary(found))
    if traceback:
        ui.say(ui.harmless_lines(found.traceback or f"task {id} has left no traceback"))
    else:
        ui.say(_text(found.result))
    return 0


def _kept(app: Celery) -> str:
    kept = app.conf.result_expires
    if not kept:
        return "results are kept for ever"
    seconds = kept.total_seconds() if hasattr(kept, "total_seconds") else float(kept)
    return f"results are kept {ui.duration(seconds)}"


def _summary(found: AsyncResult[Any]) -> str:
    state, done = found.state, found.date_done
    if state not in states.ENDED or done is None:
        return f"state {state}, not done yet"
    return f"state {state}, done {ui.duration(max(0.0, time.time() - done.timestamp()))} ago"


def _text(value: Any) -> str:
    if isinstance(value, BaseException):
        return ui.harmless_lines(f"{type(value).__name__}: {value}")
    return ui.json_text(value)
