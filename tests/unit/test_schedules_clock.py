"""On the days the clocks are changed nothing is missed and nothing runs twice, in any zone."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest

from minicelery.schedules import crontab, schedule

UTC = timezone.utc
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
ZONES = [
    "America/Mexico_City",  # put its clocks forward for the last time in 2022
    "Europe/Madrid",
    "America/New_York",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # left out 30 December 2011
    "Asia/Tehran",  # skipped midnight until 2022, and 23:00 came twice
    "America/Havana",  # 0:00 comes twice
]
FROM, UNTIL = datetime(2011, 7, 1, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC)

FIXED = ["30 2 * * *", "0 2 * * *", "0 3 * * *", "15,45 1 * * *", "*/10 2 * * *", "0 0 * * *", "20 0 * * *",
         "59 23 * * *", "0 12 * * *", "30 1-3 * * *", "0 9 30 12 *", "0 */24 * * *", "30 2 * * sun", "50 1,23 * * *"]  # fmt: skip
STEPS = ["30 */2 * * *", "0 */2 * * *", "*/7 */3 * * *", "0 */12 * * *", "45 1-23/2 * * *"]
EVERY_HOUR = ["* * * * *", "*/15 * * * *", "0 * * * *", "40 * * * *", "5,50 * * * sun", "0 0-23 * * *"]


@dataclass
class Jump:
    """A change of clocks, with what they show at each minute of the days around it."""

    zone: str
    instants: list[datetime]  # UTC
    walls: list[datetime]
    change: datetime  # UTC
    skipped: list[datetime]

    def expected(self, line: str) -> list[datetime]:
        """The runs by the rules, found by looking at every minute."""
        matching = [at for at, wall in zip(self.instants, self.walls, strict=True) if matches(line, wall)]
        if line in FIXED:
            walls = dict(zip(self.instants, self.walls, strict=True))
            first: dict[datetime, datetime] = {}
            for at in matching:
                first.setdefault(walls[at], at)
            matching = list(first.values())
        if line not in EVERY_HOUR and any(matches(line, wall) for wall in self.skipped):
            matching = sorted({*matching, self.change})
        return matching


@lru_cache
def numbers(line: str) -> tuple[frozenset[int], ...]:
    timing = crontab.from_string(line)
    return timing.minute, timing.hour, timing.day_of_month, timing.month_of_year, timing.day_of_week


def matches(line: str, wall: datetime) -> bool:
    minute, hour, day, month, weekday = numbers(line)
    if wall.minute not in minute or wall.hour not in hour:
        return False
    return wall.day in day and wall.month in month and wall.isoweekday() % 7 in weekday


def jumps(name: str) -> Iterator[Jump]:
    zone, at = ZoneInfo(name), FROM
    while at < UNTIL:
        later = at + 12 * HOUR
        before, behind = at.astimezone(zone).utcoffset(), later.astimezone(zone).utcoffset()
        if before != behind:
            while at.astimezone(zone).utcoffset() == before:
                at += MINUTE
            yield around(name, at, behind - before)
        at = later


def around(name: str, change: datetime, size: timedelta) -> Jump:
    zone, room = ZoneInfo(name), 14 * HOUR
    instants = [change - room + n * MINUTE for n in range(int(2 * room / MINUTE))]
    walls = [at.astimezone(zone).replace(tzinfo=None, fold=0) for at in instants]
    first_skipped = change.astimezone(zone).replace(tzinfo=None, fold=0) - size
    skipped = [first_skipped + n * MINUTE for n in range(int(size / MINUTE))]
    return Jump(name, instants, walls, change, skipped)


@lru_cache
def all_jumps(name: str) -> list[Jump]:
    return list(jumps(name))


@pytest.mark.parametrize("zone", ZONES)
def test_every_change_of_the_clocks_follows_the_rules(zone: str) -> None:
    rng = random.Random(zone)
    assert len(all_jumps(zone)) >= 20
    for line in FIXED + STEPS + EVERY_HOUR:
        timing = crontab.from_string(line, tz=zone)
        for jump in all_jumps(zone):
            if line == "* * * * *" and jump.change.year % 5:
                continue  # many runs, all alike
            expected = jump.expected(line)
            at, end, found = jump.instants[0] - MINUTE, jump.instants[-1], []
            while (at := timing.next(at).astimezone(UTC)) <= end:
                found.append(at)
            assert found == expected, (line, jump.change)
            for _ in range(5):
                after = jump.change + rng.uniform(-3, 3) * HOUR
                index = bisect.bisect_right(expected, after)
                if index < len(expected):
                    assert timing.next(after).astimezone(UTC) == expected[index], (line, after)


def shown(timing: crontab | schedule, after: datetime, count: int) -> list[str]:
    runs = []
    for _ in range(count):
        after = timing.next(after)
        runs.append(after.strftime("%d %H:%M %Z"))
    return runs


MADRID = ZoneInfo("Europe/Madrid")
BEFORE_SPRING = datetime(2026, 3, 28, 22, tzinfo=MADRID)  # clocks go from 2:00 to 3:00 on the 29th
BEFORE_AUTUMN = datetime(2026, 10, 24, 22, tzinfo=MADRID)  # and from 3:00 back to 2:00 on the 25th


def test_a_fixed_time_that_is_skipped_runs_once_at_the_first_instant_after_the_gap() -> None:
    timing = crontab("0,30", 2, tz="Europe/Madrid")
    assert shown(timing, BEFORE_SPRING, 3) == ["29 03:00 CEST", "30 02:00 CEST", "30 02:30 CEST"]


def test_a_skipped_run_and_one_at_the_end_of_the_gap_are_one_run() -> None:
    assert shown(crontab(30, "2,3", tz=MADRID), BEFORE_SPRING, 2) == ["29 03:00 CEST", "29 03:30 CEST"]
    assert shown(crontab(0, "2,3", tz=MADRID), BEFORE_SPRING, 2) == ["29 03:00 CEST", "30 02:00 CEST"]


def test_a_fixed_time_that_comes_twice_runs_the_first_time() -> None:
    timing = crontab(30, 2, tz=MADRID)
    assert shown(timing, BEFORE_AUTUMN, 2) == ["25 02:30 CEST", "26 02:30 CET"]
    second_pass = datetime(2026, 10, 25, 2, 10, tzinfo=MADRID, fold=1)
    assert shown(timing, second_pass, 1) == ["26 02:30 CET"]


def test_an_entry_of_every_hour_goes_through_both_passes_and_over_the_gap() -> None:
    timing = crontab(30, tz=MADRID)
    autumn = ["25 01:30 CEST", "25 02:30 CEST", "25 02:30 CET", "25 03:30 CET"]
    assert shown(timing, datetime(2026, 10, 25, 1, tzinfo=MADRID), 4) == autumn
    spring = ["29 00:30 CET", "29 01:30 CET", "29 03:30 CEST"]
    assert shown(timing, datetime(2026, 3, 29, tzinfo=MADRID), 3) == spring


def test_an_entry_of_every_two_hours_loses_no_run_in_the_gap() -> None:
    timing = crontab(0, "*/2", tz=MADRID)
    spring = ["29 00:00 CET", "29 03:00 CEST", "29 04:00 CEST"]
    assert shown(timing, BEFORE_SPRING + HOUR, 3) == spring
    autumn = ["25 00:00 CEST", "25 02:00 CEST", "25 02:00 CET", "25 04:00 CET"]
    assert shown(timing, BEFORE_AUTUMN + HOUR, 4) == autumn


def test_a_day_that_is_left_out_of_the_calendar_runs_as_the_next_one_begins() -> None:
    apia = ZoneInfo("Pacific/Apia")  # there was no 30 December 2011
    timing = crontab(0, 9, day_of_month=30, month_of_year=12, tz=apia)
    assert timing.next(datetime(2011, 12, 29, 12, tzinfo=apia)) == datetime(2011, 12, 31, tzinfo=apia)


@pytest.mark.parametrize("line", ["0 * * * *", "*/20 * * * *", "30 2 * * *"])
@pytest.mark.parametrize("start", [BEFORE_SPRING, BEFORE_AUTUMN])
def test_asked_every_few_seconds_it_is_due_once_for_each_run(line: str, start: datetime) -> None:
    now = start.astimezone(UTC)
    timing = crontab.from_string(line, tz=MADRID, nowfun=lambda: now)
    last, due_at = now, []
    for _ in range(8 * 180):
        now += timedelta(seconds=20)
        if timing.is_due(last).is_due:
            due_at.append(now)
            last = now
    after, expected = start, []
    while (after := timing.next(after)).astimezone(UTC) <= now:
        expected.append(after.astimezone(UTC))
    assert due_at == expected


# -- intervals -----------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ZONES)
def test_an_interval_is_elapsed_time_whatever_the_clocks_do(zone: str) -> None:
    timing = schedule(1800, tz=zone)
    for jump in all_jumps(zone):
        at = jump.change - 2 * HOUR
        for n in range(1, 9):
            assert timing.next(at + (n - 1) * 30 * MINUTE).timestamp() == (at + n * 30 * MINUTE).timestamp()


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("every", [MINUTE, 10 * MINUTE, HOUR, 3 * HOUR])
def test_a_relative_interval_ends_at_a_full_hour_or_minute_and_never_later_than_the_interval(
    zone: str, every: timedelta
) -> None:
    timing, rng = schedule(every, relative=True, tz=zone), random.Random(zone)
    for jump in all_jumps(zone):
        for _ in range(10):
            after = jump.change + rng.uniform(-4, 4) * HOUR
            found = timing.next(after)
            assert after < found.astimezone(UTC) <= after + every
            if found.astimezone(UTC) != after + every:
                assert found.second == found.microsecond == 0
                assert found.minute == 0 or every < HOUR or found == jump.change  # a gap ends at 2:30


def test_a_relative_day_ends_at_midnight_also_on_days_of_23_and_25_hours() -> None:
    timing = schedule(timedelta(days=1), relative=True, tz=MADRID)
    midnights = ["29 00:00 CET", "30 00:00 CEST", "31 00:00 CEST"]
    assert shown(timing, BEFORE_SPRING, 3) == midnights
    assert shown(timing, BEFORE_AUTUMN, 2) == ["25 00:00 CEST", "26 00:00 CET"]
