"""Results in Django's database, and in its cache: `result_backend="django-db"` and ``"django-cache"``."""

from __future__ import annotations

from minicelery.contrib.django.fixup import set_up
from minicelery.contrib.django.problems import ADD_APP, APP, NOT_INSTALLED
from minicelery.exceptions import ImproperlyConfigured


def check(name: str) -> None:
    """Have Django ready for the result store of that name.  Raises ImproperlyConfigured."""
    from django.apps import apps
    from django.core.exceptions import ImproperlyConfigured as NoSettings

    try:
        set_up()
    except NoSettings as error:
        raise ImproperlyConfigured(
            f"result_backend={name!r} is for Django projects, and there are no settings of one; "
            "set DJANGO_SETTINGS_MODULE"
        ) from error
    if name == "django-db" and not apps.is_installed(APP):
        raise ImproperlyConfigured(f"result_backend={name!r} {NOT_INSTALLED}; {ADD_APP}")
