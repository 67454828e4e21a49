"""Results of tasks and groups, and how far the parts of chords have come.

Columns are called as in django-celery-results; those that it does not have come last.
"""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils import timezone

from minicelery.states import PENDING

LONGEST = 255
"""Characters of an id or a name."""


class TaskResult(models.Model):
    """The state of one call of a task."""

    task_id = models.CharField("task id", max_length=LONGEST, unique=True)
    periodic_task_name = models.CharField("periodic task", max_length=LONGEST, null=True)
    task_name = models.CharField("task", max_length=LONGEST, null=True)
    task_args = models.TextField("arguments", null=True)
    task_kwargs = models.TextField("keyword arguments", null=True)
    status = models.CharField("state", max_length=50, default=PENDING)
    worker = models.CharField(max_length=100, null=True, default=None)
    content_type = models.CharField(max_length=128)
    content_encoding = models.CharField(max_length=64)
    result = models.TextField(null=True, default=None, editable=False)
    date_created = models.DateTimeField("created", default=timezone.now, editable=False)
    date_started = models.DateTimeField("started", null=True, default=None)
    date_done = models.DateTimeField("changed", auto_now=True)
    traceback = models.TextField(blank=True, null=True)
    meta = models.TextField(null=True, default=None, editable=False)

    document = models.BinaryField(null=True, default=None, editable=False)
    """The whole of it, where it can't be put together again from the columns."""
    expires = models.FloatField(null=True, default=None, editable=False, db_index=True)
    """Unix seconds; NULL is never."""
    version = models.BigIntegerField(default=0, editable=False)
    """Another number after each change."""

    class Meta:
        app_label = "minicelery"
        ordering = ("-date_done",)
        verbose_name = "task result"
        verbose_name_plural = "task results"
        indexes = (
            models.Index(fields=("task_name",), name="minicelery_result_name"),
            models.Index(fields=("status",), name="minicelery_result_status"),
            models.Index(fields=("worker",), name="minicelery_result_worker"),
            models.Index(fields=("date_created",), name="minicelery_result_created"),
            models.Index(fields=("date_done",), name="minicelery_result_done"),
            models.Index(fields=("periodic_task_name",), name="minicelery_result_periodic"),
        )

    def __str__(self) -> str:
        return f"{self.task_name or 'task'} {self.task_id}: {self.status}"

    def as_dict(self) -> dict[str, Any]:
        """Its columns, as they are stored."""
        names = (
            "task_id", "task_name", "task_args", "task_kwargs", "status", "result", "date_done", "traceback",
            "meta", "worker",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class GroupResult(models.Model):
    """A group whose results a program has saved."""

    group_id = models.CharField("group id", max_length=LONGEST, unique=True)
    date_created = models.DateTimeField("created", auto_now_add=True)
    date_done = models.DateTimeField("changed", auto_now=True)
    content_type = models.CharField(max_length=128)
    content_encoding = models.CharField(max_length=64)
    result = models.TextField(null=True, default=None, editable=False)

    expires = models.FloatField(null=True, default=None, editable=False, db_index=True)

    class Meta:
        app_label = "minicelery"
        ordering = ("-date_done",)
        verbose_name = "group result"
        verbose_name_plural = "group results"
        indexes = (
            models.Index(fields=("date_created",), name="minicelery_group_created"),
            models.Index(fields=("date_done",), name="minicelery_group_done"),
        )

    def __str__(self) -> str:
        return f"group {self.group_id}"

    def as_dict(self) -> dict[str, Any]:
        """Its columns, as they are stored."""
        return {"group_id": self.group_id, "result": self.result, "date_done": self.date_done}


class ChordCounter(models.Model):
    """A chord whose body waits, or was sent: see `minicelery.broker.CountingBackend`."""

    group_id = models.CharField(max_length=LONGEST, unique=True)
    sub_tasks = models.TextField()  # the ids of the parts, as JSON
    count = models.IntegerField()  # of those that have not ended

    size = models.IntegerField()
    passes = models.BooleanField()
    body = models.TextField()
    payload = models.BinaryField()
    place = models.CharField(max_length=LONGEST)
    countdown = models.FloatField(null=True)
    owed = models.FloatField(
        null=True
    )  # when somebody has to send the body; as all times here in unix seconds
    sent = models.FloatField(null=True)
    tries = models.IntegerField(default=0)
    claimed = models.CharField(max_length=LONGEST, default="")
    until = models.FloatField(null=True)
    expires = models.FloatField(null=True, db_index=True)

    class Meta:
        app_label = "minicelery"
        indexes = (models.Index(fields=("place", "owed"), name="minicelery_chord_owed"),)

    def __str__(self) -> str:
        return f"chord {self.group_id}"


class ChordPart(models.Model):
    """A part of a chord that has ended."""

    group_id = models.CharField(max_length=LONGEST)
    task_id = models.CharField(max_length=LONGEST)

    class Meta:
        app_label = "minicelery"
        constraints = (
            models.UniqueConstraint(fields=("group_id", "task_id"), name="minicelery_chord_part_once"),
        )

    def __str__(self) -> str:
        return f"{self.task_id} of {self.group_id}"
