"""A Django project with django-celery-results and django-celery-beat, run where no Celery is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contrib.packages.environment import python
from tests.processes import end
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
_VARIABLES = ("CELERY_", "MINICELERY_", "DJANGO_", "PROJECT_", "NO_COLOR", "FORCE_COLOR")

ALIASED = """\
from minicelery import install_as_celery

install_as_celery()

from .celery import app as celery_app

__all__ = ("celery_app",)
"""
CELERY = """\
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
SETTINGS = """\
import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "only for these tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "proj.urls"
STATIC_URL = "static/"
INSTALLED_APPS = [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
    "django.contrib.messages", "shop", "django_celery_results", "django_celery_beat", "celery",
    *os.environ.get("PROJECT_APPS", "").split(),
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3", "OPTIONS": {"timeout": 20},
}}
CACHES = {"default": {
    "BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": BASE_DIR / "cache",
}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Europe/Vienna"
CELERY_BROKER_URL = f"sqlite:///{BASE_DIR}/queue.db"
CELERY_RESULT_BACKEND = os.environ.get("PROJECT_RESULTS", "django-db")
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 0.5
CELERY_CACHE_BACKEND = "default"
"""
TASKS = """\
from celery import shared_task


@shared_task
def add(x, y):
    return x + y


@shared_task
def boom():
    raise KeyError("no such order")


@shared_task(bind=True)
def stubborn(self):
    raise self.retry(countdown=600, exc=ValueError("not yet"))
"""
FILES = {
    "manage.py": (
        'import os, sys\nos.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")\n'
        "from django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n"
    ),
    "proj/__init__.py": ALIASED,
    "proj/celery.py": CELERY,
    "proj/settings.py": SETTINGS,
    "proj/urls.py": (
        "from django.contrib import admin\nfrom django.urls import path\n"
        'urlpatterns = [path("admin/", admin.site.urls)]\n'
    ),
    "shop/__init__.py": "",
    "shop/tasks.py": TASKS,
}
HEAD = """\
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
import django
django.setup()
from tests.processes import end
from tests.waiting import wait_until

def signed_in():
    from django.contrib.auth.models import User
    from django.test import Client
    client = Client()
    client.force_login(User.objects.filter(username="me").first() or User.objects.create_superuser("me"))
    return client
"""


class Project:
    """The project ``proj`` with the app ``shop``, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = python()
        self._processes: list[subprocess.Popen[bytes]] = []

    def write(self, files: dict[str, str]) -> None:
        """Files of the project."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def environment(self, **more: str) -> dict[str, str]:
        """This process's, without what would choose another app or project."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            **more,
        }

    def run(self, *words: str, fails: bool = False, **environment: str) -> str:
        """What a command says: what follows ``python``; it ends well, or (`fails`) does not."""
        done = subprocess.run(
            [self.python, *words], cwd=self.folder, env=self.environment(**environment),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert (done.returncode != 0) is fails, f"{words[:3]} ended with {done.returncode}:\n{said[-6000:]}"
        return said

    def script(self, text: str, **environment: str) -> str:
        """What a program of the project prints, Django being set up."""
        return self.run("-c", HEAD + textwrap.dedent(text), **environment)

    def start(self, *words: str, sign: str, **environment: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a command and wait until it says `sign`; the process, and its log."""
        log = self.folder / f"{len(self._processes)}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [self.python, *words], cwd=self.folder, env=self.environment(**environment),
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self._processes.append(process)

        def has_started() -> bool:
            assert process.poll() is None, log.read_text()[-4000:]
            return sign in log.read_text()

        wait_until(has_started, 60, 0.05)
        return process, log

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """What the project's database answers."""
        connection = sqlite3.connect(self.folder / "db.sqlite3", timeout=20)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def close(self) -> None:
        """End every process."""
        end(*self._processes)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its tables."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.write(FILES)
    project.run("manage.py", "migrate", "-v0")
    return project.folder


@pytest.fixture
def project(migrated: Path, tmp_path: Path) -> Iterator[Project]:
    """A project of the test's own."""
    project = Project(tmp_path / "project")
    shutil.copytree(migrated, project.folder)
    yield project
    project.close()
