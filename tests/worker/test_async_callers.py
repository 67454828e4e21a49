"""Callers in an event loop, and real workers."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery.exceptions import TaskRevokedError
from minicelery.result import AsyncResult
from tests.worker.conftest import staged
from tests.worker.harness import Stage


@pytest.fixture(params=["redis", "sqlite", "rabbit", "rpc"])
def any_stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An app and its workers on each broker; RabbitMQ with results on Redis, and with its own."""
    if request.param != "rpc":
        yield from staged(request.getfixturevalue(f"{request.param}_url"), tmp_path, request)
        return
    stage = Stage(request.getfixturevalue("rabbit_url"), tmp_path, "rpc://")
    try:
        yield stage
    finally:
        stage.close()


def test_tasks_are_called_and_awaited(any_stage: Stage) -> None:
    any_stage.worker(concurrency=2)
    tasks = any_stage.app.tasks

    async def main() -> None:
        pid = await (await tasks["run"].adelay(0.0))
        assert isinstance(pid, int)
        assert await (await tasks["noop"].s().aapply_async()) is None
        assert isinstance(await (await any_stage.app.asend_task("run", (0.01,))).aget(timeout=10), int)
        many = await tasks["run"].aapply_many([(0.0,)] * 300)
        assert len(await asyncio.gather(*many)) == 300

    asyncio.run(asyncio.wait_for(main(), 40))
    assert len(any_stage.runs()) == 302


def test_states_are_seen_as_the_task_reports_them(any_stage: Stage) -> None:
    any_stage.worker()

    async def main() -> list[tuple[str, Any]]:
        result = await any_stage.app.tasks["report_until_told"].adelay()
        seen: list[tuple[str, Any]] = []
        async for change in result.aiter_states(timeout=15):
            seen.append(tuple(change))
            if change.state == "PROGRESS":
                any_stage.tell()
        return seen

    seen = asyncio.run(asyncio.wait_for(main(), 30))
    assert seen[-2:] == [("PROGRESS", {"done": 1}), ("SUCCESS", None)]
    assert {state for state, _ in seen} <= {"STARTED", "PROGRESS", "SUCCESS"}


def test_a_failure_in_the_worker_is_raised_in_the_event_loop(any_stage: Stage) -> None:
    any_stage.worker(concurrency=1)

    async def main() -> None:
        result = await any_stage.app.asend_task("die", ("odd",))
        with pytest.raises(BaseException, match="no Exception"):
            await result.aget(timeout=15)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_task_is_revoked_before_it_begins(stage: Stage) -> None:
    async def main() -> None:
        result = await stage.app.tasks["run"].aapply_async((0.0,), countdown=0.3)
        await result.arevoke()
        stage_worker = await asyncio.to_thread(stage.worker)
        with pytest.raises(TaskRevokedError):
            await result.aget(timeout=15)
        assert await asyncio.to_thread(stage_worker.poll) is None

    asyncio.run(asyncio.wait_for(main(), 40))
    assert stage.runs() == {}


def test_awaiting_is_about_as_quick_as_get(redis_stage: Stage) -> None:
    redis_stage.worker(concurrency=1)
    noop = redis_stage.app.tasks["noop"]
    noop.delay().get(timeout=10)

    def median(took: list[float]) -> float:
        return statistics.median(took[10:])

    def measured_get() -> list[float]:
        took = []
        for _ in range(60):
            began = time.perf_counter()
            noop.delay().get(timeout=10)
            took.append(time.perf_counter() - began)
        return took

    async def measured_await() -> list[float]:
        took = []
        for _ in range(60):
            began = time.perf_counter()
            result: AsyncResult[Any] = await noop.adelay()
            await result
            took.append(time.perf_counter() - began)
        return took

    def is_about_as_quick() -> bool:
        got, awaited = median(measured_get()), median(asyncio.run(measured_await()))
        print(f"p50: get {got * 1000:.2f} ms, await {awaited * 1000:.2f} ms")
        return awaited < 2 * got + 0.003

    assert any(is_about_as_quick() for _ in range(3))
