"""Beat: sends periodic tasks when they are due, each run once, however many beats there are."""

from minicelery.beat.entries import BadEntry, BeatLazyFunc, Entry
from minicelery.beat.planned import PlannedEntry
from minicelery.beat.scheduler import Scheduler
from minicelery.beat.service import Beat
from minicelery.beat.stored import StoredSchedule, UnknownEntry

ScheduleEntry = Entry

__all__ = [
    "BadEntry",
    "Beat",
    "BeatLazyFunc",
    "Entry",
    "PlannedEntry",
    "ScheduleEntry",
    "Scheduler",
    "StoredSchedule",
    "UnknownEntry",
]
