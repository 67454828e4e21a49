"""django-celery-results 2.6 and django-celery-beat 2.9, unchanged, on minicelery, where no Celery is.

The first run makes their virtual environment, which may take a minute or two.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from minicelery import Celery
from tests.contrib.packages.conftest import FILES, ROOT, Project
from tests.processes import end
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

WORKER = ("-m", "minicelery", "-A", "proj", "worker", "-l", "info", "-c", "1")
BEAT = ("-m", "minicelery", "-A", "proj", "beat", "-l", "info")
AHEAD = (str(Path(__file__).parent / "clock_ahead.py"), *BEAT[2:])
OURS = "minicelery.contrib.django"

# -- results -----------------------------------------------------------------------------------

RESULTS = """
import celery, importlib.metadata
assert celery.__file__.startswith(os.environ["PYTHONPATH"]), celery.__file__
installed = {found.name for found in importlib.metadata.distributions()}
assert {"django-celery-beat", "django-celery-results"} <= {name.replace("_", "-") for name in installed}
assert not installed & {"celery", "kombu", "billiard", "amqp", "vine"}
from celery import chord, group
from celery.result import AsyncResult, GroupResult
from shop.tasks import add, boom, stubborn

added = add.delay(2, 2)
assert (added.get(timeout=60), added.state) == (4, "SUCCESS")
failed = boom.delay()
try:
    failed.get(timeout=60)
except KeyError as error:
    assert error.args == ("no such order",)
assert failed.state == "FAILURE" and "in boom" in failed.traceback
retried = stubborn.delay()
wait_until(lambda: retried.state == "RETRY", 60)
assert repr(retried.result) == "ValueError('not yet')"
both = group(add.s(n, n) for n in range(3))()
both.save()
assert GroupResult.restore(both.id).get(timeout=60) == [0, 2, 4]
try:
    chord([add.s(1, 1), add.s(2, 2)])(add.s(3))
except celery.exceptions.ImproperlyConfigured as error:
    print(error)
print(add.app.backend.celery_backend)
print(add.delay(1, 1).id)
added.forget()
assert added.state == "PENDING"
"""
LISTED = """
from django_celery_results.models import GroupResult, TaskResult
client = signed_in()
page = client.get("/admin/django_celery_results/taskresult/")
assert page.status_code == 200
text = page.content.decode()
for words in ("shop.tasks.add", "shop.tasks.boom", "shop.tasks.stubborn", "FAILURE", "RETRY"):
    assert words in text, words
row = TaskResult.objects.get(task_name="shop.tasks.boom")
text = client.get(f"/admin/django_celery_results/taskresult/{row.pk}/change/").content.decode()
assert "no such order" in text and "Traceback (most recent call last)" in text
row = TaskResult.objects.filter(task_name="shop.tasks.add").first()
assert (row.status, row.task_kwargs, row.content_type) == ("SUCCESS", '"{}"', "application/json")
assert row.worker.startswith("celery@") and row.meta == '{"children": []}', (row.worker, row.meta)
assert GroupResult.objects.count() == 1
"""


def test_results_are_kept_by_django_celery_results_and_listed_in_its_admin(project: Project) -> None:
    project.start(*WORKER, sign=" ready")
    said = project.script(RESULTS + LISTED)
    assert "a chord needs a result backend that can count its parts, and django-db can't: " in said
    assert "have 'minicelery.contrib.django' in INSTALLED_APPS, whose tables can" in said
    assert "<django_celery_results.backends.database.DatabaseBackend object" in said


IN_PROCESS = """
from minicelery.contrib.testing import start_worker
from proj.celery import app
import shop.tasks
with start_worker(app, perform_ping_check=False):
"""


def test_so_they_are_in_the_cache(project: Project) -> None:
    body = "".join(f"    {line}\n" for line in RESULTS.splitlines())
    said = project.script(IN_PROCESS + body, PROJECT_RESULTS="django-cache")
    assert "<django_celery_results.backends.cache.CacheBackend object" in said
    assert project.rows("SELECT count(*) FROM django_celery_results_taskresult") == [(0,)]


WHICH = """
from proj.celery import app
from minicelery.beat.choosing import scheduler_class
named = type(app)("named", backend="django_celery_results.backends:DatabaseBackend", set_as_current=False)
print(type(app.backend).__module__, type(named.backend.celery_backend).__module__)
print(scheduler_class(app, "django").__module__, scheduler_class(app).__module__)
"""


def test_where_minicelerys_app_is_installed_too_its_own_are_taken(project: Project) -> None:
    assert project.script(WHICH, PROJECT_APPS=OURS).split() == [
        f"{OURS}.results.database", "django_celery_results.backends.database", f"{OURS}.schedulers",
        "django_celery_beat.schedulers",
    ]  # fmt: skip


def test_without_the_alias_the_command_says_how_to_have_it(project: Project) -> None:
    project.write({"proj/__init__.py": ""})
    said = project.run("-m", "minicelery", "-A", "proj.celery", "report", fails=True)
    assert "No module named 'celery'" in said
    assert "'from minicelery import install_as_celery; install_as_celery()'" in said
    project.write({"proj/celery.py": FILES["proj/celery.py"].replace("from celery", "from minicelery")})
    first = "from minicelery import install_as_celery; install_as_celery()\n"
    settings = FILES["proj/settings.py"]
    project.write({"proj/settings.py": first + settings})
    assert "shop.tasks.boom" in project.script(
        "from proj.celery import app; app.finalize(); import shop.tasks; print(*app.tasks)"
    )
    project.write({"proj/settings.py": settings})
    said = project.run("-m", "minicelery", "-A", "proj.celery", "worker", fails=True)
    assert "No module named 'celery'" in said
    assert "install_as_celery()' before they are imported, as in the first lines of settings.py" in said


# -- the schedule ------------------------------------------------------------------------------

NEW = """
client = signed_in()
empty = {"periodictask_set-TOTAL_FORMS": 0, "periodictask_set-INITIAL_FORMS": 0}

def posted(path, **form):
    page = client.post(f"/admin/django_celery_beat/{path}", form)
    assert page.status_code == 302, page.context["errors"] if page.context else page

def entry(name, **more):
    return {"name": name, "regtask": "shop.tasks.add", "enabled": "on", "kwargs": "{}", "headers": "{}", **more}
"""
OFTEN = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_results.models import TaskResult
assert "shop.tasks.add" in client.get("/admin/django_celery_beat/periodictask/add/").content.decode()
posted("intervalschedule/add/", every=1, period="seconds", **empty)
interval = IntervalSchedule.objects.get().pk
posted("periodictask/add/", **entry("often", interval=interval, args="[3, 4]"))

def has_run(result):
    return TaskResult.objects.filter(periodic_task_name="often", result=result).exists()

wait_until(lambda: has_run("7"), 60)
row = PeriodicTask.objects.get(name="often")
posted(f"periodictask/{row.pk}/change/", **entry("often", interval=interval, args="[5, 5]"))
wait_until(lambda: has_run("10"), 60)
wait_until(lambda: PeriodicTask.objects.get(name="often").total_run_count >= 2, 60)
assert "often" in client.get("/admin/django_celery_beat/periodictask/").content.decode()
"""
STOP = """
from django_celery_beat.models import PeriodicTask
row = PeriodicTask.objects.get(name="often")
posted("periodictask/", action="disable_tasks", _selected_action=row.pk)
assert not PeriodicTask.objects.get(name="often").enabled
"""
RUNS = "SELECT count(*) FROM django_celery_results_taskresult WHERE periodic_task_name = 'often'"
LEADS = "DatabaseScheduler says what is sent"


def test_an_entry_of_the_admin_runs_changes_moves_to_another_beat_and_stops(project: Project) -> None:
    project.start(*WORKER, sign=" ready")
    first, first_log = project.start(*BEAT, sign=LEADS)
    project.script(NEW + OFTEN)
    _, second_log = project.start(*BEAT, "-S", "django", sign="starting with")
    count = project.rows(RUNS)
    wait_until(lambda: project.rows(RUNS) != count, 60, 0.1)
    assert LEADS not in second_log.read_text()  # one beat sends
    end(first)
    count = project.rows(RUNS)
    wait_until(lambda: LEADS in second_log.read_text(), 60, 0.1)
    wait_until(lambda: project.rows(RUNS) != count, 60, 0.1)
    project.script(NEW + STOP)
    wait_until(lambda: "Schedule changed" in second_log.read_text(), 60, 0.1)

    def has_stopped() -> bool:
        before = project.rows(RUNS)
        time.sleep(1.5)  # it would run then
        return project.rows(RUNS) == before

    wait_until(has_stopped, 60)
    assert "Traceback" not in first_log.read_text() + second_log.read_text()


CRONTAB = """
from django_celery_beat.models import CrontabSchedule, PeriodicTask
often = dict(minute="17", hour="3", day_of_month="*", month_of_year="*", day_of_week="*")
posted("crontabschedule/add/", timezone="Asia/Tokyo", **often, **empty)
row = CrontabSchedule.objects.get(minute="17")
posted("periodictask/add/", **entry("nightly", crontab=row.pk, args="[1, 2]", queue="cron"))
"""
EVERY_MINUTE = """
from django_celery_beat.models import CrontabSchedule, PeriodicTask
row, task = CrontabSchedule.objects.get(minute="17"), PeriodicTask.objects.get(name="nightly")
often = dict(minute="*", hour="*", day_of_month="*", month_of_year="*", day_of_week="*")
inline = {"periodictask_set-TOTAL_FORMS": 1, "periodictask_set-INITIAL_FORMS": 1,
          "periodictask_set-0-id": task.pk, "periodictask_set-0-crontab": row.pk}
posted(f"crontabschedule/{row.pk}/change/", timezone="Asia/Tokyo", **often, **inline)
"""


def test_a_crontab_edited_in_the_admin_fires(project: Project) -> None:
    # Its clock is set ahead, to just before the next minute: the beat waits for that as for any other.
    project.script(NEW + CRONTAB)
    ahead = project.folder / "ahead"
    with Celery("look", broker=f"sqlite:///{project.folder}/queue.db", set_as_current=False) as app:
        _, log = project.start(*AHEAD, sign=LEADS)
        project.script(NEW + EVERY_MINUTE)
        wait_until(lambda: "Schedule changed" in log.read_text(), 60, 0.05)
        before = app.broker.size("cron")
        seconds = 59.0 - time.time() % 60
        (project.folder / "new").write_text(str(seconds + 60 * (before > 0)))
        os.replace(project.folder / "new", ahead)
        wait_until(lambda: app.broker.size("cron") > before, 60, 0.05)
    assert log.read_text().count("Sending due task nightly (shop.tasks.add)") == before + 1


# -- moving over -------------------------------------------------------------------------------

ROWS = """
from proj.celery import app
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask
from django_celery_results.models import GroupResult, TaskResult
TaskResult.objects.store_result(
    "application/json", "utf-8", "1", '{"a": [1]}', "SUCCESS", task_name="shop.tasks.add", task_args='"(2, 2)"',
    task_kwargs='"{}"', worker="celery@old", meta='{"children": []}')
TaskResult.objects.store_result(
    "application/json", "utf-8", "2", '{"exc_type": "KeyError", "exc_message": ["no"], "exc_module": "builtins"}',
    "FAILURE", traceback="Traceback …", meta='{"children": []}')
every, _ = IntervalSchedule.objects.get_or_create(every=5, period="minutes")
cron, _ = CrontabSchedule.objects.get_or_create(minute="17", hour="3", timezone="Asia/Tokyo")
once, _ = ClockedSchedule.objects.get_or_create(clocked_time=timezone.now())
PeriodicTask.objects.create(name="often", task="shop.tasks.add", interval=every, args="[1, 2]", queue="q", total_run_count=7)
PeriodicTask.objects.create(name="nightly", task="shop.tasks.add", crontab=cron, enabled=False, expire_seconds=60)
PeriodicTask.objects.create(name="once", task="shop.tasks.boom", clocked=once, one_off=True)
from django.db import connection
for statement in open("move.sql").read().split(";"):
    if statement.strip():
        connection.cursor().execute(statement)
from minicelery.contrib.django import models
assert app.AsyncResult("1").get() == {"a": [1]}
assert isinstance(app.AsyncResult("2").result, KeyError)
assert app.AsyncResult("2").traceback == "Traceback …"
fields = [field.name for field in PeriodicTask._meta.fields]
for theirs in PeriodicTask.objects.all():
    ours = models.PeriodicTask.objects.get(name=theirs.name)
    for name in ("task", "args", "kwargs", "queue", "enabled", "one_off", "expire_seconds", "total_run_count"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert str(ours.timing(app)) != "", ours
print(models.PeriodicTask.objects.get(name="nightly").crontab.timezone)
print(sorted(name for name in __import__("minicelery.beat.choosing", fromlist=["x"]).open_scheduler(app, "django").entries()))
"""


def test_rows_of_both_packages_are_copied_by_the_documents_statements(project: Project) -> None:
    texts = [
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("django.md", "django-schedule.md")
    ]
    statements = [found for text in texts for found in re.findall(r"^```sql\n(.*?)^```", text, re.M | re.S)]
    assert len(statements) == 2
    assert all(
        f"FROM django_celery_{of}" in one for of, one in zip(("results", "beat"), statements, strict=True)
    )
    project.write({"move.sql": ";\n".join(statements)})
    zone, names = project.script(ROWS, PROJECT_APPS=OURS).splitlines()
    assert zone == "Asia/Tokyo"
    assert names == "['nightly', 'often', 'once']"
