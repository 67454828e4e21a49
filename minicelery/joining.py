"""Whether a task may wait for another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from minicelery._state import request_var

_joins_allowed: ContextVar[bool] = ContextVar("minicelery_allow_join", default=False)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Within this block a task may wait for another; it blocks its slot of the worker."""
    token = _joins_allowed.set(True)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


def assert_will_not_block() -> None:
    """Raise RuntimeError inside of a task, where waiting for another may block all workers."""
    request = request_var.get()
    if (
        request is not None
        and not request.called_directly
        and not request.is_eager
        and not _joins_allowed.get()
    ):
        raise RuntimeError(
            "Never call result.get() within a task: when all workers wait, none is left to run what they "
            "wait for. Link the tasks with a chain, or wrap the call in allow_join_result() if you are sure"
        )
