"""Schedules and spans of time in words, for people: "at 04:30 on Mondays", "in 2 h 5 min"."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from minicelery.schedules.cron import crontab
from minicelery.schedules.fields import FIELDS, values_of
from minicelery.schedules.interval import schedule
from minicelery.schedules.sun import solar

DAY, HOUR, MINUTE = 86400, 3600, 60
_UNITS = ((DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (1, "second"))
_SHORT = ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (1, "s"))
_TIMES = 4
"""Times of a day that are named one by one."""
_ALL_MINUTES, _ALL_HOURS = frozenset(range(60)), frozenset(range(24))
_ALL_DAYS, _ALL_WEEKDAYS, _ALL_MONTHS = frozenset(range(1, 32)), frozenset(range(7)), frozenset(range(1, 13))
_MONTHS = [name.capitalize() for name in FIELDS["month_of_year"].names]
_WEEKDAYS = [name.capitalize() for name in FIELDS["day_of_week"].names]


def in_words(timing: Any) -> str:
    """When `timing` runs; of a class of the program's own its repr."""
    if isinstance(timing, crontab):
        text = _crontab(timing)
    elif isinstance(timing, schedule):
        text = _interval(timing)
    elif isinstance(timing, solar):
        text = f"at {_event(timing.event)} at {_degrees(timing.lat, 'NS')} {_degrees(timing.lon, 'EW')}"
    else:
        return repr(timing)
    return text if timing._tz is None else f"{text} ({timing._tz})"


def span(seconds: float) -> str:
    """A span by its two largest units: ``2 h 5 min``, ``3 s``, ``12 d``."""
    exact = abs(seconds)
    smallest = HOUR if exact >= DAY else MINUTE if exact >= 10 * MINUTE else 1
    left = round(exact / smallest) * smallest
    parts = []
    for size, unit in _SHORT:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def from_now(seconds: float) -> str:
    """When that is: ``in 2 h 5 min``, ``3 s ago``, ``now``."""
    if round(seconds) == 0:
        return "now"
    return f"in {span(seconds)}" if seconds > 0 else f"{span(seconds)} ago"


# -- intervals and the sun -----------------------------------------------------------------


def _interval(timing: schedule) -> str:
    seconds = timing.seconds
    if timing.relative:
        for size, unit in _UNITS:
            if seconds >= size:  # rounded down to it, so that 90 minutes are an hour
                when = "at midnight" if size == DAY else f"at the full {unit}"
                return f"every {_length(seconds // size * size)}, {when}"
    return f"every {_length(seconds)}"


def _length(seconds: float) -> str:
    """``30 minutes``, ``hour``, ``1 hour 30 minutes``; exact."""
    if seconds != int(seconds):
        return f"{seconds:.6f}".rstrip("0") + " seconds"
    for size, unit in _UNITS:
        if seconds >= size and seconds % size == 0 and (seconds < 60 * size or unit != "second"):
            count = int(seconds) // size
            return unit if count == 1 else f"{count} {unit}s"
    parts, left = [], int(seconds)
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}" + ("s" if count > 1 else ""))
    return " ".join(parts)


def _event(name: str) -> str:
    what, _, kind = name.partition("_")
    return f"{what} {kind}" if what == "solar" else f"{kind} {what}".strip()


def _degrees(value: float, sides: str) -> str:
    return f"{abs(value):.10g} {sides[value < 0]}"


# -- crontabs ------------------------------------------------------------------------------


def _crontab(timing: crontab) -> str:
    return _joined(_time(timing.minute, timing.hour), _date(timing))


def _time(minutes: frozenset[int], hours: frozenset[int]) -> str:
    if hours == _ALL_HOURS:
        return "every minute" if minutes == _ALL_MINUTES else f"at {_minutes(minutes)} of every hour"
    if len(minutes) * len(hours) <= _TIMES:
        return "at " + _and(
            [f"{hour:02}:{minute:02}" for hour in sorted(hours) for minute in sorted(minutes)]
        )
    step = _step(sorted(hours))
    if len(minutes) == 1 and step and len(hours) > 2:
        (minute,) = minutes
        every = "every hour" if step == 1 else f"every {step} hours"
        return f"{every} from {min(hours):02}:{minute:02} to {max(hours):02}:{minute:02}"
    if minutes == _ALL_MINUTES:
        if len(hours) == max(hours) - min(hours) + 1:
            return f"every minute from {min(hours):02}:00 to {max(hours):02}:59"
        return f"every minute of {_hours(hours)}"
    return f"at {_minutes(minutes)} of {_hours(hours)}"


def _minutes(numbers: frozenset[int]) -> str:
    return "minute " + _numbers(numbers)


def _hours(numbers: frozenset[int]) -> str:
    return ("hour " if len(numbers) == 1 else "the hours ") + _numbers(numbers)


def _numbers(numbers: frozenset[int]) -> str:
    """``0, 15, 30 and 45``, ``0 to 10 and 30``, ``0, 5, … to 55``."""
    ordered = sorted(numbers)
    step = _step(ordered)
    if step and step > 1 and len(ordered) > 6:
        return f"{ordered[0]}, {ordered[1]} and so on to {ordered[-1]}"
    return _and([str(one) if one == last else f"{one} to {last}" for one, last in _runs(ordered)])


def _date(timing: crontab) -> str:
    days, weekdays, months = timing.day_of_month, timing.day_of_week, timing.month_of_year
    if _is_either(timing):
        if days == _ALL_DAYS or weekdays == _ALL_WEEKDAYS:
            return _months(months)
        return _joined(f"{_weekdays(weekdays)} and also on {_days(days)} of the month", _months(months))
    if days == _ALL_DAYS:
        return _joined("" if weekdays == _ALL_WEEKDAYS else _weekdays(weekdays), _months(months))
    of = "the month" if months == _ALL_MONTHS else _and([_MONTHS[month - 1] for month in sorted(months)])
    dates = f"{_days(days)} of {of}"
    if weekdays == _ALL_WEEKDAYS:
        return f"on {dates}"
    return f"{_weekdays(weekdays, 'on days ')} that are {dates}"


def _is_either(timing: crontab) -> bool:
    fields = (("day_of_week", timing._orig_day_of_week), ("day_of_month", timing._orig_day_of_month))
    return bool(timing.day_or) and not any(values_of(FIELDS[name], spec).has_star for name, spec in fields)


def _months(months: frozenset[int]) -> str:
    if months == _ALL_MONTHS:
        return ""
    return _each_or_all([month - 1 for month in sorted(months)], _MONTHS, "in ", "", "")


def _weekdays(numbers: frozenset[int], before: str = "") -> str:
    """``on Mondays``, ``from Monday to Friday``; weeks begin on Monday."""
    names = [*_WEEKDAYS[1:], _WEEKDAYS[0]]
    return _each_or_all(sorted((number - 1) % 7 for number in numbers), names, "on ", "s", before)


def _each_or_all(indices: Sequence[int], names: Sequence[str], on: str, many: str, before: str) -> str:
    if len(indices) > 2 and _step(indices) == 1:
        return f"{before}from {names[indices[0]]} to {names[indices[-1]]}"
    return on + _and([f"{names[index]}{many}" for index in indices])


def _days(numbers: frozenset[int]) -> str:
    return _and(
        [
            f"the {_ordinal(one)}" if one == last else f"the {_ordinal(one)} to the {_ordinal(last)}"
            for one, last in _runs(sorted(numbers))
        ]
    )


def _ordinal(number: int) -> str:
    if number in (11, 12, 13):
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _step(ordered: Sequence[int]) -> int | None:
    """The distance between the numbers, if it is always the same."""
    steps = {after - before for before, after in pairwise(ordered)}
    return steps.pop() if len(steps) == 1 else None


def _runs(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of each three or more numbers in a row; others by themselves."""
    found: list[tuple[int, int]] = []
    for number in ordered:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    apart: list[tuple[int, int]] = []
    for first, last in found:
        apart += [(first, last)] if last - first >= 2 else [(one, one) for one in range(first, last + 1)]
    return apart


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _and(words: Collection[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
