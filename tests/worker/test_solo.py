"""The solo pool: everything in one process."""

from __future__ import annotations

import signal
import time

from tests.waiting import wait_until
from tests.worker.harness import Stage, undisturbed


def test_a_solo_worker_is_one_process_that_runs_retries_and_delays(stage: Stage) -> None:
    worker = stage.worker(pool="solo")
    results = [stage.send("run", 0.0), stage.send("again", 2), stage.send("run", 0.0, countdown=0.3)]
    assert stage.wait_for(results) == {"SUCCESS": 3}
    assert results[0].result == worker.pid
    assert worker.processes() == [worker.pid]


def test_a_solo_worker_finishes_what_runs_and_gives_the_rest_back(stage: Stage) -> None:
    worker = stage.worker(pool="solo")
    stage.wait_for(stage.send_many("noop", [()] * 100))
    running = stage.send("run_until_told")
    wait_until(lambda: stage.runs()[running.id])
    waiting = stage.send_many("run", [(0.0,)] * 5)
    worker.term()
    assert worker.end_what_runs() == 0
    assert stage.states([running, *waiting]) == {"SUCCESS": 1, "PENDING": 5}
    wait_until(lambda: stage.app.broker.size("celery") == 5)


def test_a_solo_worker_that_is_quit_ends_what_runs(stage: Stage) -> None:
    worker = stage.worker(pool="solo")
    early = stage.send("run", 20.0)
    wait_until(lambda: stage.runs()[early.id])
    worker.send_signal(signal.SIGQUIT)
    worker.wait()
    assert stage.states([early]) == {"FAILURE": 1}


def test_a_solo_workers_lease_outlasts_its_tasks(stage: Stage) -> None:
    stage.worker(pool="solo", conf={"worker_lease": 1.0})

    def runs_once() -> bool:
        result = stage.send("late_run", 3.5)
        wait_until(lambda: stage.runs()[result.id])
        if len(stage.workers) == 1:
            stage.worker(concurrency=1, conf={"worker_lease": 1.0})
        assert stage.wait_for([result]) == {"SUCCESS": 1}
        return stage.runs()[result.id] == 1

    assert undisturbed(0.3, runs_once)


def test_a_solo_worker_survives_what_its_tasks_raise(redis_stage: Stage) -> None:
    worker = redis_stage.worker(pool="solo")
    results = [redis_stage.send("die", how) for how in ("sys.exit", "interrupt", "odd")]
    assert redis_stage.wait_for(results) == {"FAILURE": 3}
    began = time.monotonic()
    worker.interrupt()
    assert worker.wait() == 0
    assert time.monotonic() - began < 3
