"""`minicelery purge`: empty queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery

Counts = tuple[str, int, int | None]
"""A queue, its ready messages, and its delayed ones; None where the broker can't tell."""


def queue_list(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """The names of one or more comma-separated lists, each once."""
    names = (name.strip() for value in values for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


@click.command(short_help="Delete the messages that wait in queues.")
@common_options()
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.option(
    "-Q", "--queues", multiple=True, callback=queue_list, metavar="LIST", help="Only these, comma-separated."
)
@click.option("-X", "--exclude-queues", multiple=True, callback=queue_list, metavar="LIST", help="Not these.")
@click.pass_obj
def purge(session: Session, /, *, force: bool, queues: list[str], exclude_queues: list[str]) -> int:
    """Delete every message that waits in the app's queues.  There is no way back."""
    app = session.app()
    names = [name for name in queues or queue_names(app.conf) if name not in exclude_queues]
    if not names:
        raise ui.CommandError("no queue is left to purge", exit_code=ui.USAGE)
    counts: list[Counts] = [(name, app.broker.size(name), app.broker.delayed(name)) for name in names]
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
    purged = {name: app.broker.purge(name) for name in names}
    ui.say(f"Deleted {_messages(sum(purged.values()))} from {_named(purged)}.")
    return 0


def queue_names(conf: Any) -> list[str]:
    """The queues that an app's settings name; `task_queues`, or else the default one."""
    queues: Mapping[str, Any] | Iterable[Any] | None = conf.task_queues
    if not queues:
        return [conf.task_default_queue]
    return [queue if isinstance(queue, str) else queue.name for queue in queues]


def _ask(app: Celery, counts: Sequence[Counts], total: int) -> None:
    rows = [(name, ready, "-" if delayed is None else delayed) for name, ready, delayed in counts]
    ui.say(ui.table(("queue", "ready", "delayed"), rows))
    click.confirm(f"Delete {_messages(total)} on {app.broker.url} for good?", abort=True)


def _named(purged: Mapping[str, int]) -> str:
    if len(purged) == 1:
        return next(iter(purged))
    return ", ".join(f"{name} ({count})" for name, count in purged.items())


def _messages(count: int) -> str:
    return f"{count} message" if count == 1 else f"{count} messages"
