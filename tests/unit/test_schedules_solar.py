"""Runs by the sun, beside Celery's, which computes with the same library."""

from __future__ import annotations

import copy
import json
import pickle
import random
import sys
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules import from_form, solar, to_form
from minicelery.schedules.sun import EVENTS

pytest.importorskip("ephem", reason="pip install minicelery[solar]: schedules by the sun are NOT tested")

UTC = timezone.utc
EQUINOX = datetime(2026, 3, 20, tzinfo=UTC)


@pytest.mark.parametrize("event", EVENTS)
def test_events_are_those_of_celery(event: str) -> None:
    theirs = pytest.importorskip("celery.schedules")
    celery = pytest.importorskip("celery")
    app, rng = celery.Celery(set_as_current=False), random.Random(event)
    for _ in range(15):
        lat, lon = rng.uniform(-65, 65), rng.uniform(-180, 180)
        after = EQUINOX + timedelta(minutes=rng.randrange(300 * 1440))
        oracle = theirs.solar(event, lat, lon, app=app, nowfun=lambda after=after: after)
        expected = after + oracle.remaining_estimate(after)
        assert abs(solar(event, lat, lon, tz=UTC).next(after) - expected) < timedelta(seconds=2)


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_comes_once_a_day(event: str) -> None:
    timing, at = solar(event, 40.4, -3.7, tz="Europe/Madrid"), EQUINOX
    days = []
    for _ in range(300):
        later = timing.next(at)
        assert (
            timedelta(hours=23) < later.astimezone(UTC) - at.astimezone(UTC) < timedelta(hours=25) or not days
        )
        at = later
        days.append(at.date())
    assert len(set(days)) == 300


def test_a_day_at_greenwich_goes_from_dawn_to_dusk() -> None:
    times = [solar(event, 51.4769, 0.0, tz=UTC).next(EQUINOX) for event in EVENTS]
    assert times == sorted(times)
    sunrise, noon, sunset = times[3:6]
    late = noon - EQUINOX.replace(hour=12)  # by the equation of time, 7.4 minutes on that day
    assert timedelta(minutes=7) < late < timedelta(minutes=8)
    assert timedelta(hours=12, minutes=5) < sunset - sunrise < timedelta(hours=12, minutes=15)
    assert abs((sunset - noon) - (noon - sunrise)) < timedelta(minutes=2)


def test_after_the_polar_night_the_sun_rises_again() -> None:
    found = solar("sunrise", 69.65, 18.96, tz="Europe/Oslo").next(datetime(2026, 12, 1, tzinfo=UTC))
    assert (found.year, found.month, found.tzinfo) == (2027, 1, ZoneInfo("Europe/Oslo"))


def test_is_due_waits_for_the_event() -> None:
    now = EQUINOX
    timing = solar("solar_noon", 0, 0, nowfun=lambda: now, tz=UTC)
    waiting = timing.is_due(EQUINOX)
    assert not waiting.is_due and 43_000 < waiting.next < 45_000
    now += timedelta(seconds=waiting.next + 0.1)
    due = timing.is_due(EQUINOX)
    assert due.is_due and 86_000 < due.next < 87_000


def test_it_survives_pickling_copying_and_storing() -> None:
    timing = solar("sunset", -37.81753, 144.96715)
    assert repr(timing) == "<solar: sunset at latitude -37.81753, longitude: 144.96715>"
    for same in (
        pickle.loads(pickle.dumps(timing)),
        copy.copy(timing),
        from_form(json.loads(json.dumps(to_form(timing)))),
    ):
        assert same == timing and hash(same) == hash(timing)
    assert timing != solar("sunrise", -37.81753, 144.96715)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (
            ("sunsett", 0, 0),
            ValueError,
            "event='sunsett' is unknown; did you mean 'sunset'?; accepted: dawn_",
        ),
        (("sunset", 91, 0), ValueError, "lat=91 is out of range; accepted: degrees, -90 to 90"),
        (("sunset", 0, -181), ValueError, "lon=-181 is out of range; accepted: degrees, -180 to 180"),
        (("sunset", float("nan"), 0), ValueError, "lat=nan is out of range"),
        (("sunset", "40", 0), TypeError, "lat='40' is a str; accepted: degrees"),
    ],
)
def test_what_can_not_be_is_refused(arguments: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as refusal:
        solar(*arguments)
    assert words in str(refusal.value)


def test_at_the_poles_there_is_no_sunrise_to_wait_for() -> None:
    with pytest.raises(OverflowError, match="does not come within"):
        solar("sunrise", 90, 0, tz=UTC).next(EQUINOX)


def test_without_ephem_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ephem", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install minicelery\[solar\]"):
        solar("sunset", 0, 0)
