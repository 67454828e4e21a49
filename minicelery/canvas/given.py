"""What a signature is given, from users and from messages: looked at before it is believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minicelery.exceptions import ImproperlyConfigured
from minicelery.options import check_arguments_shape

_SHAPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "args": ((list, tuple), "a list"),
    "kwargs": ((Mapping,), "a mapping"),
    "options": ((Mapping,), "a mapping"),
}


def checked(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given`, a signature as a dict.  Raises ImproperlyConfigured where it can't be one."""
    task = given.get("task") if isinstance(given, Mapping) else None
    if not isinstance(task, str) or not task:
        raise ImproperlyConfigured(
            f"a signature is a dict with the name of its task in 'task', got {given!r:.80}"
        )
    for key, (types, expected) in _SHAPES.items():
        value = given.get(key)
        if value is not None and not isinstance(value, types):
            raise ImproperlyConfigured(f"{key}={value!r:.80} in a signature of {task}: expected {expected}")
    for key in ("kwargs", "options"):
        for name in given.get(key) or ():
            if not isinstance(name, str):
                raise ImproperlyConfigured(
                    f"{key} of a signature of {task} has the key {name!r:.80}: expected text"
                )
    return given


def arguments(task: str, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Positional arguments as a tuple.  Raises TypeError unless these are arguments of a call."""
    given = () if args is None else args
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        check_arguments_shape(task, given, {})
    check_arguments_shape(task, (), {} if kwargs is None else kwargs)
    return tuple(given)


def check_link(link: Any, option: str, task: str) -> None:
    """Raises ImproperlyConfigured unless `link` is a signature, or a dict like one."""
    if not isinstance(link, Mapping) or not isinstance(link.get("task"), str):
        raise ImproperlyConfigured(
            f"{option}= of {task} takes signatures such as notify.s(), got {type(link).__name__}{meant(link)}"
        )


def reaches(link: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    """Whether `target` itself is among `link` and what it links to."""
    left, seen = [link], set[int]()
    while left:
        one = left.pop()
        if one is target:
            return True
        if id(one) in seen:
            continue
        seen.add(id(one))
        options = one.get("options")
        if options and isinstance(options, Mapping):
            for key in ("link", "link_error"):
                left += [each for each in as_list(options.get(key)) if isinstance(each, Mapping)]
    return False


def as_list(value: Any) -> list[Any]:
    """None as [], one signature as [it], a list or tuple as a new list."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    return [value]


def meant(value: Any) -> str:
    """What to say of a task where a signature belongs; nothing of anything else."""
    name = getattr(value, "name", None)
    return f"; did you mean {name}.s()?" if isinstance(name, str) and hasattr(value, "apply_async") else ""
