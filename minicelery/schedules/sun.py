"""`solar`: runs at sunrise, noon, dusk … of a place on Earth, computed by ephem."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules.basis import BaseSchedule, aware

if TYPE_CHECKING:
    from minicelery.app import Celery

UTC = timezone.utc
_SAME = timedelta(seconds=1)
"""Events closer than that are one, computed from two starts."""
_LONGEST_SEARCH_DAYS = 3 * 366
"""Near the poles some events stay away for more than a year."""


class _Event(NamedTuple):
    method: str  # of ephem.Observer
    horizon: str  # degrees; the sun's upper limb, raised by refraction, is seen from -0:34 on
    by_center: bool


EVENTS = {
    "dawn_astronomical": _Event("next_rising", "-18", True),
    "dawn_nautical": _Event("next_rising", "-12", True),
    "dawn_civil": _Event("next_rising", "-6", True),
    "sunrise": _Event("next_rising", "-0:34", False),
    "solar_noon": _Event("next_transit", "0", False),
    "sunset": _Event("next_setting", "-0:34", False),
    "dusk_civil": _Event("next_setting", "-6", True),
    "dusk_nautical": _Event("next_setting", "-12", True),
    "dusk_astronomical": _Event("next_setting", "-18", True),
}


class solar(BaseSchedule):  # noqa: N801 - Celery's name
    """Runs at each `event` of the sun at latitude `lat` and longitude `lon`, north and east positive.

    Needs ``pip install minicelery[solar]``.  Where an event stays away, as sunrise does in polar
    winters, the next run is when it comes again.
    """

    _all_events = frozenset(EVENTS)

    def __init__(
        self,
        event: str,
        lat: float,
        lon: float,
        *,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
        tz: str | tzinfo | None = None,
    ) -> None:
        super().__init__(nowfun, app, tz=tz)
        if event not in EVENTS:
            raise ValueError(
                f"solar: event={event!r} is unknown{_near(event)}; accepted: {', '.join(EVENTS)}"
            )
        self.event = event
        self.lat = _degrees("lat", lat, 90)
        self.lon = _degrees("lon", lon, 180)
        _ephem()

    def next(self, after: datetime) -> datetime:
        return self._following(aware(after)).astimezone(self.tz)

    def _following(self, after: datetime) -> datetime:
        ephem, event = _ephem(), EVENTS[self.event]
        observer = ephem.Observer()
        observer.lat, observer.lon = str(self.lat), str(self.lon)
        observer.pressure, observer.horizon = 0, event.horizon
        sun = ephem.Sun()
        options = {"use_center": True} if event.by_center else {}
        start = ephem.Date((after + _SAME).astimezone(UTC).replace(tzinfo=None))
        for _ in range(_LONGEST_SEARCH_DAYS):
            try:
                found = getattr(observer, event.method)(sun, start=start, **options)
            except ephem.CircumpolarError:
                start = observer.next_antitransit(sun, start=start)
                continue
            return found.datetime().replace(tzinfo=UTC)  # type: ignore[no-any-return]  # ephem has no types
        raise OverflowError(f"{self!r} does not come within {_LONGEST_SEARCH_DAYS} days after {after}")

    def __repr__(self) -> str:
        return f"<solar: {self.event} at latitude {self.lat}, longitude: {self.lon}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.event, self.lat, self.lon), *self._state()

    def _key(self) -> tuple[Any, ...]:
        return self.event, self.lat, self.lon

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, solar) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


def _ephem() -> Any:
    try:
        import ephem
    except ImportError as error:
        raise ImproperlyConfigured("solar schedules need ephem: pip install minicelery[solar]") from error
    return ephem


def _degrees(name: str, value: Any, most: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"solar: {name}={value!r} is a {type(value).__name__}; accepted: degrees, -{most} to {most}"
        )
    if not -most <= value <= most:
        raise ValueError(f"solar: {name}={value!r} is out of range; accepted: degrees, -{most} to {most}")
    return value


def _near(event: object) -> str:
    from difflib import get_close_matches

    near = get_close_matches(event, list(EVENTS), 1) if isinstance(event, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
