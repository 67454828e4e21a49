"""`minicelery pause` and `resume`: queues that nobody fetches from, tasks that nobody runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from minicelery.cli import ui
from minicelery.cli.choosing import note_unknown_queues, note_unknown_tasks, queue_list
from minicelery.cli.completing import queue_names, task_names
from minicelery.cli.session import Session, common_options
from minicelery.pausing import pause as pause_all
from minicelery.pausing import read_paused
from minicelery.pausing import resume as resume_all

if TYPE_CHECKING:
    from minicelery.broker import Broker

_queues = click.option(
    "-Q",
    "--queues",
    multiple=True,
    callback=queue_list,
    metavar="LIST",
    help="Queues, comma-separated.",
    shell_complete=queue_names,
)
_tasks = click.option(
    "-T",
    "--tasks",
    multiple=True,
    callback=queue_list,
    metavar="LIST",
    help="Tasks, comma-separated.",
    shell_complete=task_names,
)


@click.command(short_help="Have no worker fetch from a queue, or run a task.")
@common_options()
@_queues
@_tasks
@click.option("--json", "as_json", is_flag=True, help="Print what is paused as one JSON document.")
@click.pass_obj
def pause(session: Session, /, *, queues: Sequence[str], tasks: Sequence[str], as_json: bool) -> int:
    """Have no worker fetch from these queues, or run these tasks, until they are resumed.

    All workers, those that start later too, obey within two seconds.  What runs goes on.  Without
    an option: print what is paused.
    """
    app = session.app()
    note_unknown_queues(session, app, queues)
    note_unknown_tasks(session, app, tasks)
    pause_all(app.broker, queues=queues, tasks=tasks)
    return _print(app.broker, as_json)


@click.command(short_help="Have workers fetch from a queue, or run a task, again.")
@common_options()
@_queues
@_tasks
@click.option("--all", "every", is_flag=True, help="All that is paused.")
@click.option("--json", "as_json", is_flag=True, help="Print what is still paused as one JSON document.")
@click.pass_obj
def resume(
    session: Session, /, *, queues: Sequence[str], tasks: Sequence[str], every: bool, as_json: bool
) -> int:
    """Undo `pause` for these queues and tasks."""
    if every == bool(queues or tasks):
        raise ui.CommandError(
            "what to resume must be said, in one way", hint="give -Q QUEUES, -T TASKS, or --all",
            exit_code=ui.USAGE,
        )  # fmt: skip
    broker = session.app().broker
    paused = read_paused(broker)
    if every:
        queues, tasks = sorted(paused.queues), sorted(paused.tasks)
    _note_others(session, "queue", queues, paused.queues)
    _note_others(session, "task", tasks, paused.tasks)
    resume_all(broker, queues=queues, tasks=tasks)
    return _print(broker, as_json)


def _note_others(session: Session, what: str, names: Sequence[str], paused: Collection[str]) -> None:
    for name in names:
        if name not in paused:
            near = ui.did_you_mean(name, sorted(paused))
            session.note(f"the {what} {name!r} is not paused{'; ' + near if near else ''}")


def _print(broker: Broker, as_json: bool) -> int:
    paused = read_paused(broker)
    if as_json:
        ui.say_json({"queues": sorted(paused.queues), "tasks": sorted(paused.tasks)})
        return 0
    for what, names in (("queues", paused.queues), ("tasks", paused.tasks)):
        if names:
            ui.say(ui.harmless(f"Paused {what}: {', '.join(sorted(names))}"))
    if not (paused.queues or paused.tasks):
        ui.say("Nothing is paused.")
    return 0
