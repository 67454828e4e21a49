"""Tasks that treat their worker badly, for a worker that imports this module."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import minicelery
from minicelery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from tests.worker.apps.tasks import Traces

PATH = "FIRE_TRACES"
LIMITED = "FIRE_LIMITED"


def add_tasks(app: Any, path: Path) -> None:
    """Declare them; `path` is where they leave their traces."""
    traces = Traces(path)

    @app.task(name="exit_below", bind=True)
    async def exit_below(self: Any, how: str) -> None:
        """SystemExit in a task of asyncio's that the coroutine waits for."""
        traces.add("start", self.request.id)

        async def leave() -> None:
            await asyncio.sleep(0.01)
            raise SystemExit(3) if how == "exit" else KeyboardInterrupt

        await asyncio.gather(leave())

    @app.task(name="stop_the_loop", bind=True)
    async def stop_the_loop(self: Any) -> None:
        traces.add("start", self.request.id)
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.1)

    @app.task(name="raise_it", bind=True)
    async def raise_it(self: Any, name: str) -> None:
        traces.add("start", self.request.id)
        await asyncio.sleep(0)
        kinds = {"CancelledError": asyncio.CancelledError, "GeneratorExit": GeneratorExit,
                 "SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}  # fmt: skip
        raise kinds[name]

    @app.task(name="die_later", bind=True, acks_late=True, reject_on_worker_lost=True)
    def die_later(self: Any, seconds: float) -> None:
        traces.add("start", self.request.id)
        time.sleep(seconds)
        os._exit(9)

    @app.task(name="child_tasks", bind=True)
    async def child_tasks(self: Any, how: str, seconds: float) -> str:
        """Wait for tasks of asyncio's in some way; each leaves a trace when it goes on to its end."""
        traces.add("start", self.request.id)

        async def part() -> None:
            await asyncio.sleep(seconds)
            traces.add("part", self.request.id)

        try:
            if how == "gather":
                await asyncio.gather(part(), part())
            elif how == "wait_for":
                await asyncio.wait_for(part(), 30)
            elif how == "task":
                await asyncio.create_task(part())
            else:
                async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
                    group.create_task(part())
                    group.create_task(part())
        except SoftTimeLimitExceeded:
            return "SoftTimeLimitExceeded"
        except BaseException as error:
            return type(error).__name__
        return "in time"

    @app.task(name="cleans_up", bind=True)
    async def cleans_up(self: Any) -> str:
        """After the soft limit, a cleanup that uses what asyncio counts cancellations for."""
        traces.add("start", self.request.id)
        try:
            await asyncio.sleep(20)
        except SoftTimeLimitExceeded:
            pass
        task = asyncio.current_task()
        assert task is not None
        cancelling = getattr(task, "cancelling", int)  # Python 3.11
        return f"{cancelling()}"

    @app.task(name="counts_handlers", bind=True)
    async def counts_handlers(self: Any, seconds: float) -> str:
        traces.add("start", self.request.id)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                pass
        return "late"

    @app.task(name="flow", bind=True, max_retries=2, acks_late=True)
    async def flow(self: Any, what: str, number: int = 0) -> int:
        traces.add("flow", what.replace(" ", "_"), self.request.delivery_info.get("routing_key"))
        await asyncio.sleep(0)
        if what == "retry" and self.request.retries < 2:
            raise self.retry(countdown=0.05)
        if what == "retry too often":
            raise self.retry(exc=ValueError(what), countdown=0.05)
        if what == "reject" or (what == "reject once" and not self.request.delivery_info.get("redelivered")):
            raise Reject(what, requeue=what == "reject once")
        if what == "ignore":
            raise Ignore
        if what == "fail":
            raise ValueError(what)
        return number + 1

    @app.task(name="large_result", bind=True)
    def large_result(self: Any, seconds: float) -> str:
        traces.add("start", self.request.id)
        time.sleep(seconds)
        traces.add("end", self.request.id)
        return "x" * 300_000

    @app.task(name="flow_result")
    async def flow_result(value: int) -> int:
        traces.add("flow", "linked", value)
        return value + 1

    def ended(task_id: str, state: str, **_: Any) -> None:
        traces.add("postrun", task_id, state)

    minicelery.signals.task_postrun.connect(ended, weak=False)

    if os.environ.get(LIMITED):

        @app.task(name="limited_nap", bind=True, concurrency_limit=1000)
        async def limited_nap(self: Any, seconds: float) -> None:
            traces.add("start", self.request.id)
            await asyncio.sleep(seconds)


if _path := os.environ.get(PATH):
    add_tasks(minicelery.current_app, Path(_path))
