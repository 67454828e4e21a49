"""The schedule in Django's database: its tests, each file in a process with a project of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("django")

from minicelery import Celery
from tests.contrib.django.venvs import python_with, run_tests
from tests.django_inside import use_database
from tests.processes import end
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
PROJECT = Path(__file__).parent / "schedule_project"


def run_cases(
    *names: str, folder: Path, use_tz: bool = True, only: str = "", python: str = sys.executable
) -> None:
    # A plugin, not a conftest.py: the suite's own process would load that, and set Django up.
    fixtures = "tests.contrib.django.schedule_project.fixtures"
    cases = [str(PROJECT / name) for name in names]
    database = {"PROJECT_DB": f"{folder}/project.db", "PROJECT_USE_TZ": str(int(use_tz))}
    run_tests(python, "-p", fixtures, "-k", only, *cases, **database)


@pytest.mark.timeout(120)
def test_the_scheduler_sends_what_the_tables_say_and_the_admin_shows_and_changes_it(tmp_path: Path) -> None:
    run_cases("cases_scheduler.py", "cases_admin.py", folder=tmp_path)


@pytest.mark.timeout(120)
def test_so_it_does_without_time_zones_in_the_database(tmp_path: Path) -> None:
    run_cases(
        "cases_scheduler.py",
        folder=tmp_path,
        use_tz=False,
        only="start or one_off or clocked or written_back",
    )


@pytest.mark.timeout(400)  # the first run makes the virtual environment
@pytest.mark.parametrize(("version", "pythons"), [("4.2", ("3.11", "3.12")), ("6.1", ("3.12", "3.13"))])
def test_so_they_do_with_the_oldest_and_the_newest_django(
    version: str, pythons: tuple[str, ...], tmp_path: Path
) -> None:
    run_cases("cases_scheduler.py", "cases_admin.py", folder=tmp_path, python=python_with(version, *pythons))


APP = """
import os
from minicelery import Celery

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.contrib.django.schedule_project.schedule_settings"
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")

@app.task(name="shop.tick")
def tick(): ...
"""


@pytest.mark.timeout(120)
def test_a_row_that_another_process_saves_is_sent_within_seconds(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    environment = {
        **os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PROJECT_DB": str(use_database(tmp_path)),
        "BROKER_URL": sqlite_url, "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    from minicelery.contrib.django.models import IntervalSchedule, PeriodicTask

    often = IntervalSchedule.objects.create(every=1, period="seconds")
    log = tmp_path / "log"
    app = Celery("shop", broker=sqlite_url, set_as_current=False)
    tick = {"interval": often, "task": "shop.tick"}
    with open(log, "w") as file:
        beat = subprocess.Popen(
            [sys.executable, "-m", "minicelery", "-A", "shop", "beat", "-l", "info"],
            cwd=tmp_path, env=environment, stdout=file, stderr=file,
        )  # fmt: skip
        try:
            wait_until(lambda: "leading" in log.read_text(), 40)
            task = PeriodicTask.objects.create(name="tick", **tick)
            wait_until(lambda: app.broker.size("celery") >= 2, 30)
            task.enabled = False
            task.save()
            wait_until(lambda: log.read_text().count("the schedule has changed") >= 2, 30)
            before = app.broker.size("celery")
            PeriodicTask.objects.create(name="other", queue="other", **tick)
            wait_until(lambda: app.broker.size("other") >= 2, 30)  # it would have run too
            assert app.broker.size("celery") == before
        finally:
            end(beat)
            app.close()
