"""minicelery in an event loop: what an app asks of its servers is done in a few threads."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from minicelery import _state

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from minicelery.app import Celery
    from minicelery.result import AsyncResult

T = TypeVar("T")

THREADS = 8
"""Calls of one app that are on their way at once; others wait for their turn."""

_lock = threading.Lock()
_pools: weakref.WeakKeyDictionary[Celery, ThreadPoolExecutor] = weakref.WeakKeyDictionary()


def _begin_anew() -> None:
    """A forked child has none of its parent's threads."""
    global _lock, _pools
    _lock = threading.Lock()
    _pools = weakref.WeakKeyDictionary()


os.register_at_fork(after_in_child=_begin_anew)


async def in_thread(app: Celery, work: Callable[[], T]) -> T:
    """What `work` returns or raises, done in a thread of the app's, in the caller's context.

    What is sent inside of a task has that task as its parent.  If the caller is cancelled,
    work that has not begun is not done; else it goes on unheeded.
    """
    import asyncio  # 30 ms that a process without event loop need not pay

    context = contextvars.copy_context()
    current = _state._apps.current

    def run() -> T:
        _state._apps.current = current
        try:
            return context.run(work)
        except StopIteration as error:  # no future takes it
            raise RuntimeError("a task raised StopIteration") from error
        finally:
            _state._apps.current = None

    # Tasks that run here may call others: in a pool they would wait for each other's places.
    future = _in_thread_of_its_own(run) if app.conf.task_always_eager else _pool(app).submit(run)
    return await asyncio.wrap_future(future)


def _pool(app: Celery) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    with _lock:
        pool = _pools.get(app)
        if pool is None:
            pool = _pools[app] = ThreadPoolExecutor(THREADS, "minicelery-call")
        return pool


def _in_thread_of_its_own(work: Callable[[], T]) -> Future[T]:
    from concurrent.futures import Future

    future: Future[T] = Future()

    def run() -> None:
        from minicelery.worker import coroutines

        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            coroutines.close()  # the event loop of `async def` tasks that have run here

    threading.Thread(target=run, name="minicelery-eager", daemon=True).start()
    return future


async def send_task(
    app: Celery,
    name: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncResult[Any]:
    """`app.send_task`, without blocking the event loop."""
    return await in_thread(app, partial(app.send_task, name, args, kwargs, **options))
