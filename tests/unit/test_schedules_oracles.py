"""The same runs as croniter, cronsim and Celery's crontab, for random expressions and instants.

``MINICELERY_CRON_PAIRS=20000`` tries more of them than the suite has time for.
"""

from __future__ import annotations

import contextlib
import os
import random
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minicelery import Celery
from minicelery.schedules import ParseException, crontab, crontab_parser, schedule

croniter = pytest.importorskip("croniter")
cronsim = pytest.importorskip("cronsim")
celery = pytest.importorskip("celery")
celery_schedules = pytest.importorskip("celery.schedules")

PAIRS = int(os.environ.get("MINICELERY_CRON_PAIRS", "1000"))
UTC = timezone.utc
ZONES = [
    "UTC",
    "America/Mexico_City",
    "Europe/Madrid",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Tehran",
]
RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]  # in crontab(5)'s order
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
DAYS = "sun mon tue wed thu fri sat".split()


def random_field(rng: random.Random, index: int) -> str:
    if rng.random() < (0.3, 0.3, 0.5, 0.6, 0.5)[index]:
        return "*"
    return ",".join(random_part(rng, index) for _ in range(rng.choice([1, 1, 1, 2, 3])))


def random_part(rng: random.Random, index: int) -> str:
    low, high = RANGES[index]
    first, last = rng.randint(low, high), rng.randint(low, high)

    def name(number: int) -> str:
        if index == 3 and rng.random() < 0.3:
            return MONTHS[number - 1]
        return DAYS[number] if index == 4 and rng.random() < 0.3 else str(number)

    step = rng.randint(1, max(1, (high - low) // 2))
    if last < first:  # Celery lets ranges wrap around
        step = min(step, high - first + 1 + last - low + 1)
    else:
        step = min(step, last - first + 1)
    shapes = [name(first), f"{name(first)}-{name(last)}", f"{name(first)}-{name(last)}/{step}", f"*/{step}"]
    return rng.choice(shapes)


def random_line(rng: random.Random) -> str:
    while True:
        line = " ".join(random_field(rng, index) for index in range(5))
        with contextlib.suppress(ParseException):  # 31 February
            crontab.from_string(line)
            return line


def random_instant(rng: random.Random) -> datetime:
    start = datetime(2015, 1, 1, tzinfo=UTC)
    return start + timedelta(
        seconds=rng.randrange(20 * 365 * 86400), microseconds=rng.choice([0, 0, 1, 999_999])
    )


def expanded(line: str) -> str:
    """The line without names and ranges, in the numbers that Celery reads it as; stars stay."""
    fields = []
    for text, (low, high) in zip(line.split(), RANGES, strict=True):
        if text == "*":
            fields.append(text)
            continue
        numbers = celery_schedules.crontab_parser(high - low + 1, low).parse(text)
        fields.append(",".join(map(str, sorted(numbers))))
    return " ".join(fields)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, datetime]]:
    rng = random.Random(6)
    return [(random_line(rng), random_instant(rng)) for _ in range(PAIRS)]


def test_texts_mean_the_numbers_that_celery_reads(pairs: list[tuple[str, datetime]]) -> None:
    for line, _ in pairs:
        for text, (low, high) in zip(line.split(), RANGES, strict=True):
            size = high - low + 1
            assert crontab_parser(size, low).parse(text) == celery_schedules.crontab_parser(size, low).parse(
                text
            )


def test_runs_are_those_of_celery_where_the_clocks_are_not_changed(pairs: list[tuple[str, datetime]]) -> None:
    compared = 0
    for number, (line, after) in enumerate(pairs):
        zone = ZONES[number % len(ZONES)]
        ours = crontab.from_string(line, tz=zone).next(after)
        if changes_between(zone, after - timedelta(days=2), ours + timedelta(days=2)):
            continue
        compared += 1
        assert ours.astimezone(UTC) == celerys_next(line, after, zone), (line, after, zone)
    assert compared > PAIRS * 0.5


def celerys_next(line: str, after: datetime, zone: str) -> datetime:
    after = after.astimezone(ZoneInfo(zone))
    timing = celery_schedules.crontab.from_string(line)
    timing.nowfun, timing.app = lambda: after, celerys_app(zone)
    return after.astimezone(UTC) + timing.remaining_estimate(after)


@lru_cache
def celerys_app(zone: str) -> Any:
    return celery.Celery(set_as_current=False, timezone=zone, enable_utc=True)


def changes_between(zone: str, start: datetime, end: datetime) -> bool:
    days = min(int((end - start) / timedelta(days=1)), 366)
    at = [start + timedelta(days=n) for n in range(days)] + [end]
    return len({moment.astimezone(ZoneInfo(zone)).utcoffset() for moment in at}) > 1


def test_runs_are_those_of_cronsim_in_utc_and_its_either_day_too(pairs: list[tuple[str, datetime]]) -> None:
    for line, after in pairs:
        text = expanded(line)
        ours = crontab.from_string(text, day_or=True, tz=UTC).next(after)
        assert ours == next(cronsim.CronSim(text, after)), (line, after)


def test_runs_are_those_of_croniter_in_utc_by_both_readings_of_days(
    pairs: list[tuple[str, datetime]],
) -> None:
    for line, after in pairs:
        text = expanded(line)
        for day_or in (False, True):
            ours = crontab.from_string(text, day_or=day_or, tz=UTC).next(after)
            theirs = croniter.croniter(text, after, day_or=day_or, max_years_between_matches=50)
            assert ours == theirs.get_next(datetime), (line, after, day_or)


CHANGES = [(3, 29), (10, 25), (3, 8), (11, 1), (10, 4), (4, 5)]  # of 2026, in the zones below
HOURS = ["0", "1", "2", "3", "23", "1,2", "0-4"]


@pytest.mark.parametrize(
    ("zone", "hours"),
    [
        ("Europe/Madrid", [*HOURS, "*", "*"]),
        ("America/New_York", [*HOURS, "*", "*"]),
        ("Australia/Lord_Howe", HOURS),  # cronsim steps over the first run after a gap of half an hour
    ],
)
def test_on_days_of_change_runs_are_those_of_cronsim(zone: str, hours: list[str]) -> None:
    """Where it decides as we do: no star for the minute, and fixed hours or every one."""
    rng, tz = random.Random(zone), ZoneInfo(zone)
    for _ in range(PAIRS // 10):
        minute = ",".join(str(rng.randrange(60)) for _ in range(rng.randint(1, 3)))
        line = f"{minute} {rng.choice(hours)} * * *"
        at = datetime(2026, *rng.choice(CHANGES), tzinfo=tz) - timedelta(hours=rng.randrange(5))
        ours, theirs = crontab.from_string(line, tz=tz), cronsim.CronSim(line, at)
        for _ in range(6):
            at = ours.next(at)
            assert at.timestamp() == next(theirs).timestamp(), line


# -- is_due, remaining_estimate and intervals, beside Celery ---------------------------------


def test_is_due_answers_as_celery_does(pairs: list[tuple[str, datetime]]) -> None:
    rng = random.Random(7)
    for line, now in pairs[:500]:
        last = now - timedelta(seconds=rng.choice([0, 1, 59, 60, 3600, 86400, 40 * 86400]))
        ours = crontab.from_string(line, nowfun=lambda now=now: now, tz=UTC, app=our_app(None))
        theirs = celery_schedules.crontab.from_string(line)
        theirs.nowfun, theirs.app = (lambda now=now: now), celerys_app("UTC")
        assert ours.is_due(last) == theirs.is_due(last), (line, last, now)
        assert ours.remaining_estimate(last) == theirs.remaining_estimate(last)


@pytest.mark.filterwarnings("ignore::minicelery.settings.UnservedSetting")
@pytest.mark.parametrize("deadline", [30, 60, 3600, 90_000])
def test_the_starting_deadline_skips_the_runs_that_celery_skips(deadline: int) -> None:
    rng = random.Random(deadline)
    theirs_app = celery.Celery(set_as_current=False, beat_cron_starting_deadline=deadline)
    for line in ("*/5 * * * *", "0 * * * *", "30 6 * * *", "0 0 1 * *"):
        for _ in range(40):
            now = random_instant(rng)
            last = now - timedelta(seconds=rng.choice([0, 1, 59, 301, 3600, 86400, 40 * 86400]))
            ours = crontab.from_string(line, nowfun=lambda now=now: now, tz=UTC, app=our_app(deadline))
            theirs = celery_schedules.crontab.from_string(line)
            theirs.nowfun, theirs.app = (lambda now=now: now), theirs_app
            assert ours.is_due(last) == theirs.is_due(last), (line, last, now)


@lru_cache
def our_app(deadline: int | None) -> Celery:
    app = Celery("schedules", set_as_current=False)
    app.conf.beat_cron_starting_deadline = deadline
    return app


@pytest.mark.parametrize("relative", [False, True])
def test_intervals_are_due_when_celerys_are(relative: bool) -> None:
    rng = random.Random(relative)
    for _ in range(300):
        every = rng.choice([1, 30, 60, 90, 600, 3600, 5400, 86400, 2 * 86400, 129_600])
        zone = rng.choice(ZONES)
        now = random_instant(rng)
        last = now - timedelta(seconds=rng.choice([0.0, 0.5, every / 2, every, every * 1.5]))
        if changes_between(zone, last - timedelta(days=3), now + timedelta(days=3)):
            continue
        ours = schedule(every, relative, lambda now=now: now, tz=zone)
        theirs = celery_schedules.schedule(every, relative, lambda now=now: now, app=celerys_app(zone))
        there = last.astimezone(ZoneInfo(zone))
        assert ours.is_due(there) == theirs.is_due(there), (every, zone, last, now)


@pytest.mark.parametrize("number", [0.2, 1, 1.5, 30, 60, 90, 3600, 5400, 86400, 100_000])
def test_an_interval_is_shown_as_by_celery(number: float) -> None:
    assert repr(schedule(number)) == repr(celery_schedules.schedule(number))
    assert schedule(number).human_seconds == celery_schedules.schedule(number).human_seconds


def test_a_crontab_is_shown_as_by_celery() -> None:
    for options in ({}, {"minute": "*/5", "hour": 3}, {"day_of_week": "mon", "minute": [1, 2]}):
        assert repr(crontab(**options)) == repr(celery_schedules.crontab(**options))


def test_pickled_arguments_are_celerys() -> None:
    given = (0, "*/2", "mon-fri", [1, 15], "6")
    assert crontab(*given).__reduce__()[1:] == celery_schedules.crontab(*given).__reduce__()[1:]
