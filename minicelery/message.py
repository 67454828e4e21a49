"""A task call in its forms: to be sent, held by a consumer, settled; Celery's protocol 2.

The body stays bytes until the task runs.  Field by field: `docs/wire.md`.
"""

from __future__ import annotations

import enum
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from minicelery import serialization
from minicelery.exceptions import InvalidTaskError
from minicelery.forking import call_in_forked_children

COUNT_HEADER = "x-delivery-count"
"""Header with the number of runs that died under a message; RabbitMQ's own name for it."""
TURN_HEADER = "x-minicelery-turn"
"""Header of a message that has waited for a limit: its place in the line, in unix seconds."""
PART_HEADER = "x-minicelery-part"
"""Header of a part of a chord: the id of the group that its end counts in."""
BODY_HEADER = "x-minicelery-body"
"""Header of a chord's body: the id of the group whose results it is called with."""
LASTS_HEADER = "x-minicelery-lasts"
"""Header of a chord's body: the seconds after which it expires, once it has been sent."""
COPY_HEADER = "x-minicelery-copy"
"""Header of a body that may have been sent more than once: what tells it from the other copies."""
UNIQUE_HEADER = "x-minicelery-unique"
"""Header of a unique call: the key under which there is no other one of its task."""
OWN_HEADERS = frozenset({TURN_HEADER, PART_HEADER, BODY_HEADER, LASTS_HEADER, COPY_HEADER, UNIQUE_HEADER})
"""What a message carries for minicelery itself."""


@dataclass(slots=True)
class Message:
    """One task call on its way to a queue.  `body` stays bytes until it is run."""

    id: str  # also the result's key
    task: str  # registered name
    body: bytes
    headers: dict[str, Any]
    queue: str = "celery"
    priority: int | None = None  # 0..9; on Redis, SQLite and memory 0 is served first
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    exchange: str = ""
    routing_key: str = ""
    properties: dict[str, Any] = field(default_factory=dict)  # reply_to, correlation_id, …
    due: float | None = None  # unix seconds; None = now
    expires: float | None = None  # unix seconds
    headers_text: str = ""  # the headers as JSON where they have been rendered; must agree with them
    unique: tuple[str, float] | None = None  # not sent while another holds this key; for so many seconds


@dataclass(slots=True)
class Delivery:
    """A message a consumer holds."""

    message: Message
    receipt: int  # fencing token, rising within one consumer; never a task id
    deliveries: int = 0  # runs of it that died before, for the cap
    started: bool = False  # somebody had begun it before; `Executor.begin` decides what that means
    reason: str | None = None  # how that run ended: worker lost, time limit
    revoked: bool = False
    broken: str | None = None  # why the message can't be read; its fields are then unreliable
    raw: Any = None  # what the broker needs to put it back
    once: bool = False  # begun, it must not run again: early acknowledgement; set by `Executor.begin`
    let_go: bool = False  # the server does not keep it any more: its outcome counts, held or not
    gates: tuple[str, ...] | None = None  # what its run holds of limits; None before they are asked
    admitted: float = 0.0  # monotonic seconds; when they let it pass


class Verdict(enum.Enum):
    """What becomes of the message."""

    ACK = "ack"
    REQUEUE = "requeue"  # to the front; counted if `deliveries` was raised
    REJECT = "reject"  # to the queue's dead letters
    PARK = "park"  # into the line before a limit, see `Outcome.park`


@dataclass(slots=True)
class Record:
    """One task's result document, encoded."""

    id: str
    document: bytes
    state: str | None = None  # None where it was read back and not yet decoded
    ttl: float | None = 86400.0  # seconds; None = for ever
    reply_to: str = ""  # the sender's own queue, for results that go there
    part_of: str = ""  # the group in which the task counts, now that its state is final


@dataclass(slots=True)
class Group:
    """The calls that a chord's body waits for; kept where their results are."""

    id: str
    members: list[str]  # their ids, in order
    body: Message | None  # sent once: when all have ended well, or one has not; None where it was loaded
    passes: bool = True  # the body is called with their values
    countdown: float | None = None  # seconds that the body waits once it could begin
    ttl: float | None = 86400.0  # seconds; None = for ever
    deadline: float | None = None  # unix seconds, after which the body is sent all the same
    place: str = ""  # `Broker.place` of where the body is sent to
    until: float | None = None  # unix seconds; so long the results of its members are kept at least
    sent: float | None = None  # unix seconds; when the body was


@dataclass(slots=True)
class Outcome:
    """All that follows from one delivery; applied by one broker call."""

    delivery: Delivery
    verdict: Verdict = Verdict.ACK
    record: Record | None = None  # None when ignored
    publish: Sequence[Message] = ()  # retry, chain link, callbacks
    reason: str | None = None  # why it was rejected
    release: tuple[str, ...] = ()  # what the message's id holds of limits and is now free
    park: tuple[str, float] | None = None  # the limit it waits for, and since when
    more: Sequence[Record] = ()  # of calls that will not be made, as this one has failed

    def records(self) -> Sequence[Record]:
        """All that is to be stored."""
        return self.more if self.record is None else (self.record, *self.more)


@dataclass(slots=True)
class DeadLetter:
    """A rejected message, as it arrived."""

    reason: str
    rejected: float  # unix seconds
    raw: bytes  # the message in the form its broker uses
    id: str | None = None
    task: str | None = None


def new_id() -> str:
    """A random UUID (version 4) as text; four times faster than `uuid.uuid4`."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


uuid = new_id  # Celery's name


def new_ids(count: int) -> list[str]:
    """`count` ids for one read of the system's randomness."""
    text = os.urandom(16 * count).hex()
    return [
        f"{text[at : at + 8]}-{text[at + 8 : at + 12]}-4{text[at + 13 : at + 16]}"
        f"-a{text[at + 17 : at + 20]}-{text[at + 20 : at + 32]}"
        for at in range(0, 32 * count, 32)
    ]


class Origin:
    """This process as a producer: the `origin` header and the client id (`reply_to`)."""

    name = ""  # not known yet
    client_id = ""

    @classmethod
    def refresh(cls) -> None:
        """Learn both; once in each process."""
        cls.name = f"gen{os.getpid()}@{socket.gethostname()}"
        cls.client_id = new_id()

    @classmethod
    def forget(cls) -> None:
        """In a forked child: it is another producer."""
        cls.name = ""


call_in_forked_children(Origin.forget)


class HeadersTemplate:
    """The headers of many calls of one task, of which four values differ.

    Rendering them costs a third of encoding the dict: half the cost of a message in a batch.
    """

    __slots__ = ("_parts", "_same")

    def __init__(self, same: dict[str, Any]) -> None:
        self._same = same
        mark = new_id()
        marked = same | {"id": mark, "root_id": mark, "argsrepr": mark, "kwargsrepr": mark}
        self._parts = serialization.encode_json(marked).split(f'"{mark}"')

    def fill(self, id: str, argsrepr: str, kwargsrepr: str) -> tuple[dict[str, Any], str]:
        """The headers, and the same as JSON text."""
        a, b, c, d, e = self._parts
        return (
            {
                **self._same,
                "id": id,
                "root_id": id,
                "argsrepr": argsrepr,
                "kwargsrepr": kwargsrepr,
                "stamps": {},
            },
            f'{a}"{id}"{b}"{id}"{c}{quote(argsrepr)}{d}{quote(kwargsrepr)}{e}',
        )


_SCALARS = frozenset({int, float, bool, type(None)})


def short_repr(value: Sequence[Any] | Mapping[str, Any], limit: int = 1024, depth: int = 3) -> str:
    """`repr(value)`, cut near `limit` characters without walking what is cut; never raises."""
    items = value.values() if isinstance(value, Mapping) else value
    for item in items:
        kind = type(item)
        if kind not in _SCALARS and not (kind is str and len(item) <= 128):
            break
    else:
        if len(value) <= 16:
            text = repr(value)
            if len(text) <= limit:
                return text
    text = _cut_repr(value, limit, depth)
    # Escapes and brackets may add to what the parts were cut to.
    return text if len(text) <= limit + 16 else text[:limit] + "..."


def _cut_repr(value: Any, limit: int, depth: int) -> str:
    kind = type(value)
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= limit else f"{repr(value[:limit])[:-1]}...'"
    if kind in (list, tuple, set, frozenset, dict):
        return _cut_items(value, limit, depth)
    try:
        text: str = repr(value)
    except Exception as error:  # a user's __repr__
        text = f"<{kind.__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= limit else text[:limit] + "..."


def _cut_items(value: Any, limit: int, depth: int) -> str:
    if depth == 0 and value:
        return "..."
    kind = type(value)
    opening, closing = "[]" if kind is list else "()" if kind is tuple else "{}"
    parts: list[str] = []
    left = limit
    for item in value.items() if kind is dict else value:
        if left <= 0:
            parts.append("...")
            break
        if kind is dict:
            text = f"{_cut_repr(item[0], left, depth - 1)}: {_cut_repr(item[1], left, depth - 1)}"
        else:
            text = _cut_repr(item, left, depth - 1)
        parts.append(text)
        left -= len(text) + 2
    comma = "," if kind is tuple and len(parts) == 1 else ""
    return opening + ", ".join(parts) + comma + closing


def iso(moment: float, zone: tzinfo = timezone.utc) -> str:
    """Unix seconds as ISO 8601 text with the zone's offset, as headers carry them."""
    return datetime.fromtimestamp(moment, zone).isoformat()


def parse_time(text: object, field_name: str, zone: tzinfo = timezone.utc) -> float:
    """ISO 8601 text to unix seconds; a naive time is read in `zone`.  Raises InvalidTaskError."""
    if not isinstance(text, str):
        raise InvalidTaskError(f"{field_name} must be ISO 8601 text, got {short_repr([text], 80)}")
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError as error:
        raise InvalidTaskError(f"{field_name}={text[:80]!r} is not an ISO 8601 time") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    try:
        return moment.astimezone(timezone.utc).timestamp()
    except OverflowError as error:
        raise InvalidTaskError(f"{field_name}={text[:80]!r} is beyond the year 9999") from error


_NO_LINKS = (None, None, None, None)
_NO_LINKS_TEXT = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'


def encode_body(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    serializer: str,
    links: tuple[Any, Any, Any, Any] = _NO_LINKS,
) -> tuple[bytes, str, str]:
    """The body of protocol 2 as `(bytes, content type, content encoding)`.

    `links` are callbacks, errbacks, chain and chord.  Raises EncodeError.
    """
    if serializer == "json" and links is _NO_LINKS:
        return (
            f"[{serialization.encode_json(args)}, {serialization.encode_json(kwargs) if kwargs else '{}'}, "
            f"{_NO_LINKS_TEXT}]".encode(),
            "application/json",
            "utf-8",
        )
    callbacks, errbacks, chain, chord = links
    embed = {"callbacks": callbacks, "errbacks": errbacks, "chain": chain, "chord": chord}
    return serialization.dumps((args, kwargs, embed), serializer)


def protocol_1_headers(body: bytes) -> dict[str, Any]:
    """The headers that a message of Celery before version 4 would have: all is in its body.

    Raises ValueError or TypeError.
    """
    call = json.loads(body.decode())
    if type(call) is not dict or "task" not in call:
        raise TypeError("neither the headers nor the body name a task")
    names = ("task", "id", "retries", "eta", "expires", "group", "group_index", "timelimit")
    return {"lang": "py", **{name: call.get(name) for name in names}}


def decode_body(message: Message, accept: frozenset[str]) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """`(args, kwargs, links)` of a message; protocol 1 bodies too.

    Raises ContentDisallowed, DecodeError or InvalidTaskError.
    """
    body = message.body
    compression = message.headers.get("compression")
    if compression is not None:
        body = serialization.decompress(body, compression)
    value = serialization.loads(body, message.content_type, message.content_encoding, accept)
    if isinstance(value, dict) and "task" in value:
        args, kwargs, links = value.get("args"), value.get("kwargs"), value
    elif isinstance(value, (list, tuple)) and len(value) == 3:
        args, kwargs, links = value
    else:
        raise InvalidTaskError(
            f"the body must be a list of three items: args, kwargs and links; got {type(value).__name__}"
        )
    if args is None:
        args = []
    if kwargs is None:
        kwargs = {}
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        raise InvalidTaskError(
            f"args must be a list and kwargs an object, got {type(args).__name__} and {type(kwargs).__name__}"
        )
    if links is not None and not isinstance(links, dict):
        raise InvalidTaskError(f"links must be an object, got {type(links).__name__}")
    return list(args), kwargs, links or {}
