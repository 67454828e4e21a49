"""What the installed Celery and kombu have: the modules, and their public names."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from types import ModuleType

import celery
import kombu

NOT_PUBLIC = {"celery": frozenset({"local"})}
"""Names that a module lists and that are modules."""


@functools.cache
def modules() -> list[str]:
    """All of Celery's and kombu's, by their paths."""
    below = (
        module.name
        for root in (celery, kombu)
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}.", lambda _: None)
        if not module.name.endswith("__main__")
    )
    return ["celery", "kombu", *below]


@functools.cache
def loaded(path: str) -> ModuleType | None:
    """The module; None where it needs something that is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(path)
        except Exception:  # what a module wants that is not there shows in many ways
            return None


def public_names(path: str) -> Iterator[str]:
    """What it says is public, or else what is defined in it."""
    module = loaded(path)
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [
            name for name, value in vars(module).items() if getattr(value, "__module__", None) == path
        ] if module else []  # fmt: skip
    private = NOT_PUBLIC.get(path, frozenset())
    return (name for name in sorted(set(listed)) if not name.startswith("_") and name not in private)
