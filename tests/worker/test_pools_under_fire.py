"""What happens to concurrent pools, and to the end of running tasks, when things go badly."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minicelery.message import COUNT_HEADER
from tests.rabbit import RabbitServer
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.worker.apps import fire
from tests.worker.harness import Stage

TASKS = {"imports": ["tests.worker.apps.fire"]}
"""For `conf`: has a worker import these tasks."""
WAYS = ["gather", "wait_for", "task", *(["group"] if sys.version_info >= (3, 11) else [])]


@pytest.fixture(autouse=True)
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks leave their traces with the others."""
    monkeypatch.setenv(fire.PATH, str(tmp_path / "traces"))


def value_of(stage: Stage, result: Any) -> Any:
    (record,) = stage.app.backend.load([result.id])
    return None if record is None else json.loads(record.document)["result"]


# -- what a task does to the loop it shares --------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "argument"), [("exit_below", "exit"), ("exit_below", "interrupt"), ("stop_the_loop", None)]
)
def test_no_task_ends_the_event_loop_of_the_others(
    redis_stage: Stage, task: str, argument: str | None
) -> None:
    stage = redis_stage
    stage.worker(pool="asyncio", concurrency=10, conf=TASKS)
    neighbours = stage.send_many("nap", [(1.0,)] * 3)
    wait_until(lambda: len(stage.runs()) == 3)
    culprit = stage.send(task, *([argument] if argument else []))
    assert stage.wait_for(neighbours) == {"SUCCESS": 3}
    stage.wait_for([culprit])
    assert stage.wait_for([stage.send("nap", 0.0)]) == {"SUCCESS": 1}


@pytest.mark.parametrize("pool", ["asyncio", "threads", "prefork"])
@pytest.mark.parametrize("error", ["CancelledError", "GeneratorExit", "SystemExit", "KeyboardInterrupt"])
def test_whatever_a_coroutine_raises_is_its_own_failure(redis_stage: Stage, error: str, pool: str) -> None:
    stage = redis_stage
    stage.worker(pool=pool, concurrency=2, conf=TASKS)
    results = (
        [stage.send("raise_it", error), stage.send("raise_it", error, soft_time_limit=10)]
        if pool != "threads"
        else [stage.send("raise_it", error)]
    )
    assert stage.wait_for(results) == {"FAILURE": len(results)}
    assert {
        json.loads(r.document)["result"]["exc_type"]
        for r in stage.app.backend.load([r.id for r in results])
        if r
    } == {error}
    assert stage.wait_for([stage.send("nap", 0.0)]) == {"SUCCESS": 1}


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
@pytest.mark.parametrize("how", WAYS)
def test_what_a_coroutine_waits_for_ends_with_it_at_the_soft_limit(
    redis_stage: Stage, how: str, pool: str
) -> None:
    stage = redis_stage
    stage.worker(pool=pool, concurrency=2, conf=TASKS)
    result = stage.send("child_tasks", how, 1.5, soft_time_limit=0.3)
    stage.wait_for([result])
    keep = stage.send("nap", 2.0)
    stage.wait_for([keep])
    assert value_of(stage, result) == "SoftTimeLimitExceeded"
    assert not stage.traces("part")


@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
def test_the_soft_limit_leaves_no_cancellation_behind(redis_stage: Stage, pool: str) -> None:
    stage = redis_stage
    stage.worker(pool=pool, concurrency=2, conf=TASKS)
    result = stage.send("cleans_up", soft_time_limit=0.3)
    stage.wait_for([result])
    assert value_of(stage, result) == "0"


def test_a_coroutine_that_goes_on_after_its_hard_limit_has_one_end(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.worker(pool="asyncio", concurrency=2, conf=TASKS)
    result = stage.send("counts_handlers", 2.5, time_limit=0.3)
    assert stage.wait_for([result]) == {"FAILURE": 1}
    time.sleep(2.0)
    assert [trace.detail for trace in stage.traces("postrun", result.id)] == ["FAILURE"]
    assert stage.states([result]) == {"FAILURE": 1}


@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
def test_a_wrong_call_of_a_limited_coroutine_is_an_ordinary_failure(redis_stage: Stage, pool: str) -> None:
    stage = redis_stage
    stage.worker(pool=pool, concurrency=2, conf=TASKS)
    result = stage.app.send_task(
        "flow", ("plain", 1, "too many"), soft_time_limit=5, link_error=stage.app.signature("errback")
    )
    assert stage.wait_for([result]) == {"FAILURE": 1}
    wait_until(lambda: stage.traces("errback", result.id))
    assert stage.app.broker.dead("celery") == 0


def test_limits_of_plain_functions_are_not_silently_dropped_in_the_asyncio_pool(redis_stage: Stage) -> None:
    stage = redis_stage
    worker = stage.worker(pool="asyncio", concurrency=2)
    result = stage.send("run", 3.0, soft_time_limit=0.3, time_limit=0.6)
    wait_until(lambda: stage.ends()[result.id] or "limit" in worker.output().partition("ready")[2])
    assert "limit" in worker.output().partition("ready")[2]


def test_busy_threads_keep_no_coroutine_from_beginning(
    redis_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a task has limits across workers, each begin may have to ask the broker."""
    monkeypatch.setenv(fire.LIMITED, "1")
    stage = redis_stage
    stage.worker(pool="asyncio", concurrency=50, conf=TASKS)
    busy = stage.send_many("run_until_told", [()] * 32)
    wait_until(lambda: len(stage.runs()) == 32)
    assert stage.wait_for([stage.send("nap", 0.0), stage.send("limited_nap", 0.0)]) == {"SUCCESS": 2}
    assert stage.states(busy) == {"PENDING": 32}


def test_as_many_plain_functions_run_at_once_as_there_are_places(redis_stage: Stage) -> None:
    """None waits for a thread: it would have begun as far as others can tell, and be lost with its child."""
    stage = redis_stage
    stage.worker(pool="asyncio", concurrency=40)
    results = stage.send_many("run_until_told", [()] * 40)
    wait_until(lambda: len(stage.runs()) == 40)
    stage.tell()
    assert stage.wait_for(results) == {"SUCCESS": 40}


# -- suspects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_what_has_killed_its_child_runs_alone(leased_stage: Stage, pool: str) -> None:
    """Neighbours that can't run twice are not there when it kills the child again.

    RabbitMQ may hand out the neighbours before it; they are waited for, but not for long.
    """
    stage = leased_stage
    stage.worker(pool=pool, concurrency=4, conf={"imports": [*TASKS["imports"], "tests.worker.apps.patient"]})
    killer = stage.send("die_later", 0.3)
    wait_until(lambda: stage.runs()[killer.id] >= 2)
    neighbours = stage.send_many("run", [(1.0,)] * 3)
    assert stage.wait_for([killer]) == {"FAILURE": 1}
    assert stage.wait_for(neighbours) == {"SUCCESS": 3}


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_a_suspect_that_waits_for_its_turn_stops_nobody_else(redis_stage: Stage, pool: str) -> None:
    stage = redis_stage
    stage.worker(pool=pool, concurrency=4)
    long = stage.send("run_until_told" if pool == "threads" else "nap_until_told")
    wait_until(lambda: stage.runs()[long.id])
    suspect = stage.send("run", 0.0, headers={COUNT_HEADER: 1})
    stage.wait_for(stage.send_many("run", [(0.0,)] * 5))
    stage.wait_for([suspect])
    assert stage.states([long]) == {"PENDING": 1}


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["threads", "asyncio", "prefork"])
def test_a_worker_that_stops_keeps_nothing_from_others(stage: Stage, pool: str) -> None:
    """What it has fetched and not begun goes back at once, not when its last task has ended."""
    worker = stage.worker(pool=pool, concurrency=2)
    name = "run" if pool != "asyncio" else "nap"
    long = stage.send_many(f"{name}_until_told", [()] * 2)
    wait_until(lambda: len(stage.runs()) == 2)
    waiting = stage.send_many(name, [(0.0,)] * 4)
    worker.term()
    wait_until(lambda: stage.app.broker.size("celery") == 4)
    assert stage.states(long) == {"PENDING": 2}
    stage.tell()
    stage.worker(pool=pool, concurrency=2)
    assert stage.wait_for([*waiting, *long]) == {"SUCCESS": 6}
    assert set(stage.runs().values()) == {1}


# -- outages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_all_that_ended_in_an_outage_is_settled_at_a_warm_stop(
    server: RedisServer, outage_stage: Stage, pool: str
) -> None:
    """What ended after the first attempt to settle as well."""
    stage = outage_stage
    worker = stage.worker(pool=pool, concurrency=4)
    name = "run" if pool == "threads" else "nap"
    results = stage.send_many(name, [(0.6,), (1.2,), (1.8,)])
    wait_until(lambda: len(stage.runs()) == 3)
    server.kill()
    wait_until(lambda: len(stage.ends()) >= 2)
    worker.term()
    wait_until(lambda: len(stage.ends()) == 3)
    time.sleep(0.5)
    server.start()
    assert worker.wait(20) == 0
    stage.worker(pool=pool, concurrency=4)
    assert stage.wait_for(results) == {"SUCCESS": 3}
    assert set(stage.runs().values()) == {1}


@pytest.mark.parametrize("pool", ["threads", "asyncio", "prefork"])
def test_a_warm_stop_in_an_outage_neither_spins_nor_floods_the_log(
    server: RedisServer, outage_stage: Stage, pool: str
) -> None:
    stage = outage_stage
    worker = stage.worker(pool=pool, concurrency=4)
    name = "run" if pool != "asyncio" else "nap"
    stage.send_many(name, [(0.4,), (0.8,), (30.0,)])
    wait_until(lambda: len(stage.runs()) == 3)
    server.kill()
    worker.term()
    wait_until(lambda: len(stage.ends()) == 2)
    children = worker.children()

    def spent() -> float:
        before = sum(map(cpu_seconds, children))
        time.sleep(1.0)
        return sum(map(cpu_seconds, children)) - before

    assert any(spent() < 0.3 for _ in range(3))
    assert worker.output().count("trying again") < 8


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_what_ends_in_an_outage_runs_once(server: RedisServer, outage_stage: Stage, pool: str) -> None:
    """Whichever attempt to settle it is lost."""
    stage = outage_stage
    stage.worker(pool=pool, concurrency=10)
    names = ("run", "late_run") if pool == "threads" else ("nap", "late_nap")
    results = [stage.send(names[n % 2], 0.3 + n * 0.2) for n in range(10)]
    wait_until(lambda: len(stage.runs()) == 10)
    server.kill()
    time.sleep(1.2)
    server.start()
    assert stage.wait_for(results) == {"SUCCESS": 10}
    assert set(stage.runs().values()) == {1}


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_what_runs_through_the_loss_of_its_connection_runs_once_on_rabbitmq(
    private_stage: Stage, private_rabbit: RabbitServer, pool: str
) -> None:
    stage = private_stage
    stage.worker(pool=pool, concurrency=10)
    names = ("run", "late_run") if pool == "threads" else ("nap", "late_nap")
    results = [stage.send(names[n % 2], 0.3 + n * 0.3) for n in range(8)]
    wait_until(lambda: len(stage.runs()) == 8)
    private_rabbit.kill()
    time.sleep(0.5)
    private_rabbit.start()
    assert stage.wait_for(results) == {"SUCCESS": 8}
    assert set(stage.runs().values()) == {1}


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_what_has_ended_with_a_large_result_does_not_run_again(
    server: RedisServer, outage_stage: Stage, pool: str
) -> None:
    """Its outcome has no room on the Board, should the child die before it is settled."""
    stage = outage_stage
    worker = stage.worker(pool=pool, concurrency=4, conf=TASKS)
    result = stage.send("large_result", 0.5)
    wait_until(lambda: stage.runs()[result.id])
    server.kill()
    wait_until(lambda: stage.ends()[result.id])
    time.sleep(0.3)
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    server.start()
    stage.wait_for([result])
    assert stage.runs()[result.id] == 1


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- the same as in prefork ------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_everything_comes_to_the_same_end_in_every_pool(stage: Stage, pool: str) -> None:
    conf = {**TASKS, "task_queue_max_priority": 9}
    stage.app.conf.task_queue_max_priority = 9
    for task in ("flow", "flow_result"):
        stage.app.task(name=task)(lambda *args: None)
    flow = stage.app.tasks["flow"]
    linked = stage.app.signature("flow_result")
    sent = {
        "plain": stage.send("flow", "plain"),
        "retry": stage.send("flow", "retry"),
        "retry too often": stage.send("flow", "retry too often"),
        "reject": stage.send("flow", "reject"),
        "reject once": stage.send("flow", "reject once"),
        "fail": flow.apply_async(("fail",), link_error=stage.app.signature("errback")),
        "link": flow.apply_async(("link", 5), link=linked),
        "chain": flow.apply_async(("chain", 7), chain=[linked, linked]),
        "unknown": stage.send("no_such_task"),
        "wrong arguments": stage.app.send_task("flow", ()),
        "no headers": stage.send("flow", "plain", headers={"timelimit": "soon"}),
        "expired": stage.send("flow", "expired", expires=0.05),
        "revoked": stage.send("flow", "revoked"),
        "revoked delayed": stage.send("flow", "revoked delayed", countdown=0.6),
        "other queue": stage.send("flow", "other queue", queue="other"),
    }
    sent["revoked"].revoke()
    sent["revoked delayed"].revoke()
    ignored = stage.send("flow", "ignore")
    time.sleep(0.1)
    stage.worker(pool=pool, concurrency=4, conf=conf, queues="celery,other")
    stage.wait_for(list(sent.values()))
    wait_until(lambda: len(stage.traces("flow", "linked")) == 3 and stage.traces("errback"))
    wait_until(lambda: stage.traces("flow", "ignore"))
    states = {name: dict(stage.states([result])) for name, result in sent.items()}
    success, failure, revoked = {"SUCCESS": 1}, {"FAILURE": 1}, {"REVOKED": 1}
    assert states == {
        "plain": success, "retry": success, "retry too often": failure, "reject": failure, "reject once": success,
        "fail": failure, "link": success, "chain": success, "unknown": failure, "wrong arguments": failure,
        "no headers": failure, "expired": revoked, "revoked": revoked, "revoked delayed": revoked,
        "other queue": success,
    }  # fmt: skip
    assert stage.states([ignored]) == {"PENDING": 1}
    assert stage.traces("errback")[0].what == sent["fail"].id
    runs = [trace.what.replace("_", " ") for trace in stage.traces("flow")]
    assert {what: runs.count(what) for what in set(runs)} == {
        "plain": 1, "retry": 3, "retry too often": 3, "reject": 1, "reject once": 2, "ignore": 1, "fail": 1,
        "link": 1, "chain": 1, "linked": 3, "other queue": 1,
    }  # fmt: skip
    wait_until(lambda: stage.app.broker.dead("celery") == 2)
    letters = {letter.id: letter.reason for letter in stage.app.broker.dead_letters("celery")}
    assert set(letters) == {sent[name].id for name in ("reject", "no headers")}
    wait_until(lambda: stage.app.broker.size("celery") == 0)
