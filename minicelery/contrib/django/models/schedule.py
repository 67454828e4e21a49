"""What beat sends: periodic tasks, and the schedules that they share.

Columns are called as in django-celery-beat, so that its tables can be taken over by a rename.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone as django_timezone

from minicelery import schedules
from minicelery.contrib.django.bounds import NEVER, Bounded, clocked, words_of
from minicelery.contrib.django.fields import TimeZoneField
from minicelery.contrib.django.times import aware
from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules.sun import EVENTS

if TYPE_CHECKING:
    from minicelery.app import Celery

__all__ = (
    "ClockedSchedule", "CrontabSchedule", "IntervalSchedule", "PeriodicTask", "PeriodicTasks", "SolarSchedule",
)  # fmt: skip

DAYS, HOURS, MINUTES, SECONDS, MICROSECONDS = "days", "hours", "minutes", "seconds", "microseconds"
PERIODS = tuple((name, name.capitalize()) for name in (DAYS, HOURS, MINUTES, SECONDS, MICROSECONDS))
SOLAR_EVENTS = tuple((name, name.replace("_", " ").capitalize()) for name in sorted(EVENTS))
KINDS = ("interval", "crontab", "solar", "clocked")
_WRONG = (ValueError, TypeError, OverflowError, ImproperlyConfigured)


def default_zone() -> str:
    """The time zone of new crontabs: the project's CELERY_TIMEZONE, or else its TIME_ZONE."""
    from django.conf import settings

    return str(getattr(settings, "CELERY_TIMEZONE", None) or settings.TIME_ZONE or "UTC")


class Shared(models.Model):
    """A schedule that periodic tasks refer to."""

    class Meta:
        abstract = True

    def timing(self, app: Celery | None = None) -> schedules.BaseSchedule:
        """As beat has it.  Raises ValueError, TypeError or ImproperlyConfigured."""
        raise NotImplementedError

    @property
    def schedule(self) -> schedules.BaseSchedule:
        """The same, of the current app."""
        return self.timing()

    def clean(self) -> None:
        """Raises ValidationError where it can't be."""
        super().clean()
        try:
            self.timing()
        except _WRONG as error:
            raise ValidationError(str(error)) from error

    def __str__(self) -> str:
        try:
            return words_of(self.timing())
        except _WRONG as error:
            return f"no schedule: {error}"

    @classmethod
    def _found(cls, **spec: Any) -> Any:
        return cls.objects.filter(**spec).order_by("pk").first() or cls(**spec)


class SolarSchedule(Shared):
    """At an event of the sun, at a place."""

    event = models.CharField(max_length=24, choices=SOLAR_EVENTS)
    latitude = models.DecimalField(
        max_digits=9, decimal_places=6, help_text="Degrees; north is positive.",
        validators=[MinValueValidator(-90), MaxValueValidator(90)],
    )  # fmt: skip
    longitude = models.DecimalField(
        max_digits=9, decimal_places=6, help_text="Degrees; east is positive.",
        validators=[MinValueValidator(-180), MaxValueValidator(180)],
    )  # fmt: skip

    class Meta:
        app_label = "minicelery"
        verbose_name = "solar event"
        verbose_name_plural = "solar events"
        ordering = ("event", "latitude", "longitude")
        unique_together = (("event", "latitude", "longitude"),)

    def timing(self, app: Celery | None = None) -> schedules.BaseSchedule:
        return schedules.solar(self.event, float(self.latitude), float(self.longitude), app=app)

    @classmethod
    def from_schedule(cls, schedule: schedules.solar) -> Any:
        """The row of such a schedule; unsaved if it is new."""
        return cls._found(event=schedule.event, latitude=schedule.lat, longitude=schedule.lon)


class IntervalSchedule(Shared):
    """Every so often: ``IntervalSchedule(every=10, period=IntervalSchedule.SECONDS)``."""

    DAYS, HOURS, MINUTES, SECONDS, MICROSECONDS = DAYS, HOURS, MINUTES, SECONDS, MICROSECONDS
    PERIOD_CHOICES = PERIODS

    every = models.IntegerField("number of periods", validators=[MinValueValidator(1)])
    period = models.CharField(max_length=24, choices=PERIODS)

    class Meta:
        app_label = "minicelery"
        verbose_name = "interval"
        verbose_name_plural = "intervals"
        ordering = ("period", "every")

    def timing(self, app: Celery | None = None) -> schedules.BaseSchedule:
        if self.period not in dict(PERIODS):
            raise ValueError(f"period={self.period!r:.40}: expected one of {', '.join(dict(PERIODS))}")
        return schedules.schedule(timedelta(**{self.period: self.every}), app=app)

    @classmethod
    def from_schedule(cls, schedule: schedules.schedule, period: str = SECONDS) -> Any:
        """The row of such a schedule; unsaved if it is new."""
        one = timedelta(**{period: 1})
        return cls._found(every=max(1, schedule.run_every // one), period=period)


class ClockedSchedule(Shared):
    """Once, at a point in time."""

    clocked_time = models.DateTimeField("time")

    class Meta:
        app_label = "minicelery"
        verbose_name = "point in time"
        verbose_name_plural = "points in time"
        ordering = ("clocked_time",)

    def timing(self, app: Celery | None = None) -> schedules.BaseSchedule:
        if self.clocked_time is None:
            raise ValueError("the time is missing")
        return clocked(aware(self.clocked_time), app=app)

    @classmethod
    def from_schedule(cls, schedule: clocked) -> Any:
        """The row of such a schedule; unsaved if it is new."""
        return cls._found(clocked_time=schedule.clocked_time)


class CrontabSchedule(Shared):
    """As in crontab(5), in a time zone."""

    minute = models.CharField(max_length=240, default="*", help_text='Such as "0,30" or "*/15".')
    hour = models.CharField(max_length=96, default="*", help_text='Such as "8-17".')
    day_of_month = models.CharField("day of the month", max_length=124, default="*")
    month_of_year = models.CharField("month", max_length=64, default="*", help_text="1 to 12, or jan to dec.")
    day_of_week = models.CharField(
        "day of the week", max_length=64, default="*", help_text="0 to 7, both are Sunday; or mon to sun."
    )
    timezone = TimeZoneField(default=default_zone, help_text='Such as "Europe/Madrid".')

    class Meta:
        app_label = "minicelery"
        verbose_name = "crontab"
        verbose_name_plural = "crontabs"
        ordering = ("month_of_year", "day_of_month", "day_of_week", "hour", "minute", "timezone")

    def timing(self, app: Celery | None = None) -> schedules.BaseSchedule:
        return schedules.crontab(
            self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year,
            tz=self.timezone, app=app,
        )  # fmt: skip

    @property
    def human_readable(self) -> str:
        """When it runs, in words."""
        return str(self)

    @classmethod
    def from_schedule(cls, schedule: schedules.crontab) -> Any:
        """The row of such a schedule; unsaved if it is new."""
        names = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
        spec = {name: _field(getattr(schedule, f"_orig_{name}")) for name in names}
        return cls._found(**spec, timezone=ZoneInfo(str(schedule.tz)))


class PeriodicTasks(models.Model):
    """One row, which tells beats that something has changed."""

    ident = models.SmallIntegerField(default=1, primary_key=True, unique=True)
    last_update = models.DateTimeField()

    class Meta:
        app_label = "minicelery"
        verbose_name = "change of the schedule"
        verbose_name_plural = "changes of the schedule"

    @classmethod
    def changed(cls, instance: Any = None, **_: Any) -> None:
        """Have beats read the schedule anew, within seconds."""
        if not getattr(instance, "no_changes", False):
            cls.update_changed()

    @classmethod
    def update_changed(cls, **_: Any) -> None:
        """The same."""
        cls.objects.update_or_create(ident=1, defaults={"last_update": django_timezone.now()})

    @classmethod
    def last_change(cls) -> datetime | None:
        """When something has changed last."""
        found: datetime | None = cls.objects.filter(ident=1).values_list("last_update", flat=True).first()
        return found


class PeriodicTaskQuerySet(models.QuerySet):
    """Changes of many rows at once are told to beats too."""

    def update(self, **values: Any) -> int:
        count: int = self.report(**values)
        if count:
            PeriodicTasks.update_changed()
        return count

    update.alters_data = True  # type: ignore[attr-defined]  # templates must not call it

    def report(self, **values: Any) -> int:
        """The same of what beat has written itself."""
        count: int = super().update(**values)
        return count

    report.alters_data = True  # type: ignore[attr-defined]

    def bulk_create(self, *args: Any, **kwargs: Any) -> Any:
        found = super().bulk_create(*args, **kwargs)
        PeriodicTasks.update_changed()
        return found

    def enabled(self) -> Any:
        """Those that are sent."""
        return self.filter(enabled=True)

    def set_enabled(self, enabled: bool) -> int:
        """Have them all sent from now on, or not."""
        reset = {} if enabled else {"last_run_at": None}
        return self.update(enabled=enabled, date_changed=django_timezone.now(), **reset)


def check_list(text: str) -> None:
    """Raises ValidationError unless it is a JSON array."""
    if not isinstance(_json(text, "[]"), list):
        raise ValidationError(f'{text!r:.80} is no JSON array; expected for example ["a", 1]')


def check_object(text: str) -> None:
    """Raises ValidationError unless it is a JSON object."""
    if not isinstance(_json(text, "{}"), dict):
        raise ValidationError(f'{text!r:.80} is no JSON object; expected for example {{"name": 1}}')


class PeriodicTask(models.Model):
    """A task, and when beat sends it: by exactly one of `interval`, `crontab`, `solar` and `clocked`."""

    name = models.CharField(max_length=200, unique=True, help_text="Of this entry of the schedule.")
    task = models.CharField(max_length=200, help_text='The task to be sent, such as "shop.tasks.tidy".')
    interval = models.ForeignKey(IntervalSchedule, models.CASCADE, null=True, blank=True)
    crontab = models.ForeignKey(CrontabSchedule, models.CASCADE, null=True, blank=True)
    solar = models.ForeignKey(SolarSchedule, models.CASCADE, null=True, blank=True)
    clocked = models.ForeignKey(ClockedSchedule, models.CASCADE, null=True, blank=True)
    args = models.TextField(
        "arguments", blank=True, default="[]", validators=[check_list], help_text='As JSON: ["a", 1]'
    )
    kwargs = models.TextField(
        "keyword arguments",
        blank=True,
        default="{}",
        validators=[check_object],
        help_text='As JSON: {"n": 1}',
    )
    queue = models.CharField(max_length=200, blank=True, null=True, default=None)
    exchange = models.CharField(max_length=200, blank=True, null=True, default=None)
    routing_key = models.CharField(max_length=200, blank=True, null=True, default=None)
    headers = models.TextField(blank=True, default="{}", validators=[check_object], help_text="As JSON.")
    priority = models.PositiveIntegerField(
        default=None, blank=True, null=True, validators=[MaxValueValidator(255)],
        help_text="0 to 9, where 0 is served first; on RabbitMQ 0 to 255, where 255 is.",
    )  # fmt: skip
    expires = models.DateTimeField(
        blank=True, null=True, help_text="Not sent after that, and not run if it is sent before."
    )
    expire_seconds = models.PositiveIntegerField(
        blank=True, null=True, help_text="Each run is given up if it has not begun after so many seconds."
    )
    one_off = models.BooleanField("once only", default=False, help_text="Disabled once it has been sent.")
    start_time = models.DateTimeField(blank=True, null=True, help_text="Not sent before that.")
    enabled = models.BooleanField(default=True)
    last_run_at = models.DateTimeField("last run", editable=False, blank=True, null=True)
    total_run_count = models.PositiveIntegerField("runs", default=0, editable=False)
    date_changed = models.DateTimeField("changed", auto_now=True)
    description = models.TextField(blank=True)

    objects = PeriodicTaskQuerySet.as_manager()
    no_changes = False

    class Meta:
        app_label = "minicelery"
        verbose_name = "periodic task"
        verbose_name_plural = "periodic tasks"

    # -- its schedule ----------------------------------------------------------------------

    @property
    def scheduler(self) -> Any:
        """The row of its schedule."""
        return next((found for kind in KINDS if (found := getattr(self, kind)) is not None), None)

    @property
    def schedule(self) -> schedules.BaseSchedule:
        """Its schedule, without start and end."""
        found: schedules.BaseSchedule = self._scheduler().schedule
        return found

    def timing(self, app: Celery | None = None) -> schedules.BaseSchedule:
        """All of when it runs.  Raises what `Shared.timing` does, and ValueError without schedule."""
        inner: schedules.BaseSchedule = self._scheduler().timing(app)
        start, end = (None if at is None else aware(at) for at in (self.start_time, self.expires))
        once = (
            aware(self.date_changed) if self.one_off and self.clocked is None and self.date_changed else None
        )
        return inner if start is end is once is None else Bounded(inner, start, end, once, app=app)

    def _scheduler(self) -> Any:
        if (found := self.scheduler) is None:
            raise ValueError(f"it has no schedule: one of {', '.join(KINDS)} must be set")
        return found

    def in_words(self) -> str:
        """When it runs, for people."""
        try:
            return words_of(self.timing())
        except _WRONG as error:
            return f"no schedule: {error}"

    def next_runs(self, count: int = 5, after: datetime | None = None) -> list[datetime]:
        """Its next runs, in UTC; fewer, where it ends before."""
        if not self.enabled:
            return []
        found: list[datetime] = []
        at = after or datetime.now(timezone.utc)
        timing = self.timing()
        if isinstance(timing, schedules.schedule) and self.last_run_at is not None:
            at = max(at - timing.run_every, aware(self.last_run_at))
        while len(found) < count and (at := timing.next(at)) < NEVER:
            found.append(at.astimezone(timezone.utc))
        return found

    # -- its call --------------------------------------------------------------------------

    @property
    def expires_(self) -> datetime | int | None:
        """When runs expire: a time, or seconds."""
        found: datetime | int | None = self.expires or self.expire_seconds
        return found

    def call(self) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        """Arguments, keyword arguments and options of its runs.  Raises ValidationError."""
        check_list(self.args)
        check_object(self.kwargs)
        check_object(self.headers)
        headers: Mapping[str, Any] = _json(self.headers, "{}")
        options: dict[str, Any] = {"headers": {**headers, "periodic_task_name": self.name}}
        for name in ("queue", "exchange", "routing_key"):
            if value := getattr(self, name):
                options[name] = value
        if self.priority is not None:
            options["priority"] = self.priority
        if self.expires is not None:
            options["expires"] = aware(self.expires)
        elif self.expire_seconds is not None:
            options["expires"] = self.expire_seconds
        return _json(self.args, "[]"), _json(self.kwargs, "{}"), options

    # -- saving ----------------------------------------------------------------------------

    def validate_unique(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValidationError, also where it has not one schedule."""
        super().validate_unique(*args, **kwargs)
        self._check_schedule()

    def _check_schedule(self) -> None:
        chosen = [kind for kind in KINDS if getattr(self, kind) is not None]
        if not chosen:
            raise ValidationError(f"One of {', '.join(KINDS)} must be set.")
        if len(chosen) > 1:
            raise ValidationError(dict.fromkeys(chosen, f"Only one of {', '.join(KINDS)} may be set."))
        if self.clocked is not None and not self.one_off:
            raise ValidationError({"one_off": "A task at a point in time runs once only: set this."})
        if self.expires is not None and self.expire_seconds is not None:
            raise ValidationError({"expires": "Only one of expires and expire_seconds may be set."})

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store it, and have beats know.  Raises ValidationError."""
        for name in ("queue", "exchange", "routing_key"):
            setattr(self, name, getattr(self, name) or None)
        self.headers = self.headers or "{}"
        if not self.enabled:
            self.last_run_at = None
        self.validate_unique()
        super().save(*args, **kwargs)

    def __str__(self) -> str:
        return f"{self.name}: {self.in_words()}"


def _json(text: str | None, empty: str) -> Any:
    try:
        return json.loads(text or empty)
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"{text!r:.80} is no JSON: {error}") from error


def _field(spec: Any) -> str:
    return str(spec) if isinstance(spec, (str, int)) else ",".join(map(str, sorted(spec)))


def _tell(sender: Any, instance: Any, **_: Any) -> None:
    PeriodicTasks.changed(instance)


def _tell_of_schedule(sender: Any, instance: Any, **_: Any) -> None:
    """What refers to it counts from now on."""
    related = instance.periodictask_set.all()
    related.report(date_changed=django_timezone.now())
    PeriodicTasks.update_changed()


models.signals.post_save.connect(_tell, sender=PeriodicTask, dispatch_uid="minicelery.schedule")
models.signals.post_delete.connect(_tell, sender=PeriodicTask, dispatch_uid="minicelery.schedule")
for _kind in (IntervalSchedule, CrontabSchedule, SolarSchedule, ClockedSchedule):
    models.signals.post_save.connect(_tell_of_schedule, sender=_kind, dispatch_uid="minicelery.schedule")
