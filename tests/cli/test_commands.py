"""call, result, purge and report, on an app with a SQLite file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import pytest

from minicelery import Celery, record, states
from minicelery.cli.call import json_or_text, moment, seconds_or_moment
from minicelery.cli.choosing import queue_names
from minicelery.message import Outcome
from tests.cli.conftest import Project, Ran

Run = Callable[..., Ran]


class Calls:
    """The app of tasks.py as another process sees it."""

    def __init__(self, path: Path) -> None:
        url = f"sqlite:///{path / 'queue.db'}"
        self.app = Celery("reader", broker=url, backend=url, set_as_current=False)

    def take(self, queue: str = "celery") -> list[Any]:
        """The messages ready in `queue`, acknowledged."""
        consumer = self.app.broker.consumer([queue], "reader", None)
        found = consumer.swap([], 10, 0)
        consumer.swap([Outcome(delivery) for delivery in found], 0, 0)
        consumer.close()
        return [delivery.message for delivery in found]

    def store(self, id: str, state: str, value: Any, **more: Any) -> None:
        self.app.backend.store([record.encode(id, state, value, **more)])


@pytest.fixture
def calls(project: Project) -> Iterator[Calls]:
    project.write_tasks()
    reader = Calls(project.path)
    yield reader
    reader.app.close()


def arguments(message: Any) -> tuple[Any, Any]:
    args, kwargs, _ = json.loads(message.body)
    return args, kwargs


# -- call --------------------------------------------------------------------------------


def test_call_sends_the_task_and_prints_its_id(calls: Calls, run: Run) -> None:
    ran = run("-A", "tasks", "call", "tasks.add", "-a", "[1, 2]")
    (message,) = calls.take()
    assert ran == Ran(0, f"{message.id}\n", "")
    assert (message.task, arguments(message)) == ("tasks.add", ([1, 2], {}))


def test_words_are_json_or_else_text_and_negative_numbers_need_no_escape(calls: Calls, run: Run) -> None:
    run(
        "-A",
        "tasks",
        "call",
        "other.task",
        "-1",
        "two",
        '{"a": 1}',
        "-q",
        "-.5",
        "true",
        "-2",
        "--countdown",
        "-3",
    )
    (message,) = calls.take()
    assert arguments(message) == ([-1, "two", {"a": 1}, "-.5", True, -2], {})


def test_what_follows_two_dashes_is_taken_as_it_is(calls: Calls, run: Run) -> None:
    run("-q", "-A", "tasks", "call", "other.task", "--", "--wait", "-x")
    assert arguments(calls.take()[0])[0] == ["--wait", "-x"]


def test_options_of_call_reach_the_message(calls: Calls, run: Run) -> None:
    words = ["-k", '{"x": 1, "y": 2}', "-Q", "special", "--priority", "3", "--expires", "60"]
    assert run("-A", "tasks", "call", "tasks.add", *words).code == 0
    (message,) = calls.take("special")
    assert arguments(message) == ([], {"x": 1, "y": 2})
    assert message.priority == 3
    assert message.expires is not None


@pytest.mark.parametrize("option", [["--countdown", "60"], ["--eta", "2099-01-31T07:30:00Z"]])
def test_a_delayed_call_waits_in_the_broker(calls: Calls, run: Run, option: list[str]) -> None:
    assert run("-A", "tasks", "call", "tasks.add", "1", "2", *option).code == 0
    assert (calls.app.broker.size("celery"), calls.app.broker.delayed("celery")) == (0, 1)


def test_an_unknown_task_is_sent_by_name_with_a_note(calls: Calls, run: Run) -> None:
    ran = run("-A", "tasks", "call", "tasks.ad", "1")
    assert ran.code == 0
    assert (
        ran.err
        == "note: no task 'tasks.ad' is known here, did you mean 'tasks.add'?; sending it by its name alone\n"
    )
    assert calls.take()[0].task == "tasks.ad"


def test_arguments_that_do_not_fit_a_known_task_are_refused_unsent(calls: Calls, run: Run) -> None:
    ran = run("-A", "tasks", "call", "tasks.add", "1")
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert calls.take() == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-a", "[1"], "is not JSON"),
        (["-a", "{}"], "expected a JSON list"),
        (["-k", "[]"], "expected a JSON object"),
        (["-a", "[1]", "2"], "choose one"),
        (["--eta", "tomorrow"], "is not an ISO 8601 time"),
        (["--priority", "11"], "--priority"),
    ],
)
def test_a_call_written_wrongly_is_a_usage_error(
    calls: Calls, run: Run, words: list[str], error: str
) -> None:
    ran = run("-A", "tasks", "call", "tasks.add", *words)
    assert (ran.code, error in ran.err) == (2, True)
    assert calls.take() == []


def test_waiting_without_a_result_backend_is_refused_unsent(project: Project, run: Run) -> None:
    ran = run("-b", "sqlite:///queue.db", "call", "x", "--wait")
    assert ran.code == 78
    assert ran.err.endswith("hint: set result_backend\n")
    assert "Nothing waits" in run("-b", "sqlite:///queue.db", "purge").out


def test_a_result_that_does_not_come_in_time_is_an_error_with_the_id(calls: Calls, run: Run) -> None:
    ran = run("-q", "-A", "tasks", "call", "tasks.add", "1", "2", "--wait=0.05")
    assert ran.code == 1
    assert ran.err.startswith("error: tasks.add had no result within 50 ms; its state is PENDING\nhint: ")
    assert calls.take()[0].id in ran.err


def test_a_time_without_offset_is_local_and_seconds_are_seconds() -> None:
    assert moment("2030-01-31T07:30:00Z") == datetime(2030, 1, 31, 7, 30, tzinfo=timezone.utc)
    assert moment("2030-01-31T07:30:00") == datetime(2030, 1, 31, 7, 30).astimezone()
    assert seconds_or_moment("2.5") == 2.5
    with pytest.raises(click.BadParameter):
        seconds_or_moment("soon")


def test_a_word_is_text_unless_it_is_json() -> None:
    assert [json_or_text(word) for word in ("2", "[]", "null", "two", " -2", "")] == [
        2,
        [],
        None,
        "two",
        -2,
        "",
    ]


# -- result ------------------------------------------------------------------------------


def test_the_value_of_a_done_task_is_printed_as_json(calls: Calls, run: Run) -> None:
    calls.store("abc", states.SUCCESS, {"a": "ü"})
    ran = run("result", "-A", "tasks", "abc")
    assert (ran.code, ran.out) == (0, '{"a": "ü"}\n')
    assert ran.err.startswith("note: state SUCCESS, done ")


def test_a_failure_is_printed_with_its_traceback_if_wanted(calls: Calls, run: Run) -> None:
    error = record.exception_document(ValueError("no"))
    calls.store("abc", states.FAILURE, error, traceback="Traceback: line 1")
    assert run("-q", "-A", "tasks", "result", "abc") == Ran(0, "ValueError: no\n", "")
    assert run("-q", "-A", "tasks", "result", "abc", "--traceback").out == "Traceback: line 1\n"
    document = json.loads(run("-A", "tasks", "result", "abc", "--json").out)
    assert document["state"] == "FAILURE"
    assert document["error"] == {"type": "ValueError", "message": "no"}
    assert document["traceback"] == "Traceback: line 1"


def test_a_state_before_the_end_says_so(calls: Calls, run: Run) -> None:
    calls.store("abc", "PROGRESS", {"current": 1, "total": 4})
    ran = run("-A", "tasks", "result", "abc")
    assert (ran.out, ran.err) == ('{"current": 1, "total": 4}\n', "note: state PROGRESS, not done yet\n")


def test_an_unknown_id_is_unknown_or_expired(calls: Calls, run: Run) -> None:
    ran = run("-A", "tasks", "result", "abc")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: task abc: unknown or expired (results are kept 1 day)\n")


def test_results_without_a_backend_are_a_matter_of_configuration(project: Project, run: Run) -> None:
    ran = run("-b", "sqlite:///queue.db", "result", "abc")
    assert ran.code == 78
    assert "result_backend" in ran.err


# -- purge -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["purge", "list queues", "queues", "dead list"])
def test_a_misspelt_queue_is_noted_with_the_nearest(calls: Calls, run: Run, command: str) -> None:
    ran = run("-A", "tasks", *command.split(), "-Q", "celry")
    assert ran.err == "note: no queue 'celry' is in the settings; did you mean 'celery'?\n"


def test_purge_deletes_what_is_ready_and_what_is_delayed(calls: Calls, run: Run) -> None:
    for option in ([], ["--countdown", "60"], ["-Q", "other"]):
        run("-A", "tasks", "call", "tasks.add", "1", "2", *option)
    assert run("-A", "tasks", "purge", "-f") == Ran(0, "Deleted 2 messages from celery.\n", "")
    assert run("-A", "tasks", "purge", "-f", "-Q", "celery,other", "-X", "celery").out == (
        "Deleted 1 message from other.\n"
    )
    assert run("-A", "tasks", "purge", "-Q", "celery,other").out == "Nothing waits in celery, other.\n"


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("", 1, 1)])
def test_purge_shows_the_counts_and_asks(
    calls: Calls, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    import io

    run("-A", "tasks", "call", "tasks.add", "1", "2")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    ran = run("-A", "tasks", "purge")
    assert ran.code == code
    assert ran.out.splitlines()[:2] == ["queue   ready  delayed", "celery      1        0"]
    assert "Delete 1 message on sqlite://" in ran.out
    assert calls.app.broker.size("celery") == left


def test_the_queues_of_the_settings_are_purged_whatever_their_form() -> None:
    class Conf:
        task_default_queue = "celery"
        task_queues: Any = None

    class Named:
        name = "b"

    conf = Conf()
    assert queue_names(conf) == ["celery"]
    conf.task_queues = ["a", Named()]
    assert queue_names(conf) == ["a", "b"]
    conf.task_queues = {"c": {"exchange": "c"}}
    assert queue_names(conf) == ["c"]


# -- report ------------------------------------------------------------------------------


def test_report_shows_versions_transport_and_settings_without_passwords(project: Project, run: Run) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\n"
        "app = Celery('shop', broker='redis://u:hunter2@localhost:1/0', backend='redis://:hunter2@localhost:1/1',"
        " task_default_queue='q', broker_transport_options={'password': 'hunter2', 'x': 1})\n",
    )
    for words in (["report"], ["report", "--json"]):
        ran = run("-A", "tasks", *words)
        assert ran.code == 0
        assert "hunter2" not in ran.out + ran.err
    document = json.loads(ran.out)
    assert set(document) == {"versions", "platform", "transport", "settings"}
    assert document["transport"]["broker"] == "redis://u:**@localhost:1/0"
    assert document["settings"]["task_default_queue"] == "q"
    assert document["settings"]["broker_transport_options"] == {"password": "**", "x": 1}


def test_report_is_made_even_where_the_broker_cannot_be_used(project: Project, run: Run) -> None:
    project.write("tasks.py", "from minicelery import Celery\napp = Celery('t', broker='nonsense://x')\n")
    ran = run("-A", "tasks", "report")
    assert ran.code == 0
    assert "not usable: " in ran.out
