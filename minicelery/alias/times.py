"""Points in time and spans of it: Celery's `utils.time` and `utils.iso8601`."""

from __future__ import annotations

import calendar
import random
import time as time_module
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from datetime import timezone as fixed
from typing import Any
from zoneinfo import ZoneInfo

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
_RATES = {"s": 1, "m": 60, "h": 3600}
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class LocalTimezone(tzinfo):
    """The machine's own time zone."""

    def utcoffset(self, dt: datetime | None) -> timedelta:
        """See `tzinfo`."""
        return self._local(dt).utcoffset() or timedelta(0)

    def dst(self, dt: datetime | None) -> timedelta:
        """See `tzinfo`."""
        seconds = self._local(dt).timestamp()
        summer = time_module.localtime(seconds).tm_isdst > 0
        return timedelta(seconds=time_module.timezone - time_module.altzone) if summer else timedelta(0)

    def tzname(self, dt: datetime | None) -> str | None:
        """See `tzinfo`."""
        return self._local(dt).tzname()

    def fromutc(self, dt: datetime) -> datetime:
        """See `tzinfo`."""
        return dt.replace(tzinfo=fixed.utc).astimezone().replace(tzinfo=self)

    @staticmethod
    def _local(dt: datetime | None) -> datetime:
        return (datetime.now() if dt is None else dt.replace(tzinfo=None)).astimezone()


class _Zones:
    """Time zones by their names."""

    utc = ZoneInfo("UTC")

    @property
    def local(self) -> tzinfo:
        """The machine's own."""
        return LocalTimezone()

    def get_timezone(self, zone: Any) -> Any:
        """The time zone of that name; what is no text is returned as it is."""
        return ZoneInfo(zone) if isinstance(zone, str) else zone

    def tz_or_local(self, tzinfo: Any = None) -> Any:
        """That time zone, or else the machine's."""
        return self.local if tzinfo is None else self.get_timezone(tzinfo)

    def to_local(self, dt: datetime, local: Any = None, orig: Any = None) -> datetime:
        """The moment in the time zone `local`; a naive one is of `orig`, or else of UTC."""
        if is_naive(dt):
            dt = make_aware(dt, self.get_timezone(orig) or self.utc)
        return localize(dt, self.tz_or_local(local))

    def to_system(self, dt: datetime) -> datetime:
        """The moment in the machine's time zone."""
        return dt.astimezone()

    def to_local_fallback(self, dt: datetime) -> datetime:
        """A naive moment is one of the machine's, an aware one is put in its time zone."""
        return make_aware(dt, self.local) if is_naive(dt) else localize(dt, self.local)


timezone = _Zones()


def is_naive(dt: datetime) -> bool:
    """Whether it has no time zone."""
    return dt.tzinfo is None or dt.utcoffset() is None


def make_aware(dt: datetime, tz: tzinfo) -> datetime:
    """A naive moment as one of that time zone; of an hour that comes twice the first."""
    return dt.replace(tzinfo=tz)


def localize(dt: datetime, tz: tzinfo) -> datetime:
    """An aware moment in another time zone."""
    return dt.astimezone(tz)


def to_utc(dt: datetime) -> datetime:
    """A naive moment as one of UTC."""
    return make_aware(dt, timezone.utc)


def maybe_make_aware(dt: datetime, tz: Any = None, naive_as_utc: bool = True) -> datetime:
    """An aware moment itself; a naive one of UTC, in `tz`, or of `tz` where it is not to be UTC's."""
    if not is_naive(dt):
        return dt
    zone = timezone.utc if tz is None else timezone.tz_or_local(tz)
    return localize(to_utc(dt), zone) if naive_as_utc else make_aware(dt, zone)


def maybe_timedelta(delta: Any) -> Any:
    """Numbers as seconds; all else itself."""
    return timedelta(seconds=delta) if isinstance(delta, (int, float)) else delta


def parse_iso8601(datestring: str) -> datetime:
    """The date and time that is written so.  Raises ValueError."""
    text = datestring.strip()
    return datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)


def maybe_iso8601(dt: Any) -> datetime | None:
    """A moment, or one written as ISO 8601; None stays None."""
    return dt if dt is None or isinstance(dt, datetime) else parse_iso8601(dt)


class ffwd:  # noqa: N801 - Celery's name
    """A step ahead: parts of a date that it replaces, weeks and days that it adds, a weekday (0 is Monday)."""

    def __init__(
        self, year: int | None = None, month: int | None = None, weeks: int = 0, weekday: int | None = None,
        day: int | None = None, hour: int | None = None, minute: int | None = None,
        second: int | None = None, microsecond: int | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.year, self.month, self.day, self.hour = year, month, day, hour
        self.minute, self.second, self.microsecond = minute, second, microsecond
        self.weeks, self.weekday = weeks, weekday
        self.days = weeks * 7

    def _fields(self, *names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __radd__(self, other: object) -> datetime:
        if not isinstance(other, datetime):
            return NotImplemented
        year, month = self.year or other.year, self.month or other.month
        day = min(calendar.monthrange(year, month)[1], self.day or other.day)
        moment = other.replace(
            year=year, month=month, day=day, **self._fields("hour", "minute", "second", "microsecond")
        ) + timedelta(days=self.days)
        if self.weekday is not None:
            moment += timedelta(days=(self.weekday - moment.weekday()) % 7)
        return moment

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, ffwd) else NotImplemented

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        given = self._fields(
            "year", "month", "day", "hour", "minute", "second", "microsecond", "weeks", "weekday"
        )
        return f"ffwd({', '.join(f'{name}={value}' for name, value in given.items())})"


def delta_resolution(dt: datetime, delta: timedelta) -> datetime:
    """The moment cut to whole days, hours or minutes, as the span has some; else itself."""
    seconds = max(delta.total_seconds(), 0)
    if seconds >= 86400:
        return dt.replace(hour=0, minute=0, second=0, microsecond=0)
    if seconds >= 3600:
        return dt.replace(minute=0, second=0, microsecond=0)
    return dt.replace(second=0, microsecond=0) if seconds >= 60 else dt


def add_seconds_to_datetime(dt: datetime, seconds: float) -> datetime:
    """The moment so many real seconds later; a naive one stays naive."""
    if is_naive(dt):
        return dt + timedelta(seconds=seconds)
    return (dt.astimezone(fixed.utc) + timedelta(seconds=seconds)).astimezone(dt.tzinfo)


def subtract_datetimes(end: datetime, start: datetime) -> timedelta:
    """The real time between two moments; naive ones are UTC's."""
    return maybe_make_aware(end).astimezone(fixed.utc) - maybe_make_aware(start).astimezone(fixed.utc)


def remaining(
    start: datetime, ends_in: Any, now: datetime | None = None, relative: bool = False
) -> timedelta:
    """The time left until `ends_in` after `start`; with `relative` its end is cut as `delta_resolution` does."""
    now = now or datetime.now(fixed.utc)
    end: datetime = start + ends_in
    if relative:
        end = delta_resolution(end, ends_in)
    return subtract_datetimes(end, now)


def rate(r: Any) -> float:
    """``"100/m"`` as a number for each second; None is 0, and a number itself.  Raises KeyError for the unit."""
    if not r:
        return 0
    if not isinstance(r, str):
        return float(r)
    number, _, unit = r.partition("/")
    return float(number) / _RATES[unit or "s"]


def weekday(name: str) -> int:
    """The number of a day by the first three letters of its name; 0 is Sunday.  Raises KeyError."""
    try:
        return _DAYS.index(name[:3].lower())
    except ValueError:
        raise KeyError(name) from None


def humanize_seconds(
    secs: float, prefix: str = "", sep: str = "", now: str = "now", microseconds: bool = False
) -> str:
    """A span in words, in the largest unit of which there is one."""
    secs = float(f"{float(secs):.2f}")
    for unit, size in _UNITS:
        if secs >= size:
            return f"{prefix}{sep}{secs / size:.2f} {unit}{'s' if secs > size else ''}"
    if microseconds and secs > 0:
        return f"{prefix}{sep}{secs:.2f} seconds"
    return now


def utcoffset(time: Any = time_module, localtime: Callable[[], Any] = time_module.localtime) -> float:
    """By how many hours the machine's time zone is behind UTC."""
    return float(time.altzone if localtime().tm_isdst else time.timezone) / 3600


def adjust_timestamp(ts: float, offset: float, here: Callable[..., float] = utcoffset) -> float:
    """The unix seconds of a clock that is `offset` hours behind UTC, for this machine's."""
    return ts - (offset - here()) * 3600


def get_exponential_backoff_interval(
    factor: int, retries: int, maximum: int, full_jitter: bool = False
) -> float:
    """Seconds to wait: `factor` doubled for each retry, up to `maximum`; with jitter anything below."""
    wait = min(maximum, factor * 2**retries)
    return max(0, random.randrange(int(wait) + 1) if full_jitter else wait)
