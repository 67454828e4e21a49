"""The rows of the table, and the sessions that measure them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import sessions
from benchmarks.sessions import Sizes, Turn, Values


@dataclass(frozen=True)
class Row:
    """One figure.  `unit` is a rate (1/s), seconds (s, ms), a share (%) or MiB."""

    name: str
    session: str
    title: str
    unit: str
    more_is_better: bool = False


SESSIONS: dict[str, Callable[[Turn, Sizes], Values]] = {
    "enqueue": sessions.enqueue,
    "drain": sessions.drain,
    "drain-no-results": sessions.drain_no_results,
    "calm": sessions.calm,
    "late": sessions.late,
    "delayed": sessions.delayed,
    "cpu": sessions.cpu,
    "naps": sessions.naps,
}
LONG_SESSIONS = frozenset({"delayed", "naps"})
"""At most two rounds: one turn takes many seconds and varies little."""


def table_rows(sizes: Sizes) -> tuple[Row, ...]:
    """Every row in the order of the table."""
    ahead = f"{sizes.delayed_tasks:,} tasks delayed by 1 h"
    due = f"{sizes.due_tasks} tasks due in 1–4 s"
    return (
        Row("enqueue-single", "enqueue", "sending one by one", "1/s", more_is_better=True),
        Row("enqueue-batch", "enqueue", "sending many at once", "1/s", more_is_better=True),
        Row("drain", "drain", "no-op tasks, results stored", "1/s", more_is_better=True),
        Row(
            "drain-no-results",
            "drain-no-results",
            "no-op tasks, results ignored",
            "1/s",
            more_is_better=True,
        ),
        Row("cpu", "cpu", "2 ms CPU tasks: share of two cores", "%", more_is_better=True),
        Row("latency-p50", "calm", "round trip, p50", "ms"),
        Row("latency-p99", "calm", "round trip, p99", "ms"),
        Row("start", "calm", "exec to first task finished", "ms"),
        Row("memory", "calm", "memory (PSS) after 100 tasks", "MiB"),
        Row("idle", "calm", "idle worker, CPU of a core", "%"),
        Row("idle-redis", "calm", "idle worker, CPU of redis-server", "%"),
        Row("delayed-memory", "delayed", f"{ahead}: memory added", "MiB"),
        Row("delayed-idle", "delayed", f"{ahead}: idle worker, CPU of a core", "%"),
        Row("delayed-latency", "delayed", f"{ahead}: normal task sent after", "ms"),
        Row("lateness-p50", "late", f"{due}: late by, p50", "ms"),
        Row("lateness-p99", "late", f"{due}: late by, p99", "ms"),
        Row("naps", "naps", "8 naps of 1.5 s among 400 no-ops (ideal 6 s)", "s"),
    )


def choose_rows(rows: tuple[Row, ...], only: str | None) -> tuple[Row, ...]:
    """The rows whose name or session begins with one of the comma-separated words of `only`."""
    if only is None:
        return rows
    words = [word.strip() for word in only.split(",")]
    unknown = [word for word in words if not any(_matches(row, word) for row in rows)]
    if unknown:
        raise ValueError(f"no row begins with {unknown[0]!r}; rows: {', '.join(row.name for row in rows)}")
    return tuple(row for row in rows if any(_matches(row, word) for word in words))


def _matches(row: Row, word: str) -> bool:
    return row.name.startswith(word) or row.session == word
