"""Time limits: whatever a task does, it ends, its end is known, and the next one runs."""

from __future__ import annotations

import time

import pytest

from minicelery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.worker.harness import Stage, undisturbed


@pytest.mark.parametrize("name", ["run", "late_run"])
def test_a_task_past_its_hard_limit_fails_and_the_next_one_runs(stage: Stage, name: str) -> None:
    worker = stage.worker(concurrency=1)

    def its_child_ends_it() -> bool:
        """And not the parent, a second later."""
        before = len(worker.output())
        result = stage.send(name, 50.0, time_limit=0.5)
        after = stage.send("run", 0.0)
        assert stage.wait_for([result, after], timeout=15) == {"FAILURE": 1, "SUCCESS": 1}
        assert isinstance(result.result, TimeLimitExceeded)
        assert stage.runs()[result.id] == 1
        return "is lost" not in worker.output()[before:]

    assert undisturbed(0.3, its_child_ends_it)


def test_a_task_that_holds_the_gil_past_its_hard_limit_is_killed_a_second_later(stage: Stage) -> None:
    stage.worker(concurrency=1)
    result = stage.send("run_in_c", 30.0, time_limit=0.3)
    began = time.monotonic()
    after = stage.send("run", 0.0)
    assert stage.wait_for([result, after], timeout=15) == {"FAILURE": 1, "SUCCESS": 1}
    assert 1.0 < time.monotonic() - began < 10
    assert isinstance(result.result, TimeLimitExceeded)
    assert stage.runs()[result.id] == 1


def test_the_workers_own_hard_limit_holds_for_tasks_without_one(redis_stage: Stage) -> None:
    redis_stage.worker(concurrency=1, time_limit=0.3)
    result = redis_stage.send("run", 30.0)
    assert redis_stage.wait_for([result]) == {"FAILURE": 1}
    assert isinstance(result.result, TimeLimitExceeded)


def test_short_tasks_under_a_hard_limit_are_never_touched(redis_stage: Stage) -> None:
    # Many end just as their limit passes: whichever comes first, each ends once.
    redis_stage.worker(concurrency=2)
    close = [redis_stage.send("run", 0.1, time_limit=0.1) for _ in range(20)]
    easy = [redis_stage.send("run", 0.001, time_limit=20) for _ in range(20)]
    states = redis_stage.wait_for([*close, *easy])
    assert states["SUCCESS"] >= 20
    assert redis_stage.states(easy) == {"SUCCESS": 20}
    assert set(redis_stage.runs().values()) == {1}
    failed = [result for result in close if result.state == "FAILURE"]
    assert all(isinstance(result.result, TimeLimitExceeded) for result in failed)


def test_a_soft_limit_can_be_caught_and_the_value_counts(stage: Stage) -> None:
    stage.worker(concurrency=1)
    result = stage.send("stubborn", 50.0, soft_time_limit=0.3, time_limit=20)
    in_time = stage.send("stubborn", 0.01, soft_time_limit=10, time_limit=20)
    assert stage.wait_for([result, in_time]) == {"SUCCESS": 2}
    assert (result.result, in_time.result) == ("cleaned up", "in time")


def test_a_soft_limit_that_is_not_caught_fails_the_task_and_spares_the_child(redis_stage: Stage) -> None:
    redis_stage.worker(concurrency=1)
    result = redis_stage.send("run", 30.0, soft_time_limit=0.2)
    after = redis_stage.send("run", 0.4)
    assert redis_stage.wait_for([result, after]) == {"FAILURE": 1, "SUCCESS": 1}
    assert isinstance(result.result, SoftTimeLimitExceeded)
    assert len(redis_stage.traces("child")) == 1


def test_the_parent_ends_a_task_in_c_whose_connection_was_lost_before(
    redis_server: RedisServer, redis_stage: Stage
) -> None:
    # A new consumer name must not wipe the deadline off the board.
    redis_stage.worker(concurrency=1, conf={"worker_lease": 1.0})
    result = redis_stage.send("run_then_in_c", 1.0, 30.0, time_limit=1.5)
    wait_until(lambda: redis_stage.runs()[result.id])
    redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert redis_stage.wait_for([result]) == {"FAILURE": 1}
    assert isinstance(result.result, TimeLimitExceeded)
