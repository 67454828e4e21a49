"""What real Celery does with a call: the exchange, the key, and what it declares for it."""

from __future__ import annotations

import contextlib
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from minicelery.broker.topology import QueueSpec

Settings = Callable[[Any], Mapping[str, Any]]
"""Settings made with the entities of one library: kombu's or ours."""


class Producer:
    """Takes down what Celery publishes."""

    def __init__(self) -> None:
        self.published: dict[str, Any] = {}
        self.connection = self

    @contextlib.contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        yield

    def publish(self, body: object, **options: Any) -> None:
        self.published = options


class Channel:
    """Takes down what kombu declares."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def exchange_declare(self, exchange: str, type: str, **options: Any) -> None:
        self.calls.append((
            "exchange", exchange, type, options["durable"], options["auto_delete"], options["arguments"] or {},
        ))  # fmt: skip

    def queue_declare(self, queue: str, **options: Any) -> tuple[str, int, int]:
        self.calls.append((
            "queue", queue, options["durable"], options["exclusive"], options["auto_delete"],
            options["arguments"] or {},
        ))  # fmt: skip
        return queue, 0, 0

    def queue_bind(self, queue: str, exchange: str, routing_key: str, arguments: Any, **_: Any) -> None:
        self.calls.append(("binding", queue, exchange, routing_key, arguments or {}))

    def prepare_queue_arguments(self, arguments: Any, **options: Any) -> Any:
        from kombu.transport.base import to_rabbitmq_queue_arguments

        return to_rabbitmq_queue_arguments(arguments, **options)


def declared_by_kombu(queue: Any) -> list[tuple[Any, ...]]:
    """Everything that declaring the queue asks of a server."""
    channel = Channel()
    queue.declare(channel=channel)
    return _in_order(channel.calls)


def declared_by_us(spec: QueueSpec) -> list[tuple[Any, ...]]:
    """The same of a spec."""
    if not spec.declare:
        return []
    calls: list[tuple[Any, ...]] = [
        ("queue", spec.name, spec.durable, spec.exclusive, spec.auto_delete, dict(spec.arguments))
    ]
    for binding in spec.bindings:
        made = binding.exchange
        if made.declare:
            calls.append(
                ("exchange", made.name, made.type, made.durable, made.auto_delete, dict(made.arguments))
            )
        calls.append(("binding", spec.name, made.name, binding.key, dict(binding.arguments)))
    return _in_order(calls)


def _in_order(calls: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted({repr(call): call for call in calls}.values(), key=repr)


def celery_app(settings: Settings) -> Any:
    """Celery's own app with the settings."""
    import celery
    import kombu
    from kombu.common import Broadcast

    library = types.SimpleNamespace(
        Queue=kombu.Queue, Exchange=kombu.Exchange, binding=kombu.binding, Broadcast=Broadcast
    )
    app = celery.Celery("oracle", broker="memory://", set_as_current=False)
    app.conf.update(settings(library))
    return app


def published_by_celery(
    app: Any, attributes: Mapping[str, Any] | None, name: str, args: Any, options: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Exchange, routing key, delivery mode, priority and serializer that the call is published with."""
    producer = Producer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of addresses as attributes of tasks
        if attributes is None:
            app.send_task(name, args, producer=producer, **options)
        else:
            app.tasks.pop(name, None)
            task = app.task(_body, name=name, shared=False, **attributes)
            task.apply_async(args, producer=producer, **options)
    got = producer.published
    mode = {"transient": 1, "persistent": 2}.get(got["delivery_mode"], got["delivery_mode"])
    exchange = getattr(got["exchange"], "name", got["exchange"])
    return exchange, got["routing_key"] or "", mode, got.get("priority"), got["serializer"]


def _body(*args: Any) -> None:
    """What the tasks run."""


# -- routers to name by their path ---------------------------------------------------------


def by_suffix(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
    """Sends what ends in `.slow` to a queue of its own, by name."""
    return "slow" if name.endswith(".slow") else None


def by_argument(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
    """Sends by the first argument; with priority 7 where the call names a queue."""
    if options.get("queue") is not None:
        return {"priority": 7, "queue": "not-this-one"}
    return {"queue": f"shard{args[0] % 3}"} if args and isinstance(args[0], int) else None


class OldRouter:
    """As before Celery 4."""

    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        return {"queue": "old", "routing_key": "old.key"} if re.match(r"old\.", task) else None


NOT_A_ROUTER = 5
