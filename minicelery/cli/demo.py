"""`minicelery demo`: a queue, a worker and some tasks, without a file or a server of one's own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from minicelery import record, states
from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.result import AsyncResult

START = 30.0
"""Seconds that the worker may take to run its first task."""
RUN = 30.0
"""Seconds that all other tasks together may take."""
STOP = 3.0
"""Seconds that the worker may take to stop before it is killed."""

_BURST = 200
_UNICODE = {"done": "✓", "again": "↻", "failed": "✗", "to": "→", "full": "█", "empty": "░", "times": "×"}
_ASCII = {"done": "+", "again": "~", "failed": "!", "to": "->", "full": "#", "empty": ".", "times": "x"}
_COLOURS = {"done": "green", "again": "yellow", "failed": "red"}

_NEXT = """\
from minicelery import Celery

app = Celery("tasks", broker="sqlite:///queue.db", backend="sqlite:///queue.db")

@app.task
def add(x, y):
    return x + y"""


@click.command(short_help="See tasks run: nothing to install or to configure.")
@common_options()
@click.pass_obj
def demo(session: Session, /) -> int:
    """Run some tasks in a worker of their own, in a temporary directory that is removed again."""
    from minicelery.cli.demo_tasks import app

    screen = Screen()
    screen.heading("minicelery demo", "a queue in a SQLite file and a worker with two processes")
    with TemporaryDirectory(prefix="minicelery-demo-") as directory, _stopped_by_signals():
        url = f"sqlite:///{directory}/queue.db"
        app.conf.update(broker_url=url, result_backend=url)
        try:
            with _running_worker(directory, url) as process:
                Demo(app, screen, process, Path(directory, "worker.log")).run()
        finally:
            screen.status("")
            app.close()
    _say_what_next()
    return 0


def _say_what_next() -> None:
    ui.say()
    ui.say(f"Now your own.  Put this into {click.style('tasks.py', bold=True)}, as minicelery init does:")
    ui.say()
    for line in _NEXT.splitlines():
        ui.say("    " + click.style(line, fg="cyan") if line else "")
    ui.say()
    ui.say("and run, each in a terminal:")
    ui.say()
    for command, effect in (
        ("minicelery -A tasks worker", "runs tasks until Ctrl-C"),
        ("minicelery -A tasks call tasks.add 2 2 --wait", "prints 4"),
    ):
        ui.say(f"    {click.style(command.ljust(47), fg='cyan')}{click.style('# ' + effect, dim=True)}")


class Screen:
    """Lines one below the other and, on a terminal, one at the bottom that moves."""

    def __init__(self) -> None:
        self.moves = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.symbols = _UNICODE if ui.can_print("".join(_UNICODE.values())) else _ASCII
        self._status = ""
        self._quarters: dict[str, int] = {}

    def heading(self, title: str, text: str) -> None:
        """The first line."""
        ui.say()
        ui.say(f"{click.style(title, bold=True)}: {text}")
        ui.say()

    def line(self, kind: str, id: str, call: str, text: str, aside: str = "") -> None:
        """One thing that has happened to a task: `kind` is done, again or failed."""
        status = self._status
        self.status("")
        mark = click.style(self.symbols[kind], fg=_COLOURS[kind], bold=True)
        text = f"{call.ljust(24)} {text}"
        if aside:
            text = text.ljust(60) + click.style(aside.rjust(14), dim=True)
        ui.say(f"  {mark} {click.style(id[:8], dim=True)}  {text}")
        self.status(status)

    def status(self, text: str) -> None:
        """Replace the moving line; nothing where none can move."""
        if self.moves and text != self._status:
            sys.stdout.write("\r\x1b[2K")
            ui.say(text, newline=False)
            sys.stdout.flush()
            self._status = text

    def progress(self, id: str, call: str, done: int, total: int) -> None:
        """A bar that moves, or a line for each of the first three quarters that is done by now."""
        if self.moves:
            filled = 24 * done // total
            bar = self.symbols["full"] * filled + click.style(self.symbols["empty"] * (24 - filled), dim=True)
            percent = f"{100 * done // total:3d} %"
            self.status(f"    {click.style(id[:8], dim=True)}  {call.ljust(24)} {bar} {percent}")
            return
        shown, quarters = self._quarters.get(id, 0), min(3, 4 * done // total)
        for quarter in range(shown + 1, quarters + 1):
            ui.say(f"    {id[:8]}  {call.ljust(24)} {25 * quarter:3d} %")
        self._quarters[id] = max(shown, quarters)


@dataclass(slots=True)
class Sent:
    """A call that was sent: what to print of it, and when it was sent."""

    call: str
    since: float
    scheduled: bool = False
    parts: int = 0  # of its progress
    retries: int = 0  # that were shown


class Demo:
    """Sends the tasks and prints what becomes of them."""

    def __init__(self, app: Celery, screen: Screen, process: subprocess.Popen[bytes], log: Path) -> None:
        self.app = app
        self.screen = screen
        self.process = process
        self.log = log
        self.open: dict[str, Sent] = {}
        self.tasks = 0
        self.retries = 0
        self.started = False

    def run(self) -> None:
        """Send, watch, sum up.  Raises CommandError where a task fails or is late."""
        from minicelery.cli.demo_tasks import add, count_words, deliver, remind, resize

        began = time.monotonic()
        self.screen.status("    starting the worker ...")
        self._sent(add.delay(2, 2), "add(2, 2)")
        self._watch(START)
        due = time.time() + 1.0
        self._sent(count_words.delay("to be or not to be"), "count_words('to be...')")
        self._sent(deliver.apply_async(("a parcel",)), "deliver('a parcel')")
        self._sent(resize.apply_async((12,)), "resize(12)", parts=12)
        self._sent(
            remind.apply_async((due,), eta=datetime.fromtimestamp(due, timezone.utc)),
            "remind() in 1 s",
            scheduled=True,
        )
        self._burst(add)
        self._watch(RUN)
        seconds = ui.duration(time.monotonic() - began)
        ui.say()
        ui.say(
            f"  {click.style(f'{self.tasks} tasks', bold=True)} and {self.retries} retries "
            f"in {seconds}, from starting the worker to the last result."
        )

    def _sent(self, result: AsyncResult[Any], call: str, *, scheduled: bool = False, parts: int = 0) -> None:
        self.open[result.id] = Sent(call, time.monotonic(), scheduled, parts)
        self.tasks += 1

    def _burst(self, add: Any) -> None:
        began = time.monotonic()
        results = add.apply_many([(number, number) for number in range(_BURST)])
        self.tasks += _BURST
        for result in results:
            result.get(timeout=RUN)
        seconds = time.monotonic() - began
        rate = f"{_BURST / seconds:,.0f} tasks/s"
        call = f"{_BURST} {self.screen.symbols['times']} add(n, n)"
        self.screen.line("done", results[0].id, call, f"sent and done in {ui.duration(seconds)}", rate)

    def _watch(self, seconds: float) -> None:
        """Print every change of the open calls until all are done."""
        end = time.monotonic() + seconds
        seen: dict[str, bytes] = {}
        while self.open:
            if self.process.poll() is not None:
                raise self._failed(f"the worker ended by itself, exit code {self.process.returncode}")
            if time.monotonic() > end:
                late = ", ".join(sent.call for sent in self.open.values())
                raise self._failed(f"not done within {ui.duration(seconds)}: {late}")
            for news in self.app.backend.watch(list(self.open), seen, 0.1):
                seen[news.id] = news.document
                self._show(news.id, record.read(news.document, self.app.conf))

    def _show(self, id: str, meta: dict[str, Any]) -> None:
        sent, state, value = self.open[id], meta["status"], meta["result"]
        # A state may be replaced before it was seen: what it told is shown with the next one.
        self._show_retries(id, sent, meta.get("retries", 0) + (state == states.RETRY))
        if state == "PROGRESS":
            self.screen.progress(id, sent.call, value["current"], sent.parts)
        elif state == states.SUCCESS:
            del self.open[id]
            if sent.parts:
                self.screen.progress(id, sent.call, sent.parts, sent.parts)
            self.screen.status("")
            self._show_done(id, sent, value)
        elif state in states.ENDED:
            self.screen.line("failed", id, sent.call, f"{state}: {value!r}")
            raise self._failed(f"{sent.call} ended as {state}")

    def _show_retries(self, id: str, sent: Sent, count: int) -> None:
        from minicelery.cli.demo_tasks import lost

        for attempt in range(sent.retries + 1, count + 1):
            sent.retries = attempt
            self.retries += 1
            self.screen.line("again", id, sent.call, f"{lost(attempt)}; again in 0.4 s")

    def _show_done(self, id: str, sent: Sent, value: Any) -> None:
        if sent.scheduled:
            self.screen.line("done", id, sent.call, f"started {ui.duration(max(0.0, value))} after its time")
            return
        elapsed = ui.duration(time.monotonic() - sent.since)
        if not self.started:
            self.started = True
            value = f"{value}, the worker's start included"
        self.screen.line("done", id, sent.call, f"{self.screen.symbols['to']} {value}", elapsed)

    def _failed(self, text: str) -> ui.CommandError:
        try:
            last = self.log.read_text(errors="replace").splitlines()[-12:]
        except OSError:
            last = []
        lines = "".join(f"\n  | {line}" for line in last)
        return ui.CommandError(text + (f"\n  the worker's last lines:{lines}" if lines else ""))


@contextlib.contextmanager
def _running_worker(directory: str, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a session of its own: a Ctrl-C is the demo's affair, which then stops it."""
    log = os.path.join(directory, "worker.log")
    command = [
        sys.executable, "-m", "minicelery", "-A", "minicelery.cli.demo_tasks", "-b", url, "--result-backend", url,
        "worker", "-c", "2", "-n", "demo", "-l", "INFO", "-q",
    ]  # fmt: skip
    with open(log, "wb") as output, _held_back() as late:
        process = subprocess.Popen(
            command, cwd=directory, env=_environment(), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        for number in late:
            signal.raise_signal(number)
        yield process
    finally:
        _stop(process)


@contextlib.contextmanager
def _held_back() -> Iterator[list[int]]:
    """The signals that come meanwhile, and are not obeyed: a process half started would be left behind."""
    late: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: late.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield late
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    home = Path(__file__).resolve().parents[2]
    if home.name not in ("site-packages", "dist-packages"):  # run from a checkout
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    return environment


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker and all it has started, gently and then not; none is left afterwards."""
    process.terminate()
    if not _ends(process, STOP):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _ends(process, STOP)


def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    end = time.monotonic() + seconds
    # Children outlive a worker that was stopped while it started, until they see that it is gone.
    while process.poll() is None or _group_lives(process.pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """TERM and HUP end the block as an exception does, so that it cleans up."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
