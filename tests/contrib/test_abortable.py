"""Abortable tasks: told to end from outside, whatever states they store meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from minicelery import Celery, record
from minicelery.contrib.abortable import ABORTED, AbortableAsyncResult, AbortableTask
from minicelery.contrib.testing import TestApp, start_worker
from minicelery.contrib.testing.app import setup_default_app
from minicelery.result import AsyncResult
from tests.waiting import wait_until


def counting(broker: str, backend: str) -> TestApp:
    made = TestApp(broker=broker, backend=backend)

    @made.task(name="count", bind=True, base=AbortableTask, track_started=True)
    def count(self: Any, most: int) -> str:
        for number in range(most):
            self.update_state(state="PROGRESS", meta={"current": number, "total": most})
            if self.is_aborted():
                return f"aborted at {number}"
            threading.Event().wait(0.01)
        return "done"

    return made


@pytest.fixture(params=["memory", "redis", "sqlite"])
def app(request: pytest.FixtureRequest) -> Iterator[TestApp]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    made = counting(url, url)
    with setup_default_app(made):
        yield made


def test_a_task_that_is_told_to_end_does_although_it_stores_states_of_its_own(app: TestApp) -> None:
    with start_worker(app):
        result: AbortableAsyncResult = app.tasks["count"].delay(1000)
        assert type(result) is AbortableAsyncResult
        assert not result.is_aborted()
        wait_until(lambda: result.state == "PROGRESS")
        result.abort()
        assert result.is_aborted() or result.ready()
        assert result.get(timeout=20).startswith("aborted at")
        assert not result.is_aborted()


def test_a_task_that_has_not_begun_is_aborted_at_its_start(app: TestApp) -> None:
    count = app.tasks["count"]
    result = count.delay(1000)
    asyncio.run(count.AsyncResult(result.id).aabort())
    assert (result.state, result.is_aborted(), count.is_aborted(task_id=result.id)) == (ABORTED, True, True)
    assert AsyncResult(result.id, app=app).state == "ABORTED"
    with start_worker(app):
        assert result.get(timeout=20) == "aborted at 0"
        other = count.delay(2)
        assert other.get(timeout=20) == "done"
        other.abort()
        assert (other.state, other.is_aborted(), count.is_aborted(task_id=other.id)) == (
            "SUCCESS",
            False,
            False,
        )


def test_an_abort_by_celery_which_stores_a_state_and_no_more_is_seen(app: TestApp) -> None:
    count = app.tasks["count"]
    result = count.delay(1000)
    result.backend.store([record.encode(result.id, ABORTED, None)])
    assert count.is_aborted(task_id=result.id)


def test_the_state_of_a_task_that_was_told_to_end_may_be_another_meanwhile(app: TestApp) -> None:
    count = app.tasks["count"]
    result = count.delay(1000)
    result.abort()
    count.update_state(result.id, "PROGRESS", {"current": 1, "total": 2})
    assert (result.state, result.is_aborted()) == ("PROGRESS", True)


def test_results_that_go_to_their_caller_leave_the_order_in_the_broker(rabbit_url: str) -> None:
    app = counting(rabbit_url, "rpc://")
    with setup_default_app(app), start_worker(app):
        result = app.tasks["count"].delay(1000)
        wait_until(lambda: result.state == "PROGRESS")
        result.abort()
        assert result.get(timeout=20).startswith("aborted at")


def test_one_that_runs_here_and_now_sees_what_is_stored(app: TestApp) -> None:
    @app.task(bind=True, base=AbortableTask)
    def look(self: Any) -> list[bool]:
        before = self.is_aborted()
        if self.request.id is not None:
            self.AsyncResult(self.request.id).abort()
        return [before, self.is_aborted()]

    assert look.apply().get() == [False, True]
    assert look() == [False, False]


def test_one_that_runs_here_and_now_needs_no_broker() -> None:
    url = "redis://127.0.0.1:1/0"
    app = Celery("eager", broker=url, backend="memory://eager", task_always_eager=True, set_as_current=False)

    @app.task(bind=True, base=AbortableTask)
    def look(self: Any) -> bool:
        return bool(self.is_aborted())

    assert look.delay().get() is False
    app.close()
