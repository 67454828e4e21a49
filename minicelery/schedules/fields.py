"""What stands in one field of a crontab: ``*``, ``*/15``, ``9-17``, ``mon,wed``, numbers.

The grammar is Celery's, that of crontab(5) with ranges that may wrap around::

    field  ::= part ( "," part )*
    part   ::= "*" | "*/" step | value | value "-" value | value "-" value "/" step
    value  ::= a number, or for months and days of the week a name or its first letters

``fri-mon`` is Friday to Monday, ``22-4/2`` is 22, 0, 2 and 4.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from minicelery.exceptions import ImproperlyConfigured

__all__ = ("FIELDS", "Cronspec", "Field", "ParseException", "Values", "crontab_parser")

Cronspec: TypeAlias = int | str | Iterable[int]

_MONTHS = "january february march april may june july august september october november december".split()
_WEEKDAYS = "sunday monday tuesday wednesday thursday friday saturday".split()
_PART = re.compile(r"(?P<first>\*|\w+)(?:\s*-\s*(?P<last>\w+))?(?:\s*/\s*(?P<step>\w+))?", re.ASCII)
_SHORTEST_NAME = 3


class ParseException(ImproperlyConfigured, ValueError):
    """A crontab that can't be: the message names the field, the value and what is accepted."""


@dataclass(frozen=True)
class Field:
    """One of the five: its name, its numbers, and names for them, the first for `lowest`."""

    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()

    @property
    def accepted(self) -> str:
        """Its values in words."""
        text = f"{self.lowest}-{self.highest}"
        if self.names:
            text += f" ({self.lowest} is {self.names[0]}) or names such as {self.names[1]!r}"
        return text


@dataclass(frozen=True, slots=True)
class Values:
    """The numbers that a field stands for; shared by all schedules whose fields are written alike.

    `later[n]` is the first of them greater than `n`, or None.
    """

    numbers: frozenset[int]
    first: int
    later: tuple[int | None, ...]
    has_star: bool
    has_step: bool


FIELDS = {
    field.name: field
    for field in (
        Field("minute", 0, 59),
        Field("hour", 0, 23),
        Field("day_of_week", 0, 6, tuple(_WEEKDAYS)),
        Field("day_of_month", 1, 31),
        Field("month_of_year", 1, 12, tuple(_MONTHS)),
    )
}


def values_of(field: Field, spec: object) -> Values:
    """What `spec`, a number, text or several numbers, stands for.  Raises ParseException, TypeError."""
    if isinstance(spec, str):
        return _values_of_text(field, spec)
    if isinstance(spec, int) and not isinstance(spec, bool):
        return _values_of_numbers(field, frozenset((_in_range(field, spec, spec),)))
    if isinstance(spec, Iterable) and not isinstance(spec, (bytes, bytearray)):
        return _values_of_numbers(field, frozenset(_numbers(field, spec)))
    raise TypeError(
        f"crontab: {field.name}={spec!r} is {_a(spec)}; accepted: {field.accepted}, "
        f"several in a list or set, or text such as '*', '*/2' and '1,3-5'"
    )


class crontab_parser:  # noqa: N801 - Celery's name
    """Parses the text of a field whose values are `max_` numbers from `min_` on.

    >>> sorted(crontab_parser(24).parse("*/6"))
    [0, 6, 12, 18]
    """

    ParseException = ParseException

    def __init__(self, max_: int = 60, min_: int = 0) -> None:
        self.max_ = max_
        self.min_ = min_
        highest = min_ + max_ - 1
        names = {(0, 6): tuple(_WEEKDAYS), (1, 12): tuple(_MONTHS)}.get((min_, highest), ())
        self._field = Field("field", min_, highest, names)

    def parse(self, spec: str) -> set[int]:
        """The numbers that `spec` stands for.  Raises ParseException."""
        return set(_values_of_text(self._field, spec).numbers)


# -- text ----------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _values_of_text(field: Field, text: str) -> Values:
    numbers: set[int] = set()
    has_step = False
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise _no_part(field, text, part.strip())
        span = _span(field, text, match)
        if match["step"]:
            has_step = True
            span = span[:: _step(field, text, match["step"], span)]
        numbers.update(span)
    return _values(field, frozenset(numbers), text.strip().startswith("*"), has_step)


def _span(field: Field, text: str, match: re.Match[str]) -> list[int]:
    """The numbers of a part before its step is taken, in their order."""
    if match["first"] == "*":
        if match["last"]:
            raise _error(field, text, "'*' is no beginning of a range")
        return list(range(field.lowest, field.highest + 1))
    first = _number(field, text, match["first"])
    if not match["last"]:
        if match["step"]:
            raise _error(
                field, text, f"a step needs a range, such as {first}-{field.highest}/{match['step']}"
            )
        return [first]
    last = _number(field, text, match["last"])
    if last >= first:
        return list(range(first, last + 1))
    return [*range(first, field.highest + 1), *range(field.lowest, last + 1)]


def _step(field: Field, text: str, step: str, span: list[int]) -> int:
    if not step.isdigit() or int(step) == 0:
        raise _error(field, text, f"the step {step!r} is not a number from 1 on")
    if int(step) > len(span) > 1:
        warnings.warn(
            f"crontab: {field.name}={text!r}: a step of {step} is longer than the range, "
            f"so this is the same as {field.name}={span[0]}",
            stacklevel=_outside(),
        )
    return int(step)


def _number(field: Field, text: str, value: str) -> int:
    if value.isdigit():
        return _in_range(field, int(value), text)
    lower = value.lower()
    for number, name in enumerate(field.names, field.lowest):
        if len(lower) >= _SHORTEST_NAME and name.startswith(lower):
            return number
    raise _error(field, text, f"{value!r} is no number or name{_did_you_mean(field, lower)}")


def _did_you_mean(field: Field, value: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(value, [*field.names, *(name[:3] for name in field.names)])
    near.sort(key=lambda name: name[0] != value[0])
    if near:
        return f"; did you mean {near[0]!r}?"
    for other in FIELDS.values():
        if len(value) >= _SHORTEST_NAME and any(name.startswith(value) for name in other.names):
            return f": it belongs into {other.name}"
    return ""


def _no_part(field: Field, text: str, part: str) -> ParseException:
    if not part:
        return _error(
            field, text, "it is empty" if not text.strip() else "there is nothing between two commas"
        )
    if part.startswith("-"):
        return _error(field, text, f"{part!r} is negative")
    if part.endswith("/"):
        return _error(field, text, f"the step of {part!r} is missing")
    return _error(field, text, f"{part!r} is no number, range or step")


# -- numbers -------------------------------------------------------------------------------


def _numbers(field: Field, spec: Iterable[Any]) -> Iterable[int]:
    for number in spec:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(
                f"crontab: {field.name} has {number!r} among its values, which is {_a(number)}; "
                f"accepted: whole numbers, {field.lowest}-{field.highest}"
            )
        yield _in_range(field, number, number)


@lru_cache(maxsize=1024)
def _values_of_numbers(field: Field, numbers: frozenset[int]) -> Values:
    if not numbers:
        raise ParseException(f"crontab: {field.name} has no values; accepted: {field.accepted}")
    return _values(field, numbers, False, False)


def _values(field: Field, numbers: frozenset[int], has_star: bool, has_step: bool) -> Values:
    later = tuple(
        min((number for number in numbers if number > value), default=None)
        for value in range(field.highest + 1)
    )
    return Values(numbers, min(numbers), later, has_star, has_step)


def _in_range(field: Field, number: int, given: object) -> int:
    if field.lowest <= number <= field.highest:
        return number
    raise _error(field, given, "out of range" if given == number else f"{number} is out of range")


def _error(field: Field, given: object, fault: str) -> ParseException:
    return ParseException(f"crontab: {field.name}={given!r}: {fault}; accepted: {field.accepted}")


def _a(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _outside() -> int:
    """The stack level, for warn(), of the line outside of this package that made the crontab."""
    import sys

    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("minicelery."):
        level, frame = level + 1, frame.f_back
    return level - 1
