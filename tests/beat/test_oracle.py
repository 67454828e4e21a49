"""What Celery 5.7 makes of the same script."""

from __future__ import annotations

from typing import Any

import pytest

import minicelery

celery = pytest.importorskip("celery")


def entries_of(library: Any) -> dict[str, dict[str, Any]]:
    """The entries that a script adds, by name; tuples as lists."""
    app = library.Celery("t", set_as_current=False)

    @app.task(name="t.b")
    def b(x: int, y: int = 0) -> None: ...

    app.add_periodic_task(10.0, b.s(1), name="named")
    app.add_periodic_task(10.0, b.s(1, y=2))
    app.add_periodic_task(10.0, b.s(1), args=(5,), kwargs={"y": 3}, expires=10, queue="q", name="more")
    app.add_periodic_task(10.0, b.s(1).set(priority=3), name="options", countdown=2)
    app.add_periodic_task(10.0, b.si(1), name="immutable")
    app.add_periodic_task(10.0, b, (1,), name="a task")
    return {
        name: {key: list(value) if isinstance(value, tuple) else value for key, value in dict(entry).items()}
        for name, entry in app.conf.beat_schedule.items()
    }


def test_entries_that_are_added_are_those_that_celery_has() -> None:
    assert entries_of(minicelery) == entries_of(celery)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("timing", [30, 1800.0, 86400])
def test_an_entry_of_an_interval_is_due_when_celerys_is(timing: float, relative: bool) -> None:
    from datetime import datetime, timedelta, timezone

    from celery.beat import ScheduleEntry

    from minicelery.beat.entries import read_entry

    now = datetime(2026, 5, 13, 12, 34, 56, tzinfo=timezone.utc)
    ours_app = minicelery.Celery("t", set_as_current=False)
    theirs_app = celery.Celery("t", set_as_current=False)
    ours = read_entry(ours_app, "e", {"task": "t", "schedule": timing, "relative": relative})
    theirs = ScheduleEntry("e", "t", schedule=timing, relative=relative, app=theirs_app)
    ours.timing.nowfun = theirs.schedule.nowfun = lambda: now
    for passed in (1, 29, 31, 1799, 1801, 90_000):
        last = now - timedelta(seconds=passed)
        ours.last, theirs.last_run_at = last.timestamp(), last
        assert ours.is_due().is_due == theirs.is_due().is_due, passed
