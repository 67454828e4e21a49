"""`minicelery worker`: options checked before anything connects, then `Worker.run`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options, include_modules

F = TypeVar("F", bound=Callable[..., Any])

POOLS = {
    "prefork": "prefork", "processes": "prefork", "threads": "threads", "asyncio": "asyncio", "solo": "solo",
}  # fmt: skip
"""Names that -P takes, and the pool that each means."""

_LATER_POOLS = ("gevent", "eventlet", "custom")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")


def log_level(text: str) -> str | int:
    """A level's name in any case, or its number."""
    if text.isdigit():
        return int(text)
    if text.upper() not in _LEVELS:
        raise click.BadParameter(f"{text!r} is not one of {', '.join(_LEVELS)}, nor a number")
    return "CRITICAL" if text.upper() == "FATAL" else text.upper()


def child_count(text: str) -> int | str:
    """A number from 1, or ``auto``: as many as the process may use CPUs."""
    if text == "auto":
        return text
    try:
        number = int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor 'auto'") from None
    if number < 1:
        raise click.BadParameter(f"{number} children can run nothing; give 1 or more")
    return number


def child_range(text: str) -> tuple[int, int]:
    """The most and the least, in either order as in Celery; one number: from 1 up to it."""
    try:
        numbers = sorted(int(part) for part in text.split(","))
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or numbers[0] < 0 or numbers[-1] < 1:
        raise click.BadParameter(f"{text!r} is not MAX,MIN, such as 10,3")
    return numbers[-1], max(1, numbers[0] if len(numbers) == 2 else 1)


def pool_name(text: str) -> str:
    """The name of a pool that this version has."""
    if text in POOLS:
        return POOLS[text]
    served = "prefork, threads, asyncio and solo"
    if text in _LATER_POOLS:
        instead = "; asyncio runs as many at once" if text in ("gevent", "eventlet") else ""
        raise _not_served(f"-P {text}", f"there are {served}{instead}")
    near = ui.did_you_mean(text, [*POOLS, *_LATER_POOLS])
    raise click.BadParameter(f"no pool named {text!r}; {near or f'there are {served}'}")


@contextlib.contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Keep this process's number in `path` meanwhile; refuses one whose process lives."""
    if path is None:
        yield
        return
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        _remove_stale(path)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    with os.fdopen(handle, "w") as file:
        file.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _remove_stale(path: str) -> None:
    text = Path(path).read_text(errors="replace").strip()
    if text and not text.isdecimal():
        raise ui.CommandError(
            f"--pidfile {path}: there is such a file, and no process number in it", hint="give another name"
        )
    pid = int(text or 0)  # 0: whoever made the file died before it wrote to it
    try:
        if not pid:
            raise ProcessLookupError
        os.kill(pid, 0)
    except (OverflowError, ProcessLookupError):
        os.unlink(path)
        return
    except PermissionError:  # it lives, and is another user's
        pass
    raise ui.CommandError(
        f"--pidfile {path}: process {pid} is running already", hint=f"stop it first: kill {pid}"
    )


def _names(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    names = [name.strip() for value in values for name in value.split(",")]
    return [name for name in names if name] or None


def _not_served(what: str, hint: str) -> ui.CommandError:
    return ui.CommandError(f"{what} is not part of this version", hint=hint, exit_code=ui.USAGE)


def refuse(hint: str) -> Any:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            raise _not_served("/".join(parameter.opts), hint)

    return callback


def ignored(*names: str, is_flag: bool = True) -> Callable[[F], F]:
    """An option of Celery's that asks for what needs no asking here."""
    return click.option(*names, is_flag=is_flag, hidden=True, expose_value=False)


def many(*names: str, help: str) -> Callable[[F], F]:
    return click.option(*names, multiple=True, metavar="LIST", callback=_names, help=help)


@click.command(short_help="Run tasks.")
@common_options()
@click.option(
    "-n", "--hostname", metavar="NAME", help="Name of this worker; %h, %n, %d: host, its name, its domain."
)
@click.option(
    "-l", "--loglevel", type=log_level, metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL."
)
@click.option("-f", "--logfile", metavar="FILE", help="Log to this file; %h, %n, %d as in -n.")
@click.option(
    "--log-format", type=click.Choice(("text", "json")), help="json: an object a line, with task and id."
)
@click.option("-c", "--concurrency", type=child_count, metavar="NUMBER|auto", help="Tasks run at once.")
@click.option(
    "-P", "--pool", type=pool_name, metavar="NAME",
    help="prefork, threads, asyncio, or solo: in this process, one at a time.",
)  # fmt: skip
@click.option("--autoscale", type=child_range, metavar="MAX,MIN", help="As many children as the queues need.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Spread threads or coroutines over N children.",
)
@click.option("--pool-start-method", type=click.Choice(("fork", "spawn")), help="How children come to be.")
@many("-Q", "--queues", help="Queues to serve, comma-separated.")
@many("-X", "--exclude-queues", help="Queues not to serve.")
@many("-I", "--include", help="Further modules with tasks.")
@click.option(
    "--max-tasks-per-child",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace a child after so many tasks.",
)
@click.option(
    "--max-memory-per-child",
    type=click.IntRange(min=1),
    metavar="KIB",
    help="Replace a child that uses more.",
)
@click.option(
    "--prefetch-multiplier",
    type=click.IntRange(min=0),
    metavar="N",
    help="Messages a child may hold; 0: many.",
)
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Kill a task then."
)
@click.option(
    "--soft-time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Raise SoftTimeLimitExceeded in a task then.",
)
@click.option("--purge", is_flag=True, help="Delete what waits in the queues first.")
@click.option("--pidfile", metavar="FILE", help="Keep the process number in this file.")
@click.option("--reload", is_flag=True, help="Start anew when a file of the project changes.")
@click.option(
    "--reload-dir", "folders", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR", help="With --reload: watch this folder.",
)  # fmt: skip
@click.option("--for-development", is_flag=True, hidden=True)
@click.option("-E", "--task-events", is_flag=True, default=None, help="Send events of tasks, for monitors.")
@click.option("-S", "--statedb", hidden=True)
@click.option(
    "-B", "--beat", is_flag=True, help="Send periodic tasks too; of several workers and beats one does."
)  # fmt: skip
@click.option("-s", "--schedule", hidden=True)
@click.option("--scheduler", hidden=True)
@click.option(
    "-D", "--detach", is_flag=True, hidden=True, expose_value=False,
    callback=refuse("let a service manager run it, or start it with: nohup … &"),
)  # fmt: skip
@ignored("--without-gossip")
@ignored("--without-mingle")
@click.option("--without-heartbeat", is_flag=True, help="Send no signs of life; monitors will not see it.")
@click.option(
    "--heartbeat-interval",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Between two signs of life; 2.",
)
@ignored("-O", "optimization", is_flag=False)
@click.pass_obj
def worker(
    session: Session,
    /,
    *,
    include: list[str] | None,
    pidfile: str | None,
    statedb: str | None,
    schedule: str | None,
    reload: bool,
    folders: Sequence[Path],
    for_development: bool,
    **options: Any,
) -> int:
    """Run the app's tasks until stopped.

    Ctrl-C or TERM lets running tasks finish and gives the others back to their queues; a
    second Ctrl-C does not wait for them.
    """
    from minicelery.cli.advice import refuse_without_fork, say_where_tasks_are

    refuse_without_fork()
    soft, hard = options["soft_time_limit"], options["time_limit"]
    if soft is not None and hard is not None and soft > hard:
        raise ui.CommandError(
            f"--soft-time-limit {soft:g} is longer than --time-limit {hard:g}",
            hint="a task would be killed before it hears of the soft limit",
            exit_code=ui.USAGE,
        )
    if statedb is not None:
        session.note("--statedb is not needed: revoked tasks are remembered in the broker")
    if schedule is not None:
        session.note("--schedule is not needed: the last runs are remembered in the broker")
    if reload or folders:
        from minicelery.cli.reloading import Reloader, is_reloaded

        if not is_reloaded():
            return Reloader(folders or [Path(session.workdir or ".").resolve()]).run()
    if for_development:
        from minicelery.cli.dev import prepare

        prepare(session)
    app = session.app()
    include_modules(app, include or ())
    from minicelery.worker import Worker

    with pid_file(pidfile):
        found = Worker(
            app,
            quiet=session.quiet,
            origin=session.worker_origin(include or ()),
            **options,
        )
        say_where_tasks_are(app, Path.cwd())
        return found.run()
