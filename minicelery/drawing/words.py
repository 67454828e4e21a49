"""Short, harmless text for boxes: names, arguments and values, whatever is in them."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

WIDEST = 34
"""Columns of text in a box."""

_NARROW = reprlib.Repr()
_NARROW.maxstring = _NARROW.maxother = _NARROW.maxlong = 30
_NARROW.maxlist = _NARROW.maxtuple = _NARROW.maxset = 5
_NARROW.maxdict = 3
_NARROW.maxlevel = 3


def call_text(args: Sequence[Any], kwargs: Mapping[str, Any], widest: int = WIDEST) -> str:
    """The arguments of a call as they are written in it, cut to `widest` columns."""
    parts: list[str] = []
    for value in args[:8]:
        parts.append(value_text(value))
        if sum(map(len, parts)) > widest:
            break
    for key in list(kwargs)[:8]:
        parts.append(f"{visible(str(key)[:widest])}={value_text(kwargs[key])}")
        if sum(map(len, parts)) > widest:
            break
    if len(parts) < len(args) + len(kwargs):
        parts.append("…")
    return cut(", ".join(parts), widest)


def value_text(value: Any) -> str:
    """A short `repr`, also of what is huge or can't be shown."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        shown = repr(bytes(value[:12]))
        return shown if len(value) <= 12 else f"{shown}…"
    try:
        return visible(_NARROW.repr(value))
    except Exception:  # a `__repr__` of the user's, deep in a container
        return f"<{type(value).__name__}>"


def visible(text: str) -> str:
    """`text` on one line, with escapes for what is no visible character."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def columns(text: str) -> int:
    """How many columns of a monospaced font it takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def cut(text: str, widest: int = WIDEST) -> str:
    """`text`, or its beginning and an ellipsis."""
    if columns(text) <= widest:
        return text
    taken, room = 0, widest - 1
    for at, one in enumerate(text):
        taken += _columns(one)
        if taken > room:
            return f"{text[:at]}…"
    return text


def cut_name(name: str, widest: int = WIDEST) -> str:
    """A task's name, or an ellipsis and its end: there stands the function."""
    name = visible(name[-4 * widest :])
    return name if columns(name) <= widest else cut(name[::-1], widest)[::-1]


def _columns(one: str) -> int:
    if unicodedata.combining(one):
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1
