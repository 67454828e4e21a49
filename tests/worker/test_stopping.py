"""Stopping: warm, cold, by signal to one or to all, and when the parent is just gone."""

from __future__ import annotations

import os
import signal
import time

import pytest

from minicelery.exceptions import Terminated
from tests.waiting import wait_until
from tests.worker.harness import Stage


@pytest.mark.parametrize(
    ("number", "whom"), [(signal.SIGTERM, "parent"), (signal.SIGTERM, "group"), (signal.SIGINT, "group")]
)
def test_one_signal_finishes_what_runs_and_gives_the_rest_back(stage: Stage, number: int, whom: str) -> None:
    worker = stage.worker()
    stage.wait_for(stage.send_many("noop", [()] * 100))  # so that batches are full
    running = stage.send_many("run_until_told", [()] * 2)
    wait_until(lambda: len(stage.runs()) == 2)
    waiting = stage.send_many("run", [(0.0,)] * 20)
    if whom == "parent":
        worker.send_signal(number)
    else:
        worker.signal_group(number)
    assert worker.end_what_runs() == 0
    assert not worker.processes()
    assert stage.states(running) == {"SUCCESS": 2}
    assert stage.states(waiting) == {"PENDING": 20}
    wait_until(lambda: stage.app.broker.size("celery") == 20)
    assert len(stage.runs()) == 2
    stage.worker()
    assert stage.wait_for(waiting) == {"SUCCESS": 20}
    assert set(stage.runs().values()) == {1}


def test_an_idle_worker_stops_at_once(stage: Stage) -> None:
    worker = stage.worker()
    wait_until(lambda: len(worker.children()) == 2)
    time.sleep(0.3)
    began = time.monotonic()
    worker.term()
    assert worker.wait() == 0
    assert time.monotonic() - began < 4


def test_further_terms_change_nothing(redis_stage: Stage) -> None:
    worker = redis_stage.worker()
    result = redis_stage.send("run", 1.0)
    wait_until(lambda: redis_stage.runs()[result.id])
    for _ in range(5):
        worker.term()
        time.sleep(0.05)
    assert worker.wait() == 0
    assert redis_stage.states([result]) == {"SUCCESS": 1}


@pytest.mark.parametrize("how", ["quit", "int twice to all"])
def test_a_cold_stop_fails_early_tasks_and_gives_late_ones_back(stage: Stage, how: str) -> None:
    worker = stage.worker()
    early, late = stage.send("run", 20.0), stage.send("late_run_until_told")
    wait_until(lambda: len(stage.runs()) == 2)
    if how == "quit":
        worker.quit()
    else:
        worker.signal_group(signal.SIGINT)
        worker.says("Warm shutdown")  # two at once would be one
        worker.signal_group(signal.SIGINT)
    assert worker.wait() == 1
    assert not worker.processes()
    assert stage.states([early]) == {"FAILURE": 1}
    assert isinstance(early.result, Terminated)
    assert not stage.ends()
    wait_until(lambda: stage.app.broker.size("celery") == 1)
    stage.tell()
    stage.worker()
    assert stage.wait_for([late]) == {"SUCCESS": 1}
    assert stage.runs() == {early.id: 1, late.id: 2}


def test_a_cold_stop_kills_what_holds_the_gil(stage: Stage) -> None:
    worker = stage.worker()
    early, late = stage.send("run_in_c", 20.0), stage.send("late_run_in_c", 20.0)
    wait_until(lambda: len(stage.runs()) == 2)
    worker.quit()
    assert worker.wait(12) == 1
    assert isinstance(early.result, Terminated)
    assert stage.states([late]) == {"PENDING": 1}
    wait_until(lambda: stage.app.broker.size("celery") == 1)


def test_a_cold_stop_of_an_idle_worker_is_quick(redis_stage: Stage) -> None:
    worker = redis_stage.worker()
    wait_until(lambda: len(worker.children()) == 2)
    worker.quit()
    assert worker.wait() == 1
    assert not worker.processes()


def test_nothing_stays_behind_when_the_parent_is_killed(stage: Stage) -> None:
    worker = stage.worker()
    result = stage.send("run", 1.0)
    wait_until(lambda: len(worker.children()) == 2 and stage.runs()[result.id])
    assert len(worker.processes()) == 4
    worker.kill()
    wait_until(lambda: not worker.processes(), timeout=15)
    assert stage.states([result]) == {"SUCCESS": 1}


def test_a_child_that_is_killed_during_a_warm_stop_loses_nothing(stage: Stage) -> None:
    worker = stage.worker()
    results = stage.send_many("late_run_until_told", [()] * 2)
    wait_until(lambda: len(stage.runs()) == 2)
    worker.term()
    worker.says("Warm shutdown")
    os.kill(worker.children()[0], signal.SIGKILL)
    assert worker.end_what_runs() == 0
    assert stage.states(results) == {"SUCCESS": 1, "PENDING": 1}
    wait_until(lambda: stage.app.broker.size("celery") == 1)
