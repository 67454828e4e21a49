"""kombu's `Producer`, for libraries that put a function of their own around its `publish`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from minicelery import sending

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.message import Message

_publish: ContextVar[Callable[[], Any] | None] = ContextVar("minicelery_publish", default=None)


class Producer:
    """What publishes an app's calls.  It can't be made: messages of other kinds are kombu's."""

    connection: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "minicelery publishes calls of tasks only, by apply_async and send_task; "
            "for messages of your own install kombu"
        )

    def publish(self, body: Any = None, routing_key: str | None = None, **options: Any) -> Any:
        """Hand one message, or a batch of them, to the broker."""
        publish = _publish.get()
        if publish is None:
            raise RuntimeError("Producer.publish is called by minicelery itself; send calls by apply_async")
        return publish()


_plain = Producer.publish


def _around(app: Celery, messages: Sequence[Message], publish: Callable[[], Any]) -> Any:
    """Publish by way of whatever somebody has made of `Producer.publish`; a batch is one call, of its first."""
    if Producer.publish is _plain:
        return publish()
    producer = object.__new__(Producer)
    producer.connection = app.connection()
    first = messages[0]
    found: list[Any] = []

    def once() -> Any:
        found.append(publish())
        return found[0]

    token = _publish.set(once)
    try:
        producer.publish(
            first.body, routing_key=first.routing_key or first.queue, exchange=first.exchange,
            headers=first.headers, priority=first.priority, **first.properties,
        )  # fmt: skip
    finally:
        _publish.reset(token)
    return found[0] if found else publish()


def on_served() -> None:
    """From now on each publish looks whether somebody is around it."""
    sending.around_publish = _around
