"""`minicelery init`: a first app, ready to run."""

from __future__ import annotations

import os
from pathlib import Path

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

TEMPLATE = """\
from minicelery import Celery

app = Celery("{name}", broker="{broker}", backend="{backend}")


@app.task
def add(x: int, y: int) -> int:
    return x + y
"""
SQLITE = "sqlite:///queue.db"


@click.command(short_help="Write a first tasks.py.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default="tasks.py")
@common_options()
@click.pass_obj
def init(session: Session, /, *, file: Path) -> int:
    """Write FILE (tasks.py): an app with one task, its queue in a SQLite file or where -b says."""
    if session.workdir is not None:
        file = Path(session.workdir) / file
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise ui.CommandError(
            f"{file} can't be imported", hint=f"give a name such as {_near(file)}", exit_code=ui.USAGE
        )
    if not file.parent.is_dir():
        raise ui.CommandError(
            f"there is no folder {file.parent}", hint=f"make it first: mkdir -p {file.parent}"
        )
    broker = session.broker or SQLITE
    _check(broker)
    backend = session.result_backend or (broker if broker.startswith(("sqlite", "redis")) else "rpc://")
    text = TEMPLATE.format(name=file.stem, broker=broker, backend=backend)
    try:
        with open(file, "x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        other = "app.py" if file.name != "app.py" else "tasks.py"
        raise ui.CommandError(
            f"{file} is there already", hint=f"give another name: minicelery init {file.with_name(other)}"
        ) from None
    ui.say(f"{click.style(os.fspath(file), bold=True)} is written.  Now run, each in a terminal:")
    ui.say()
    module = "" if file.name == "tasks.py" and session.workdir is None else f" -A {file}"
    for command, effect in (
        (f"minicelery{module} dev", "runs tasks, and starts anew when you change them"),
        (f"minicelery{module} call {file.stem}.add 2 2 --wait", "prints 4"),
    ):
        ui.say(f"    {click.style(command.ljust(46), fg='cyan')} {click.style('# ' + effect, dim=True)}")
    return 0


def _near(file: Path) -> Path:
    return file.with_suffix(".py") if file.stem.isidentifier() else file.with_name("tasks.py")


def _check(broker: str) -> None:
    """Refuse a URL that the app could not use."""
    from minicelery.app import Celery

    with Celery("init", broker=broker, set_as_current=False) as app:
        app.broker  # noqa: B018 - opening it checks the URL and connects to nothing
