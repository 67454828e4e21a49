"""The runners of a crowd: threads, and coroutines in one event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from minicelery._state import request_var
from minicelery.message import BODY_HEADER, Outcome
from minicelery.worker import coroutines
from minicelery.worker.call import Call, RunRevoked
from minicelery.worker.coroutines import Interruptible
from minicelery.worker.crowd import Crowd, Running
from minicelery.worker.orders import Terminate

log = logging.getLogger("minicelery.worker.loop")

GRACE = 1.0
"""Seconds that a coroutine which was cancelled at its hard limit may still take."""
ASKERS = 8
"""Threads that ask the broker whether a task with limits across workers may begin."""


class Threads:
    """Runs each task in a thread; starts as many threads as there is work for."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self._queue: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def start(self) -> None:
        """See `Runner`."""

    def run(self, batch: Sequence[Running]) -> None:
        """See `Runner`."""
        for one in batch:
            if not self._idle.acquire(blocking=False):
                self._count += 1
                threading.Thread(target=self._work, name=f"Thread-{self._count}", daemon=True).start()
            self._queue.put(one)

    def _work(self) -> None:
        while (one := self._queue.get()) is not None:
            outcome = self._outcome(one)
            self._idle.release()  # before its place is free again: else another thread is started
            self.crowd.ended(one, outcome)
        coroutines.close()

    def _outcome(self, one: Running) -> Outcome:
        executor = self.crowd.executor
        try:
            call = executor.begin(one.delivery)
            if isinstance(call, Outcome):
                return call
            self.crowd.begun(one, call)
            _tell_of_limits(call, "the threads pool")
            return executor.call(call)
        except BaseException as error:  # of our own, or of a handler: the thread goes on
            return executor.internal_error(one.delivery, error)

    def interrupt(self, one: Running, order: Terminate) -> None:
        """A thread can't be ended: the task may look at ``self.request.cancelled``."""
        assert one.call is not None
        one.call.request.cancelled = True
        _tell_of_thread(one.call)

    def close(self) -> None:
        """See `Runner`."""
        for _ in range(self._count):
            self._queue.put(None)


class Coroutines:
    """Runs `async def` tasks in one event loop, in a thread of its own; others in threads."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.executor = crowd.executor
        self.loop = asyncio.new_event_loop()
        self._closing = False
        # As many as may run at once: none that has begun waits for a thread.
        self._threads = ThreadPoolExecutor(crowd.board.places, "minicelery-sync")
        self._askers = ThreadPoolExecutor(ASKERS, "minicelery-begin")
        self._thread = threading.Thread(
            target=coroutines.serve, args=(self.loop, lambda: not self._closing),
            name="minicelery-asyncio", daemon=True,
        )  # fmt: skip

    def start(self) -> None:
        """See `Runner`."""
        self._thread.start()

    def run(self, batch: Sequence[Running]) -> None:
        """See `Runner`."""
        self.loop.call_soon_threadsafe(self._create, batch)

    def _create(self, batch: Sequence[Running]) -> None:
        create = self.loop.create_task
        for one in batch:
            one.handle = create(self._live(one))

    async def _live(self, one: Running) -> None:
        """One delivery from its begin to its outcome."""
        executor = self.executor
        outcome: Outcome | None
        try:
            if executor.admission is None and BODY_HEADER not in one.delivery.message.headers:
                call = executor.begin(one.delivery)
            else:  # it may ask the broker, or the result store
                call = await self._in_thread(self._askers, executor.begin, one.delivery)
            if isinstance(call, Outcome):
                outcome = call
            elif call.plan.is_async:
                self.crowd.begun(one, call)
                call.tracer, tracer = (
                    None,
                    call.tracer,
                )  # none can be around what is awaited in a loop of others
                outcome = executor.enter(call) if tracer is not None else None
                if outcome is None:
                    outcome = await self._awaited(one, call)
            else:
                self.crowd.begun(one, call)
                _tell_of_limits(call, "the asyncio pool, for a task that is no async def")
                outcome = await self._in_thread(self._threads, executor.call, call)
        except BaseException as error:  # of our own, or of a handler: the loop goes on
            outcome = executor.internal_error(one.delivery, error)
        if outcome is not None:
            self.crowd.ended(one, outcome)

    async def _in_thread(self, threads: Executor, function: Callable[..., Any], *args: Any) -> Any:
        context = contextvars.copy_context()
        return await self.loop.run_in_executor(threads, context.run, function, *args)

    async def _awaited(self, one: Running, call: Call) -> Outcome | None:
        """The outcome of a coroutine; None where its end has been told already."""
        request_var.set(call.request)
        timers = self._timers(one, call) if call.soft_limit is not None or call.time_limit is not None else ()
        error = value = None
        try:
            value = call.plan.function(*call.args, **call.kwargs)
            if asyncio.iscoroutine(value):  # a task's own __call__ may return something else
                one.body = Interruptible(value)
                value = await one.body
        except BaseException as failed:
            error = failed
        for timer in timers:
            timer.cancel()
        if one.given_up:
            return None
        if call.late:
            return self.executor.timed_out(call)
        if error is None:
            return self.executor.finish(call, value)
        if call.revoked_by is not None and isinstance(error, asyncio.CancelledError):
            error = RunRevoked(call.revoked_by)
        return self.executor.fail(call, error)

    # -- ending a run ----------------------------------------------------------------------

    def _timers(self, one: Running, call: Call) -> list[asyncio.TimerHandle]:
        later = self.loop.call_later
        timers = []
        if call.soft_limit is not None:
            timers.append(later(call.soft_limit, self._at_soft_limit, one, call))
        if call.time_limit is not None:
            timers.append(later(call.time_limit, self._at_hard_limit, one, call))
        return timers

    def _at_soft_limit(self, one: Running, call: Call) -> None:
        message = one.delivery.message
        log.warning("Soft time limit (%ss) exceeded for %s[%s]", call.soft_limit, message.task, message.id)
        self._cancel(one, coroutines.SoftLimitReached())

    def _at_hard_limit(self, one: Running, call: Call) -> None:
        call.late = True
        self._cancel(one)
        self.loop.call_later(GRACE, self._give_up, one, call)

    def _give_up(self, one: Running, call: Call) -> None:
        """It goes on although it was cancelled: it has failed all the same."""
        if not one.handle.done():
            one.given_up = True
            self.crowd.ended(one, self.executor.timed_out(call))

    def _cancel(self, one: Running, error: BaseException | None = None) -> None:
        if one.body is not None:
            one.body.error = error
        one.handle.cancel()

    def interrupt(self, one: Running, order: Terminate) -> None:
        """See `Runner`: the task is cancelled where it awaits something."""
        call = one.call
        assert call is not None
        call.request.cancelled = True
        if not call.plan.is_async:
            _tell_of_thread(call)
        elif order.signal is signal.SIGUSR1:
            self.loop.call_soon_threadsafe(self._cancel, one, coroutines.SoftLimitReached())
        else:
            call.revoked_by = order.signal
            self.loop.call_soon_threadsafe(self._cancel, one)

    def close(self) -> None:
        """See `Runner`."""
        self._closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(coroutines.CLEANUP)
        for threads in (self._threads, self._askers):
            threads.shutdown(wait=False)
        if not self.loop.is_running():
            asyncio.set_event_loop(self.loop)
            coroutines.finish(self.loop)


def _tell_of_thread(call: Call) -> None:
    message = call.delivery.message
    log.warning(
        "Task %s[%s] was revoked, but threads can't be terminated: it goes on unless it looks at "
        "self.request.cancelled", message.task, message.id,
    )  # fmt: skip


def _tell_of_limits(call: Call, where: str) -> None:
    """The task's own limits were refused at start: these have come with its message."""
    if call.soft_limit is not None or call.time_limit is not None:
        message = call.delivery.message
        log.warning(
            "Task %s[%s] was called with time limits (soft %s, hard %s), and runs without: they can't be "
            "enforced in %s", message.task, message.id, call.soft_limit, call.time_limit, where,
        )  # fmt: skip
