"""minicelery as a Django app."""

from __future__ import annotations

from django.apps import AppConfig

from minicelery.contrib.django.problems import APP, LABEL


class MiniceleryConfig(AppConfig):
    """Makes the project's Celery app, if the project has none."""

    name = APP
    label = LABEL
    verbose_name = "minicelery"
    default_auto_field = "django.db.models.BigAutoField"

    app_problem: str | None = None
    """Why the project's own module with an app is not used."""

    def ready(self) -> None:
        from minicelery.contrib.django import checks, project

        checks.register_all()
        self.app_problem = project.ensure_app()
