"""`task_annotations`: attributes that the settings change on tasks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from minicelery.attributes import check_names
from minicelery.exceptions import ImproperlyConfigured
from minicelery.task import Task

_EXPECTED = (
    "task_annotations: expected a dict of task names and attributes ('*' for all tasks), an object with "
    "annotate(task) and annotate_any(), a class of such objects or its dotted path, or a list of those"
)


class Annotated(dict[str, Any]):
    """A dict of task names and attributes."""

    def annotate(self, task: Any) -> Any:
        """The attributes for the task of that name."""
        return self.get(task.name)

    def annotate_any(self) -> Any:
        """The attributes for every task."""
        return self.get("*")


def read(setting: Any) -> list[Any]:
    """The setting's parts as objects with `annotate` and `annotate_any`.  Raises ImproperlyConfigured."""
    if setting is None:
        return []
    parts = setting if isinstance(setting, (list, tuple)) else (setting,)
    return [_part(part) for part in parts]


def _part(part: Any) -> Any:
    if isinstance(part, Mapping):
        for name, attributes in part.items():
            if not isinstance(name, str) or not isinstance(attributes, Mapping):
                raise ImproperlyConfigured(f"{_EXPECTED}; got {name!r:.80}: {attributes!r:.80}")
        return Annotated(part)
    if isinstance(part, str):
        part = _named(part)
    if isinstance(part, type):
        part = part()
    if not (hasattr(part, "annotate") or hasattr(part, "annotate_any")):
        raise ImproperlyConfigured(f"{_EXPECTED}; got {part!r:.80}")
    return part


def _named(path: str) -> Any:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(f"task_annotations: {path!r} can't be imported: {error}") from error


def _found(parts: list[Any], kind: type[Task[..., Any]]) -> Iterator[Mapping[str, Any]]:
    """What the first part says that knows the task, then what the first says of all: Celery's rule."""
    for method, args in (("annotate", (kind,)), ("annotate_any", ())):
        for part in parts:
            values = getattr(part, method)(*args) if hasattr(part, method) else None
            if values is not None:
                yield values
                break


def annotate(setting: Any, kind: type[Task[..., Any]]) -> None:
    """Set what the setting says on the class of one task; ``@method`` is put around the method.

    What is said of all tasks goes before what is said of one.  Raises ImproperlyConfigured.
    """
    for values in _found(read(setting), kind):
        plain = {name: value for name, value in values.items() if not name.startswith("@")}
        try:
            check_names(kind.name, plain, kind)
        except TypeError as error:
            raise ImproperlyConfigured(f"task_annotations: {error}") from None
        for name, value in values.items():
            if not name.startswith("@"):
                setattr(kind, name, value)
            elif callable(getattr(kind, name[1:], None)):
                kind.add_around(name[1:], value)
            else:
                raise ImproperlyConfigured(
                    f"task_annotations: {kind.name} has no method {name[1:]!r} ({name!r})"
                )
