"""What a row of the table of settings is, and the kinds of values it may ask for."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError
    if sys.maxsize < abs(value) != math.inf:
        raise ValueError("that is too large")
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


def _secret(value: Any) -> str | bytes:
    return bytes(value) if isinstance(value, bytes) and value else _text(value)


TEXT = Kind("text", _text, str)
SECRET = Kind("text or bytes", _secret, str)
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
    from minicelery.broker.url import parse_urls
    from minicelery.exceptions import ImproperlyConfigured

    server, *rest = re.split("[/?#]", url.partition("://")[2], maxsplit=1)
    if ";" not in url and ":" in server and "@" not in server and any("@" in part for part in rest):
        raise ValueError("percent-encode special characters in the password: / is %2F, ? is %3F, # is %23")
    try:
        parse_urls(url)
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
        raise ValueError(_unknown_serializer(wrong[0]))
    if not accepted(names) & accepted(SERVED):
        raise ValueError(f"of these none is known; add {' or '.join(map(repr, SERVED))}")
    return names


def _serializer(value: Any) -> str:
    from minicelery.serialization import CONTENT_TYPES

    if isinstance(value, str) and value in CONTENT_TYPES:
        return value
    raise ValueError(_unknown_serializer(value) if isinstance(value, str) else "")


def _unknown_serializer(name: str) -> str:
    from minicelery.serialization import unknown_serializer

    return f"{unknown_serializer(name)}; others are added with minicelery.serialization.register, before they are named"


def _split(text: str) -> list[str]:
    return [part for word in text.split(",") if (part := word.strip())]


def _anything(value: Any) -> Any:
    return value


MAPPING = Kind("a mapping", _mapping)
MODULES = Kind("a list or tuple of module names", _modules, _split)
CONTENT = Kind("a list, tuple or set of serializer names or content types", _content, _split)
ANYTHING = optional(Kind("any value", _anything, str))
SERIALIZER = Kind(
    f"{_one_of(('json', 'msgpack', 'yaml', 'pickle', 'auth'))}, or the name of a registered serializer",
    _serializer,
    str.strip,
)
COMPRESSION = choice("zlib", "gzip", "bzip2", "bzip", "lzma", "xz", "brotli", "zstd", "zstandard")
DELIVERY_MODE = choice(1, 2, aliases={"transient": 1, "persistent": 2})


# -- queues and routes -------------------------------------------------------------------

EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")
QUEUE_OPTIONS = (
    "exclusive", "no_ack", "queue_arguments", "binding_arguments", "consumer_arguments", "alias", "bindings",
    "no_declare", "expires", "message_ttl", "max_length", "max_length_bytes", "max_priority",
)  # fmt: skip
"""Options of a queue in a dict that mean the same as its attributes; there are some more."""

_DICT_OPTIONS = frozenset({
    *QUEUE_OPTIONS, "exchange", "exchange_type", "exchange_durable", "exchange_auto_delete",
    "exchange_arguments", "routing_key", "binding_key", "delivery_mode", "durable", "auto_delete",
    "queue_durable", "queue_auto_delete",
})  # fmt: skip


def exchange_type(value: Any) -> str:
    """`value` itself: a type that AMQP has, or ``x-…``, one of a server's plugins."""
    if isinstance(value, str) and (value in EXCHANGE_TYPES or value.startswith("x-")):
        return value
    raise ValueError(f"exchange types are {', '.join(EXCHANGE_TYPES)} and the x-… of plugins{_near(value)}")


def _near(value: Any, known: Iterable[str] = EXCHANGE_TYPES) -> str:
    from difflib import get_close_matches

    near = get_close_matches(value, list(known), 1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_queue(value: Any) -> bool:
    """Whether it is a queue object, ours or kombu's."""
    return isinstance(getattr(value, "name", None), str) and hasattr(value, "routing_key")


def _is_exchange(value: Any) -> bool:
    """Whether it is an exchange object, ours or kombu's."""
    named = isinstance(getattr(value, "name", None), str) and bool(value.name)
    return named and hasattr(value, "type") and not hasattr(value, "routing_key")


def _queues(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_queue_name(name): _queue_options(name, options) for name, options in value.items()}
    if not isinstance(value, (list, tuple, AnySet)):
        raise ValueError(f"write [{value!r}]" if isinstance(value, str) else "")
    for queue in value:
        if _is_queue(queue):
            _queue_name(queue.name)
        elif not isinstance(queue, str) or not queue:
            raise ValueError(f"{queue!r:.80} is neither a Queue nor a queue's name")
    return value


def _queue_name(name: Any) -> str:
    if isinstance(name, str) and name:
        return name
    raise ValueError(f"a queue's name must be text that is not empty, got {name!r:.80}")


def _queue_options(name: str, options: Any) -> Any:
    if _is_queue(options):
        return options
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"{name!r}: expected a dict of options or a Queue, got {options!r:.80}")
    for key, value in (options or {}).items():
        if key not in _DICT_OPTIONS:
            raise ValueError(f"{name!r}: a queue has no option {key!r}{_near(key, _DICT_OPTIONS)}")
        if key in ("exchange", "routing_key", "binding_key"):
            _check_address(f"{name!r}: {key!r}", value)
        elif key == "exchange_type" and value:
            _explained(f"{name!r}: {key!r}: {value!r:.80}", exchange_type, value)
        elif key == "delivery_mode" and value:
            _explained(f"{name!r}: {key!r}: {value!r:.80}", DELIVERY_MODE.convert, value)
    return dict(options or {})


def _explained(place: str, check: Callable[[Any], Any], value: Any) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if str(error) else f"{place} is not known") from None


def _check_address(place: str, value: Any) -> None:
    if value is not None and not isinstance(value, str) and not isinstance(getattr(value, "name", None), str):
        raise ValueError(f"{place}: expected text, got {value!r:.80}")


def _routes(value: Any) -> Any:
    for router in value if isinstance(value, (list, tuple)) else (value,):
        _check_router(router)
    return value


def _check_router(router: Any) -> None:
    if isinstance(router, str):
        if not all(part.isidentifier() for part in router.replace(":", ".").split(".")):
            raise ValueError(f"{router!r} is not the dotted path of a router")
    elif isinstance(router, (Mapping, list, tuple)):
        for pattern, route in route_items(router):
            _check_route(pattern, route)
    elif not callable(router) and not hasattr(router, "route_for_task"):
        raise ValueError(f"{router!r:.80} is not a router: that is a dict, a function or its dotted path")


def route_items(routes: Any) -> list[tuple[Any, Any]]:
    """The pairs of pattern and route of one router, be it a dict, a list of pairs or one pair."""
    if isinstance(routes, Mapping):
        return list(routes.items())
    if isinstance(routes, tuple) and len(routes) == 2 and _is_pattern(routes[0]):
        return [(routes[0], routes[1])]
    for pair in routes:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"{pair!r:.80} is not a pair of a task's name and a route")
    return [(pattern, route) for pattern, route in routes]


def _is_pattern(value: Any) -> bool:
    return isinstance(value, (str, re.Pattern))


def _check_route(pattern: Any, route: Any) -> None:
    if not _is_pattern(pattern) or not pattern:
        raise ValueError(f"{pattern!r:.80} is not the name of a task, a pattern or a compiled regex")
    if isinstance(pattern, re.Pattern) and not isinstance(pattern.pattern, str):
        raise ValueError(f"{pattern!r:.80} is a regex for bytes, and names are text")
    if not _is_queue(route):
        check_route(f"{getattr(pattern, 'pattern', pattern)!r}", route)


def check_route(place: str, route: Any) -> None:
    """Raises ValueError unless `route` is a queue's name or a dict of options; `place` is named."""
    if isinstance(route, str):
        if not route:
            raise ValueError(f"{place}: a queue's name must not be empty")
        return
    if not isinstance(route, Mapping):
        raise ValueError(f"{place}: expected a queue's name or a dict of options, got {route!r:.80}")
    for key, value in route.items():
        if key in ("queue", "exchange", "routing_key"):
            _check_address(f"{place}: {key!r}", value)
        elif key == "exchange_type" and value:
            _explained(f"{place}: {key!r}: {value!r:.80}", exchange_type, value)


EXCHANGE_TYPE = Kind("an exchange type", exchange_type, str)
EXCHANGE = Kind("text or an Exchange", lambda value: value if _is_exchange(value) else _text(value), str)
QUEUE_TYPE = choice("classic", "quorum")
QUEUES = optional(Kind("a list of queues, or a dict of names and options", _queues, _split))
ROUTES = optional(
    Kind("a dict, a list of pairs, a function, its dotted path, or a list of those", _routes, str)
)
