"""What the command line prints: results on stdout, everything about them on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

import click

from minicelery.exceptions import MiniCeleryError

USAGE = 2
CONFIGURATION = 78  # EX_CONFIG of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells count

_colour: bool | None = None


class CommandError(MiniCeleryError):
    """A command that can't go on; `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


def use_colour(wanted: bool | None) -> None:
    """Colours always, never, or (None) where they can be seen."""
    global _colour
    _colour = wanted


def has_colour(stream: IO[str]) -> bool:
    """Whether `stream` gets colours: what was asked for, NO_COLOR, FORCE_COLOR, a terminal."""
    if _colour is not None:
        return _colour
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str = "", *, newline: bool = True) -> None:
    """Print a line of the result; its colours go where they can't be seen."""
    click.echo(text, nl=newline, color=has_colour(sys.stdout))


def say_json(value: Any) -> None:
    """Print one JSON document; what JSON can't carry becomes text."""
    say(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def error(text: str, hint: str | None = None) -> None:
    """Print what went wrong, and below it what to do about it."""
    _tell("error", "red", text)
    if hint:
        _tell("hint", "cyan", hint)


def warning(text: str) -> None:
    """Print what may be wrong."""
    _tell("warning", "yellow", text)


def note(text: str) -> None:
    """Print what is good to know."""
    _tell("note", "blue", text)


def _tell(kind: str, colour: str, text: str) -> None:
    label = click.style(f"{kind}:", fg=colour, bold=True)
    click.echo(f"{label} {text}", err=True, color=has_colour(sys.stderr))


def split_hint(failure: BaseException) -> tuple[str, str | None]:
    """An exception's text as `(what went wrong, what to do)`; the second part follows ``; ``."""
    hint: str | None = getattr(failure, "hint", None)
    text = str(failure)
    if hint is None:
        text, _, hint = text.partition("; ")
    return text or type(failure).__name__, hint or None


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their longest cell; numbers to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if not rows:
        return click.style("  ".join(header), dim=True)
    numeric = [all(isinstance(cell, (int, float)) for cell in column) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        parts = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join([click.style(line(cells[0]), dim=True), *map(line, cells[1:])])


def duration(seconds: float) -> str:
    """A span in words of one unit: ``12 ms``, ``3.4 s``, ``1 day``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = seconds / size
            text = f"{count:.1f}".removesuffix(".0")
            return f"{text} {unit}" if text == "1" else f"{text} {unit}s"
    raise AssertionError(seconds)


def did_you_mean(name: str, known: Sequence[str], limit: int = 3) -> str | None:
    """``did you mean 'add'?`` with the nearest of `known`; None where none is near."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=limit, cutoff=0.7)
    if not near:
        return None
    return "did you mean " + " or ".join(repr(one) for one in near) + "?"
