"""`minicelery queues`: what is in each queue, and what is paused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.choosing import as_json, known_queues, note_unknown_queues, which_queues
from minicelery.cli.listing import counted
from minicelery.cli.session import Session, common_options
from minicelery.pausing import aside, read_paused

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.pausing import Paused


@click.command(short_help="Show what is in each queue, and what is paused.")
@common_options()
@which_queues
@as_json
@click.pass_obj
def queues(session: Session, /, *, queues: Sequence[str], as_json: bool) -> int:
    """Print how many messages of each queue are ready, delayed and dead, and whether it is paused.

    Messages of paused tasks are counted as held.
    """
    app = session.app()
    note_unknown_queues(session, app, queues)
    paused = read_paused(app.broker)
    rows = [_row(app, name, paused) for name in queues or known_queues(app)]
    if as_json:
        ui.say_json(rows)
        return 0
    shown = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    ui.say(ui.table(shown, [[_cell(row[name]) for name in shown] for row in rows]))
    if paused.tasks:
        session.note(ui.harmless(f"paused tasks: {', '.join(sorted(paused.tasks))}"))
    return 0


def _row(app: Celery, name: str, paused: Paused) -> dict[str, Any]:
    held = app.broker.size(aside(name)) if paused.known_tasks else None
    return {**asdict(counted(app.broker, name)), "held": held, "paused": name in paused.queues}


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value
