"""Django in the tests' own process: set up once, its database a file of each test's own."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.postgres import PostgresServer

APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "minicelery.contrib.django",
]


def settings(folder: Path) -> dict[str, Any]:
    """What the settings are."""
    return {
        "SECRET_KEY": "only for these tests",
        "INSTALLED_APPS": APPS,
        "DATABASES": {"default": _file(folder / "none.db")},
        "CACHES": {
            "default": {
                "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
                "LOCATION": str(folder / "cache"),
            },
            "own": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        },
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "ROOT_URLCONF": "tests.contrib.django.urls",
        "ALLOWED_HOSTS": ["testserver", "127.0.0.1"],
        "STATIC_URL": "static/",
        "MIDDLEWARE": [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        "USE_TZ": True,
        "TIME_ZONE": "UTC",
    }


@functools.cache
def _migrated() -> Path:
    """A database with all tables, to be copied."""
    import django
    from django import conf
    from django.core.management import call_command

    from minicelery import _state

    folder = Path(tempfile.mkdtemp(prefix="minicelery-django-"))
    before = _state._default, _state._default_is_chosen
    conf.settings.configure(**settings(folder))
    django.setup()
    _state._default, _state._default_is_chosen = before  # the app that it makes is nobody's here
    file = folder / "migrated.db"
    _use(_file(file))
    call_command("migrate", verbosity=0)
    _close()
    return file


def use_database(folder: Path) -> Path:
    """Have Django use a new database in `folder`, with all tables; the file."""
    file = folder / "django.sqlite3"
    migrated = _migrated()
    if not file.exists():
        shutil.copy(migrated, file)
    _use(_file(file))
    return file


def use_postgres(server: PostgresServer) -> None:
    """Have Django use the server's database, with all tables, empty."""
    from django.apps import apps
    from django.core.management import call_command
    from django.db import connections

    _migrated()
    _use(server.settings())
    if server not in _with_tables:
        call_command("migrate", verbosity=0)
        _with_tables.append(server)
    tables = ", ".join(model._meta.db_table for model in apps.get_app_config("minicelery").get_models())
    with connections["default"].cursor() as cursor:
        cursor.execute(f"TRUNCATE {tables}")


_with_tables: list[PostgresServer] = []


def _use(database: dict[str, Any]) -> None:
    from django.db import connections

    _close()
    connections.settings["default"] = connections.configure_settings({"default": database})["default"]
    with contextlib.suppress(AttributeError):
        del connections["default"]  # of this thread; others have none yet


def _close() -> None:
    from django.db import connections

    connections.close_all()


def _file(path: Path) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}
