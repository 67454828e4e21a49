"""`schedule`: runs every so many seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules.basis import BaseSchedule, aware, schedstate
from minicelery.schedules.clock import first_instant

if TYPE_CHECKING:
    from minicelery.app import Celery

UTC = timezone.utc
_DAY, _HOUR, _MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


class schedule(BaseSchedule):  # noqa: N801 - Celery's name
    """Runs `run_every` (seconds or a timedelta) after the last run, by elapsed time.

    With `relative`, runs are rounded down to what the clock shows: for an interval of days to
    midnight, of hours to the full hour, of minutes to the full minute.
    """

    def __init__(
        self,
        run_every: float | timedelta,
        relative: bool = False,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
        *,
        tz: str | tzinfo | None = None,
    ) -> None:
        super().__init__(nowfun, app, tz=tz)
        self.run_every = _interval(run_every)
        self.relative = relative

    def next(self, after: datetime) -> datetime:
        zone = self.tz
        if not self.relative:
            return (aware(after).astimezone(UTC) + self.run_every).astimezone(zone)
        return _next_rounded(aware(after).astimezone(zone), self.run_every)

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether a run is due, and when to ask again: in one interval, or when it is due."""
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        if remaining > 0:
            return schedstate(False, remaining)
        return schedstate(True, self._seconds_to_next() if self.relative else self.seconds)

    @property
    def seconds(self) -> float:
        """The interval."""
        return self.run_every.total_seconds()

    @property
    def human_seconds(self) -> str:
        """The interval in words."""
        return in_words(self.seconds)

    def __repr__(self) -> str:
        return f"<freq: {self.human_seconds}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run_every, self.relative, self.nowfun), *self._state()

    def __eq__(self, other: object) -> bool:
        return self.run_every == (other.run_every if isinstance(other, schedule) else other)

    def __hash__(self) -> int:
        return hash(self.run_every)


def in_words(seconds: float) -> str:
    """``"30.00 minutes"``, as Celery says it; below a second ``"now"``."""
    for unit, length in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0)):
        if round(seconds, 2) >= length:
            number = round(seconds, 2) / length
            return f"{number:.2f} {unit}{'s' if number > 1 else ''}"
    return "now"


def _interval(run_every: Any) -> timedelta:
    if isinstance(run_every, timedelta):
        interval = run_every
    elif isinstance(run_every, (int, float)) and not isinstance(run_every, bool):
        if not math.isfinite(run_every):
            raise ImproperlyConfigured(f"schedule: run_every={run_every!r} is no number of seconds")
        interval = timedelta(seconds=run_every)
    else:
        raise TypeError(
            f"schedule: run_every={run_every!r} is a {type(run_every).__name__}; "
            f"accepted: a number of seconds or a timedelta"
        )
    if interval <= timedelta(0):
        raise ImproperlyConfigured(f"schedule: run_every={run_every!r} is too short; accepted: more than 0 s")
    return interval


def _next_rounded(after: datetime, interval: timedelta) -> datetime:
    """The last full day, hour, minute or second at most one interval after `after`, and later than it.

    Days are those of the calendar, however many hours they have.
    """
    if interval >= _DAY:
        midnight = (after.replace(tzinfo=None) + interval).replace(hour=0, minute=0, second=0, microsecond=0)
        return first_instant(midnight, _zone(after))
    start = after.astimezone(UTC)
    end = (start + interval).astimezone(after.tzinfo)
    rounded = _first_and_second(_rounded(end, interval))
    candidates = [found for found in rounded if start < found <= start + interval]
    return max(candidates, default=start + interval).astimezone(after.tzinfo)


def _rounded(end: datetime, interval: timedelta) -> datetime:
    if interval >= _HOUR:
        return end.replace(minute=0, second=0, microsecond=0)
    if interval >= _MINUTE:
        return end.replace(second=0, microsecond=0)
    return end.replace(microsecond=0)


def _first_and_second(moment: datetime) -> list[datetime]:
    """The instants at which clocks show this: one, or two where they are put back; in UTC."""
    wall, zone = moment.replace(tzinfo=None, fold=0), _zone(moment)
    return [first_instant(wall, zone).astimezone(UTC), wall.replace(tzinfo=zone, fold=1).astimezone(UTC)]


def _zone(moment: datetime) -> tzinfo:
    return moment.tzinfo or UTC
