"""Around apps and processes: Celery's `_state`, `app`, `local`, `platforms` and a few exceptions."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import click

from minicelery._state import Proxy, get_current_app, request_var
from minicelery.exceptions import MiniCeleryError
from minicelery.registry import share

EX_OK, EX_FAILURE, EX_USAGE, EX_UNAVAILABLE = 0, 1, 64, 69
SYSTEM = platform.system()
IS_macOS, IS_WINDOWS = SYSTEM == "Darwin", SYSTEM == "Windows"

default_app: Any = Proxy(get_current_app)

T = TypeVar("T")


def app_or_default(app: Any = None) -> Any:
    """The app, or the current one where there is none."""
    return get_current_app() if app is None else app


def get_current_task() -> Any:
    """The task that runs here; None outside of tasks."""
    request = request_var.get()
    return None if request is None else request.task_object


def get_current_worker_task() -> Any:
    """The task that a worker has called here, inside of which others may have been called; None outside."""
    request = request_var.get()
    while request is not None and request.outer is not None:
        request = request.outer
    return None if request is None or request.called_directly else request.task_object


def connect_on_app_finalize(callback: Callable[[Any], T]) -> Callable[[Any], T]:
    """Have it called with each app that is finalized, also those that are already."""
    share(callback)
    return callback


def try_import(module: str, default: Any = None) -> Any:
    """The module, or `default` where it can't be found."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return default


def maybe_evaluate(obj: Any) -> Any:
    """What a proxy stands for; any other object itself."""
    return obj._get_current_object() if type(obj) is Proxy else obj


def reraise(tp: type[BaseException], value: BaseException, tb: TracebackType | None = None) -> NoReturn:
    """Raise an exception again, with that traceback."""
    raise value if value.__traceback__ is tb else value.with_traceback(tb)


def isatty(fh: Any) -> bool:
    """Whether the file is a terminal."""
    try:
        return bool(fh.isatty())
    except AttributeError:
        return False


def load_average() -> tuple[float, ...]:
    """The machine's load in the last 1, 5 and 15 minutes."""
    return tuple(round(load, 2) for load in os.getloadavg()) if sys.platform != "win32" else (0.0, 0.0, 0.0)


class CeleryWarning(UserWarning):
    """Celery's warnings; minicelery's are subclasses of UserWarning."""


class AlwaysEagerIgnored(CeleryWarning):
    """Never given: `send_task` tells of no eager mode."""


class NotConfigured(CeleryWarning):
    """Never given: an app without settings has its defaults."""


class SecurityWarning(CeleryWarning):
    """Never given: what is unsafe is refused."""


class CDeprecationWarning(DeprecationWarning):
    """Never given; renamed settings are told of by another one."""


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """Never given."""


class CeleryCommandException(click.ClickException, MiniCeleryError):
    """A command's error, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message=message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class
