"""A message as RabbitMQ carries it: properties, headers and body, as Celery fills them."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.link import FRAME_MAX, Content
from minicelery.message import COUNT_HEADER, DeadLetter, Delivery, Message, iso, new_id, protocol_1_headers

DEATHS = "x-minicelery-deaths"
"""Header with the number of runs that died under a message.  (RabbitMQ's own ``x-delivery-count``
also counts those that were fetched and given back.)"""
EXPIRY_GRACE = 86400.0
"""Seconds that an expired message stays, so that a worker finds it and says REVOKED."""

_PERSISTENT = 2
_MOST_HEADERS = FRAME_MAX - 60_000  # bytes of a message's own among those of its dead letter
_KNOWN = ("timestamp", "type", "app_id")


def properties(message: Message, now: float) -> dict[str, Any]:
    """The message's properties, headers among them."""
    headers = message.headers
    if message.due is not None and headers.get("eta") is None:
        headers = headers | {"eta": iso(message.due)}
    if COUNT_HEADER in headers:
        headers = dict(headers)
        headers[DEATHS] = headers.pop(COUNT_HEADER)
    given = message.properties
    found: dict[str, Any] = {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": headers,
        "delivery_mode": given.get("delivery_mode") or _PERSISTENT,
        "priority": min(255, message.priority or 0),
        "correlation_id": given.get("correlation_id") or message.id,
        "reply_to": given.get("reply_to"),
        "message_id": new_id(),  # of this one message: a retry, or the same sent again, has another
    }
    if message.expires is not None:
        left = max(message.expires - now, 0.0) + EXPIRY_GRACE
        found["expiration"] = str(min(int(left * 1000), (1 << 32) - 1))
    for name in _KNOWN:
        if name in given:
            found[name] = given[name]
    if len(str(found["correlation_id"]).encode()) > 255:
        del found["correlation_id"]
    return found


def decode(
    content: Content, redelivered: bool, exchange: str, key: str, queue: str, receipt: int
) -> Delivery:
    """The delivery of a message; `broken` says why where it can't be read.  Never raises."""
    body = bytes(content.body)
    headers: Any = {}
    try:
        found = codec.decode_properties(content.header)
        headers = found.pop("headers", None) or {}
        content_type = found.pop("content_type", None)
        if not content_type:
            raise TypeError("there is no content_type")
        if "task" not in headers:
            headers = headers | protocol_1_headers(body)
        deaths = headers.pop(DEATHS, 0)
        headers.pop("x-delivery-count", None)
        if str(headers.get("x-first-death-queue", "")).startswith("celery_delayed_"):
            headers = {name: value for name, value in headers.items() if not _is_death(name)}
            exchange, key = "", queue  # not the way through the delays
        id, task = headers.get("id"), headers.get("task")
        if type(id) is not str or not id or type(task) is not str or not task:
            raise TypeError(f"id and task must be text that is not empty, got {id!r:.80} and {task!r:.80}")
        if redelivered or deaths:
            headers["redelivered"] = True
        message = Message(
            id, task, body, headers, queue, found.get("priority"),
            content_type, found.pop("content_encoding", None) or "utf-8", exchange, key, found,
        )  # fmt: skip
        content.deaths = deaths if type(deaths) is int and deaths > 0 else 0
        return Delivery(message, receipt, content.deaths, raw=content)
    except (ValueError, TypeError, IndexError, AttributeError, struct.error) as error:
        reason = f"not a message: {error}"
    except RecursionError:
        reason = "nested too deeply"
    message = Message("", "", body, {}, queue, exchange=exchange, routing_key=key)
    for name in ("id", "task"):
        if isinstance(value := headers.get(name), str):
            setattr(message, name, value)
    return Delivery(message, receipt, broken=reason, raw=content)


def _is_death(name: str) -> bool:
    return name == "x-death" or name.startswith(("x-first-death-", "x-last-death-"))


def dead_letter_properties(delivery: Delivery, reason: str) -> dict[str, Any]:
    """The properties of a rejected message among the dead letters: its own, and why it is there."""
    message = delivery.message
    try:
        found = codec.decode_properties(delivery.raw.header)
    except (ValueError, IndexError, AttributeError, struct.error, RecursionError):
        found = {}
    found.pop("expiration", None)
    found.pop("message_id", None)  # moved back to its queue it is a message of its own
    found.pop("user_id", None)
    found["delivery_mode"] = _PERSISTENT
    added = {
        "x-rejected-reason": reason[:2000],
        "x-rejected-at": time.time(),
        "x-rejected-id": message.id[:10_000] or None,
        "x-rejected-task": message.task[:1000] or None,
    }
    found["headers"] = _fitting(found.get("headers") or {}) | added
    return found


def _fitting(headers: dict[str, Any]) -> dict[str, Any]:
    """`headers`, the largest left out where all would leave no room in a frame for what is added."""
    sizes = {name: len(codec.encode_table({name: value})) for name, value in headers.items()}
    while sum(sizes.values()) > _MOST_HEADERS:
        del sizes[max(sizes, key=sizes.__getitem__)]
    return {name: headers[name] for name in sizes}


def as_text(properties: dict[str, Any], body: bytes) -> bytes:
    """A message as JSON text, for people and for what keeps it elsewhere."""
    from base64 import b64encode

    return json.dumps(
        {"properties": properties, "body": b64encode(body).decode(), "body_encoding": "base64"}, default=repr
    ).encode()


def dead_letter(content: Content) -> DeadLetter:
    """What is kept among the dead letters."""
    try:
        found = codec.decode_properties(content.header)
    except (ValueError, IndexError):
        found = {}
    headers: dict[str, Any] = found.get("headers") or {}
    at = headers.get("x-rejected-at")
    return DeadLetter(
        reason=str(headers.get("x-rejected-reason") or "rejected"),
        rejected=float(at) if isinstance(at, (int, float)) else 0.0,
        raw=as_text(found, bytes(content.body)),
        id=headers.get("x-rejected-id"),
        task=headers.get("x-rejected-task"),
    )
