"""`minicelery health`: how the workers of this machine are, without asking any server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from minicelery import vitals
from minicelery.cli import ui
from minicelery.cli.completing import worker_names
from minicelery.cli.session import Session, common_options

CHECKS = ("live", "ready", "consuming")


@click.command(short_help="Tell whether the workers of this machine are well.")
@click.argument("check", metavar="[live|ready|consuming]", type=click.Choice(CHECKS), default="ready")
@common_options()
@click.option(
    "-n",
    "--hostname",
    metavar="NAME",
    help="This worker only: all of its name, or what is before @.",
    shell_complete=worker_names,
)
@click.option("--pidfile", metavar="FILE", help="The worker that --pidfile of `worker` was given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def health(
    session: Session, /, *, check: str, hostname: str | None, pidfile: str | None, as_json: bool
) -> int:
    """Tell whether this machine's workers are well; exit code 0 if all are, 69 if there is none.

    live: it runs, and says so.  ready (the default): it also reaches its broker, and children run.
    consuming: it also fetches, as not all of its queues are paused.

    Nothing is asked of the broker, and the app is not imported: workers leave a note on this machine.
    """
    pid = _pid_in(pidfile) if pidfile is not None else None
    found = [
        one
        for one in vitals.read_all()
        if (hostname is None or hostname in (one.node, one.node.partition("@")[0])) and pid in (None, one.pid)
    ]
    if not found:
        which = f" of process {pid}" if pid is not None else f" named {hostname!r}" if hostname else ""
        raise ui.CommandError(
            f"no worker{which} has left a note in {vitals.run_folder()}",
            hint=f"is it running, as this user, and with the same {vitals.VARIABLE}?",
            exit_code=ui.UNAVAILABLE,
        )
    # What a killed worker has left stays until the next one starts; a living one speaks for them.
    living = [one for one in found if one.live] or found
    if as_json:
        ui.say_json(
            [
                {name: value for name, value in asdict(one).items() if name != "said"}
                | {"said": dict(one.said)}
                for one in living
            ]
        )
    else:
        _print(session, living)
    return 0 if all(getattr(one, check) for one in living) else 1


def _print(session: Session, found: Sequence[vitals.Health]) -> None:
    rows = [
        (one.node, one.pid, *("yes" if getattr(one, check) else "no" for check in CHECKS)) for one in found
    ]
    ui.say(ui.table(("worker", "pid", *CHECKS), rows))
    for one in found:
        for reason in one.reasons:
            session.note(f"{one.node}: {reason}")


def _pid_in(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except OSError as error:
        raise ui.CommandError(
            f"--pidfile {path}: {error.strerror}", hint="is the worker running?", exit_code=ui.UNAVAILABLE
        ) from error
    except ValueError as error:
        raise ui.CommandError(f"--pidfile {path} holds no process number", exit_code=ui.USAGE) from error
