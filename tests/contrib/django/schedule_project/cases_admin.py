"""The admin's pages of the schedule."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core import checks
from django.test import Client

from minicelery import Celery, signals
from minicelery.contrib.django.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
)
from minicelery.contrib.django.times import moment_of
from tests.contrib.django.schedule_project.fixtures import Row

LIST = "/admin/minicelery/periodictask/"
EMPTY = {
    "name": "", "task": "", "other_task": "", "description": "", "interval": "", "crontab": "", "solar": "",
    "clocked": "", "start_time_0": "", "start_time_1": "", "args": "[]", "kwargs": "{}", "expires_0": "",
    "expires_1": "", "expire_seconds": "", "queue": "", "exchange": "", "routing_key": "", "priority": "",
    "headers": "{}", "enabled": "on",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _current(app: Celery) -> None:
    app.set_current()


@pytest.fixture
def client() -> Client:
    User.objects.all().delete()
    client = Client()
    client.force_login(User.objects.create_superuser("boss", "boss@example.org", "of a test"))
    return client


@pytest.fixture
def hourly() -> Any:
    return CrontabSchedule.objects.create(minute="0", timezone="Europe/Madrid")


def page(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer
    return unescape(answer.content.decode())


def saved(client: Client, path: str, **fields: Any) -> str:
    """Post the form; what the page says of it."""
    answer = client.post(path, {**EMPTY, **fields}, follow=True)
    assert answer.status_code == 200
    return unescape(answer.content.decode())


def act(client: Client, action: str, *tasks: Any) -> str:
    answer = client.post(
        LIST, {"action": action, "_selected_action": [task.pk for task in tasks]}, follow=True
    )
    return unescape(answer.content.decode())


def test_the_list_says_in_words_when_each_task_runs(client: Client, row: Row, hourly: Any) -> None:
    row("each hour", crontab=hourly)
    row("often", total_run_count=7)
    text = page(client, LIST)
    assert "at minute 0 of every hour (Europe/Madrid)" in text
    assert "every 10 seconds" in text
    assert re.search(r"\(in \d+ (min|s)", text)
    assert ">7<" in text


def test_a_task_is_made_and_changed_by_its_form(client: Client, hourly: Any) -> None:
    text = page(client, f"{LIST}add/")
    assert all(f'<option value="{name}">{name}</option>' in text for name in ("t.a", "t.b"))
    assert 'value="celery.' not in text
    text = saved(
        client, f"{LIST}add/", name="new", task="t.b", crontab=hourly.pk, args="[1]", kwargs='{"y": 2}'
    )
    assert "was added successfully" in text
    task = PeriodicTask.objects.get()
    assert (task.task, task.crontab, task.enabled) == ("t.b", hourly, True)
    text = page(client, f"{LIST}{task.pk}/change/")
    assert len(re.findall(r"<li>[^<]+\((?:in |now|\d+ s ago)", text)) == 5  # the hour may have just ended
    before = PeriodicTasks.last_change()
    text = saved(client, f"{LIST}{task.pk}/change/", name="new", other_task="of.workers", crontab=hourly.pk)
    assert "was changed successfully" in text
    task.refresh_from_db()
    assert (task.task, task.args) == ("of.workers", "[]")
    assert PeriodicTasks.last_change() > before
    assert "of.workers (not registered here)" in page(client, f"{LIST}{task.pk}/change/")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"args": "{}"}, "no JSON array"),
        ({"kwargs": "{'y': 1}"}, "is no JSON"),
        ({"args": "[" * 100_000}, "is no JSON"),
        ({"headers": "[]"}, "no JSON object"),
        ({"task": "t.b", "args": "[]"}, "missing"),
        ({"task": ""}, "Choose a task"),
        ({"priority": "200"}, "priority=200"),
        ({"crontab": ""}, "must be set"),
        ({"expire_seconds": "5", "expires_0": "2030-01-01", "expires_1": "00:00:00"}, "Only one of expires"),
    ],
)
def test_what_can_not_be_sent_is_refused_in_words(
    client: Client, hourly: Any, fields: dict[str, str], said: str
) -> None:
    text = saved(client, f"{LIST}add/", **{"name": "new", "task": "t.a", "crontab": hourly.pk, **fields})
    assert said in text
    assert not PeriodicTask.objects.exists()


def test_tasks_are_enabled_and_disabled_together(client: Client, row: Row) -> None:
    tasks = [row("a", last_run_at=moment_of(1.8e9)), row("b")]
    before = PeriodicTasks.last_change()
    assert "2 periodic tasks disabled" in act(client, "disable", *tasks)
    assert not PeriodicTask.objects.enabled().exists()
    assert PeriodicTask.objects.get(name="a").last_run_at is None
    assert PeriodicTasks.last_change() > before
    assert "1 periodic task enabled" in act(client, "enable", tasks[1])
    assert [task.name for task in PeriodicTask.objects.enabled()] == ["b"]
    assert "none: it is not enabled" in page(client, f"{LIST}{tasks[0].pk}/change/")


def test_a_task_is_run_now_besides_its_schedule(client: Client, row: Row, app: Celery) -> None:
    heard: list[Any] = []

    def hear(sender: Any, body: Any, headers: Any, **_: Any) -> None:
        heard.append((sender, list(body[0]), headers["id"]))

    signals.before_task_publish.connect(hear, weak=False)
    try:
        tasks = (
            row("a", task="t.b", args="[4]", enabled=False),
            row("b", task="of.workers"),
            row("c", task="t.b"),
        )
        text = act(client, "run_now", *tasks)
    finally:
        signals.before_task_publish.disconnect(hear)
    assert sorted(sent[:2] for sent in heard) == [("of.workers", []), ("t.b", [4])]
    assert all(f"[{sent[2]}]" in text for sent in heard)
    assert "'c' is not sent" in text
    assert app.broker.size("celery") == 2
    assert PeriodicTask.objects.get(name="a").total_run_count == 0


def test_who_may_only_look_can_not_run_tasks(client: Client, row: Row, app: Celery) -> None:
    task = row("a")
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_periodictask"))
    client.force_login(viewer)
    act(client, "run_now", task)
    act(client, "disable", task)
    assert app.broker.size("celery") == 0
    task.refresh_from_db()
    assert task.enabled


def test_schedules_have_pages_of_their_own(client: Client, row: Row, hourly: Any) -> None:
    row("each hour", crontab=hourly)
    ClockedSchedule.objects.create(clocked_time=moment_of(1893456000.0))
    interval = IntervalSchedule.objects.create(every=5, period="minutes")
    text = page(client, "/admin/minicelery/crontabschedule/")
    assert "at minute 0 of every hour" in text
    assert "each hour" in text
    assert "every 5 minutes" in page(client, f"/admin/minicelery/intervalschedule/{interval.pk}/change/")
    assert "once, at 2030-01-01" in page(client, "/admin/minicelery/clockedschedule/")
    page(client, "/admin/minicelery/solarschedule/add/")
    change = f"/admin/minicelery/crontabschedule/{hourly.pk}/change/"
    assert '<option value="Europe/Madrid" selected>' in page(client, change)
    fields = {"minute": "61", "hour": "*", "day_of_month": "*", "month_of_year": "*", "day_of_week": "*"}
    assert "61" in saved(client, change, **fields, timezone="UTC")
    hourly.refresh_from_db()
    assert hourly.minute == "0"
    assert "was changed" in saved(client, change, **{**fields, "minute": "5"}, timezone="Asia/Tokyo")
    hourly.refresh_from_db()
    assert (hourly.minute, str(hourly.timezone)) == ("5", "Asia/Tokyo")


def test_the_project_has_no_faults_and_no_migration_is_missing() -> None:
    from django.core.management import call_command

    assert checks.run_checks() == []
    call_command("makemigrations", "minicelery", check=True, dry_run=True, verbosity=0)
