"""The tables: results, and what beat sends."""

from minicelery.contrib.django.models.results import ChordCounter, ChordPart, GroupResult, TaskResult
from minicelery.contrib.django.models.schedule import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
    SolarSchedule,
)

__all__ = [
    "ChordCounter", "ChordPart", "ClockedSchedule", "CrontabSchedule", "GroupResult", "IntervalSchedule",
    "PeriodicTask", "PeriodicTasks", "SolarSchedule", "TaskResult",
]  # fmt: skip
