"""The admin of the schedule: what is sent when, changed while beats run."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any
from zoneinfo import available_timezones

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.utils.formats import localize
from django.utils.html import format_html, format_html_join
from django.utils.timezone import is_aware, localtime

from minicelery._state import get_current_app
from minicelery.beat.entries import BadEntry, read_entry
from minicelery.contrib.django.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from minicelery.contrib.django.times import aware, moment_of
from minicelery.exceptions import MiniCeleryError
from minicelery.schedules.words import from_now

log = logging.getLogger(__name__)

NEXT = 5
"""Runs that are shown ahead."""
_BUILT_IN = ("celery.", "minicelery.")


def known_tasks() -> list[str]:
    """The names of the tasks that this process has, or can have, registered."""
    app = get_current_app()
    try:
        app.import_task_modules()
    except Exception as error:  # a module of the project's
        log.warning("not all task modules can be imported, so some tasks are missing in the admin: %r", error)
    return sorted(name for name in app.tasks if not name.startswith(_BUILT_IN))


class PeriodicTaskForm(forms.ModelForm):
    """Asks for a task by a list of those that are registered."""

    task = forms.ChoiceField(required=False, help_text="Of those that are registered here.")
    other_task = forms.CharField(
        required=False,
        max_length=200,
        label="Other task",
        help_text="The name of one that only workers know.",
    )

    class Meta:
        model = PeriodicTask
        exclude = ()
        widgets = {name: forms.Textarea({"rows": 2, "cols": 60}) for name in ("args", "kwargs", "headers")}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names, present = known_tasks(), self.instance.task
        choices = [("", "---------"), *((name, name) for name in names)]
        if present and present not in names:
            choices.append((present, f"{present} (not registered here)"))
        self.fields["task"].choices = choices

    def clean(self) -> dict[str, Any]:
        """The values; those of the call are checked as beat will."""
        values: dict[str, Any] = super().clean()
        values["task"] = values.get("other_task") or values.get("task")
        if not values["task"]:
            self.add_error("task", "Choose a task, or name another one.")
        return values

    def _post_clean(self) -> None:
        super()._post_clean()
        if not self.errors:
            try:
                _check_call(self.instance)
            except ValidationError as error:
                self.add_error(None, error)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(admin.ModelAdmin):
    """Periodic tasks."""

    form = PeriodicTaskForm
    list_display = ("name", "enabled", "task", "when", "next_run", "last_run_at", "total_run_count")
    list_filter = ("enabled", "one_off", "task", "last_run_at")
    search_fields = ("name", "task", "description")
    list_select_related = ("interval", "crontab", "solar", "clocked")
    ordering = ("name",)
    actions = ("enable", "disable", "run_now")
    readonly_fields = ("when", "next_runs", "last_run_at", "total_run_count", "date_changed")
    save_on_top = True
    fieldsets = (
        (None, {"fields": ("name", "task", "other_task", "enabled", "description")}),
        ("Schedule: exactly one", {"fields": (
            "interval", "crontab", "solar", "clocked", "start_time", "one_off", "when", "next_runs",
        )}),
        ("Arguments", {"fields": ("args", "kwargs")}),
        ("Options", {"classes": ("collapse",), "fields": (
            "expires", "expire_seconds", "queue", "exchange", "routing_key", "priority", "headers",
        )}),
        ("Runs", {"fields": ("last_run_at", "total_run_count", "date_changed")}),
    )  # fmt: skip

    @admin.display(description="when")
    def when(self, task: Any) -> str:
        """When it runs, in words."""
        return "" if task.pk is None else str(task.in_words())

    @admin.display(description="next run")
    def next_run(self, task: Any) -> str:
        """The next one, in words too."""
        found = _next_runs(task, 1)
        return _shown(found[0]) if found else "none"

    @admin.display(description=f"next {NEXT} runs")
    def next_runs(self, task: Any) -> Any:
        """The next ones."""
        if task.pk is None:
            return "shown once it is saved"
        if not task.enabled:
            return "none: it is not enabled"
        lines = format_html_join("", "<li>{}</li>", ((_shown(at),) for at in _next_runs(task, NEXT)))
        return format_html('<ul style="margin: 0; padding: 0">{}</ul>', lines) if lines else "none"

    @admin.action(description="Enable selected periodic tasks", permissions=("change",))
    def enable(self, request: Any, queryset: Any) -> None:
        """Have them sent from now on."""
        self._tell(request, queryset.set_enabled(True), "enabled")

    @admin.action(description="Disable selected periodic tasks", permissions=("change",))
    def disable(self, request: Any, queryset: Any) -> None:
        """Have them not sent any more."""
        self._tell(request, queryset.set_enabled(False), "disabled")

    @admin.action(description="Run selected periodic tasks now", permissions=("change",))
    def run_now(self, request: Any, queryset: Any) -> None:
        """Send them once, besides their schedule."""
        for task in queryset.select_related(None):
            try:
                result = send_now(task)
            except (ValidationError, MiniCeleryError, ValueError, TypeError) as error:
                self.message_user(request, f"{task.name!r} is not sent: {_text(error)}", messages.ERROR)
            else:
                self.message_user(
                    request, f"{task.name!r} is sent: {task.task}[{result.id}]", messages.SUCCESS
                )

    def _tell(self, request: Any, count: int, what: str) -> None:
        self.message_user(
            request, f"{count} periodic task{'' if count == 1 else 's'} {what}", messages.SUCCESS
        )


class ScheduleAdmin(admin.ModelAdmin):
    """Schedules that periodic tasks refer to."""

    list_display = ("__str__", "next_run", "used_by")
    readonly_fields = ("when", "next_runs", "used_by")

    @admin.display(description="when")
    def when(self, row: Any) -> str:
        """In words."""
        return "" if row.pk is None else str(row)

    @admin.display(description="next run")
    def next_run(self, row: Any) -> str:
        """If it counted from now."""
        return next(iter(_following(row, 1)), "none")

    @admin.display(description=f"next {NEXT} runs")
    def next_runs(self, row: Any) -> str:
        """The same."""
        return "shown once it is saved" if row.pk is None else "; ".join(_following(row, NEXT)) or "none"

    @admin.display(description="used by")
    def used_by(self, row: Any) -> str:
        """The periodic tasks that refer to it."""
        return "" if row.pk is None else ", ".join(row.periodictask_set.values_list("name", flat=True))


class CrontabForm(forms.ModelForm):
    """Asks for the time zone by a list."""

    timezone = forms.ChoiceField(choices=lambda: [(name, name) for name in sorted(available_timezones())])

    class Meta:
        model = CrontabSchedule
        exclude = ()


@admin.register(CrontabSchedule)
class CrontabAdmin(ScheduleAdmin):
    """Crontabs."""

    form = CrontabForm
    list_filter = ("timezone",)


admin.site.register((IntervalSchedule, SolarSchedule, ClockedSchedule), ScheduleAdmin)


def send_now(task: Any) -> Any:
    """Send a periodic task's call now; its `AsyncResult`.  Raises what sending does, and ValidationError."""
    app = get_current_app()
    args, kwargs, options = task.call()
    expires = options.get("expires")
    if isinstance(expires, datetime) and expires.timestamp() <= time.time():
        del options["expires"]  # of the schedule, which has ended
    registered = app.tasks.get(task.task)
    if registered is None:
        return app.send_task(task.task, args, kwargs, **options)
    return registered.apply_async(args, kwargs, **options)


def _check_call(task: Any) -> None:
    """Raises ValidationError where beat would leave the task out."""
    app = get_current_app()
    args, kwargs, options = task.call()
    given = {"task": task.task, "schedule": 60.0, "args": args, "kwargs": kwargs, "options": options}
    try:
        read_entry(app, task.name, given, "This task")
    except BadEntry as error:
        raise ValidationError(str(error)) from error


def _next_runs(task: Any, count: int) -> list[datetime]:
    try:
        found: list[datetime] = task.next_runs(count)
    except Exception:  # `when` says what is wrong with it
        return []
    return found


def _following(row: Any, count: int) -> list[str]:
    task = PeriodicTask(name="", task="", enabled=True, **{_kind_of(row): row})
    return [_shown(at) for at in _next_runs(task, count)]


def _kind_of(row: Any) -> str:
    return str(row._meta.model_name).removesuffix("schedule")


def _shown(at: datetime) -> str:
    """In the project's time zone, and from now."""
    shown = moment_of(at.timestamp())
    if is_aware(shown):
        shown = localtime(shown)
    return f"{localize(shown.replace(microsecond=0))} ({from_now(aware(at).timestamp() - time.time())})"


def _text(error: Exception) -> str:
    return "; ".join(error.messages) if isinstance(error, ValidationError) else str(error)
