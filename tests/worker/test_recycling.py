"""Replacing children: before they leave, one for one, and never in the middle of a task."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from minicelery.worker import prefork, roster
from minicelery.worker.prefork import Supervisor
from minicelery.worker.roster import Child
from minicelery.worker.starting import Post, await_gate
from tests.waiting import wait_until
from tests.worker.harness import Stage, Trace, kill_repeatedly


class Recruits:
    """A Starter whose processes do nothing until they are let go; it keeps what they are ordered."""

    shared = False

    def __init__(self) -> None:
        self.fds: dict[int, tuple[int, int]] = {}  # pid -> its orders, and what ends it
        self.started: list[int] = []

    def start(self, post: Post, foreign: Iterable[int]) -> int:
        read, end = os.pipe()
        pid = os.posix_spawn(
            "/bin/sh", ["sh", "-c", "read code; exit $code"], os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
        )  # fmt: skip
        os.close(read)
        orders = os.dup(post.orders)
        os.set_blocking(orders, False)
        self.fds[pid] = orders, end
        self.started.append(pid)
        return pid

    def orders(self, child: Child) -> bytes:
        """All that it was ordered since the last call."""
        try:
            return os.read(self.fds[child.pid][0], 4096)
        except BlockingIOError:
            return b""

    def let_go(self, child: Child, code: int = 0) -> None:
        os.write(self.fds[child.pid][1], b"%d\n" % code)

    def close(self) -> None:
        for fd in (fd for pair in self.fds.values() for fd in pair):
            os.close(fd)


class Pool:
    """A Supervisor that is driven step by step."""

    def __init__(self, concurrency: int, **options: Any) -> None:
        self.recruits = Recruits()
        self.supervisor = Supervisor(
            "test", concurrency, lambda *_: 0, lambda *_: 0, starter=self.recruits, **options
        )
        self.step()

    def step(self) -> list[Child]:
        """What the parent does each time it wakes up; the children that are new."""
        before = set(self.supervisor.children)
        self.supervisor._reap()
        self.supervisor._read_reports()
        self.supervisor._kill_late()
        self.supervisor._start_missing()
        return [child for pid, child in self.supervisor.children.items() if pid not in before]

    def children(self) -> list[Child]:
        return list(self.supervisor.children.values())

    def say(self, word: str, child: Child, *numbers: object) -> list[Child]:
        """Have a child report something."""
        index = self.index(child)
        os.write(self.supervisor._report_end, f"{' '.join(map(str, (word, index, *numbers)))}\n".encode())
        return self.step()

    def index(self, child: Child) -> int:
        assert child.slot is not None
        return self.supervisor.board.slots.index(child.slot)

    def begin(self, child: Child, receipt: int = 1) -> None:
        """Have it run a task, by the board."""
        assert child.slot is not None
        child.slot.pid = child.pid
        child.slot.write(receipt, time.monotonic())

    def end(self, child: Child, code: int = 0) -> list[Child]:
        """Have it leave; the children that are new then."""
        assert child.slot is not None
        child.slot.write(1, 0.0)
        self.recruits.let_go(child, code)
        new: list[Child] = []
        wait_until(lambda: new.extend(self.step()) or child.pid not in self.supervisor.children)
        return new

    def orders(self, child: Child) -> bytes:
        return self.recruits.orders(child)

    def close(self) -> None:
        self.supervisor._kill_all()
        self.recruits.close()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(prefork, "STUBBORN", 1000.0)
    pool = Pool(2)
    yield pool
    pool.close()


# -- the parent by itself --------------------------------------------------------------------


def test_a_childs_replacement_is_made_ready_at_once_and_begins_when_it_has_gone(pool: Pool) -> None:
    old, other = pool.children()
    assert (pool.orders(old), pool.orders(other)) == (b"g", b"g")
    (new,) = pool.say("worn", old)
    pool.say("ready", new)
    assert pool.orders(new) == b""
    assert pool.orders(old) == b""  # it leaves by itself
    assert pool.end(old) == []
    assert pool.orders(new) == b"g"
    assert len(pool.children()) == 2


def test_no_more_children_begin_than_were_asked_for_however_many_are_worn(pool: Pool) -> None:
    first = pool.children()
    new = [one for child in first for one in pool.say("worn", child)]
    assert len(new) == 2
    for child in first:
        assert pool.step() == []
        assert pool.orders(child) == b"g"
    assert [pool.orders(child) for child in new] == [b"", b""]
    pool.say("ready", new[1])
    pool.end(first[0])
    assert [pool.orders(child) for child in new] == [b"", b"g"]  # the one that is ready


def test_a_child_over_its_memory_limit_is_told_to_stop_once_the_new_one_is_ready(pool: Pool) -> None:
    old, other = pool.children()
    pool.orders(old)
    (new,) = pool.say("worn", old, 210_000, 90_000, 200_000)
    assert pool.orders(old) == b""
    pool.begin(old)
    pool.say("ready", new)
    assert pool.orders(old) == b"s"
    assert not old.killed
    pool.end(old)
    assert pool.orders(new) == b"g"
    assert pool.orders(other) == b"g"


def test_children_over_their_memory_limit_are_replaced_one_after_the_other(pool: Pool) -> None:
    one, other = pool.children()
    (new,) = pool.say("worn", one, 210_000, 90_000, 200_000)
    assert pool.say("worn", other, 210_000, 90_000, 200_000) == []
    (next,) = [*pool.say("ready", new), *pool.step()]
    assert b"s" in pool.orders(one)
    pool.say("ready", next)
    assert b"s" in pool.orders(other)


def test_a_child_too_big_from_its_birth_stays_and_is_replaced_ever_more_slowly(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    kept = []
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            child = pool.children()[0]
            pool.orders(child)
            before = time.monotonic()
            assert pool.say("worn", child, 120_000, 110_000, 100_000) == []
            kept.append((child.heavy_until - time.monotonic(), child.heavy_until - before))
            assert pool.orders(child) == b""
            child.heavy_until = 0.0
    assert all(least <= pause <= most for (least, most), pause in zip(kept, (10, 20, 40, 80), strict=True))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "took 110000 KiB before its first task, more than max_memory_per_child=100000 allows" in said[0]


def test_a_child_too_big_from_its_birth_is_replaced_after_the_pause(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "HEAVY_PAUSE", 0.05)
    child = pool.children()[0]
    (new,) = pool.say("worn", child, 120_000, 110_000, 100_000) or wait_until(pool.step)
    pool.say("ready", new)
    assert b"s" in pool.orders(child)


def test_a_pool_outlives_a_system_that_has_no_room_for_another_process(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old, other = pool.children()
    free = len(pool.supervisor.free)

    def refuse(post: Post, foreign: Iterable[int]) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    start = pool.recruits.start
    monkeypatch.setattr(pool.recruits, "start", refuse)
    assert pool.say("worn", old) == []
    assert pool.children() == [old, other]
    assert len(pool.supervisor.free) == free
    assert "No process can be started: [Errno 11] Resource temporarily unavailable" in caplog.text
    monkeypatch.setattr(pool.recruits, "start", start)
    assert len(wait_until(pool.step)) == 1


def test_a_report_of_a_child_that_has_gone_is_not_taken_for_its_successors(pool: Pool) -> None:
    old = pool.children()[0]
    index = pool.index(old)
    os.write(pool.supervisor._report_end, b"worn %d\n" % index)
    pool.supervisor.free.clear()  # so that the next one takes this slot
    (new,) = pool.end(old)
    assert pool.index(new) == index
    assert not new.going


def test_a_child_that_dies_at_its_work_is_replaced_by_the_one_that_stands_by(pool: Pool) -> None:
    old = pool.children()[0]
    (new,) = pool.say("worn", old)
    pool.begin(old)
    assert pool.end(old, code=3) == []
    assert pool.orders(new) == b"g"


def test_a_termination_is_passed_on_and_enforced(pool: Pool) -> None:
    child = pool.children()[0]
    pool.orders(child)
    pool.begin(child, receipt=7)
    pool.say("terminate", child, 7, "SIGTERM", child.pid)
    assert pool.orders(child) == b"t7 SIGTERM\n"
    assert child.killed is None
    pool.say("terminate", child, 7, "SIGTERM", child.pid)
    assert child.doomed is not None
    assert child.doomed[1] < time.monotonic() + prefork.STUBBORN
    child.doomed = (7, time.monotonic() - 0.01)
    pool.step()
    assert child.killed == "revoked: SIGKILL"
    wait_until(lambda: pool.step() or child.pid not in pool.supervisor.children)
    assert pool.supervisor.unsettled == {pool.index(child): "revoked: SIGKILL"}


def test_a_child_that_has_begun_another_task_is_not_killed_for_the_one_before(pool: Pool) -> None:
    child = pool.children()[0]
    pool.begin(child, receipt=7)
    pool.say("terminate", child, 7, "SIGTERM", child.pid)
    pool.begin(child, receipt=8)
    child.doomed = (7, time.monotonic() - 0.01)
    pool.step()
    assert child.killed is None
    assert child.doomed is None


def test_a_pool_grows_and_shrinks_by_hand_idle_children_first(pool: Pool) -> None:
    crew = pool.supervisor.roster
    busy, idle = pool.children()
    pool.begin(busy)
    crew.shrink()
    assert (pool.orders(busy), pool.orders(idle)) == (b"g", b"gs")
    assert pool.end(idle) == []
    crew.grow(3)
    assert len(pool.step()) == 3
    crew.shrink(3)
    assert pool.orders(busy) == b""
    with pytest.raises(ValueError, match="shrink by 1: this worker has 1 children, and one must stay"):
        crew.shrink()
    with pytest.raises(ValueError, match="has 1 children and room for 10"):
        crew.grow(10)


def test_a_child_behind_the_gate_leaves_when_it_is_told_to() -> None:
    for order, expected in ((b"g", True), (b"s", False), (b"q", False), (b"", False)):
        orders, order_end = os.pipe()
        reports, report_end = os.pipe()
        os.write(order_end, order)
        os.close(order_end)
        assert await_gate(5, orders, report_end) is expected
        assert os.read(reports, 100) == b"ready 5\n"
        for fd in (orders, reports, report_end):
            os.close(fd)


# -- real workers ----------------------------------------------------------------------------


def test_no_task_is_lost_or_doubled_while_children_are_replaced(stage: Stage) -> None:
    took = []
    for options in ({}, {"max_tasks_per_child": 50}):
        worker = stage.worker(**options)
        began = time.monotonic()
        results = stage.send_many("run", [(0.0,)] * 2000)
        assert stage.wait_for(results, timeout=30) == {"SUCCESS": 2000}
        took.append(time.monotonic() - began)
        worker.term()
        assert worker.wait() == 0
        assert not {result.id for result in results} - set(stage.ends())
    assert set(stage.runs().values()) == {1}
    assert len(stage.traces("child")) >= 2 + 40
    print(
        f"2000 tasks in {took[0]:.2f} s, in {took[1]:.2f} s with a new child after 50: {took[1] / took[0]:.2f}"
    )


def most_at_once(starts: list[Trace], ends: list[Trace]) -> int:
    running = most = 0
    for _, step in sorted([(trace.time, 1) for trace in starts] + [(trace.time, -1) for trace in ends]):
        running += step
        most = max(most, running)
    return most


def test_a_child_for_each_task_runs_no_more_tasks_at_once_than_asked_for(leased_stage: Stage) -> None:
    stage = leased_stage
    worker = stage.worker(max_tasks_per_child=1, concurrency=2)
    results = stage.send_many("run", [(0.2,)] * 12)
    assert stage.wait_for(results) == {"SUCCESS": 12}
    assert most_at_once(stage.traces("start"), stage.traces("end")) == 2
    assert len({trace.pid for trace in stage.traces("start")}) == 12
    worker.term()
    assert worker.wait() == 0


def test_the_replacement_of_a_child_with_a_long_last_task_is_ready_when_that_ends(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.worker(max_tasks_per_child=1, concurrency=1)
    first, second = stage.send("run_until_told"), stage.send("run", 0.0)
    wait_until(lambda: stage.runs()[first.id] and len(stage.traces("child")) == 2)
    stage.tell()
    assert stage.wait_for([first, second]) == {"SUCCESS": 2}
    end = next(trace for trace in stage.traces("end") if trace.what == first.id)
    start = next(trace for trace in stage.traces("start") if trace.what == second.id)
    ready = next(trace for trace in stage.traces("child") if trace.pid == start.pid)
    assert ready.time < end.time < start.time


def test_a_child_that_has_grown_too_big_is_replaced_between_tasks(leased_stage: Stage) -> None:
    stage = leased_stage
    worker = stage.worker(concurrency=1, max_memory_per_child=100_000)
    for _ in range(3):
        result = stage.send("swell", 100)
        assert stage.wait_for([result]) == {"SUCCESS": 1}
        wait_until(lambda pid=result.result: pid not in worker.children())  # type: ignore[misc]
    assert max(stage.runs().values()) == 1
    assert "and is replaced" in worker.output()
    assert "is lost" not in worker.output()


def test_a_limit_below_what_a_fresh_child_takes_is_said_once_and_tasks_go_on(redis_stage: Stage) -> None:
    stage = redis_stage
    worker = stage.worker(max_memory_per_child=1000)
    results = stage.send_many("run", [(0.002,)] * 200)
    assert stage.wait_for(results) == {"SUCCESS": 200}
    assert set(stage.runs().values()) == {1}
    assert len(stage.traces("child")) == 2
    wait_until(lambda: "more than max_memory_per_child=1000 allows" in worker.output())
    assert worker.output().count("more than max_memory_per_child=1000 allows") == 1


@pytest.mark.slow
def test_no_late_task_is_lost_while_children_are_replaced_and_killed(leased_stage: Stage) -> None:
    stage = leased_stage
    worker = stage.worker(concurrency=3, max_tasks_per_child=7, conf={"task_delivery_cap": 1000})
    results = stage.send_many("late_run", [(0.01,)] * 600)
    end = time.monotonic() + 20

    def over(killed: int) -> bool:
        return time.monotonic() > end or set(stage.states(results)) == {"SUCCESS"}

    killed = kill_repeatedly(worker, 0.15, over, random.Random(3).choice)
    assert stage.wait_for(results, 30) == {"SUCCESS": 600}
    assert killed > 3
    assert set(stage.ends()) == {result.id for result in results}
    worker.term()
    assert worker.wait() == 0


def test_a_worker_stops_while_a_replacement_stands_by(leased_stage: Stage) -> None:
    stage = leased_stage
    worker = stage.worker(max_tasks_per_child=1, concurrency=2)
    running = stage.send_many("run_until_told", [()] * 2)
    wait_until(lambda: len(stage.traces("child")) == 4)
    worker.term()
    assert worker.end_what_runs() == 0
    assert stage.states(running) == {"SUCCESS": 2}
    assert not worker.processes()


def test_a_replacement_that_is_killed_while_it_stands_by_is_replaced(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.worker(max_tasks_per_child=1, concurrency=1)
    results = [stage.send("run_until_told"), stage.send("run", 0.0)]
    standing_by = wait_until(lambda: [trace.pid for trace in stage.traces("child")][1:])[0]
    os.kill(standing_by, signal.SIGKILL)
    wait_until(lambda: len(stage.traces("child")) == 3)
    stage.tell()
    assert stage.wait_for(results) == {"SUCCESS": 2}
    assert set(stage.runs().values()) == {1}
