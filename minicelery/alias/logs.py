"""Celery's `utils.log` and `app.log`: formatters and levels."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from minicelery.utils.log import get_logger as get_logger
from minicelery.utils.log import get_task_logger as get_task_logger
from minicelery.worker import logs

LOG_LEVELS: dict[Any, Any] = {
    **{name: getattr(logging, name) for name in "CRITICAL FATAL ERROR WARN WARNING INFO DEBUG NOTSET".split()}
}
LOG_LEVELS |= {number: logging.getLevelName(number) for number in set(LOG_LEVELS.values())}

base_logger = logging.getLogger("celery")


class TaskFormatter(logs.TaskFormatter):
    """A worker's lines: with ``%(task_name)s`` and ``%(task_id)s`` of the task that runs, also in eager mode."""

    def __init__(self, fmt: str | None = None, use_color: bool = True, datefmt: str | None = None) -> None:
        super().__init__(fmt, use_color, datefmt)


ColorFormatter = TaskFormatter


def mlevel(level: Any) -> Any:
    """The number of a log level; what is no text is returned as it is, None too."""
    return LOG_LEVELS[level.upper()] if level and isinstance(level, str) else level


def get_multiprocessing_logger() -> logging.Logger:
    """The logger of the standard library's processes."""
    import multiprocessing

    return multiprocessing.get_logger()


def reset_multiprocessing_logger() -> None:
    """Nothing: no process of a worker's uses it."""


def set_in_sighandler(value: bool) -> None:
    """Nothing: a worker's signal handlers don't log."""


@contextlib.contextmanager
def in_sighandler() -> Iterator[None]:
    """Nothing; see `set_in_sighandler`."""
    yield
