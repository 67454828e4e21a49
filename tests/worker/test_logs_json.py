"""Log lines that are JSON objects: what is in them, and that nothing that is logged can break them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import ImproperlyConfigured
from minicelery.worker import Worker, logs
from tests.waiting import wait_until
from tests.worker.harness import Stage


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


def line_of(message: str, *args: object, **extra: Any) -> dict[str, Any]:
    """The object that a logger `tasks` writes; `extra` may hold exc_info."""
    exc_info = extra.pop("exc_info", None)
    record = logging.getLogger("tasks").makeRecord(
        "tasks", logging.WARNING, "tasks.py", 7, message, args, exc_info, extra=extra
    )
    text = logs.JSONFormatter().format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_line_has_time_level_logger_message_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "process_name", "Child-2")
    line = line_of("%s of %d\nlines", "two", 3)
    assert line.pop("time").endswith("Z")
    assert isinstance(line.pop("pid"), int)
    assert line == {"level": "WARNING", "logger": "tasks", "message": "two of 3\nlines", "process": "Child-2"}


def test_inside_a_task_a_line_has_its_name_and_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "current_task_info", lambda: ("tasks.add", "id-1"))
    line = line_of("x")
    assert (line["task"], line["task_id"]) == ("tasks.add", "id-1")


def test_what_the_program_adds_is_there_and_hides_nothing() -> None:
    line = line_of("x", order=7, customer={"name": "ü"}, level="mine")
    assert (line["order"], line["customer"], line["level"]) == (7, {"name": "ü"}, "WARNING")


def test_an_exception_is_an_object_of_its_own() -> None:
    try:
        raise KeyError("k")
    except KeyError:
        line = line_of("failed", exc_info=sys.exc_info())
    assert (line["error"]["type"], line["error"]["message"]) == ("KeyError", "'k'")
    assert line["error"]["traceback"].startswith("Traceback")


def test_a_line_is_json_whatever_the_stream_and_the_values() -> None:
    record = logging.makeLogRecord({"msg": "ü \ud800 \x9b", "a": float("nan")})
    text = logs.JSONFormatter().format(record)
    assert text.isascii() and "NaN" not in text
    assert json.loads(text)["message"] == "ü \ud800 \x9b"


def test_a_line_whose_arguments_do_not_fit_is_logged_with_them() -> None:
    assert line_of("%d of %s", "x")["message"] == "%d of %s ('x',)"


@pytest.mark.parametrize(
    "extra", [{"a": Unprintable()}, {"a": {(1, 2): 3}}, {"a": float}, {"a": b"\xff"}, {"a": {1, 2}}]
)
def test_what_json_can_not_carry_becomes_text(extra: dict[str, Any]) -> None:
    assert "a" in line_of("x", **extra)


def test_a_value_that_holds_itself_is_logged_all_the_same() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert line_of("x", a=endless)["message"] == "x"


@pytest.mark.parametrize(
    ("wanted", "settings", "lines"),
    [
        (None, ("%(message)s", "json"), ("%(message)s", "json")),
        ("json", ("%(message)s", "%(message)s"), ("json", "json")),
        ("text", ("%(message)s", "%(name)s"), ("%(message)s", "%(name)s")),
    ],
)
def test_the_option_is_stronger_than_the_settings(
    wanted: str | None, settings: tuple[str, str], lines: tuple[str, str]
) -> None:
    with Celery("t", broker="memory://", set_as_current=False) as app:
        app.conf.update(worker_log_format=settings[0], worker_task_log_format=settings[1])
        assert logs._formats(app.conf, wanted) == lines
        app.conf.update(worker_log_format="json", worker_task_log_format="json")
        assert "json" not in logs._formats(app.conf, "text")


def test_a_log_format_that_there_is_not_is_refused_with_those_there_are() -> None:
    app = Celery("t", broker="memory://", set_as_current=False)
    with app, pytest.raises(ImproperlyConfigured, match=r"log_format='xml' of the worker: expected .*json"):
        Worker(app, log_format="xml")


def test_every_line_of_a_worker_is_an_object_those_of_tasks_with_their_id(redis_stage: Stage) -> None:
    stage = redis_stage
    worker = stage.worker(log_format="json", concurrency=1, quiet=True)
    sent = stage.send("noop")
    stage.wait_for([sent])
    lines = wait_until(
        lambda: [
            line
            for line in map(json.loads, worker.output().split("\n")[:-1])
            if line.get("task_id") == sent.id
        ]
    )
    assert {(line["task"], line["process"]) for line in lines} == {("noop", "Child-1")}
