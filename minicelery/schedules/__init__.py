"""When periodic tasks run: `schedule`, `crontab` and `solar`, pure functions of time.

Each one answers two questions.  `next(after)` is the first run after an aware datetime.
`is_due(last_run_at)` is Celery's: whether to run now, and in how many seconds to ask again.

`basis` has what they share, `clock` the rules for days on which clocks are changed, `fields`
the text of crontab fields, `form` what a stored schedule looks like.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from minicelery.schedules.basis import BaseSchedule, schedstate
from minicelery.schedules.cron import crontab
from minicelery.schedules.fields import ParseException, crontab_parser
from minicelery.schedules.form import from_form, to_form
from minicelery.schedules.interval import schedule
from minicelery.schedules.sun import solar

if TYPE_CHECKING:
    from minicelery.app import Celery

__all__ = (
    "BaseSchedule",
    "ParseException",
    "crontab",
    "crontab_parser",
    "from_form",
    "maybe_schedule",
    "schedstate",
    "schedule",
    "solar",
    "to_form",
)


def maybe_schedule(s: Any, relative: bool = False, app: Celery | None = None) -> Any:
    """Return `s` as a schedule: numbers are seconds, timedeltas intervals; None stays None.

    A schedule is returned itself, and from now on belongs to `app`, if one is given.
    """
    if s is None:
        return None
    if isinstance(s, (int, float, timedelta)):
        return schedule(s, relative, app=app)
    if not callable(getattr(s, "is_due", None)):
        raise TypeError(
            f"a schedule is a number of seconds, a timedelta, crontab(…), schedule(…) or solar(…), "
            f"not the {type(s).__name__} {s!r}" + _hint(s)
        )
    if app is not None:
        s.app = app
    return s


def _hint(value: object) -> str:
    if isinstance(value, str) and len(value.split()) == 5:
        return f"; did you mean crontab.from_string({value!r})?"
    return ""
