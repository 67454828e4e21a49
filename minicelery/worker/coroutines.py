"""`async def` tasks in a thread that runs one task at a time: an event loop kept for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any

CLEANUP = 5.0
"""Seconds that what a task has left running may take to end when it is cancelled."""


class Interruptible(Coroutine[Any, Any, Any]):
    """A coroutine in which another exception can be raised than CancelledError.

    Set `error` and cancel the asyncio task that runs it: where the user's code awaits
    something, `error` is raised instead.
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
        return self._inner.throw(error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # as good as a generator for `await`

    def __iter__(self) -> Interruptible:
        return self

    def __next__(self) -> Any:
        return self._inner.send(None)


class _Runner(threading.local):
    loop: asyncio.AbstractEventLoop | None = None
    running: tuple[asyncio.Task[Any], Interruptible] | None = None


_here = _Runner()


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
    wrapped = Interruptible(coroutine)
    task: asyncio.Task[Any] = loop.create_task(wrapped)
    _here.running = task, wrapped
    try:
        return loop.run_until_complete(task)
    except BaseException:
        # A signal's handler may have raised in the loop itself: then the task is still there.
        if not task.done():
            task.cancel()
            with contextlib.suppress(BaseException):
                loop.run_until_complete(asyncio.wait([task], timeout=CLEANUP))
        raise
    finally:
        _here.running = None


def has_loop() -> bool:
    """Whether this thread has an event loop for such tasks."""
    return _here.loop is not None


def interrupt(error: BaseException) -> bool:
    """Have `error` raised where this thread's task awaits something; for a signal's handler.

    False where the task is running Python code just now: then the handler may raise it.
    """
    running, loop = _here.running, _here.loop
    if running is None or loop is None:
        return False
    task, wrapped = running
    if asyncio.current_task(loop) is not None:
        return False
    wrapped.error = error
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
