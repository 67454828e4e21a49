"""What minicelery is meant to reach on RabbitMQ, and whether a run has."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report import SUBJECT, Report, number, spread, times
from benchmarks.rows import Row


@dataclass(frozen=True)
class Goal:
    """A bound for the subject's figure of a row, or for how many times better than `peer`'s it is."""

    row: str
    bound: float
    peer: str = ""
    peer_row: str = ""  # where it is compared with another row of the peer


GOALS: dict[str, tuple[Goal, ...]] = {
    "redis": (Goal("group", 5, "celery"), Goal("group", 1), Goal("chord-gap", 0.05)),
    "rabbitmq": (
        Goal("drain", 8, "celery"),
        Goal("drain", 2, "dramatiq"),
        Goal("drain-no-results", 2, "dramatiq"),
        Goal("drain-rpc", 4, "celery"),
        Goal("enqueue-confirmed", 0.5, "celery", "enqueue-unconfirmed"),
        Goal("enqueue-unconfirmed", 3, "celery"),
        Goal("enqueue-batch", 8_000),
        Goal("latency-p50", 1, "dramatiq"),
        Goal("latency-unconfirmed-p50", 1, "dramatiq"),
        Goal("idle", 0.3),
    ),
}


def goals_text(report: Report) -> str:
    """The goals whose rows were measured, as a Markdown section; empty where there are none."""
    rows = {row.name: row for row in report.rows}
    lines = [_line(report, goal, rows) for goal in GOALS[report.broker] if goal.row in rows]
    if not any(lines):
        return ""
    head = ["## Goals", "", "| | goal | median (least–most) | met |", "| --- | --- | ---: | --- |"]
    return "\n".join([*head, *filter(None, lines)]) + "\n"


def _line(report: Report, goal: Goal, rows: dict[str, Row]) -> str:
    row = rows[goal.row]
    if goal.peer:
        figures: Sequence[float] = report.ratios(row, goal.peer, goal.peer_row)
        than = f"{goal.peer}, {rows[goal.peer_row].title}" if goal.peer_row in rows else goal.peer
        wanted, reached = f"≥ {goal.bound:g}× {than}", spread(figures, times)
    else:
        figures = list(report.values.get(row.name, {}).get(SUBJECT, {}).values())
        wanted = f"{'≥' if row.more_is_better else '<'} {number(goal.bound, row.unit)} {row.unit}"
        reached = spread(figures, lambda value: number(value, row.unit))
    if not figures:
        return ""
    median = statistics.median(figures)
    met = median >= goal.bound if goal.peer or row.more_is_better else median < goal.bound
    return f"| {row.title} | {wanted} | {reached} | {'yes' if met else '**no**'} |"
