"""Points in time: unix seconds inside, datetimes as the project has them at the edge."""

from __future__ import annotations

from datetime import datetime, timezone

from django.conf import settings
from django.utils import timezone as django_timezone


def moment(seconds: float | None) -> datetime | None:
    """A datetime as this project has them: aware, or, with USE_TZ=False, in its time zone."""
    return None if seconds is None else moment_of(seconds)


def moment_of(seconds: float) -> datetime:
    """The same of seconds that are known."""
    found = datetime.fromtimestamp(seconds, timezone.utc)
    return found if settings.USE_TZ else django_timezone.make_naive(found)


def unix(at: datetime | None) -> float | None:
    """The reverse."""
    return None if at is None else aware(at).timestamp()


def aware(at: datetime) -> datetime:
    """`at` with a time zone: that of the project if it had none."""
    found: datetime = django_timezone.make_aware(at) if django_timezone.is_naive(at) else at
    return found
