"""What workers tell of their tasks and of themselves, on each broker."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from minicelery import Celery
from minicelery.worker.board import Board
from minicelery.worker.executor import Executor
from minicelery.worker.heart import Heart
from minicelery.worker.loop import Loop
from tests.events.conftest import heard
from tests.unit.test_call_budget import calls_of
from tests.waiting import wait_until
from tests.worker import harness
from tests.worker.harness import Stage
from tests.worker.test_spawn import SpawningWorker

Events = list[dict[str, Any]]


@pytest.fixture
def events(stage: Stage) -> Iterator[Events]:
    """What is told on the stage's broker."""
    with heard(stage.app) as found:
        yield found


def of(events: Events, id: str) -> list[str]:
    """What has been told of a task, in order."""
    return [event["type"].partition("-")[2] for event in list(events) if event.get("uuid") == id]


def one(events: Events, type: str, id: str | None = None) -> dict[str, Any]:
    """The first one of that type, once it has come."""

    def found() -> Events:
        return [event for event in list(events) if event["type"] == type and id in (None, event.get("uuid"))]

    return wait_until(found)[0]


def test_a_worker_tells_of_its_tasks_and_of_itself(stage: Stage, events: Events) -> None:
    worker = stage.worker(task_events=True, heartbeat_interval=0.5)
    good = stage.send("run", 0.0)
    bad = stage.send("noop", 1)
    again = stage.send("again", 1)
    late = stage.app.send_task("noop", (), expires=0.001, countdown=0.2)
    unknown = stage.send("nobody_has_this")
    long = stage.send("run_until_told")

    wait_until(lambda: of(events, long.id) == ["received", "started"])
    stage.tell()
    ends = {"succeeded", "failed", "revoked"}
    everything = (good, bad, again, late, unknown, long)
    wait_until(lambda: all(ends & set(of(events, result.id)) for result in everything))
    assert of(events, good.id) == ["received", "started", "succeeded"]
    assert of(events, bad.id) == ["received", "started", "failed"]
    assert of(events, again.id) == ["received", "started", "retried", "received", "started", "succeeded"]
    assert of(events, late.id) == ["revoked"]
    assert of(events, unknown.id) == ["failed"]
    assert of(events, long.id) == ["received", "started", "succeeded"]
    received = one(events, "task-received", good.id)
    assert (received["name"], received["args"], received["kwargs"]) == ("run", "(0.0,)", "{}")
    assert (received["hostname"], received["pid"]) == ("w0@test", worker.pid)
    begun, ended = (stage.traces(kind, long.id)[0].time for kind in ("start", "end"))
    assert one(events, "task-succeeded", long.id)["runtime"] > ended - begun - 0.05
    assert "TypeError" in one(events, "task-failed", bad.id)["exception"]
    assert one(events, "task-failed", bad.id)["traceback"].startswith("Traceback")
    assert one(events, "task-failed", unknown.id)["exception"] == "NotRegistered('nobody_has_this')"
    assert one(events, "task-revoked", late.id) | {"expired": True, "signum": None} == one(
        events, "task-revoked", late.id
    )
    clocks = [event["clock"] for event in events if event.get("uuid") == again.id]
    assert clocks == sorted(set(clocks))

    wait_until(lambda: any(e["type"] == "worker-heartbeat" and e["processed"] >= 6 for e in list(events)))
    beat = next(e for e in events if e["type"] == "worker-heartbeat" and e["processed"] >= 6)
    assert (beat["freq"], beat["sw_ident"], beat["pid"]) == (0.5, "minicelery", worker.pid)
    assert len(beat["loadavg"]) == 3
    worker.term()
    worker.wait()
    one(events, "worker-offline")
    kinds = [event["type"] for event in events if event["type"].startswith("worker-")]
    assert (kinds[0], kinds.count("worker-online"), kinds[-1]) == ("worker-online", 1, "worker-offline")


def test_without_events_a_worker_tells_of_itself_only_and_counts_what_gone_children_have_run(
    redis_stage: Stage,
) -> None:
    with heard(redis_stage.app) as events:
        redis_stage.worker(heartbeat_interval=0.2, max_tasks_per_child=2)
        redis_stage.send_many("noop", [()] * 11)
        wait_until(lambda: any(event.get("processed") == 11 for event in events), 15)
    assert {event["type"] for event in events} == {"worker-online", "worker-heartbeat"}


def test_runs_that_end_by_force_are_told_of_with_what_ended_them(redis_stage: Stage) -> None:
    with heard(redis_stage.app) as events:
        worker = redis_stage.worker(conf={"worker_send_task_events": True, "task_send_sent_event": True})
        at_once = redis_stage.send("die", "kill").id
        wait_until(lambda: "failed" in of(events, at_once))
        assert [type for type in of(events, at_once) if type != "sent"] == ["received", "started", "failed"]
        assert one(events, "task-received", at_once)["name"] == "die"
        assert "WorkerLostError" in one(events, "task-failed", at_once)["exception"]

        revoked = redis_stage.send("run", 20.0)
        wait_until(lambda: of(events, revoked.id)[-1:] == ["started"])
        revoked.revoke(terminate=True)
        wait_until(lambda: "revoked" in of(events, revoked.id))
        told = one(events, "task-revoked", revoked.id)
        assert (told["terminated"], told["signum"], told["expired"]) == (True, signal.SIGTERM, False)

        again = redis_stage.send("again", 1)
        wait_until(lambda: "succeeded" in of(events, again.id))
        sent = [event for event in events if event["type"] == "task-sent" and event["uuid"] == again.id]
        assert [event["retries"] for event in sent] == [1]  # this test's own app does not tell
        assert sent[0]["hostname"].startswith("gen")

        lost = redis_stage.send("run", 20.0).id
        wait_until(lambda: of(events, lost)[-1:] == ["started"])
        for pid in wait_until(lambda: len(found := worker.children()) == 2 and found):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "failed" in of(events, lost))
        assert of(events, lost) == ["received", "started", "failed"]


def test_threads_tell_of_long_tasks_while_they_run_and_the_worker_how_many(redis_stage: Stage) -> None:
    with heard(redis_stage.app) as events:
        redis_stage.worker(task_events=True, pool="threads", concurrency=4, heartbeat_interval=0.2)
        results = [redis_stage.send("run_until_told") for _ in range(3)]
        assert_told_while_running(events, results)
        wait_until(lambda: any(event.get("active") == 3 for event in list(events)))
        redis_stage.tell()
        wait_until(lambda: events[-1].get("active") == 0)
        assert_told_of_their_ends(events, results)


def test_coroutines_tell_of_long_tasks_while_they_run(redis_stage: Stage) -> None:
    with heard(redis_stage.app) as events:
        redis_stage.worker(task_events=True, pool="asyncio", concurrency=4)
        redis_stage.send("nap", 0.0).get(timeout=10)
        results = [redis_stage.send("nap_until_told") for _ in range(3)]
        assert_told_while_running(events, results)
        redis_stage.tell()
        assert_told_of_their_ends(events, results)


def test_a_worker_of_one_process_tells_of_its_tasks_and_without_heartbeat_of_nothing_else(
    redis_stage: Stage,
) -> None:
    with heard(redis_stage.app) as events:
        worker = redis_stage.worker(task_events=True, pool="solo", without_heartbeat=True)
        result = redis_stage.send("run_until_told")
        assert_told_while_running(events, [result])
        redis_stage.tell()
        assert_told_of_their_ends(events, [result])
        assert one(events, "task-started")["pid"] == worker.pid
        worker.term()
        worker.wait()
        redis_stage.app.events.Dispatcher().send("custom-end")
        wait_until(lambda: events[-1]["type"] == "custom-end")
    assert {event["type"].partition("-")[0] for event in events} == {"task", "custom"}


def test_spawned_children_tell_of_their_tasks_under_the_workers_name(
    redis_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "WorkerProcess", SpawningWorker)
    with heard(redis_stage.app) as events:
        worker = redis_stage.worker(task_events=True, concurrency=1, heartbeat_interval=0.2)
        id = redis_stage.send("run", 0.0).id
        wait_until(lambda: of(events, id) == ["received", "started", "succeeded"], 30)
        wait_until(lambda: any(event.get("processed") == 1 for event in list(events)))
    assert {(event["hostname"], event["pid"]) for event in events} == {("w0@test", worker.pid)}


def assert_told_while_running(events: Events, results: list[Any]) -> None:
    wait_until(lambda: all(of(events, one.id) == ["received", "started"] for one in results))


def assert_told_of_their_ends(events: Events, results: list[Any]) -> None:
    wait_until(lambda: all(of(events, one.id) == ["received", "started", "succeeded"] for one in results))


def test_a_worker_that_could_not_be_heard_is_online_again(private_redis: Any) -> None:
    with Celery("heart", broker=private_redis.url(), set_as_current=False) as app, heard(app) as events:
        heart, now = Heart(app, "w@h", Board(1), 2.0), time.monotonic()
        assert [heart.beat(now), heart.beat(now + 3)] == [True, True]
        wait_until(lambda: len(events) == 2)
        private_redis.stop()
        assert heart.beat(now + 6) is False
        private_redis.start()
        with heard(app) as events_then:
            assert [heart.beat(now + 9), heart.beat(now + 12)] == [True, True]
            heart.stop()
            wait_until(lambda: len(events_then) == 3)
    assert [event["type"] for event in events][:2] == ["worker-online", "worker-heartbeat"]
    assert [event["type"] for event in events_then] == ["worker-online", "worker-heartbeat", "worker-offline"]


def test_without_an_interval_a_sign_of_life_is_given_where_it_is_asked_for(redis_url: str) -> None:
    with Celery("heart", broker=redis_url, set_as_current=False) as app, heard(app) as events:
        heart = Heart(app, "w@h", Board(1), None)
        assert heart.beat(time.monotonic()) is False
        assert heart.send("worker-heartbeat") is True
        heart.stop()
        wait_until(lambda: events)
    assert [(event["type"], event["freq"]) for event in events] == [("worker-heartbeat", 5.0)]


def test_a_task_may_tell_of_itself(redis_stage: Stage) -> None:
    app = redis_stage.app

    @app.task(name="tells", bind=True)
    def tells(self: Any) -> None:
        self.send_event("task-progress", done=5)

    with heard(app) as events:
        assert tells.apply().successful()
        wait_until(lambda: events)
    assert (events[0]["type"], events[0]["done"]) == ("task-progress", 5)


@pytest.mark.parametrize("end", ["warm", "cold", "ordered", "parent killed"])
def test_however_a_worker_ends_it_says_that_it_is_going(redis_stage: Stage, end: str) -> None:
    with heard(redis_stage.app) as events:
        worker = redis_stage.worker(concurrency=1, heartbeat_interval=0.2)
        wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in list(events)))
        match end:
            case "warm":
                worker.term()
            case "cold":
                worker.quit()
            case "ordered":
                redis_stage.app.control.shutdown()
            case "parent killed":
                worker.kill()
        wait_until(lambda: events[-1]["type"] == "worker-offline", 15)
        assert events[-1]["hostname"] == "w0@test"
    kinds = [event["type"] for event in events]
    assert (kinds.count("worker-online"), kinds.count("worker-offline")) == (1, 1)


def test_a_worker_that_was_frozen_looks_offline_until_it_goes_on(redis_stage: Stage) -> None:
    state = redis_stage.app.events.State()
    with heard(redis_stage.app) as events:
        told = 0

        def alive() -> list[str]:
            nonlocal told
            while told < len(events):
                state.event(events[told])
                told += 1
            return [worker.hostname for worker in state.alive_workers()]

        worker = redis_stage.worker(concurrency=1, heartbeat_interval=0.5)
        wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in list(events)))
        worker.signal_group(signal.SIGSTOP)
        wait_until(lambda: alive() == [])
        worker.signal_group(signal.SIGCONT)
        wait_until(lambda: alive() == ["w0@test"])
    assert [event["type"] for event in events].count("worker-online") == 1


def test_an_agent_that_was_killed_has_another_one_say_that_the_worker_is_there(redis_stage: Stage) -> None:
    with heard(redis_stage.app) as events:
        worker = redis_stage.worker(concurrency=1, heartbeat_interval=0.2, task_events=True)
        wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in list(events)))
        os.kill(worker.agent(), signal.SIGKILL)
        wait_until(lambda: [event["type"] for event in list(events)].count("worker-online") == 2, 15)
        result = redis_stage.send("run", 0.0)
        wait_until(lambda: of(events, result.id) == ["received", "started", "succeeded"])


# -- what it costs --------------------------------------------------------------------------


def run_loop(app: Celery, tasks: int, *, on: bool, switched_off: bool = False) -> None:
    """Run a child's loop in this process until it has run so many tasks."""
    board = Board(1)
    slot = board.slots[0]
    consumer = app.broker.consumer(["celery"], "w1", app.backend)
    slot.open(os.getpid(), consumer.name)
    orders, parent = os.pipe()
    handler = signal.getsignal(signal.SIGALRM)
    try:
        loop = Loop(consumer, Executor(app, "w1@host"), board, slot, orders, max_tasks=tasks)
        loop.set_events(on)
        if switched_off:
            loop.set_events(False)
        loop.run()
    finally:
        signal.signal(signal.SIGALRM, handler)
        os.close(parent)
        os.close(orders)
    assert slot.processed == tasks


def test_events_of_short_tasks_make_no_trip_more(redis_url: str, redis_server: Any) -> None:
    import redis

    with (
        Celery("cost", broker=redis_url, backend=redis_url, set_as_current=False) as app,
        heard(app) as events,
    ):
        noop = app.task(lambda x: None, name="noop")
        client = redis.Redis.from_url(redis_url)

        def trips(on: bool) -> int:
            """Scripts that are run for 320 tasks."""
            noop.apply_many([(n,) for n in range(320)])
            before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            run_loop(app, 320, on=on)
            count: int = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
            return count

        # 20 batches of 16 would be 20; the first ones are smaller, and so are those after each moment for
        # which this process is kept waiting, and the keeper's ticks come in between.
        assert any(trips(False) <= 40 for _ in range(5))
        assert not events
        wanted = 0

        def few_with_events() -> bool:
            nonlocal wanted
            wanted += 3 * 320
            count = trips(True)
            wait_until(lambda: len(events) == wanted)
            return count <= 40

        assert any(few_with_events() for _ in range(5))
        client.close()


def test_a_batch_with_events_takes_few_calls_and_without_none(redis_url: str) -> None:
    with Celery("cost", broker=redis_url, backend=redis_url, set_as_current=False) as app:
        noop = app.task(lambda x: None, name="noop")
        app.finalize()

        def counted(switched_off: bool) -> Counter[str]:
            noop.apply_many([(n,) for n in range(320)])
            return calls_of(lambda: run_loop(app, 320, on=True, switched_off=switched_off))

        with_events, without = counted(False), counted(True)
    parts = ("emitter.", "records.", "clock.")
    assert all(calls <= 1 for name, calls in without.items() if name.startswith(parts)), without
    swaps = with_events["swapper.Swapper.swap_locked"]
    calls = sum(calls for name, calls in with_events.items() if name.startswith(parts))
    assert 320 <= calls <= 320 + 10 * swaps, with_events  # one for each task


def test_a_task_that_wants_none_has_no_events(redis_url: str) -> None:
    with Celery("quiet", broker=redis_url, set_as_current=False) as app, heard(app) as events:
        app.task(lambda: None, name="quiet", send_events=False).delay()
        loud = app.task(lambda: None, name="loud").delay()
        run_loop(app, 2, on=True)
        wait_until(lambda: len(of(events, loud.id)) == 3)
    assert {event["uuid"] for event in events} == {loud.id}
