"""Limits over several workers: they hold, also while children die, and nobody else waits for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from tests.worker.conftest import staged
from tests.worker.harness import Stage

RATE, ROOM = 10, 3
WORKERS, CHILDREN = 3, 2


def limited(**tasks: dict[str, Any]) -> dict[str, Any]:
    """Settings that give these tasks these options."""
    return {"task_annotations": tasks}


@pytest.fixture
def borrowed_stage(
    rabbit_url: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Stage]:
    """Workers on RabbitMQ whose limits are kept on Redis."""
    yield from staged(rabbit_url, tmp_path, request)


def starts(stage: Stage, ids: set[str]) -> list[float]:
    """When runs of these calls began, in order."""
    return sorted(trace.time for trace in stage.traces("start") if trace.what in ids)


def most_at_a_time(stage: Stage, ids: set[str]) -> int:
    """How many of these calls ever ran side by side."""
    events = [(trace.time, 1) for trace in stage.traces("start") if trace.what in ids]
    events += [(trace.time, -1) for trace in stage.traces("end") if trace.what in ids]
    now = most = 0
    for _, step in sorted(events):
        now += step
        most = max(most, now)
    return most


def check_rate(times: list[float], per_second: float) -> None:
    """In no window begin more than its share and one.

    And what was admitted before the window: a child may be kept from the first line of its run for any time.
    """
    for first in range(len(times)):
        for last in range(first + 1, len(times)):
            window = times[last] - times[first]
            assert last - first <= window * per_second + 1 + WORKERS * CHILDREN, (first, last, window)


def seconds_of_the_quickest(runs: int, times: list[float]) -> float:
    """The least time in which so many have begun, one after the other."""
    return min(later - first for first, later in zip(times, times[runs:], strict=False))


def check_limits_hold(stage: Stage, seconds: float, conf: dict[str, Any], least: float = 0.8) -> None:
    """Three workers with two children each, three kinds of tasks, for so long.

    `least` is the part of the rate that is reached when nothing else keeps the machine busy.
    """
    conf |= limited(run={"rate_limit": f"{RATE}/s"}, late_run={"concurrency_limit": ROOM})
    paced = {result.id for result in stage.send_many("run", [()] * int(seconds * RATE * 4))}
    crowd = {result.id for result in stage.send_many("late_run", [(0.1,)] * int(seconds * 15))}
    for _ in range(WORKERS):
        stage.worker(conf=conf, concurrency=CHILDREN)
    stage.wait_for([stage.send("noop") for _ in range(100)])
    assert len(starts(stage, paced)) < len(paced), "the others had to wait"
    wait_until(lambda: len(starts(stage, paced)) > 2, 10)
    time.sleep(seconds)
    others = stage.send_many("noop", [()] * 20)
    stage.wait_for(others)
    assert len(starts(stage, paced)) < len(paced), "the others had to wait"
    wait_until(lambda: len(starts(stage, paced)) > 2 * RATE)
    begun = starts(stage, paced)
    check_rate(begun, RATE)
    assert seconds_of_the_quickest(2 * RATE, begun) <= 2 / least
    assert most_at_a_time(stage, crowd) == ROOM
    assert len(stage.ends()) >= len(begun)
    assert max(stage.runs().values()) == 1


def test_limits_hold_over_three_workers(leased_stage: Stage) -> None:
    check_limits_hold(leased_stage, 5, {})


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_limits_hold_over_three_workers_for_a_minute(leased_stage: Stage) -> None:
    check_limits_hold(leased_stage, 60, {})


def test_limits_hold_on_rabbitmq_with_a_store_of_their_own(borrowed_stage: Stage, redis_url: str) -> None:
    # While the workers start, times pass unused that were given to messages on their way.
    check_limits_hold(borrowed_stage, 5, {"task_limits_url": redis_url}, least=0.5)


def test_the_place_of_a_killed_child_is_free_at_once(stage: Stage, redis_url: str) -> None:
    conf = limited(run={"concurrency_limit": 1})
    if stage.url.startswith("amqp"):
        conf |= {"task_limits_url": redis_url}
    worker = stage.worker(conf=conf)
    first = stage.send("run", 50)
    (trace,) = wait_until(lambda: stage.traces("start", first.id))
    second = stage.send("run", 0)
    other = stage.send("noop")
    stage.wait_for([other])
    assert stage.runs()[second.id] == 0
    os.kill(trace.pid, signal.SIGKILL)
    # On RabbitMQ it comes back after about as long as runs take.
    assert stage.wait_for([first, second]) == {"FAILURE": 1, "SUCCESS": 1}
    assert worker.poll() is None


def test_rooms_hold_while_children_are_killed(leased_stage: Stage) -> None:
    stage = leased_stage
    conf = limited(late_run={"concurrency_limit": 2}) | {"task_delivery_cap": 50}
    workers = [stage.worker(conf=conf) for _ in range(2)]
    results = stage.send_many("late_run", [(0.15,)] * 30)
    ids = {result.id for result in results}

    def running() -> list[Any]:
        ended = stage.traces("end")
        alive = {pid for worker in workers for pid in worker.children()}
        last = {trace.pid: trace for trace in stage.traces("start")}
        return [
            trace
            for trace in last.values()
            if trace.what in ids
            and trace.pid in alive
            and not any(e.pid == trace.pid and e.time > trace.time for e in ended)
        ]

    killed = 0
    while killed < 4 and len(stage.ends()) < 30:
        for victim in running()[:1]:
            os.kill(victim.pid, signal.SIGKILL)
            wait_until(lambda pid=victim.pid: all(pid not in worker.children() for worker in workers))
            killed += 1
    assert killed
    assert stage.wait_for(results, 30) == {"SUCCESS": 30}
    # One that was killed between its last line and its outcome may have ended all the same.
    assert 30 <= sum(stage.runs().values()) <= 30 + killed
    check_spans(stage, ids, 2)


def check_spans(stage: Stage, ids: set[str], most: int) -> None:
    """Never more than `most` at a time, of those that were not killed."""
    ended = {(trace.what, trace.pid): trace.time for trace in stage.traces("end")}
    spans = [
        (trace.time, ended[trace.what, trace.pid])
        for trace in stage.traces("start")
        if trace.what in ids and (trace.what, trace.pid) in ended
    ]
    for start, _ in spans:
        assert sum(begun <= start < end for begun, end in spans) <= most


def test_what_waits_outlives_its_workers(leased_stage: Stage) -> None:
    stage = leased_stage
    conf = limited(run={"concurrency_limit": 1})
    worker = stage.worker(conf=conf)
    first = stage.send("run", 50)
    wait_until(lambda: stage.runs()[first.id])
    waiting = [stage.send("run", 0) for _ in range(5)]
    wait_until(lambda: stage.app.broker.delayed("celery") == 5)
    worker.quit()  # cold: the running one fails; the next may begin in the other child just before it ends
    worker.wait()
    stage.worker(conf=conf)
    ends = stage.wait_for([first, *waiting])
    assert first.failed()
    assert ends in ({"FAILURE": 1, "SUCCESS": 5}, {"FAILURE": 2, "SUCCESS": 4})


def test_a_retry_lets_the_next_one_in(leased_stage: Stage) -> None:
    stage = leased_stage
    stage.worker(conf=limited(again={"concurrency_limit": 1}))
    results = [stage.send("again", 2) for _ in range(3)]
    assert stage.wait_for(results) == {"SUCCESS": 3}
    assert set(stage.runs().values()) == {3}


def test_a_unique_call_is_there_until_it_has_ended(stage: Stage, redis_url: str) -> None:
    conf: dict[str, Any] = limited(run={"unique": True}, run_until_told={"unique": True})
    if stage.url.startswith("amqp"):
        conf |= {"task_limits_url": redis_url}
    stage.app.conf.update(conf)
    run, held = stage.app.tasks["run"], stage.app.tasks["run_until_told"]
    assert run.delay(0.5).id == run.delay(0.5).id != run.delay(0.6).id
    first = held.delay()
    assert held.delay().id == first.id
    stage.worker(conf=conf)
    wait_until(lambda: stage.runs()[first.id])
    assert held.delay().id == first.id
    stage.tell()
    stage.wait_for([first])
    second = wait_until(lambda: (again := held.delay()).id != first.id and again)
    assert stage.wait_for([second]) == {"SUCCESS": 1}
    wait_until(lambda: len(stage.ends()) == 4)
    assert set(stage.runs().values()) == {1}


def test_limits_that_nobody_can_keep_are_refused_at_the_start(
    rabbit_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (stage,) = [*staged(rabbit_url, tmp_path, request)][:1]
    with pytest.raises(AssertionError, match="ended instead"):
        stage.worker(conf=limited(run={"rate_limit": "1/s"}))
    text = stage.workers[0].output()
    assert "run" in text
    assert "task_limits_url" in text
    stage.close()
