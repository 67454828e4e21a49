"""Calls from a client of either library to a worker of either: what arrives, and when.

What Celery's client and Celery's worker do between them is what the other pairs are held to;
where minicelery differs on purpose, the case says so and why.
"""

from __future__ import annotations

import importlib
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.interop.pair import EVERYWHERE, TIMEOUT, Pair, case, done, fresh
from tests.interop.tasks import TYPES, make_app
from tests.waiting import wait_until

celery = pytest.importorskip("celery", reason="real Celery is the other side")

pytestmark = pytest.mark.timeout(180)  # the first of them starts servers and workers

UTC = timezone.utc
HAS_ZSTD = "application/zstd" in importlib.import_module("kombu.compression").encoders()
COMPRESSIONS = ["zlib", "gzip", "bzip2", *(["zstd"] if HAS_ZSTD else [])]


# -- values -----------------------------------------------------------------------------------


@case(*EVERYWHERE)
def test_a_call_returns_its_value(pair: Pair) -> None:
    found = pair.send("add", 2, 3)
    assert found.get(timeout=TIMEOUT) == 5
    assert (found.state, found.successful(), found.children, found.traceback) == ("SUCCESS", True, [], None)


CALLS: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any]]] = {
    "nothing": ([], {}, {}),
    "positional": ([1, "two", None, True, 2.5], {}, {}),
    "keywords": ([1], {"b": [2, {"c": None}]}, {}),
    "unicode": (["é☃\U0001f40d\u2028"], {"ключ": "значение", "\0": "\x7f"}, {}),
    "large": (["x" * 1_000_000], {}, {}),
    "wide": (list(range(5000)), {}, {}),
    "numbers": ([2**63, -(2**70), 0.1, 1e300], {}, {}),
    "msgpack": (["té", 2**40, None], {"a": [1.5, True]}, {"serializer": "msgpack"}),
    **{name: (["long " * 1000], {"é": 1}, {"compression": name}) for name in COMPRESSIONS},
    "msgpack, zlib": (["long " * 1000], {}, {"serializer": "msgpack", "compression": "zlib"}),
    "large, bzip2": (["y" * 1_000_000], {}, {"compression": "bzip2"}),
}


@case(*EVERYWHERE)
@pytest.mark.parametrize("call", CALLS)
def test_arguments_arrive_and_come_back(pair: Pair, call: str) -> None:
    args, kwargs, options = CALLS[call]
    found = pair.send("echo", *args, kwargs=kwargs, **options)
    assert found.get(timeout=TIMEOUT) == {"args": args, "kwargs": kwargs}


@case(*EVERYWHERE)
def test_the_types_beyond_json_go_there_and_back(pair: Pair) -> None:
    assert pair.send("check_types", kwargs=TYPES).get(timeout=TIMEOUT) == TYPES


@case()
def test_tuples_arrive_as_lists(pair: Pair) -> None:
    found = pair.send("echo", (1, (2, 3)), kwargs={"a": ()})
    assert found.get(timeout=TIMEOUT) == {"args": [[1, [2, 3]]], "kwargs": {"a": []}}


@case(producers=("celery",))
def test_a_body_in_a_serializer_that_is_not_accepted_is_not_run(pair: Pair) -> None:
    key = fresh()
    found = pair.send("note", key, "ran", serializer="pickle")
    pair.settled()
    assert pair.notes(key) == []
    if pair.worker == "celery":  # drops it, and nobody is told
        assert found.state == "PENDING"
    else:
        assert found.state == "FAILURE" and "application/x-python-serialize" in str(found.result)
        pair.await_dead(found.id)


@case(producers=("celery",))
def test_a_message_of_protocol_1_is_run(pair: Pair) -> None:
    old = make_app("celery", pair.site.place, pair.queue)
    old.conf.task_protocol = 1
    with old:
        found = old.tasks["interop.echo"].apply_async((1,), {"a": "é"}, countdown=0.2)
        assert found.get(timeout=TIMEOUT) == {"args": [1], "kwargs": {"a": "é"}}


# -- what the task sees -----------------------------------------------------------------------


@case()
def test_the_task_sees_the_call(pair: Pair) -> None:
    found = pair.send("about", 1, kwargs={"a": "b"})
    about = found.get(timeout=TIMEOUT)
    assert about.pop("origin").startswith("gen")
    assert about.pop("reply_to")
    no_headers = None if pair.worker == "celery" else {}
    # To RabbitMQ Celery names no priority where it names a queue; minicelery always names one.
    priority = 0 if pair.on_redis or pair.producer == "minicelery" else None
    assert about == {
        "id": found.id, "args": [1], "kwargs": {"a": "b"}, "headers": no_headers, "retries": 0, "eta": None,
        "expires": None, "timelimit": [None, None], "root_id": found.id, "parent_id": None, "group": None,
        "group_index": None, "shadow": None, "correlation_id": found.id, "ignore_result": False,
        "is_eager": False, "called_directly": False, "exchange": "", "routing_key": pair.queue,
        "priority": priority, "redelivered": False,
    }  # fmt: skip


@case()
def test_the_task_sees_the_options_of_the_call(pair: Pair) -> None:
    expires = datetime.now(UTC) + timedelta(minutes=5)
    options = {
        "task_id": fresh(), "headers": {"x-my": [1, {"a": None, "b": 2.5}], "x-é": "☃"}, "shadow": "shown",
        "time_limit": 60, "soft_time_limit": 50, "root_id": "root", "parent_id": "parent", "priority": 4,
        "reply_to": "somebody", "expires": expires,
    }  # fmt: skip
    found = pair.send("about", **options)
    about = found.get(timeout=TIMEOUT)
    assert found.id == options["task_id"]
    assert datetime.fromisoformat(about["expires"]) == expires
    for name in ("headers", "shadow", "root_id", "parent_id", "reply_to", "priority"):
        assert about[name] == options[name], name
    assert (about["id"], about["correlation_id"]) == (found.id, found.id)
    assert about["timelimit"] == [60, 50]


@case()
def test_a_call_to_the_default_queue_arrives(pair: Pair) -> None:
    found = pair.app.send_task("interop.about")
    about = found.get(timeout=TIMEOUT)
    assert (about["exchange"], about["routing_key"], about["priority"]) == ("", pair.queue, 0)


# -- times ------------------------------------------------------------------------------------

DELAYS = {
    "countdown": lambda moment: {"countdown": (moment - datetime.now(UTC)).total_seconds()},
    "eta, aware": lambda moment: {"eta": moment},
    "eta, naive": lambda moment: {"eta": moment.replace(tzinfo=None)},  # read in UTC, the worker's zone
    "eta, another zone": lambda moment: {"eta": moment.astimezone(timezone(timedelta(hours=5, minutes=30)))},
}


@case(*EVERYWHERE)
def test_a_delayed_call_is_not_run_before_its_time(pair: Pair) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=0.5)
    found = {delay: pair.send("add", 1, 2, **options(moment)) for delay, options in DELAYS.items()}
    for delay, one in found.items():
        assert one.get(timeout=TIMEOUT) == 3
        assert moment - timedelta(seconds=0.05) <= done(one) <= moment + timedelta(minutes=5), delay


@case()
def test_a_call_whose_time_has_passed_is_run_at_once(pair: Pair) -> None:
    found = pair.send("add", 1, 2, eta=datetime.now(UTC) - timedelta(hours=1))
    assert found.get(timeout=TIMEOUT) == 3


@case()
def test_delayed_calls_run_in_the_order_of_their_times(pair: Pair) -> None:
    for ahead in (0.2, 3.0, 9.0):  # the last for a machine that takes seconds until all of them wait
        key, moment = fresh(), datetime.now(UTC) + timedelta(seconds=ahead)
        found = [
            pair.send("note", key, delay, eta=moment + timedelta(seconds=delay)) for delay in (0.4, 0.0, 0.2)
        ]
        for one in found:
            one.get(timeout=TIMEOUT)
        if (ran := pair.notes(key)) == ["0.0", "0.2", "0.4"]:
            return
    raise AssertionError(f"they ran in the order {ran}")


@case()
@pytest.mark.parametrize("expires", ["seconds", "moment"])
def test_a_call_that_expires_later_is_run(pair: Pair, expires: str) -> None:
    limit = 300 if expires == "seconds" else datetime.now(UTC) + timedelta(minutes=5)
    assert pair.send("add", 1, 2, expires=limit).get(timeout=TIMEOUT) == 3


@case()
def test_an_expired_call_is_not_run(pair: Pair) -> None:
    key = fresh()
    with pair.busy():
        limit = time.time() + 0.2
        found = pair.send("note", key, "ran", expires=0.2)
        wait_until(lambda: time.time() > limit + 0.1)
    pair.settled()
    assert pair.notes(key) == []
    if not pair.on_redis and pair.producer == "celery":
        # RabbitMQ itself drops what Celery has sent when it has expired: no worker hears of it.
        assert found.state in ("PENDING", "REVOKED")
        return
    with pytest.raises(pair.errors("TaskRevokedError"), match="expired"):
        found.get(timeout=TIMEOUT)
    assert found.state == "REVOKED"


@case(*EVERYWHERE)
def test_a_soft_time_limit_of_the_call_is_kept(pair: Pair) -> None:
    found = pair.send("nap", 10, soft_time_limit=0.3)
    error = found.get(timeout=TIMEOUT, propagate=False)
    assert (found.state, type(error).__name__, error.args) == ("FAILURE", "SoftTimeLimitExceeded", ())


@case(*EVERYWHERE, workers=("minicelery",))  # Celery's worker takes two seconds to replace the process
def test_a_hard_time_limit_of_the_call_is_kept(pair: Pair) -> None:
    found = pair.send("nap", 10, time_limit=0.3)
    error = found.get(timeout=TIMEOUT, propagate=False)
    assert (found.state, type(error).__name__, error.args) == ("FAILURE", "TimeLimitExceeded", (0.3,))


@case()
def test_a_call_revoked_in_time_is_not_run(pair: Pair) -> None:
    for countdown in (0.7, 4.0, 12.0):  # the last for a machine that takes seconds to revoke
        key = fresh()
        found = pair.send("note", key, "revoked", countdown=countdown)
        later = pair.send("note", key, "later", countdown=countdown + 0.1)
        found.revoke()
        later.get(timeout=TIMEOUT)
        found.get(timeout=TIMEOUT, propagate=False)
        if found.state == "REVOKED":
            break
    with pytest.raises(pair.errors("TaskRevokedError")):
        found.get(timeout=TIMEOUT)
    assert (found.state, pair.notes(key)) == ("REVOKED", ["later"])
