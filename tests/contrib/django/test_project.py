"""An app in a Django project: the documented pattern, and the one line in INSTALLED_APPS."""

from __future__ import annotations

import importlib.util
import json

import pytest

from minicelery import Celery
from minicelery.exceptions import FixupWarning
from tests.contrib.django.conftest import Site
from tests.waiting import wait_until

RESULTS = 'CELERY_RESULT_BACKEND = "sqlite:///results.db"'


def test_the_documented_pattern_runs_tasks_that_use_models(site: Site) -> None:
    site.use_celery_py()
    site.set(RESULTS)
    site.migrate()
    log = site.start_worker("-m", "minicelery", "-A", "mysite", "worker", "-l", "info", "-c", "1")

    said = site.python(
        "from polls.tasks import add, count; print(add.delay(2, 2).get(10), count.delay().get(10))"
    )

    assert said == "4 0\n"
    assert "   . polls.tasks.count\n" in log.read_text()


def test_the_line_in_installed_apps_makes_an_app_that_finds_its_tasks(site: Site) -> None:
    site.use_app()
    site.set(f'{RESULTS}\nTIME_ZONE = "Europe/Vienna"')
    log = site.start_worker("-m", "minicelery", "worker", "-l", "info", "-c", "1")

    said = site.python("from polls.tasks import add; r = add.delay(2, 2); print(r.get(10), r.app.main)")

    assert said == "4 mysite\n"
    text = log.read_text()
    assert "using the app 'mysite', found in the Django project of mysite.settings" in text
    assert "The timezone is Django's TIME_ZONE, Europe/Vienna" in text
    assert "timezone Europe/Vienna" in text
    assert f"sqlite:///{site.folder}/queue.db" in text


def test_the_projects_own_app_wins(site: Site) -> None:
    site.use_app()
    site.use_celery_py()
    site.write(
        "mysite/celery.py", (site.folder / "mysite/celery.py").read_text().replace('y("mysite")', 'y("own")')
    )
    ask = "from polls.tasks import add; print(add.app.main)"
    assert site.python(ask) == "own\n"
    site.write("mysite/__init__.py", "")  # nobody imports it: then the Django app does
    assert site.python(ask) == "own\n"


def test_an_own_app_of_another_package_is_told_of(site: Site) -> None:
    site.use_app()
    site.write("mysite/celery.py", "app = None\n")

    said = site.run("manage.py", "check").stderr

    assert "?: (minicelery.W004) mysite/celery.py makes no app of minicelery, so an app made of the" in said
    assert "HINT: write 'from minicelery import Celery' there, or remove the file" in said


def test_tasks_are_found_by_the_name_of_an_appconfig_class(site: Site) -> None:
    said = site.python(
        """
        from django.conf import settings
        from minicelery import Celery
        app = Celery("x")
        app.autodiscover_tasks(lambda: settings.INSTALLED_APPS)
        app.import_task_modules()
        print("polls.tasks.add" in app.tasks)
        """
    )
    assert said == "True\n"


def test_time_zone_now_and_lazy_texts_are_djangos(site: Site) -> None:
    site.use_app()
    site.set('TIME_ZONE = "Asia/Kolkata"\nCELERY_TASK_ALWAYS_EAGER = True')
    text = """
        from unittest import mock
        from django.utils import timezone
        from django.utils.translation import gettext_lazy
        from minicelery import current_app
        from polls.tasks import add
        print(current_app.conf.timezone, current_app.now().utcoffset())
        with mock.patch.object(timezone, "now", lambda: "later"):
            print(current_app.now())
        print(add.delay(gettext_lazy("a"), "b").get())
        """
    assert site.python(text).splitlines() == ["Asia/Kolkata 0:00:00", "later", "ab"]
    site.set('CELERY_TIMEZONE = "Europe/Vienna"')
    assert "Europe/Vienna" in site.python(
        "from minicelery import current_app; print(current_app.conf.timezone)"
    )


def test_connections_are_kept_for_as_many_tasks_as_are_told(site: Site) -> None:
    site.use_app()
    site.set(f"{RESULTS}\nCELERY_DB_REUSE_MAX = 2")
    site.start_worker("manage.py", "minicelery", "worker", "-l", "info", "-c", "1")
    ask = "from polls.tasks import was_open; print([was_open.delay().get(10) for _ in range(4)])"
    assert site.python(ask) == "[False, True, False, True]\n"


def test_a_child_forgets_the_connections_of_its_parent(site: Site) -> None:
    said = site.python(
        """
        import json, os
        from django.db import connection
        from minicelery.contrib.django.connections import Connections, forget_inherited
        connection.ensure_connection()
        inherited = connection.connection
        read, write = os.pipe()
        if os.fork() == 0:
            Connections().after_fork()
            forgotten = connection.connection is None
            connection.ensure_connection()
            fresh = connection.connection is not inherited
            os.write(write, json.dumps([forgotten, fresh]).encode())
            os._exit(0)
        os.wait()
        assert connection.connection is inherited
        connection.cursor().execute("SELECT 1")
        print(os.read(read, 99).decode())
        """
    )
    assert json.loads(said) == [True, True]


def test_the_commands_set_django_up_before_they_import_the_app(site: Site) -> None:
    site.write(
        "jobs.py", "from minicelery import Celery\napp = Celery('jobs')\nfrom polls.models import Choice\n"
    )
    site.run(
        "-m",
        "minicelery",
        "-A",
        "jobs",
        "-b",
        "sqlite:///q.db",
        "list",
        "queues",
        DJANGO_SETTINGS_MODULE="mysite.settings",
    )
    said = site.run(
        "-m",
        "minicelery",
        "-A",
        "jobs",
        "list",
        "queues",
        fails=True,
        DJANGO_SETTINGS_MODULE="mysite.nothing",
    ).stderr
    assert said.startswith(
        "error: Django can't be set up with DJANGO_SETTINGS_MODULE='mysite.nothing': ModuleNotF"
    )
    assert "Traceback" not in said


def test_a_transaction_is_waited_for_and_a_call_within_one_is_warned_of(site: Site) -> None:
    site.use_app()
    said = site.python(
        """
        from django.db import transaction
        from minicelery import current_app
        from polls.tasks import add
        size = lambda: current_app.broker.size("celery")
        with transaction.atomic():
            print(add.delay_on_commit(1, 2), add.apply_async_on_commit((1, 2), queue="celery"), size())
        print(size())
        try:
            with transaction.atomic():
                add.delay_on_commit(1, 2)
                raise KeyError
        except KeyError:
            print(size())
        try:
            with transaction.atomic():
                add.delay_on_commit(1)
        except TypeError as error:
            print(error)
        add.delay(1, 2)
        with transaction.atomic():
            add.delay(3, 4)
        print(size())
        """
    )
    lines = said.splitlines()
    assert lines[:3] == ["None None 0", "2", "2"]
    assert lines[3].startswith("polls.tasks.add")
    assert lines[4] == "4"
    assert (
        "CallInTransaction: minicelery.W005: polls.tasks.add is called within a transaction of the database "
        "'default', so a worker may run it before the rows are there; write delay_on_commit(…)" in said
    )
    assert said.count("W005") == 1
    site.set("DEBUG = False")
    quiet = "from django.db import transaction\nfrom polls.tasks import add\nwith transaction.atomic(): add.delay(1, 2)\n"
    assert site.python(quiet) == ""


# -- stumbles --------------------------------------------------------------------------------


def test_an_app_that_nothing_imports_is_told_of(site: Site) -> None:
    site.use_celery_py()
    site.write("mysite/__init__.py", "")
    said = site.python("from polls.tasks import add; add.apply_async((2, 2), retry=False)", fails=True)
    assert (
        "FixupWarning: the shared tasks of this project are bound to the default app, not to that of "
        "mysite/celery.py, which nothing has imported; add 'from .celery import app as celery_app' to "
        "mysite/__init__.py" in said
    )


def test_results_in_the_database_need_the_app(site: Site) -> None:
    site.use_celery_py()
    site.set('CELERY_RESULT_BACKEND = "django-db"')
    done = site.run("-m", "minicelery", "-A", "mysite", "worker", fails=True)
    assert done.stderr == (
        "error: result_backend='django-db' needs 'minicelery.contrib.django' in INSTALLED_APPS\n"
        "hint: add 'minicelery.contrib.django' to INSTALLED_APPS, then run: python manage.py migrate\n"
    )
    said = site.python("from polls.tasks import add; add.delay(1, 2).get(1)", fails=True)
    assert "result_backend='django-db' needs 'minicelery.contrib.django' in INSTALLED_APPS" in said


def test_results_in_the_database_need_its_tables(site: Site) -> None:
    site.use_app()
    site.set('CELERY_RESULT_BACKEND = "django-db"')
    done = site.run("-m", "minicelery", "worker", "-q", fails=True)
    assert done.returncode == 78
    assert done.stderr == (
        "error: minicelery.E003: the database 'default' lacks the tables of 'minicelery.contrib.django' "
        "(not applied: 0001_results, 0002_schedule)\n"
        "hint: python manage.py migrate\n"
    )


def test_unknown_settings_are_found_by_the_checks(site: Site) -> None:
    site.use_app()
    site.set('CELERY_TASK_SERIALISER = "json"\nCELERY_DB_REUSE_MAX = 5\nCELERYD_CONCURRENCY = 2')
    said = site.run("manage.py", "check").stderr
    assert "?: (minicelery.W001) there is no setting CELERY_TASK_SERIALISER" in said
    assert "HINT: did you mean 'CELERY_TASK_SERIALIZER'?" in said
    assert said.count("W001") == 1


def test_an_app_that_does_not_read_the_settings_is_told_of(site: Site) -> None:
    site.set('CELERY_RESULT_BACKEND = "django-db"\nCELERY_TASK_ALWAYS_EAGER = False\nCELERY_RESULTS_X = 1')
    app = "from minicelery import Celery\napp = Celery('jobs', broker='sqlite:///q.db', task_always_eager=False)\n"
    site.write("jobs.py", app)
    environment = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}
    log = site.start_worker(
        "-m", "minicelery", "-A", "jobs", "worker", "-c", "1", "-l", "info", **environment
    )
    assert (
        "minicelery.W007: the app 'jobs' does not read Django's settings, so these have no effect: "
        "CELERY_RESULT_BACKEND; write app.config_from_object('django.conf:settings', namespace='CELERY')"
    ) in log.read_text()
    site.write("jobs.py", app + "app.config_from_object('django.conf:settings', namespace='CELERY')\n")
    site.use_app()
    site.migrate()
    log = site.start_worker(
        "-m", "minicelery", "-A", "jobs", "worker", "-c", "1", "-l", "info", **environment
    )
    assert "W007" not in log.read_text()


def test_a_worker_refuses_what_the_system_checks_do_unless_told_to_skip_them(site: Site) -> None:
    site.use_app()
    models = (site.folder / "polls/models.py").read_text()
    site.write("polls/models.py", models.replace("max_length=9", "max_length=-1"))
    done = site.run("-m", "minicelery", "worker", "-q", fails=True)
    assert done.returncode == 78
    assert "Django's system checks have found an error:\n  polls.Choice.text: (fields.E121)" in done.stderr
    assert "hint: --skip-checks starts the worker all the same\n" in done.stderr
    log = site.start_worker("-m", "minicelery", "worker", "--skip-checks", "-l", "info", "-c", "1")
    wait_until(lambda: "ready" in log.read_text(), 5)


def test_a_project_without_django_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(
        FixupWarning, match="DJANGO_SETTINGS_MODULE='mysite.settings' is set and Django is not installed"
    ):
        Celery("plain", set_as_current=False)
