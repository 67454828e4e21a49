"""What is said of a Django project that can't work, or will surprise."""

from __future__ import annotations

from minicelery.exceptions import FixupWarning, ImproperlyConfigured

APP = "minicelery.contrib.django"
"""What stands in INSTALLED_APPS."""
LABEL = "minicelery"
"""The label of that app: of its tables, its migrations and its pages in the admin."""


def is_listed(app: str) -> bool:
    """Whether INSTALLED_APPS has the app, by its package or by its AppConfig."""
    from django.conf import settings

    return any(entry == app or entry.startswith(f"{app}.") for entry in settings.INSTALLED_APPS)


class ProjectError(ImproperlyConfigured):
    """A project in which a worker can't start; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


THEIR_RESULTS = "django_celery_results"
"""The package that `minicelery.contrib.django` may stand beside, or in the place of."""


class CallInTransaction(FixupWarning):
    """A task was called within a transaction: a worker may run it before the rows are there."""


NOT_INSTALLED = f"needs {APP!r} in INSTALLED_APPS"
ADD_APP = f"add {APP!r} to INSTALLED_APPS, then run: python manage.py migrate"
MIGRATE = "python manage.py migrate"
