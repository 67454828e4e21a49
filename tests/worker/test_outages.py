"""A Redis that dies and comes back while a worker works."""

from __future__ import annotations

import time

import pytest

from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.worker.harness import Stage, undisturbed


@pytest.mark.parametrize("away", [0.0, 3.0], ids=["shortly", "longer than a lease"])
def test_a_worker_goes_on_by_itself_after_the_server_was_away(
    server: RedisServer, outage_stage: Stage, away: float
) -> None:
    stage = outage_stage
    worker = stage.worker(concurrency=3, conf={"worker_lease": 2.0})
    long = [stage.send("run", away + 1.5), stage.send("late_run", away + 1.5)]
    results = stage.send_many("late_run", [(0.01,)] * 150) + stage.send_many("run", [(0.01,)] * 150)
    wait_until(lambda: len(stage.ends()) > 40)
    server.kill()
    time.sleep(away)
    server.start()
    assert stage.wait_for([*results, *long], timeout=30) == {"SUCCESS": 302}
    # Nobody died: whatever was running or finished during the outage ran once.
    assert set(stage.runs().values()) == {1}
    assert stage.ends() == stage.runs()
    assert worker.poll() is None


def test_tasks_that_run_through_a_whole_outage_run_once(server: RedisServer, outage_stage: Stage) -> None:
    stage = outage_stage
    stage.worker(concurrency=2, conf={"worker_lease": 1.0})
    stage.worker(concurrency=1, conf={"worker_lease": 1.0})

    def each_runs_once() -> bool:
        results = [stage.send("late_run", 4.0), stage.send("late_run_in_c", 4.0), stage.send("run", 4.0)]
        wait_until(lambda: {result.id for result in results} <= set(stage.runs()))
        time.sleep(0.2)
        server.kill()
        time.sleep(2.0)
        server.start()
        assert set(stage.wait_for(results)) <= {"SUCCESS", "FAILURE"}
        runs = {stage.runs()[result.id] for result in results}
        return (stage.states(results), runs) == ({"SUCCESS": 3}, {1})

    assert undisturbed(0.3, each_runs_once)


def test_what_a_child_had_finished_when_it_was_killed_during_an_outage_is_settled_after_it(
    server: RedisServer, outage_stage: Stage
) -> None:
    stage = outage_stage
    worker = stage.worker(concurrency=1)
    result = stage.send("run", 0.5)
    wait_until(lambda: stage.runs()[result.id])
    server.kill()
    wait_until(lambda: stage.ends()[result.id])
    wait_until(lambda: "trying again" in worker.output())
    worker.kill_child()
    time.sleep(0.3)
    server.start()
    assert stage.wait_for([result]) == {"SUCCESS": 1}
    assert stage.runs()[result.id] == 1


def test_a_hard_limit_that_passes_during_an_outage_is_recorded_after_it(
    server: RedisServer, outage_stage: Stage
) -> None:
    stage = outage_stage
    stage.worker(concurrency=1)
    result = stage.send("run", 30.0, time_limit=0.5)
    wait_until(lambda: stage.runs()[result.id])
    server.kill()
    time.sleep(1.5)
    server.start()
    assert stage.wait_for([result]) == {"FAILURE": 1}
    assert type(result.result).__name__ == "TimeLimitExceeded"


def test_a_child_that_has_done_its_share_during_an_outage_settles_it_after(
    server: RedisServer, outage_stage: Stage
) -> None:
    stage = outage_stage
    stage.worker(concurrency=1, max_tasks_per_child=1)
    result = stage.send("run", 0.5)
    wait_until(lambda: stage.runs()[result.id])
    server.kill()
    wait_until(lambda: stage.ends()[result.id])
    time.sleep(1.0)
    server.start()
    assert stage.wait_for([result, stage.send("run", 0.0)]) == {"SUCCESS": 2}
    assert set(stage.runs().values()) == {1}


def test_a_worker_that_starts_before_its_server_begins_to_work_when_it_comes(
    server: RedisServer, outage_stage: Stage
) -> None:
    stage = outage_stage
    server.kill()
    stage.worker()
    time.sleep(0.5)
    server.start()
    assert stage.wait_for([stage.send("run", 0.0)]) == {"SUCCESS": 1}


def test_connections_that_are_cut_again_and_again_lose_and_repeat_nothing(
    server: RedisServer, outage_stage: Stage
) -> None:
    stage = outage_stage
    stage.worker(concurrency=2, conf={"worker_lease": 6.0})
    results = stage.send_many("run", [(0.005,)] * 600)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", timeout=10.0)
        time.sleep(0.05)
    assert stage.wait_for(results) == {"SUCCESS": 600}
    assert set(stage.runs().values()) == {1}
