from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minicelery.cli.demo import Demo, Screen, Sent
from minicelery.cli.demo_tasks import app
from tests.waiting import wait_until

HOME = Path(__file__).resolve().parents[2]
HELD = """
import sys
if sys.orig_argv[-1] == "demo":
    import signal
    import click
    echo = click.echo
    def echo_and_wait(message=None, **options):
        echo(message, **options)
        if "add(2, 2)" in str(message):
            signal.pause()
    click.echo = echo_and_wait
"""
"""For sitecustomize.py: the demo does not go on behind its first task until a signal comes."""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary directory is the test's, and is empty again afterwards."""
    yield {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(HOME), "PYTHONIOENCODING": "utf-8"}
    assert not list(tmp_path.glob("minicelery-demo-*"))


def command() -> list[str]:
    return [sys.executable, "-m", "minicelery", "demo"]


def processes_in(directory: Path) -> list[int]:
    """Processes that were started with a path of `directory` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in line:
                found.append(int(entry.name))
    return found


def test_the_demo_runs_its_tasks_says_what_next_and_leaves_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    began = time.monotonic()
    done = subprocess.run(command(), env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 25
    assert "\x1b" not in done.stdout
    for line in (
        r"✓ \w{8}  add\(2, 2\) +→ 4, the worker's start included +\d",
        r"↻ \w{8}  deliver\('a parcel'\) +attempt 1: nobody at home; again in 0.4 s",
        r"↻ \w{8}  deliver\('a parcel'\) +attempt 2: nobody at home",
        r"✓ \w{8}  deliver\('a parcel'\) +→ a parcel delivered at attempt 3",
        r"    \w{8}  resize\(12\) +50 %",
        r"✓ \w{8}  remind\(\) in 1 s +started [\d.]+ m?s after its time",
        r"205 tasks and 2 retries in \d",
        r'    app = Celery\("tasks", broker="sqlite:///queue.db", backend="sqlite:///queue.db"\)',
        r"    minicelery -A tasks worker",
    ):
        assert re.search(line, done.stdout), line
    assert processes_in(tmp_path) == []


def test_states_that_were_over_before_they_were_seen_are_shown_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with subprocess.Popen(["true"]) as process:
        demo = Demo(app, Screen(), process, tmp_path / "log")
    demo.started = True
    demo.open = {"a": Sent("deliver('a parcel')", 0.0), "b": Sent("resize(12)", 0.0, parts=12)}
    demo._show("b", {"status": "PROGRESS", "result": {"current": 7, "total": 12}})
    demo._show("a", {"status": "RETRY", "result": ConnectionError(), "retries": 1})
    demo._show("a", {"status": "SUCCESS", "result": "delivered", "retries": 2})
    demo._show("b", {"status": "SUCCESS", "result": "resized", "retries": 0})
    found = re.findall(r"attempt \d|\d+ %|→ \w+", capsys.readouterr().out)
    assert found == ["25 %", "50 %", "attempt 1", "attempt 2", "→ delivered", "75 %", "→ resized"]
    assert (demo.open, demo.retries) == ({}, 2)


def test_the_demo_shows_a_moving_bar_and_colours_on_a_terminal(environment: dict[str, str]) -> None:
    parent, child = pty.openpty()
    environment["TERM"] = "xterm"
    with subprocess.Popen(command(), env=environment, stdin=child, stdout=child, stderr=child) as process:
        os.close(child)
        seen = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # Linux: the other end has been closed
                break
            if not part:
                break
            seen += part
        assert process.wait(10) == 0
    os.close(parent)
    text = seen.decode()
    assert "█" in text
    assert "\x1b[32m" in text
    assert "\r\x1b[2K" in text


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_stopped_stops_its_worker_and_cleans_up(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals, code: int, started: bool
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HELD)
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{HOME}"
    with subprocess.Popen(
        command(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            while started and b"add(2, 2)" not in process.stdout.readline():
                assert process.poll() is None
            wait_until(lambda: processes_in(tmp_path), timeout=30)
            process.send_signal(number)
            wait_until(lambda: process.poll() is not None, timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert processes_in(tmp_path) == []


def test_a_demo_whose_worker_cannot_start_fails_and_shows_why(
    environment: dict[str, str], tmp_path: Path
) -> None:
    stand_in = tmp_path / "sitecustomize.py"
    stand_in.write_text("import sys\nif 'worker' in sys.orig_argv: sys.exit('the worker is broken')\n")
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{HOME}"
    done = subprocess.run(command(), env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "error: the worker ended by itself, exit code 1" in done.stderr
    assert "the worker is broken" in done.stderr
