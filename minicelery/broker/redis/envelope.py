"""A message as an element of a Redis list: kombu's JSON envelope.

::

    {"body": "<base64>", "content-encoding": "utf-8", "content-type": "application/json",
     "headers": {…}, "properties": {"correlation_id": …, "reply_to": …, "delivery_mode": 2,
     "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0,
     "body_encoding": "base64", "delivery_tag": "<uuid>"}}
"""

from __future__ import annotations

import json
from base64 import b64decode
from binascii import Error as Base64Error
from binascii import b2a_base64
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from minicelery.message import COUNT_HEADER, Delivery, Message, new_id, protocol_1_headers
from minicelery.serialization import compiled_encoder

_encode = compiled_encoder()
_decode = json.JSONDecoder().decode

SEPARATOR = "\x06\x16"
# kombu's steps: a priority is rounded down to one of 0, 3, 6, 9.
STEPS = ("0", "0", "0", "3", "3", "3", "6", "6", "6", "9")
_OURS = frozenset({"delivery_info", "priority", "body_encoding", "delivery_tag", "delivery_mode"})


def step_of(priority: Any) -> str:
    """The step whose list a message of that priority goes to."""
    if not priority:
        return "0"
    return STEPS[min(9, priority)] if isinstance(priority, int) and priority > 0 else "0"


def encode(message: Message, tag: str = "") -> str:
    """The message as envelope text; `tag` is its delivery tag, made here if there is none."""
    properties = message.properties
    reply_to = properties.get("reply_to")
    text = (
        f'{{"body": "{b2a_base64(message.body, newline=False).decode()}", '
        f'"content-encoding": {quote(message.content_encoding)}, "content-type": {quote(message.content_type)}, '
        f'"headers": {message.headers_text or _encode(message.headers)}, "properties": {{'
        f'"correlation_id": {quote(message.id)}, '
        f'"reply_to": {quote(reply_to) if type(reply_to) is str else _encode(reply_to)}, '
        f'"delivery_mode": 2, '
    )
    if len(properties) > 2:
        for key, value in properties.items():
            if key not in _OURS and key != "correlation_id" and key != "reply_to":
                text += f"{quote(key)}: {_encode(value)}, "
    redelivered = ', "redelivered": true' if message.headers.get("redelivered") else ""
    return (
        f'{text}"delivery_info": {{"exchange": {quote(message.exchange)}, "routing_key": {quote(message.routing_key if message.exchange else message.queue)}'
        f'{redelivered}}}, "priority": {message.priority or 0}, "body_encoding": "base64", '
        f'"delivery_tag": "{tag or new_id()}"}}}}'
    )


def decode(raw: bytes, queue: str, receipt: int) -> Delivery:
    """The delivery of an envelope; `broken` says why where it can't be read.  Never raises."""
    try:
        envelope = _decode(raw.decode())
        headers = envelope["headers"]
        properties = envelope["properties"]
        body = envelope["body"]
        content_type, encoding = envelope["content-type"], envelope.get("content-encoding") or "utf-8"
        if type(headers) is not dict or type(properties) is not dict:
            raise TypeError("headers and properties must be objects")
        if type(body) is not str or type(content_type) is not str or type(encoding) is not str:
            raise TypeError("body, content-type and content-encoding must be text")
        data = (
            b64decode(body, validate=True) if properties.get("body_encoding") == "base64" else body.encode()
        )
        if "task" not in headers:
            headers = protocol_1_headers(data)
        id, task = headers.get("id"), headers.get("task")
        if type(id) is not str or not id or type(task) is not str or not task:
            raise TypeError(f"id and task must be text that is not empty, got {id!r:.80} and {task!r:.80}")
        info = properties.get("delivery_info")
        message = Message(
            id, task, data, headers, queue, properties.get("priority"),
            content_type, encoding,
            (info.get("exchange") or "") if type(info) is dict else "", queue, properties,
        )  # fmt: skip
        died = headers.get(COUNT_HEADER)
        return Delivery(message, receipt, died if type(died) is int and died > 0 else 0)
    except RecursionError:
        reason = "nested too deeply"
    except Base64Error as error:
        reason = f"the body is not base64: {error}"
    except KeyError as error:
        reason = f"the envelope has no {error}"
    except (ValueError, TypeError, AttributeError) as error:
        reason = f"not a message: {error}"
    return Delivery(_unreadable(raw, queue), receipt, broken=reason)


def _unreadable(raw: bytes, queue: str) -> Message:
    """Whatever can be made out of an envelope that is no good: at most its id and task."""
    id = task = ""
    try:
        headers = _decode(raw.decode())["headers"]
        id, task = headers["id"], headers["task"]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return Message(id if type(id) is str else "", task if type(task) is str else "", raw, {}, queue)
