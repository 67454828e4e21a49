"""`minicelery purge`: empty queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from minicelery.cli import ui
from minicelery.cli.choosing import no_question, note_unknown_queues, queue_list, queue_names, which_queues
from minicelery.cli.session import Session, common_options
from minicelery.pausing import aside

if TYPE_CHECKING:
    from minicelery.app import Celery

Counts = tuple[str, int, int | None]
"""A queue, its ready messages, and its delayed ones; None where the broker can't tell."""


@click.command(short_help="Delete the messages that wait in queues.")
@common_options()
@no_question
@which_queues
@click.option("-X", "--exclude-queues", multiple=True, callback=queue_list, metavar="LIST", help="Not these.")
@click.pass_obj
def purge(session: Session, /, *, force: bool, queues: list[str], exclude_queues: list[str]) -> int:
    """Delete every message that waits in the app's queues.  There is no way back."""
    app = session.app()
    note_unknown_queues(session, app, queues)
    names = [name for name in queues or queue_names(app.conf) if name not in exclude_queues]
    if not names:
        raise ui.CommandError("no queue is left to purge", exit_code=ui.USAGE)
    # Messages of paused tasks wait aside, and are their queue's all the same.
    held = {name: app.broker.size(aside(name)) for name in names}
    counts: list[Counts] = [
        (name, app.broker.size(name) + held[name], app.broker.delayed(name)) for name in names
    ]
    total = sum(ready + (delayed or 0) for _, ready, delayed in counts)
    hidden = [name for name, _, delayed in counts if delayed is None]
    if hidden:
        session.note(
            f"delayed messages stay: this broker can't tell those of {', '.join(hidden)} from others"
        )
    if total == 0:
        ui.say(f"Nothing waits in {', '.join(names)}.")
        return 0
    if not force:
        _ask(app, counts, total)
    purged = {
        name: app.broker.purge(name) + (app.broker.purge(aside(name)) if held[name] else 0) for name in names
    }
    ui.say(f"Deleted {ui.counted(sum(purged.values()), 'message')} from {_named(purged)}.")
    return 0


def _ask(app: Celery, counts: Sequence[Counts], total: int) -> None:
    rows = [(name, ready, "-" if delayed is None else delayed) for name, ready, delayed in counts]
    ui.say(ui.table(("queue", "ready", "delayed"), rows))
    ui.ask(f"Delete {ui.counted(total, 'message')} on {app.broker.url} for good?")


def _named(purged: Mapping[str, int]) -> str:
    if len(purged) == 1:
        return next(iter(purged))
    return ", ".join(f"{name} ({count})" for name, count in purged.items())
