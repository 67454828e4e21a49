"""`minicelery beat`: options checked before anything connects, then `Beat.run`."""

from __future__ import annotations

import logging
import signal
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.schedule import printable
from minicelery.cli.session import Session, common_options, include_modules
from minicelery.cli.worker import ignored, log_level, many, pid_file, refuse

if TYPE_CHECKING:
    from minicelery.beat import Beat

SHOWN = 20
"""Entries that the banner lists."""

log = logging.getLogger(__name__)


@click.command(short_help="Send periodic tasks when they are due.")
@common_options()
@click.option("-s", "--schedule", metavar="FILE", hidden=True)
@click.option("-S", "--scheduler", metavar="MODULE:CLASS", help="Where entries come from.")
@click.option(
    "--max-interval", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Longest sleep."
)
@click.option(
    "-l", "--loglevel", type=log_level, metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL."
)
@click.option("-f", "--logfile", metavar="FILE", help="Log to this file.")
@many("-I", "--include", help="Further modules with tasks.")
@click.option("--pidfile", metavar="FILE", help="Keep the process number in this file.")
@click.option(
    "-D", "--detach", is_flag=True, hidden=True, expose_value=False,
    callback=refuse("let a service manager run it, or start it with: nohup … &"),
)  # fmt: skip
@click.option(
    "--enable-remote-control", is_flag=True, hidden=True, expose_value=False,
    callback=refuse("the broker knows whether a beat leads: minicelery schedule list says so"),
)  # fmt: skip
@ignored("-n", "--hostname", is_flag=False)
@click.pass_obj
def beat(
    session: Session,
    /,
    *,
    schedule: str | None,
    scheduler: str | None,
    max_interval: float | None,
    loglevel: str | int | None,
    logfile: str | None,
    include: list[str] | None,
    pidfile: str | None,
) -> int:
    """Send the app's periodic tasks until stopped.

    Any number may run: one of them sends, and another takes over should it die.
    """
    if schedule is not None:
        session.note("--schedule is not needed: the last runs are remembered in the broker")
    from minicelery.cli.advice import refuse_without_fork

    refuse_without_fork()
    app = session.app()
    include_modules(app, include or ())
    from minicelery.beat import Beat
    from minicelery.worker import logs

    app.set_current()
    app.import_task_modules()
    app.conf.check()
    if app.broker.url.startswith("memory:"):
        raise ui.CommandError(
            "broker memory:// lives in one process: what beat sends no worker would see",
            hint="run both in one: minicelery worker --pool solo --beat", exit_code=ui.USAGE,
        )  # fmt: skip
    found = Beat(app, scheduler=scheduler, max_interval=max_interval)
    logs.setup_logging(app.conf, loglevel=loglevel or "WARNING", logfile=logfile)
    with pid_file(pidfile):
        _stop_by_signals(found)
        if not session.quiet:
            ui.say(banner(found))
        return found.run()


def banner(beat: Beat) -> str:
    """What is sent when, in the app's zone and in UTC; passwords masked."""
    import minicelery

    app = beat.app
    lines = [
        f" minicelery {minicelery.__version__} beat",
        f" app:       {app.main or '__main__'}",
        f" transport: {app.broker.url}",
        f" timezone:  {app.conf.timezone or 'UTC'}",
    ]
    return "\n".join([*lines, *_upcoming(beat)])


def _upcoming(beat: Beat) -> list[str]:
    from minicelery.beat.ticking import TickingScheduler

    if isinstance(beat.scheduler, TickingScheduler):
        return [f" schedule:  of {beat.scheduler.described}, which sends what it has itself"]
    from minicelery.beat.entries import read_entry
    from minicelery.schedules.words import from_now, in_words

    now = datetime.now(timezone.utc)
    rows: list[tuple[Any, ...]] = []
    for name, given in beat.scheduler.entries().items():
        try:
            entry = read_entry(beat.app, name, given)
            following = entry.timing.next(now)
        except Exception:
            continue  # beat says so when it reads it
        if entry.enabled:
            rows.append((following.timestamp(), name, following, in_words(entry.timing)))
    if not rows:
        return [" next runs: none are known; beat_schedule and app.add_periodic_task say what to send"]
    shown = [
        f"   . {printable(name)}: {words}; {at:%a %d %b %H:%M:%S %Z} = {at.astimezone(timezone.utc):%a %d %b %H:%M:%S} UTC, "
        f"{from_now(due - now.timestamp())}"
        for due, name, at, words in sorted(rows, key=lambda row: row[:2])[:SHOWN]
    ]
    more = [f"   … and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    return [" next runs, counted from now:", *shown, *more]


def _stop_by_signals(beat: Beat) -> None:
    def stop(number: int, _: object) -> None:
        beat.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, stop)
