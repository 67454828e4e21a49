"""What ``@django.tasks.task(…)`` makes of a function, and how such a task is found by its path."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from django.tasks import Task
from django.tasks.exceptions import InvalidTask
from django.utils.module_loading import import_string


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniceleryTask(Task):
    """A task with what only workers of minicelery do; Django 6.1 has ``@task(max_retries=3)`` pass it on.

    Times are seconds.
    """

    max_retries: int = 0
    default_retry_delay: float = 180.0
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    time_limit: float | None = None
    soft_time_limit: float | None = None
    expires: float | None = None


def check_own_options(task: Any) -> None:
    """Raises InvalidTask, naming the option, the value and what is accepted."""
    if not isinstance(task, MiniceleryTask):
        return
    where = f"of task {task.module_path!r}"
    if isinstance(task.max_retries, bool) or not isinstance(task.max_retries, int) or task.max_retries < 0:
        raise InvalidTask(f"max_retries={task.max_retries!r:.80} {where}: expected a whole number >= 0")
    for name in ("default_retry_delay", "retry_backoff", "retry_backoff_max"):
        value = getattr(task, name)
        if not isinstance(value, (int, float)) or value < 0:
            raise InvalidTask(f"{name}={value!r:.80} {where}: expected seconds >= 0")
    for name in ("time_limit", "soft_time_limit", "expires"):
        value = getattr(task, name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0
        ):
            raise InvalidTask(f"{name}={value!r:.80} {where}: expected seconds > 0, or None")


def find_task(path: str) -> Any:
    """The task that a module has under this path.  Raises InvalidTask where there is none.

    Only what ``@task`` has made is one: a message can't have any other function called.
    """
    try:
        found = import_string(path)
    except ImportError as error:
        raise InvalidTask(
            f"task {path!r} can't be imported: {error}; the worker needs the same code as the caller"
        ) from error
    if not isinstance(found, Task):
        raise InvalidTask(f"{path!r} is a {type(found).__name__}, and no task: expected what @task has made")
    return found


def check_importable(task: Any) -> None:
    """Raises InvalidTask unless a worker can find the task by its path."""
    if task.func.__module__ == "__main__":
        raise InvalidTask(
            f"task {task.module_path!r} is of the program itself, which no worker can import: "
            "put it into a module"
        )
    if find_task(task.module_path).func is not task.func:
        raise InvalidTask(
            f"task {task.module_path!r} is not the one that its module has under that name, so no worker "
            "can find it: decorate the function where it is defined"
        )


def with_values(task: Any, values: dict[str, Any]) -> Any:
    """The task with other values, which are not validated: what was sent may have been valid then."""
    copy = object.__new__(type(task))
    for field in fields(task):
        object.__setattr__(copy, field.name, values.get(field.name, getattr(task, field.name)))
    return copy
