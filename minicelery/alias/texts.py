"""Text to show: Celery's `utils.text`, `utils.saferepr` and `utils.term`."""

from __future__ import annotations

import functools
import os
import pprint
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minicelery.message import short_repr


def str_to_list(s: Any) -> Any:
    """Text at its commas; what is no text is returned as it is."""
    return s.split(",") if isinstance(s, str) else s


def dedent_initial(s: str, n: int = 4) -> str:
    """The text without `n` leading spaces, if it has them."""
    return s.removeprefix(" " * n)


def dedent(s: str, sep: str = "\n") -> str:
    """The text without the first four spaces of its first line, and of the others what they have in common."""
    head, found, rest = dedent_initial(s).partition(sep)
    return f"{head}{found}{textwrap.dedent(rest)}"


def fill_paragraphs(s: str, width: int, sep: str = "\n") -> str:
    """The text with its paragraphs broken into lines of that width."""
    return sep.join(textwrap.fill(paragraph, width) for paragraph in s.split(sep))


def join(l: Sequence[str], sep: str = "\n") -> str:  # noqa: E741 - Celery's name
    """The items that say something, one after the other."""
    return sep.join(item for item in l if item)


def ensure_sep(sep: str, s: str, n: int = 2) -> str:
    """The text with `n` separators at its end, at least."""
    return s + sep * (n - s.count(sep))


ensure_newlines = functools.partial(ensure_sep, "\n")
"""The text with two line ends, at least."""


def abbr(S: str, max: int, ellipsis: str | bool | None = "...") -> str:  # noqa: N803 - Celery's name
    """The text cut to so many characters, `ellipsis` among them."""
    if S is None or len(S) <= max:
        return S or "???"
    return S[: max - len(ellipsis)] + ellipsis if isinstance(ellipsis, str) and ellipsis else S[:max]


def abbrtask(S: str, max: int) -> str:  # noqa: N803 - Celery's name
    """A task's name with the module cut, so that it takes about so many characters."""
    if S is None or len(S) <= max:
        return S or "???"
    module, _, name = S.rpartition(".")
    return f"{abbr(module, _at_least_0(max - len(name) - 3), False)}[.]{name}"


def _at_least_0(number: int) -> int:
    return number if number > 0 else 0


def indent(t: str, indent: int = 0, sep: str = "\n") -> str:
    """The text with so many spaces in front of each line."""
    return sep.join(" " * indent + line for line in t.split(sep))


def truncate(s: str, maxlen: int = 128, suffix: str = "...") -> str:
    """The text cut to so many characters, with `suffix` behind where it was."""
    if not maxlen or len(s) <= maxlen:
        return s
    cut = s[:maxlen].rsplit(" ", 1)[0]
    return cut + suffix


def pluralize(n: float, text: str, suffix: str = "s") -> str:
    """The word with `suffix`, unless there is one of it."""
    return text if n == 1 else text + suffix


def pretty(value: Any, width: int = 80, nl_width: int = 80, sep: str = "\n", **kw: Any) -> str:
    """The value as `pprint` shows it; a mapping begins on a line of its own."""
    text = pprint.pformat(value, width=nl_width if isinstance(value, dict) else width, **kw)
    return f"{sep} {text}" if isinstance(value, dict) else text


def simple_format(
    s: str | None,
    keys: Mapping[str, str | Callable[[], str]],
    pattern: re.Pattern[str] = re.compile(r"%([%\w])"),
    expand: str = r"\1",
) -> str | None:
    """The text with ``%x`` replaced by what `keys` has for x.  Raises ValueError where it has nothing."""

    def found(match: re.Match[str]) -> str:
        key = match.expand(expand)
        if key == "%":
            return "%"
        if key not in keys:
            raise ValueError(
                f"unknown format %{key} in {s!r}; known: {', '.join(f'%{one}' for one in keys)}, %%"
            )
        value = keys[key]
        return str(value() if callable(value) else value)

    return pattern.sub(found, s) if s else s


def saferepr(o: Any, maxlen: int | None = None, maxlevels: int = 3, seen: Any = None) -> str:
    """A repr of about so many characters, however large and deep the object is; it raises nothing."""
    return short_repr([o], maxlen or 1 << 20, maxlevels + 1)[1:-1]


class colored:  # noqa: N801 - Celery's name
    """Text in colours: ``str(colored().red("stop ", colored().bold("now")))``."""

    def __init__(self, *s: object, enabled: bool = True, op: str = "", **_: Any) -> None:
        self.s = s
        self.enabled = enabled and not (os.environ.get("NO_COLOR") and sys.platform != "win32")
        self.op = op

    def node(self, s: Sequence[object], op: str) -> colored:
        """The same within a code of the terminal's."""
        return type(self)(*s, enabled=self.enabled, op=op)

    def no_color(self) -> str:
        """The text alone."""
        return "".join(one.no_color() if isinstance(one, colored) else str(one) for one in self.s)

    def __str__(self) -> str:
        if not self.enabled:
            return self.no_color()
        if not self.op:
            return "".join(map(str, self.s))
        # What an inner colour has ended begins again.
        parts = [f"{one}{self.op}" if isinstance(one, colored) else str(one) for one in self.s]
        return f"{self.op}{''.join(parts)}\x1b[0m"

    embed = __str__

    def __add__(self, other: object) -> colored:
        return type(self)(self, other, enabled=self.enabled)

    def __repr__(self) -> str:
        return repr(self.no_color())


def _method(code: str) -> Callable[..., colored]:
    return lambda self, *s: self.node(s, f"\x1b[{code}m")


for _number, _name in enumerate("black red green yellow blue magenta cyan white".split(), 30):
    setattr(colored, _name, _method(f"1;{_number}"))
    setattr(colored, f"i{_name}", _method(f"1;{_number + 10}"))
for _name, _code in {
    "bold": "1",
    "underline": "4",
    "blink": "5",
    "reverse": "7",
    "bright": "1",
    "reset": "0",
}.items():
    setattr(colored, _name, _method(_code))
