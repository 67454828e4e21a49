"""From what a clock on the wall shows to instants, on the days the clock is changed too.

Zones come from the IANA database (`zoneinfo`).  A *wall* is a naive datetime, what clocks in a
zone show.  When they are put forward, walls are skipped (a gap); when they are put back, walls
come twice (PEP 495's fold).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from enum import Enum
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

UTC = timezone.utc
_SECOND = timedelta(seconds=1)
_INSTANT = timedelta(microseconds=1)


class Pace(Enum):
    """How often an entry runs on a day: what that means where the clock is changed.

    ==========  ================================================  ===============
    pace        walls in a gap                                    walls in a fold
    ==========  ================================================  ===============
    FIXED       one run, at the first instant after the gap       the first time
    STEPS       one run, at the first instant after the gap       both times
    EVERY_HOUR  none: the next hour comes as soon as ever         both times
    ==========  ================================================  ===============
    """

    FIXED = "at fixed hours"
    STEPS = "every so many hours"
    EVERY_HOUR = "every hour"


def next_instant(
    next_wall: Callable[[datetime], datetime], after: datetime, zone: tzinfo, *, pace: Pace
) -> datetime:
    """The first run later than `after`; `next_wall` returns the first matching wall later than a wall."""
    local = after.astimezone(zone)
    wall = local.replace(tzinfo=None, fold=0)
    if isinstance(zone, timezone):  # its clocks are never changed
        return next_wall(wall).replace(tzinfo=zone)
    if pace is not Pace.FIXED and not local.fold and _offset(local) > _offset(local.replace(fold=1)):
        found = _next_in_fold(next_wall, local)
        if found is not None:
            return found
    while True:
        wall = next_wall(wall)
        first = wall.replace(tzinfo=zone)
        second = first.replace(fold=1)
        before, behind = _offset(first), _offset(second)
        if before == behind:
            return first
        if before < behind:
            end = end_of_gap(first)
            if pace is not Pace.EVERY_HOUR:
                return end
            wall = end.replace(tzinfo=None) - _INSTANT
        elif _is_later(first, after):
            return first
        elif pace is not Pace.FIXED and _is_later(second, after):
            return second


def _next_in_fold(next_wall: Callable[[datetime], datetime], local: datetime) -> datetime | None:
    """The next run in either pass of a fold; `local` is in the first."""
    second = local.replace(fold=1)
    start = _change_between(local, second).replace(tzinfo=None, fold=0)
    end = start + _offset(local) - _offset(second)
    for wall, fold in ((local.replace(tzinfo=None), 0), (start - _INSTANT, 1)):
        found = next_wall(wall)
        if found < end:
            return found.replace(tzinfo=local.tzinfo, fold=fold)
    return None


def first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """When clocks in `zone` first show `wall`; for one they skip, the first instant after the gap."""
    first = wall.replace(tzinfo=zone, fold=0)
    return end_of_gap(first) if _offset(first.replace(fold=1)) > _offset(first) else first


def end_of_gap(skipped: datetime) -> datetime:
    """The first instant after the gap that holds `skipped`."""
    # PEP 495: with fold=0 a skipped wall is read by the offset before the gap, so it is an
    # instant after it, and with fold=1 the other way round.
    return _change_between(skipped.replace(fold=1), skipped.replace(fold=0))


def _change_between(before: datetime, behind: datetime) -> datetime:
    """The first instant with the offset of `behind`; the clock is changed once in between."""
    zone = before.tzinfo
    early, late = (moment.astimezone(UTC).replace(microsecond=0) for moment in (before, behind))
    offset = late.astimezone(zone).utcoffset()
    while late - early > _SECOND:
        middle = early + timedelta(seconds=(late - early) // _SECOND // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            late = middle
        else:
            early = middle
    return late.astimezone(zone)


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta(0)


def _is_later(one: datetime, other: datetime) -> bool:
    # Two datetimes of one zone are compared by their walls, whichever pass they are of.
    return one.astimezone(UTC) > other.astimezone(UTC)


# -- zones ---------------------------------------------------------------------------------


def zone_of(tz: str | tzinfo, option: str = "tz") -> tzinfo:
    """The zone that `tz` names; pytz's as zoneinfo's.  Raises ValueError for an unknown name, with the option's."""
    if isinstance(tz, (timezone, ZoneInfo)):
        return tz
    if isinstance(tz, str):
        return _named(tz, option)
    if not isinstance(tz, tzinfo):
        raise TypeError(f"a time zone is a name or a tzinfo, not the {type(tz).__name__} {tz!r}")
    name = getattr(tz, "zone", None)  # pytz's wrong offsets after replace() are well known
    return _named(name, option) if isinstance(name, str) else tz


@lru_cache
def _named(name: str, option: str) -> tzinfo:
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{option}: no time zone is named {name!r}{_near(name)}") from error


def _near(name: str) -> str:
    from difflib import get_close_matches

    names = {zone.lower(): zone for zone in sorted(available_timezones())}
    if not names:
        return "; this system has no list of them: pip install tzdata"
    cities = {lower.rpartition("/")[2]: zone for lower, zone in names.items()}
    near = [names[found] for found in get_close_matches(name.lower(), names)]
    near += [cities[found] for found in get_close_matches(name.lower().rpartition("/")[2], cities)]
    return f"; did you mean {' or '.join(map(repr, list(dict.fromkeys(near))[:3]))}?" if near else ""
