"""Schedules and spans of time in words."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from minicelery.schedules import BaseSchedule, ParseException, crontab, schedule, solar
from minicelery.schedules.fields import FIELDS
from minicelery.schedules.words import from_now, in_words, span


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("* * * * *", "every minute"),
        ("0 * * * *", "at minute 0 of every hour"),
        ("0,30 * * * *", "at minute 0 and 30 of every hour"),
        ("*/15 * * * *", "at minute 0, 15, 30 and 45 of every hour"),
        ("*/5 * * * *", "at minute 0, 5 and so on to 55 of every hour"),
        ("10-20 * * * *", "at minute 10 to 20 of every hour"),
        ("*/25 * * * *", "at minute 0, 25 and 50 of every hour"),
        ("30 4 * * *", "at 04:30"),
        ("30 4 * * mon", "at 04:30 on Mondays"),
        ("30 4 * * sun", "at 04:30 on Sundays"),
        ("0 4 * * mon-fri", "at 04:00 from Monday to Friday"),
        ("0 4 * * sat,sun", "at 04:00 on Saturdays and Sundays"),
        ("0 4 * * fri-mon", "at 04:00 on Mondays, Fridays, Saturdays and Sundays"),
        ("0 4,16 * * *", "at 04:00 and 16:00"),
        ("0,30 4,16 * * *", "at 04:00, 04:30, 16:00 and 16:30"),
        ("0 */2 * * *", "every 2 hours from 00:00 to 22:00"),
        ("30 8-18/2 * * *", "every 2 hours from 08:30 to 18:30"),
        ("0 9-17 * * *", "every hour from 09:00 to 17:00"),
        ("* 2 * * *", "every minute from 02:00 to 02:59"),
        ("* 9-17 * * *", "every minute from 09:00 to 17:59"),
        ("* 22-4 * * *", "every minute of the hours 0 to 4, 22 and 23"),
        ("*/15 9-17 * * *", "at minute 0, 15, 30 and 45 of the hours 9 to 17"),
        ("5,35 1,2,7,9 * * *", "at minute 5 and 35 of the hours 1, 2, 7 and 9"),
        ("0 6 1 * *", "at 06:00 on the 1st of the month"),
        ("0 6 2,3,11,22 * *", "at 06:00 on the 2nd, the 3rd, the 11th and the 22nd of the month"),
        ("0 6 1-7 * mon", "at 06:00 on Mondays that are the 1st to the 7th of the month"),
        ("0 6 1-7 * mon-wed", "at 06:00 on days from Monday to Wednesday that are the 1st to the 7th of the month"),
        ("0 0 24 12 *", "at 00:00 on the 24th of December"),
        ("0 0 1 1,4,7,10 *", "at 00:00 on the 1st of January, April, July and October"),
        ("0 0 * 6-8 sat", "at 00:00 on Saturdays from June to August"),
        ("0 0 * feb *", "at 00:00 in February"),
    ],
)  # fmt: skip
def test_a_crontab_is_told_in_words(line: str, words: str) -> None:
    assert in_words(crontab.from_string(line)) == words


def test_either_of_two_day_fields_is_told_as_such() -> None:
    text = in_words(crontab.from_string("0 9 15 6 mon", day_or=True, tz="Europe/Madrid"))
    assert text == "at 09:00 on Mondays and also on the 15th of the month in June (Europe/Madrid)"
    assert in_words(crontab.from_string("0 9 1-31 * mon", day_or=True)) == "at 09:00"
    assert in_words(crontab.from_string("0 9 * * mon", day_or=True)) == "at 09:00 on Mondays"


def a_field(name: str, rng: random.Random) -> str:
    field = FIELDS[name]
    kind = rng.random()
    if kind < 0.3:
        return "*"
    if kind < 0.45:
        return f"*/{rng.randint(1, (field.highest - field.lowest + 1) // 2)}"
    one, other = (rng.randint(field.lowest, field.highest) for _ in range(2))
    return f"{one}-{other}" if kind < 0.7 else f"{one},{other}"


def test_two_crontabs_with_the_same_words_run_at_the_same_times() -> None:
    rng, known = random.Random(11), {}
    while len(known) < 2500:
        line = " ".join(
            a_field(name, rng) for name in ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        )
        try:
            timing = crontab.from_string(line, day_or=rng.random() < 0.3)
        except ParseException:  # a date that never comes
            continue
        runs = (timing.minute, timing.hour, timing.month_of_year, timing._days)
        words = in_words(timing)
        assert known.setdefault(words, runs) == runs, (words, line)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "every second"), (0.5, "every 0.5 seconds"), (10, "every 10 seconds"), (60, "every minute"),
        (90, "every 1 minute 30 seconds"), (1800, "every 30 minutes"), (5400, "every 90 minutes"),
        (3600, "every hour"), (86400, "every day"), (604800, "every 7 days"),
        (90061, "every 1 day 1 hour 1 minute 1 second"), (timedelta(minutes=30), "every 30 minutes"),
    ],
)  # fmt: skip
def test_an_interval_is_told_exactly(seconds: Any, words: str) -> None:
    assert in_words(schedule(seconds)) == words


def test_a_relative_interval_says_where_it_is_rounded_to() -> None:
    assert in_words(schedule(7200, relative=True)) == "every 2 hours, at the full hour"
    assert in_words(schedule(120, relative=True)) == "every 2 minutes, at the full minute"
    assert in_words(schedule(86400, relative=True, tz="UTC")) == "every day, at midnight (UTC)"


def test_the_sun_is_told_with_its_place() -> None:
    pytest.importorskip("ephem")
    assert in_words(solar("sunrise", 40.4, -3.7)) == "at sunrise at 40.4 N 3.7 W"
    assert in_words(solar("dusk_nautical", -37.8, 145)) == "at nautical dusk at 37.8 S 145 E"
    assert in_words(solar("solar_noon", 0, 0)) == "at solar noon at 0 N 0 E"


def test_a_schedule_of_the_programs_own_is_told_by_its_repr() -> None:
    class Mine(BaseSchedule):
        def next(self, after: datetime) -> datetime:
            return after

        def __repr__(self) -> str:
            return "<when I like>"

    assert in_words(Mine()) == "<when I like>"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (3, "3 s"), (60, "1 min"), (95, "1 min 35 s"), (599, "9 min 59 s"), (601, "10 min"),
        (3599, "1 h"), (7500, "2 h 5 min"), (86399, "1 d"), (90000, "1 d 1 h"), (864000, "10 d"), (-7500, "2 h 5 min"),
    ],
)  # fmt: skip
def test_a_span_is_told_by_its_two_largest_units(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_moments_are_told_from_now() -> None:
    assert [from_now(seconds) for seconds in (7500, -3, 0.2, -0.4)] == [
        "in 2 h 5 min",
        "3 s ago",
        "now",
        "now",
    ]
