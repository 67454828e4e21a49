"""The project's database, emptied for each test, and an app with time that moves when the test says so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.contrib.django.schedule_project.schedule_settings")
django.setup()

from django.core.management import call_command  # noqa: E402

from minicelery import Celery  # noqa: E402
from minicelery.contrib.django.models import (  # noqa: E402
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
    SolarSchedule,
)
from minicelery.contrib.django.times import moment_of  # noqa: E402
from tests.beat.conftest import Sent, Travel, make_app, sent  # noqa: E402, F401  # a fixture

MODELS = (PeriodicTask, IntervalSchedule, CrontabSchedule, SolarSchedule, ClockedSchedule, PeriodicTasks)
Row = Callable[..., Any]


@pytest.fixture(scope="session")
def _tables() -> None:
    call_command("migrate", verbosity=0)


@pytest.fixture(autouse=True)
def _no_rows(_tables: None) -> None:
    for model in MODELS:
        model.objects.all().delete()


@pytest.fixture
def clock() -> Travel:
    """Begins now: rows bear the time at which they are saved."""
    return Travel(float(int(time.time()) + 1))


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    with make_app(f"memory://{request.node.name}") as app:
        yield app


@pytest.fixture
def row(clock: Travel) -> Row:
    """Saves a periodic task of t.a, as of the clock's time; by default each 10 seconds."""

    def save(name: str = "a", **fields: Any) -> Any:
        if not {"interval", "crontab", "solar", "clocked"} & set(fields):
            fields["interval"] = IntervalSchedule.objects.get_or_create(every=10, period="seconds")[0]
        task = PeriodicTask.objects.create(name=name, task=fields.pop("task", "t.a"), **fields)
        PeriodicTask.objects.filter(pk=task.pk).update(date_changed=moment_of(clock.now()))
        task.refresh_from_db()
        return task

    return save
