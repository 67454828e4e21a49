"""Orders to end a run, and children that take the places of others, when things go badly."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import minicelery
from minicelery.exceptions import SoftTimeLimitExceeded
from minicelery.worker.board import Board, Run
from minicelery.worker.orders import Orders, Terminate
from minicelery.worker.prefork import Supervisor
from minicelery.worker.roster import GROWTH, LINGERING, Child, Roster
from tests.waiting import wait_until
from tests.worker.harness import Stage, WorkerProcess

_WORKER = "ORDERS_UNDER_FIRE"
TASKS = {"imports": ["tests.worker.test_orders_under_fire"]}
"""For `conf`: has a worker import this module, and with it the tasks below."""
STUBBORN = 0.5
"""Seconds after which these workers kill a child that does not end a run, instead of 2."""

HELD = 45.0
"""Seconds after which a run that is held fails."""


def add_tasks(app: Any, path: Path) -> None:
    """The tasks that only these tests send."""
    from tests.worker.apps.tasks import Traces

    traces = Traces(path)

    @app.task(name="sleep_uninterrupted", bind=True)
    def sleep_uninterrupted(self: Any, seconds: float) -> str:
        """Sleep to the end, whatever is raised meanwhile."""
        traces.add("start", self.request.id)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                time.sleep(left)
            except SoftTimeLimitExceeded:
                traces.add("soft", self.request.id)
        traces.add("end", self.request.id)
        return "to the end"

    @app.task(name="hold_on", bind=True)
    def hold_on(self: Any, name: str) -> None:
        """As `hold`, whatever is raised meanwhile."""
        traces.add("start", self.request.id)
        end = time.monotonic() + HELD
        while True:
            try:
                while not Path(f"{path}-{name}").exists() and time.monotonic() < end:
                    time.sleep(0.02)
                return
            except SoftTimeLimitExceeded:
                traces.add("soft", self.request.id)

    @app.task(name="nap_with_arguments", bind=True)
    async def nap_with_arguments(self: Any, seconds: float, text: str, **more: str) -> None:
        import asyncio

        traces.add("start", self.request.id)
        await asyncio.sleep(seconds)

    @app.task(name="hold", bind=True)
    def hold(self: Any, name: str) -> None:
        """Until the test says so."""
        traces.add("start", self.request.id)
        wait_until(Path(f"{path}-{name}").exists, HELD)
        traces.add("end", self.request.id)


if _path := os.environ.get(_WORKER):
    from minicelery.worker import agent, prefork

    add_tasks(minicelery.current_app, Path(_path))
    prefork.STUBBORN, agent.TEND = STUBBORN, 0.1


@pytest.fixture(autouse=True)
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that import this module have the tasks above."""
    monkeypatch.setenv(_WORKER, str(tmp_path / "traces"))


def let_go(stage: Stage, *names: str) -> None:
    """Have the runs of `hold` end that were called with these names."""
    for name in names:
        Path(f"{stage.path}-{name}").touch()


def ended_by(worker: WorkerProcess, result: Any) -> str:
    """The signal that has ended its run, once one has; the state may say that it was revoked before that."""
    text = rf"\[{result.id}\] was terminated by (\w+)"
    return wait_until(lambda: re.search(text, worker.output()))[1]  # type: ignore[index]


# -- ending running tasks ------------------------------------------------------------------------


def test_ending_one_coroutine_leaves_its_neighbours_alone(stage: Stage) -> None:
    worker = stage.worker(pool="asyncio", concurrency=10, conf=TASKS)
    neighbours = stage.send_many("nap", [(1.5,)] * 5)
    wait_until(lambda: len(stage.runs()) == 5)
    ended = stage.send("nap", 30.0)  # the newest of all
    wait_until(lambda: stage.runs()[ended.id])
    ended.revoke(terminate=True)
    assert ended_by(worker, ended) == "SIGTERM"
    assert stage.wait_for(neighbours) == {"SUCCESS": 5}
    assert set(stage.runs().values()) == {1}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_thread_that_does_not_heed_its_revocation_goes_on_to_its_end(
    redis_stage: Stage, concurrency: int
) -> None:
    stage = redis_stage
    stage.worker(pool="threads", concurrency=concurrency, conf=TASKS)
    results = [stage.send("run", 2.0) for _ in range(min(concurrency, 2))]
    wait_until(lambda: len(stage.runs()) == len(results))
    results[-1].revoke(terminate=True)
    wait_until(lambda: stage.states(results) == {"SUCCESS": len(results)})
    assert set(stage.runs().values()) == {1}


@pytest.mark.parametrize("name", ["prefork", "solo"])
def test_sigusr1_ends_nothing_that_handles_the_soft_limit(redis_stage: Stage, name: str) -> None:
    stage = redis_stage
    stage.worker(pool=name, concurrency=1, conf=TASKS)
    result = stage.send("hold_on", "long")
    wait_until(lambda: stage.runs()[result.id])
    stage.app.control.terminate(result.id, signal="SIGUSR1")
    wait_until(lambda: stage.traces("soft"))
    time.sleep(0.3)  # in which it would come once more
    let_go(stage, "long")
    wait_until(lambda: stage.states([result]) == {"SUCCESS": 1})
    assert len(stage.traces("soft")) == 1


def test_sigusr1_raises_the_soft_limit_in_a_coroutine_as_well(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.worker(pool="asyncio", concurrency=4)
    results = [stage.send("careful_nap", 20.0), stage.send("careful_nap", 20.0, soft_time_limit=15)]
    wait_until(lambda: len(stage.runs()) == 2)
    for result in results:
        stage.app.control.terminate(result.id, signal="SIGUSR1")
    wait_until(lambda: stage.states(results) == {"SUCCESS": 2})
    assert [result.get() for result in results] == ["SoftTimeLimitExceeded"] * 2


@pytest.mark.parametrize("harder", ["SIGTERM", "SIGKILL"])
def test_a_second_harder_signal_is_obeyed_too(redis_stage: Stage, harder: str) -> None:
    stage = redis_stage
    worker = stage.worker(concurrency=1, conf=TASKS)
    result = stage.send("sleep_uninterrupted", 50.0)
    wait_until(lambda: stage.runs()[result.id])
    result.revoke(terminate=True, signal="SIGUSR1")
    wait_until(lambda: stage.traces("soft"))
    result.revoke(terminate=True, signal=harder)
    assert stage.wait_for([stage.send("run", 0.0)]) == {"SUCCESS": 1}
    assert not stage.ends()[result.id]
    assert ended_by(worker, result) == harder


def test_a_crash_after_sigusr1_is_a_crash(redis_stage: Stage) -> None:
    stage = redis_stage
    worker = stage.worker(concurrency=1, conf=TASKS)
    result = stage.send("sleep_uninterrupted", 50.0)
    wait_until(lambda: stage.runs()[result.id])
    result.revoke(terminate=True, signal="SIGUSR1")
    wait_until(lambda: stage.traces("soft"))
    worker.kill_child()
    wait_until(lambda: stage.traces("failure", result.id))
    assert stage.traces("failure", result.id)[0].detail == "WorkerLostError"


def test_a_crash_is_told_from_the_end_that_a_neighbour_was_ordered_to_make(stage: Stage) -> None:
    worker = stage.worker(pool="threads", concurrency=4, conf=TASKS)
    neighbour = stage.send("hold", "never")
    wait_until(lambda: len(stage.runs()) == 1)
    ended = stage.send("hold", "never")  # the newest of all
    wait_until(lambda: len(stage.runs()) == 2)
    ended.revoke(terminate=True)
    wait_until(lambda: "threads can't be terminated" in worker.output())
    worker.kill_child()
    assert stage.wait_for([neighbour]) == {"FAILURE": 1}
    assert ended_by(worker, ended) == "SIGTERM"
    assert not stage.traces("failure", ended.id)


def test_an_agent_that_is_restarted_gives_no_order_twice(redis_stage: Stage) -> None:
    stage = redis_stage
    worker = stage.worker(concurrency=2, conf=TASKS)
    warned = stage.send("sleep_uninterrupted", 50.0)
    ended = stage.send("sleep_uninterrupted", 50.0)
    wait_until(lambda: len(stage.runs()) == 2)
    warned.revoke(terminate=True, signal="SIGUSR1")
    wait_until(lambda: stage.traces("soft"))
    os.kill(worker.agent(), signal.SIGKILL)
    ended.revoke(terminate=True)
    assert ended_by(worker, ended) == "SIGTERM"
    assert [trace.what for trace in stage.traces("soft")] == [warned.id]


@pytest.fixture
def worn_stage(redis_stage: Stage) -> Stage:
    """A worker of children that leave after two tasks; of its first one a run was terminated."""
    stage = redis_stage
    stage.worker(pool="asyncio", concurrency=1, max_tasks_per_child=2, conf=TASKS)
    first = stage.send("nap", 30.0)
    wait_until(lambda: stage.runs()[first.id])
    first.revoke(terminate=True)
    slots = 2 * (1 + GROWTH) + 4  # as the board has them: after so many children one has the first's
    others = stage.send_many("noop", [()] * (2 * slots - 1))
    assert stage.wait_for(others, 40) == {"SUCCESS": len(others)}
    wait_until(lambda: len(stage.traces("child")) > slots)
    return stage


def test_a_run_is_terminated_though_one_of_its_slot_and_receipt_was_before(worn_stage: Stage) -> None:
    result = worn_stage.send("nap", 50.0)
    wait_until(lambda: worn_stage.runs()[result.id])
    result.revoke(terminate=True)
    assert worn_stage.wait_for([worn_stage.send("nap", 0.0)]) == {"SUCCESS": 1}
    assert ended_by(worn_stage.workers[0], result) == "SIGTERM"


def test_a_crash_is_not_taken_for_the_end_that_another_run_was_ordered_to_make(worn_stage: Stage) -> None:
    result = worn_stage.send("late_die", "kill")
    assert worn_stage.wait_for([result]) == {"FAILURE": 1}
    assert worn_stage.runs()[result.id] == 3


def orders_heard(pipe: int) -> list[bytes | Terminate]:
    return list(Orders(pipe).read()) if select.select([pipe], [], [], 0)[0] else []


def test_an_order_is_for_the_child_it_was_given_for_not_for_the_next_one_in_its_slot() -> None:
    def never(*_: Any) -> int:
        raise AssertionError("no process is started")

    supervisor = Supervisor("test", 1, never, never)
    pipe, end = os.pipe()
    slot = supervisor.board.slots[0]
    slot.open(4711, "second")
    supervisor.children[4711] = Child(4711, end, slot, 0.0, begun=True)
    for receipt, pid in ((1, 4710), (2, 4711), (2, 4711)):
        supervisor._hear(b"terminate", b"0", b"%d SIGTERM %d" % (receipt, pid))
    assert orders_heard(pipe) == [Terminate(2, signal.SIGTERM)]
    # Nor does it grow for ever.
    for receipt in range(3, 100):
        slot.write(receipt, 1.0)
        supervisor._hear(b"terminate", b"0", b"%d SIGTERM 4711" % receipt)
    assert supervisor.children[4711].ended == {99: "SIGTERM"}
    supervisor.children.clear()
    supervisor._kill_all()
    os.close(pipe)
    os.close(end)


def test_tasks_with_long_arguments_can_all_be_terminated(redis_stage: Stage) -> None:
    stage = redis_stage
    worker = stage.worker(pool="asyncio", concurrency=20, conf=TASKS)
    results = [
        stage.app.send_task("nap_with_arguments", (50.0, "x" * 2000), {"more": "y" * 2000}) for _ in range(20)
    ]
    wait_until(lambda: len(stage.runs()) == 20)
    for result in results[:1] + results[-1:]:
        result.revoke(terminate=True)
    assert [ended_by(worker, result) for result in (results[0], results[-1])] == ["SIGTERM"] * 2
    assert stage.wait_for([stage.send("nap", 0.0)]) == {"SUCCESS": 1}, "a place is free again"


@pytest.mark.parametrize(("places", "letter"), [(1, "x"), (1, "\N{SNAKE}"), (20, "x"), (1000, "\N{SNAKE}")])
def test_the_board_shows_less_of_the_arguments_rather_than_fewer_runs(places: int, letter: str) -> None:
    slot = Board(1, places).slots[0]
    texts = [str(number) + letter * 1000 for number in range(2 * places)]  # equal ones take less room
    slot.show(
        [
            Run(f"{n:036}", "tasks.run", n, 0.0, texts[2 * n], texts[2 * n + 1], "celery", True)
            for n in range(places)
        ]
    )
    shown = slot.runs()
    assert [(run.id, run.receipt) for run in shown] == [(f"{n:036}", n) for n in range(places)]
    assert all(texts[2 * run.receipt].startswith(run.args) for run in shown)
    assert all(texts[2 * run.receipt + 1].startswith(run.kwargs) for run in shown)
    assert min(len(run.args) for run in shown) == max(len(run.args) for run in shown) > 0


def test_the_board_leaves_out_what_has_no_room_at_all_and_nothing_else() -> None:
    slot = Board(1, 4).slots[0]
    ids = ["first", "x" * 20_000, "third", "fourth"]
    slot.show([Run(id, "run", n, 0.0, "", "", "celery", True) for n, id in enumerate(ids)])
    assert {run.id for run in slot.runs()} == {"first", "third"}


# -- replacing -------------------------------------------------------------------------------------


def test_one_slow_task_of_a_worn_child_does_not_stop_the_pool(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.worker(pool="threads", concurrency=4, max_tasks_per_child=4, conf=TASKS)
    slow = stage.send("hold", "slow")
    quick = stage.send_many("run", [(0.0,)] * 11)
    assert stage.wait_for(quick) == {"SUCCESS": 11}
    assert Counter(trace.pid for trace in stage.traces("start")) == Counter(
        dict.fromkeys({trace.pid for trace in stage.traces("start")}, 4)
    )
    let_go(stage, "slow")
    assert stage.wait_for([slow]) == {"SUCCESS": 1}


def test_only_so_many_children_are_at_their_last_tasks_while_others_have_their_places(
    redis_stage: Stage,
) -> None:
    stage = redis_stage
    worker = stage.worker(pool="threads", concurrency=2, max_tasks_per_child=2, conf=TASKS)
    names = [f"slow-{number}" for number in range(LINGERING + 3)]
    slow = [stage.send("hold", name) for name in names[: LINGERING + 1] for _ in (1, 2)]
    wait_until(lambda: len(stage.runs()) == len(slow), 25)
    # Its place is that of the last one that began: another one's is free when that one has gone.
    wait_until(lambda: len(worker.children()) == LINGERING + 2)
    slow += [stage.send("hold", name) for name in names[LINGERING + 1 :]]
    time.sleep(0.3)
    assert len(stage.runs()) == 2 * (LINGERING + 1)
    let_go(stage, names[0])
    wait_until(lambda: len(stage.runs()) == len(slow))
    let_go(stage, *names)
    assert stage.wait_for(slow) == {"SUCCESS": len(slow)}
    wait_until(lambda: len(worker.children()) == 2)  # one that works, and one that stands by


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_no_child_runs_more_than_its_share(redis_stage: Stage, pool: str) -> None:
    stage = redis_stage
    stage.worker(pool=pool, concurrency=8, max_tasks_per_child=50, conf=TASKS)
    results = stage.send_many("run" if pool == "threads" else "nap", [(0.0,)] * 1000)
    assert stage.wait_for(results) == {"SUCCESS": 1000}
    assert set(Counter(trace.pid for trace in stage.traces("start")).values()) == {50}


def test_a_child_whose_whole_share_fits_its_places_has_one_successor_while_it_waits(
    redis_stage: Stage,
) -> None:
    stage = redis_stage
    worker = stage.worker(pool="threads", concurrency=4, max_tasks_per_child=3, conf=TASKS)
    wait_until(lambda: len(worker.children()) == 2)
    results = [stage.send("hold", "all") for _ in range(2)]
    wait_until(lambda: len(stage.runs()) == 2)
    assert len({trace.pid for trace in stage.traces("start")}) == 1
    assert len(worker.children()) == 2
    results.append(stage.send("hold", "all"))
    wait_until(lambda: len(worker.children()) == 3)
    let_go(stage, "all")
    assert stage.wait_for(results) == {"SUCCESS": 3}
    assert len({trace.pid for trace in stage.traces("start")}) == 1


def test_revoking_without_terminate_says_nothing_of_what_runs(redis_stage: Stage) -> None:
    """It goes on, and its state is its own."""
    stage = redis_stage
    stage.worker(concurrency=1)
    result = stage.send("run", 0.7)
    wait_until(lambda: stage.runs()[result.id])
    result.revoke()
    assert result.get(timeout=20)


def heavy_children(roster: Roster, number: int) -> list[Child]:
    """Children that work, and are too big."""
    board = Board(number)
    children = [
        Child(pid, -1, board.slots[pid - 1], 0.0, ready=1.0, begun=True, heavy_until=1.0)
        for pid in range(1, number + 1)
    ]
    roster.children.update({child.pid: child for child in children})
    return children


@pytest.mark.parametrize(("lingering", "relieved"), [(0, 2), (LINGERING, 1)])
def test_a_big_child_that_lingers_is_the_only_one_to_be_replaced(lingering: int, relieved: int) -> None:
    """In prefork it is at its last task: another may go."""
    roster = Roster(3, lingering=lingering)
    children = heavy_children(roster, 3)
    roster.choose_relieved(2.0)
    assert [child.relieved for child in children] == [True, False, False]
    children[0].leave()
    roster.choose_relieved(2.0)
    assert sum(child.relieved for child in children) == relieved
    del roster.children[1]
    roster.choose_relieved(2.0)
    assert children[1].relieved
