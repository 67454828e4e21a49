"""The parts of compositions: as constructors and messages have them, and as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.canvas.given import meant
from minicelery.canvas.signatures import Signature, maybe_signature, signature
from minicelery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from minicelery.app import Celery

_SHOWN = 20
"""Parts of a composition that its text shows at most."""


def listed(tasks: Sequence[Any], what: str) -> list[Signature[Any]]:
    """The signatures that a constructor was given: several, a list, a generator, a group.

    Raises ImproperlyConfigured.
    """
    given: Any = tasks
    if len(tasks) == 1:
        only = tasks[0]
        if isinstance(only, Signature) and what == only["subtask_type"] == "group":
            given = only["kwargs"]["tasks"]
        elif isinstance(only, Iterable) and not isinstance(only, (Mapping, str, bytes)):
            given = only
    return [task if isinstance(task, Signature) else _checked(task, what) for task in given]


def _checked(task: Any, what: str) -> Signature[Any]:
    if isinstance(task, Mapping):
        return signature(task)
    raise ImproperlyConfigured(
        f"{what}() takes signatures such as add.s(2, 2), got {task!r:.80}{meant(task)}"
    )


def read(tasks: Any, name: str, key: str, app: Celery | None) -> list[Signature[Any]]:
    if not isinstance(tasks, (list, tuple)):
        raise ImproperlyConfigured(
            f"{key}={tasks!r:.80} in a signature of {name}: expected a list of signatures"
        )
    found = []
    for task in tasks:
        if not isinstance(task, Mapping):
            raise ImproperlyConfigured(
                f"{key} of a signature of {name} has {task!r:.80}: expected a signature"
            )
        found.append(task if isinstance(task, Signature) else Signature.from_dict(task, app))
    return found


def read_body(body: Any, app: Celery | None) -> Signature[Any] | None:
    if body is not None and not isinstance(body, Mapping):
        raise ImproperlyConfigured(f"the body of a chord is a signature such as total.s(), got {body!r:.80}")
    return maybe_signature(body, app=None if isinstance(body, Signature) else app)


def told_apart(tasks: Sequence[Signature[Any]]) -> list[Signature[Any]]:
    """The signatures, with a copy for one that is there already."""
    seen: set[int] = set()
    found = []
    for task in tasks:
        if id(task) in seen:
            task = task.clone()
            task.options.pop("task_id", None)
        found.append(task)
        seen.add(id(task))
    return found


def texts(tasks: Sequence[Signature[Any]]) -> list[str]:
    """The texts of the first parts and of the last."""
    try:
        return _texts(tasks)
    except RecursionError:
        return ["..."]


def _texts(tasks: Sequence[Signature[Any]]) -> list[str]:
    if len(tasks) <= _SHOWN:
        return [repr(task) for task in tasks]
    return [*map(repr, tasks[: _SHOWN - 2]), f"... {len(tasks) - _SHOWN + 1:,} more ...", repr(tasks[-1])]


def without_repeats(text: str, tasks: Sequence[Signature[Any]]) -> str:
    """The text with the module of the first task's name only once."""
    module = tasks[0]["task"].rpartition(".")[0] if tasks else ""
    if not module:
        return text
    before, dot, after = text.partition(f"{module}.")
    return before + dot + after.replace(dot, "")
