"""Control requests and their replies as letters, in the form that Celery and Flower know."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from minicelery.broker.post import Box, Letter
from minicelery.exceptions import EncodeError
from minicelery.serialization import encode_json

DEFAULT_EXCHANGE = "celery"
MATCHERS = ("glob", "pcre")
LONGEST_PATTERN = 200
LONGEST_NAME = 255
"""Bytes of a ticket, and of what names an exchange or a queue."""
_UNBOUNDED, _FORKS = 3, 8
"""How many parts of a pattern may repeat without a bound, and may go more than one way at all."""


@dataclass(slots=True)
class Request:
    """What somebody asks of workers."""

    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    destination: Sequence[str] | None = None  # node names; None: all
    pattern: str | None = None  # for node names, with a matcher
    matcher: str | None = None
    ticket: str | None = None
    reply_to: tuple[str, str] | None = None  # exchange and routing key; None: no reply is wanted
    kept: bool = False  # its sender has put it down in the broker, where workers find it

    def is_for(self, node: str) -> bool:
        """Whether the worker of that name is meant.  Raises ValueError for a pattern that can't be one."""
        if self.destination:
            return node in self.destination
        if self.pattern and self.matcher:
            return matches(node, self.pattern, self.matcher)
        return True


class Malformed(ValueError):
    """A letter that is no request, or no reply."""


# -- exchanges and queues ----------------------------------------------------------------


def requests_box(node: str, exchange: str = DEFAULT_EXCHANGE, **times: float | None) -> Box:
    """Where the worker of that name hears requests."""
    return Box(f"{exchange}.pidbox", "fanout", f"{node}.{exchange}.pidbox", "", **times)


def replies_box(asker: str, exchange: str = DEFAULT_EXCHANGE, **times: float | None) -> Box:
    """Where who asks hears the replies."""
    name = f"reply.{exchange}.pidbox"
    return Box(name, "direct", f"{asker}.{name}", asker, **times)


# -- requests ----------------------------------------------------------------------------


def encode_request(
    request: Request, clock: int, timeout: float | None, exchange: str = DEFAULT_EXCHANGE
) -> Letter:
    """The request as a letter.  Raises TypeError for arguments that JSON can't carry."""
    body: dict[str, Any] = {
        "method": request.method,
        "arguments": dict(request.arguments),
        "destination": None if request.destination is None else list(request.destination),
        "pattern": request.pattern,
        "matcher": request.matcher,
    }
    if request.ticket is not None:
        body["ticket"] = request.ticket
    if request.reply_to is not None:
        body["reply_to"] = dict(zip(("exchange", "routing_key"), request.reply_to, strict=True))
    if request.kept:
        body["kept"] = True
    headers = {"clock": clock, "expires": time.time() + timeout if timeout else 0}
    try:
        data = encode_json(body).encode()
    except EncodeError as error:
        raise TypeError(f"the arguments of {request.method}: {error}") from error
    return Letter(f"{exchange}.pidbox", "", data, headers, persistent=True)


def decode_request(content: Any) -> Request:
    """The request in a letter's content.  Raises Malformed; what only others use is passed over."""
    if type(content) is not dict:
        raise Malformed(f"a request is an object, not {content!r:.60}")
    get = content.get
    method = get("method")
    if type(method) is not str or not method:
        raise Malformed(f"its method is {method!r:.60}")
    arguments = get("arguments") or {}
    if type(arguments) is not dict:
        raise Malformed(f"the arguments of {method:.60} are {arguments!r:.60}")
    destination = get("destination")
    if destination is not None and not (
        type(destination) is list and all(type(name) is str for name in destination)
    ):
        raise Malformed(f"its destination is {destination!r:.60}")
    ticket = _text(get("ticket"))
    if ticket is not None and not _is_name(ticket):
        raise Malformed(f"its ticket is {ticket!r:.60}")
    return Request(
        method, arguments, destination, _text(get("pattern")), _text(get("matcher")), ticket,
        _reply_to(get("reply_to")), get("kept") is True,
    )  # fmt: skip


def _reply_to(given: Any) -> tuple[str, str] | None:
    if not given:
        return None
    if type(given) is dict:
        exchange, key = given.get("exchange"), given.get("routing_key")
        # No other exchange: RabbitMQ would make one of any name, and keep it.
        if _is_name(exchange) and (not exchange or exchange.startswith("reply.")) and key and _is_name(key):
            return exchange, key
    raise Malformed(f"its reply_to is {given!r:.60}")


def _text(value: Any) -> str | None:
    return value if type(value) is str else None


def _is_name(value: Any) -> TypeGuard[str]:
    try:
        return isinstance(value, str) and len(value.encode()) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a surrogate pair, which no server takes
        return False


# -- replies -----------------------------------------------------------------------------


def encode_reply(node: str, value: Any, request: Request, clock: int) -> Letter:
    """The reply of a worker.  What JSON can't carry is replaced by its text."""
    assert request.reply_to is not None
    exchange, key = request.reply_to
    try:
        data = encode_json({node: value}).encode()
    except EncodeError:
        data = encode_json({node: plain(value)}).encode()
    return Letter(exchange, key, data, {"ticket": request.ticket, "clock": clock})


def decode_reply(letter: Letter, ticket: str) -> dict[str, Any] | None:
    """What a letter says of who has replied; None where it is no reply to that ticket."""
    content = letter.content
    if type(content) is not dict or letter.headers.get("ticket", ticket) != ticket:
        return None
    return content


def plain(value: Any, depth: int = 8) -> Any:
    """`value` as JSON can carry it: what it has no form for becomes text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth and isinstance(value, Mapping):
        return {str(key): plain(inner, depth - 1) for key, inner in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner, depth - 1) for inner in value]
    try:
        return repr(value)[:1024]
    except Exception as error:
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


# -- patterns ----------------------------------------------------------------------------


def matches(node: str, pattern: str, matcher: str = "glob") -> bool:
    """Whether a node name matches.  Raises ValueError naming what is wrong with the pattern."""
    if matcher not in MATCHERS:
        raise ValueError(f"matcher={matcher!r:.80}: expected 'glob' or 'pcre'")
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(
            f"pattern={pattern[:40]!r}… has {len(pattern)} characters; at most {LONGEST_PATTERN}"
        )
    if matcher == "glob":
        # A run of stars means no more than one, and costs more.
        return fnmatchcase(node, re.sub(r"\*+", "*", pattern))
    return _compiled(pattern).match(node) is not None


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        found = re.compile(pattern)
        _refuse_slow(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern={pattern!r:.80} is no regular expression: {error}") from None
    return found


def _refuse_slow(pattern: str) -> None:
    """Refuse what takes time beyond measure: matching can't be interrupted."""
    parser: Any = getattr(re, "_parser", None)
    if parser is None:  # Python 3.10
        parser = __import__("sre_parse")
    counts = {"forks": 0, "unbounded": 0}

    def walk(items: Any, repeated: bool) -> None:
        for op, value in items:
            name = str(op)
            if name == "BRANCH":
                count(repeated)
                for branch in value[1]:
                    walk(branch, repeated)
            elif "REPEAT" in name:
                least, most, inner = value
                if least != most:
                    count(repeated)
                    counts["unbounded"] += most > 2
                walk(inner, True)
            elif name == "SUBPATTERN":
                walk(value[-1], repeated)
            elif name in ("ASSERT", "ASSERT_NOT"):
                walk(value[1], repeated)
            elif name in ("GROUPREF", "GROUPREF_EXISTS", "ATOMIC_GROUP"):
                raise ValueError(f"pattern={pattern!r:.80}: {name.lower()} is not served")

    def count(repeated: bool) -> None:
        counts["forks"] += 1 + _FORKS * repeated

    walk(parser.parse(pattern), False)
    if counts["forks"] > _FORKS or counts["unbounded"] > _UNBOUNDED:
        raise ValueError(
            f"pattern={pattern!r:.80} may take too long: at most {_UNBOUNDED} parts may repeat, and none of "
            "them within another"
        )
