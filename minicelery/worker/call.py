"""One attempt at a task, and what is known of the task beforehand."""

from __future__ import annotations

import inspect
import signal
import traceback as traceback_module
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import InvalidTaskError
from minicelery.limits import of_task
from minicelery.message import Delivery
from minicelery.request import Request
from minicelery.task import Task
from minicelery.worker import tracing

if TYPE_CHECKING:
    from minicelery.app import Celery


class RunRevoked(BaseException):
    """Raised where a run is to end because its task was revoked; never seen by who reads the result."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"revoked ({number.name})")
        self.signal = number


class ExceptionInfo:
    """What handlers and signals get as `einfo`; its text is the traceback."""

    def __init__(self, error: BaseException, text: str | None = None) -> None:
        self.exception = error
        self.type = type(error)
        self.tb: TracebackType | None = error.__traceback__
        self.traceback = text if text is not None else format_traceback(error)
        self.internal = False

    def __str__(self) -> str:
        return self.traceback


def format_traceback(error: BaseException) -> str:
    """The traceback as text, without minicelery's own frames on top of the user's."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        if not frames.tb_frame.f_globals.get("__name__", "").startswith("minicelery.worker."):
            break
        frames = frames.tb_next
    try:
        return "".join(traceback_module.format_exception(type(error), error, frames))
    except RecursionError:
        return f"Traceback too deep to show: {type(error).__name__}"


class Plan:
    """What running a task takes, looked up once: its function, limits and handlers."""

    __slots__ = (
        "acks_late", "after_return", "before_start", "begun", "function", "ignore_result", "is_async", "limits", "on_failure",
        "on_retry", "on_success", "send_events", "soft_limit", "store_errors", "task", "time_limit", "tracer", "track_started",
        "whole",
    )  # fmt: skip

    def __init__(self, app: Celery, task: Task[..., Any], limits: tuple[float | None, float | None]) -> None:
        found = tracing.traced(task)  # first: it may change what is called
        kind = type(task)
        self.task = task
        self.tracer = None if found is None else found.tracer
        self.begun = 0  # runs, in this process
        self.whole = kind.__call__ is not Task.__call__
        self.function: Callable[..., Any] = task if self.whole else task.run
        self.is_async = inspect.iscoroutinefunction(task.run) if found is None else found.is_async
        self.limits = of_task(task, app.conf)  # across workers
        self.ignore_result = bool(task.ignore_result)
        self.store_errors = bool(task.store_errors_even_if_ignored)
        self.track_started = bool(task.track_started)
        self.send_events = bool(task.send_events)
        self.acks_late = bool(task.acks_late)
        self.time_limit = task.time_limit if task.time_limit is not None else limits[0]
        self.soft_limit = task.soft_time_limit if task.soft_time_limit is not None else limits[1]
        # A handler that nobody has overridden is not called.
        self.before_start = _overridden(task, "before_start")
        self.on_success = _overridden(task, "on_success")
        self.on_retry = _overridden(task, "on_retry")
        self.on_failure = _overridden(task, "on_failure")
        self.after_return = _overridden(task, "after_return")


def _overridden(task: Task[..., Any], name: str) -> Callable[..., Any] | None:
    if getattr(type(task), name) is getattr(Task, name) and name not in vars(task):
        return None
    handler: Callable[..., Any] = getattr(task, name)
    return handler


class Call:
    """One attempt that is about to run, or runs."""

    __slots__ = (
        "args", "began", "delivery", "kwargs", "late", "links", "plan", "request", "revoked_by", "running",
        "soft_limit", "time_limit", "tracer",
    )  # fmt: skip

    def __init__(
        self,
        delivery: Delivery,
        plan: Plan,
        request: Request,
        args: list[Any],
        kwargs: dict[str, Any],
        links: Any,
    ) -> None:
        self.delivery = delivery
        self.plan = plan
        self.request = request
        self.args = args
        self.kwargs = kwargs
        self.links = links
        self.time_limit: float | None = plan.time_limit
        self.soft_limit: float | None = plan.soft_limit
        self.tracer = plan.tracer  # until it has been called
        self.began = 0.0
        self.running = False  # the user's code is: the soft limit may raise there
        self.late = False  # it has passed its hard limit
        self.revoked_by: signal.Signals | None = None  # the end of its run was ordered


def check_limits(limits: Any) -> None:
    """Raise InvalidTaskError unless `limits` are `[hard, soft]`, seconds or None each."""
    if (
        not isinstance(limits, (list, tuple))
        or len(limits) != 2
        or not all(
            limit is None or (isinstance(limit, (int, float)) and 0 <= limit < 1e9) for limit in limits
        )
    ):
        raise InvalidTaskError(f"timelimit must be [hard, soft] in seconds, got {limits!r:.80}")


def shown(value: Any, task: Task[..., Any]) -> str:
    """The repr of a result for the log, cut to the task's `resultrepr_maxsize`."""
    if value is None or type(value) in (int, float, bool):
        return repr(value)
    try:
        text = repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= task.resultrepr_maxsize else text[: task.resultrepr_maxsize] + "..."
