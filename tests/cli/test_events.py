"""events: what it prints of what comes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from minicelery import Celery
from minicelery.cli import main
from minicelery.cli.events import Names, as_celery_line, as_json, as_line
from tests.cli.conftest import Ran
from tests.events.test_records import EVENTS, of_type
from tests.waiting import wait_until

Run = Callable[..., Ran]


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("printing", broker="memory://printing", set_as_current=False) as app:
        yield app


@pytest.fixture
def run(app: Celery, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Ran:
        code = main(argv, app=app)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@contextmanager
def sending(app: Celery, *events: dict[str, Any]) -> Iterator[None]:
    """Send events again and again meanwhile, so that somebody who begins to listen hears all of them."""
    done = threading.Event()

    def send() -> None:
        dispatcher = app.events.Dispatcher()
        while not done.wait(0.02):
            for event in events:
                dispatcher.publish(event["type"], {name: event[name] for name in event if name != "type"})

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


def line(event: dict[str, Any], names: Names | None = None) -> str:
    """What is printed of an event, without its time."""
    return as_line(event, names or Names()).split(" ", 1)[1]


def test_an_event_of_a_task_is_a_line_with_its_name_and_what_came_of_it() -> None:
    names = Names()
    received, succeeded = of_type("task-received"), of_type("task-succeeded")
    id = received["uuid"]
    assert line(received, names) == f"w1@host1 task-received wireapp.add[{id}] args=(2, 3) kwargs={{}}"
    assert line(succeeded, names) == f"w1@host1 \x1b[32mtask-succeeded\x1b[0m wireapp.add[{id}] 5 in 6 ms"
    failed = of_type("task-failed", "prefork: failure")
    assert (
        line(failed) == f"w1@host1 \x1b[31mtask-failed\x1b[0m ?[{failed['uuid']}] ValueError('bad value', 42)"
    )


def test_a_heartbeat_is_a_line_with_what_the_worker_does() -> None:
    assert line(of_type("worker-online", "prefork: start")).endswith(
        "worker-online 0 active, 0 processed, load 1.0"
    )


@pytest.mark.parametrize("write", [as_line, as_celery_line, as_json])
def test_every_event_of_celerys_is_one_line(write: Callable[..., str]) -> None:
    names = Names()
    for event in EVENTS:
        assert "\n" not in write(event, names)


def test_dumped_lines_are_celerys() -> None:
    from celery.events.dumper import Dumper

    class Said:
        lines: list[str] = []

        def write(self, text: str) -> None:
            self.lines += text.splitlines() if text.strip() else []

    dumper, names = Dumper(out=Said()), Names()
    for event in EVENTS:
        if "traceback" not in event:  # of several lines there
            dumper.on_event(dict(event))
            assert as_celery_line(event, names) == Said.lines[-1]


@pytest.mark.parametrize("write", [as_line, as_celery_line, as_json])
def test_what_others_send_does_not_reach_the_terminal_as_commands(write: Callable[..., str]) -> None:
    evil = {
        "type": "task-failed",
        "uuid": "\x1b[2J",
        "hostname": "a\x9b2J\nb",
        "exception": "\x1b]0;x\x07",
        "timestamp": 1e99,
    }
    text = write(evil, Names()).replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert not any(sign in text for sign in "\x1b\x07\x9b\n")


def test_json_lines_are_the_events(app: Celery, run: Run) -> None:
    with sending(
        app, {"type": "custom-one", "number": 5}, {"type": "task-failed", "uuid": "x", "exception": "E"}
    ):
        ran = run("events", "--json", "-n", "3", "-t", "custom-one")
    events = [json.loads(text) for text in ran.out.splitlines()]
    assert (ran.code, ran.err) == (0, "")
    assert [(event["type"], event["number"]) for event in events] == [("custom-one", 5)] * 3


def test_only_the_wanted_types_are_printed_but_names_are_known_of_others(app: Celery, run: Run) -> None:
    received = {"type": "task-received", "uuid": "an-id", "name": "add", "args": "()", "kwargs": "{}"}
    with sending(
        app, received, {"type": "task-failed", "uuid": "an-id", "exception": "E()"}, {"type": "custom-x"}
    ):
        ran = run("events", "-n", "2", "-t", "task-failed")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert all(text.endswith("task-failed add[an-id] E()") for text in lines[1:])
    assert "listening on memory://printing" in ran.err


def test_silence_is_told_with_what_to_look_at(run: Run) -> None:
    ran = run("events", "--timeout", "0.1")
    assert ran.code == 1
    assert "no event has come for 0.1 s" in ran.err
    assert "hint: is a worker running there?" in ran.err


def test_a_type_that_nobody_sends_is_told_with_the_nearest(app: Celery, run: Run) -> None:
    ran = run("events", "--timeout", "0.1", "-t", "task-faild")
    assert "workers send no events 'task-faild' by themselves; did you mean 'task-failed'?" in ran.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--camera", "x:Y"), "-c/--camera is not part of this version"),
        (("-F", "2"), "-F/--frequency/--freq is not part of this version"),
        (("--detach",), "let a service manager run it"),
        (("-n", "0"), "0 is not in the range x>=1"),
        (("--timeout", "0"), "0"),
    ],
)
def test_options_that_cant_be_are_refused(run: Run, arguments: tuple[str, ...], text: str) -> None:
    ran = run("events", *arguments)
    assert ran.code == 2
    assert text in ran.err


def test_an_interrupt_ends_it(tmp_path: Any, redis_url: str) -> None:
    import signal
    import subprocess
    import sys

    (tmp_path / "proj.py").write_text(
        f"from minicelery import Celery\napp = Celery('proj', broker={redis_url!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "minicelery", "-A", "proj", "events", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        with Celery("printing", broker=redis_url, set_as_current=False) as app:
            with sending(app, {"type": "custom-one"}):
                first = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            wait_until(lambda: process.poll() is not None)
    finally:
        process.kill()
        _, err = process.communicate()
    assert json.loads(first)["type"] == "custom-one"
    assert (process.returncode, err.strip()) == (130, b"")
