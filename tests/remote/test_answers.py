"""What a worker answers to whatever is sent, without the processes of one."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicelery import Celery
from minicelery.broker.post import Letter
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import new_id
from minicelery.remote import Panel, control_command, steering
from minicelery.remote.registry import Commands
from minicelery.worker.board import Board
from minicelery.worker.changes import Changes
from minicelery.worker.executor import Executor
from minicelery.worker.orders import LONGEST, Change
from minicelery.worker.remote import LONGEST_REMEMBERED, REMEMBERED, Remote
from minicelery.worker.station import Station
from tests.waiting import wait_until

NODE = "w1@host1"


class Desk:
    """The part of an agent that answers; what it sends and orders is kept here."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.sent: list[Letter] = []
        self.orders: list[str] = []
        self.refuses: Any = lambda letters: None
        board = Board(1)
        executor = Executor(app, NODE)
        worker: Any = SimpleNamespace(
            app=app, hostname=NODE, pool="prefork", places=1, concurrency=1, batch=16, max_tasks=None,
            soft_time_limit=None, time_limit=None,
        )  # fmt: skip
        agent: Any = SimpleNamespace(
            board=board, report=self.orders.append, serve=lambda queues: None, end_runs=lambda *_: None,
            send_heartbeat=lambda: None,
        )  # fmt: skip
        self.changes = Changes(app, executor, ["celery"])
        self.remote = Remote(Station(worker, agent, self.changes))
        app.broker.post.send = self._send  # type: ignore[method-assign]

    def _send(self, letters: Any) -> None:
        self.refuses(letters)
        self.sent += letters

    def hear(self, *contents: Any) -> list[Any]:
        """What it replies to requests with these contents."""
        before = len(self.sent)
        letters = [Letter("celery.pidbox", "", b"", {}) for _ in contents]
        for letter, content in zip(letters, contents, strict=True):
            letter.content = content
        self.remote._answer_all(letters)
        return [json.loads(letter.body)[NODE] for letter in self.sent[before:]]


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Celery("desk", broker=f"memory://{new_id()}", set_as_current=False) as app:
        app.task(lambda: None, name="add")
        yield Desk(app)


def asking(method: str, ticket: str | None = None, **arguments: Any) -> dict[str, Any]:
    reply_to = {"exchange": "reply.celery.pidbox", "routing_key": "asker"}
    return {"method": method, "arguments": arguments, "ticket": ticket or new_id(), "reply_to": reply_to}


TEXT = st.text(st.characters(exclude_categories=()))  # also halves of characters, as JSON can have them
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OFTEN = st.sampled_from(
    ["celery", "add", NODE, "a=b", "1/s", "0", 1, 0, -1, 10**30, True, None, [], ["add"], {"a": "b"}]
)
COMMANDS = sorted(name for name in Panel if Panel.is_builtin(name) and name != "report")
NAMES = sorted(
    {
        *"task_id signal terminate headers task_name rate_limit soft hard n max min modules reload queue exchange "
        "exchange_type routing_key ids taskinfoitems builtins safe with_defaults from_node revoked msg".split()
    }
)
EACH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)


@EACH
@given(st.sampled_from(COMMANDS), st.dictionaries(st.sampled_from(NAMES) | TEXT, OFTEN | JSON, max_size=4))
def test_each_command_answers_to_any_arguments(desk: Desk, method: str, arguments: dict[str, Any]) -> None:
    before = len(desk.orders)
    assert desk.hear({**asking(method), "arguments": arguments}, asking("ping"))[-1] == {"ok": "pong"}
    for order in desk.orders[before:]:
        assert len(order) < LONGEST + 64
        assert "\n" not in order


@EACH
@given(
    JSON
    | st.fixed_dictionaries(
        {"method": st.sampled_from(COMMANDS) | JSON},
        optional={
            "arguments": JSON, "destination": JSON, "pattern": JSON, "matcher": st.sampled_from(["glob", "pcre"]) | JSON,
            "ticket": JSON, "kept": JSON,
            "reply_to": JSON | st.fixed_dictionaries({"exchange": TEXT | JSON, "routing_key": JSON}),
        },
    )
)  # fmt: skip
def test_whatever_is_heard_the_next_one_is_answered(desk: Desk, content: Any) -> None:
    assert desk.hear(content, asking("ping"))[-1] == {"ok": "pong"}


# -- orders that come again ------------------------------------------------------------------


def test_of_orders_that_come_again_only_so_many_and_short_replies_are_kept(desk: Desk) -> None:
    ids = [f"id-{number}" for number in range(LONGEST_REMEMBERED)]
    (long,) = desk.hear(asking("revoke", "long", task_id=ids))
    assert len(json.dumps(long)) > LONGEST_REMEMBERED
    assert desk.hear(asking("revoke", "long", task_id=ids)) == []
    assert desk.hear(*[asking("add_consumer", "same", queue="more")] * 3) == [{"ok": "add consumer more"}] * 3
    assert len(desk.orders) == 1
    for number in range(REMEMBERED + 100):
        desk.hear(asking("heartbeat", f"t{number}"))
    assert len(desk.remote._obeyed) == REMEMBERED


def test_a_command_of_the_apps_own_is_not_obeyed_again_while_it_runs_or_after(desk: Desk) -> None:
    done: list[int] = []
    go = threading.Event()

    @control_command(alias="counted")
    def count(state: Any) -> int:
        go.wait(10)
        done.append(1)
        return len(done)

    try:
        assert desk.hear(*[asking("count", "once")] * 3, asking("counted", "once")) == []
        go.set()
        wait_until(lambda: desk.sent)
        assert desk.hear(asking("count", "once"), asking("counted", "once")) == [1, 1]
        assert done == [1]
    finally:
        for name in ("count", "counted"):
            del Panel[name]
            Panel.meta.pop(name, None)


def test_what_is_told_apart_by_its_alias_has_its_type(desk: Desk) -> None:
    panel = Commands()
    panel.register(lambda state: None, name="one", alias="other")
    assert panel.types == {"one": "control", "other": "control"}


# -- what can't be sent, or changed ------------------------------------------------------------


def test_a_reply_that_cannot_be_sent_keeps_no_other_back(desk: Desk) -> None:
    def refuse(letters: Any) -> None:
        if any(letter.routing_key == "bad" for letter in letters):
            raise OperationalError("no such thing")

    desk.refuses = refuse
    bad = asking("ping")
    bad["reply_to"]["routing_key"] = "bad"
    assert desk.hear(asking("ping"), bad, asking("clock"))[0] == {"ok": "pong"}
    assert [letter.routing_key for letter in desk.sent] == ["asker"] * 2


def test_replies_are_not_tried_one_by_one_where_the_broker_is_away(desk: Desk) -> None:
    tried: list[int] = []

    def refuse(letters: Any) -> None:
        tried.append(len(letters))
        raise BrokerUnavailable("away")

    desk.refuses = refuse
    assert desk.hear(*[asking("ping") for _ in range(20)]) == []
    assert tried == [20]


def test_a_change_that_is_too_long_for_the_children_is_made_nowhere(desk: Desk) -> None:
    change = Change("stamp", json.dumps(["name", "x" * (LONGEST - 40)]), True)
    assert change.text()  # alone it would fit
    with pytest.raises(ValueError, match="too long"):
        desk.remote.station.change(change)
    assert (desk.orders, desk.changes.executor.revoked_stamps) == ([], {})


def test_a_queue_that_is_added_by_its_name_is_declared_as_senders_declare_it(desk: Desk) -> None:
    desk.app.conf.task_create_missing_queue_type = "quorum"
    desk.hear(asking("add_consumer", queue="more", exchange=None, exchange_type="direct", routing_key=None))
    desk.hear(
        asking("add_consumer", queue="mail", exchange="mails", exchange_type="topic", routing_key="a.#")
    )
    more, mail = (desk.app._sender.router.declared(name).spec for name in ("more", "mail"))
    assert more.is_quorum
    (binding,) = mail.bindings
    assert (binding.exchange.name, binding.exchange.type, binding.key) == ("mails", "topic", "a.#")


def test_a_worker_serves_only_so_many_queues_and_knows_only_so_many_stamps(desk: Desk) -> None:
    for number in range(steering.MOST_QUEUES + 50):
        (said,) = desk.hear(asking("add_consumer", queue=f"q{number}"))
    assert "queues already" in said["error"]
    assert len(desk.changes.queues) == steering.MOST_QUEUES
    for number in range(0, 3000, 500):
        desk.hear(asking("revoke_by_stamped_headers", headers={f"h{number + n}": "x" for n in range(500)}))
    assert len(desk.changes.executor.revoked_stamps) == steering.MOST_STAMPS


def test_what_others_send_is_complained_of_once_a_minute_and_in_one_line(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            desk.hear(
                {"method": "no\x1b[2J\nsuch"}, [1], asking("report", **{"\x1b\n": 1}), {"method": "x" * 10**6}
            )
    lines = [record.getMessage() for record in caplog.records if record.name == "minicelery.worker.remote"]
    assert len(lines) == 3
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
