"""What the command line prints: results on stdout, everything about them on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import IO, Any

import click

from minicelery.exceptions import MiniCeleryError

USAGE = 2
UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h, as in Celery: nobody answers
CONFIGURATION = 78  # EX_CONFIG of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells count

_FOREIGN = re.compile(r"[^\n -~]")
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


def can_print(text: str) -> bool:
    """Whether the encoding of stdout has these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def harmless(text: str) -> str:
    """Text of others without what a terminal would obey, as one line."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def harmless_lines(text: str) -> str:
    """The same of text whose lines stay lines."""
    return "\n".join(map(harmless, text.split("\n")))


def say(text: str = "", *, newline: bool = True) -> None:
    """Print a line of the result; its colours go where they can't be seen."""
    click.echo(text, nl=newline, color=has_colour(sys.stdout))


def say_json(value: Any) -> None:
    """Print one JSON document; what JSON can't carry becomes text."""
    say(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that a terminal can be shown."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    except RecursionError as failure:
        raise CommandError("this is nested too deeply to be shown") from failure
    # Terminals obey more signs than JSON has to escape.
    return _FOREIGN.sub(lambda sign: sign[0] if sign[0].isprintable() else json.dumps(sign[0])[1:-1], text)


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
    click.echo(f"{label} {harmless_lines(text)}", err=True, color=has_colour(sys.stderr))


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


def ask(question: str) -> None:
    """Go on if the answer is yes.  Raises Abort if it is no, CommandError if there is none."""
    try:
        if click.confirm(question):
            return
    except click.Abort as failure:
        if isinstance(failure.__context__, KeyboardInterrupt):
            raise
        say()
        raise CommandError(
            "nobody has answered, and nothing was done", hint="-f does it without asking"
        ) from failure
    note("nothing was done")
    raise click.Abort


def counted(number: int, what: str) -> str:
    """``1 message``, ``2 messages``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def did_you_mean(name: str, known: Sequence[str], limit: int = 3) -> str | None:
    """``did you mean 'add'?`` with the nearest of `known`; None where none is near."""
    from difflib import get_close_matches

    # Of tasks beginners leave out the module.
    near = [one for one in known if one.rpartition(".")[2] == name][:limit]
    near = near or get_close_matches(name, known, n=limit, cutoff=0.7)
    if not near:
        return None
    return "did you mean " + " or ".join(repr(one) for one in near) + "?"
