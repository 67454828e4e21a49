"""Which scheduler a beat has: a class of minicelery's kind, or one that was written for Celery."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from minicelery.beat.scheduler import Scheduler
from minicelery.beat.ticking import TickingScheduler
from minicelery.exceptions import ImproperlyConfigured
from minicelery.modules import registered, without_celery

if TYPE_CHECKING:
    from minicelery.app import Celery

_OF_DJANGO = "minicelery.contrib.django.schedulers:DatabaseScheduler"
_GROUP = "celery.beat_schedulers"
_CELERYS = ("celery.beat", "minicelery.beat", "minicelery.alias.beat")
_ITS_CLASSES = ("PersistentScheduler", "Scheduler")


def open_scheduler(
    app: Celery, named: str | type[Any] | None = None, max_interval: float | None = None
) -> Scheduler:
    """The scheduler that is named, or else that of `beat_scheduler`.  Raises ImproperlyConfigured.

    `max_interval` is for one that is written for Celery.
    """
    kind = scheduler_class(app, named)
    return kind(app) if issubclass(kind, Scheduler) else TickingScheduler(app, kind, max_interval)


def scheduler_class(app: Celery, named: str | type[Any] | None = None) -> type[Any]:
    """Its class."""
    given = named or app.conf.beat_scheduler
    kind = _find(given) if isinstance(given, str) else given
    if isinstance(kind, type) and issubclass(kind, Scheduler):
        return kind
    if not (isinstance(kind, type) and callable(getattr(kind, "tick", None))):
        raise ImproperlyConfigured(
            f"beat_scheduler={given!r:.100}: expected a subclass of minicelery.beat.Scheduler, which has "
            "entries() and changed(), or of celery.beat.Scheduler, which has tick()"
        )
    if any(base.__module__ == "celery.beat" for base in kind.__mro__):
        raise ImproperlyConfigured(
            f"beat_scheduler={given!r:.100}: {kind.__qualname__} builds on the installed Celery; call "
            "install_as_celery(force=True) before it is imported"
        )
    return kind


def _find(name: str) -> Any:
    path = _of_django() if name == "django" else name
    module, _, attribute = path.replace(":", ".").rpartition(".")
    if not module and (path := registered(_GROUP, name) or ""):
        module, _, attribute = path.replace(":", ".").rpartition(".")
    if module in _CELERYS and attribute in _ITS_CLASSES:
        return Scheduler
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        hint = without_celery(error) or "expected module:Class, a subclass of minicelery.beat.Scheduler"
        raise ImproperlyConfigured(f"beat_scheduler={name!r}: {error}; {hint}") from error


def _of_django() -> str:
    """minicelery's schedule in Django's database, unless the project has django-celery-beat in its place."""
    theirs = registered(_GROUP, "django")
    if theirs is None or not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return _OF_DJANGO
    importlib.import_module("minicelery.contrib.django.fixup").set_up()
    apps: Any = importlib.import_module("django.apps").apps
    is_theirs = apps.is_installed("django_celery_beat") and not apps.is_installed("minicelery.contrib.django")
    return theirs if is_theirs else _OF_DJANGO
