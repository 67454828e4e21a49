"""Who runs what, and when: batches, delays, priorities, states, revoked tasks, other producers."""

from __future__ import annotations

import json
import socket
import statistics
import time
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
import redis

from minicelery.broker.redis.envelope import encode
from minicelery.message import Message, encode_body, new_id
from tests.waiting import wait_until
from tests.worker.harness import Stage


@pytest.mark.parametrize("place", [0, 12, 90])
def test_a_slow_task_does_not_hold_up_the_fast_ones_around_it(stage: Stage, place: int) -> None:
    stage.worker(concurrency=2)
    stage.wait_for(stage.send_many("noop", [()] * 200))  # so that batches are full
    fast = [stage.send("run", 0.0) for _ in range(place)]
    slow = stage.send("run_until_told")
    fast += [stage.send("run", 0.0) for _ in range(100 - place)]
    assert stage.wait_for(fast) == {"SUCCESS": 100}
    assert stage.states([slow]) == {"PENDING": 1}
    stage.tell()
    assert stage.wait_for([slow]) == {"SUCCESS": 1}
    assert set(stage.runs().values()) == {1}


def test_idle_siblings_get_what_a_busy_child_has_not_begun(stage: Stage) -> None:
    # Without regard to siblings it would be given back after an hour.
    stage.worker(concurrency=6, conf={"imports": ["tests.worker.apps.patient"]})
    stage.wait_for(stage.send_many("noop", [()] * 1000))  # so that batches are full
    results = stage.send_many("run_until_told", [()] * 6)
    wait_until(lambda: len(stage.runs()) == 6)
    stage.tell()
    assert stage.wait_for(results) == {"SUCCESS": 6}
    assert len({result.result for result in results}) == 6


def test_a_fast_tasks_result_does_not_wait_for_its_slow_neighbour(stage: Stage) -> None:
    stage.worker(concurrency=1)
    stage.wait_for(stage.send_many("noop", [()] * 200))  # so that batches are full
    fast, slow = stage.send_many("run", [(0.0,), (50.0,)])
    assert stage.wait_for([fast]) == {"SUCCESS": 1}
    assert stage.states([slow]) == {"PENDING": 1}


def test_a_tracked_task_is_seen_as_started_with_its_process(stage: Stage) -> None:
    worker = stage.worker()
    result = stage.send("tracked_run_until_told")
    wait_until(lambda: result.state == "STARTED")
    assert result.info["hostname"] == "w0@test"
    assert result.info["pid"] in worker.children()
    stage.tell()
    assert stage.wait_for([result]) == {"SUCCESS": 1}


def test_a_state_of_the_tasks_own_is_not_overwritten_by_started(stage: Stage) -> None:
    stage.worker()
    result = stage.send("report_until_told")
    wait_until(lambda: result.state == "PROGRESS")
    # A child marks what runs after 20 ms.
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert result.state == "PROGRESS"
        time.sleep(0.01)
    stage.tell()
    assert stage.wait_for([result]) == {"SUCCESS": 1}


def test_a_task_that_was_revoked_before_it_began_does_not_run(stage: Stage) -> None:
    result = stage.send("run", 0.0)
    delayed = stage.send("run", 0.0, countdown=0.5)
    result.revoke()
    delayed.revoke()
    stage.worker()
    assert stage.wait_for([result, delayed]) == {"REVOKED": 2}
    after = stage.send("run", 0.0)
    assert stage.wait_for([after]) == {"SUCCESS": 1}
    assert set(stage.runs()) == {after.id}


def test_delayed_tasks_begin_when_they_are_due(stage: Stage) -> None:
    stage.worker()
    now = time.time()
    due = {stage.send("run", 0.0, countdown=delay).id: now + delay for delay in (0.4, 0.8, 1.2)}
    eta = datetime.fromtimestamp(now + 1.0, timezone(timedelta(hours=2)))
    due[stage.send("run", 0.0, eta=eta).id] = now + 1.0
    wait_until(lambda: len(stage.runs()) == 4)
    for trace in stage.traces("start"):
        assert trace.time - due[trace.what] >= -0.01
    assert min(trace.time - due[trace.what] for trace in stage.traces("start")) < 1.0


def test_a_delayed_task_that_was_sent_before_any_worker_waits_for_its_time(stage: Stage) -> None:
    due = time.time() + 1.5
    result = stage.send("run", 0.0, countdown=1.5)
    stage.worker()
    assert stage.wait_for([result]) == {"SUCCESS": 1}
    assert stage.traces("start")[0].time - due >= -0.05


def test_a_task_that_expired_in_the_queue_is_revoked(stage: Stage) -> None:
    late = stage.send("run", 0.0, expires=0.2)
    time.sleep(0.3)
    in_time = stage.send("run", 0.0, expires=60)
    stage.worker()
    assert stage.wait_for([late, in_time]) == {"REVOKED": 1, "SUCCESS": 1}
    assert set(stage.runs()) == {in_time.id}


def test_retries_come_back_after_their_delay(stage: Stage) -> None:
    stage.worker()
    results = [stage.send("again", 2) for _ in range(5)]
    assert stage.wait_for(results) == {"SUCCESS": 5}
    assert {result.result for result in results} == {2}
    assert set(stage.runs().values()) == {3}


def test_urgent_messages_are_served_first(stage: Stage) -> None:
    conf = {"task_queue_max_priority": 9}  # RabbitMQ must be told, and has its own idea of urgent
    stage.app.conf.update(conf)
    ids: dict[int, set[str]] = {9: set(), 5: set(), 0: set()}
    for _ in range(5):
        for priority in (9, 5, 0):
            ids[priority].add(stage.send("run", 0.001, priority=priority).id)
    stage.worker(concurrency=1, conf=conf)
    wait_until(lambda: len(stage.runs()) == 15)
    order = [trace.what for trace in stage.traces("start")]
    if stage.url.startswith("amqp"):
        order.reverse()
    assert (set(order[:5]), set(order[5:10]), set(order[10:])) == (ids[0], ids[5], ids[9])


def test_a_worker_serves_all_its_queues_and_no_other(stage: Stage) -> None:
    stage.worker(queues="left,right")
    served = [stage.send("run", 0.0, queue=queue) for queue in ("left", "right") * 10]
    other = stage.send("run", 0.0, queue="other")
    assert stage.wait_for(served) == {"SUCCESS": 20}
    assert stage.states([other]) == {"PENDING": 1}
    assert stage.app.broker.size("other") == 1


def test_a_full_queue_does_not_starve_the_other_one(stage: Stage) -> None:
    full = stage.send_many("run", [(0.01,)] * 300, queue="left")
    few = stage.send_many("run", [(0.01,)] * 5, queue="right")
    stage.worker(concurrency=1, queues="left,right")
    assert stage.wait_for([*few, *full]) == {"SUCCESS": 305}
    order = [trace.what for trace in stage.traces("start")]
    assert max(order.index(result.id) for result in few) < 150


def test_a_message_of_a_producer_that_does_not_ring_starts_at_once(redis_stage: Stage) -> None:
    worker = redis_stage.worker()
    wait_until(lambda: len(worker.children()) == 2)
    time.sleep(1.0)  # everybody is idle
    client = redis.Redis.from_url(redis_stage.url)
    took = []
    for _ in range(9):
        id = new_id()
        client.lpush("celery", _envelope(id))
        pushed = time.time()
        (started,) = wait_until(partial(redis_stage.traces, "start", id))
        took.append(started.time - pushed)
        time.sleep(0.1)
    assert statistics.median(took) < 0.2
    urgent = new_id()
    client.lpush("celery\x06\x169", _envelope(urgent))
    wait_until(lambda: redis_stage.runs()[urgent])
    client.close()


def test_a_message_that_nobody_can_read_is_kept_and_stops_nothing(redis_stage: Stage) -> None:
    redis_stage.worker(concurrency=1)
    client = redis.Redis.from_url(redis_stage.url)
    for raw in (b"\xff\xfe", b"{}", b'{"body": 1}', b"[" * 10_000):
        client.lpush("celery", raw)
    client.close()
    assert redis_stage.wait_for([redis_stage.send("run", 0.0)]) == {"SUCCESS": 1}
    wait_until(lambda: len(redis_stage.app.broker.dead_letters("celery")) == 4)
    assert len(redis_stage.traces("child")) == 1


def _envelope(id: str) -> str:
    body, content_type, encoding = encode_body([0.0], {}, "json")
    headers: dict[str, Any] = {
        "lang": "py", "task": "run", "id": id, "root_id": id, "parent_id": None, "group": None,
        "retries": 0, "eta": None, "expires": None, "timelimit": [None, None], "argsrepr": "[0.0]",
        "kwargsrepr": "{}", "origin": f"gen1@{socket.gethostname()}",
    }  # fmt: skip
    message = Message(id, "run", body, headers, content_type=content_type, content_encoding=encoding)
    text = encode(message)
    assert json.loads(text)["headers"]["id"] == id
    return text
