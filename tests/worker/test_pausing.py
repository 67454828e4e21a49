"""Queues and tasks that are paused while workers run, before they start, and after they have died."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from minicelery.broker import open_broker
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.pausing import aside, pause, read_paused, resume
from minicelery.worker import pausing
from minicelery.worker.pausing import PauseWatch
from tests.rabbit import RabbitServer
from tests.waiting import wait_until
from tests.worker.harness import Stage


def test_what_is_paused_before_a_worker_starts_waits_makes_way_and_runs_once(stage: Stage) -> None:
    broker = stage.app.broker
    pause(broker, queues=["shut"], tasks=["run"])
    kept = stage.send("late_run", queue="shut")
    held = [stage.send("run") for _ in range(3)]
    free = [stage.send("late_run") for _ in range(3)]
    stage.worker(queues="celery,shut")
    stage.wait_for(free)
    wait_until(lambda: broker.size(aside("celery")) == 3)
    assert set(stage.runs()) == {one.id for one in free}
    assert broker.size("shut") == 1
    resume(broker, queues=["shut"], tasks=["run"])
    stage.wait_for([kept, *held])
    assert set(stage.runs().values()) == {1}
    wait_until(lambda: broker.size(aside("celery")) == 0)


def test_a_queue_that_is_paused_while_a_worker_waits_for_it_is_served_no_more(redis_stage: Stage) -> None:
    stage = redis_stage
    worker = stage.worker(concurrency=1, queues="celery,other")
    stage.wait_for([stage.send("run")])
    pause(stage.app.broker, queues=["celery"])
    wait_until(lambda: "queue celery is paused" in worker.output())
    # The child hears of it with its next turn, which this one makes it take.
    stage.wait_for([stage.send("run", queue="other")])
    kept = stage.send("run")
    stage.wait_for([stage.send("run", queue="other")])
    assert stage.app.broker.size("celery") == 1
    resume(stage.app.broker, queues=["celery"])
    stage.wait_for([kept])


def test_of_two_paused_tasks_the_one_that_is_resumed_runs_alone(redis_stage: Stage) -> None:
    stage, broker = redis_stage, redis_stage.app.broker
    pause(broker, tasks=["run", "noop"])
    stage.worker()
    held = stage.send("run")
    freed = stage.send_many("noop", [()] * 1200)  # more than come back at one look
    wait_until(lambda: broker.size(aside("celery")) == 1201)
    resume(broker, tasks=["noop"])
    assert stage.wait_for(freed) == {"SUCCESS": 1200}
    assert held.id not in stage.runs()
    assert read_paused(broker).tasks == {"run"}


def test_what_was_put_aside_comes_back_though_its_worker_is_gone(redis_stage: Stage) -> None:
    stage, broker = redis_stage, redis_stage.app.broker
    pause(broker, tasks=["run"])
    worker = stage.worker(concurrency=1)
    held = stage.send("run")
    wait_until(lambda: broker.size(aside("celery")) == 1)
    worker.kill_all()
    resume(broker, tasks=["run"])
    stage.worker(concurrency=1)
    stage.wait_for([held])
    assert stage.runs() == {held.id: 1}


def test_threads_and_a_solo_worker_obey_too(redis_stage: Stage) -> None:
    stage, broker = redis_stage, redis_stage.app.broker
    pause(broker, queues=["celery"], tasks=["late_run"])
    for number, pool in enumerate(("threads", "solo")):
        options = {"concurrency": 4} if pool == "threads" else {}
        stage.worker(pool=pool, queues=f"celery,q{number}", **options)
        other = stage.send("run", queue=f"q{number}")
        held = stage.send("late_run", queue=f"q{number}")
        stage.wait_for([other])
        wait_until(lambda number=number: broker.size(aside(f"q{number}")) == 1)
        assert held.id not in stage.runs()
    kept = stage.send("run")
    resume(broker, queues=["celery"])
    stage.wait_for([kept])


def test_a_queue_that_is_added_to_a_worker_while_it_is_paused_is_not_served(redis_stage: Stage) -> None:
    stage, broker = redis_stage, redis_stage.app.broker
    pause(broker, queues=["late"])
    stage.worker(concurrency=1)
    kept = stage.send("run", queue="late")
    wait_until(lambda: stage.app.control.add_consumer("late", reply=True), timeout=10)
    # Another queue, added after it, is served: so the child has moved on.
    wait_until(lambda: stage.app.control.add_consumer("other", reply=True), timeout=10)
    other = stage.send("run", queue="other")
    stage.wait_for([other])
    assert kept.id not in stage.runs()
    resume(broker, queues=["late"])
    stage.wait_for([kept])


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_what_is_paused_stays_so_when_rabbitmq_is_killed_and_started_again(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    pause(stage.app.broker, queues=["shut"], tasks=["run"])
    worker = stage.worker(queues="celery,shut")
    stage.wait_for([stage.send("late_run")])
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 2.0)  # a stream that is younger does not survive
    private_rabbit.kill()
    private_rabbit.restart()
    kept = wait_until(lambda: tried(lambda: stage.send("late_run", queue="shut")), timeout=30)
    held, free = stage.send("run"), stage.send("late_run")
    stage.wait_for([free], timeout=30)
    wait_until(lambda: stage.app.broker.size(aside("celery")) == 1)
    assert not {kept.id, held.id} & set(stage.runs())
    assert "goes on" not in worker.output()
    wait_until(
        lambda: tried(lambda: resume(stage.app.broker, queues=["shut"], tasks=["run"]) or True), timeout=30
    )
    stage.wait_for([kept, held])


def tried(work: Callable[[], Any]) -> Any:
    """What it returns; None while the server can't yet."""
    try:
        return work()
    except OperationalError:
        return None


def test_messages_that_stay_aside_are_looked_at_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = open_broker("memory://rarely")
    watch = PauseWatch(broker, ["a"], "w@test", Told())  # type: ignore[arg-type]  # no more than it needs
    looks: list[int] = []
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(watch, "_bring_back", lambda queue: looks.append(clock.now) or clock.now == 0)
    pause(broker, tasks=["t"])
    resume(broker, tasks=["t"])
    monkeypatch.setattr(pausing, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for clock.now in range(2000):
        watch.look()
    assert looks == [0, 1, 6, 16, 36, 76, 156, 316, 616, 916, 1216, 1516, 1816]


class Pauses:
    """What children are told, in place of the Board's part."""

    def __init__(self) -> None:
        self.told: list[frozenset[str]] = []

    @property
    def known(self) -> bool:
        return bool(self.told)

    def write(self, paused: Any) -> bool:
        self.told.append(paused.queues)
        return True


class Told:
    """A board of which a `PauseWatch` sees no more than this."""

    def __init__(self) -> None:
        self.pauses = Pauses()


Look = Callable[..., list[frozenset[str]]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Looks once for each answer of the server; what the children were told."""
    broker = open_broker("memory://pauses")
    answers: list[Any] = []

    def recall(topic: str) -> dict[str, bytes]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {f"queue:{name}": b'{"state": "paused", "at": 1}' for name in answer}

    monkeypatch.setattr(broker, "recall", recall)
    monkeypatch.setattr(broker, "remember_all", lambda *_: None)
    board = Told()
    watch = PauseWatch(broker, ["a"], "w@test", board)  # type: ignore[arg-type]  # no more than it needs

    def look(*given: Any) -> list[frozenset[str]]:
        for answer in given:
            answers.append(answer)
            watch.look()
        return board.pauses.told

    return look


def test_records_that_can_not_be_read_leave_what_is_paused_paused(look: Look) -> None:
    assert look(["a"], OperationalError("its node is down"), [], ["a"]) == [{"a"}]


def test_records_that_stay_away_are_gone(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "GONE_AFTER", 0.0)
    assert look(["a"], [], []) == [{"a"}, set()]


def test_children_are_told_nothing_before_the_records_could_be_read(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(OperationalError("its node is down")) == []
    assert look(["a"]) == [{"a"}]


def test_where_records_alone_are_out_of_reach_for_long_nothing_is_paused_and_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(pausing, "KNOWN_WITHIN", 0.0)
    look: Look = request.getfixturevalue("look")
    for _ in range(pausing.BEARABLE):
        with pytest.raises(BrokerUnavailable):
            look(BrokerUnavailable("the stream is broken"))
    assert look(BrokerUnavailable("the stream is broken")) == [set()]
