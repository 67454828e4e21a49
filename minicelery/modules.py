"""Where an app's modules are: its own directory, and the task modules of its packages."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import FixupWarning

if TYPE_CHECKING:
    import types

    from minicelery.app import Celery


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


def registered(group: str, name: str) -> str | None:
    """The path of what an installed package calls `name` in that group of entry points."""
    from importlib.metadata import entry_points

    found = [point.value for point in entry_points(group=group) if point.name == name]
    return found[0] if found else None


def without_celery(error: BaseException) -> str | None:
    """What to do about code written for Celery that can't be imported where Celery is not; None for all else."""
    if not isinstance(error, ModuleNotFoundError) or str(error).startswith("minicelery has no"):
        return None
    missing = str(error.name).partition(".")[0]
    if missing in ("celery", "kombu"):
        return (
            "write 'from minicelery import …' for 'from celery import …' in your own code; packages for Celery need "
            "'from minicelery import install_as_celery; install_as_celery()' before they are imported, "
            "as in the first lines of settings.py or of the project's __init__.py"
        )
    if (own := _OWN.get(missing)) is not None:
        return f"pip install {missing.replace('_', '-')}, or use {own}"
    return None


_OWN = {
    "django_celery_beat": "'minicelery.contrib.django' in INSTALLED_APPS and beat_scheduler='django'",
    "django_celery_results": "'minicelery.contrib.django' in INSTALLED_APPS and result_backend='django-db'",
}
"""What minicelery has in the place of packages for Celery."""


def import_related(package: str, related_name: str | None) -> None:
    """Import ``<package>.<related_name>``, if there is one; `package` may name an AppConfig of Django's."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        parent, _, name = package.rpartition(".")
        config = getattr(sys.modules.get(parent), name, None)  # imported on the way
        if not isinstance(config, type) or not isinstance(named := getattr(config, "name", None), str):
            raise
        package, module = named, importlib.import_module(named)
    if related_name is None:
        return
    if not hasattr(module, "__path__"):
        return
    full = f"{package}.{related_name}"
    if importlib.util.find_spec(full) is not None:
        importlib.import_module(full)


def django_packages() -> Iterator[str]:
    """The packages of the project's Django apps; none where this is no Django project."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        try:
            configured = sys.modules["django.conf"].settings.configured
        except (KeyError, AttributeError):
            return
        if not configured:
            return
    _fixups().set_up()
    for config in importlib.import_module("django.apps").apps.get_app_configs():
        yield config.name


def django_fixup(app: Celery) -> Any:
    """What `app` does otherwise in a Django project; None where Django is not installed."""
    if importlib.util.find_spec("django") is None:
        warnings.warn(
            f"DJANGO_SETTINGS_MODULE={os.environ['DJANGO_SETTINGS_MODULE']!r} is set and Django is not "
            "installed; pip install django, or unset the variable",
            FixupWarning,
            stacklevel=callers_level(),
        )
        return None
    return _fixups().DjangoFixup(app)


def _fixups() -> Any:
    # By its name: the core does not import what is made for one framework.
    return importlib.import_module("minicelery.contrib.django.fixup")
