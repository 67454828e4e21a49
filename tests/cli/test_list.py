"""list queues, list bindings; and purge where brokers differ."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery import Celery
from minicelery.broker import open_broker
from minicelery.broker.sqlite import SQLiteBroker
from minicelery.cli import main
from minicelery.message import Outcome, Verdict
from minicelery.routing import Exchange, Queue, binding
from tests.cli.conftest import Project, Ran
from tests.conformance.messages import call, serve

Run = Callable[..., Ran]


def lines(ran: Ran) -> list[list[str]]:
    """The words of each line of what was printed."""
    assert (ran.code, ran.err) == (0, "")
    return [line.split() for line in ran.out.splitlines()]


@pytest.fixture
def tasks(project: Project) -> Project:
    project.write_tasks()
    return project


@pytest.fixture
def run_on_redis(redis_url: str, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    app = Celery("tasks", broker=redis_url, set_as_current=False)

    def run(*argv: str) -> Ran:
        code = main(argv, app=app)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    yield run
    app.close()


# -- queues ------------------------------------------------------------------------------


def test_the_default_queue_is_shown_with_its_counts(tasks: Project, run: Run) -> None:
    for option in ([], [], ["--countdown", "60"]):
        run("-A", "tasks", "call", "tasks.add", "1", "2", *option)
    ran = run("-A", "tasks", "list", "queues")
    assert ran == Ran(0, "queue   ready  delayed  dead\ncelery      2        1     0\n", "")


def test_the_configured_queues_are_shown_or_those_that_are_named(tasks: Project, run: Run) -> None:
    run("-A", "tasks", "call", "tasks.add", "1", "2", "-Q", "b")
    ran = run("-A", "tasks", "list", "queues", "-Q", "b,c", "--queues", "a,b")
    assert lines(ran)[1:] == [["b", "1", "0", "0"], ["c", "0", "0", "0"], ["a", "0", "0", "0"]]


def test_on_redis_dead_letters_are_counted(redis_url: str, run_on_redis: Run) -> None:
    broker = open_broker(redis_url)
    serve(broker, "q")
    broker.publish([call("bad", "q"), call("good", "q"), call("late", "q", due=time.time() + 60)])
    consumer = broker.consumer(["q"], "c", None)
    consumer.swap([Outcome(consumer.swap([], 1, 0)[0], Verdict.REJECT)], 0, 0)
    consumer.close()
    broker.close()
    assert lines(run_on_redis("list", "queues", "-Q", "q")) == [
        ["queue", "ready", "delayed", "dead"],
        ["q", "1", "1", "1"],
    ]


def test_what_is_not_known_is_null_in_json(tasks: Project, run: Run) -> None:
    ran = run("-A", "tasks", "list", "queues", "--json")
    assert json.loads(ran.out) == [
        {"queue": "celery", "ready": 0, "delayed": 0, "dead": 0, "consumers": None}
    ]


# -- bindings ----------------------------------------------------------------------------


def test_a_queue_without_options_is_bound_as_celery_binds_it(tasks: Project, run: Run) -> None:
    run("-A", "tasks", "call", "tasks.add", "1", "2")
    ran = run("list", "bindings", "-A", "tasks")
    assert ran.out.splitlines() == [
        "queue   exchange  exchange type  routing key  ready  delayed  dead",
        "celery  celery    direct         celery           1        0     0",
    ]


def test_each_binding_of_a_queue_has_its_line(sqlite_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    app = Celery("tasks", broker=sqlite_url, set_as_current=False)
    mail, everything = Exchange("mail", "topic"), Exchange("all", "fanout")
    app.conf.task_queues = [
        Queue("a", [binding(mail, "eu.#"), binding(everything)]),
        Queue("b", mail, "us.*"),
    ]
    assert main(["list", "bindings"], app=app) == 0
    assert capfd.readouterr().out.splitlines() == [
        "queue  exchange  exchange type  routing key  ready  delayed  dead",
        "a      celery    direct         celery           0        0     0",
        "a      mail      topic          eu.#             0        0     0",
        "a      all       fanout         -                0        0     0",
        "b      mail      topic          us.*             0        0     0",
    ]
    app.close()


@pytest.fixture
def declare(redis_url: str) -> Callable[..., None]:
    """Declares a queue as Celery does."""
    kombu = pytest.importorskip("kombu", reason="what it declares is to be shown")

    def declare(name: str, exchange: str, kind: str, key: str, **options: Any) -> None:
        with kombu.Connection(redis_url, transport_options=options) as connection:
            queue = kombu.Queue(name, kombu.Exchange(exchange, kind), key)
            queue(connection.default_channel).declare()

    return declare


def test_on_redis_what_celery_has_bound_is_shown_too(declare: Callable[..., None], run_on_redis: Run) -> None:
    declare("celery", "celery", "direct", "celery")
    declare("mails", "mail", "topic", "eu.#")
    declare("mails", "mail", "topic", "us.*")
    declare("w1@host.celery.pidbox", "celery.pidbox", "fanout", "")
    declare("celeryev.1", "celeryev", "topic", "worker.#")
    rows = json.loads(run_on_redis("list", "bindings", "--json").out)
    assert [
        (row["queue"], row["exchange"], row["exchange_type"], row["routing_key"], row["ready"])
        for row in rows
    ] == [
        ("celery", "celery", "direct", "celery", 0),
        ("mails", "mail", "topic", "eu.#", 0),
        ("mails", "mail", "topic", "us.*", 0),
    ]


def test_of_what_celery_has_bound_only_the_named_queues_are_shown(
    declare: Callable[..., None], run_on_redis: Run
) -> None:
    declare("mails", "mail", "topic", "eu.#")
    declare("others", "mail", "topic", "us.*")
    declare("celeryev.1", "celeryev", "topic", "worker.#")
    found = lines(run_on_redis("list", "bindings", "-Q", "mails,celeryev.1"))
    assert [line[:4] for line in found[1:]] == [
        ["mails", "mails", "direct", "mails"],
        ["mails", "mail", "topic", "eu.#"],
        ["celeryev.1", "celeryev.1", "direct", "celeryev.1"],
        ["celeryev.1", "celeryev", "topic", "worker.#"],
    ]


def test_bindings_under_a_prefix_are_its_own(declare: Callable[..., None], redis_url: str) -> None:
    declare("mine", "x", "direct", "k", global_keyprefix="shop[1]*:")
    declare("other", "x", "direct", "k")
    for prefix, queue in (("shop[1]*:", "mine"), ("", "other")):
        broker: Any = open_broker(redis_url, options={"global_keyprefix": prefix})
        assert broker.bindings() == ([(queue, "x", "direct", "k")], True)
        broker.close()


def test_the_search_for_bindings_ends_in_time_and_says_so(redis_server: Any, redis_url: str) -> None:
    redis_server.command("EVAL", "for i = 1, 5000 do redis.call('SET', 'k' .. i, '') end", "0")
    broker: Any = open_broker(redis_url)
    assert broker.bindings(seconds=0.0) == ([], False)
    assert broker.bindings(seconds=60.0) == ([], True)
    broker.close()


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["list", "queues"], ["list", "bindings"], ["purge"]])
def test_a_broker_that_is_away_is_an_error_with_a_hint(
    project: Project, run: Run, command: list[str]
) -> None:
    ran = run("-b", "redis://:secret@127.0.0.1:1/0", *command)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: cannot reach Redis at redis://") and "\nhint: " in ran.err
    assert "secret" not in ran.err


def test_list_alone_says_what_can_be_listed(run: Run) -> None:
    ran = run("list")
    assert ran.code == 2
    assert "bindings" in ran.out and "queues" in ran.out


def test_what_can_not_be_listed_is_an_error(run: Run) -> None:
    ran = run("list", "workers")
    assert ran.code == 2
    assert ran.err.startswith("error: no such command 'workers'")


# -- purge -------------------------------------------------------------------------------


def test_purge_says_how_many_it_deleted_from_each_queue(tasks: Project, run: Run) -> None:
    for queue in ("a", "a", "b"):
        run("-A", "tasks", "call", "tasks.add", "1", "2", "-Q", queue)
    ran = run("-A", "tasks", "purge", "-f", "-Q", "a,b,c", "-X", "c")
    assert ran == Ran(0, "Deleted 3 messages from a (2), b (1).\n", "")


class Forgetful(SQLiteBroker):
    """Can't tell whose delayed messages are, as servers with exchanges can't."""

    def delayed(self, queue: str) -> Any:
        return None


def test_purge_says_so_where_delayed_messages_stay(
    project: Project, sqlite_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minicelery.broker.sqlite.SQLiteBroker", Forgetful)
    app = Celery("tasks", broker=sqlite_url, set_as_current=False)
    app.broker.publish([call("now", "celery")])
    note = "note: delayed messages stay: this broker can't tell those of celery from others\n"
    assert main(["list", "queues"], app=app) == 0
    assert capfd.readouterr() == ("queue   ready  dead\ncelery      1     0\n", "")
    assert main(["purge", "-f"], app=app) == 0
    assert capfd.readouterr() == ("Deleted 1 message from celery.\n", note)
    assert main(["purge"], app=app) == 0
    assert capfd.readouterr() == ("Nothing waits in celery.\n", note)
    assert main(["-q", "purge"], app=app) == 0
    assert capfd.readouterr().err == ""
    app.close()
