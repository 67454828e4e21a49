"""`async def` tasks in a thread that runs one task at a time: an event loop kept for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any

from minicelery.exceptions import SoftTimeLimitExceeded

log = logging.getLogger("minicelery.worker.loop")

CLEANUP = 5.0
"""Seconds that what a task has left running may take to end when it is cancelled."""


class SoftLimitReached(SoftTimeLimitExceeded, asyncio.CancelledError):
    """What the soft limit raises in a coroutine.

    The task sees SoftTimeLimitExceeded; `gather`, `wait_for`, task groups and the like take it
    for a cancellation, and end what they wait for.
    """


# Nobody outside of this process knows of another kind.
SoftLimitReached.__name__ = SoftLimitReached.__qualname__ = SoftTimeLimitExceeded.__name__
SoftLimitReached.__module__ = SoftTimeLimitExceeded.__module__


class Interruptible(Coroutine[Any, Any, Any]):
    """A coroutine in which another exception can be raised than CancelledError.

    Set `error` and cancel the asyncio task that runs it: where the user's code awaits
    something, `error` is raised instead, and asyncio's count of cancellations is as it was.
    """

    __slots__ = ("_inner", "error")

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner
        self.error: BaseException | None = None

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, kind: Any, value: Any = None, frames: TracebackType | None = None) -> Any:
        error = value if isinstance(value, BaseException) else kind
        if self.error is not None:
            error, self.error = self.error, None
            uncancel = getattr(asyncio.current_task(), "uncancel", None)  # Python 3.11
            if uncancel is not None:
                uncancel()
        return self._inner.throw(error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # as good as a generator for `await`

    def __iter__(self) -> Interruptible:
        return self

    def __next__(self) -> Any:
        return self._inner.send(None)


class _Running(threading.local):
    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task[Any] | None = None
    body: Interruptible | None = None
    meant: BaseException | None = None  # what a cancellation stands for


_here = _Running()


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end in this thread's event loop, and return what it returns.

    What is no coroutine is returned as it is.

    The loop is kept, so that connections an `async def` task has opened serve its later
    calls.  Where a loop is running in this thread already, the coroutine runs in a thread
    of its own.
    """
    if not asyncio.iscoroutine(coroutine):
        return coroutine
    if _is_running():
        return _run_elsewhere(coroutine)
    loop = _here.loop
    if loop is None or loop.is_closed():
        loop = _here.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    _here.body = body = Interruptible(coroutine)
    _here.task = task = loop.create_task(_to_its_end(body))
    task.add_done_callback(lambda _: loop.stop())
    try:
        while not task.done():
            # Again where what it waits for exits or stops the loop: it is told of that, too.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                loop.run_forever()
        # Cancelled is what has not even begun.
        value, error = (None, body.error or asyncio.CancelledError()) if task.cancelled() else task.result()
    except BaseException:
        # A signal's handler of the task's own has raised in the loop itself.
        if not task.done():
            task.cancel()
            with contextlib.suppress(BaseException):
                loop.run_until_complete(asyncio.wait([task], timeout=CLEANUP))
        raise
    finally:
        meant, _here.meant = _here.meant, None
        _here.task = _here.body = None
    if error is None:
        return value
    raise meant if meant is not None and isinstance(error, asyncio.CancelledError) else error


async def _to_its_end(body: Interruptible) -> tuple[Any, BaseException | None]:
    """What has come of it as a value: asyncio has a use of its own for some exceptions."""
    try:
        return await body, None
    except BaseException as error:
        return None, error


def serve(loop: asyncio.AbstractEventLoop, wanted: Callable[[], bool]) -> None:
    """Run a loop that many tasks share for as long as it is `wanted`, whatever one of them does to it."""
    asyncio.set_event_loop(loop)
    while wanted():
        try:
            loop.run_forever()
        except BaseException as error:  # SystemExit or KeyboardInterrupt of a task's task
            log.warning("A task has raised %r in what it awaits; the event loop goes on", error)


def has_loop() -> bool:
    """Whether this thread has an event loop for such tasks."""
    return _here.loop is not None


def interrupt(error: BaseException) -> bool:
    """Have `error` raised where this thread's task awaits something; for a signal's handler.

    The soft limit's may be handled there, another one ends the task.  False where the task is
    running Python code just now: then the handler may raise it.
    """
    task, body, loop = _here.task, _here.body, _here.loop
    if task is None or body is None or loop is None:
        return False
    if asyncio.current_task(loop) is task:
        return False
    if isinstance(error, SoftTimeLimitExceeded):
        body.error = error
    else:
        body.error, _here.meant = None, error
    task.cancel()
    loop.call_soon_threadsafe(lambda: None)  # ends its wait
    return True


def close() -> None:
    """Close this thread's event loop, with what is left running in it cancelled."""
    loop, _here.loop = _here.loop, None
    if loop is not None and not loop.is_closed():
        finish(loop)
        asyncio.set_event_loop(None)


def finish(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left in a loop that does not run any more, and close it."""
    with contextlib.suppress(Exception):
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=CLEANUP))
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_elsewhere(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import contextvars

    ended: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            ended.append(run_coroutine(coroutine))
        except BaseException as error:
            failed.append(error)
        finally:
            close()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="minicelery-coroutine")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return ended[0]
