"""minicelery in an event loop: what an app asks of its servers is done in a few threads."""

from __future__ import annotations

import contextvars
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from minicelery import _state
from minicelery.exceptions import BrokerUnavailable, MiniCeleryError
from minicelery.forking import call_in_forked_children

if TYPE_CHECKING:
    from concurrent.futures import Future

    from minicelery.app import Celery
    from minicelery.result import AsyncResult

T = TypeVar("T")

Away = type[MiniCeleryError]

THREADS = 8
"""Calls of one app and kind that are on their way at once; others wait for their turn."""

_lock = threading.Lock()
_turns: weakref.WeakKeyDictionary[Celery, dict[Away | None, _Turns]] = weakref.WeakKeyDictionary()


def _begin_anew() -> None:
    """A forked child has none of its parent's threads."""
    global _lock, _turns
    _lock = threading.Lock()
    _turns = weakref.WeakKeyDictionary()


call_in_forked_children(_begin_anew)


async def in_thread(app: Celery, work: Callable[[], T], away: Away | None = None) -> T:
    """What `work` returns or raises, done in a thread of the app's, in the caller's context.

    What is sent inside of a task has that task as its parent.  If the caller is cancelled,
    work that has not begun is not done; else it goes on unheeded.  Work that raises `away`
    where its server can't be reached has threads of its own kind, and is not begun where
    other work has found that out while this waited for its turn: it raises the same.
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
    future = _in_thread_of_its_own(run) if app.conf.task_always_eager else _turns_of(app, away).take(run)
    return await asyncio.wrap_future(future)


def beside_loop(work: Callable[[], T]) -> T:
    """What `work` returns or raises; done in another thread where an event loop runs in this one.

    For code that refuses to wait where it sees a loop, as Django's does.  The loop stands meanwhile.
    """
    import asyncio

    if asyncio._get_running_loop() is None:
        return work()
    return _in_thread_of_its_own(work).result()


def _turns_of(app: Celery, away: Away | None) -> _Turns:
    with _lock:
        kinds = _turns.setdefault(app, {})
        if away not in kinds:
            kinds[away] = _Turns(away)
        return kinds[away]


class _Turns:
    """A few threads for calls of one kind."""

    def __init__(self, away: Away | None) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._away: tuple[Away, ...] = () if away is None else (away,)
        self._threads = ThreadPoolExecutor(THREADS, "minicelery-call")
        self._outage: tuple[float, MiniCeleryError] | None = None  # the last that was found, and when

    def take(self, work: Callable[[], T]) -> Future[T]:
        """Do it when it is its turn."""
        return self._threads.submit(self._do, work, time.monotonic())

    def _do(self, work: Callable[[], T], since: float) -> T:
        # Each would take its own deadline: the thousandth of those that wait, ten minutes.
        if (outage := self._outage) is not None and outage[0] > since:
            raise type(outage[1])(*outage[1].args) from outage[1].__cause__
        try:
            done = work()
        except self._away as error:
            self._outage = (time.monotonic(), error)
            raise
        self._outage = None
        return done


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

    threading.Thread(target=run, name="minicelery-aside", daemon=True).start()
    return future


async def send_task(
    app: Celery,
    name: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncResult[Any]:
    """`app.send_task`, without blocking the event loop."""
    return await in_thread(app, partial(app.send_task, name, args, kwargs, **options), BrokerUnavailable)
