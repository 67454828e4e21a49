"""`self.request`: every field of it, as a task sees it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.compat.stage import Stage, each

ETA = datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
FAR = datetime(2100, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

# The options of the call, and what the task sees.
FIELDS: dict[str, tuple[dict[str, Any], Any]] = {
    "args": ({"args": (1, [2])}, [1, [2]]),
    "kwargs": ({"kwargs": {"x": 1}}, {"x": 1}),
    "id": ({"task_id": "an-id"}, "an-id"),
    "task": ({}, "look"),
    "called_directly": ({}, False),
    "is_eager": ({}, False),
    "retries": ({"retries": 2}, 2),
    "correlation_id": ({"task_id": "an-id"}, "an-id"),
    "reply_to": ({"reply_to": "me"}, "me"),
    "root_id": ({"task_id": "an-id"}, "an-id"),
    "parent_id": ({"parent_id": "p"}, "p"),
    "group": ({"group_id": "g"}, "g"),
    "group_index": ({"group_id": "g", "group_index": 2}, 2),
    "shadow": ({"shadow": "other"}, "other"),
    "eta": ({"eta": ETA}, ETA.isoformat()),
    "expires": ({"expires": FAR}, FAR.isoformat()),
    "headers": ({"headers": {"mine": 1}}, {"mine": 1}),
    "hostname": ({}, "w1@compat"),
    "ignore_result": ({"ignore_result": False}, False),
    "timelimit": ({"time_limit": 9, "soft_time_limit": 8}, [9, 8]),
    "time_limit": ({"time_limit": 9}, 9),
    "soft_time_limit": ({"soft_time_limit": 8}, 8),
    "replaced_task_nesting": ({"replaced_task_nesting": 1}, 1),
    "stamped_headers": ({"stamped_headers": ["a"], "stamps": {"a": ["1"]}}, ["a"]),
    "stamps": ({"stamped_headers": ["a"], "stamps": {"a": ["1"]}}, {"a": ["1"]}),
    "utc": ({}, True),
    "chord": ({}, None),
    "children": ({}, []),
}  # fmt: skip


@pytest.fixture
def looking(stage: Stage) -> Any:
    """Notes one field of its request in `seen`."""

    @stage.app.task(bind=True, name="look", seen=[], field="", typing=False)
    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        self.seen.append(getattr(self.request, self.field))

    return look


@pytest.mark.parametrize("way", ["attribute", "key", "get"])
@each({name: (name, *case) for name, case in FIELDS.items()})
def test_a_field_of_the_request_is_celerys(stage: Stage, looking: Any, case: Any, way: str) -> None:
    field, options, expected = case
    read = {"attribute": getattr, "key": lambda one, name: one[name], "get": lambda one, name: one.get(name)}
    looking.run = lambda *_, **__: looking.seen.append(read[way](looking.request, field))
    looking.apply_async(**options)
    stage.work()
    assert looking.seen == [expected]


def test_the_delivery_info_tells_where_the_message_came_by(stage: Stage, looking: Any) -> None:
    looking.field = "delivery_info"
    looking.apply_async(priority=3)
    stage.app.conf.task_queues = {"mail": {"exchange": "post", "routing_key": "letter"}}
    looking.apply_async(exchange="post", routing_key="letter")
    stage.work("celery")
    stage.work("mail")
    direct, routed = looking.seen
    assert direct == {"exchange": "", "routing_key": "celery", "priority": 3, "redelivered": False}
    assert (routed["exchange"], routed["routing_key"]) == ("post", "letter")


def test_a_message_that_comes_again_is_marked_as_redelivered(stage: Stage) -> None:
    task = stage.app.task(
        lambda self: self.request.delivery_info["redelivered"], name="t", bind=True, acks_late=True
    )
    stage.lose(task, reason=None)  # type: ignore[arg-type]  # nobody knows how it died
    stage.work()
    assert stage.app.AsyncResult(stage.outcomes[0].delivery.message.id).get(timeout=1) is True


@each({"callbacks": ("link", "callbacks"), "errbacks": ("link_error", "errbacks")})
def test_what_is_linked_is_in_the_request(stage: Stage, looking: Any, case: Any) -> None:
    option, looking.field = case
    looking.apply_async(**{option: looking.si(5)})
    stage.work()
    [found] = looking.seen[0]
    assert (found["task"], list(found["args"]), found["immutable"]) == ("look", [5], True)


def test_the_rest_of_the_chain_is_in_the_request(stage: Stage, looking: Any) -> None:
    looking.field = "chain"
    looking.apply_async(chain=[looking.si(2), looking.si(1)])
    stage.work()
    assert [[list(step["args"]) for step in rest or ()] for rest in looking.seen] == [[[2], [1]], [[2]], []]


def test_what_a_task_sends_becomes_a_child_of_its_request(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> list[str]:
        self.app.send_task("other", task_id="child", queue="nobody")
        return [one.id for one in self.request.children]

    assert stage.run(task).get(timeout=1) == ["child"]


def test_the_properties_are_those_of_the_message(stage: Stage, looking: Any) -> None:
    looking.field = "properties"
    looking.apply_async(task_id="an-id", app_id="shop")
    stage.work()
    assert {"correlation_id": "an-id", "app_id": "shop"}.items() <= looking.seen[0].items()


def test_the_origin_names_the_sending_process(stage: Stage, looking: Any) -> None:
    import os
    import socket

    looking.field = "origin"
    looking.delay()
    stage.work()
    assert looking.seen == [f"gen{os.getpid()}@{socket.gethostname()}"]


@each({"loglevel": "loglevel", "logfile": "logfile"})
def test_the_logs_options_are_in_the_request(stage: Stage, looking: Any, case: str) -> None:
    looking.field = case
    looking.delay()
    stage.work()
    assert looking.seen == [None]


def test_called_directly_a_task_has_an_empty_request(stage: Stage, looking: Any) -> None:
    for field in ("called_directly", "id", "retries", "is_eager"):
        looking.field = field
        looking()
    assert looking.seen == [True, None, 0, False]


def test_run_at_once_a_task_knows_it(stage: Stage, looking: Any) -> None:
    for field in ("is_eager", "called_directly", "id"):
        looking.field = field
        looking.apply(task_id="an-id")
    assert looking.seen == [True, False, "an-id"]


def test_an_attribute_set_on_the_request_lasts_as_long_as_the_attempt(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> Any:
        before = self.request.get("mine")
        self.request.mine = 5
        self.request.update({"other": 6})
        return [before, self.request.mine, self.request.other]

    assert [stage.run(task).get(timeout=1) for _ in range(2)] == [[None, 5, 6]] * 2


def test_an_expired_or_delayed_call_tells_the_times_of_the_message(stage: Stage, looking: Any) -> None:
    looking.field = "eta"
    looking.apply_async(countdown=0.02)
    stage.work(wait=10, most=1)
    found = datetime.fromisoformat(looking.seen[0])
    assert abs(found - datetime.now(timezone.utc)) < timedelta(seconds=60)
