"""top: what its screen shows, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from minicelery import Celery
from minicelery.cli import main
from minicelery.cli.cells import cut, padded, plain, width_of
from minicelery.cli.fleet import Fleet, Meter, QueueRow, RunRow, TypeRow, View, WorkerRow
from minicelery.cli.top import frame
from minicelery.exceptions import OperationalError
from tests.cli.conftest import Ran
from tests.waiting import wait_until

Run = Callable[..., Ran]


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("top", broker="memory://top", set_as_current=False) as app:
        yield app


@pytest.fixture
def view() -> View:
    return View(
        "redis://host/0",
        [
            WorkerRow("w1@host", True, 2, 105, 10.5, 0.25, 0.4),
            WorkerRow("w2@host", False, None, None, None, None, 75.0),
        ],
        [QueueRow("celery", 17, 3, 0, -2.5), QueueRow("mail", 0, None, None, None)],
        [TypeRow("proj.add", 2, 100, 3, 1, 10.4, 0.0123)],
        [RunRow("5c10328e-7699", "proj.add", "FAILURE", 1795295000.0, "w1@host", "ValueError('no')", 3.2)],
        {"received": 10.6, "succeeded": 10.0, "failed": 0.4},
        1234, running=2, course=[1, 0, 8, 4],
    )  # fmt: skip


def text(view: View, width: int = 100, height: int = 40) -> list[str]:
    return [click.unstyle(line).rstrip() for line in frame(view, width, height, 1795295000.0)]


def test_the_screen_shows_workers_queues_tasks_and_rates(view: View) -> None:
    lines = text(view)
    assert lines[0].startswith("minicelery top  redis://host/0  ")
    assert len(lines[0]) == 100
    assert (
        lines[1]
        == "workers 1/2 online  running 2  received 10.6/s  succeeded 10.0/s  failed 0.4/s  retried 0.0/s"
    )
    assert lines[2] == "ended in a second, up to 8  ▁ █▄"
    assert "WORKER   STATE    ACTIVE  DONE  TASKS/S  LOAD       HEARD" in lines
    assert "w1@host  online        2   105     10.5  0.25  400 ms ago" in lines
    assert "w2@host  offline       -     -        -     -    75 s ago" in lines
    assert "celery     17        3     0      -2.5" in lines
    assert "mail        0        -     -         -" in lines
    assert "proj.add        2  100       3        1    10.4  12 ms" in lines
    assert any(
        line.startswith("proj.add  FAILURE") and line.endswith("3.2 s  5c10328e  w1@host  ValueError('no')")
        for line in lines
    )
    assert lines[-1].startswith("q quits")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [5, 10, 24, 60])
def test_it_fits_every_terminal(view: View, width: int, height: int) -> None:
    view.workers *= 30
    view.runs *= 100
    view.workers[0].name = "größe.日本語の名前" * 5
    view.problem = "cannot reach Redis at redis://host/0: " + "語" * 300
    for paused in (False, True):
        lines = frame(view, width, height, 0.0, paused=paused)
        assert len(lines) == height
        assert all(width_of(click.unstyle(line)) <= width for line in lines)


def test_what_does_not_fit_is_counted(view: View) -> None:
    view.workers = [WorkerRow(f"w{number}@host", True, 0, 0, 0.0, 0.0, 0.0) for number in range(30)]
    lines = text(view, height=30)
    shown = sum("@host" in line and line.startswith("w") for line in lines)
    assert 1 < shown < 30
    assert f"  and {30 - shown} more" in lines


def test_wide_names_leave_the_columns_straight(view: View) -> None:
    view.types = [TypeRow(name, 1, 2, 3, 4, 5.0, None) for name in ("größe.日本語", "größe.a", "e\u0301")]
    rows = [line for line in text(view) if line.rstrip().endswith("5.0     -")]
    assert len({width_of(row) for row in rows}) == 1
    assert [len(row) for row in rows] == [len(rows[1]) + 1, len(rows[1]), len(rows[1]) - 3]


def test_a_small_screen_shows_the_workers_and_what_they_run(view: View) -> None:
    lines = text(view, 40, 10)
    assert [line.split()[0] for line in lines if "STATE" in line] == ["WORKER", "NAME"]
    assert any(line.startswith("proj.add  FAILURE") for line in lines)


def test_an_empty_fleet_says_so() -> None:
    lines = text(View("redis://host/0"))
    assert "  none has been heard of yet" in lines
    assert "  no event of a task has come" in lines


def test_names_that_others_have_sent_do_not_reach_the_terminal_as_commands(view: View) -> None:
    bad = "\x1b[2J\x9b\n\u202e\u2028\ud800\u200b"
    view.workers[0].name = view.types[0].name = view.runs[0].text = view.queues[0].name = view.problem = bad
    view.runs[0].name = view.runs[0].worker = view.runs[0].id = view.runs[0].state = view.broker = bad
    for line in text(view):
        assert line.isprintable(), line


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("añb", 2, "a…"), ("日本語", 5, "日本…"), ("日本語", 4, "日…"), ("日本語", 6, "日本語"), ("❤\ufe0f", 1, "❤"), ("x", 0, "")],
)  # fmt: skip
def test_texts_are_cut_by_the_cells_they_take(text: str, width: int, shown: str) -> None:
    found = cut(plain(text), width)
    assert found == shown
    assert width_of(found) <= width
    assert width_of(padded(plain(text), width)) == width


def test_a_meter_counts_the_last_ten_seconds_and_keeps_a_minute() -> None:
    meter = Meter(100.0)
    for moment in (100.0, 100.5, 101.2):
        meter.add(moment)
    assert (meter.total, meter.rate(102.0), meter.course(103.0)) == (3, 1.5, [2, 1, 0])
    assert meter.rate(130.0) == 0.0
    for second in range(200, 100_000, 7):
        meter.add(float(second))
    assert len(meter._seconds) < 70
    assert len(meter.course(100_000.0)) == 60


def test_a_view_is_made_of_what_is_told(app: Celery) -> None:
    fleet = Fleet(app, ["celery"], 0.05)
    now = time.time()
    common = {"hostname": "w@h", "timestamp": now, "local_received": now, "clock": 1, "pid": 1}
    for processed in (1, 5):
        fleet.hear(
            {
                "type": "worker-heartbeat",
                "freq": 200.0,
                "active": 1,
                "processed": processed,
                "loadavg": [0.5],
                **common,
            }
        )
    call = {"name": "add", "args": "(1,)", "kwargs": "{}"}
    for id in ("one", "two", "three"):
        fleet.hear({"type": "task-received", "uuid": id, **call, **common})
        fleet.hear({"type": "task-started", "uuid": id, **common})
    fleet.hear({"type": "task-succeeded", "uuid": "one", "result": "5", "runtime": 0.5, **common})
    fleet.hear({"type": "task-failed", "uuid": "two", "exception": "E()", "traceback": "", **common})
    view = fleet.view()
    (worker,), (kind,) = view.workers, view.types
    assert (worker.name, worker.online, worker.active, worker.processed, worker.load) == (
        "w@h",
        True,
        1,
        5,
        0.5,
    )
    assert worker.rate is not None
    assert (kind.name, kind.running, kind.succeeded, kind.failed, kind.mean) == ("add", 1, 1, 1, 0.5)
    assert {run.id: (run.state, run.text) for run in view.runs} == {
        "one": ("SUCCESS", "5"), "two": ("FAILURE", "E()"), "three": ("STARTED", "(1,)"),
    }  # fmt: skip
    assert view.rates["received"] > view.rates["failed"] > 0
    assert (view.running, view.runs[0].id) == (1, "three")  # what runs is first


def test_what_a_worker_says_that_it_runs_counts_for_more_than_what_was_heard(app: Celery) -> None:
    fleet, now = Fleet(app, ["celery"]), time.time()
    common = {"hostname": "w@h", "timestamp": now - 60, "local_received": now - 60, "clock": 1, "pid": 1}
    for id in ("still", "over", "elsewhere"):
        where = {"hostname": "x@h"} if id == "elsewhere" else {}
        fleet.hear({"type": "task-received", "uuid": id, "name": "add", "args": "()", **common, **where})
        fleet.hear({"type": "task-started", "uuid": id, **common, **where})
    fleet.hear({"type": "task-started", "uuid": "fresh", **common, "timestamp": now})
    runs = [
        {"id": "still", "name": "add", "time_start": now - 60},
        {"id": "before", "name": "report", "args": [600], "kwargs": {}, "time_start": now - 3600},
        {"id": ["x"]}, {"id": "bare"},
    ]  # fmt: skip
    fleet.compare("w@h", runs, now)
    found = {run.id: run.state for run in fleet.view().runs}
    running = dict.fromkeys(("still", "elsewhere", "fresh", "before", "bare"), "STARTED")
    assert found == {**running, "over": "ENDED"}
    first = fleet.view().runs[0]
    assert (first.id, first.name, first.text, first.worker) == ("before", "report", "[600]", "w@h")
    assert first.took is not None
    assert first.took > 3599
    fleet.hear({"type": "task-succeeded", "uuid": "over", "result": "5", "runtime": 60.0, **common})
    assert {run.id: run.state for run in fleet.view().runs}["over"] == "SUCCESS"


def test_workers_that_are_gone_are_forgotten(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, now = Fleet(app, ["celery"]), time.time()
    for number in range(50):
        common = {"hostname": f"w{number}@h", "timestamp": now, "local_received": now, "clock": 1, "pid": 1}
        fleet.hear({"type": "worker-online", "processed": 1, **common})
        fleet.hear({"type": "worker-offline", "processed": 1, **common})
    assert len(fleet.view().workers) == 50
    monkeypatch.setattr("minicelery.cli.fleet.GONE", -1.0)
    assert fleet.view().workers == []
    assert (fleet._heard, fleet._beats) == ({}, {})


def test_of_very_many_tasks_the_last_ones_are_counted(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minicelery.cli.fleet.TYPES", 10)
    fleet, now = Fleet(app, ["celery"]), time.time()
    for number in range(30):
        common = {"hostname": "w@h", "timestamp": now, "uuid": str(number), "clock": 1, "pid": 1}
        fleet.hear({"type": "task-failed", "name": f"task-{number:02}", "exception": "E()", **common})
    assert [row.name for row in fleet.view().types] == [f"task-{number}" for number in range(20, 30)]


@pytest.mark.parametrize(
    "event", [{"type": "worker-heartbeat"}, {"type": "task-succeeded", "uuid": 5}, {"type": "x"}], ids=str
)
def test_events_that_say_too_little_change_nothing(app: Celery, event: dict[str, Any]) -> None:
    fleet = Fleet(app, ["celery"])
    fleet.hear(event)
    assert fleet.view().workers == []


def test_a_broker_that_is_lost_is_shown_and_forgotten_when_it_is_back(app: Celery) -> None:
    fleet = Fleet(app, ["celery"])
    fleet._lost(OperationalError("no broker"))
    assert fleet.view().problem == "no broker"
    fleet.hear({"type": "custom-one"})
    assert fleet.view().problem == ""
    fleet._lost(OperationalError("no broker"))
    fleet._ask_broker()  # also where nobody tells anything
    assert fleet.view().problem == ""


def test_once_prints_what_there_is_as_text_or_json(app: Celery, capfd: pytest.CaptureFixture[str]) -> None:
    app.send_task("add", (1,), queue="one")
    assert main(["top", "--json", "-i", "0.1", "-Q", "one,two"], app=app) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(row["name"], row["ready"]) for row in found["queues"]] == [("one", 1), ("two", 0)]
    assert found["broker"] == "memory://top"
    assert main(["top", "--once", "-i", "0.1"], app=app) == 0
    assert "none has been heard of yet" in capfd.readouterr().out


def test_a_broker_that_is_slow_to_answer_is_waited_for(
    app: Celery, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = app.broker.size
    monkeypatch.setattr(app.broker, "size", lambda queue: time.sleep(0.3) or size(queue))
    assert main(["top", "--json", "-i", "0.1", "-Q", "one,two"], app=app) == 0
    assert [row["name"] for row in json.loads(capfd.readouterr().out)["queues"]] == ["one", "two"]


def test_without_a_terminal_it_prints_once(app: Celery, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "-i", "0.1"], app=app) == 0
    out, err = capfd.readouterr()
    assert "no terminal to draw on: printing once" in err
    assert "\x1b" not in out


# -- in a terminal ---------------------------------------------------------------------------


class Screen:
    """`top` in a terminal of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "proj.py").write_text(
            f"from minicelery import Celery\napp = Celery('proj', broker={url!r}, backend={url!r})\n"
        )
        self.master, self.slave = pty.openpty()
        self.resize(110, 30)
        self.before = termios.tcgetattr(self.slave)
        self.written = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minicelery", "-A", "proj", "top", "-i", "0.1"],
            cwd=folder, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def shows(self, words: bytes) -> bool:
        """Whether the last picture has these words."""
        while select.select([self.master], [], [], 0)[0]:
            self.written += os.read(self.master, 65536)
        return words in self.written.rpartition(b"\x1b[?2026h")[2]

    def ended(self) -> bool:
        ended = self.process.poll() is not None
        self.shows(b"")  # all that it has written until then
        return ended

    def is_as_before(self) -> bool:
        """Whether the terminal has its own screen, cursor and keys again."""
        return termios.tcgetattr(self.slave) == self.before and self.written.rstrip().endswith(
            b"\x1b[?7h\x1b[?25h\x1b[?1049l"
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen(tmp_path: Path, redis_url: str) -> Iterator[Screen]:
    screen = Screen(tmp_path, redis_url)
    try:
        wait_until(lambda: screen.shows(b"QUEUE"), timeout=40)
        yield screen
    finally:
        screen.close()


def test_it_shows_what_happens_and_q_ends_it(screen: Screen, redis_url: str) -> None:
    with Celery("top", broker=redis_url, set_as_current=False) as app:
        app.send_task("add", (1,))
        heartbeat = {"freq": 2.0, "active": 3, "processed": 70, "loadavg": [0.1, 0.1, 0.1]}
        dispatcher = app.events.Dispatcher(hostname="w7@test")

        def is_told_of() -> bool:  # again and again: it may draw before it listens
            dispatcher.send("worker-heartbeat", **heartbeat)
            return screen.shows(b"w7@test")

        wait_until(is_told_of)
        wait_until(lambda: screen.shows(b"celery      1 "))
    os.write(screen.master, b"p")
    wait_until(lambda: screen.shows(b"paused"))
    screen.resize(40, 10)  # also while it is paused
    wait_until(lambda: screen.shows(b"paused") and not screen.shows(b"QUEUE"))
    os.write(screen.master, b"q")
    wait_until(screen.ended)
    assert screen.process.returncode == 0
    assert screen.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(screen: Screen, number: int) -> None:
    screen.process.send_signal(number)
    wait_until(screen.ended)
    assert screen.process.returncode != 0
    assert screen.is_as_before()


def test_stopped_by_ctrl_z_it_gives_the_terminal_back_until_it_goes_on(screen: Screen) -> None:
    screen.process.send_signal(signal.SIGTSTP)

    def stopped() -> bool:
        state = Path(f"/proc/{screen.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        screen.shows(b"")
        return state == "T" and screen.is_as_before()

    wait_until(stopped)
    screen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: screen.shows(b"QUEUE") and not screen.is_as_before())
    os.write(screen.master, b"q")
    wait_until(screen.ended)
    assert screen.is_as_before()
