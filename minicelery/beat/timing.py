"""When an entry runs next, and what becomes of runs that were missed.  Pure functions of time."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

from minicelery.beat.entries import Entry
from minicelery.schedules import crontab, schedule
from minicelery.schedules.clock import Pace

UTC = timezone.utc
LATE = 30.0
"""Seconds after which a run that was not sent counts as missed: more than another beat takes to take over."""
_NIGHT = 3 * 3600.0
"""Seconds that a clock may be put back without a nightly run being made a second time."""
_PRECISION = 1e-3


def following(timing: Any, after: float) -> float:
    """The first run later than `after`."""
    found: datetime = timing.next(datetime.fromtimestamp(after, UTC))
    return found.timestamp()


def latest(timing: Any, due: float, now: float) -> float:
    """The last run not later than `now`, of those from `due` on, which is one of them."""
    if is_elapsed(timing):
        interval: float = timing.seconds
        return round(due + math.floor((now - due) / interval) * interval, 6)
    ahead = following(timing, due)
    if ahead > now:
        return due
    due, beyond = ahead, now  # none lies between `beyond` and now
    while beyond - due > _PRECISION:
        middle = (due + beyond) / 2
        found = following(timing, middle)
        if found <= now:
            due = found
        else:
            beyond = middle
    return due


def is_elapsed(timing: Any) -> bool:
    """Whether it goes by elapsed time, whatever clocks show."""
    return type(timing) is schedule and not timing.relative


def run_for(entry: Entry, now: float, deadline: float | None) -> float | None:
    """The due time of the run that is to be sent now; None where it is skipped.

    Of several that were missed it is the last.  `deadline` is `beat_cron_starting_deadline`.
    """
    due = latest(entry.timing, entry.due, now)
    timing = getattr(entry.timing, "inner", entry.timing)  # of one with a beginning or an end
    if deadline is not None and isinstance(timing, crontab) and now - due > deadline:
        return None
    if entry.catch_up == "skip" and now - due > LATE:
        return None
    return due


def taken_up(timing: Any, last: float, now: float) -> float:
    """The last run to go on from, where that is `last`; the clock may have been put back since.

    What runs every hour or more often runs on by the new time; a run at fixed hours is not repeated.
    Nor is any because of two machines whose clocks differ a little.
    """
    ahead = last - now
    return last if ahead < LATE or (_is_nightly(timing) and ahead < _NIGHT) else now


def _is_nightly(timing: Any) -> bool:
    return not isinstance(timing, schedule) and getattr(timing, "_pace", Pace.FIXED) is Pace.FIXED


def mark(timing: Any) -> str:
    """A text that differs where the schedule does."""
    text = repr(timing)
    if "object at 0x" in text:  # the usual one, another in each process
        text = f"{type(timing).__module__}.{type(timing).__qualname__}"
    more = [getattr(timing, name, "") for name in ("seconds", "relative")]
    return " ".join(str(part) for part in (text, *more) if part)
