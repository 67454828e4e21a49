"""What all schedules share: an app, its time zone, the time, and the question whether a run is due."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

from minicelery.schedules.clock import zone_of

if TYPE_CHECKING:
    from minicelery.app import Celery

UTC = timezone.utc


class schedstate(NamedTuple):  # noqa: N801 - Celery's name
    """What `is_due` answers; `next` is in seconds from now."""

    is_due: bool
    next: float


class BaseSchedule:
    """A schedule knows when the next run is; subclasses say so in `next`.

    `nowfun` returns the time where the clock should not be asked.  Naive datetimes, from
    `nowfun` or as `last_run_at`, are taken as UTC, as in Celery.
    """

    _tz: tzinfo | None = None

    def __init__(
        self,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
        *,
        tz: str | tzinfo | None = None,
    ) -> None:
        if nowfun is not None and not callable(nowfun):
            raise TypeError(f"nowfun is a function that returns a datetime, not {nowfun!r}")
        self.nowfun = nowfun
        self._app = app
        if tz is not None:  # a subclass may have set it before
            self._tz = zone_of(tz)

    # -- what is asked ---------------------------------------------------------------------

    def next(self, after: datetime) -> datetime:
        """The first run later than `after`, an aware datetime; aware, in the schedule's zone.

        Python compares two datetimes of one zone by what the clock shows, not by which was
        first: where order matters, compare `timestamp()`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say when it runs next")

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """How long from now until the run that follows `last_run_at`; negative if that is past."""
        last = self.maybe_make_aware(last_run_at)
        return self.next(last).astimezone(UTC) - self._now_utc()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether the run that follows `last_run_at` is due, and when to ask again."""
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        if remaining > 0:
            return schedstate(False, remaining)
        return schedstate(True, self._seconds_to_next())

    # -- what it is asked with -------------------------------------------------------------

    def now(self) -> datetime:
        """The time: `nowfun`'s or the app's."""
        return (self.nowfun or self.app.now)()

    def maybe_make_aware(self, dt: datetime, naive_as_utc: bool = True) -> datetime:
        """`dt`, in the schedule's zone if it was naive: as UTC, or as what clocks in the zone show."""
        if not isinstance(dt, datetime):
            raise TypeError(f"last_run_at is a datetime, not the {type(dt).__name__} {dt!r}")
        if dt.tzinfo is not None:
            return dt
        return dt.replace(tzinfo=UTC).astimezone(self.tz) if naive_as_utc else dt.replace(tzinfo=self.tz)

    @property
    def app(self) -> Celery:
        """Its app: the current one, unless it was given one."""
        if self._app is None:
            from minicelery._state import get_current_app

            return get_current_app()
        return self._app

    @app.setter
    def app(self, app: Celery | None) -> None:
        self._app = app

    @property
    def tz(self) -> tzinfo:
        """Its time zone: the app's, unless it was given one."""
        return zone_of(self.app.timezone) if self._tz is None else self._tz

    @tz.setter
    def tz(self, zone: str | tzinfo) -> None:
        self._tz = zone_of(zone)

    def _state(self) -> tuple[dict[str, Any], ...]:
        """The last part of what `__reduce__` returns: a zone of its own, and its `nowfun`."""
        state = {"_tz": self._tz, "nowfun": self.nowfun}
        kept = {name: value for name, value in state.items() if value is not None}
        return (kept,) if kept else ()

    def _now_utc(self) -> datetime:
        return self.maybe_make_aware(self.now()).astimezone(UTC)

    def _seconds_to_next(self) -> float:
        now = self._now_utc()
        return (self.next(now).astimezone(UTC) - now).total_seconds()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BaseSchedule):
            return other.nowfun == self.nowfun
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.nowfun)


def aware(after: Any) -> datetime:
    """`after`, if it is an aware datetime.  Raises TypeError, ValueError."""
    if not isinstance(after, datetime):
        raise TypeError(f"next() takes an aware datetime, not the {type(after).__name__} {after!r}")
    if after.tzinfo is None or after.utcoffset() is None:
        raise ValueError(
            f"next() takes an aware datetime, and {after!r} has no time zone: "
            f"say which with tzinfo=, or use datetime.now(timezone.utc)"
        )
    return after
