"""The schedule in Django's database, in time that the test moves."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, OperationalError

from minicelery import Celery, signals
from minicelery.beat import Beat
from minicelery.contrib.django import schedulers
from minicelery.contrib.django.bounds import NEVER, Bounded, clocked
from minicelery.contrib.django.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
    SolarSchedule,
)
from minicelery.contrib.django.times import aware, moment_of
from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules import crontab, schedule, solar
from tests.beat.conftest import Sent, Travel, live
from tests.contrib.django.schedule_project.fixtures import Row

UTC = timezone.utc


def start(app: Celery, clock: Travel) -> Beat:
    return Beat(app, clock=clock, scheduler="django")


def times(sent: Sent, since: float) -> list[float]:
    return [round(at - since, 3) for _, at in sent.runs]


def at(clock: Travel, seconds: float) -> datetime:
    return moment_of(clock.now() + seconds)


# -- what is sent --------------------------------------------------------------------------------


def test_a_row_is_sent_by_its_interval_with_arguments_and_options(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    heard: list[Any] = []

    def hear(sender: Any, body: Any, headers: Any, routing_key: Any, **_: Any) -> None:
        heard.append((body[0], body[1], headers["periodic_task_name"], headers["own"], routing_key))

    signals.before_task_publish.connect(hear, weak=False)
    try:
        row(args='["é"]', kwargs=json.dumps({"n": 1}), queue="slow", headers='{"own": 1}', priority=3)
        begin, beat = clock.now(), start(app, clock)
        live(beat, clock, 31)
    finally:
        signals.before_task_publish.disconnect(hear)
    assert times(sent, begin) == [10, 20, 30]
    assert heard[0] == (("é",), {"n": 1}, "a", 1, "slow") or heard[0] == (["é"], {"n": 1}, "a", 1, "slow")


def hourly_in_tokyo() -> tuple[Any, Any]:
    saved = CrontabSchedule(minute="30", hour="4", day_of_week="mon", timezone=ZoneInfo("Asia/Tokyo"))
    return saved, crontab("30", "4", "mon", tz="Asia/Tokyo")


def at_sunset() -> tuple[Any, Any]:
    pytest.importorskip("ephem")
    return SolarSchedule(event="sunset", latitude="41.4", longitude="2.1"), solar("sunset", 41.4, 2.1)


def each_two_hours() -> tuple[Any, Any]:
    return IntervalSchedule(every=7200, period="seconds"), schedule(7200)


def at_a_time() -> tuple[Any, Any]:
    time = moment_of(1893456000.0)
    return ClockedSchedule(clocked_time=time), clocked(aware(time))


@pytest.mark.parametrize("make", [hourly_in_tokyo, at_sunset, each_two_hours, at_a_time])
def test_a_schedule_is_read_back_as_it_was_saved(make: Any) -> None:
    saved, timing = make()
    saved.full_clean()
    saved.save()
    found = type(saved).objects.get(pk=saved.pk)
    assert found.schedule == timing
    if isinstance(timing, crontab):
        assert found.schedule.tz == timing.tz
    if not isinstance(timing, clocked) or settings.USE_TZ:
        assert type(saved).from_schedule(timing).pk == saved.pk
    assert IntervalSchedule(every=500, period="microseconds").schedule == schedule(0.0005)


def test_a_crontab_runs_in_its_time_zone(app: Celery, clock: Travel, row: Row, sent: Sent) -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    when = datetime.fromtimestamp(clock.now() + 240, tokyo).replace(second=0, microsecond=0)
    row(crontab=CrontabSchedule.objects.create(minute=when.minute, hour=when.hour, timezone=tokyo))
    beat = start(app, clock)
    live(beat, clock, 400)
    assert [sent_at for _, sent_at in sent.runs] == [when.timestamp()]


def test_changes_take_effect_within_seconds(app: Celery, clock: Travel, row: Row, sent: Sent) -> None:
    task = row()
    beat = start(app, clock)
    live(beat, clock, 11)
    assert len(sent.runs) == 1
    IntervalSchedule.objects.create(every=2, period="seconds")
    task.interval = IntervalSchedule.objects.get(every=2)
    task.save()
    live(beat, clock, 9)
    assert 5 <= len(sent.runs) <= 6
    task.enabled = False
    task.save()
    live(beat, clock, 4)
    before = len(sent.runs)
    live(beat, clock, 60)
    assert len(sent.runs) == before
    task.refresh_from_db()
    assert task.last_run_at is None
    assert PeriodicTask.objects.all().set_enabled(True) == 1
    live(beat, clock, 7)
    assert len(sent.runs) > before
    PeriodicTask.objects.all().delete()
    live(beat, clock, 4)
    before = len(sent.runs)
    live(beat, clock, 60)
    assert len(sent.runs) == before


def test_a_shared_schedule_that_is_edited_changes_all_that_refer_to_it(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    row("a")
    row("b", task="t.b", args="[1]")
    beat = start(app, clock)
    live(beat, clock, 1)
    shared = IntervalSchedule.objects.get()
    shared.every = 3
    shared.save()
    live(beat, clock, 6.5)
    assert {name for name, _ in sent.runs} == {"t.a", "t.b"}


def test_what_was_missed_while_a_row_was_disabled_is_not_made_up_for(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    task = row()
    beat = start(app, clock)
    live(beat, clock, 11)
    task.enabled = False
    task.save()
    live(beat, clock, 100)
    task.enabled = True
    task.save()
    PeriodicTask.objects.filter(pk=task.pk).update(date_changed=moment_of(clock.now()))
    begin = clock.now()
    sent.runs.clear()
    live(beat, clock, 12)
    assert times(sent, begin) == [10]


# -- when it begins and ends -------------------------------------------------------------------


def test_a_task_begins_at_its_start_time_and_ends_when_it_expires(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    begin = clock.now()
    row(start_time=at(clock, 25), expires=at(clock, 50))
    beat = start(app, clock)
    live(beat, clock, 100)
    assert times(sent, begin) == [25, 35, 45]


def test_a_crontab_with_a_start_runs_at_its_own_times(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    first = datetime.fromtimestamp(clock.now(), UTC).replace(second=0, microsecond=0) + timedelta(minutes=3)
    every_minute = CrontabSchedule.objects.create(timezone="UTC")
    row(crontab=every_minute, start_time=moment_of(first.timestamp()))
    beat = start(app, clock)
    live(beat, clock, 240)
    assert sent.runs[0][1] == first.timestamp()


def test_the_deadline_of_crontabs_is_also_that_of_those_with_an_end(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    app.conf.beat_cron_starting_deadline = 5
    clock.wait(30 - clock.now() % 60)  # far from where a minute begins
    row(crontab=CrontabSchedule.objects.create(timezone="UTC"), expires=at(clock, 86400))
    beat = start(app, clock)
    live(beat, clock, 1)
    clock.wait(3600 + 30 - clock.now() % 60)  # a minute began 30 s ago
    live(beat, clock, 1)
    assert sent.runs == []
    live(beat, clock, 60)
    assert len(sent.runs) == 1


def test_a_one_off_task_runs_once_and_is_disabled(app: Celery, clock: Travel, row: Row, sent: Sent) -> None:
    quick = IntervalSchedule.objects.create(every=1, period="seconds")
    begin = clock.now()
    task = row(interval=quick, one_off=True)
    beat = start(app, clock)
    live(beat, clock, 30)
    assert times(sent, begin) == [1]
    task.refresh_from_db()
    assert (task.enabled, task.total_run_count) == (False, 1)
    again = clock.now()
    task.enabled = True
    task.save()
    PeriodicTask.objects.filter(pk=task.pk).update(date_changed=moment_of(again))
    live(beat, clock, 30)
    assert len(sent.runs) == 2


def test_a_clocked_task_runs_at_its_time_also_if_beat_sees_it_late(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    begin = clock.now()
    beat = start(app, clock)
    live(beat, clock, 1)
    for name, seconds in (("later", 20), ("soon", 0.5), ("past", -3600)):
        when = ClockedSchedule.objects.create(clocked_time=at(clock, seconds))
        row(name, clocked=when, one_off=True)
    live(beat, clock, 60)
    assert [round(one - begin) for _, one in sent.runs][-1] == 21
    assert len(sent.runs) == 3
    assert max(times(sent, begin)[:2]) < 5
    assert not PeriodicTask.objects.filter(enabled=True).exists()


def test_never_is_never(clock: Travel) -> None:
    now = datetime.fromtimestamp(clock.now(), UTC)
    assert clocked(now).next(now) == NEVER
    assert Bounded(schedule(10), end=now).next(now) == NEVER
    assert Bounded(schedule(10), once_after=now).next(now + timedelta(seconds=10)) == NEVER


# -- what is written back ------------------------------------------------------------------------


def test_the_last_run_and_the_count_are_written_back(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    task = row(total_run_count=100)
    changed = PeriodicTasks.last_change()
    begin, beat = clock.now(), start(app, clock)
    live(beat, clock, 24)
    task.refresh_from_db()
    assert (aware(task.last_run_at).timestamp() - begin, task.total_run_count) == (20, 102)
    assert PeriodicTasks.last_change() == changed  # or beats would read all again after each run
    live(beat, clock, 6.5)
    beat.close()
    task.refresh_from_db()
    assert (aware(task.last_run_at).timestamp() - begin, task.total_run_count) == (30, 103)


def test_another_beat_goes_on_where_one_has_ended(app: Celery, clock: Travel, row: Row, sent: Sent) -> None:
    row()
    begin = clock.now()
    once = row("once", one_off=True, task="t.b", args="[1]")
    beats = [start(app, clock), start(app, clock)]
    for _ in range(25):
        for beat in beats:
            beat.turn()
        clock.wait(1)
    beats[0].close()
    for _ in range(10):
        beats[1].turn()
        clock.wait(1)
    assert sorted(sent.runs) == [
        ("t.a", begin + 10),
        ("t.a", begin + 20),
        ("t.a", begin + 30),
        ("t.b", begin + 10),
    ]
    once.refresh_from_db()
    assert not once.enabled


# -- with others -----------------------------------------------------------------------------------


def test_entries_of_the_program_and_stored_ones_are_sent_too_and_rows_can_disable_them(
    app: Celery, clock: Travel, row: Row, sent: Sent
) -> None:
    app.conf.beat_schedule = {"of the program": {"task": "t.b", "schedule": 10.0, "args": [1]}}
    app.schedule.add("stored", "t.b", 10.0, [2])
    row()
    beat = start(app, clock)
    live(beat, clock, 11)
    assert sorted(beat.entries) == ["a", "of the program", "stored"]
    row("of the program", enabled=False)
    live(beat, clock, 4)
    sent.runs.clear()
    live(beat, clock, 10)
    assert sorted(name for name, _ in sent.runs) == ["t.a", "t.b"]


def test_a_wrong_row_is_named_and_the_others_go_on(
    app: Celery, clock: Travel, row: Row, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    row("good")
    for name, column, value in (
        ("no array", "args", "{}"), ("no json", "kwargs", "{"), ("no task", "task", ""), ("steep", "priority", 200),
    ):  # fmt: skip
        row(name)
        PeriodicTask.objects.filter(name=name).update(**{column: value})
    bad = CrontabSchedule.objects.create(minute="61", timezone="UTC")
    row("no minute", crontab=bad)
    with caplog.at_level(logging.WARNING):
        beat = start(app, clock)
        live(beat, clock, 31)
    assert len(sent.runs) == 3
    text = caplog.text
    for name, said in (
        ("no array", "no JSON array"), ("no json", "no JSON"), ("no task", "the name of a task"),
        ("steep", "priority=200"), ("no minute", "61"),
    ):  # fmt: skip
        line = next(line for line in text.splitlines() if f"periodic task {name!r}" in line)
        assert said in line
    assert text.count("'no array'") == 2  # once of the row, once of the task that was sent


def test_beat_goes_on_while_the_database_is_away(
    app: Celery, clock: Travel, row: Row, sent: Sent, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    row()
    beat = start(app, clock)
    live(beat, clock, 1)

    def fail() -> None:
        raise OperationalError("the database is away")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(PeriodicTasks, "last_change", fail)
        patch.setattr(PeriodicTask.objects, "filter", lambda **_: fail())
        live(beat, clock, 40)
    assert len(sent.runs) == 4
    assert caplog.text.count("the database is away") == 1
    live(beat, clock, 5)
    assert PeriodicTask.objects.get().total_run_count == 4


def test_an_app_that_is_not_installed_and_tables_that_are_not_there_are_errors_in_words(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeriodicTask._meta, "db_table", "minicelery_nothing")
    with pytest.raises(ImproperlyConfigured, match=r"minicelery_nothing is not there.*manage\.py migrate"):
        Beat(app, scheduler="django")
    monkeypatch.setattr(schedulers, "APP", "minicelery.contrib.nothing")
    with pytest.raises(ImproperlyConfigured, match="in INSTALLED_APPS"):
        Beat(app, scheduler="minicelery.contrib.django.schedulers:DatabaseScheduler")


# -- what can be saved -----------------------------------------------------------------------------


def test_a_task_has_exactly_one_schedule(row: Row) -> None:
    hourly = CrontabSchedule.objects.create(minute="0")
    with pytest.raises(ValidationError, match="must be set"):
        PeriodicTask.objects.create(name="none", task="t.a")
    with pytest.raises(ValidationError, match="Only one of"):
        row(crontab=hourly, interval=IntervalSchedule.objects.create(every=1, period="days"))
    with pytest.raises(ValidationError, match="once only"):
        row(clocked=ClockedSchedule.objects.create(clocked_time=moment_of(1893456000.0)))
    with pytest.raises(ValidationError, match="Only one of expires"):
        row(expires=moment_of(1893456000.0), expire_seconds=5)


def test_names_are_unique(row: Row) -> None:
    row("a")
    with pytest.raises((ValidationError, IntegrityError)):
        row("a")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (CrontabSchedule(minute="61"), "61"),
        (CrontabSchedule(timezone="Europe/Nowhere"), "no time zone"),
        (CrontabSchedule(day_of_month="30", month_of_year="2"), "never"),
        (IntervalSchedule(every=0, period="days"), "greater than or equal to 1"),
        (IntervalSchedule(every=1, period="weeks"), "weeks"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused(made: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        made.full_clean()


def test_the_next_runs_and_words_are_shown(row: Row, clock: Travel) -> None:
    task = row(
        crontab=CrontabSchedule.objects.create(minute="0", hour="9", timezone="Europe/Madrid"), one_off=True
    )
    assert "once, at 09:00" in str(task)
    (only,) = task.next_runs(after=datetime.now(UTC))
    assert only.astimezone(ZoneInfo("Europe/Madrid")).hour == 9
    each = row("each", start_time=at(clock, 100))
    assert [round(one.timestamp() - clock.now()) for one in each.next_runs(3)] == [100, 110, 120]
    each.enabled = False
    assert each.next_runs() == []
