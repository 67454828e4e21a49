"""The backend of ``django.tasks``: its contract with Django 6, and what other Djangos are told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import django
import pytest

from minicelery import Celery
from minicelery.exceptions import ImproperlyConfigured
from minicelery.worker.executor import Executor
from tests.contrib.django.venvs import python_with

ROOT = Path(__file__).parents[3]
PROJECT = Path(__file__).parent / "tasks_project"


def run_contract(python: str, folder: Path, broker: str, results: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{PROJECT}", "DJANGO_SETTINGS_MODULE": "project_settings",
        "PROJECT_DB": f"{folder}/project.db", "PROJECT_LOG": f"{folder}/log", "BROKER_URL": broker,
        "RESULT_URL": results, "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip
    return subprocess.run(
        [python, "-m", "contract"], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.timeout(400)  # the first run makes the virtual environment
@pytest.mark.parametrize(
    ("version", "pythons", "store"),
    [("6.1", ("3.12", "3.13"), "sqlite"), ("6.0", ("3.13", "3.12"), "redis")],
)
def test_the_backend_keeps_django_s_contract(
    version: str, pythons: tuple[str, ...], store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = python_with(version, *pythons)
    url = request.getfixturevalue(f"{store}_url")
    done = run_contract(python, tmp_path, url, url)
    assert done.returncode == 0, done.stderr[-12000:]
    assert "\nRan 35 tests in " in done.stderr


def test_without_an_interpreter_the_summary_says_what_is_not_tested() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"DJANGO 9\.9 IS NOT TESTED: it needs python3\.99"):
        python_with("9.9", "3.99")


@pytest.mark.skipif(django.VERSION >= (6, 0), reason="the Django at hand has django.tasks")
def test_an_older_django_is_told_what_to_do() -> None:
    from minicelery.contrib.django import tasks  # which workers of older Djangos may import

    with pytest.raises(
        ImproperlyConfigured, match=r"came with Django 6\.0, and this is Django .* @shared_task"
    ):
        _ = tasks.MiniceleryBackend
    with pytest.raises(AttributeError, match="Backand"):
        _ = tasks.MiniceleryBackand


def test_log_lines_of_failures_and_retries_have_the_shadow_name(caplog: pytest.LogCaptureFixture) -> None:
    with Celery("x", broker="memory://shadows", set_as_current=False) as app, caplog.at_level(logging.INFO):

        @app.task(name="x.fail", bind=True, shared=False)
        def fail(self: Any) -> None:
            raise self.retry(exc=ValueError("no"), countdown=0, max_retries=1)

        fail.apply_async(shadow="own.name")
        consumer = app.broker.consumer(["celery"], "test", None)
        for _ in range(2):
            (delivery,) = consumer.swap([], 1, 5)
            consumer.swap([Executor(app).run(delivery)], 0, 0)
        consumer.close()
    lines = [line for line in caplog.text.splitlines() if "Task " in line]
    assert ["Task own.name[" in line for line in lines] == [True, True]
    assert "x.fail[" not in caplog.text


def test_the_core_does_not_import_what_is_for_frameworks() -> None:
    script = (
        "import sys, minicelery.app, minicelery.worker, minicelery.beat, minicelery.cli\n"
        "assert not [name for name in sys.modules if name.startswith(('django', 'minicelery.contrib'))]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
