"""`minicelery dev`: worker and beat in one terminal, started anew when a file changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minicelery.cli import ui
from minicelery.cli.reloading import Reloader, is_reloaded
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery


@click.command(
    short_help="Run a worker and beat, anew after each change.",
    context_settings={"ignore_unknown_options": True},
)
@common_options()
@click.option(
    "--reload-dir", "folders", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR", help="Watch this folder in place of the present one.",
)  # fmt: skip
@click.option("--no-reload", is_flag=True, help="Let changes be.")
@click.option("--no-beat", is_flag=True, help="Send no periodic tasks.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION OF worker]...")
@click.pass_context
def dev(
    context: click.Context,
    /,
    *,
    folders: Sequence[Path],
    no_reload: bool,
    no_beat: bool,
    words: Sequence[str],
) -> int:
    """Run a worker and beat in this terminal, and start them anew when a file of the project changes.

    Where the app names no broker, it is SQLite: a file queue.db beside the app.  Options of
    `minicelery worker`, such as -c 4, are passed on to it.
    """
    session: Session = context.obj
    if not (no_reload or is_reloaded()):
        session.note("Ctrl-C stops; changes of *.py and settings files start the worker anew")
        return Reloader(folders or [Path(session.workdir or ".").resolve()]).run()
    from minicelery.cli.worker import worker

    given = ["--for-development", *([] if no_beat else ["-B"]), *words]
    if not {"-l", "--loglevel"} & {word.partition("=")[0] for word in words}:
        given += ["-l", "INFO"]
    if "-c" not in words and not any(word.startswith("--concurrency") for word in words):
        given += ["-c", "2"]
    sys.stdout.flush()
    with worker.make_context("worker", given, parent=context.parent) as inner:
        code = worker.invoke(inner)
    return code if isinstance(code, int) else 0


def prepare(session: Session) -> None:
    """Have messages of tasks that are still to be written wait for them, and see that there is a broker."""
    app = session.app()
    if "worker_unregistered_task" not in app.conf.changed():
        app.conf.worker_unregistered_task = "requeue"
    _use_sqlite_if_unset(session, app)


def _use_sqlite_if_unset(session: Session, app: Celery) -> None:
    """Give an app without a broker a file beside it, for queues and for results."""
    if app.conf.broker_url:
        return
    url = app._placed("sqlite:///queue.db")
    session.broker = app.conf.broker_url = url
    if not app.conf.result_backend:
        session.result_backend = app.conf.result_backend = url
    ui.note(
        f"no broker is configured: this worker uses {url}; so that callers do too, write "
        'Celery(…, broker="sqlite:///queue.db", backend="sqlite:///queue.db")'
    )
