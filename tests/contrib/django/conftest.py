"""Django projects in a folder of the test's own, and the commands that are run in them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import end
from tests.waiting import wait_until

pytest.importorskip("django")

ROOT = Path(__file__).parents[3]
_VARIABLES = ("CELERY_", "MINICELERY_", "DJANGO_", "NO_COLOR", "FORCE_COLOR")

MANAGE = """\
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
SETTINGS = """\
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "only for this test"
DEBUG = True
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["polls.apps.PollsConfig"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
CELERY_BROKER_URL = "sqlite:///queue.db"
"""
CELERY = """\
import os
from minicelery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
LOADED = "from .celery import app as celery_app\n__all__ = ('celery_app',)\n"
TASKS = """\
from django.db import connection
from minicelery import shared_task
from polls.models import Choice

@shared_task
def add(x, y):
    return x + y

@shared_task
def count():
    return Choice.objects.count()

@shared_task
def was_open():
    found = connection.connection is not None
    connection.ensure_connection()
    return found

@shared_task
def boom():
    raise ValueError("no")
"""


class Site:
    """The project ``mysite`` with the app ``polls``; `write` changes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)},
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "",  # or each process would compile all of minicelery
            "PYTHONUNBUFFERED": "1",
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        for name, text in {
            "manage.py": MANAGE,
            "mysite/__init__.py": "",
            "mysite/settings.py": SETTINGS,
            "polls/__init__.py": "",
            "polls/apps.py": 'from django.apps import AppConfig\nclass PollsConfig(AppConfig):\n    name = "polls"\n',
            "polls/models.py": (
                "from django.db import models\nclass Choice(models.Model):\n    text = models.CharField(max_length=9)\n"
            ),
            "polls/migrations/__init__.py": "",
            "polls/migrations/0001_initial.py": (
                "from django.db import migrations, models\n"
                "class Migration(migrations.Migration):\n"
                "    initial = True\n"
                "    operations = [migrations.CreateModel('Choice', [\n"
                "        ('id', models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name='ID')),\n"
                "        ('text', models.CharField(max_length=9))])]\n"
            ),
            "polls/tasks.py": TASKS,
        }.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        """A file of the project."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def set(self, text: str) -> None:
        """More settings."""
        with open(self.folder / "mysite/settings.py", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def use_app(self) -> None:
        """The line that makes the rest unnecessary."""
        self.set('INSTALLED_APPS += ["minicelery.contrib.django"]')

    def use_celery_py(self) -> None:
        """The documented pattern."""
        self.write("mysite/celery.py", CELERY)
        self.write("mysite/__init__.py", LOADED)

    def run(self, *words: str, fails: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command: what follows ``python``; it ends well, or (`fails`) does not."""
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env={**self.environment, **environment},
            timeout=40, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode != 0) is fails, (
            f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
        return done

    def python(self, text: str, *, fails: bool = False, **environment: str) -> str:
        """What a program of the project's prints, Django being set up."""
        head = "import django; django.setup()\n"
        environment = {"DJANGO_SETTINGS_MODULE": "mysite.settings", **environment}
        done = self.run("-c", head + textwrap.dedent(text), fails=fails, **environment)
        return done.stdout + done.stderr

    def migrate(self) -> None:
        """Make the tables."""
        self.run("manage.py", "migrate", "-v0")

    def start_worker(self, *words: str, sign: str = " ready", **environment: str) -> Path:
        """Start a worker, wait until it is ready; its log."""
        log = self.folder / f"worker{len(self._processes)}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, env={**self.environment, **environment},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self._processes.append(process)

        def has_started() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            return sign in log.read_text()

        wait_until(has_started, 30)
        return log

    def close(self) -> None:
        """End every process."""
        end(*self._processes)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A project of the test's own."""
    site = Site(tmp_path)
    yield site
    site.close()
