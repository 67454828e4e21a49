"""Where an app's modules are: its own directory, and the task modules of its packages."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import types


def calling_directory() -> Path:
    """Where the module that makes the app lies; the working directory for a prompt."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("minicelery"):
        frame = frame.f_back
    file = frame.f_globals.get("__file__") if frame is not None else None
    return Path(file).resolve().parent if file else Path.cwd()


def callers_level() -> int:
    """The `stacklevel` for a warning of the function that asks: that of the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("minicelery."):
        frame, level = frame.f_back, level + 1
    return level


def import_related(package: str, related_name: str | None) -> None:
    module = importlib.import_module(package)
    if related_name is None:
        return
    if not hasattr(module, "__path__"):
        return
    full = f"{package}.{related_name}"
    if importlib.util.find_spec(full) is not None:
        importlib.import_module(full)


def django_packages() -> Iterator[str]:
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return
    import django  # type: ignore[import-not-found, import-untyped, unused-ignore]  # the user's own
    from django.apps import apps  # type: ignore[import-not-found, import-untyped, unused-ignore]

    if not apps.ready:
        django.setup()
    for config in apps.get_app_configs():
        yield config.name
