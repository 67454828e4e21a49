"""`crontab`: runs whenever the clock shows one of its times."""

from __future__ import annotations

from calendar import isleap
from collections.abc import Callable, Mapping
from datetime import MAXYEAR, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minicelery.schedules.basis import BaseSchedule, aware, schedstate
from minicelery.schedules.clock import Pace, next_instant, zone_of
from minicelery.schedules.fields import FIELDS, Cronspec, ParseException, Values, values_of

if TYPE_CHECKING:
    from minicelery.app import Celery

UTC = timezone.utc
_LENGTHS = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_LONGEST = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_HOURS_A_DAY = 24
_ORDER = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
_LINE = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
"""The order in a line of crontab(5), other than that of the arguments."""


class crontab(BaseSchedule):  # noqa: N801 - Celery's name
    """Runs at the minutes whose minute, hour, month and day are all among the given ones.

    A field is a number, several in a list or set, or text: ``"*"``, ``"*/15"``, ``"9-17"``,
    ``"mon,wed"`` (see `fields`); Sunday is 0.  Times are those of `tz`, or else of the app's
    `timezone`; see `clock.Pace` for the days on which clocks are changed.

    A day must match both `day_of_month` and `day_of_week`, as in Celery.  With `day_or` one of
    them will do if neither begins with ``*``, as in Vixie's cron.

    Raises ParseException (a ValueError) or TypeError for what can't be, 30 February included.
    """

    def __init__(
        self,
        minute: Cronspec = "*",
        hour: Cronspec = "*",
        day_of_week: Cronspec = "*",
        day_of_month: Cronspec = "*",
        month_of_year: Cronspec = "*",
        *,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
        tz: str | tzinfo | None = None,
        day_or: bool = False,
    ) -> None:
        super().__init__(nowfun, app, tz=tz)
        self.day_or = day_or
        self._orig_minute = _kept(minute)
        self._orig_hour = _kept(hour)
        self._orig_day_of_week = _kept(day_of_week)
        self._orig_day_of_month = _kept(day_of_month)
        self._orig_month_of_year = _kept(month_of_year)
        self._read_fields()

    def _read_fields(self) -> None:
        minute, hour, day_of_week, day_of_month, month_of_year = (
            values_of(FIELDS[name], spec) for name, spec in zip(_ORDER, self._specs(), strict=True)
        )
        self.minute, self.hour = minute.numbers, hour.numbers
        self.day_of_week, self.day_of_month = day_of_week.numbers, day_of_month.numbers
        self.month_of_year = month_of_year.numbers
        either = bool(self.day_or) and not (day_of_week.has_star or day_of_month.has_star)
        if not either:
            self._refuse_dates_that_never_come()
        self._minute, self._hour, self._month = minute, hour, month_of_year
        self._days = _day_masks(self.day_of_month, self.day_of_week, either)
        self._pace = _pace(hour)

    @classmethod
    def from_string(cls, crontab: str, **options: Any) -> crontab:
        """The crontab of a line such as ``"30 2 * * mon"``; `options` as in ``crontab(…)``.

        The order of the fields is crontab(5)'s: minute, hour, day of the month, month, day of the week.
        """
        if not isinstance(crontab, str):
            raise TypeError(f"crontab.from_string takes text such as '30 2 * * mon', not {crontab!r}")
        fields = crontab.split()
        if len(fields) != len(_LINE):
            raise ParseException(
                f"crontab: {crontab!r} has {len(fields)} fields; accepted: {len(_LINE)}, {', '.join(_LINE)}"
            )
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year, **options)

    # -- when ------------------------------------------------------------------------------

    def next(self, after: datetime) -> datetime:
        return next_instant(self._next_wall, aware(after), self.tz, pace=self._pace)

    def remaining_delta(
        self, last_run_at: datetime, tz: str | tzinfo | None = None, ffwd: Any = None
    ) -> tuple[datetime, timedelta, datetime]:
        """The last run, how long after it the next one is, and now; all in UTC, where that adds up.

        `tz` is the zone to read the fields in, if not the schedule's; `ffwd` is not used.
        """
        zone = self.tz if tz is None else zone_of(tz)
        last = self.maybe_make_aware(last_run_at).astimezone(UTC)
        following = next_instant(self._next_wall, last, zone, pace=self._pace)
        return last, following.astimezone(UTC) - last, self._now_utc()

    def remaining_estimate(self, last_run_at: datetime, ffwd: Any = None) -> timedelta:
        """How long from now until the run that follows `last_run_at`; negative if that is past."""
        return super().remaining_estimate(last_run_at)

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether the run that follows `last_run_at` is due, and the seconds until the next one.

        With `beat_cron_starting_deadline`, it is not if the latest missed run is older than that.
        """
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        if remaining > 0:
            return schedstate(False, remaining)
        return schedstate(remaining == 0 or self._in_deadline(), self._seconds_to_next())

    def _in_deadline(self) -> bool:
        deadline = self.app.conf.beat_cron_starting_deadline
        if deadline is None:
            return True
        now = self._now_utc()
        # One microsecond more, so that a run exactly as old as the deadline is in it.
        since = now - timedelta(seconds=deadline, microseconds=1)
        return self.next(since).astimezone(UTC) <= now

    def _next_wall(self, wall: datetime) -> datetime:
        """The first minute later than `wall` that matches, whether or not clocks skip or repeat it."""
        year, month, day = wall.year, wall.month, wall.day
        if self._matching_days(year, month) >> day & 1:
            if wall.hour in self.hour:
                minute = self._minute.later[wall.minute]
                if minute is not None:
                    return datetime(year, month, day, wall.hour, minute)
            hour = self._hour.later[wall.hour]
            if hour is not None:
                return datetime(year, month, day, hour, self._minute.first)
        year, month, day = self._day_after(year, month, day)
        return datetime(year, month, day, self._hour.first, self._minute.first)

    def _day_after(self, year: int, month: int, day: int) -> tuple[int, int, int]:
        """The first matching day after the given one.  Raises OverflowError at the end of the calendar."""
        days = self._matching_days(year, month) >> (day + 1) << (day + 1)
        while not days:
            later = self._month.later[month]
            year, month = (year, later) if later else (year + 1, self._month.first)
            if year > MAXYEAR:
                raise OverflowError(f"{self!r} does not run again before the year {MAXYEAR} ends")
            days = self._matching_days(year, month)
        return year, month, (days & -days).bit_length() - 1

    def _matching_days(self, year: int, month: int) -> int:
        """The bit 1 << day of each day that matches."""
        if month not in self.month_of_year:
            return 0
        length = 29 if month == 2 and isleap(year) else _LENGTHS[month]
        return self._days[date(year, month, 1).weekday()][length - 28]

    # -- what it is ------------------------------------------------------------------------

    def _specs(self) -> tuple[Cronspec, ...]:
        """The fields as they were given, in the order of the arguments."""
        return tuple(getattr(self, f"_orig_{name}") for name in _ORDER)

    def _refuse_dates_that_never_come(self) -> None:
        longest = max(_LONGEST[month] for month in self.month_of_year)
        if min(self.day_of_month) > longest:
            raise ParseException(
                f"crontab: day_of_month={self._orig_day_of_month!r} never comes in "
                f"month_of_year={self._orig_month_of_year!r}; accepted: 1-{longest}"
            )

    def __repr__(self) -> str:
        specs = dict(zip(_ORDER, self._specs(), strict=True))
        more = ", day_or" if self.day_or else ""
        more += "" if self._tz is None else f", {self._tz}"
        return f"<crontab: {' '.join(str(specs[name]) for name in _LINE)} (m/h/dM/MY/d){more}>"

    def __reduce__(self) -> tuple[Any, ...]:
        given = {"nowfun": self.nowfun, "tz": self._tz, "day_or": self.day_or or None}
        return type(self), self._specs(), {name: value for name, value in given.items() if value is not None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        day_or = state.get("day_or", False)
        super().__init__(state.get("nowfun"), state.get("app"), tz=state.get("tz"))
        if day_or != self.day_or:
            self.day_or = day_or
            self._read_fields()

    def _key(self) -> tuple[Any, ...]:
        return (
            self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year,
            self.day_or, str(self._tz), self.nowfun,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, crontab) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


def _kept(spec: Any) -> Any:
    """The field as given, or what an iterator yields, which can be read only once."""
    return list(spec) if hasattr(spec, "__next__") else spec


def _pace(hour: Values) -> Pace:
    if len(hour.numbers) == _HOURS_A_DAY:
        return Pace.EVERY_HOUR
    return Pace.STEPS if hour.has_step and len(hour.numbers) > 1 else Pace.FIXED


@lru_cache(maxsize=1024)
def _day_masks(
    of_month: frozenset[int], of_week: frozenset[int], either: bool
) -> tuple[tuple[int, ...], ...]:
    """The matching days of a month as bits, by the weekday it begins on and its length less 28."""
    return tuple(
        tuple(_day_mask(of_month, of_week, either, first, length) for length in range(28, 32))
        for first in range(7)  # Monday is 0, as in date.weekday()
    )


def _day_mask(
    of_month: frozenset[int], of_week: frozenset[int], either: bool, first: int, length: int
) -> int:
    mask = 0
    for day in range(1, length + 1):
        by_month, by_week = day in of_month, (first + day) % 7 in of_week
        if (by_month or by_week) if either else (by_month and by_week):
            mask |= 1 << day
    return mask
