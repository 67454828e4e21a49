"""Schedules as plain data, for stores and APIs: dicts that JSON can carry.

::

    {"type": "interval", "seconds": 1800.0, "relative": false}
    {"type": "crontab", "line": "0 9 * * mon", "day_or": false}
    {"type": "solar", "event": "sunset", "lat": -37.8, "lon": 145.0}

Each may have ``"tz"``, the name of its own time zone.  A schedule's `nowfun` is not carried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timezone, tzinfo
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules.basis import BaseSchedule
from minicelery.schedules.cron import crontab
from minicelery.schedules.interval import schedule
from minicelery.schedules.sun import solar

if TYPE_CHECKING:
    from minicelery.app import Celery


def to_form(timing: BaseSchedule) -> dict[str, Any]:
    """`timing` as plain data.  Raises TypeError for a schedule of another class, or with a `nowfun`."""
    write = _WRITERS.get(type(timing))
    if write is None:
        raise TypeError(
            f"{timing!r} is of {type(timing).__name__}; what is stored is a schedule, crontab or solar"
        )
    if timing.nowfun is not None:
        raise TypeError(f"{timing!r} has a nowfun, which can't be stored")
    form = write(timing)
    if timing._tz is not None:
        form["tz"] = _zone_name(timing._tz)
    return form


def from_form(form: Mapping[str, Any], app: Celery | None = None) -> BaseSchedule:
    """The schedule that `to_form` has made this of.  Raises ValueError or TypeError, naming what is wrong."""
    if not isinstance(form, Mapping):
        raise TypeError(f"a stored schedule is a mapping, not the {type(form).__name__} {form!r}")
    kind, fields = form.get("type"), {name: value for name, value in form.items() if name != "type"}
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise ImproperlyConfigured(f"a stored schedule of type {kind!r}; accepted: {', '.join(_READERS)}")
    try:
        return read(app=app, **fields)
    except TypeError as error:
        raise TypeError(f"the stored schedule {dict(form)!r}: {error}") from error


def _interval_form(timing: Any) -> dict[str, Any]:
    return {"type": "interval", "seconds": timing.seconds, "relative": timing.relative}


def _crontab_form(timing: Any) -> dict[str, Any]:
    fields = (timing._orig_minute, timing._orig_hour, timing._orig_day_of_month,
              timing._orig_month_of_year, timing._orig_day_of_week)  # fmt: skip
    return {"type": "crontab", "line": " ".join(map(_text, fields)), "day_or": timing.day_or}


def _solar_form(timing: Any) -> dict[str, Any]:
    return {"type": "solar", "event": timing.event, "lat": timing.lat, "lon": timing.lon}


def _text(spec: Any) -> str:
    if isinstance(spec, str):
        return "".join(spec.split())
    return str(spec) if isinstance(spec, int) else ",".join(map(str, sorted(spec)))


def _zone_name(zone: tzinfo) -> str:
    name = "UTC" if zone is timezone.utc else getattr(zone, "key", None)
    if not isinstance(name, str):
        raise TypeError(f"the time zone {zone!r} has no name to be stored by: use tz='Continent/City'")
    return name


def _read_interval(seconds: float, **options: Any) -> BaseSchedule:
    return schedule(seconds, **options)


def _read_crontab(line: str, **options: Any) -> BaseSchedule:
    return crontab.from_string(line, **options)


def _read_solar(event: str, lat: float, lon: float, **options: Any) -> BaseSchedule:
    return solar(event, lat, lon, **options)


_WRITERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    schedule: _interval_form,
    crontab: _crontab_form,
    solar: _solar_form,
}
_READERS: dict[str, Callable[..., BaseSchedule]] = {
    "interval": _read_interval,
    "crontab": _read_crontab,
    "solar": _read_solar,
}
