"""What an app does otherwise where DJANGO_SETTINGS_MODULE is set; see `DjangoFixup`.

Importing this module does not import Django.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minicelery import _state, signals
from minicelery.contrib.django.problems import ProjectError
from minicelery.exceptions import FixupWarning
from minicelery.modules import without_celery
from minicelery.task import Task

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

TASK_CLASS = "minicelery.contrib.django.task:DjangoTask"
_SEE = "python manage.py check shows the whole traceback"
_TASKS = "minicelery.contrib.django.tasks"
SKIP_CHECKS = "CELERY_SKIP_CHECKS"
"""The environment variable that `--skip-checks` sets; Celery's."""


def set_up() -> None:
    """`django.setup()`, once.  Raises ProjectError where the project can't be loaded."""
    from django.apps import apps

    if apps.ready or apps.loading:
        return
    import django

    try:
        django.setup()
    except Exception as error:
        if (missing := without_celery(error)) is not None:
            hint = missing
        elif type(error).__name__ == "AppRegistryNotReady":
            hint = "tasks and models are to be imported in tasks.py, not in __init__.py or settings"
        else:
            hint = _SEE
        raise ProjectError(
            f"Django can't be set up with DJANGO_SETTINGS_MODULE={os.environ.get('DJANGO_SETTINGS_MODULE')!r}: "
            f"{type(error).__name__}: {error}",
            hint,
        ) from error


class DjangoFixup:
    """One app's dealings with Django: settings, models before tasks, connections around them."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        directory = os.getcwd()
        if directory not in sys.path and "" not in sys.path[:1]:
            sys.path.insert(0, directory)
        if app._task_class is Task:
            app._task_class = TASK_CLASS
        if _state.is_current(app) and _state.chosen_default() is None:
            _state.set_default(app)
        app.add_defaults(self._defaults)
        vars(app)["now"] = self._now
        self.zone: str | None = None  # Django's, if the app has none of its own

    def _now(self) -> Any:
        from django.utils import timezone

        return timezone.now()

    def _defaults(self) -> dict[str, Any]:
        """What the app's settings are where they say nothing else."""
        from django.conf import settings

        conf: Any = self.app._settings
        found: dict[str, Any] = {}
        if conf.result_backend == "django-db":
            found["result_extended"] = True  # the admin shows names, arguments and workers
        if _state.is_fallback(self.app):
            self._say_which_app_it_is_not()
        try:
            zone = settings.TIME_ZONE
        except Exception as error:  # no settings, or not yet: who needs them will say so
            log.debug("Django's settings can't be read: %r", error)
            return found
        if zone and not conf.value_set_for("timezone"):
            self.zone = found["timezone"] = zone
        return found

    def _say_which_app_it_is_not(self) -> None:
        from minicelery.contrib.django.project import unloaded

        if (left := unloaded()) is not None:
            from minicelery.modules import callers_level

            warnings.warn(
                f"the shared tasks of this project are bound to the default app, not to that of {left.file}, "
                f"which nothing has imported; {left.remedy}",
                FixupWarning,
                stacklevel=callers_level(),
            )

    # -- in programs -------------------------------------------------------------------------

    def before_tasks(self) -> None:
        """Have Django ready, as modules with tasks import models."""
        set_up()

    def check(self) -> None:
        """Refuse to start where Django's system checks find errors, or tables are missing.

        Raises ProjectError.  Not with `--skip-checks`.
        """
        if os.environ.get(SKIP_CHECKS):
            return
        from django.core.exceptions import ImproperlyConfigured as WrongSettings

        from minicelery.contrib.django.checks import check_project

        try:
            check_project(self.app)
        except WrongSettings as error:
            raise ProjectError(f"Django can't work with these settings: {error}", _SEE) from error

    def other_tasks(self) -> list[str]:
        """What workers run besides the tasks that have names, for people."""
        from django.conf import settings

        aliases = [
            alias
            for alias, backend in (getattr(settings, "TASKS", None) or {}).items()
            if str(backend.get("BACKEND")).startswith(_TASKS)
        ]
        return [f"Django's own, of {' and '.join(map(repr, aliases))} in TASKS"] if aliases else []

    def on_worker_start(self) -> None:
        """Close connections that nobody uses: now, around each task, and after a fork."""
        from minicelery.contrib.django.connections import Connections

        connections = Connections(self.app.conf.db_reuse_max)
        connections.close_all()
        signal_handlers: list[tuple[signals.Signal, Callable[..., None]]] = [
            (signals.task_prerun, connections.before_task),
            (signals.task_postrun, connections.after_task),
            (signals.task_revoked, connections.after_revoked),
            (signals.worker_process_init, connections.after_fork),
            (signals.beat_embedded_init, connections.before_beat),
            (signals.celeryd_after_setup, self._tell_zone),
        ]
        for signal, handler in signal_handlers:
            signal.disconnect(dispatch_uid=f"django.{signal.name}")
            signal.connect(handler, weak=False, dispatch_uid=f"django.{signal.name}")

    def _tell_zone(self, **_: Any) -> None:
        if self.zone not in (None, "UTC"):
            log.info(
                "The timezone is Django's TIME_ZONE, %s: schedules are in it. CELERY_TIMEZONE sets another one.",
                self.zone,
            )
