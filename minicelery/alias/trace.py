"""Celery's `app.trace`, for libraries that put a function of their own around what its builder returns.

What such a library puts in the place of `celery.app.trace.build_tracer` is called once for each
task, and what it returns is around each run: before `task_prerun`, and until after `task_postrun`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, NamedTuple

from minicelery.alias.finder import stands_in
from minicelery.task import Task
from minicelery.worker import endings, executor, tracing


class Traced(NamedTuple):
    """What a tracer returns; value and state of the run are told by `task_postrun`."""

    retval: Any = None
    info: Any = None
    runtime: float = 0.0
    retstr: str = ""


def build_tracer(name: str, task: Task[..., Any], *args: Any, **options: Any) -> tracing.Tracer:
    """A function ``(uuid, args, kwargs, request)`` that makes the run for which a worker has called it."""

    def trace_task(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Traced:
        return Traced(runtime=tracing.proceed())

    return trace_task


def task_has_custom(task: Any, attr: str) -> bool:
    """Whether the task's class has another method of that name than `Task`."""
    return getattr(type(task), attr, None) is not getattr(Task, attr, None)


def _builder() -> tracing.Builder | None:
    """What somebody has put in the place of `celery.app.trace.build_tracer`."""
    module = sys.modules.get("celery.app.trace")
    found: tracing.Builder | None = vars(module).get("build_tracer") if stands_in(module) else None
    return None if found is build_tracer else found


def on_served() -> None:
    """From now on workers ask who builds tracers, and tell of runs where who filters lines expects them."""
    tracing.find_builder = _builder
    executor.log = endings.log = logging.getLogger("celery.app.trace")
