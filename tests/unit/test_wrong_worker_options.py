"""Every wrong option of a worker, of a revocation and of a declaration is refused, in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import ImproperlyConfigured
from minicelery.worker import Worker

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
NO_COUNT = (-1, 1.5, True, NAN, INF, HUGE, "3", "", [], timedelta(1))
NO_LIMIT = (0, -1, True, NAN, INF, HUGE, "60", [], timedelta(1))
NO_NAMES = (5, True, b"q", [5], {"q": 1}, [b"q"])
LONGEST = 400

OF_WORKERS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("hostname", "text", (5, True, "", b"x", [])),
    ("concurrency", "a whole number from 1 to 100000, or 'auto'", (0, "x", "", *NO_COUNT[:6], [], b"3")),
    ("pool", "pool", (5, True, "", "thread", "gevent", [])),
    ("queues", "names of queues", NO_NAMES),
    ("exclude_queues", "names of queues", NO_NAMES),
    ("loglevel", "the name or number of a log level", ("LOUD", "", True, -1, 1.5, [])),
    ("logfile", "a path", (5, True, "", [])),
    ("max_tasks_per_child", "an integer >= 1", (0, *NO_COUNT)),
    ("max_memory_per_child", "an integer >= 1", (0, *NO_COUNT)),
    ("prefetch_multiplier", "an integer >= 0", NO_COUNT),
    ("time_limit", "seconds greater than 0", NO_LIMIT),
    ("soft_time_limit", "seconds greater than 0", NO_LIMIT),
    ("processes", "an integer from 1", (0, *NO_COUNT)),
    ("pool_start_method", "'fork' or 'spawn'", ("forkserver", "", 5, True, [])),
    ("task_events", "a boolean", ("often", 5, 1.5, [])),
    ("without_heartbeat", "a boolean", ("often", 5, 1.5, [])),
    ("heartbeat_interval", "seconds greater than 0", NO_LIMIT),
    ("autoscale", "the most and the least number", (5, True, "3,1", (1, 3), (3,), (3, 2, 1), (3, 0), (3.0, 1), [])),
]  # fmt: skip
RIGHT_FOR_WORKERS: dict[str, tuple[Any, ...]] = {
    "hostname": (None, "w1", "w1@%h"), "concurrency": (None, 1, 8, "8", "auto"), "pool": (None, "threads", "solo"),
    "queues": (None, "a,b", ["a"], ("a", "b"), {"a"}, ""), "exclude_queues": (None, "a", ["a"]),
    "loglevel": (None, "info", "INFO", 20), "logfile": (None, "w.log"), "prefetch_multiplier": (None, 0, 4),
    "max_tasks_per_child": (None, 1, 100), "max_memory_per_child": (None, 100_000), "time_limit": (None, 60, 0.5),
    "soft_time_limit": (None, 60, 0.5), "pool_start_method": (None, "fork", "spawn"),
    "task_events": (None, True, False), "without_heartbeat": (True, False), "heartbeat_interval": (None, 0.5, 5),
    "autoscale": (None, (10, 2), [3, 3]),
}  # fmt: skip


def refusal(act: Callable[[], Any], *kinds: type[Exception]) -> str:
    with pytest.raises(kinds) as refused:
        act()
    assert len(str(refused.value)) <= LONGEST
    return str(refused.value)


@pytest.mark.parametrize("row", OF_WORKERS, ids=lambda row: row[0])
def test_a_wrong_option_of_a_worker_is_refused_before_it_starts(app: Celery, row: Any) -> None:
    option, accepted, values = row
    for value in values:
        text = refusal(partial(Worker, app, **{option: value}), ImproperlyConfigured)
        assert text.startswith(f"{option}=") and accepted in text, text


@pytest.mark.parametrize("option", RIGHT_FOR_WORKERS)
def test_a_right_option_of_a_worker_is_taken(app: Celery, option: str) -> None:
    for value in RIGHT_FOR_WORKERS[option]:
        assert Worker(app, **{option: value}).queues


REVOCATIONS: dict[str, tuple[Callable[[Celery], Any], tuple[str, ...]]] = {
    "an id that is a number": (lambda app: app.control.revoke(5), ("task_id=5 of revoke", "a list of ids")),
    "an id that is empty": (lambda app: app.control.revoke(""), ("task_id='' of revoke",)),
    "an id in bytes": (lambda app: app.control.revoke(b"x"), ("task_id=b'x' of revoke",)),
    "a mapping for ids": (lambda app: app.control.revoke({"x": 1}), ("task_id=", " of revoke")),
    "a number among ids": (lambda app: app.control.revoke(["x", 5]), ("task_id=['x', 5] of revoke",)),
    "a word for a flag": (lambda app: app.control.revoke("x", terminate="no"), ("terminate='no' of revoke", "True")),
    "a flag of a result": (lambda app: app.AsyncResult("x").revoke(terminate="no"), ("terminate='no'", "True")),
    "a misspelt option": (lambda app: app.control.revoke("x", terminat=True), ("terminat=True", "terminate=")),
    "a signal that ends nothing": (lambda app: app.control.revoke("x", signal="SIGWINCH"), ("SIGWINCH", "SIGTERM")),
    "a signal by a wrong number": (lambda app: app.control.revoke("x", signal=True), ("signal=True", "SIGTERM")),
    "a long word for a signal": (lambda app: app.control.revoke("x", signal="a" * 5000), ("signal='aaa", "SIGTERM")),
    "a wrong id to terminate": (lambda app: app.control.terminate(5), ("task_id=5 of revoke",)),
}  # fmt: skip


@pytest.mark.parametrize("what", REVOCATIONS)
def test_a_wrong_revocation_is_refused_and_nothing_is_remembered(app: Celery, what: str) -> None:
    act, said = REVOCATIONS[what]
    text = refusal(lambda: act(app), TypeError, ValueError)
    assert all(part in text for part in said), text
    assert app.broker.recall("revoked") == app.broker.recall("terminate") == {}


def test_ids_may_be_any_sequence_of_texts(app: Celery) -> None:
    app.control.revoke("a")
    app.control.revoke(["b", "c"], terminate=True, signal="KILL", destination=["w1@host"], reply=False)
    app.control.revoke(id for id in ("d", "e"))
    app.control.revoke([])
    assert sorted(app.broker.recall("revoked")) == ["a", "b", "c", "d", "e"]
    assert app.broker.recall("terminate") == {"b": b"SIGKILL", "c": b"SIGKILL"}


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("name", 5, "text"), ("name", b"x", "text"), ("filter", 5, "a function"), ("bind", "self", "a boolean"),
        ("lazy", "no", "a boolean"), ("pydantic", "strict", "a boolean"), ("pydantic_strict", 2, "a boolean"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_of_the_decorator_is_refused(
    app: Celery, option: str, value: Any, accepted: str
) -> None:
    text = refusal(partial(app.task(**{option: value}), os.getcwd), TypeError, ValueError)
    assert f"{option}={value!r} of " in text and accepted in text


def test_text_for_the_arguments_of_a_signature_is_refused(app: Celery) -> None:
    task = app.task(lambda order: order, name="pay")
    for wrong in ("ab", b"ab", {"order": 1}):
        assert "of pay: expected a list or tuple" in refusal(partial(task.signature, wrong), TypeError)
