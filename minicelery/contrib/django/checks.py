"""Django's system checks for a project with tasks, and what a worker checks before it starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections, router
from django.db.utils import DatabaseError

from minicelery.contrib.django.problems import (
    ADD_APP,
    APP,
    LABEL,
    MIGRATE,
    NOT_INSTALLED,
    THEIR_RESULTS,
    ProjectError,
)

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

NOT_OURS = ("CELERY_RESULTS_", "CELERY_BEAT_TZ_AWARE")
"""Beginnings of settings that are other packages'."""


def register_all() -> None:
    """Have `manage.py check` and `runserver` run the checks of this module."""
    for check in (check_names, check_backend, check_app):
        checks.register(check, LABEL)


def check_names(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """W001: settings that begin with ``CELERY_`` and that there are not."""
    from minicelery.settings.names import renamed, suggestion

    found: list[checks.CheckMessage] = []
    for name in sorted(dir(settings)):
        if not name.startswith("CELERY_") or name.startswith(NOT_OURS) or renamed(name):
            continue
        hint = suggestion(name).removeprefix("; ") or None
        found.append(checks.Warning(f"there is no setting {name}", hint=hint, id="minicelery.W001"))
    return found


def check_backend(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """E002: results that are to go to tables which the project does not have."""
    value = getattr(settings, "CELERY_RESULT_BACKEND", None)
    return [] if value != "django-db" or _is_kept() else [_not_installed(value)]


def check_app(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """W004: an app of the project's own that is not the one in use."""
    config: Any = apps.get_app_config(LABEL) if apps.is_installed(APP) else None
    if config is None or config.app_problem is None:
        return []
    return [
        checks.Warning(
            f"{config.app_problem}, so an app made of the CELERY_ settings is used",
            hint="write 'from minicelery import Celery' there, or remove the file",
            id="minicelery.W004",
        )
    ]


def _is_kept() -> bool:
    """Whether the project has tables for results: minicelery's, or those of django-celery-results."""
    return bool(apps.is_installed(APP) or apps.is_installed(THEIR_RESULTS))


def _not_installed(value: str) -> checks.CheckMessage:
    return checks.Error(f"result_backend={value!r} {NOT_INSTALLED}", hint=ADD_APP, id="minicelery.E002")


# -- at the start of a worker ----------------------------------------------------------------


def check_project(app: Celery) -> None:
    """Raise ProjectError for the first serious thing; log what is worth a look."""
    if app.conf.result_backend == "django-db" and not _is_kept():
        error = _not_installed("django-db")
        raise ProjectError(error.msg, error.hint)
    if str(app.conf.result_backend).startswith("django-"):
        _ = app.backend  # which refuses what can't work
    _tell_unread(app)
    try:
        found = checks.run_checks()
        serious = [one for one in found if one.is_serious() and not one.is_silenced()]
        if serious:
            raise ProjectError(_described(serious), "--skip-checks starts the worker all the same")
        for one in found:
            if (
                str(one.id).startswith("minicelery.W")
                and one.id != "minicelery.W001"
                and not one.is_silenced()
            ):
                log.warning("%s", one)
        if app.conf.result_backend == "django-db" and apps.is_installed(APP):
            check_tables(("taskresult", "groupresult", "chordcounter", "chordpart"))
    finally:
        connections.close_all()


def _tell_unread(app: Celery) -> None:
    """W007: the project's settings, which the app has not been told to read."""
    from minicelery.settings.names import renamed

    if app._sources or "minicelery.W007" in settings.SILENCED_SYSTEM_CHECKS:
        return
    names = {name: renamed(name) for name in sorted(dir(settings)) if name.startswith("CELERY_")}
    unread = [name for name, key in names.items() if key and not app.conf.value_set_for(key)]
    if unread:
        log.warning(
            "minicelery.W007: the app %r does not read Django's settings, so these have no effect: %s; write "
            "app.config_from_object('django.conf:settings', namespace='CELERY')",
            app.main,
            ", ".join(unread),
        )


def check_tables(models: Sequence[str]) -> None:
    """E003: raise ProjectError where a migration of these models' tables has not been applied."""
    for name in models:
        model = apps.get_model(LABEL, name)
        database = router.db_for_write(model)
        left = list(_unapplied(database))
        if left:
            listed = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
            raise ProjectError(
                f"minicelery.E003: the database {database!r} lacks the tables of {APP!r} "
                f"(not applied: {listed})",
                MIGRATE,
            )


def _unapplied(database: str) -> Iterator[str]:
    from django.db.migrations.loader import MigrationLoader

    try:
        loader = MigrationLoader(connections[database])
    except DatabaseError as error:
        raise ProjectError(
            f"the database {database!r} can't be reached: {type(error).__name__}: {error}",
            "see DATABASES in the settings",
        ) from error
    for label, name in sorted(loader.disk_migrations):
        if label == LABEL and (label, name) not in loader.applied_migrations:
            replaced = loader.disk_migrations[label, name].replaces
            if not replaced or not all(one in loader.applied_migrations for one in replaced):
                yield name


def _described(found: Sequence[checks.CheckMessage]) -> str:
    number = "an error" if len(found) == 1 else f"{len(found)} errors"
    return "\n".join([f"Django's system checks have found {number}:", *(f"  {one}" for one in found)])
