"""Deliveries made by hand, and what an executor makes of them."""

from __future__ import annotations

import json
from typing import Any

from minicelery import Celery, Task, record
from minicelery.broker.redis.envelope import decode, encode
from minicelery.message import Delivery, Message, Outcome, decode_body, new_id
from minicelery.serialization import accepted
from minicelery.worker.executor import Executor

JSON = accepted(("json",))


def message_of(
    task: Task[..., Any], *args: Any, kwargs: dict[str, Any] | None = None, **options: Any
) -> Message:
    """The message that a call with these options would send."""
    sender = task.app._sender
    return sender.message(task.name, args, kwargs or {}, options, sender.defaults(task), new_id())


def delivery_of(
    task: Task[..., Any], *args: Any, kwargs: dict[str, Any] | None = None, **options: Any
) -> Delivery:
    """The delivery of such a message, by way of its bytes on Redis."""
    message = message_of(task, *args, kwargs=kwargs, **options)
    return decode(encode(message).encode(), message.queue, 1)


def run(task: Task[..., Any], *args: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> Outcome:
    return Executor(task.app, "w1@host").run(delivery_of(task, *args, kwargs=kwargs, **options))


def document(outcome: Outcome) -> dict[str, Any]:
    assert outcome.record is not None
    found: dict[str, Any] = json.loads(outcome.record.document)
    assert found["status"] == outcome.record.state
    return found


def error_of(outcome: Outcome) -> BaseException:
    assert outcome.record is not None
    error = record.decode(outcome.record.document)["result"]
    assert isinstance(error, BaseException)
    return error


def body_of(message: Message) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    return decode_body(message, JSON)


def never(app: Celery, **options: Any) -> Task[..., Any]:
    """A task that must not run."""

    @app.task(name="never", **options)
    def task(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it ran")

    return task
