"""Workers as processes of their own: pools, limits, recycling, revocation."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery.exceptions import TimeLimitExceeded
from tests.compat.shop import TIMEOUT, Shop, begun, revoked
from tests.compat.stage import each
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A worker of the prefork pool with two children."""
    found = Shop(tmp_path_factory.mktemp("forked"))
    found.start("-c", "2", "-l", "INFO")
    yield found
    found.stop()
    found.app.close()


def places(shop: Shop, number: int) -> set[tuple[int, str]]:
    """Processes and threads that tasks run in which are called together, once there are several.

    One child may do all the work while another one starts, or the caller is held up.
    """
    seen: set[tuple[int, str]] = set()

    def are_several() -> bool:
        found = [shop.call("where", 0.3) for _ in range(number)]
        seen.update(tuple(one.get(timeout=TIMEOUT)) for one in found)
        return len(seen) > 1

    wait_until(are_several, TIMEOUT)
    return seen


# -- pools -------------------------------------------------------------------------------------------------


def test_prefork_runs_tasks_in_children(forked: Shop) -> None:
    pids = {pid for pid, _ in places(forked, 2)}
    assert len(pids) == 2 and forked.workers[0].pid not in pids


def test_spawned_children_are_fresh_interpreters(shop: Shop) -> None:
    shop.start("--pool-start-method", "spawn", "-c", "1")
    pid = shop.get("where")[0]
    assert b"minicelery" in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != shop.workers[0].pid
    assert b"-A" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # not the parent's fork


def test_solo_runs_tasks_in_the_workers_own_process(shop: Shop) -> None:
    shop.start("-P", "solo")
    assert shop.get("where") == [shop.workers[0].pid, "MainThread"]


def test_threads_run_tasks_side_by_side_in_one_process(shop: Shop) -> None:
    shop.start("-P", "threads", "-c", "4")
    found = places(shop, 4)
    assert len({pid for pid, _ in found}) == 1 and len({thread for _, thread in found}) > 1


def test_asyncio_runs_coroutines_side_by_side(shop: Shop) -> None:
    shop.start("-P", "asyncio", "-c", "100")
    shop.get("anap", 0)
    started = time.monotonic()
    found = [shop.call("anap", 1.0) for _ in range(50)]
    assert {one.get(timeout=TIMEOUT) for one in found} == {"slept"}
    assert time.monotonic() - started < 25


@each({"prefork": ["-c", "1"], "solo": ["-P", "solo"], "threads": ["-P", "threads", "-c", "2"]})
def test_an_async_def_task_runs_in_every_pool(shop: Shop, case: list[str]) -> None:
    shop.start(*case)
    assert shop.get("anap", 0.01) == "slept"


@each({"gevent": "gevent", "eventlet": "eventlet", "custom": "custom"})
def test_a_pool_that_is_not_there_is_refused_with_those_that_are(shop: Shop, case: str) -> None:
    worker = shop.start("-P", case)
    assert worker.wait(TIMEOUT) == 2
    assert case in shop.log() and "asyncio" in shop.log()


def test_processes_is_another_name_for_prefork(shop: Shop) -> None:
    shop.start("-P", "processes", "-c", "1")
    assert shop.get("where")[0] != shop.workers[0].pid


@each({"a number": ("3", 3), "auto": ("auto", None)})
def test_the_concurrency_is_the_number_of_children(shop: Shop, case: Any) -> None:
    given, expected = case
    shop.start("-c", given)
    shop.get("where")
    expected = expected or min(os.cpu_count() or 1, len(os.sched_getaffinity(0)))
    assert f"concurrency: {expected} (prefork)" in shop.log()


# -- limits ------------------------------------------------------------------------------------------------


def test_a_soft_limit_raises_in_the_task(forked: Shop) -> None:
    assert forked.get("clean", 30, soft_time_limit=1.0) == "cleaned up"


def test_a_hard_limit_ends_the_child_and_fails_the_task(forked: Shop) -> None:
    with pytest.raises(TimeLimitExceeded):
        forked.get("nap", 30, time_limit=0.2)
    assert forked.get("where")


@each({
    "time_limit in solo": ["-P", "solo", "--time-limit", "5"],
    "time_limit in threads": ["-P", "threads", "--time-limit", "5"],
    "soft_time_limit in threads": ["-P", "threads", "--soft-time-limit", "5"],
})  # fmt: skip
def test_a_limit_that_a_pool_cannot_enforce_is_refused_at_the_start(shop: Shop, case: list[str]) -> None:
    worker = shop.start(*case)
    assert worker.wait(TIMEOUT) != 0
    assert case[1] in shop.log() and case[2].strip("-").replace("-", "_") in shop.log()


def test_a_limit_cancels_a_coroutine(shop: Shop) -> None:
    shop.start("-P", "asyncio", "-c", "2")
    with pytest.raises(TimeLimitExceeded):
        shop.get("anap", 30, time_limit=0.2)
    assert shop.get("anap", 0) == "slept"


# -- recycling ---------------------------------------------------------------------------------------------


def test_a_child_is_replaced_after_so_many_tasks(shop: Shop) -> None:
    shop.start("-c", "1", "--max-tasks-per-child", "2")
    pids = [shop.get("where")[0] for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


def test_a_child_that_has_grown_too_large_is_replaced(shop: Shop) -> None:
    shop.start("-c", "1", "--max-memory-per-child", "200000")
    small = [shop.get("swell", 1) for _ in range(2)]
    large = shop.get("swell", 300)
    wait_until(lambda: shop.get("where")[0] != large, timeout=TIMEOUT)
    assert small == [large] * 2


def test_autoscale_adds_children_while_tasks_wait(shop: Shop) -> None:
    shop.start("--autoscale", "4,1")
    shop.get("where")
    assert 2 <= len({pid for pid, _ in places(shop, 16)}) <= 4


# -- revocation --------------------------------------------------------------------------------------------


def test_a_revoked_call_is_not_run(forked: Shop) -> None:
    for seconds in (0.3, 5.0, 15.0):
        sent = time.monotonic()
        found = forked.call("where", countdown=seconds)
        found.revoke()
        if time.monotonic() - sent < seconds:
            break  # else it may have run before it was revoked
    assert revoked(found)
    assert forked.get("where")


def test_a_revoked_call_is_not_run_by_a_worker_that_starts_later(shop: Shop) -> None:
    found = shop.call("where")
    found.revoke()
    shop.start("-c", "1", "-l", "INFO")
    assert shop.get("where") and revoked(found)
    wait_until(lambda: f"where[{found.id}] revoked" in shop.log())


@each({
    "prefork": (["-c", "1"], "nap"),
    "asyncio": (["-P", "asyncio", "-c", "4"], "anap"),
    "solo": (["-P", "solo"], "anap"),
})  # fmt: skip
def test_terminate_ends_a_running_task(shop: Shop, case: Any) -> None:
    options, name = case
    shop.start(*options)
    found = shop.call(name, 30)
    begun(found)
    found.revoke(terminate=True)
    assert revoked(found)
    assert shop.get("anap", 0) == "slept"


def test_terminate_takes_a_signal(shop: Shop) -> None:
    shop.start("-c", "1")
    found = shop.call("nap", 30)
    begun(found)
    found.revoke(terminate=True, signal="SIGKILL")
    assert revoked(found)
    assert shop.get("where")


def test_an_unknown_signal_is_refused(shop: Shop) -> None:
    found = shop.call("nap", 1)
    with pytest.raises(ValueError, match=r"SIGNOPE.*SIGTERM"):
        found.revoke(terminate=True, signal="SIGNOPE")


def test_several_calls_are_revoked_by_their_ids(shop: Shop) -> None:
    found = [shop.call("where") for _ in range(3)]
    shop.app.control.revoke([one.id for one in found[:2]])
    shop.start("-P", "solo")
    assert found[2].get(timeout=TIMEOUT)
    assert all(revoked(one) for one in found[:2])
