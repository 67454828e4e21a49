"""Which app a Django project has: its own, or one that is made of its `CELERY_…` settings."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from minicelery import _state

if TYPE_CHECKING:
    from minicelery.app import Celery


@dataclass(frozen=True)
class Unloaded:
    """A module of the project's that most likely holds its app, and that nothing has imported."""

    package: str
    module: str
    file: str

    @property
    def remedy(self) -> str:
        return f"add 'from .celery import app as celery_app' to {self.package.replace('.', '/')}/__init__.py"


def project_name() -> str | None:
    """The package of the settings: ``mysite`` of ``mysite.settings``; None where they are in none."""
    try:
        name = str(settings.SETTINGS_MODULE)
    except Exception:  # settings.configure(), or no settings at all
        return None
    package, _, _ = name.rpartition(".")
    if package.endswith(".settings"):  # mysite.settings.production
        package = package.removesuffix(".settings")
    return package or None


def unloaded() -> Unloaded | None:
    """``mysite/celery.py``, if it is there and not imported."""
    package = project_name()
    if package is None or f"{package}.celery" in sys.modules:
        return None
    try:
        found = importlib.util.find_spec(f"{package}.celery")
    except ImportError:
        return None
    if found is None or found.origin is None:
        return None
    return Unloaded(package, f"{package}.celery", f"{package.replace('.', '/')}/{Path(found.origin).name}")


def ensure_app() -> str | None:
    """Have the project's app be the default one: its own, else a new one.

    Returns why the project's own module could not be used; None where all is well.
    """
    if _state.chosen_default() is not None:
        return None
    problem = None
    if (left := unloaded()) is not None:
        try:
            importlib.import_module(left.module)
        except Exception as error:
            problem = f"{left.file} can't be imported: {type(error).__name__}: {error}"
        else:
            if _state.chosen_default() is not None:
                return None
            problem = f"{left.file} makes no app of minicelery"
    make_app().set_default()
    return problem


def find_app() -> Celery | None:
    """The project's app, if it has one, or has this package in INSTALLED_APPS."""
    if _state.chosen_default() is None and (left := unloaded()) is not None:
        importlib.import_module(left.module)
    return _state.chosen_default()


def current_app() -> Celery:
    """The project's app, made if there is none."""
    ensure_app()
    found = _state.chosen_default()
    assert found is not None
    return found


def make_app() -> Celery:
    """A new app of the project's settings, that finds the tasks of its apps."""
    from minicelery.app import Celery
    from minicelery.contrib.django.fixup import DjangoFixup

    app = Celery(project_name() or "django", set_as_current=False)
    if app._fixup is None:  # settings.configure()
        app._fixup = DjangoFixup(app)
    app._home = _directory()
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.autodiscover_tasks()
    return app


def _directory() -> Path:
    """Where relative paths of SQLite files begin."""
    given: Any = getattr(settings, "BASE_DIR", None)
    if given:
        return Path(given)
    module = sys.modules.get(project_name() or "")
    return Path(str(module.__file__)).resolve().parent.parent if module and module.__file__ else Path.cwd()
