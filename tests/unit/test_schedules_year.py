"""A year of the tutorial's schedule, lived through as beat does: asking, sleeping as long as told."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minicelery import Celery
from minicelery.schedules import crontab, maybe_schedule

UTC = timezone.utc
BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "limpiar-sesiones-expiradas": {"task": "limpiar_sesiones", "schedule": 1800.0},
    "backup-diario": {"task": "backup_base_datos", "schedule": crontab(hour=2, minute=0)},
    "reporte-semanal": {
        "task": "generar_reporte",
        "schedule": crontab(hour=9, minute=0, day_of_week="monday"),
        "args": ("semanal", {"semana": "actual"}),
    },
    "facturacion-mensual": {
        "task": "generar_facturas",
        "schedule": crontab(day_of_month=1, hour=6, minute=0),
    },
}
YEARS = [("America/Mexico_City", 2022), ("America/Mexico_City", 2026), ("Europe/Madrid", 2026)]
CHANGES = {
    ("America/Mexico_City", 2022): ("2022-04-03", "2022-10-30"),  # its last ones
    ("America/Mexico_City", 2026): (None, None),
    ("Europe/Madrid", 2026): ("2026-03-29", "2026-10-25"),
}


@lru_cache
def a_year_of(entry: str, zone: str, year: int) -> list[datetime]:
    """When it ran, in the zone's time, by a clock that wakes 300 ms late, or daily for nothing."""
    app = Celery("tutorial", set_as_current=False, timezone=zone)
    timing = maybe_schedule(BEAT_SCHEDULE[entry]["schedule"], app=app)
    start, end = (datetime(y, 1, 1, tzinfo=ZoneInfo(zone)).astimezone(UTC) for y in (year, year + 1))
    now = last = start
    timing.nowfun = lambda: now
    ran = []
    while now < end:
        state = timing.is_due(last)
        if state.is_due:
            ran.append(now.astimezone(ZoneInfo(zone)))
            last = now
        now += timedelta(
            seconds=min(state.next, 86_400) + (0.3 if entry != "limpiar-sesiones-expiradas" else 0)
        )
    timing.nowfun = None
    return ran


def shown(runs: list[datetime]) -> Counter[str]:
    return Counter(run.strftime("%H:%M") for run in runs)


@pytest.mark.parametrize(("zone", "year"), YEARS)
def test_the_backup_runs_once_a_day_at_two_or_as_the_clocks_pass_two(zone: str, year: int) -> None:
    runs = a_year_of("backup-diario", zone, year)
    spring, autumn = CHANGES[zone, year]
    assert [run.date() for run in runs] == [
        (datetime(year, 1, 1) + timedelta(days=n)).date() for n in range(365)
    ]
    odd = [run.strftime("%Y-%m-%d %H:%M") for run in runs if run.strftime("%H:%M") != "02:00"]
    # Mexico's clocks skipped 2:00 to 3:00, and Madrid's do; and only Madrid's show 2:00 twice.
    assert odd == ([f"{spring} 03:00"] if spring else [])
    if autumn:
        (run,) = [run for run in runs if str(run.date()) == autumn]
        assert run.fold == 0


@pytest.mark.parametrize(("zone", "year"), YEARS)
def test_the_report_runs_on_each_monday_at_nine(zone: str, year: int) -> None:
    runs = a_year_of("reporte-semanal", zone, year)
    assert shown(runs) == {"09:00": 52}
    assert {run.weekday() for run in runs} == {0}


@pytest.mark.parametrize(("zone", "year"), YEARS)
def test_invoices_are_made_on_the_first_of_each_month_at_six(zone: str, year: int) -> None:
    runs = a_year_of("facturacion-mensual", zone, year)
    assert [(run.month, run.day) for run in runs] == [(month, 1) for month in range(1, 13)]
    assert shown(runs) == {"06:00": 12}


@pytest.mark.parametrize(("zone", "year"), YEARS)
def test_sessions_are_cleaned_every_half_hour_of_elapsed_time(zone: str, year: int) -> None:
    stamps = [run.timestamp() for run in a_year_of("limpiar-sesiones-expiradas", zone, year)]
    assert {later - earlier for earlier, later in pairwise(stamps)} == {1800.0}
    assert len(stamps) == 365 * 48 - 1


def test_where_clocks_are_not_changed_the_year_is_celerys() -> None:
    celery = pytest.importorskip("celery")
    theirs = pytest.importorskip("celery.schedules")
    zone, year = YEARS[1]
    app = celery.Celery(set_as_current=False, timezone=zone)
    for entry in ("backup-diario", "reporte-semanal", "facturacion-mensual"):
        ours = BEAT_SCHEDULE[entry]["schedule"]
        timing = theirs.crontab(*ours.__reduce__()[1], app=app)
        last = datetime(year, 1, 1, tzinfo=ZoneInfo(zone))
        for run in a_year_of(entry, zone, year):
            timing.nowfun = lambda run=run: run
            assert timing.is_due(last).is_due
            timing.nowfun = lambda run=run: run - timedelta(seconds=1)
            assert not timing.is_due(last).is_due
            last = run
