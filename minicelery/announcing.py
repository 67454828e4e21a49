"""Telling the receivers of `before_task_publish` and its companions what is sent."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import record, serialization, signals, states
from minicelery.exceptions import BackendUnavailable, MiniCeleryError, OperationalError
from minicelery.message import Message

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)


def before(app: Celery, message: Message, options: Mapping[str, Any]) -> None:
    """Send `before_task_publish`; what a receiver changes in body, headers or properties is sent so."""
    body = _decoded(message)
    plain = isinstance(body, bytes)
    properties = dict(message.properties)
    if message.priority is not None:
        properties["priority"] = message.priority
    signals.before_task_publish.send(
        sender=message.task,
        body=body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        headers=message.headers,
        properties=properties,
        declare=app._sender.router.to_declare(message.queue),
        retry_policy={**app.conf.task_publish_retry_policy, **(options.get("retry_policy") or {})},
    )
    message.headers_text = ""
    message.priority = properties.get("priority")
    message.properties = {key: value for key, value in properties.items() if key != "priority"}
    if not plain:
        _encode(message, body)


def after(message: Message) -> None:
    """Send `after_task_publish`, and Celery's older `task_sent`."""
    headers = message.headers
    body = _decoded(message)
    if signals.after_task_publish.receivers:
        signals.after_task_publish.send(
            sender=message.task,
            body=body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            headers=headers,
        )
    if signals.task_sent.receivers:
        args, kwargs = (body[0], body[1]) if isinstance(body, (list, tuple)) else (None, None)
        signals.task_sent.send(
            sender=message.task, task_id=message.id, task=message.task, args=args, kwargs=kwargs,
            eta=headers.get("eta"), taskset=headers.get("group"),
        )  # fmt: skip


def note_sent(app: Celery, messages: Sequence[Message]) -> None:
    """Store PENDING of each, before it is sent: a worker's record comes later, so this one replaces none.

    A result store that is away stops nobody from sending; that is logged.
    """
    conf = app.conf
    records = [
        record.encode(
            message.id, states.PENDING, None, serializer=conf.result_serializer, ttl=conf.result_expires, zone=conf.zone()
        )
        for message in messages
        if not message.headers.get("ignore_result")
    ]  # fmt: skip
    try:
        app.backend.store(records)
    except (BackendUnavailable, OperationalError) as error:
        log.warning("that %d tasks are sent is not stored: %s", len(records), error)


def tell(app: Celery, messages: Sequence[Message]) -> None:
    """Send the event `task-sent` of each; that it can't be is logged: the tasks have been sent."""
    try:
        app.broker.post.send(app.events.sent_letters(messages))
    except OperationalError as error:
        log.warning("no event tells that %d tasks have been sent: %s", len(messages), error)


def both(app: Celery, message: Message) -> None:
    """Announce a message that leaves with an outcome: a retry, a link, a step of a chain."""
    if signals.before_task_publish.receivers:
        before(app, message, {})
    if signals.after_task_publish.receivers or signals.task_sent.receivers:
        after(message)


def _decoded(message: Message) -> Any:
    """The body as a list of arguments, keywords and links; bytes where it can't be read back here."""
    try:
        body = message.body
        if (compression := message.headers.get("compression")) is not None:
            body = serialization.decompress(body, compression)
        return serialization.loads(
            body, message.content_type, message.content_encoding, frozenset({message.content_type})
        )
    except MiniCeleryError:
        return message.body


def _encode(message: Message, body: Any) -> None:
    names = {kind: name for name, kind in serialization.CONTENT_TYPES.items()}
    data, _, _ = serialization.dumps(body, names[message.content_type])
    if (compression := message.headers.get("compression")) is not None:
        data, _ = serialization.compress(data, compression)
    message.body = data
