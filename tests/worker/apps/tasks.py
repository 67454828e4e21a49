"""The tasks that the worker tests send; each run leaves its traces in one file."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from minicelery import Celery, signals
from minicelery.exceptions import SoftTimeLimitExceeded
from minicelery.remote import control_command, inspect_command


@inspect_command(args=[("name", str)], signature="[NAME]")
def greeting(state: Any, name: str = "nobody") -> dict[str, Any]:
    """Say hello."""
    return {"hello": name, "by": state.hostname, "queues": state.queues}


@inspect_command()
def wants_more(state: Any) -> Any:
    """Ask for what there is not."""
    return state.prefetch.value


@control_command()
def note(state: Any, what: str, until_told: bool = False) -> None:
    """Leave a trace; wait first, for `Stage.tell`, where that is wanted."""
    traces = Traces.latest
    end = time.monotonic() + 30.0
    while until_told and not told(traces.path).exists() and time.monotonic() < end:
        time.sleep(0.02)
    traces.add("note", what)


LINE = 128


class Traces:
    """Lines appended by many processes at once; one write each, so they never mix."""

    latest: Traces

    def __init__(self, path: Path) -> None:
        self.path = path
        Traces.latest = self

    def add(self, kind: str, what: object = "", detail: object = "") -> None:
        line = f"{kind} {what} {os.getpid()} {time.time():.6f} {detail}".encode()
        # A write over the border of two pages may be seen half done, and a signal may end it there.
        line = line.ljust(-(-(len(line) + 1) // LINE) * LINE - 1) + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)


UNTOLD = 50.0
"""Seconds after which a task that runs until it is told ends all the same."""


class Odd(BaseException):
    """An error that is no Exception."""


class Unprintable(Exception):
    """An error that can't even be shown."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


def told(traces: Path) -> Path:
    """The file whose being there ends the tasks that run until told."""
    return traces.with_name("told")


def hold_the_gil(seconds: float) -> None:
    """Sleep in C code that does not release the interpreter's lock."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:  # usleep ends at a signal
        ctypes.PyDLL(None).usleep(int(left * 1e6) + 1)


def make_app(url: str, path: Path, backend: str = "", **conf: Any) -> Celery:
    """The app that producer and worker share."""
    app = Celery("worker-tests", broker=url, backend=backend or url, set_as_current=False)
    app.conf.broker_native_delayed_delivery_queue_type = "classic"  # made faster; the same otherwise
    app.conf.update(conf)
    traces = Traces(path)
    late: dict[str, Any] = {"acks_late": True, "reject_on_worker_lost": True}

    def run(self: Any, seconds: float = 0.0) -> int:
        traces.add("start", self.request.id)
        time.sleep(seconds)
        traces.add("end", self.request.id)
        return os.getpid()

    app.task(name="run", bind=True)(run)
    app.task(name="late_run", bind=True, **late)(run)
    app.task(name="late_run_once", bind=True, acks_late=True)(run)
    app.task(name="tracked_run", bind=True, track_started=True)(run)

    @app.task(name="noop")
    def noop() -> None:
        pass

    def run_in_c(self: Any, seconds: float) -> None:
        traces.add("start", self.request.id)
        hold_the_gil(seconds)
        traces.add("end", self.request.id)

    def run_until_told(self: Any) -> int:
        """Run until `Stage.tell`."""
        traces.add("start", self.request.id)
        end = time.monotonic() + UNTOLD
        while not told(path).exists() and time.monotonic() < end:
            time.sleep(0.02)
        traces.add("end", self.request.id)
        return os.getpid()

    app.task(name="run_until_told", bind=True)(run_until_told)
    app.task(name="late_run_until_told", bind=True, **late)(run_until_told)
    app.task(name="tracked_run_until_told", bind=True, track_started=True)(run_until_told)

    app.task(name="run_in_c", bind=True)(run_in_c)
    app.task(name="late_run_in_c", bind=True, **late)(run_in_c)

    @app.task(name="run_then_in_c", bind=True)
    def run_then_in_c(self: Any, first: float, then: float) -> None:
        traces.add("start", self.request.id)
        time.sleep(first)
        hold_the_gil(then)

    def die(self: Any, how: str) -> None:
        traces.add("start", self.request.id)
        if how == "null":
            ctypes.string_at(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(5)
        if how == "sys.exit":
            sys.exit(3)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "unprintable":
            raise Unprintable
        if how == "odd":
            raise Odd("no Exception")
        os._exit(int(how))

    app.task(name="die", bind=True)(die)
    app.task(name="late_die", bind=True, **late)(die)

    @app.task(name="stubborn", bind=True)
    def stubborn(self: Any, seconds: float) -> str:
        traces.add("start", self.request.id)
        try:
            time.sleep(seconds)
        except SoftTimeLimitExceeded:
            return "cleaned up"
        return "in time"

    @app.task(name="report_until_told", bind=True, track_started=True)
    def report_until_told(self: Any) -> None:
        self.update_state(state="PROGRESS", meta={"done": 1})
        run_until_told(self)

    @app.task(name="again", bind=True, max_retries=3)
    def again(self: Any, until: int) -> int:
        traces.add("start", self.request.id)
        if self.request.retries < until:
            raise self.retry(countdown=0.1)
        retries: int = self.request.retries
        return retries

    @app.task(name="swell", bind=True)
    def swell(self: Any, mebibytes: int) -> int:
        traces.add("start", self.request.id)
        kept.append(bytearray(os.urandom(1 << 20) * mebibytes))
        return os.getpid()

    kept: list[bytearray] = []

    async def nap(self: Any, seconds: float = 0.0) -> int:
        traces.add("start", self.request.id)
        await asyncio.sleep(seconds)
        traces.add("end", self.request.id)
        return id(asyncio.get_running_loop())

    app.task(name="nap", bind=True)(nap)
    app.task(name="late_nap", bind=True, **late)(nap)
    app.task(name="tracked_nap", bind=True, track_started=True)(nap)

    async def nap_until_told(self: Any) -> None:
        traces.add("start", self.request.id)
        end = time.monotonic() + UNTOLD
        while not told(path).exists() and time.monotonic() < end:
            await asyncio.sleep(0.1)
        traces.add("end", self.request.id)

    app.task(name="nap_until_told", bind=True)(nap_until_told)
    app.task(name="late_nap_until_told", bind=True, **late)(nap_until_told)
    app.task(name="tracked_nap_until_told", bind=True, track_started=True)(nap_until_told)

    @app.task(name="own_id", bind=True)
    async def own_id(self: Any) -> list[str]:
        """The request's id, as seen before and after others had their turns."""
        seen = [self.request.id]
        for _ in range(3):
            await asyncio.sleep(0.001)
            seen.append(app.current_task.request.id)
        return sorted(set(seen))

    @app.task(name="own_id_in_thread", bind=True)
    def own_id_in_thread(self: Any) -> list[str]:
        seen = [self.request.id]
        for _ in range(3):
            time.sleep(0.001)
            seen.append(app.current_task.request.id)
        return sorted(set(seen))

    @app.task(name="careful_nap", bind=True)
    async def careful_nap(self: Any, seconds: float) -> str:
        """What ends it early is what it returns."""
        traces.add("start", self.request.id)
        try:
            await asyncio.sleep(seconds)
        except BaseException as error:
            return type(error).__name__
        return "in time"

    @app.task(name="stubborn_nap", bind=True)
    async def stubborn_nap(self: Any, seconds: float) -> str:
        traces.add("start", self.request.id)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                traces.add("cancelled", self.request.id)
        return "to the end"

    @app.task(name="meet", bind=True)
    def meet(self: Any, number: int) -> bool:
        """Wait until so many run at once."""
        traces.add("start", self.request.id)
        gate = gates.setdefault(number, threading.Barrier(number))
        return gate.wait(10.0) is not None

    gates: dict[int, threading.Barrier] = {}

    @app.task(name="heedful", bind=True)
    def heedful(self: Any, seconds: float) -> str:
        traces.add("start", self.request.id)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.request.cancelled:
                return "cancelled"
            time.sleep(0.01)
        return "in time"

    @app.task(name="errback")
    def errback(id: str) -> None:
        traces.add("errback", id)

    return app


def trace_the_worker(path: Path) -> None:
    """Have the worker leave its own traces too."""
    traces = Traces(path)

    def ready(**_: Any) -> None:
        traces.add("ready")

    def child(**_: Any) -> None:
        traces.add("child")

    def failed(task_id: str, exception: BaseException, **_: Any) -> None:
        traces.add("failure", task_id, type(exception).__name__)

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_process_init.connect(child, weak=False)
    signals.task_failure.connect(failed, weak=False)
