"""The runners of a crowd: threads, and coroutines in one event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minicelery._state import request_var
from minicelery.exceptions import SoftTimeLimitExceeded
from minicelery.message import Outcome
from minicelery.worker import coroutines
from minicelery.worker.call import Call, RunRevoked
from minicelery.worker.coroutines import Interruptible
from minicelery.worker.crowd import Crowd, Running
from minicelery.worker.orders import Terminate

log = logging.getLogger("minicelery.worker.loop")

GRACE = 1.0
"""Seconds that a coroutine which was cancelled at its hard limit may still take."""
SYNC_THREADS = 32
"""Threads for the tasks of the asyncio pool that are not `async def`."""


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
            self.crowd.ended(one, self._outcome(one))
            self._idle.release()
        coroutines.close()

    def _outcome(self, one: Running) -> Outcome:
        executor = self.crowd.executor
        try:
            call = executor.begin(one.delivery)
            if isinstance(call, Outcome):
                return call
            self.crowd.begun(one, call)
            return executor.call(call)
        except BaseException as error:  # of our own, or of a handler: the thread goes on
            return executor.internal_error(one.delivery, error)

    def interrupt(self, one: Running, order: Terminate) -> None:
        """A thread can't be ended: the task may look at ``self.request.cancelled``."""
        assert one.call is not None
        one.call.request.cancelled = True
        message = one.delivery.message
        log.warning(
            "Task %s[%s] was revoked, but threads can't be terminated: it goes on unless it looks at "
            "self.request.cancelled", message.task, message.id,
        )  # fmt: skip

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
        self._threads = ThreadPoolExecutor(min(SYNC_THREADS, crowd.board.places), "minicelery-sync")
        self._thread = threading.Thread(target=self._serve, name="minicelery-asyncio", daemon=True)

    def start(self) -> None:
        """See `Runner`."""
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

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
        outcome: Outcome | None = None
        try:
            if executor.admission is None:
                call = executor.begin(one.delivery)
            else:  # it may ask the broker
                call = await self._in_thread(executor.begin, one.delivery)
            if isinstance(call, Outcome):
                outcome = call
            else:
                self.crowd.begun(one, call)
                if not call.plan.is_async:
                    outcome = await self._in_thread(executor.call, call)
                elif call.soft_limit is None and call.time_limit is None:
                    request_var.set(call.request)
                    call.running = True
                    try:
                        value = call.plan.function(*call.args, **call.kwargs)
                        if asyncio.iscoroutine(value):  # a task's own __call__ may return something else
                            value = await value
                    except BaseException as error:
                        outcome = executor.fail(call, _meant(call, error))
                    else:
                        outcome = executor.finish(call, value)
                else:
                    outcome = await self._within_limits(one, call)
        except BaseException as error:  # of our own, or of a handler: the loop goes on
            outcome = executor.internal_error(one.delivery, error)
        self.crowd.ended(one, outcome)

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        context = contextvars.copy_context()
        return await self.loop.run_in_executor(self._threads, context.run, function, *args)

    async def _within_limits(self, one: Running, call: Call) -> Outcome:
        request_var.set(call.request)
        wrapped = Interruptible(_called(call))
        timers = []
        if call.soft_limit is not None:
            timers.append(self.loop.call_later(call.soft_limit, self._at_soft_limit, one, call, wrapped))
        if call.time_limit is not None:
            timers.append(self.loop.call_later(call.time_limit, self._at_hard_limit, one, call))
        call.running = True
        try:
            value = await wrapped
        except BaseException as error:
            if call.late:
                return self.executor.timed_out(call)
            return self.executor.fail(call, _meant(call, error))
        finally:
            call.running = False
            for timer in timers:
                timer.cancel()
        return self.executor.finish(call, value)

    def _at_soft_limit(self, one: Running, call: Call, wrapped: Interruptible) -> None:
        if call.running:
            message = one.delivery.message
            log.warning(
                "Soft time limit (%ss) exceeded for %s[%s]", call.soft_limit, message.task, message.id
            )
            wrapped.error = SoftTimeLimitExceeded()
            one.handle.cancel()

    def _at_hard_limit(self, one: Running, call: Call) -> None:
        if call.running:
            call.late = True
            one.handle.cancel()
            self.loop.call_later(GRACE, self._give_up, one, call)

    def _give_up(self, one: Running, call: Call) -> None:
        """It goes on although it was cancelled: it has failed all the same."""
        if call.running:
            self.crowd.ended(one, self.executor.timed_out(call))

    def interrupt(self, one: Running, order: Terminate) -> None:
        """See `Runner`: the task is cancelled where it awaits something."""
        assert one.call is not None
        call = one.call
        call.request.cancelled = True

        def cancel() -> None:
            if call.plan.is_async:
                if order.signal is not signal.SIGUSR1:
                    call.revoked_by = order.signal
                one.handle.cancel()

        self.loop.call_soon_threadsafe(cancel)

    def close(self) -> None:
        """See `Runner`."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(coroutines.CLEANUP)
        self._threads.shutdown(wait=False)
        if not self.loop.is_running():
            asyncio.set_event_loop(self.loop)
            coroutines.finish(self.loop)


async def _called(call: Call) -> Any:
    value = call.plan.function(*call.args, **call.kwargs)
    return await value if asyncio.iscoroutine(value) else value


def _meant(call: Call, error: BaseException) -> BaseException:
    """What a cancellation stands for."""
    if isinstance(error, asyncio.CancelledError) and call.revoked_by is not None:
        return RunRevoked(call.revoked_by)
    if isinstance(error, asyncio.CancelledError) and call.request.cancelled:
        return SoftTimeLimitExceeded()
    return error
