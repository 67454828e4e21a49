"""What several commands share: which queues are meant, and asking before something is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.completing import queue_names as complete_queues
from minicelery.cli.session import Session

if TYPE_CHECKING:
    from minicelery.app import Celery


def queue_list(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """The names of one or more comma-separated lists, each once."""
    names = (name.strip() for value in values for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


which_queues = click.option(
    "-Q",
    "--queues",
    multiple=True,
    callback=queue_list,
    metavar="LIST",
    help="These, comma-separated.",
    shell_complete=complete_queues,
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
no_question = click.option("-f", "--force", is_flag=True, help="Don't ask.")


def queue_names(conf: Any) -> list[str]:
    """The queues that an app's settings name; `task_queues`, or else the default one."""
    queues: Mapping[str, Any] | Iterable[Any] | None = conf.task_queues
    if not queues:
        return [conf.task_default_queue]
    return [queue if isinstance(queue, str) else queue.name for queue in queues]


def known_queues(app: Celery) -> list[str]:
    """The queues that the settings name, those of routes among them."""
    names = [*queue_names(app.conf), app.conf.task_default_queue]
    routes = app.conf.task_routes
    for route in routes.values() if isinstance(routes, dict) else ():
        queue = route.get("queue") if isinstance(route, dict) else route
        if isinstance(queue, str):
            names.append(queue)
    return list(dict.fromkeys(names))


def note_unknown_queues(session: Session, app: Celery, names: Sequence[str]) -> None:
    """Say where a name is none of the settings', but near to one: it may be a slip of the pen."""
    known = known_queues(app)
    for name in names:
        if name not in known and (near := ui.did_you_mean(name, known)):
            session.note(f"no queue {name!r} is in the settings; {near}")


def note_unknown_tasks(session: Session, app: Celery, names: Sequence[str]) -> None:
    """The same of tasks."""
    from minicelery.registry import OWN_TASKS

    if names:
        app.import_task_modules()
    known = [name for name in app.tasks if not name.startswith(OWN_TASKS)]
    for name in names:
        if name not in app.tasks:
            near = ui.did_you_mean(name, known)
            session.note(f"no task {name!r} is known here{'; ' + near if near else ''}")
