"""What one task costs, counted: our own Python calls, and trips to Redis."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import redis

import minicelery
from minicelery import Celery
from minicelery.message import Outcome
from minicelery.worker.board import Board
from minicelery.worker.executor import Executor
from minicelery.worker.loop import Loop

BUDGET = {"memory": (30, 30), "redis": (30, 30), "amqp": (50, 46)}
"""Calls to send a task and to run one.  RabbitMQ has no parser of its own in C, and is waited for twice."""
OURS = str(Path(minicelery.__file__).parent)


def calls_of(act: Callable[[], Any]) -> Counter[str]:
    """How often each function of the package is called by `act`."""
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS):
            found[f"{Path(code.co_filename).stem}.{getattr(code, 'co_qualname', code.co_name)}"] += 1

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


@pytest.fixture(params=["memory", "redis", "rabbit"])
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    url = "memory://budget" if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    backend = request.getfixturevalue("redis_url") if request.param == "rabbit" else url
    with Celery("budget", broker=url, backend=backend, set_as_current=False) as app:
        yield app


@pytest.fixture
def trips(redis_server: Any, redis_url: str) -> Iterator[Callable[[Callable[[], Any]], Counter[str]]]:
    """Counts the commands that reach Redis from outside of a script while something is done."""
    client, marker = redis.Redis.from_url(redis_url), redis.Redis.from_url(redis_url)
    marker.ping()  # its connection is made before anything is counted

    def count(act: Callable[[], Any]) -> Counter[str]:
        with client.monitor() as monitor:
            act()
            marker.echo("end")
            found: Counter[str] = Counter()
            for seen in monitor.listen():
                command = seen["command"].partition(" ")[0].upper()
                if command == "ECHO":
                    return found
                if seen["client_type"] != "lua":
                    found[command] += 1
        raise AssertionError("the monitor ended")

    yield count
    client.close()
    marker.close()


def budget(app: Celery) -> tuple[int, int]:
    return BUDGET[app.broker.url.partition(":")[0]]


def test_a_delay_takes_few_calls(app: Celery) -> None:
    noop = app.task(lambda x: None, name="noop")
    noop.delay(1)
    # What comes in several parts from a busy server is read by more calls.
    found = least(lambda: calls_of(lambda: noop.delay(1)), lambda found: sum(found.values()), budget(app)[0])
    assert 0 < sum(found.values()) <= budget(app)[0], found


def test_a_run_takes_few_calls_from_fetch_to_settled(app: Celery) -> None:
    noop = app.task(lambda x: None, name="noop")
    executor = Executor(app, "w1@host")
    consumer = app.broker.consumer(["celery"], "w1", app.backend)
    done: list[Outcome] = []

    def batch() -> None:
        fresh = consumer.swap(done, 16, 0)
        done[:] = [executor.run(delivery) for delivery in fresh]

    def calls() -> Counter[str]:
        noop.apply_many([(n,) for n in range(16)])
        return calls_of(batch)

    noop.apply_many([(n,) for n in range(16)])
    batch()
    found = least(calls, lambda found: sum(found.values()), budget(app)[1] * 16)
    consumer.swap(done, 0, 0)
    consumer.close()
    assert len(done) == 16
    assert 0 < sum(found.values()) / 16 <= budget(app)[1], found


def least(count: Callable[[], Counter[str]], of: Callable[[Counter[str]], int], enough: int) -> Counter[str]:
    """The best of ten, or the first within the budget: what a thread does now and then is counted with the rest."""
    best = count()
    for _ in range(9):
        if of(best) <= enough:
            break
        best = min(best, count(), key=of)
    return best


def fewest(trips: Callable[..., Counter[str]], act: Callable[[], Any]) -> Counter[str]:
    """The trips that one `act` takes; what somebody else asks the server meanwhile is seen as well."""
    return least(lambda: trips(act), lambda found: sum(found.values()), 1)


@pytest.fixture
def full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is as large as may be, also where the machine has no time and tasks seem to take long."""
    monkeypatch.setattr("minicelery.worker.loop.BATCH_SECONDS", 10.0)


def run_loop(app: Celery, tasks: int) -> None:
    """Run a child's loop in this process until it has run so many tasks."""
    board = Board(1)
    slot = board.slots[0]
    consumer = app.broker.consumer(["celery"], "w1", app.backend)
    slot.open(os.getpid(), consumer.name)
    orders, parent = os.pipe()
    handler = signal.getsignal(signal.SIGALRM)
    try:
        Loop(consumer, Executor(app, "w1@host"), board, slot, orders, max_tasks=tasks).run()
    finally:
        signal.signal(signal.SIGALRM, handler)
        os.close(parent)
        os.close(orders)
    assert slot.processed == tasks


@pytest.mark.usefixtures("full_batches")
def test_a_childs_loop_takes_few_calls_for_each_task(app: Celery) -> None:
    noop = app.task(lambda x: None, name="noop")
    app.finalize()  # takes once what other modules have declared for all apps

    def calls() -> Counter[str]:
        noop.apply_many([(n,) for n in range(500)])
        return calls_of(lambda: run_loop(app, 500))

    found = least(calls, lambda found: sum(found.values()), budget(app)[1] * 500)
    assert sum(found.values()) / 500 <= budget(app)[1], {name: calls / 500 for name, calls in found.items()}


@pytest.mark.usefixtures("full_batches")
def test_a_childs_loop_makes_few_trips(redis_url: str, trips: Callable[..., Counter[str]]) -> None:
    with Celery("budget", broker=redis_url, backend=redis_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")

        def swaps() -> Counter[str]:
            noop.apply_many([(n,) for n in range(320)])
            return trips(lambda: run_loop(app, 320))

        found = least(swaps, lambda found: found["EVALSHA"], 40)
        # 20 batches of 16 would be 20; the first ones are smaller, and the keeper's ticks come in between.
        assert found["EVALSHA"] <= 40, found


def test_a_publish_is_one_send_and_its_confirm_on_rabbitmq(rabbit_url: str) -> None:
    with Celery("budget", broker=rabbit_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")
        noop.delay(1)
        found = calls_of(lambda: noop.delay(1))
        assert (found["link.Link._send"], found["link.Link._confirmed"]) == (1, 1), found
        assert found["link.Link.wait_for"] == 0, found


def test_many_calls_are_few_sends_on_rabbitmq(rabbit_url: str) -> None:
    with Celery("budget", broker=rabbit_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")
        noop.delay(1)
        # 64 KiB each, so that the server works while the rest is packed.
        assert calls_of(lambda: noop.apply_many([(n,) for n in range(400)]))["link.Link._send"] <= 6


def test_a_childs_loop_sends_little_on_rabbitmq(rabbit_url: str) -> None:
    with Celery("budget", broker=rabbit_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")

        def calls() -> Counter[str]:
            noop.apply_many([(n,) for n in range(500)])
            return calls_of(lambda: run_loop(app, 500))

        found = least(calls, lambda found: found["link.Link._send"], 100)
        # An acknowledgement for each batch, and a new consumer now and then while it finds its pace.
        assert found["link.Link._send"] <= 100, found


def test_a_publish_is_one_trip(redis_url: str, trips: Callable[..., Counter[str]]) -> None:
    with Celery("budget", broker=redis_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")
        noop.delay(1)
        assert fewest(trips, lambda: noop.delay(1)) == {"EVALSHA": 1}
        assert fewest(trips, lambda: noop.apply_async((1,), countdown=60, queue="other", priority=9)) == {
            "EVALSHA": 1
        }


def test_many_calls_are_one_trip_too(redis_url: str, trips: Callable[..., Counter[str]]) -> None:
    with Celery("budget", broker=redis_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")
        noop.delay(1)
        assert fewest(trips, lambda: noop.apply_many([(n,) for n in range(400)])) == {"EVALSHA": 1}


def test_a_batch_is_settled_and_the_next_one_fetched_in_one_trip(
    redis_url: str, trips: Callable[..., Counter[str]]
) -> None:
    with Celery("budget", broker=redis_url, backend=redis_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")
        noop.apply_many([(n,) for n in range(48)])
        executor = Executor(app, "w1@host")
        consumer = app.broker.consumer(["celery"], "w1", app.backend)
        done = [executor.run(delivery) for delivery in consumer.swap([], 16, 0)]
        fresh: list[Any] = []
        assert trips(lambda: fresh.extend(consumer.swap(done, 16, 0))) == {"EVALSHA": 1}
        assert len(fresh) == 16
        consumer.close()
        with redis.Redis.from_url(redis_url) as client:
            assert len(client.keys("celery-task-meta-*")) == 16
            assert client.llen("celery") == 32


def test_reading_a_result_is_one_trip(redis_url: str, trips: Callable[..., Counter[str]]) -> None:
    with Celery("budget", broker=redis_url, backend=redis_url, set_as_current=False) as app:
        found = app.AsyncResult("an-id")
        assert found.state == "PENDING"
        assert fewest(trips, lambda: found.state) == {"MGET": 1}
