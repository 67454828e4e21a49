"""Tracers: functions of other libraries that are called around a run, such as Celery's `build_tracer` gives.

Only the alias names a builder, and only where somebody has put one of his own in Celery's place.
A plan has no tracer otherwise, and its runs never come here.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from minicelery.message import Outcome
from minicelery.worker import coroutines

if TYPE_CHECKING:
    from minicelery.task import Task
    from minicelery.worker.call import Call
    from minicelery.worker.executor import Executor

log = logging.getLogger(__name__)

Tracer = Callable[[str, Any, Any, dict[str, Any]], Any]
"""Called with id, args, kwargs and a request; it calls `proceed`."""
Builder = Callable[..., Tracer]
"""Called with a task's name and the task: it may change what the task runs."""

find_builder: Callable[[], Builder | None] | None = None
"""Says who builds the tracers; asked once for each task."""


class Traced(NamedTuple):
    """A task's tracer, who has built it, and what the task was before."""

    tracer: Tracer
    builder: Builder
    is_async: bool


@dataclass(slots=True, eq=False)
class _Run:
    executor: Executor
    call: Call
    outcome: Outcome | None = None
    entered: bool = False  # its coroutine is being awaited


_run: ContextVar[_Run | None] = ContextVar("minicelery_traced_run", default=None)


def traced(task: Task[..., Any]) -> Traced | None:
    """What is around the runs of a task; None where nobody traces."""
    builder = find_builder() if find_builder is not None else None
    if builder is None:
        return None
    known: Traced | None = vars(task).get("_traced")
    if known is not None and known.builder is builder:
        return known
    is_async = inspect.iscoroutinefunction(task.run) if known is None else known.is_async
    if is_async and known is None:
        task.run = _awaited(task.run)  # so that what a builder puts around it sees its end
    found = Traced(builder(task.name, task, app=task.app), builder, is_async)
    vars(task)["_traced"] = found
    return found


def _awaited(run: Callable[..., Any]) -> Callable[..., Any]:
    """An `async def` that returns what it returns when it is called by `proceed`, and a coroutine otherwise."""

    @functools.wraps(run)
    def called(*args: Any, **kwargs: Any) -> Any:
        value = run(*args, **kwargs)
        here = _run.get()
        if here is None or here.entered:
            return value
        here.entered = True
        return coroutines.run_coroutine(value)

    return called


def around(executor: Executor, call: Call) -> Outcome:
    """The outcome of a call, made by its tracer.  Raises what the tracer does, unless the call was made."""
    tracer, call.tracer = call.tracer, None
    assert tracer is not None
    run = _Run(executor, call)
    token = _run.set(run)
    message = call.delivery.message
    try:
        tracer(message.id, call.args, call.kwargs, _request(call))
    except Exception:
        if run.outcome is None:
            raise
        log.exception("the tracer of task %s[%s] has failed after the run", message.task, message.id)
    finally:
        _run.reset(token)
    if run.outcome is None:
        raise RuntimeError(
            f"the tracer of {message.task} has returned without calling the tracer it is around"
        )
    return run.outcome


def proceed() -> float:
    """Make the call that the tracer is around; the seconds it took."""
    run = _run.get()
    if run is None or run.outcome is not None:
        raise RuntimeError("a tracer is called by a worker, once for each run; task.apply() runs a task here")
    began = time.monotonic()
    run.outcome = run.executor.enter(run.call) or run.executor.call(run.call)
    return time.monotonic() - began


def _request(call: Call) -> dict[str, Any]:
    """The request as Celery's tracers get it."""
    request, message = call.request, call.delivery.message
    return {
        **message.headers, "args": call.args, "kwargs": call.kwargs, "hostname": request.hostname,
        "delivery_info": request.delivery_info, "correlation_id": request.correlation_id,
        "reply_to": request.reply_to, "properties": message.properties, "headers": request.headers,
        "is_eager": request.is_eager, "called_directly": False,
    }  # fmt: skip
