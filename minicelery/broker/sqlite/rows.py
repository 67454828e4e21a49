"""Messages as rows of the table `messages`, and back."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from typing import Any

from minicelery.exceptions import DecodeError, EncodeError
from minicelery.message import TURN_HEADER, Delivery, Message
from minicelery.serialization import decode_json, encode_json

ADD = (
    "INSERT INTO messages (queue, priority, due, message_id, task, envelope, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
"""Adds a row."""


def rows_of(messages: Iterable[Message]) -> list[tuple[Any, ...]]:
    """A row for each; see `row_of`."""
    now = time.time()
    return [row_of(message, now) for message in messages]


def row_of(message: Message, now: float = 0.0) -> tuple[Any, ...]:
    """Queue, priority, due (None: now), id, task, envelope and body.  Raises EncodeError."""
    due = message.due
    return (
        _text(message.queue),
        message.priority or 0,
        due if due is not None and due > now else None,
        _text(message.id),
        _text(message.task),
        encode_json(
            [
                message.headers,
                message.properties,
                message.content_type,
                message.content_encoding,
                message.exchange,
                message.routing_key,
                message.expires,
            ]
        ),
        message.body,
    )


def message_of(queue: str, priority: int, id: str, task: str, envelope: str, body: bytes) -> Message:
    """The message of a row.  Raises DecodeError, ValueError or TypeError where that can't be read."""
    headers, properties, content_type, encoding, exchange, routing_key, expires = decode_json(envelope)
    if type(headers) is not dict or type(properties) is not dict:
        raise ValueError("headers and properties must be objects")
    return Message(
        id, task, body, headers, queue, priority, content_type, encoding, exchange, routing_key, properties,
        None, expires,
    )  # fmt: skip


def delivery_of(row: tuple[Any, ...]) -> Delivery:
    """The delivery of a row that a consumer holds; `broken` says why where it can't be read."""
    receipt, queue, priority, id, task, envelope, body, deliveries, started, reason, turn, revoked = row
    broken = None
    try:
        message = message_of(queue, priority, id, task, envelope, body)
    except (DecodeError, ValueError, TypeError) as error:
        broken = f"the stored envelope can't be read: {error}"
        message = Message(id, task, body, {}, queue, priority)
    if started or deliveries:
        message.headers["redelivered"] = True
    if turn is not None:
        message.headers[TURN_HEADER] = turn
    return Delivery(message, receipt, deliveries, bool(started), reason, bool(revoked), broken)


def raw(envelope: str, body: bytes) -> bytes:
    """What is kept of a dead letter's message, as one JSON document."""
    return f'{{"envelope": {envelope}, "body": "{base64.b64encode(body).decode()}"}}'.encode()


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise EncodeError(f"{value!r} can't be stored as UTF-8: {error}") from error
    return value
