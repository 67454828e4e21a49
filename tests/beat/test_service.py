"""What is sent when: in time that the tests move."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from minicelery import Celery
from minicelery.beat import Beat, lease
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.schedules import BaseSchedule, crontab, schedule
from tests.beat.conftest import Sent, Travel, live, start


def one(app: Celery, timing: Any, **more: Any) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": timing, **more}}


def test_a_first_run_is_due_one_interval_after_the_start(app: Celery, clock: Travel, sent: Sent) -> None:
    one(app, 10)
    live(start(app, clock), clock, 35)
    assert sent.times() == [10, 20, 30]


def test_due_times_do_not_drift_when_turns_are_late(app: Celery, clock: Travel, sent: Sent) -> None:
    one(app, 10)
    beat = start(app, clock)
    for _ in range(4):
        live(beat, clock, 9.7)
        clock.wait(0.7)
    assert [int(at) // 10 * 10 for at in sent.times()] == [10, 20, 30, 40]


def test_arguments_and_options_go_with_the_message(app: Celery, clock: Travel) -> None:
    one(app, 1, args=[1], kwargs={"k": 2}, options={"queue": "slow", "priority": 5, "expires": 60})
    live(start(app, clock), clock, 1.5)
    (delivery,) = app.broker.consumer(["slow"], "c", None).swap([], 1, 0)
    message = delivery.message
    assert (message.task, message.priority, message.headers["argsrepr"]) == ("t.a", 5, "[1]")
    assert message.expires is not None


def test_a_new_beat_goes_on_from_the_last_run(app: Celery, clock: Travel, sent: Sent) -> None:
    one(app, 100)
    beat = start(app, clock)
    live(beat, clock, 90)
    beat.close()
    clock.wait(5)
    live(start(app, clock), clock, 50)
    assert sent.times() == [100]


@pytest.mark.parametrize(("rule", "expected"), [("once", [3645, 3660]), ("skip", [3660])])
def test_what_was_missed_is_made_up_for_once_or_skipped(
    app: Celery, clock: Travel, sent: Sent, rule: str, expected: list[float]
) -> None:
    one(app, 60, catch_up=rule)
    first = start(app, clock)
    live(first, clock, 5)
    first.close()
    clock.wait(3640)  # nobody is there; due were 60, 120, …, 3600
    live(start(app, clock), clock, 30)
    assert sent.times() == expected


def test_a_run_missed_by_hours_is_skipped_where_the_entry_says_so(
    app: Celery, clock: Travel, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    one(app, crontab(minute=0, hour=13), catch_up="skip")
    first = start(app, clock)
    live(first, clock, 1)
    first.close()
    clock.wait(2 * 3600)
    second = start(app, clock)
    with caplog.at_level(logging.WARNING):
        live(second, clock, 30)
    assert sent.times() == [] and "'e' skips what it has missed, 3601 s ago" in caplog.text


@pytest.mark.parametrize(("deadline", "count"), [(3500, 0), (3700, 1), (None, 1)])
def test_a_crontab_missed_for_longer_than_its_deadline_is_skipped(
    app: Celery, clock: Travel, sent: Sent, deadline: float | None, count: int
) -> None:
    app.conf.beat_cron_starting_deadline = deadline
    one(app, crontab(minute=0, hour=13))
    first = start(app, clock)
    live(first, clock, 1)
    first.close()
    clock.wait(2 * 3600 - 1)
    live(start(app, clock), clock, 1)
    assert len(sent.runs) == count


def test_a_schedule_that_has_changed_runs_by_its_new_times_only(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    one(app, crontab(minute=0, hour=20))
    first = start(app, clock)
    live(first, clock, 1)
    first.close()
    clock.wait(3600)
    one(app, crontab(minute=30, hour=12))  # at 13:00: half an hour ago
    live(start(app, clock), clock, 60)
    assert sent.times() == []


def test_entries_changed_while_it_runs_are_taken_up(app: Celery, clock: Travel, sent: Sent) -> None:
    one(app, 100)
    beat = start(app, clock)
    live(beat, clock, 20)
    app.add_periodic_task(7, app.tasks["t.b"].s(1), name="new")
    live(beat, clock, 20)
    assert len(sent.times("t.b")) == 2 and sent.times() == []
    del app.conf.beat_schedule["new"]
    app._periodic.clear()
    live(beat, clock, 70)
    assert len(sent.times("t.b")) == 2 and sent.times() == [100]


# -- schedules of the program's own ----------------------------------------------------------


class Asked(BaseSchedule):
    """Says, as Celery's do, whether it is due: each 5 seconds."""

    clock: Travel

    def is_due(self, last_run_at: datetime) -> Any:
        passed = self.clock.now() - last_run_at.timestamp()
        return (True, 5.0) if passed >= 5 else (False, 5 - passed)


def test_a_schedule_that_says_only_whether_it_is_due_is_asked(app: Celery, clock: Travel, sent: Sent) -> None:
    timing = Asked()
    timing.clock = clock
    one(app, timing)
    live(start(app, clock), clock, 17)
    assert [round(at) for at in sent.times()] == [5, 10, 15]


class Broken(BaseSchedule):
    def next(self, after: datetime) -> datetime:
        raise ZeroDivisionError("no")


def test_a_schedule_that_raises_leaves_the_others_going(
    app: Celery, clock: Travel, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.beat_schedule = {
        "broken": {"task": "t.b", "schedule": Broken(), "args": (1,)},
        "good": {"task": "t.a", "schedule": 10},
    }
    live(start(app, clock), clock, 25)
    assert sent.times() == [10, 20] and sent.times("t.b") == []
    assert "entry 'broken': its schedule" in caplog.text


def test_an_argument_that_can_not_be_sent_leaves_the_others_going(
    app: Celery, clock: Travel, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.beat_schedule = {
        "bad": {"task": "t.a", "schedule": 10, "args": (object(),)},
        "good": {"task": "t.b", "schedule": 10, "args": (1,)},
    }
    live(start(app, clock), clock, 25)
    assert sent.times("t.b") == [10, 20] and sent.times() == []
    assert "entry 'bad' can't be sent" in caplog.text


# -- clocks that are changed -----------------------------------------------------------------


@pytest.mark.parametrize("jump", [3600.0, -3600.0, -5.0])
def test_an_interval_is_elapsed_time_whatever_the_clock_is_put_to(
    app: Celery, clock: Travel, sent: Sent, jump: float
) -> None:
    one(app, 10)
    beat = start(app, clock)
    live(beat, clock, 25)
    clock.jump(jump)
    live(beat, clock, 20)
    assert [round(at - jump * (at != known)) for at, known in zip(sent.times(), [10, 20, 0, 0], strict=True)] == [
        10, 20, 30, 40,
    ]  # fmt: skip


def test_a_crontab_goes_on_by_the_new_time_when_the_clock_is_put_back(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    one(app, crontab())
    beat = start(app, clock)
    live(beat, clock, 130)
    clock.jump(-3600)
    live(beat, clock, 120)
    assert sent.times() == [60, 120, 180 - 3600, 240 - 3600]


def test_a_nightly_run_is_not_made_again_when_the_clock_is_put_back(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    one(app, crontab(minute=1, hour=12))
    beat = start(app, clock)
    live(beat, clock, 90)
    clock.jump(-60)
    live(beat, clock, 3600)
    assert sent.times() == [60]


def test_a_clock_put_forward_past_a_run_makes_up_for_it(app: Celery, clock: Travel, sent: Sent) -> None:
    one(app, crontab(minute=1, hour=12))
    beat = start(app, clock)
    live(beat, clock, 10)
    clock.jump(600)
    live(beat, clock, 10)
    assert len(sent.runs) == 1


# -- brokers that are away -------------------------------------------------------------------


def test_a_lost_broker_is_waited_for_and_each_entry_catches_up_once(
    app: Celery, clock: Travel, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one(app, 10)
    beat = start(app, clock)
    live(beat, clock, 12)

    def away(*_: Any, **__: Any) -> Any:
        raise BrokerUnavailable("the broker is away")

    with monkeypatch.context() as patched:
        for name in ("publish", "lead", "remember_all", "recall", "remember"):
            patched.setattr(app.broker, name, away)
        live(beat, clock, 60)
    assert caplog.text.count("waiting for the broker") == 1
    live(beat, clock, 20)
    assert (
        sent.times()[0] == 10
        and 72 <= sent.times()[1] <= 77
        and sent.times()[2:] == pytest.approx([80, 90], abs=0.01)
    )


def test_what_the_broker_refuses_does_not_keep_the_others(
    app: Celery, clock: Travel, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.beat_schedule = {
        "full": {"task": "t.a", "schedule": 10, "options": {"queue": "full"}},
        "good": {"task": "t.b", "schedule": 10, "args": (1,)},
    }
    beat = start(app, clock)
    publish = app.broker.publish

    def refuse(messages: Any, **named: Any) -> Any:
        if any(message.queue == "full" for message in messages):
            raise OperationalError("queue 'full' is full")
        return publish(messages, **named)

    monkeypatch.setattr(app.broker, "publish", refuse)
    live(beat, clock, 25)
    assert sent.times("t.b") == [10, 20]
    assert "entry 'full' is not sent, and tried again in 1 s: queue 'full' is full" in caplog.text


# -- several beats ---------------------------------------------------------------------------


def test_of_two_beats_one_sends_and_the_other_takes_over(
    claiming_app: Celery, clock: Travel, sent: Sent
) -> None:
    one(claiming_app, 10)
    first, second = start(claiming_app, clock), start(claiming_app, clock)
    first.turn()
    for _ in range(25):
        second.turn()
        first.turn()
        clock.wait(1)
    assert first.lease.leads and not second.lease.leads
    first.close()
    live(second, clock, 10)
    assert second.lease.leads and sent.times() == [10, 20, 30]


def test_two_leaders_double_nothing(claiming_app: Celery, clock: Travel) -> None:
    one(claiming_app, 10)
    beats = [start(claiming_app, clock) for _ in range(2)]
    for beat in beats:
        beat.lease.leads, beat.lease._until, beat.lease.ask_at = True, float("inf"), float("inf")
    for _ in range(40):
        for beat in beats:
            beat.turn()
        clock.wait(1)
    assert claiming_app.broker.size("celery") == 3
    assert sorted(beat.entries["e"].runs for beat in beats) == [0, 3]


def test_a_leader_that_was_asleep_sends_nothing_before_it_has_asked(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    one(app, 10)
    beat = start(app, clock)
    live(beat, clock, 5)
    beat.lease.ask_at = float("inf")
    clock.wait(lease.SECONDS + 5)
    beat.turn()
    assert sent.runs == []


def test_a_stand_by_says_who_leads(app: Celery, clock: Travel, caplog: pytest.LogCaptureFixture) -> None:
    first, second = start(app, clock), start(app, clock)
    first.turn()
    for _ in range(3):
        second.turn()
        clock.wait(1)
    host, pid, _ = first.lease.holder.split(":")
    assert caplog.text.count(f"another beat is active on {host}:{pid}; standing by") == 1


def test_what_is_stored_and_can_not_be_read_begins_anew(
    app: Celery, clock: Travel, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    one(app, 10)
    beat = start(app, clock)
    app.broker.remember(f"beat.{beat.lead}", "e", 100, b'{"last": NaN}')
    live(beat, clock, 15)
    assert sent.times() == [10] and "what is stored of entry 'e' can't be read" in caplog.text


# -- many entries, and a year ----------------------------------------------------------------


def test_ten_thousand_entries_that_are_due_at_once_are_sent_in_one_turn(app: Celery, clock: Travel) -> None:
    app.conf.beat_schedule = {
        f"e{number}": {"task": "t.a", "schedule": schedule(3600 + number / 1000)} for number in range(10_000)
    }
    beat = start(app, clock)
    live(beat, clock, 3600)
    clock.wait(10)
    beat.turn()
    assert app.broker.size("celery") == 10_000


SEED = {
    "limpiar-sesiones-expiradas": {"task": "limpiar_sesiones", "schedule": 1800.0},
    "backup-diario": {"task": "backup_base_datos", "schedule": crontab(hour=2, minute=0)},
    "reporte-semanal": {
        "task": "generar_reporte",
        "schedule": crontab(hour=9, minute=0, day_of_week="monday"),
        "args": ("semanal", {"semana": "actual"}),
    },
    "facturacion-mensual": {
        "task": "generar_facturas", "schedule": crontab(day_of_month=1, hour=6, minute=0),
    },
}  # fmt: skip


@pytest.mark.parametrize("zone", ["America/Mexico_City", "Europe/Madrid"])
def test_a_year_of_the_tutorials_schedule_is_sent_as_it_says(
    app: Celery, sent: Sent, clock: Travel, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW", 1e9)  # of the year's seconds only those in which something is due
    monkeypatch.setattr(lease, "SECONDS", 1e10)
    app.conf.update(timezone=zone, beat_schedule=SEED)
    began = datetime(2026, 1, 1, tzinfo=app.timezone)
    clock.shown = began.astimezone(timezone.utc).timestamp()
    beat: Beat = start(app, clock, max_interval=1e9)
    live(beat, clock, timedelta(days=365).total_seconds() - 1)
    counts = {entry.task: entry.runs for entry in beat.entries.values()}
    assert counts == {
        "limpiar_sesiones": 365 * 48 - 1, "backup_base_datos": 365, "generar_reporte": 52, "generar_facturas": 12,
    }  # fmt: skip
    assert len(set(sent.ids)) == len(sent.ids) == sum(counts.values())
    reports = [
        datetime.fromtimestamp(at, app.timezone) for task, at in sent.runs if task == "generar_reporte"
    ]
    assert {(at.weekday(), at.hour, at.minute) for at in reports} == {(0, 9, 0)}
