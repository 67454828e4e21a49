"""Children, agents and whole workers that die: nothing is lost, and nothing early runs twice."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from minicelery.canvas import Signature
from minicelery.exceptions import WorkerLostError
from tests.waiting import wait_until
from tests.worker.harness import Stage, kill_repeatedly, undisturbed

EARLY_DEATHS = {
    "0": "WorkerLostError",
    "3": "WorkerLostError",
    "null": "WorkerLostError",
    "kill": "WorkerLostError",
    "sys.exit": "SystemExit",
    "interrupt": "KeyboardInterrupt",
    "odd": "Odd",
    "unprintable": "Unprintable",
}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_late_task_is_lost_while_children_are_killed_again_and_again(stage: Stage) -> None:
    # Each task may die many times here, so the cap must not end it.
    worker = stage.worker(concurrency=3, conf={"task_delivery_cap": 1000})
    results = stage.send_many("late_run", [(0.02,)] * 2000)
    rng = random.Random(1)

    end = time.monotonic() + 45
    killed = kill_repeatedly(worker, 0.2, lambda killed: killed >= 60 or time.monotonic() > end, rng.choice)
    assert stage.wait_for(results, 60) == {"SUCCESS": 2000}
    assert killed >= 20
    assert set(stage.ends()) == {result.id for result in results}
    wait_until(lambda: stage.app.broker.size("celery") == 0)


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("seconds", "number", "every"),
    [(0.02, 400, 0.25), (0.0005, 4000, 0.05)],
    ids=["one by one", "in batches"],
)
def test_early_tasks_whose_children_are_killed_end_once_and_as_failures(
    stage: Stage, seconds: float, number: int, every: float
) -> None:
    worker = stage.worker(concurrency=3)
    results = stage.send_many("run", [(seconds,)] * number, link_error=Signature({"task": "errback"}))
    rng = random.Random(2)
    end = time.monotonic() + 20
    if stage.url.startswith("amqp"):
        every *= 4  # those that talk to RabbitMQ take longer to begin

    def over(killed: int) -> bool:
        return set(stage.states(results)) <= {"SUCCESS", "FAILURE"} or time.monotonic() > end

    killed = kill_repeatedly(worker, every, over, rng.choice)
    stage.wait_for(results, 50)
    runs = stage.runs()
    assert max(runs.values()) == 1
    assert killed
    failed = {result.id for result in results if result.state == "FAILURE"}
    # What a child had ended before it began another task keeps its result.
    last = {trace.pid: trace.what for trace in stage.traces("start")}
    assert failed & set(runs) <= set(last.values())
    # And what it was at has failed.
    assert set(last.values()) - set(stage.ends()) <= failed
    # A child may die between taking a task up and its first line.
    assert set(runs) | failed == {result.id for result in results}
    assert len(failed) <= killed
    for result in results:
        if result.id in failed:
            assert isinstance(result.result, WorkerLostError)
    failures = {trace.what for trace in stage.traces("failure")}
    assert failures & {result.id for result in results} == failed
    # An errback is a task like any other: some were killed as well.
    killed_errbacks = failures - failed
    wait_until(
        lambda: len(failed - {trace.what for trace in stage.traces("errback")}) <= len(killed_errbacks)
    )


def test_what_a_worker_that_is_gone_has_held_runs_on_another(stage: Stage) -> None:
    lost = stage.worker(conf={"worker_lease": 4.0})
    long = stage.send_many("late_run_until_told", [()] * 2)
    wait_until(lambda: len(stage.runs()) == 2)
    short = stage.send_many("late_run", [(0.001,)] * 50)
    wait_until(lambda: stage.app.broker.size("celery") == 50)
    time.sleep(0.1)  # the keepers mark what runs as begun
    lost.kill_all()
    stage.tell()
    stage.worker(conf={"worker_lease": 4.0})
    assert stage.wait_for([*long, *short]) == {"SUCCESS": 52}
    assert set(stage.ends()) == {result.id for result in [*long, *short]}


def test_an_early_task_of_a_worker_that_is_gone_fails_and_does_not_run_again(leased_stage: Stage) -> None:
    stage = leased_stage
    lost = stage.worker(conf={"worker_lease": 2.0})
    result = stage.send("tracked_run", 50.0)
    wait_until(lambda: result.state == "STARTED")  # with which the broker knows that it was begun
    lost.kill_all()
    stage.worker(conf={"worker_lease": 2.0})
    assert stage.wait_for([result]) == {"FAILURE": 1}
    assert isinstance(result.result, WorkerLostError)
    assert stage.runs()[result.id] == 1


@pytest.mark.parametrize("name", ["late_run", "late_run_in_c"])
def test_a_task_longer_than_three_leases_runs_once_while_its_worker_lives(stage: Stage, name: str) -> None:
    for _ in range(2):
        stage.worker(concurrency=1, conf={"worker_lease": 1.0})

    def runs_once() -> bool:
        result = stage.send(name, 3.5)
        assert stage.wait_for([result]) == {"SUCCESS": 1}
        return stage.runs()[result.id] == 1

    assert undisturbed(0.3, runs_once)


@pytest.mark.parametrize("how", EARLY_DEATHS)
def test_a_task_that_ends_its_process_is_a_failure_and_the_next_one_runs(
    redis_stage: Stage, how: str
) -> None:
    redis_stage.worker(concurrency=1)
    result = redis_stage.send("die", how)
    after = redis_stage.send("run", 0.0)
    assert redis_stage.wait_for([result, after]) == {"FAILURE": 1, "SUCCESS": 1}
    assert type(result.result).__name__ == EARLY_DEATHS[how]
    assert redis_stage.runs()[result.id] == 1


def test_a_late_task_that_always_kills_its_child_ends_with_the_dead_letters(stage: Stage) -> None:
    stage.worker()
    before = stage.send_many("late_run", [(0.001,)] * 10)
    killer = stage.send("late_die", "kill")
    after = stage.send_many("late_run", [(0.001,)] * 30)
    assert stage.wait_for([*before, killer, *after], timeout=30) == {"SUCCESS": 40, "FAILURE": 1}
    assert isinstance(killer.result, WorkerLostError)
    assert stage.runs()[killer.id] == 3
    letters = wait_until(lambda: stage.app.broker.dead_letters("celery"))
    assert [letter.id for letter in letters] == [killer.id]
    innocent = {result.id for result in [*before, *after]}
    assert {stage.runs()[id] for id in innocent} == {1}


def test_what_goes_back_uncounted_with_a_killers_batch_is_not_taken_for_a_killer(stage: Stage) -> None:
    stage.worker(concurrency=1, conf={"task_delivery_cap": 2})
    stage.wait_for(stage.send_many("noop", [()] * 100))  # so that batches are full
    killers = []
    innocent = []
    for _ in range(4):
        killers.append(stage.send("late_die", "kill"))
        innocent += stage.send_many("late_run", [(0.0,)] * 5)
    assert stage.wait_for([*killers, *innocent], timeout=30) == {"SUCCESS": 20, "FAILURE": 4}
    assert {stage.runs()[result.id] for result in killers} == {2}


def test_a_child_killed_while_idle_is_replaced(stage: Stage) -> None:
    worker = stage.worker()
    wait_until(lambda: len(worker.children()) == 2)
    before = worker.children()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(now := worker.children()) == 2 and set(now) != set(before))
    assert stage.wait_for(stage.send_many("run", [(0.05,)] * 20)) == {"SUCCESS": 20}


def test_an_agent_that_is_killed_is_started_again_and_no_task_notices(stage: Stage) -> None:
    worker = stage.worker(conf={"worker_lease": 3.0})
    wait_until(lambda: len(worker.children()) == 2)
    results = stage.send_many("late_run", [(0.05,)] * 60)
    agent = worker.agent()
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: worker.agent() != agent)
    assert stage.wait_for(results) == {"SUCCESS": 60}
    assert max(stage.runs().values()) == 1


def test_a_child_and_the_agent_killed_at_once_lose_nothing(stage: Stage) -> None:
    worker = stage.worker(conf={"worker_lease": 3.0, "task_delivery_cap": 1000})
    results = stage.send_many("late_run", [(0.1,)] * 30)
    for _ in range(4):
        wait_until(lambda: len(worker.children()) == 2)
        agent = worker.agent()
        for pid in (*worker.children(), agent):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
    assert stage.wait_for(results, timeout=20) == {"SUCCESS": 30}


def test_children_that_die_at_their_start_are_replaced_ever_more_slowly(redis_stage: Stage) -> None:
    worker = redis_stage.worker(broken_start=True, concurrency=2)
    begun = wait_until(lambda: len(found := redis_stage.traces("child")) >= 6 and found, 30)
    # The sixth is not started before four have died, and the pause after the fourth is of 1.6 s.
    assert begun[5].time - begun[3].time > 1.5
    worker.term()
    assert worker.wait() == 0


def test_children_are_replaced_after_their_number_of_tasks(stage: Stage) -> None:
    worker = stage.worker(max_tasks_per_child=5)
    results = stage.send_many("run", [(0.001,)] * 60)
    assert stage.wait_for(results) == {"SUCCESS": 60}
    by_child: dict[int, int] = {}
    for trace in stage.traces("start"):
        by_child[trace.pid] = by_child.get(trace.pid, 0) + 1
    assert max(by_child.values()) <= 5
    assert max(stage.runs().values()) == 1
    wait_until(lambda: len(worker.children()) == 2)


def test_a_child_that_has_grown_too_big_is_replaced(redis_stage: Stage) -> None:
    worker = redis_stage.worker(concurrency=1, max_memory_per_child=100_000)
    for _ in range(3):
        result = redis_stage.send("swell", 100)
        assert redis_stage.wait_for([result]) == {"SUCCESS": 1}
        wait_until(lambda pid=result.result: pid not in worker.children())  # type: ignore[misc]
    assert max(redis_stage.runs().values()) == 1
