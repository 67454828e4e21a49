"""Pools that run many tasks at once: threads, and coroutines in one event loop."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from minicelery.exceptions import ImproperlyConfigured, TimeLimitExceeded
from minicelery.worker import Worker
from tests.waiting import wait_until
from tests.worker.harness import Stage, undisturbed

POOLS: dict[str, dict[str, Any]] = {
    "threads": {"pool": "threads", "concurrency": 8, "task": "run", "late": "late_run"},
    "asyncio": {"pool": "asyncio", "concurrency": 8, "task": "nap", "late": "late_nap"},
}  # fmt: skip


class Pool:
    """How a pool is started, and the names of its tasks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.task, self.late = POOLS[name]["task"], POOLS[name]["late"]
        # These run until `Stage.tell`.
        self.held, self.late_held = f"{self.task}_until_told", f"{self.late}_until_told"
        self.tracked_held = f"tracked_{self.held}"
        self.options = {key: POOLS[name][key] for key in ("pool", "concurrency")}


@pytest.fixture(params=sorted(POOLS))
def pool(request: pytest.FixtureRequest) -> Pool:
    return Pool(request.param)


def test_many_tasks_run_at_once_each_of_them_once(stage: Stage, pool: Pool) -> None:
    stage.worker(**{**pool.options, "concurrency": 50})
    began = time.monotonic()
    results = stage.send_many(pool.task, [(0.4,)] * 50)
    assert stage.wait_for(results) == {"SUCCESS": 50}
    assert time.monotonic() - began < 10  # one after the other they would take 20 s
    assert set(stage.runs().values()) == {1}


def test_no_task_is_lost_or_doubled_under_fifty_threads(stage: Stage) -> None:
    stage.worker(pool="threads", concurrency=50)
    results = stage.send_many("run", [(0.0,)] * 2000)
    assert stage.wait_for(results, 40) == {"SUCCESS": 2000}
    assert len(stage.runs()) == 2000
    assert set(stage.runs().values()) == {1}


def test_a_thousand_coroutines_run_at_once(redis_stage: Stage) -> None:
    redis_stage.worker(pool="asyncio", concurrency=1000)
    results = redis_stage.send_many("nap_until_told", [()] * 1000)
    wait_until(lambda: len(redis_stage.runs()) == 1000, timeout=30, interval=0.1)
    redis_stage.tell()
    assert redis_stage.wait_for(results) == {"SUCCESS": 1000}


def test_each_of_many_runs_sees_its_own_request(redis_stage: Stage, pool: Pool) -> None:
    redis_stage.worker(**pool.options)
    name = "own_id" if pool.name == "asyncio" else "own_id_in_thread"
    results = redis_stage.send_many(name, [()] * 100)
    redis_stage.wait_for(results)
    assert [result.result for result in results] == [[result.id] for result in results]


@pytest.mark.parametrize("name", ["prefork", "threads", "asyncio", "solo"])
def test_async_def_tasks_run_in_every_pool(redis_stage: Stage, name: str) -> None:
    redis_stage.worker(pool=name, concurrency=1)
    results = redis_stage.send_many("nap", [(0.001,)] * 10)
    assert redis_stage.wait_for(results) == {"SUCCESS": 10}
    assert len({result.result for result in results}) == 1, "one event loop serves them all"


def test_tasks_that_are_not_coroutines_hold_nobody_up_in_the_asyncio_pool(redis_stage: Stage) -> None:
    redis_stage.worker(pool="asyncio", concurrency=20)
    slow = redis_stage.send_many("run_until_told", [()] * 10)
    wait_until(lambda: len(redis_stage.runs()) == 10)
    redis_stage.wait_for(redis_stage.send_many("nap", [(0.01,)] * 20))
    assert redis_stage.states(slow) == {"PENDING": 10}
    redis_stage.tell()
    assert redis_stage.wait_for(slow) == {"SUCCESS": 10}


def test_retries_delays_and_links_work_in_every_pool(stage: Stage, pool: Pool) -> None:
    stage.worker(**pool.options)
    results = [stage.send("again", 2), stage.send(pool.task, 0.0, countdown=0.3)]
    assert stage.wait_for(results) == {"SUCCESS": 2}


# -- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prefork", "asyncio"])
def test_the_soft_limit_is_raised_where_a_coroutine_waits(redis_stage: Stage, name: str) -> None:
    redis_stage.worker(pool=name)
    result = redis_stage.send("careful_nap", 20.0, soft_time_limit=0.3)
    assert redis_stage.wait_for([result]) == {"SUCCESS": 1}
    assert result.result == "SoftTimeLimitExceeded"


@pytest.mark.parametrize("task", ["nap", "stubborn_nap"])
def test_the_hard_limit_ends_a_coroutine_and_no_other(redis_stage: Stage, task: str) -> None:
    redis_stage.worker(pool="asyncio", concurrency=10)
    late = redis_stage.send(task, 4.0, time_limit=0.3)
    others = redis_stage.send_many("nap", [(1.5,)] * 5)
    assert redis_stage.wait_for([late]) == {"FAILURE": 1}
    assert isinstance(late.result, TimeLimitExceeded)
    assert redis_stage.wait_for(others) == {"SUCCESS": 5}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("threads", {"time_limit": 5}, "the threads pool can't enforce time_limit"),
        ("threads", {"soft_time_limit": 5}, "the threads pool can't enforce soft_time_limit"),
        ("solo", {"time_limit": 5}, "the solo pool can't enforce time_limit"),
        ("asyncio", {"time_limit": 5}, "the asyncio pool can't enforce time_limit for plain functions"),
        ("threads", {"autoscale": (4, 1)}, "autoscale"),
    ],
)
def test_what_a_pool_cannot_enforce_is_refused_at_start(
    stage: Stage, name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        Worker(stage.app, pool=name, quiet=True, **options).run()


# -- the end -----------------------------------------------------------------------------------


def test_a_warm_stop_finishes_what_runs_and_leaves_the_rest(stage: Stage, pool: Pool) -> None:
    worker = stage.worker(**{**pool.options, "concurrency": 3})
    results = stage.send_many(pool.held, [()] * 6)
    wait_until(lambda: len(stage.runs()) == 3)
    worker.term()
    assert worker.end_what_runs() == 0
    assert stage.states(results) == {"SUCCESS": 3, "PENDING": 3}
    wait_until(lambda: stage.app.broker.size("celery") == 3)


def test_a_cold_stop_ends_what_runs(stage: Stage, pool: Pool) -> None:
    worker = stage.worker(**pool.options)
    early = stage.send_many(pool.task, [(20.0,)] * 3)
    late = stage.send_many(pool.late, [(20.0,)] * 2)
    wait_until(lambda: len(stage.runs()) == 5)
    worker.quit()
    assert worker.wait(15) == 1
    assert stage.states(early) == {"FAILURE": 3}
    assert stage.states(late) == {"PENDING": 2}
    wait_until(lambda: stage.app.broker.size("celery") == 2)


def test_a_worker_that_is_idle_stops_at_once(stage: Stage, pool: Pool) -> None:
    worker = stage.worker(**pool.options)
    began = time.monotonic()
    worker.term()
    assert worker.wait() == 0
    assert time.monotonic() - began < 4


def test_a_child_is_replaced_after_its_share_of_tasks(redis_stage: Stage, pool: Pool) -> None:
    redis_stage.worker(**pool.options, max_tasks_per_child=20)
    results = redis_stage.send_many(pool.task, [(0.01,)] * 100)
    assert redis_stage.wait_for(results) == {"SUCCESS": 100}
    children = {trace.pid for trace in redis_stage.traces("start")}
    assert len(children) == 5
    assert set(redis_stage.runs().values()) == {1}


# -- deaths ------------------------------------------------------------------------------------


def test_tasks_of_a_child_that_is_killed_end_as_their_acks_say(stage: Stage, pool: Pool) -> None:
    worker = stage.worker(**pool.options)
    ended = stage.send_many(pool.task, [(0.0,)] * 20)
    stage.wait_for(ended)
    early = stage.send_many(pool.held, [()] * 3)
    late = stage.send_many(pool.late_held, [()] * 3)
    wait_until(lambda: len(stage.runs()) == 26)
    worker.kill_child()
    assert stage.wait_for(early) == {"FAILURE": 3}
    stage.tell()
    assert stage.wait_for(late) == {"SUCCESS": 3}
    runs = stage.runs()
    assert {runs[result.id] for result in ended + early} == {1}
    assert {runs[result.id] for result in late} == {2}


def test_what_kills_its_child_again_takes_no_neighbour_with_it(stage: Stage, pool: Pool) -> None:
    stage.worker(**pool.options)
    killer = stage.send("late_die", "kill")
    wait_until(lambda: stage.runs()[killer.id])
    neighbours = stage.send_many(pool.late, [(0.3,)] * 20)
    assert stage.wait_for([killer]) == {"FAILURE": 1}
    assert stage.wait_for(neighbours) == {"SUCCESS": 20}
    assert stage.runs()[killer.id] == 3


def test_what_a_lost_worker_held_is_done_by_another(leased_stage: Stage, pool: Pool) -> None:
    conf = {"worker_lease": 1.5}
    worker = leased_stage.worker(**pool.options, conf=conf)
    late = leased_stage.send_many(pool.late_held, [()] * 5)
    early = leased_stage.send_many(pool.tracked_held, [()] * 3)
    wait_until(lambda: len(leased_stage.runs()) == 8)
    wait_until(
        lambda: leased_stage.states(early) == {"STARTED": 3}
    )  # so the broker knows that they were begun
    worker.kill_all()
    leased_stage.tell()
    leased_stage.worker(**pool.options, conf=conf)
    assert leased_stage.wait_for(late) == {"SUCCESS": 5}
    assert leased_stage.wait_for(early) == {"FAILURE": 3}


def test_the_lease_outlasts_the_tasks(leased_stage: Stage, pool: Pool) -> None:
    conf = {"worker_lease": 1.0}
    leased_stage.worker(**pool.options, conf=conf)

    def each_runs_once() -> bool:
        results = leased_stage.send_many(pool.late, [(3.0,)] * 4)
        wait_until(lambda: {result.id for result in results} <= set(leased_stage.runs()), 20)
        if len(leased_stage.workers) == 1:
            leased_stage.worker(**pool.options, conf=conf)
        assert leased_stage.wait_for(results) == {"SUCCESS": 4}
        return {leased_stage.runs()[result.id] for result in results} == {1}

    assert undisturbed(0.3, each_runs_once)


def test_started_is_stored_of_every_long_run(stage: Stage, pool: Pool) -> None:
    stage.worker(**pool.options)
    results = stage.send_many(pool.tracked_held, [()] * 4)
    wait_until(lambda: stage.states(results) == {"STARTED": 4})
    stage.tell()
    assert stage.wait_for(results) == {"SUCCESS": 4}


# -- revoked while they run --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task"), [("prefork", "run"), ("solo", "run"), ("solo", "nap"), ("asyncio", "nap")]
)
def test_a_running_task_is_terminated(stage: Stage, name: str, task: str) -> None:
    stage.worker(pool=name)
    result = stage.send(task, 20.0)
    wait_until(lambda: stage.runs()[result.id])
    result.revoke(terminate=True)
    assert stage.wait_for([result], 15) == {"REVOKED": 1}
    after = stage.send(task, 0.0)
    assert stage.wait_for([after]) == {"SUCCESS": 1}
    assert stage.runs()[result.id] == 1


def test_a_task_that_will_not_hear_is_killed(stage: Stage) -> None:
    stage.worker(concurrency=1)
    result = stage.send("run_then_in_c", 0.3, 20.0)
    wait_until(lambda: stage.runs()[result.id])
    time.sleep(0.1)
    result.revoke(terminate=True)
    assert stage.wait_for([result], 15) == {"REVOKED": 1}
    assert stage.wait_for([stage.send("run", 0.0)]) == {"SUCCESS": 1}


def test_sigusr1_is_the_soft_limit(stage: Stage) -> None:
    stage.worker()
    result = stage.send("stubborn", 20.0)
    wait_until(lambda: stage.runs()[result.id])
    result.revoke(terminate=True, signal=signal.SIGUSR1)
    wait_until(lambda: result.backend.load([result.id])[0] is not None and result.ready(), 15)


def test_threads_are_told_and_may_heed_it(redis_stage: Stage) -> None:
    worker = redis_stage.worker(pool="threads", concurrency=2)
    result = redis_stage.send("heedful", 20.0)
    wait_until(lambda: redis_stage.runs()[result.id])
    result.revoke(terminate=True)
    wait_until(lambda: "threads can't be terminated" in worker.output())
    wait_until(lambda: redis_stage.traces("start") and result.ready(), 15)


@pytest.mark.parametrize("name", ["prefork", "threads", "asyncio"])
def test_revoked_tasks_never_run_not_after_a_restart_of_all_workers(stage: Stage, name: str) -> None:
    worker = stage.worker(pool=name, concurrency=2)
    busy = stage.send_many("run_until_told", [()] * 2)
    wait_until(lambda: len(stage.runs()) == 2)
    waiting = stage.send_many("run", [(0.0,)] * 20)
    delayed = stage.send_many("run", [(0.0,)] * 5, countdown=2.0)
    for result in (*waiting[::2], *delayed):
        result.revoke()
    worker.term()
    worker.end_what_runs()
    stage.worker(pool=name, concurrency=2)
    assert stage.wait_for(busy) == {"SUCCESS": 2}
    assert stage.wait_for([*waiting, *delayed]) == {"SUCCESS": 10, "REVOKED": 15}
    assert not {result.id for result in (*waiting[::2], *delayed)} & set(stage.runs())
