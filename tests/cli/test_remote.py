"""inspect, control, status: as they are typed, against a worker in this process."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery import Celery
from minicelery.broker.post import Letter
from minicelery.cli import main
from minicelery.remote import Panel, control_command, steering
from minicelery.remote.request import decode_request, encode_reply, requests_box
from tests.cli.conftest import Project, Ran
from tests.waiting import wait_until

Run = Callable[..., Ran]


class Workers:
    """Answers for as many workers as a test wants; without any of their engine."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.nodes: list[str] = []
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {"ping": {"ok": "pong"}}
        self._listening = app.broker.post.listen([requests_box("any@test")])
        self._ended = False

    def run(self) -> None:
        while not self._ended:
            for letter in self._listening.take(0.1):
                request = decode_request(letter.content)
                self.heard.append((request.method, dict(request.arguments)))
                if request.reply_to is None:
                    continue
                replies: list[Letter] = [
                    encode_reply(node, self.answers.get(request.method, {"ok": request.method}), request, 1)
                    for node in self.nodes
                    if request.is_for(node)
                ]
                self.app.broker.post.send(replies)

    def stop(self) -> None:
        self._ended = True
        self._listening.wake()


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Celery]:
    with Celery("cli", broker=sqlite_url, set_as_current=False) as app:
        yield app


@pytest.fixture
def run(app: Celery, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Ran:
        code = main(argv, app=app)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reply may come as late as it likes; those of `Workers` come all at once."""
    monkeypatch.setattr("minicelery.cli.remote.TIMEOUT", 30.0)


def run_until_it_says(err: str, run: Run, *argv: str) -> Ran:
    """The first of ten runs that says so, or the last one: who answers may do so too late for a short --timeout."""
    for _ in range(10):
        ran = run(*argv)
        if ran.err == err:
            break
    return ran


@pytest.fixture
def workers(app: Celery) -> Iterator[Workers]:
    found = Workers(app)
    found.nodes = ["w1@test", "w2@test"]
    thread = threading.Thread(target=found.run, daemon=True)
    thread.start()
    yield found
    found.stop()
    thread.join(5)


@pytest.mark.parametrize("command", [("status",), ("inspect", "ping")])
def test_each_worker_is_shown_as_it_answers(command: tuple[str, ...], run: Run, workers: Workers) -> None:
    ran = run(*command)
    assert (ran.code, ran.err) == (0, "")
    assert "->  w1@test: OK\n    pong\n->  w2@test: OK\n    pong\n" in ran.out
    assert ran.out.endswith("2 nodes online.\n")
    assert run(*command, "--json").out == json.dumps(
        {"w1@test": {"ok": "pong"}, "w2@test": {"ok": "pong"}}, indent=2
    ) + "\n"  # fmt: skip
    assert run(*command, "-d", "w2@test", "-t", "5").out.count("w1@test") == 0


def test_who_of_a_destination_is_silent_is_named(run: Run, workers: Workers) -> None:
    for silent, near in (("v9@elsewhere", ""), ("w3@test", "; did you mean 'w2@test'?")):
        err = f"warning: {silent} did not answer{near}\n"
        ran = run_until_it_says(err, run, "inspect", "ping", "-d", f"w1@test,{silent}", "-t", "0.6")
        assert (ran.code, ran.err) == (0, err)


@pytest.mark.parametrize("command", [("status",), ("control", "shutdown")])
def test_a_worker_that_is_not_there_is_looked_for_among_those_that_are(
    command: tuple[str, ...], run: Run, workers: Workers
) -> None:
    err = (
        "error: none of w1@tset answered within 600 ms\n"
        "hint: did you mean 'w1@test' or 'w2@test'?\n"
        "      those that answer are w1@test, w2@test\n"
    )
    assert run_until_it_says(err, run, *command, "-d", "w1@tset", "-t", "0.6") == Ran(69, "", err)
    assert "shutdown" not in [method for method, _ in workers.heard]


def test_silence_says_what_was_checked_and_what_to_do(run: Run, app: Celery) -> None:
    app.send_task("nobodys.task")
    ran = run("inspect", "active", "-t", "0.1")
    assert ran.code == 69
    assert ran.out == ""
    assert "error: no worker answered within 100 ms\n" in ran.err
    assert "1 wait in 'celery'" in ran.err
    assert "minicelery worker" in ran.err
    assert run("status", "-d", "w1@test", "-t", "0.1").err.startswith(
        "error: none of w1@test answered within"
    )


def test_a_worker_that_has_stopped_is_remembered(run: Run, app: Celery) -> None:
    app.broker.remember("workers", "w1@test", 60.0, f"{time.time() - 300:.0f} stopped".encode())
    assert "the last worker, w1@test, stopped 5 minutes ago" in run("status", "-t", "0.1").err
    app.broker.remember("workers", "w2@test", 60.0, f"{time.time():.0f}".encode())
    assert "w2@test gave a sign of life lately" in run("status", "-t", "0.1").err


def test_inspect_alone_shows_an_overview(run: Run, workers: Workers) -> None:
    workers.answers |= {
        "stats": {
            "total": {"a": 2, "b": 3}, "uptime": 65,
            "pool": {"implementation": "minicelery.worker:prefork", "max-concurrency": 4},
        },
        "active": [{}], "reserved": [], "scheduled": [], "active_queues": [{"name": "celery"}, {"name": "mail"}],
    }  # fmt: skip
    ran = run("inspect")
    assert ran.code == 0
    head, first, second = ran.out.splitlines()
    assert head.split() == "worker pool at once active reserved scheduled begun up queues".split()
    assert first.split() == ["w1@test", "prefork", "4", "1", "0", "0", "5", "65", "s", "celery,", "mail"]
    assert second.startswith("w2@test")
    (row, _) = json.loads(run("inspect", "--json").out)
    assert (row["worker"], row["at_once"], row["begun"]) == ("w1@test", 4, 5)


def test_what_is_typed_after_a_command_is_its_arguments(run: Run, workers: Workers) -> None:
    typed = {
        ("control", "pool_grow", "2"): ("pool_grow", {"n": 2}),
        ("control", "rate_limit", "a.b", "10/m"): ("rate_limit", {"task_name": "a.b", "rate_limit": "10/m"}),
        ("control", "time_limit", "a.b", "1.5"): ("time_limit", {"task_name": "a.b", "soft": 1.5}),
        ("control", "add_consumer", "q", "x", "topic", "a.#"): (
            "add_consumer", {"queue": "q", "exchange": "x", "exchange_type": "topic", "routing_key": "a.#"},
        ),
        ("control", "revoke", "one", "two"): ("revoke", {"task_id": ["one", "two"]}),
        ("control", "terminate", "KILL", "one"): ("terminate", {"signal": "KILL", "task_id": ["one"]}),
        ("inspect", "query_task", "one"): ("query_task", {"ids": ["one"]}),
        ("inspect", "conf", "true"): ("conf", {"with_defaults": True}),
        ("inspect", "registered", "max_retries"): ("registered", {"taskinfoitems": ["max_retries"]}),
    }  # fmt: skip
    for words, (method, arguments) in typed.items():
        assert run(*words, "-d", "w1@test").code == 0, words
        assert workers.heard[-1] == (method, arguments)


WRONG = {
    ("inspect", "pong"): ("no inspect command 'pong'", "did you mean 'ping'?"),
    ("inspect", "pool_grow"): ("no inspect command 'pool_grow'", "minicelery control pool_grow"),
    ("control", "ping"): ("no control command 'ping'", "minicelery inspect ping"),
    ("control", "pool_grow", "x"): ("n: 'x' is not what it takes", "minicelery control pool_grow [N=1]"),
    ("control", "pool_grow", "1", "2"): ("'2' is one argument too many", "usage:"),
    ("inspect", "conf", "perhaps"): ("with_defaults: 'perhaps'", "usage:"),
    ("inspect", "ping", "-t", "0"): ("-t", ""),
    ("control",): ("missing argument 'COMMAND'", ""),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_typed_wrongly_is_explained_and_nobody_is_asked(words: tuple[str, ...], run: Run) -> None:
    ran = run(*words)
    assert ran.code == 2
    for part in WRONG[words]:
        assert part in ran.err


def test_a_refusal_of_all_workers_is_a_failure(run: Run, workers: Workers) -> None:
    workers.answers["pool_grow"] = {"error": "there is no room"}
    ran = run("control", "pool_grow")
    assert ran.code == 1
    assert "->  w1@test: ERROR\n    there is no room\n" in ran.out
    assert run("control", "pool_grow", "--json").code == 1


def test_shutdown_names_whom_it_tells(run: Run, workers: Workers) -> None:
    ran = run("control", "shutdown", "-d", "w1@test")
    assert (ran.code, ran.out) == (0, "->  w1@test: told: shutdown\n")
    wait_until(lambda: workers.heard[-1] == ("shutdown", {}))


def test_commands_are_listed_with_what_they_take(run: Run) -> None:
    assert "pool_grow [N=1]" in run("control", "--list").out
    out = run("inspect", "--list").out
    assert "registered [attr1 [attr2 [... [attrN]]]]" in out
    assert not [line for line in out.splitlines() if line.split()[:1] == ["hello"]]
    assert steering.pool_grow.__doc__ in run("control", "--list").out


def test_a_command_of_the_apps_own_can_be_typed(run: Run, workers: Workers) -> None:
    @control_command(args=[("factor", float)], signature="FACTOR")
    def slow_down(state: Any, factor: float) -> None:
        """Take more time."""

    try:
        assert "slow_down FACTOR" in run("control", "--list").out
        assert run("control", "slow_down", "1.5", "-d", "w1@test,w2@test").code == 0
        assert workers.heard[-1] == ("slow_down", {"factor": 1.5})
    finally:
        del Panel.meta["slow_down"], Panel["slow_down"]


def test_commands_in_a_module_that_only_workers_import_are_known(
    project: Project, run: Run, app: Celery, workers: Workers
) -> None:
    project.write(
        "steered.py",
        "from minicelery.remote import inspect_command\n"
        '@inspect_command(args=[("n", int)], signature="N")\n'
        "def count_steered(state, n): return n\n",
    )
    app.conf.include = ["steered"]
    sys.path.insert(0, str(project.path))
    try:
        assert run("inspect", "count_steered", "5", "-d", "w1@test,w2@test").code == 0
        assert workers.heard[-1] == ("count_steered", {"n": 5})
        assert "count_steered N" in run("inspect", "--list").out
    finally:
        for found in (Panel.meta, Panel.data, Panel.types):
            found.pop("count_steered", None)  # type: ignore[attr-defined]


def test_two_hundred_workers_are_all_shown(run: Run, workers: Workers) -> None:
    workers.nodes = [f"w{number}@test" for number in range(200)]
    ran = run("status")
    assert sorted(line.split()[1] for line in ran.out.splitlines() if line.startswith("->")) == sorted(
        f"{node}:" for node in workers.nodes
    )
    assert ran.out.endswith("200 nodes online.\n")


def test_where_all_that_are_meant_have_answered_nobody_waits(run: Run, workers: Workers) -> None:
    began = time.monotonic()
    assert run("inspect", "ping", "-d", "w1@test", "-t", "60").code == 0
    assert time.monotonic() - began < 30


HOSTILE = {
    "text with a bell": {"w\a@test": {"ok": "\x1b[2J\x07\x9bmade up"}},
    "lists": {"w1@test": ["\x1b]0;title\x07", {"a": "\x9b2J"}]},
    "an object": {"w1@test": {"ok\x1b": "\x9b2J\ud800"}},
    "nothing": {"w1@test": None},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_workers_say_is_shown_and_never_obeyed_by_a_terminal(
    name: str, run: Run, workers: Workers
) -> None:
    ((node, value),) = HOSTILE[name].items()
    workers.nodes, workers.answers["report"] = [node], value
    for ran in (run("inspect", "report"), run("inspect", "report", "--json")):
        assert not [sign for sign in ran.out + ran.err if not (sign.isprintable() or sign == "\n")]
    assert json.loads(ran.out) == {node: value}


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], [1, {"name": 5}], {"error": "no"}, {"total": [], "pool": 1}]
)
def test_an_overview_makes_do_with_what_it_gets(value: Any, run: Run, workers: Workers) -> None:
    for command in ("stats", "active", "reserved", "scheduled", "active_queues"):
        workers.answers[command] = value
    ran = run("inspect")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].startswith("w1@test")


@pytest.mark.filterwarnings("always::minicelery.exceptions.DuplicateNodenameWarning")
def test_two_workers_of_one_name_are_warned_of(run: Run, workers: Workers) -> None:
    workers.nodes = ["w1@test", "w1@test"]
    assert run("status").err == (
        "warning: more than one worker is called 'w1@test': give each a name of its own, with -n\n"
    )


def test_the_commands_are_found_from_a_project(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.write_tasks()
    assert main(["status", "-t", "0.1"]) == 69
    assert "queue.db" in capfd.readouterr().err
