"""What Celery 5.7 wrote on Redis and to RabbitMQ, captured once: what our own bytes are compared with."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_ORIGIN = re.compile(r'"gen\d+@[^"]+"')
_MOMENT = re.compile(r'"(eta|expires|date_done)": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}')
_BODY = re.compile(r'^\{"body": "([^"]*)"')


def load(name: str) -> Any:
    """The captured cases of `name`: messages, results or worker_messages."""
    return json.loads((DATA / f"celery_{name}_redis.json").read_text())


def messages() -> list[tuple[str, str, bytes]]:
    """Every captured message as `(case, key of the list, envelope)`."""
    return [
        (case, element["key"], element["raw"].encode())
        for case, elements in load("messages").items()
        for element in elements
    ]


@dataclass(frozen=True)
class Published:
    """One `basic.publish` as it went to RabbitMQ.

    `types` are the AMQP type letters of the headers, nested as the headers are, where they were noted.
    """

    exchange: str
    routing_key: str
    properties: dict[str, Any]  # those that were present, in AMQP's order, without the headers
    headers: dict[str, Any]
    body: bytes
    types: dict[str, Any] | None = None

    def text(self) -> str:
        """All of it as text, for `comparable`."""
        frame = [self.exchange, self.routing_key, self.properties, self.headers]
        return f"{self.body!r}\n{json.dumps(frame)}"


@dataclass(frozen=True)
class Sent:
    """What one call sent to RabbitMQ on a connection that had not seen its queue, or had."""

    published: list[Published]
    declared: list[tuple[str, dict[str, Any]]]  # `(method, arguments)`, e.g. queue.declare; mostly none


def amqp_messages() -> dict[str, Sent]:
    """What each captured call of a client sent to RabbitMQ, by the name of the case."""
    return _amqp("messages")


def amqp_worker_messages() -> dict[str, Sent]:
    """What a worker sent to RabbitMQ: a retry, the further steps of a chain, the body of a chord."""
    return _amqp("worker_messages")


def _amqp(kind: str) -> dict[str, Sent]:
    found = json.loads((DATA / "celery_messages_rabbitmq.json").read_text())[kind]
    return {
        case: Sent(
            [_published(**frame) for frame in sent["published"]],
            [(frame.pop("method"), frame) for frame in sent.get("declared", ())],
        )
        for case, sent in found.items()
    }


def _published(body: str | None = None, body_base64: str = "", **frame: Any) -> Published:
    return Published(**frame, body=base64.b64decode(body_base64) if body is None else body.encode())


def comparable(raw: str) -> str:
    """An envelope, a result document or a `Published.text()` with what differs each time made alike.

    Ids become U1, U2… in the order they appear, so equal ids stay equal; process names and
    the current time become constants; everything else, spaces and order too, stays.
    """
    if (found := _BODY.match(raw)) is not None:
        raw = f"{base64.b64decode(found[1])!r}\n{raw[found.end() :]}"
    seen: dict[str, str] = {}
    raw = _UUID.sub(lambda match: seen.setdefault(match[0], f"U{len(seen) + 1}"), raw)
    return _MOMENT.sub(r'"\1": "NOW', _ORIGIN.sub('"ORIGIN"', raw))
