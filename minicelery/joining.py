"""Whether a task may wait for another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from minicelery._state import request_var

_joins_allowed: ContextVar[bool | None] = ContextVar("minicelery_allow_join", default=None)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Within this block a task may wait for another; it blocks its slot of the worker."""
    token = _joins_allowed.set(True)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Within this block nobody may wait for a task, be it inside of one or not."""
    token = _joins_allowed.set(False)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


def assert_will_not_block() -> None:
    """Raise RuntimeError inside of a task, where waiting for another may block all workers."""
    allowed = _joins_allowed.get()
    if allowed is None:
        request = request_var.get()
        allowed = request is None or bool(request.called_directly) or request.is_eager
    if not allowed:
        raise RuntimeError(
            "Never call result.get() within a task: when all workers wait, none is left to run what they "
            "wait for. Link the tasks with a chain, or wrap the call in allow_join_result() if you are sure"
        )
