"""The rows of the tables, and the sessions that measure them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import sessions
from benchmarks.sessions import Sizes, Values
from benchmarks.turn import Turn


@dataclass(frozen=True)
class Row:
    """One figure.  `unit` is a rate (1/s), seconds (s, ms), a share (%) or MiB."""

    name: str
    session: str
    title: str
    unit: str
    more_is_better: bool = False
    longest: float = math.inf  # what is longer is not waited for


SESSIONS: dict[str, Callable[[Turn, Sizes], Values]] = {
    "enqueue": sessions.enqueue,
    "confirmed": sessions.confirmed,
    "unconfirmed": sessions.unconfirmed,
    "drain": sessions.drain,
    "drain-no-results": sessions.drain_no_results,
    "drain-rpc": sessions.drain_rpc,
    "calm": sessions.calm,
    "late": sessions.late,
    "delayed": sessions.delayed,
    "cpu": sessions.cpu,
    "naps": sessions.naps,
    "canvas": sessions.canvas,
    "beat": sessions.beat,
}
MOST_ROUNDS = {"redis": {"delayed": 2, "naps": 2, "canvas": 2, "beat": 2}, "rabbitmq": {"delayed": 1}}
"""Sessions of which one turn takes many seconds and varies little."""


def table_rows(broker: str, sizes: Sizes) -> tuple[Row, ...]:
    """Every row in the order of the broker's table."""
    return _redis_rows(sizes) if broker == "redis" else _rabbitmq_rows(sizes)


def _redis_rows(sizes: Sizes) -> tuple[Row, ...]:
    return (
        _rate("enqueue-single", "enqueue", "sending one by one"),
        _rate("enqueue-batch", "enqueue", "sending many at once"),
        _rate("drain", "drain", "no-op tasks, results stored"),
        _rate("drain-no-results", "drain-no-results", "no-op tasks, results ignored"),
        *_worker_rows("redis", "redis-server"),
        *_delay_rows(sizes),
        Row("naps", "naps", "8 naps of 1.5 s among 400 no-ops (ideal 6 s)", "s"),
        Row("group", "canvas", f"group of {sizes.parts:,}: sent", "s"),
        Row("chord", "canvas", f"chord of {sizes.parts:,}: sent, run, body called", "s"),
        Row("chord-gap", "canvas", f"chord of {sizes.parts:,}: body begins after the last part", "ms"),
        Row("beat-idle", "beat", f"beat with {sizes.entries:,} entries, none due: CPU of a core", "%"),
        Row("beat-memory", "beat", f"beat with {sizes.entries:,} entries: memory (PSS)", "MiB"),
        _rate("beat-rate", "beat", f"beat with {sizes.entries:,} entries, each due every second: runs sent"),
    )


def _rabbitmq_rows(sizes: Sizes) -> tuple[Row, ...]:
    return (
        _rate("enqueue-confirmed", "confirmed", "sending one by one, each confirmed"),
        _rate("enqueue-unconfirmed", "unconfirmed", "sending one by one, unconfirmed"),
        _rate("enqueue-batch", "confirmed", "sending many at once, confirmed"),
        _rate("drain", "drain", "no-op tasks, results stored in Redis"),
        _rate("drain-no-results", "drain-no-results", "no-op tasks, results ignored"),
        _rate("drain-rpc", "drain-rpc", "no-op tasks, results sent back (rpc)"),
        *_worker_rows("rabbitmq", "RabbitMQ"),
        Row("latency-confirmed-p50", "confirmed", "round trip, sent confirmed, p50", "ms"),
        Row("latency-unconfirmed-p50", "unconfirmed", "round trip, sent unconfirmed, p50", "ms"),
        Row("latency-rpc-p50", "drain-rpc", "round trip, results sent back (rpc), p50", "ms"),
        *_delay_rows(sizes),
    )


def _rate(name: str, session: str, title: str) -> Row:
    return Row(name, session, title, "1/s", more_is_better=True)


def _worker_rows(broker: str, server: str) -> tuple[Row, ...]:
    return (
        Row("cpu", "cpu", "2 ms CPU tasks: share of two cores", "%", more_is_better=True),
        Row("latency-p50", "calm", "round trip, p50", "ms"),
        Row("latency-p99", "calm", "round trip, p99", "ms"),
        Row("start", "calm", "exec to first task finished", "ms"),
        Row("memory", "calm", "memory (PSS) after 100 tasks", "MiB"),
        Row("idle", "calm", "idle worker, CPU of a core", "%"),
        Row(f"idle-{broker}", "calm", f"idle worker, CPU of {server}", "%"),
    )


def _delay_rows(sizes: Sizes) -> tuple[Row, ...]:
    ahead = f"{sizes.delayed_tasks:,} tasks delayed by 1 h"
    due = f"{sizes.due_tasks} tasks due in 1–4 s"
    return (
        Row("delayed-memory", "delayed", f"{ahead}: memory added", "MiB"),
        Row("delayed-idle", "delayed", f"{ahead}: idle worker, CPU of a core", "%"),
        Row(
            "delayed-latency",
            "delayed",
            f"{ahead}: normal task sent after",
            "ms",
            longest=sessions.LONGEST_TRIP,
        ),
        Row("lateness-p50", "late", f"{due}: late by, p50", "ms"),
        Row("lateness-p99", "late", f"{due}: late by, p99", "ms"),
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
