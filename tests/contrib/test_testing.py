"""The testing kit: running queues here and now, moving time, what was sent, embedded workers."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import unittest
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, _state, chain, chord, group, shared_task, signals
from minicelery.broker.memory.store import _stores
from minicelery.contrib.testing import (
    Outbox,
    TestApp,
    assert_enqueued,
    in_memory,
    run_until_idle,
    start_worker,
    time_travel,
)
from minicelery.contrib.testing.app import setup_default_app
from minicelery.exceptions import ImproperlyConfigured, Reject
from minicelery.schedules import crontab
from tests.waiting import wait_until

NEW_YEAR = datetime(2030, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def app() -> Iterator[TestApp]:
    made = TestApp()

    @made.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @made.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    with setup_default_app(made):
        yield made


def names(runs: list[Any]) -> list[str]:
    return [run.name for run in runs]


# -- run_until_idle ----------------------------------------------------------------------------


def test_what_is_queued_is_run_with_all_that_follows(app: TestApp) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    steps = chain(add.s(1, 2), add.s(3)).delay()
    body = chord(group(add.s(n, n) for n in range(3)), total.s()).delay()
    runs = run_until_idle(app)
    assert sorted(names(runs)) == ["add"] * 5 + ["total"]
    assert (steps.get(timeout=1), body.get(timeout=1)) == (6, 6)
    assert run_until_idle(app) == []
    assert repr(runs[0]) == "<Run of add: SUCCESS 3>"
    assert (runs[0].args, runs[0].state, runs[0].value) == ((1, 2), "SUCCESS", 3)


def test_every_end_of_a_run_is_told(app: TestApp) -> None:
    @app.task(bind=True, max_retries=1)
    def ends(self: Any, how: str) -> None:
        if how == "retry":
            raise self.retry(countdown=0, exc=ValueError("again"))
        if how == "reject":
            raise Reject("no")
        raise KeyError(how)

    @app.task
    async def later() -> str:
        await asyncio.sleep(0)
        return "done"

    for how in ("fail", "reject"):
        ends.delay(how)
    app.tasks["add"].delay(1, 1).revoke()
    later.delay()
    assert [run.state for run in run_until_idle(app)] == ["FAILURE", "REJECTED", "REVOKED", "SUCCESS"]
    ends.delay("retry")
    first, second = run_until_idle(app)
    assert (first.state, second.state, str(second.value)) == ("RETRY", "FAILURE", "again")
    ends.delay("fail")
    with pytest.raises(KeyError, match="fail"):
        run_until_idle(app, propagate=True)


def test_only_the_queues_that_are_named_are_run(app: TestApp) -> None:
    app.tasks["add"].apply_async((1, 1), queue="mail")
    app.tasks["add"].delay(2, 2)
    assert [run.args for run in run_until_idle(app, queues=["mail"])] == [(1, 1)]
    assert [run.args for run in run_until_idle(app)] == [(2, 2)]


def test_tasks_that_never_come_to_an_end_are_told(app: TestApp) -> None:
    @app.task(name="ping")
    def ping() -> None:
        ping.delay()

    ping.delay()
    with pytest.raises(
        AssertionError, match="after 20 runs there are still tasks ready; the last were of ping"
    ):
        run_until_idle(app, limit=20)


def test_another_broker_than_memory_is_refused_in_words() -> None:
    other = Celery("other", broker="sqlite:////tmp/not-there/queue.db", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match=r"at sqlite:.*, not in memory; use a TestApp"):
        run_until_idle(other)


# -- apps --------------------------------------------------------------------------------------


def test_each_test_app_has_queues_of_its_own_and_leaves_nothing(app: TestApp) -> None:
    other = TestApp(config={"broker_url": "memory://", "task_always_eager": False})
    with setup_default_app(other):
        app.tasks["add"].delay(1, 1)
        assert other.broker.size("celery") == 0
        assert other.store_name in _stores
    assert other.store_name not in _stores
    assert _state._apps.current is not other


def test_the_queues_of_an_app_go_with_it() -> None:
    made = TestApp()
    made.send_task("add")
    assert made.store_name in _stores
    name = made.store_name
    made.close()
    del made
    gc.collect()
    assert name not in _stores


class TestUnderUnittest(unittest.IsolatedAsyncioTestCase):
    async def test_the_kit_works_in_an_event_loop_without_pytest(self) -> None:
        made = TestApp()
        made.task(name="add")(lambda x, y: x + y)

        @made.task
        async def later(x: int) -> int:
            await asyncio.sleep(0)
            return x

        result = await later.adelay(1)
        with assert_enqueued("add", times=1):
            await made.asend_task("add", (1, 2))
        assert [run.value for run in run_until_idle(made)] == [1, 3]
        assert await result.aget(timeout=5) == 1
        with start_worker(made):
            assert await (await later.adelay(5)).aget(timeout=20) == 5
        made.close()


def test_a_programs_own_app_is_in_memory_for_a_while(redis_url: str, app: TestApp) -> None:
    mine = Celery("mine", broker="redis://127.0.0.1:1/0", backend=redis_url, set_as_current=False)
    mine.conf.task_always_eager = True

    @mine.task(name="mine.add")
    def add(x: int, y: int) -> int:
        return x + y

    with in_memory(mine):
        result = add.delay(1, 2)
        assert mine.broker.size("celery") == 1
        run_until_idle(mine)
        assert result.get(timeout=1) == 3
    assert (mine.conf.broker_url, mine.conf.result_backend) == ("redis://127.0.0.1:1/0", redis_url)
    assert mine.conf.task_always_eager
    assert mine.broker.url.startswith("redis://")


def test_the_trap_says_who_asks_and_what_to_do() -> None:
    trapped = TestApp()
    with setup_default_app(trapped, use_trap=True):
        with pytest.raises(RuntimeError, match=r"Test depends on current_app: .* 'tasks'; pass the app on"):
            shared_task(name="nobodys")(lambda: None).delay()
        trapped.task(name="own")(lambda: 1).delay()
        assert [run.value for run in run_until_idle(trapped)] == [1]


# -- time --------------------------------------------------------------------------------------


def test_what_is_delayed_runs_at_its_time(app: TestApp) -> None:
    seen: list[datetime] = []

    @app.task(name="note")
    def note() -> None:
        seen.append(app.now())

    with time_travel(app, NEW_YEAR) as clock:
        note.apply_async(countdown=3600)
        note.apply_async(eta=NEW_YEAR + timedelta(minutes=30))
        late = note.apply_async(countdown=7200, expires=3600)
        assert clock.forward(minutes=29) == []
        assert names(clock.forward(60)) == ["note"]
        assert names(clock.forward(timedelta(hours=1))) == ["note"]
        assert [run.state for run in clock.to(NEW_YEAR + timedelta(days=1))] == ["REVOKED"]
        assert late.state == "REVOKED"
        assert clock.now() == app.now() == NEW_YEAR + timedelta(days=1)
    assert [moment - NEW_YEAR for moment in seen] == [timedelta(minutes=30), timedelta(hours=1)]
    assert app.now().year < 2030


def test_retries_wait_for_their_time(app: TestApp) -> None:
    @app.task(name="fetch", autoretry_for=(OSError,), max_retries=3, retry_backoff=True, retry_jitter=False)
    def fetch() -> None:
        moments.append(clock.time)
        raise OSError("away")

    moments: list[float] = []
    with time_travel(app) as clock:
        fetch.delay()
        runs = clock.forward(hours=1)
    assert [run.state for run in runs] == ["RETRY"] * 3 + ["FAILURE"]
    assert [round(moment - moments[0]) for moment in moments] == [0, 1, 3, 7]


def test_periodic_tasks_are_sent_when_they_are_due(app: TestApp) -> None:
    moments: list[tuple[str, datetime]] = []

    @app.task(name="tick")
    def tick(name: str) -> None:
        moments.append((name, app.now()))

    app.conf.beat_schedule = {
        "every ten": {"task": "tick", "schedule": 600.0, "args": ("ten",)},
        "at two": {"task": "tick", "schedule": crontab(hour=2, minute=0), "args": ("two",)},
    }
    with time_travel(app, NEW_YEAR) as clock:
        clock.forward(minutes=31)
        assert [moment - NEW_YEAR for _, moment in moments] == [timedelta(minutes=n) for n in (10, 20, 30)]
        clock.to(NEW_YEAR + timedelta(days=2, minutes=-1))
    assert [moment for name, moment in moments if name == "two"] == [
        NEW_YEAR + timedelta(hours=2), NEW_YEAR + timedelta(days=1, hours=2)
    ]  # fmt: skip
    assert len([name for name, _ in moments if name == "ten"]) == 2 * 24 * 6 - 1


def test_limits_and_expired_results_go_by_it_too(app: TestApp) -> None:
    @app.task(name="slow", rate_limit="1/m")
    def slow() -> float:
        return clock.time

    app.conf.result_expires = 60
    with time_travel(app) as clock:
        began, results = clock.time, [slow.delay() for _ in range(3)]
        runs = clock.forward(minutes=5)
        assert [round(run.value - began) for run in runs] == [0, 60, 120]
        assert not results[0].exists()


def test_there_is_one_time_at_once(app: TestApp) -> None:
    with time_travel(app, NEW_YEAR) as clock:
        again = pytest.raises(RuntimeError, match="time stands still already: move it by the Clock")
        with again, time_travel(app, NEW_YEAR):
            pass
        assert app.now() == clock.now() == NEW_YEAR
    with pytest.raises(KeyError), time_travel(app, NEW_YEAR):
        raise KeyError
    with time_travel(app) as clock:
        assert clock.time == pytest.approx(time.time(), abs=60)


def test_time_does_not_go_back_and_naive_times_are_refused(app: TestApp) -> None:
    with pytest.raises(ValueError, match="has no time zone"), time_travel(app, datetime(2030, 1, 1)):
        pass
    with time_travel(app, NEW_YEAR) as clock:
        with pytest.raises(ValueError, match="time goes forward only, and -86400 s"):
            clock.to(NEW_YEAR - timedelta(days=1))
        with pytest.raises(ValueError, match="has no time zone"):
            clock.to(datetime(2031, 1, 1))


# -- what was sent -----------------------------------------------------------------------------


def test_the_outbox_has_what_was_sent_in_order(app: TestApp) -> None:
    add = app.tasks["add"]
    outbox = Outbox()
    try:
        add.delay(1, 2)
        add.apply_async(kwargs={"x": 1, "y": 2}, queue="mail", eta=NEW_YEAR)
        app.send_task("elsewhere.run")
        assert [str(sent) for sent in outbox] == ["add(1, 2)", "add(x=1, y=2)", "elsewhere.run()"]
        assert [sent.queue for sent in outbox] == ["celery", "mail", "celery"]
        assert outbox[1].eta == NEW_YEAR
        assert outbox.assert_enqueued(add, (1, 2), times=1) == [outbox[0]]
        assert outbox.assert_enqueued("add", queue="mail", eta=NEW_YEAR)[0].kwargs == {"x": 1, "y": 2}
        assert len(outbox.of(add)) == 2
        outbox.assert_enqueued("never", times=0)
        with pytest.raises(AssertionError) as told:
            outbox.assert_enqueued(add, (3, 4), queue="mail")
        assert str(told.value) == (
            "add args=(3, 4) queue='mail' was to be sent at least once, and was not at all; sent were\n"
            "  add(1, 2) to celery\n  add(x=1, y=2) to mail at 2030-01-01 00:00:00+00:00\n  elsewhere.run() to celery"
        )
        outbox.clear()
        assert not outbox
    finally:
        outbox.close()
    add.delay(1, 2)
    assert not outbox


def test_a_block_of_code_is_asserted_to_send_a_task(app: TestApp) -> None:
    add = app.tasks["add"]
    with assert_enqueued(add, (1, 2)) as sent:
        add.delay(1, 2)
    assert [one.args for one in sent] == [(1, 2)]
    with (
        pytest.raises(AssertionError, match="was to be sent 2 times, and was once"),
        assert_enqueued(add, times=2),
    ):
        add.delay(1, 2)
    with pytest.raises(AssertionError, match="sent were no tasks"), assert_enqueued(add):
        pass


def test_tasks_are_noted_whatever_their_names_begin_with(app: TestApp) -> None:
    named = app.task(name="celery.tests.add")(lambda: None)
    with assert_enqueued(named, times=1):
        named.delay()


def test_retries_are_no_calls(app: TestApp) -> None:
    @app.task(name="again", bind=True, max_retries=2)
    def again(self: Any) -> None:
        raise self.retry(countdown=0)

    with assert_enqueued(again, times=1):
        again.delay()
        assert len(run_until_idle(app)) == 3


# -- workers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "threads", "asyncio"])
def test_a_worker_in_threads_runs_tasks_and_ends(app: TestApp, pool: str) -> None:
    @app.task(name="where", time_limit=30, soft_time_limit=20)
    def where() -> str:
        return threading.current_thread().name

    @app.task(name="later")
    async def later() -> int:
        await asyncio.sleep(0.01)
        return 1

    before = set(threading.enumerate())
    with start_worker(app, pool=pool, concurrency=3, shutdown_timeout=20) as worker:
        assert where.delay().get(timeout=20) != threading.main_thread().name
        assert [later.delay().get(timeout=20) for _ in range(3)] == [1, 1, 1]
        defined = app.task(name="defined")(lambda: "meanwhile")
        worker.reload()
        assert defined.delay().get(timeout=20) == "meanwhile"
        assert app.control.ping(timeout=20, limit=1) == [{worker.hostname: {"ok": "pong"}}]
    assert app.broker.size("celery") == 0
    wait_until(lambda: set(threading.enumerate()) <= before)  # listeners of results linger for a second


def test_a_solo_worker_runs_one_task_at_a_time(app: TestApp) -> None:
    running, most = threading.Semaphore(1), []

    @app.task(name="alone")
    def alone() -> None:
        most.append(running.acquire(blocking=False))
        threading.Event().wait(0.02)
        running.release()

    with start_worker(app, concurrency=8):
        for result in [alone.delay() for _ in range(5)]:
            result.get(timeout=20)
    assert most == [True] * 5


def test_no_task_has_to_be_registered_for_the_check_and_its_queue_may_be_any(app: TestApp) -> None:
    with start_worker(app, queues="mail,news"):
        result = app.tasks["add"].apply_async((1, 1), queue="news")
        assert result.get(timeout=20) == 2


def test_a_shutdown_by_remote_control_ends_the_worker_and_not_the_test(app: TestApp) -> None:
    over = threading.Event()
    signals.worker_shutdown.connect(over_set := (lambda **_: over.set()))
    with start_worker(app):
        app.control.shutdown()
        assert over.wait(20)
    signals.worker_shutdown.disconnect(over_set)


def test_a_worker_that_does_not_end_in_time_is_told(app: TestApp) -> None:
    go_on = threading.Event()
    app.task(name="hold")(lambda: go_on.wait(60) and None).delay()
    too_long = pytest.raises(RuntimeError, match=r"not end within shutdown_timeout=0\.2 s: a task still runs")
    try:
        with too_long, start_worker(app, perform_ping_check=False, shutdown_timeout=0.2):
            wait_until(lambda: app.broker.size("celery") == 0)
    finally:
        go_on.set()


def test_what_a_test_raises_is_not_hidden_by_a_worker_that_does_not_end(app: TestApp) -> None:
    go_on = threading.Event()
    app.task(name="hold")(lambda: go_on.wait(60) and None).delay()
    try:
        with (
            pytest.raises(KeyError, match="own"),
            start_worker(app, perform_ping_check=False, shutdown_timeout=0.2),
        ):
            wait_until(lambda: app.broker.size("celery") == 0)
            raise KeyError("own")
    finally:
        go_on.set()


def test_a_forked_worker_runs_tasks_on_a_broker_that_can_be_shared(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/queue.db"
    shared = TestApp(broker=url, backend=url)

    @shared.task(name="pid")
    def pid() -> int:
        return os.getpid()

    @shared.task(name="fails")
    def fails() -> None:
        raise ValueError("on purpose")

    with setup_default_app(shared), start_worker(shared, pool="prefork", concurrency=1):
        assert pid.delay().get(timeout=20) != os.getpid()
        assert fails.delay().get(timeout=20, propagate=False).args == ("on purpose",)
        said = []
        wait_until(lambda: said.append(capfd.readouterr().err) or "on purpose" in "".join(said))
    assert "Task fails[" in "".join(said)  # where pytest shows it if a test fails


def test_what_cannot_work_is_refused_in_words(app: TestApp) -> None:
    for pool, said in (
        ("prefork", "a prefork worker can't share a broker in memory"),
        ("gevent", "pool='gevent': expected prefork, threads, asyncio or solo"),
    ):
        with pytest.raises(ImproperlyConfigured, match=said), start_worker(app, pool=pool):
            pass
