"""`minicelery shell`: Python with the app and its tasks at hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery

NAMES = ("Task", "chain", "chord", "chunks", "group", "signature", "subtask", "xmap", "xstarmap")
"""Names of Celery's shell, where this package has them."""


@click.command(short_help="Python with the app and its tasks at hand.")
@common_options()
@click.option("-P", "--python", "kind", flag_value="python", help="The plain one.")
@click.option("-I", "--ipython", "kind", flag_value="ipython", help="IPython.")
@click.option("-B", "--bpython", "kind", flag_value="bpython", help="bpython.")
@click.option("-T", "--without-tasks", is_flag=True, help="Don't put the tasks there by their names.")
@click.pass_obj
def shell(session: Session, /, *, kind: str | None, without_tasks: bool) -> int:
    """Start IPython, bpython or Python, the first of them that is installed.

    There are `app` (also `celery`), each task by the name of its function, group, chain, chord, ….
    """
    app = session.app()
    names = namespace(app, without_tasks=without_tasks)
    if kind is not None:
        _SHELLS[kind](app, names)
        return 0
    for start in (_ipython, _bpython):
        try:
            start(app, names)
            return 0
        except ui.CommandError:
            continue
    _python(app, names)
    return 0


def namespace(app: Celery, *, without_tasks: bool = False) -> dict[str, Any]:
    """The names that the shell begins with; a task never hides one of the package's."""
    import minicelery
    from minicelery.registry import OWN_TASKS

    names = {name: getattr(minicelery, name) for name in NAMES if hasattr(minicelery, name)}
    app.set_current()
    if not without_tasks:
        app.import_task_modules()
        tasks = {
            task.name.rpartition(".")[2]: task
            for name, task in sorted(app.tasks.items())
            if not name.startswith(OWN_TASKS)
        }
        names = {**tasks, **names}
    return {**names, "app": app, "celery": app}


def _banner(app: Celery) -> str:
    import minicelery

    return f"minicelery {minicelery.__version__}, app {app.main or '__main__'!r}, broker {app.broker.url}"


def _python(app: Celery, names: dict[str, Any]) -> None:
    import code

    try:
        import readline
        import rlcompleter

        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    except ImportError:
        pass
    banner = f"{_banner(app)}\nPython {sys.version.split()[0]}"
    code.interact(banner=banner, local=names, exitmsg="")


def _ipython(app: Celery, names: dict[str, Any]) -> None:
    ipython = _imported("IPython", "ipython")
    ui.say(_banner(app))
    ipython.start_ipython(argv=[], user_ns=names)


def _bpython(app: Celery, names: dict[str, Any]) -> None:
    bpython = _imported("bpython", "bpython")
    bpython.embed(names, banner=_banner(app))


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ui.CommandError(f"{module} is not installed", hint=f"pip install {package}") from error


_SHELLS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "python": _python, "ipython": _ipython, "bpython": _bpython,
}  # fmt: skip
