"""`minicelery top`: workers, queues and tasks, live in a terminal."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import click

from minicelery.cli import ui
from minicelery.cli.cells import cut, padded, plain, width_of
from minicelery.cli.choosing import queue_list
from minicelery.cli.fleet import Fleet, QueueRow, RunRow, TypeRow, View, WorkerRow
from minicelery.cli.session import Session, common_options

_COLOURS = {
    "SUCCESS": "green", "FAILURE": "red", "RETRY": "yellow", "REVOKED": "magenta", "REJECTED": "magenta",
    "STARTED": "cyan",
}  # fmt: skip
_KEYS = "q quits   p pauses"
_BARS = "▁▂▃▄▅▆▇█"
_GAP = 2
_LEAST = 12
"""Cells that a name keeps where others want the room."""

Cells = Sequence[tuple[str, str | None]]
"""A row's cells: text and colour."""


class Part(NamedTuple):
    """A table of the screen."""

    header: Sequence[str]  # numbers' names, which stand to the right, begin with ">"
    rows: Sequence[Cells]
    empty: str  # what is said where there are no rows
    whole: bool = True  # these are all there are


@click.command(short_help="Watch workers, queues and tasks.")
@common_options()
@click.option(
    "-i", "--interval", type=click.FloatRange(min=0.1, max=60), metavar="SECONDS",
    help="Between two looks; 1.  With --once: to listen; 2.5.",
)  # fmt: skip
@click.option(
    "-Q", "--queues", multiple=True, callback=queue_list, metavar="LIST", help="These, comma-separated."
)
@click.option("--once", is_flag=True, help="Listen for a while, print once, and end.")
@click.option("--json", "as_json", is_flag=True, help="As --once, as one JSON document.")
@click.option("--no-enable-events", is_flag=True, help="Don't ask workers to send events of tasks.")
@click.pass_obj
def top(
    session: Session,
    /,
    *,
    interval: float | None,
    queues: list[str],
    once: bool,
    as_json: bool,
    no_enable_events: bool,
) -> int:
    """Show workers, queues, tasks and rates, live: q ends it.

    Workers that send no events of tasks are asked to, until this ends.
    """
    from minicelery.cli.terminal import has_terminal

    app = session.app()
    fleet = Fleet(app, queues, min(interval or 1.0, 1.0), enable=not no_enable_events)
    fleet.start()
    try:
        if not once and not as_json and not has_terminal():
            session.note("no terminal to draw on: printing once")
            once = True
        if once or as_json:
            time.sleep(interval or 2.5)  # longer than from one heartbeat to the next
            _print(fleet.view(), as_json)
            return 0
        return _live(fleet, interval or 1.0)
    finally:
        fleet.stop()


def _print(view: View, as_json: bool) -> None:
    if as_json:
        ui.say_json(view.as_dict())
        return
    width = max(100, *(len(row.name) + 60 for row in view.workers)) if view.workers else 100
    ui.say("\n".join(frame(view, width, 100, time.time(), keys=False)))


def _live(fleet: Fleet, interval: float) -> int:
    from minicelery.cli.terminal import Terminal

    colour, paused, view = ui.has_colour(sys.stdout), False, fleet.view()
    # Whatever is written to the terminal now is written over the picture.
    logging.getLogger("minicelery").addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    with Terminal().taken() as terminal:
        while True:
            width, height = terminal.size()
            if not paused:
                view = fleet.view(height)
            lines = frame(view, width, height, time.time(), paused=paused)
            terminal.draw(lines if colour else [click.unstyle(line) for line in lines])
            key = terminal.key(interval)
            if key[:1] in ("q", "Q", "\x03"):
                return 0
            if key == "p":
                paused = not paused


# -- layout --------------------------------------------------------------------------------


def frame(
    view: View, width: int, height: int, now: float, *, keys: bool = True, paused: bool = False
) -> list[str]:
    """The screen's lines: each at most `width` cells wide, at most `height` of them."""
    lines = _head(view, width, now, paused, course=height >= 24)
    room = height - len(lines) - keys
    parts = _parts(view, now, wide=width >= 140)
    if room < 3 * len(parts):  # which of them are worth more
        parts = [parts[at] for at in {2: (0, 3), 3: (0, 2, 3)}.get(room // 3, (0,))]
    spaced = room >= 4 * len(parts)
    shares = _shares([max(1, len(part.rows)) for part in parts], room - len(parts) * (1 + spaced))
    for part, share in zip(parts, shares, strict=True):
        lines += [""] * spaced + _table(part, width, share)
    if keys:
        lines = lines[: height - 1]
        lines += [""] * (height - 1 - len(lines)) + [click.style(cut(_KEYS, width), dim=True)]
    return lines[:height]


def _head(view: View, width: int, now: float, paused: bool, course: bool) -> list[str]:
    moment = datetime.fromtimestamp(now).strftime("%H:%M:%S")
    title = padded(f"minicelery top  {plain(view.broker)}", max(0, width - len(moment) - 1)) + " " + moment
    online = sum(row.online for row in view.workers)
    rates = "  ".join(
        f"{kind} {view.rates.get(kind, 0.0):.1f}/s" for kind in ("received", "succeeded", "failed", "retried")
    )
    counts = f"workers {online}/{len(view.workers)} online  running {view.running}  {rates}"
    lines = [click.style(cut(title, width), bold=True), cut(counts, width)]
    if course:
        lines.append(_course(view.course, width))
    if paused:
        lines.append(click.style(cut("paused: p goes on", width), fg="yellow"))
    if view.problem:
        lines.append(click.style(cut(plain(view.problem), width), fg="red"))
    return lines


def _course(ends: Sequence[int], width: int) -> str:
    """How many tasks have ended in each of the last seconds, as bars."""
    shown = ends[-max(0, width - 24) :]
    most = max(shown, default=0)
    bars = "".join(_BARS[(8 * count - 1) // most] if count else " " for count in shown)
    left = cut(f"ended in a second, up to {most}  ", width)
    return left + click.style(cut(bars, width - len(left)), fg="green")


def _parts(view: View, now: float, wide: bool) -> list[Part]:
    types = sorted(view.types, key=lambda row: (-row.running, -row.rate, row.name))
    return [
        Part(
            ("WORKER", "STATE", ">ACTIVE", ">DONE", ">TASKS/S", ">LOAD", ">HEARD"),
            list(map(_worker, view.workers)), "none has been heard of yet",
        ),
        Part(("QUEUE", ">READY", ">DELAYED", ">DEAD", ">CHANGE/S"), list(map(_queue, view.queues)), "not asked yet"),
        Part(
            ("TASK", ">RUNNING", ">OK", ">FAILED", ">RETRIED", ">ENDS/S", ">MEAN"),
            list(map(_type, types)), "no event of a task has come",
        ),
        Part(
            ("NAME", "STATE", "SINCE", ">RUNTIME", "ID", "WORKER", ""),
            [_run(row, wide) for row in view.runs], "none", False,
        ),
    ]  # fmt: skip


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """How many rows each table has: evenly, and what one does not need is for the others."""
    shares = [0] * len(wanted)
    while room > 0 and shares != list(wanted):
        for at, most in enumerate(wanted):
            if shares[at] < most and room > 0:
                shares[at] += 1
                room -= 1
    return shares


def _worker(row: WorkerRow) -> Cells:
    return [
        (row.name, None),
        ("online", "green") if row.online else ("offline", "red"),
        (_number(row.active), None),
        (_number(row.processed), None),
        (_rate(row.rate), None),
        ("-" if row.load is None else f"{row.load:.2f}", None),
        (f"{ui.duration(row.silent)} ago" if row.silent < 1e8 else "-", None),
    ]


def _queue(row: QueueRow) -> Cells:
    return [
        (row.name, None), (str(row.ready), None), (_number(row.delayed), None),
        (_number(row.dead), "red" if row.dead else None), ("-" if row.rate is None else f"{row.rate:+.1f}", None),
    ]  # fmt: skip


def _type(row: TypeRow) -> Cells:
    return [
        (row.name, None), (str(row.running), None), (str(row.succeeded), None),
        (str(row.failed), "red" if row.failed else None), (str(row.retried), None), (f"{row.rate:.1f}", None),
        ("-" if row.mean is None else ui.duration(row.mean), None),
    ]  # fmt: skip


def _run(row: RunRow, wide: bool) -> Cells:
    moment = datetime.fromtimestamp(row.since).strftime("%H:%M:%S") if 0 < row.since < 2**33 else "-"
    return [
        (row.name, None), (row.state, _COLOURS.get(row.state)), (moment, None),
        ("-" if row.took is None else ui.duration(row.took), None), (row.id if wide else row.id[:8], None),
        (row.worker, None), (row.text, None),
    ]  # fmt: skip


def _table(part: Part, width: int, share: int) -> list[str]:
    """A header and at most `share` rows, in columns as wide as they must be."""
    if share < 1:
        return []
    hidden = len(part.rows) - share if part.whole and share > 2 else 0
    rows = part.rows[: share - (hidden > 0)]
    cells = [[(plain(text), colour) for text, colour in row] for row in rows]
    names = [name.removeprefix(">") for name in part.header]
    wide = [max(width_of(name), *(width_of(row[at][0]) for row in cells), 0) for at, name in enumerate(names)]
    last = 20 if not names[-1] else wide[-1]  # what has no name takes what is left
    spare = width - last - sum(wide[1:-1]) - _GAP * (len(wide) - 1)
    wide[0] = min(wide[0], max(_LEAST, spare))
    right = [name.startswith(">") for name in part.header]
    header = _line([(name, None) for name in names], wide, right, width)
    lines = [click.style(padded(header, width), reverse=True)]
    lines += [_line(row, wide, right, width) for row in cells]
    if not part.rows:
        lines.append(click.style(cut(f"  {part.empty}", width), dim=True))
    elif hidden > 0:
        lines.append(click.style(cut(f"  and {hidden + 1} more", width), dim=True))
    return lines


def _line(row: Cells, wide: Sequence[int], right: Sequence[bool], width: int) -> str:
    parts, left = [], width
    for at, (text, colour) in enumerate(row):
        last = at == len(row) - 1
        space = left if last and not right[at] else wide[at]
        if space > left or space <= 0:
            if at:
                break
            space = left
        shown = cut(text, space) if last and not right[at] else padded(text, space, right[at])
        parts.append(click.style(shown, fg=colour) if colour else shown)
        left -= space + _GAP
    return "  ".join(parts)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
