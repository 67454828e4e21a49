"""`minicelery dead`: rejected messages, listed, shown, replayed, discarded."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.choosing import as_json, no_question, note_unknown_queues, queue_names, which_queues
from minicelery.cli.completing import task_names
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.message import DeadLetter

ALL = 10_000
"""As many dead letters as a queue keeps."""
SHOWN_REASON = 80

Found = tuple[str, "DeadLetter"]
"""A queue, and a dead letter of it."""


@click.group(invoke_without_command=True, short_help="List, show, replay and discard dead letters.")
@common_options()
@click.pass_context
def dead(context: click.Context) -> int | None:
    """Rejected messages: a task that kills its worker again and again, a body nobody can read, …"""
    if context.invoked_subcommand is None:
        ui.say(context.get_help())
        return ui.USAGE
    return None


_task = click.option("-T", "--task", metavar="NAME", help="Of this task only.", shell_complete=task_names)


@dead.command("list", short_help="What was rejected, when, and why.")
@common_options()
@which_queues
@_task
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="The newest.",
)
@as_json
@click.pass_obj
def dead_list(
    session: Session, /, *, queues: Sequence[str], task: str | None, limit: int, as_json: bool
) -> int:
    """Print the newest dead letters of the app's queues."""
    app = session.app()
    names = _names(session, app, queues)
    found = _letters(app, names, lambda letter: task in (None, letter.task), ALL if task else limit)
    found = sorted(found, key=lambda one: -one[1].rejected)[:limit]
    if as_json:
        ui.say_json([_document(queue, letter) for queue, letter in found])
        return 0
    if not found:
        ui.say(f"No dead letters in {', '.join(names)}.")
        return 0
    rows = [
        (_text(letter.id), _text(letter.task), queue, _ago(letter.rejected), _short(letter.reason))
        for queue, letter in found
    ]
    ui.say(ui.table(("id", "task", "queue", "died", "reason"), rows))
    total = sum(app.broker.dead(name) for name in names)
    if task is None and total > len(found):
        session.note(f"there are {total} in all; -n shows more of them")
    return 0


@dead.command("show", short_help="One of them, with its arguments.")
@click.argument("id", metavar="ID")
@common_options()
@which_queues
@as_json
@click.pass_obj
def dead_show(session: Session, /, *, id: str, queues: Sequence[str], as_json: bool) -> int:
    """Print the dead letter of the task ID: why it was rejected, and the message as it came."""
    app = session.app()
    found = _letters(app, _names(session, app, queues), lambda letter: letter.id == id, ALL)
    if not found:
        raise _unknown([id])
    if as_json:
        ui.say_json([_document(queue, letter, whole=True) for queue, letter in found])
        return 0
    for queue, letter in found:
        lines = {
            "id": _text(letter.id), "task": _text(letter.task), "queue": queue,
            "died": f"{_time(letter.rejected)} ({_ago(letter.rejected)})", "reason": _text(letter.reason),
        }  # fmt: skip
        for name, value in lines.items():
            ui.say(f"{click.style(name.ljust(8), dim=True)}{value}")
        ui.say(click.style("message", dim=True))
        ui.say(ui.json_text(_readable(letter.raw), indent=2))
    return 0


_ids = click.argument("ids", nargs=-1, metavar="[ID]...")
_every = click.option("--all", "every", is_flag=True, help="All of these queues.")


@dead.command("replay", short_help="Put them back on their queues.")
@_ids
@common_options()
@which_queues
@_task
@_every
@no_question
@click.pass_obj
def dead_replay(session: Session, /, **given: Any) -> int:
    """Put dead letters back on their queues, as if they had just been sent.

    Name them by their ids, or take all of a task (-T), or all there are (--all).
    """
    return _settle(session, "replay", "Put {} back on {}?", "Put {} back on {}.", **given)


@dead.command("discard", short_help="Throw them away.")
@_ids
@common_options()
@which_queues
@_task
@_every
@no_question
@click.pass_obj
def dead_discard(session: Session, /, **given: Any) -> int:
    """Throw dead letters away.  There is no way back.

    Name them by their ids, or take all of a task (-T), or all there are (--all).
    """
    return _settle(session, "discard", "Discard {} of {} for good?", "Discarded {} of {}.", **given)


def _settle(
    session: Session, verb: str, question: str, done: str, /, *, ids: Sequence[str], queues: Sequence[str],
    task: str | None, every: bool, force: bool,
) -> int:  # fmt: skip
    if sum((bool(ids), task is not None, every)) != 1:
        raise ui.CommandError(
            f"which dead letters to {verb} must be said, in one way of three",
            hint=f"minicelery dead {verb} ID …, or -T TASK, or --all",
            exit_code=ui.USAGE,
        )
    app = session.app()
    names = _names(session, app, queues)
    chosen: dict[str, list[str] | None] = {}
    if every:
        counts = {name: app.broker.dead(name) for name in names}
        chosen = {name: None for name, number in counts.items() if number}
        count = sum(counts.values())
    else:
        wanted = set(ids)
        found = _letters(
            app, names, lambda one: one.id in wanted or (task is not None and one.task == task), ALL
        )
        if missing := sorted(wanted - {letter.id for _, letter in found if letter.id}):
            raise _unknown(missing)
        for name in names:
            if of_queue := [letter.id for queue, letter in found if queue == name and letter.id]:
                chosen[name] = of_queue
        count = len(found)
    if not count:
        ui.say(f"No dead letters{f' of {task}' if task else ''} in {', '.join(names)}.")
        return 0
    if not force and not ids:
        ui.ask(question.format(ui.counted(count, "dead letter"), ", ".join(chosen)))
    settle = app.broker.replay_dead if verb == "replay" else app.broker.discard_dead
    settled = sum(settle(queue, wanted_ids) for queue, wanted_ids in chosen.items())
    ui.say(done.format(ui.counted(settled, "dead letter"), ", ".join(chosen)))
    return 0


def _names(session: Session, app: Celery, queues: Sequence[str]) -> list[str]:
    note_unknown_queues(session, app, queues)
    return list(queues) or queue_names(app.conf)


def _letters(
    app: Celery, names: Sequence[str], wanted: Callable[[DeadLetter], bool], limit: int
) -> list[Found]:
    return [
        (name, letter) for name in names for letter in app.broker.dead_letters(name, limit) if wanted(letter)
    ]


def _unknown(ids: Sequence[str]) -> ui.CommandError:
    return ui.CommandError(
        f"there is no dead letter of {', '.join(ids)}",
        hint="minicelery dead list shows those there are; -Q names other queues",
    )


def _document(queue: str, letter: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": letter.id, "task": letter.task, "queue": queue, "rejected": _time(letter.rejected),
        "reason": letter.reason,
    }  # fmt: skip
    if whole:
        found["message"] = _readable(letter.raw)
    return found


def _readable(raw: bytes) -> Any:
    """The message as a document, its body decoded where that is text."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode(errors="replace")
    if isinstance(document, dict) and isinstance(document.get("body"), str):
        try:
            text = base64.b64decode(document["body"], validate=True).decode()
            document["body"] = json.loads(text)
        except (ValueError, RecursionError):
            pass
    return document


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _text(value: str | None) -> str:
    return ui.harmless(value) if value else "-"


def _ago(seconds: float) -> str:
    return f"{ui.duration(max(0.0, time.time() - seconds))} ago" if seconds else "-"


def _short(reason: str) -> str:
    line = ui.harmless(reason.partition("\n")[0])
    return line if len(line) <= SHOWN_REASON else line[: SHOWN_REASON - 1] + "…"
