"""An entry as people want to see it: when it has run, and when it runs next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from minicelery.beat.entries import Entry
from minicelery.beat.ledger import Kept, resume
from minicelery.beat.timing import LATE, UTC, following

PROGRAM, STORED = "program", "stored"


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """An entry, and how far it has come.  Times are in UTC."""

    name: str
    task: str
    schedule: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    catch_up: str
    enabled: bool
    source: str
    """``"program"``, of beat_schedule or add_periodic_task, or ``"stored"``."""
    last_run: datetime | None
    """The due time of its last run."""
    runs: int
    next_run: datetime | None
    """Past, where a run was missed that a beat will make up for; None where it is not known."""


def planned(entry: Entry, source: str, kept: Kept | None, now: float) -> PlannedEntry:
    """What is known of `entry`, of which `kept` was noted; `now` is unix seconds."""
    last_run = kept.ran if kept is not None else 0.0
    return PlannedEntry(
        entry.name, entry.task, entry.timing, entry.args, entry.kwargs, entry.options, entry.catch_up,
        entry.enabled, source, _moment(last_run), kept.runs if kept is not None else 0,
        _moment(_next(entry, kept, now)),
    )  # fmt: skip


def _next(entry: Entry, kept: Kept | None, now: float) -> float | None:
    if not entry.enabled or entry.polls:
        return None
    copy = replace(entry)
    resume(copy, kept, now)
    try:
        due = following(copy.timing, copy.last)
        return following(copy.timing, now) if now - due > LATE and copy.catch_up == "skip" else due
    except Exception:  # a schedule of the program's own; beat says what is wrong with it
        return None


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
