"""What is Redis' own between the libraries: priorities are lists, and delays have two places."""

from __future__ import annotations

import json
import time

import pytest

from tests.interop.pair import TIMEOUT, Pair, case, fresh
from tests.waiting import wait_until

pytest.importorskip("celery", reason="real Celery is the other side")

pytestmark = pytest.mark.timeout(180)  # the first of them starts servers and workers


@case("redis")
def test_the_most_urgent_call_is_run_first(pair: Pair) -> None:
    key = fresh()
    with pair.busy():
        found = [pair.send("note", key, priority, priority=priority) for priority in (9, 3, 6, 0)]
    for one in found:
        one.get(timeout=TIMEOUT)
    assert pair.notes(key) == ["0", "3", "6", "9"]


@case("redis", producers=("celery",), workers=("minicelery",))
def test_a_delayed_call_of_celerys_goes_back_to_the_servers_delays(pair: Pair) -> None:
    for countdown in (0.8, 4.0, 12.0):  # the last for a machine that takes seconds to look
        due = time.time() + countdown
        found = pair.send("add", 1, 2, countdown=countdown)
        wait_until(lambda found=found: pair.redis.zcard("mini.due") == 1 or found.ready(), timeout=TIMEOUT)  # type: ignore[misc]
        places = pair.redis.zcard("mini.due"), pair.held(), pair.redis.llen("mini")
        early = time.time() < due
        assert found.get(timeout=TIMEOUT) == 3
        assert time.time() >= due
        if early:
            break
    assert places == (1, 0, 0)
    assert pair.redis.zcard("mini.due") == 0


@case("redis", producers=("minicelery",), workers=("celery",))
def test_a_delayed_call_waits_in_the_list_where_only_celery_serves_it(pair: Pair) -> None:
    queue = fresh()  # served by nobody, so that it can be looked at
    sent = pair.send("add", 1, 2, countdown=60, queue=queue)
    (envelope,) = pair.redis.lrange(queue, 0, -1)
    headers = json.loads(envelope)["headers"]
    assert (headers["id"], bool(headers["eta"])) == (sent.id, True)
    assert not pair.redis.exists(f"{queue}.due")
    due = time.time() + 0.5
    assert pair.send("add", 1, 2, countdown=0.5).get(timeout=TIMEOUT) == 3
    assert time.time() >= due
    assert not pair.redis.exists("original.due")
