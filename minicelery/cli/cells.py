"""Text in the cells of a terminal: what it may hold, how wide it is, and how it is cut."""

from __future__ import annotations

import unicodedata

_VARIANTS = range(0xFE00, 0xFE10)
"""Signs that change how the one before them looks, and in some terminals how wide it is."""


def plain(text: object) -> str:
    """`text` without what a terminal would obey or hide: it is what somebody else has sent."""
    found = str(text)
    return found if found.isascii() and found.isprintable() else "".join(map(_shown, found))


def _shown(sign: str) -> str:
    number = ord(sign)
    if number in _VARIANTS:
        return ""
    if sign.isprintable():
        return sign
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def width_of(text: str) -> int:
    """How many cells a plain text takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def cut(text: str, width: int) -> str:
    """As much of a plain text as fits."""
    if width_of(text) <= width:
        return text
    left, end = width - 1, 0  # … takes one
    for sign in text:
        left -= _cells(sign)
        if left < 0:
            break
        end += 1
    return text[:end] + "…" if width > 0 else ""


def padded(text: str, width: int, right: bool = False) -> str:
    """A plain text cut or filled up to exactly `width` cells."""
    shown = cut(text, width)
    space = " " * (width - width_of(shown))
    return space + shown if right else shown + space


def _cells(sign: str) -> int:
    if unicodedata.east_asian_width(sign) in "WF":
        return 2
    return 0 if unicodedata.category(sign) in ("Mn", "Me") else 1
