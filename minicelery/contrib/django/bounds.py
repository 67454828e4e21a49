"""Schedules with a beginning and an end, as rows of the database have them.  Pure functions of time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from minicelery.schedules import BaseSchedule, schedule
from minicelery.schedules.words import in_words

NEVER = datetime(9999, 12, 31, tzinfo=timezone.utc)
"""When the next run is where there is none any more."""
_BEFORE = timedelta(microseconds=1)


class clocked(BaseSchedule):  # noqa: N801 - as django-celery-beat calls it
    """Runs once, at `clocked_time`, an aware datetime."""

    def __init__(self, clocked_time: datetime, *, app: Any = None) -> None:
        super().__init__(app=app, tz="UTC")
        self.clocked_time = clocked_time

    def next(self, after: datetime) -> datetime:
        return self.clocked_time if after < self.clocked_time else NEVER

    def __repr__(self) -> str:
        return f"<clocked: {self.clocked_time.astimezone(timezone.utc).isoformat()}>"

    def __str__(self) -> str:
        return f"once, at {self.clocked_time:%Y-%m-%d %H:%M:%S %Z}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.clocked_time,)

    def __eq__(self, other: object) -> bool:
        return self.clocked_time == other.clocked_time if isinstance(other, clocked) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.clocked_time)


class Bounded(BaseSchedule):
    """Runs as `inner` does: from `start` on, until `end`, and with `once_after` one time, after that."""

    def __init__(
        self,
        inner: BaseSchedule,
        start: datetime | None = None,
        end: datetime | None = None,
        once_after: datetime | None = None,
        *,
        app: Any = None,
    ) -> None:
        super().__init__(app=app, tz="UTC")
        self.inner = inner
        self.start = start
        self.end = end
        self.once_after = once_after
        if hasattr(inner, "_pace"):  # of days on which clocks are changed
            self._pace = inner._pace

    def next(self, after: datetime) -> datetime:
        found = self._following(after)
        if self.once_after is not None:
            first = self._following(self.once_after)
            found = first if after < first else NEVER
        return NEVER if self.end is not None and found > self.end else found

    def _following(self, after: datetime) -> datetime:
        if self.start is not None and after < self.start:
            # Intervals are counted from the start; others have their own times, of which it may be one.
            return self.start if isinstance(self.inner, schedule) else self.inner.next(self.start - _BEFORE)
        return self.inner.next(after)

    def __repr__(self) -> str:
        # Without the end: another one changes nothing of what was.
        return f"<Bounded: {self.inner!r} from {self.start} once after {self.once_after}>"

    def __str__(self) -> str:
        text = in_words(self.inner) if not isinstance(self.inner, clocked) else str(self.inner)
        if self.once_after is not None:
            text = f"once, {text}"
        if self.start is not None:
            text += f", from {self.start:%Y-%m-%d %H:%M %Z}"
        return text if self.end is None else f"{text}, until {self.end:%Y-%m-%d %H:%M %Z}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.inner, self.start, self.end, self.once_after)

    def _key(self) -> tuple[Any, ...]:
        return self.inner, self.start, self.end, self.once_after

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Bounded) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


def words_of(timing: Any) -> str:
    """When it runs, for people."""
    return str(timing) if isinstance(timing, (Bounded, clocked)) else in_words(timing)
