"""What a row of the table of settings is, and the kinds of values it may ask for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AnySet
from datetime import timedelta, tzinfo
from typing import Any, Literal, NamedTuple

Convert = Callable[[Any], Any]


class Kind(NamedTuple):
    """What a setting's value must be."""

    expected: str
    """What to name in an error, e.g. ``a boolean``."""
    convert: Convert
    """The value in its plain form; raises ValueError, whose text is a hint for the user."""
    parse: Callable[[str], Any] | None = None
    """Text of an environment variable to a value for `convert`; None: not readable from there."""
    takes_none: bool = False


class Setting(NamedTuple):
    """One row of the table of settings."""

    name: str
    default: Any
    kind: Kind
    unit: str
    doc: str
    served: Literal[True] | str = True
    """True, or why a value other than the default has no effect."""
    refused: bool = False
    """Another value than the default is an error: going on without it would lose work or safety."""


def optional(kind: Kind) -> Kind:
    """`kind`, or None."""
    return kind._replace(expected=f"{kind.expected}, or None", takes_none=True)


# -- booleans and numbers ----------------------------------------------------------------


def _boolean(value: Any) -> bool:
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    raise ValueError("text is always true; compare it yourself" if isinstance(value, str) else "")


_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _word(text: str) -> Any:
    return _WORDS.get(text.strip().lower(), text)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError
    return value


def _numeral(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def whole(low: int, high: int | None = None) -> Kind:
    """An integer of at least `low` and at most `high`."""

    def convert(value: Any) -> int:
        number = _number(value)
        if number < low or (high is not None and number > high) or number % 1:
            raise ValueError
        return int(number)

    limits = f">= {low}" if high is None else f"from {low} to {high}"
    return Kind(f"an integer {limits}", convert, _numeral)


def number(low: float) -> Kind:
    """A number of at least `low`; infinity is one."""

    def convert(value: Any) -> float:
        if _number(value) < low:
            raise ValueError
        return _number(value)

    return Kind(f"a number >= {low:g}", convert, _numeral)


def seconds(*, above: float | None = None) -> Kind:
    """A finite number of seconds: 0 or more, or more than `above`."""

    def convert(value: Any) -> float:
        if isinstance(value, timedelta):
            raise ValueError("a timedelta has total_seconds()")
        if not _fits(_number(value)):
            raise ValueError
        return _number(value)

    def _fits(value: float) -> bool:
        return math.isfinite(value) and (value >= 0 if above is None else value > above)

    limit = ">= 0" if above is None else f"> {above:g}"
    return Kind(f"a number of seconds {limit}", convert, _numeral)


def _duration(value: Any) -> float:
    length = value.total_seconds() if isinstance(value, timedelta) else _number(value)
    if not (math.isfinite(length) and length >= 0):
        raise ValueError
    return length


BOOLEAN = Kind("a boolean", _boolean, _word)
COUNT = whole(0)
SECONDS = seconds()
DURATION = Kind("a number of seconds >= 0 or a timedelta", _duration, _numeral)


# -- text --------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if isinstance(value, str) and value:
        return str(value)
    raise ValueError


def _path(value: Any) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    return _text(path)


def choice(*served: Any, later: tuple[Any, ...] = (), aliases: Mapping[Any, Any] | None = None) -> Kind:
    """One of `served`; those of `later` are refused as not served yet, `aliases` mean another."""

    def convert(value: Any) -> Any:
        try:
            value = (aliases or {}).get(value, value)
        except TypeError:  # unhashable
            raise ValueError from None
        for known in served:
            if value == known and isinstance(value, bool) == isinstance(known, bool):
                return known
        raise ValueError("which is not served yet" if value in later else "")

    return Kind(_one_of(served), convert, _choice_text(served))


def _choice_text(served: tuple[Any, ...]) -> Callable[[str], Any]:
    names = {str(value).lower(): value for value in served}
    return lambda text: names.get(text.strip().lower(), text)


def _one_of(served: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, served))


TEXT = Kind("text", _text, str)
PATH = Kind("a path", _path, str)
PLAIN_TEXT = Kind("text, may be empty", lambda value: value if value == "" else _text(value), str)


def _log_level(value: Any) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    name = _text(value).upper()
    if name not in ("DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"):
        raise ValueError("the levels are DEBUG, INFO, WARNING, ERROR and CRITICAL")
    return name


def _concurrency(value: Any) -> int | str:
    return "auto" if value == "auto" else int(whole(1).convert(value))


def _zone(value: Any) -> str | tzinfo:
    return value if isinstance(value, tzinfo) else _text(value)


LOG_LEVEL = Kind("the name or number of a log level", _log_level, str)
CONCURRENCY = Kind("an integer >= 1 or 'auto'", _concurrency, _numeral)
ZONE = Kind("the name of a time zone or a tzinfo", _zone, str)


# -- servers -----------------------------------------------------------------------------


def _url(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        value = ";".join(map(_text, value))
    if value == "":
        return None
    url = _text(value).strip()
    if ";" in url and "://" in url.partition(";")[2]:
        raise ValueError("a list of servers to fail over to is not served yet: name one")
    if "@" in url and "://" not in url:
        raise ValueError("a URL begins with its scheme and ://")
    return url


def _server_url(value: Any) -> str | None:
    url = _url(value)
    if url is not None:
        _parse(url)
    return url


def _store_url(value: Any) -> str | None:
    url = _url(value)
    if url is not None and "://" in url:  # else a name such as django-db, or a class's path
        _parse(url)
    return url


def _parse(url: str) -> None:
    # Imported here: the modules of settings stay cheap to import.
    from minicelery.broker.url import parse_url
    from minicelery.exceptions import ImproperlyConfigured

    server, *rest = re.split("[/?#]", url.partition("://")[2], maxsplit=1)
    if ":" in server and "@" not in server and any("@" in part for part in rest):
        raise ValueError("percent-encode special characters in the password: / is %2F, ? is %3F, # is %23")
    try:
        parse_url(url)
    except ImproperlyConfigured as error:
        raise ValueError(str(error)) from None  # its cause holds nothing more


BROKER_URL = optional(Kind("a server's URL", _server_url, str))
STORE_URL = optional(Kind("a result store's URL", _store_url, str))


def _tls(value: Any) -> bool | dict[str, Any]:
    return _mapping(value) if isinstance(value, Mapping) else _boolean(value)


TLS = Kind("a boolean or a mapping of TLS options", _tls, _word)


# -- collections -------------------------------------------------------------------------


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, AnySet):
        value = sorted(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return tuple(map(_text, value))


def _modules(value: Any) -> tuple[str, ...]:
    return _names((value,) if isinstance(value, str) else value)


def _content(value: Any) -> tuple[str, ...]:
    from minicelery.serialization import CONTENT_TYPES, SERVED, accepted

    if isinstance(value, str):
        raise ValueError(f"write [{value!r}]")
    names = _names(value)
    if wrong := [name for name in names if "/" not in name and name not in CONTENT_TYPES]:
        raise ValueError(f"no serializer is named {wrong[0]!r}; there are {', '.join(CONTENT_TYPES)}")
    if not accepted(names) & accepted(SERVED):
        raise ValueError(f"of these none is served yet; add {' or '.join(map(repr, SERVED))}")
    return names


def _split(text: str) -> list[str]:
    return [part for word in text.split(",") if (part := word.strip())]


def _anything(value: Any) -> Any:
    return value


MAPPING = Kind("a mapping", _mapping)
MODULES = Kind("a list or tuple of module names", _modules, _split)
CONTENT = Kind("a list, tuple or set of serializer names or content types", _content, _split)
ANYTHING = optional(Kind("any value", _anything, str))
SERIALIZER = choice("json", "msgpack", later=("yaml", "pickle", "auth"))
COMPRESSION = choice("zlib", "gzip", "bzip2", "bzip", later=("lzma", "xz", "zstd", "zstandard", "brotli"))
DELIVERY_MODE = choice(1, 2, aliases={"transient": 1, "persistent": 2})
