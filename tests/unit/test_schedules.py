"""Schedules: what they accept, what they refuse and in which words, how they are shown and stored."""

from __future__ import annotations

import copy
import json
import pickle
import time
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minicelery import Celery
from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules import (
    BaseSchedule,
    ParseException,
    crontab,
    crontab_parser,
    from_form,
    maybe_schedule,
    schedstate,
    schedule,
    to_form,
)

UTC = timezone.utc
NOON = datetime(2026, 5, 13, 12, tzinfo=UTC)  # a Wednesday


def runs(line: str, count: int = 1, **options: Any) -> list[str]:
    timing, at, found = crontab.from_string(line, tz=UTC, **options), NOON, []
    for _ in range(count):
        at = timing.next(at)
        found.append(at.strftime("%Y-%m-%d %H:%M"))
    return found


# -- what fields mean ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "hours"),
    [
        (7, {7}),
        ("7", {7}),
        ("*", set(range(24))),
        ("*/6", {0, 6, 12, 18}),
        ("9-12", {9, 10, 11, 12}),
        ("8-17/3", {8, 11, 14, 17}),
        ("22-2", {22, 23, 0, 1, 2}),
        ("22-3/2", {22, 0, 2}),
        ("1, 5 ,7-8", {1, 5, 7, 8}),
        ([1, 2], {1, 2}),
        ((3,), {3}),
        ({4, 5}, {4, 5}),
        (frozenset({6}), {6}),
        (range(0, 24, 8), {0, 8, 16}),
        ((hour for hour in (1, 2)), {1, 2}),
    ],
)
def test_a_field_takes_numbers_text_and_several_numbers(spec: Any, hours: set[int]) -> None:
    timing = crontab(0, spec)
    assert timing.hour == hours
    assert pickle.loads(pickle.dumps(timing)).hour == hours


@pytest.mark.parametrize(
    "spec", ["mon-fri", "MON-FRI", "monday-friday", "1-5", "mon,tues,wed,thurs,fri", "Mon-4,5"]
)
def test_days_of_the_week_have_names_and_sunday_is_0(spec: str) -> None:
    assert crontab(day_of_week=spec).day_of_week == {1, 2, 3, 4, 5}
    assert crontab(day_of_week="fri-mon").day_of_week == {5, 6, 0, 1}


def test_months_have_names() -> None:
    assert crontab(month_of_year="jan,sept,November-feb").month_of_year == {1, 2, 9, 11, 12}


def test_positions_are_celerys_and_the_line_is_that_of_cron() -> None:
    assert crontab("1", "2", "3", "4", "5") == crontab.from_string("1  2\t4 5 3")
    assert crontab.from_string("0 2 * * *", tz="Europe/Madrid").tz == ZoneInfo("Europe/Madrid")


def test_a_day_must_match_both_day_fields_as_in_celery() -> None:
    assert runs("0 9 1-7 * mon", 2) == ["2026-06-01 09:00", "2026-07-06 09:00"]


def test_with_day_or_one_of_the_day_fields_will_do_as_in_vixies_cron() -> None:
    either = ["2026-05-15 09:00", "2026-05-18 09:00", "2026-05-25 09:00"]
    assert runs("0 9 15 * mon", 3, day_or=True) == either
    assert runs("0 9 * * mon", 1, day_or=True) == ["2026-05-18 09:00"]
    assert runs("0 9 31 2 mon", 1, day_or=True) == ["2027-02-01 09:00"]


def test_29_february_waits_for_a_leap_year_and_for_its_weekday() -> None:
    assert runs("0 0 29 2 *", 2) == ["2028-02-29 00:00", "2032-02-29 00:00"]
    assert runs("0 0 29 2 mon") == ["2044-02-29 00:00"]
    century = datetime(2096, 3, 1, tzinfo=UTC)
    assert crontab.from_string("0 0 29 2 *", tz=UTC).next(century).year == 2104


def test_the_next_run_is_later_even_by_a_microsecond() -> None:
    timing = crontab(0, 12, tz=UTC)
    assert timing.next(NOON) == NOON + timedelta(days=1)
    assert timing.next(NOON - timedelta(microseconds=1)) == NOON


def test_there_is_an_end_to_the_calendar() -> None:
    with pytest.raises(OverflowError, match="year 9999"):
        crontab(0, 0, tz=UTC).next(datetime(9999, 12, 31, tzinfo=UTC))


def test_the_parser_of_celery_is_there_by_its_name() -> None:
    assert crontab_parser(31, 1).parse("*/10") == {1, 11, 21, 31}
    assert crontab_parser(7).parse("sat-mon") == {6, 0, 1}
    with pytest.raises(crontab_parser.ParseException):
        crontab_parser().parse("1,,2")


# -- what is refused -------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"minute": 60}, "minute=60: out of range; accepted: 0-59"),
    ({"minute": "5,75"}, "minute='5,75': 75 is out of range; accepted: 0-59"),
    ({"hour": 24}, "hour=24: out of range; accepted: 0-23"),
    ({"hour": -1}, "hour=-1: out of range; accepted: 0-23"),
    ({"hour": "-1"}, "hour='-1': '-1' is negative; accepted: 0-23"),
    ({"hour": [1, 25]}, "hour=25: out of range; accepted: 0-23"),
    ({"day_of_month": 0}, "day_of_month=0: out of range; accepted: 1-31"),
    ({"month_of_year": 13}, "month_of_year=13: out of range; accepted: 1-12 (1 is january)"),
    ({"day_of_week": 7}, "day_of_week=7: out of range; accepted: 0-6 (0 is sunday)"),
    ({"day_of_week": "mon-7"}, "day_of_week='mon-7': 7 is out of range; accepted: 0-6 (0 is sunday)"),
    (
        {"day_of_week": "munday"},
        "day_of_week='munday': 'munday' is no number or name; did you mean 'monday'?",
    ),
    ({"day_of_week": "mo"}, "day_of_week='mo': 'mo' is no number or name; did you mean 'mon'?"),
    ({"month_of_year": "febuary"}, "'febuary' is no number or name; did you mean 'february'?"),
    (
        {"month_of_year": "tue"},
        "month_of_year='tue': 'tue' is no number or name: it belongs into day_of_week",
    ),
    ({"minute": "mon"}, "minute='mon': 'mon' is no number or name: it belongs into day_of_week"),
    ({"minute": "*/0"}, "minute='*/0': the step '0' is not a number from 1 on; accepted: 0-59"),
    ({"minute": "*/x"}, "minute='*/x': the step 'x' is not a number from 1 on"),
    ({"minute": "*/"}, "minute='*/': the step of '*/' is missing"),
    ({"minute": "5/15"}, "minute='5/15': a step needs a range, such as 5-59/15"),
    ({"minute": "*-5"}, "minute='*-5': '*' is no beginning of a range"),
    ({"minute": "1-2-3"}, "minute='1-2-3': '1-2-3' is no number, range or step"),
    ({"minute": "1_0"}, "minute='1_0': '1_0' is no number or name"),
    ({"minute": "1.5"}, "minute='1.5': '1.5' is no number, range or step"),
    ({"minute": "٣"}, "minute='٣': '٣' is no number, range or step"),
    ({"minute": ""}, "minute='': it is empty"),
    ({"minute": "1,,2"}, "minute='1,,2': there is nothing between two commas"),
    ({"minute": []}, "minute has no values; accepted: 0-59"),
    (
        {"day_of_month": 30, "month_of_year": 2},
        "day_of_month=30 never comes in month_of_year=2; accepted: 1-29",
    ),
    (
        {"day_of_month": "31", "month_of_year": "apr,jun"},
        "day_of_month='31' never comes in month_of_year='apr,jun'",
    ),
    ({"tz": "Europe/Madird"}, "no time zone is named 'Europe/Madird'; did you mean 'Europe/Madrid'"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_refused_by_field_value_and_what_is_accepted(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        crontab(**fields)
    assert words in str(refusal.value)


def test_refusals_are_of_celerys_class_and_of_ours() -> None:
    for kind in (ParseException, ValueError, ImproperlyConfigured):
        with pytest.raises(kind):
            crontab(minute=60)


@pytest.mark.parametrize("value", [None, 1.5, True, b"1", object(), ["1"], [1.0], [None], timedelta(hours=1)])
def test_a_wrong_type_is_refused_by_field_and_value(value: Any) -> None:
    with pytest.raises(TypeError, match="crontab: hour"):
        crontab(hour=value)


@pytest.mark.parametrize("line", ["", "* * * *", "* * * * * *", "@daily"])
def test_a_line_without_five_fields_is_refused(line: str) -> None:
    with pytest.raises(
        ParseException, match="accepted: 5, minute, hour, day_of_month, month_of_year, day_of_week"
    ):
        crontab.from_string(line)


def test_a_step_longer_than_its_range_is_what_celery_makes_of_it_and_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"minute='\*/90': a step of 90 is longer .* same as minute=0"
    ) as warned:
        assert crontab(minute="*/90").minute == {0}
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("every", "kind"),
    [
        (0, ImproperlyConfigured),
        (-5, ImproperlyConfigured),
        (timedelta(0), ImproperlyConfigured),
        (float("nan"), ImproperlyConfigured),
        (float("inf"), ImproperlyConfigured),
        (None, TypeError),
        ("60", TypeError),
        (True, TypeError),
    ],
)
def test_an_interval_that_is_none_is_refused(every: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="schedule: run_every="):
        schedule(every)


@pytest.mark.parametrize("timing", [crontab(tz=UTC), schedule(60, tz=UTC)], ids=repr)
def test_next_refuses_a_naive_datetime_and_says_what_to_do(timing: BaseSchedule) -> None:
    with pytest.raises(ValueError, match=r"has no time zone: say which with tzinfo="):
        timing.next(datetime(2026, 1, 1))
    with pytest.raises(TypeError, match="next\\(\\) takes an aware datetime, not the str"):
        timing.next("2026-01-01")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="last_run_at is a datetime, not the float"):
        timing.is_due(1.5)  # type: ignore[arg-type]


# -- zones and apps --------------------------------------------------------------------------


def test_times_are_those_of_the_app_unless_the_schedule_has_a_zone() -> None:
    app = Celery("mexico", set_as_current=False, timezone="America/Mexico_City")
    assert crontab(0, 2, app=app).next(NOON).isoformat() == "2026-05-14T02:00:00-06:00"
    assert crontab(0, 2, app=app, tz="Europe/Madrid").next(NOON).isoformat() == "2026-05-14T02:00:00+02:00"
    app.conf.timezone = "Asia/Tokyo"
    assert crontab(0, 2, app=app).next(NOON).isoformat() == "2026-05-14T02:00:00+09:00"


def test_a_zone_of_pytz_is_taken_by_its_name() -> None:
    class OfPytz(tzinfo):
        zone = "Europe/Madrid"

    assert crontab(tz=OfPytz()).tz == ZoneInfo("Europe/Madrid")


def test_naive_times_are_utc_as_in_celery() -> None:
    timing = crontab(0, 2, tz="America/Mexico_City", nowfun=lambda: datetime(2026, 5, 13, 7, 30))
    assert timing.remaining_estimate(datetime(2026, 5, 13, 1)) == timedelta(minutes=30)
    assert timing.is_due(datetime(2026, 5, 13, 1)) == timing.is_due(datetime(2026, 5, 13, 1, tzinfo=UTC))
    assert timing.is_due(datetime(2026, 5, 13, 1)) == schedstate(is_due=False, next=1800.0)


def test_remaining_delta_adds_up() -> None:
    timing = crontab(0, 2, tz="Europe/Madrid", nowfun=lambda: NOON)
    last, delta, now = timing.remaining_delta(datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert last + delta == datetime(2026, 3, 29, 1, tzinfo=UTC)  # the end of the gap
    assert now == NOON
    assert sum_of(timing.remaining_delta(NOON, tz="America/Mexico_City")) == datetime(
        2026, 5, 14, 8, tzinfo=UTC
    )


def sum_of(delta: tuple[datetime, timedelta, datetime]) -> datetime:
    return delta[0] + delta[1]


def test_a_relative_interval_that_was_late_is_asked_for_at_the_next_full_hour() -> None:
    now = NOON + timedelta(minutes=20)
    timing = schedule(3600, relative=True, nowfun=lambda: now, tz=UTC)
    assert timing.is_due(NOON - timedelta(minutes=50)) == schedstate(True, 2400.0)
    assert schedule(3600, nowfun=lambda: now, tz=UTC).is_due(NOON - timedelta(hours=2)) == schedstate(
        True, 3600.0
    )


def test_a_schedule_of_ones_own_needs_only_to_say_when_it_runs_next() -> None:
    class Countdown(BaseSchedule):
        def next(self, after: datetime) -> datetime:
            return after + timedelta(seconds=10)

    timing = Countdown(nowfun=lambda: NOON)
    assert timing.is_due(NOON) == schedstate(False, 10.0)
    assert timing.is_due(NOON - timedelta(seconds=11)) == schedstate(True, 10.0)


def test_a_subclass_may_set_its_zone_before_it_is_made_as_django_celery_beats_does() -> None:
    class InZone(crontab):
        def __init__(self, minute: str, hour: str, tz: Any) -> None:
            self.tz = tz
            super().__init__(minute, hour, tz=tz, nowfun=self.clock)

        def clock(self) -> datetime:
            return NOON.astimezone(self.tz)

    assert InZone("0", "15", ZoneInfo("Europe/Madrid")).remaining_estimate(NOON) == timedelta(hours=1)


# -- what they are ---------------------------------------------------------------------------

SAMPLES: list[Any] = [
    schedule(1800),
    schedule(timedelta(days=1), relative=True),
    schedule(60, tz="Europe/Madrid"),
    crontab(),
    crontab(0, 2),
    crontab("*/15", {1, 3}, "mon-fri", [1, 15], "jan"),
    crontab(0, 9, "mon", 15, day_or=True),
    crontab(0, 9, tz="America/Mexico_City"),
    crontab(0, 9, tz=UTC),
]


@pytest.mark.parametrize("timing", SAMPLES, ids=repr)
def test_a_schedule_survives_pickling_copying_and_storing(timing: BaseSchedule) -> None:
    stored = from_form(json.loads(json.dumps(to_form(timing))))
    for same in (pickle.loads(pickle.dumps(timing)), copy.deepcopy(timing), stored):
        assert same == timing
        assert hash(same) == hash(timing)
        assert same.next(NOON) == timing.next(NOON)
        assert to_form(same) == to_form(timing)
        assert repr(same).replace(" ", "") in (repr(timing).replace(" ", ""), repr(stored).replace(" ", ""))


def test_schedules_are_equal_when_they_run_alike() -> None:
    assert crontab("*/30") == crontab({0, 30})
    assert crontab("0") != crontab("1")
    assert crontab(0, 9, 1, 15) != crontab(0, 9, 1, 15, day_or=True)
    assert crontab(0, tz="Asia/Tokyo") != crontab(0)
    assert schedule(60) == schedule(timedelta(minutes=1)) == timedelta(minutes=1)
    assert schedule(60) != crontab()


def test_what_is_not_usual_is_shown() -> None:
    assert repr(crontab(0, 9, tz="Asia/Tokyo")) == "<crontab: 0 9 * * * (m/h/dM/MY/d), Asia/Tokyo>"
    assert repr(crontab(0, 9, 1, 15, day_or=True)) == "<crontab: 0 9 15 * 1 (m/h/dM/MY/d), day_or>"


def test_a_stored_line_is_one_that_cron_reads() -> None:
    assert to_form(crontab([30, 0], "9-17", "mon", tz="Asia/Tokyo")) == {
        "type": "crontab", "line": "0,30 9-17 * * mon", "day_or": False, "tz": "Asia/Tokyo",
    }  # fmt: skip
    assert to_form(schedule(1800)) == {"type": "interval", "seconds": 1800.0, "relative": False}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({}, "of type None; accepted: interval, crontab, solar"),
        ({"type": "cron"}, "of type 'cron'; accepted"),
        ({"type": "crontab"}, "line"),
        ({"type": "crontab", "line": "0 25 * * *"}, "hour='25': 25 is out of range; accepted: 0-23"),
        ({"type": "crontab", "line": "0 2 * * *", "day_ro": True}, "day_ro"),
        ({"type": "interval", "seconds": "60"}, "run_every='60' is a str"),
        ({"type": "interval", "seconds": 5, "tz": "Mars"}, "no time zone is named 'Mars'"),
        ("0 2 * * *", "a stored schedule is a mapping, not the str '0 2 * * *'"),
    ],
)
def test_a_corrupt_stored_schedule_is_refused_with_what_is_wrong(form: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError, ImproperlyConfigured)) as refusal:
        from_form(form)
    assert words in str(refusal.value)


def test_what_can_not_be_stored_is_refused() -> None:
    class Own(BaseSchedule):
        pass

    for timing in (Own(), crontab(nowfun=lambda: NOON), crontab(tz=timezone(timedelta(hours=1)))):
        with pytest.raises(TypeError):
            to_form(timing)


def test_maybe_schedule_makes_schedules_of_numbers_and_gives_them_the_app() -> None:
    app = Celery("shop", set_as_current=False)
    made = maybe_schedule(30, relative=True, app=app)
    assert made == schedule(30) and made.relative and made.app is app
    assert maybe_schedule(timedelta(minutes=1)) == schedule(60)
    timing = crontab()
    assert maybe_schedule(timing, app=app) is timing and timing.app is app
    assert maybe_schedule(None) is None
    with pytest.raises(TypeError, match=r"did you mean crontab.from_string\('0 2 \* \* \*'\)"):
        maybe_schedule("0 2 * * *")


def test_a_million_next_runs_take_less_than_a_minute() -> None:
    lines = ["* * * * *", "30 2 * * *", "*/7 9-17 * * mon-fri", "0 6 1 * *", "0 0 31 12 *"]
    timings = [crontab.from_string(line, tz=zone) for line in lines for zone in ("UTC", "Europe/Madrid")]
    started = time.process_time()
    for timing in timings:
        at = NOON
        for _ in range(500):
            at = timing.next(at)
    assert (time.process_time() - started) / (500 * len(timings)) < 60e-6
