"""What is made on the server before it is used: queues, exchanges, bindings, delays.

**Delays.**  Celery's own topology for delayed delivery: 28 levels, each a topic exchange
``celery_delayed_<n>`` and a queue of that name in which a message stays 2^n seconds.  A
message is published to level 27 under its delay in seconds as 28 binary digits, joined by
dots, and its address: ``0.0.….1.0.1.celery``.  Where the digit of a level is 1 it goes
through the level's queue, where it is 0 past it; what leaves level 0 arrives at the
exchange ``celery_delayed_delivery``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from pika import spec

from minicelery.broker.amqp.link import Link
from minicelery.broker.topology import ExchangeSpec, QueueSpec

LEVELS = 28
LONGEST = (1 << LEVELS) - 1
"""Seconds a message can be delayed at once: eight and a half years."""
DELIVERY = "celery_delayed_delivery"
_ENTRY = f"celery_delayed_{LEVELS - 1}"
_ADDRESS_BYTES = 180
DEAD_LETTERS = 10_000
"""How many dead letters of a queue are kept."""


def queue_methods(queue: QueueSpec) -> list[Any]:
    """The methods that declare a queue, its exchanges and its bindings."""
    methods: list[Any] = []
    for exchange in dict.fromkeys(binding.exchange.name for binding in queue.bindings):
        found = next(binding.exchange for binding in queue.bindings if binding.exchange.name == exchange)
        methods += exchange_methods(found)
    if queue.declare:
        methods.append(
            spec.Queue.Declare(
                queue=queue.name,
                durable=queue.durable,
                exclusive=queue.exclusive,
                auto_delete=queue.auto_delete,
                arguments=dict(queue.arguments),
            )
        )
        methods += [
            spec.Queue.Bind(
                queue=queue.name,
                exchange=binding.exchange.name,
                routing_key=binding.key,
                arguments=dict(binding.arguments),
            )
            for binding in queue.bindings
            if binding.exchange.name
        ]
    return methods


def exchange_methods(exchange: ExchangeSpec) -> list[Any]:
    """The method that declares an exchange, if it is one that has to be."""
    if not exchange.name or not exchange.declare or exchange.name.startswith("amq."):
        return []
    return [
        spec.Exchange.Declare(
            exchange=exchange.name,
            type=exchange.type,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            arguments=dict(exchange.arguments),
        )
    ]


def ensure_queue(link: Link, queue: QueueSpec, end: float) -> None:
    """Declare a queue on this connection, once."""
    done = ("queue", queue.name)
    if done not in link.declared:
        link.call_all(queue_methods(queue), end=end)
        link.declared.add(done)


# -- delays ------------------------------------------------------------------------------------


def ensure_delays(link: Link, kind: str, end: float) -> None:
    """Declare the 28 levels on this connection, once; `kind` is their queues' type."""
    if "delays" in link.declared:
        return
    link.call_all(list(_delay_methods(kind)), end=end)
    link.declared.add("delays")


def _delay_methods(kind: str) -> Iterable[Any]:
    yield spec.Exchange.Declare(exchange=DELIVERY, type="topic", durable=True)
    for level in range(LEVELS):
        name = f"celery_delayed_{level}"
        onward = f"celery_delayed_{level - 1}" if level else DELIVERY
        arguments = {
            "x-queue-type": kind,
            "x-overflow": "reject-publish",
            "x-message-ttl": 2**level * 1000,
            "x-dead-letter-exchange": onward,
        }
        if kind == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
        others = "*." * (LEVELS - 1 - level)
        yield spec.Exchange.Declare(exchange=name, type="topic", durable=True)
        yield spec.Queue.Declare(queue=name, durable=True, arguments=arguments)
        yield spec.Queue.Bind(queue=name, exchange=name, routing_key=f"{others}1.#")
        yield spec.Exchange.Bind(destination=onward, source=name, routing_key=f"{others}0.#")


LOOK_FOR_DELAYS = spec.Exchange.Declare(exchange=DELIVERY, passive=True)
"""Refused with code 404 where nobody has delayed anything yet."""


def ensure_delayed_queue(link: Link, queue: QueueSpec, end: float) -> None:
    """Bind a queue, once on this connection, so that what was delayed for it arrives.

    By the queue's own name, and, for senders that name an exchange instead, through every
    exchange of its that is not direct.  Celery binds ``#.<key>`` for that, which also
    catches what was not delayed.
    """
    done = ("delayed", queue.name)
    if done in link.declared:
        return
    methods = [
        spec.Queue.Bind(queue=queue.name, exchange=DELIVERY, routing_key="*." * LEVELS + address(queue.name))
    ]
    for binding in queue.bindings:
        if not binding.exchange.name or binding.exchange.type == "direct":
            continue
        key = "*." * LEVELS + binding.key
        methods.append(
            spec.Exchange.Bind(destination=binding.exchange.name, source=DELIVERY, routing_key=key)
        )
        methods.append(spec.Queue.Bind(queue=queue.name, exchange=binding.exchange.name, routing_key=key))
    link.call_all(methods, end=end)
    link.declared.add(done)


def address(queue: str) -> str:
    """The end of a delayed message's routing key: the queue's name, or a digest of an odd one.

    A routing key has room for 255 bytes, and in a binding ``*`` and ``#`` have a meaning.
    """
    if len(queue.encode()) <= _ADDRESS_BYTES and not {"*", "#", ""} & set(queue.split(".")):
        return queue
    return f"minicelery-{hashlib.blake2b(queue.encode(), digest_size=16).hexdigest()}"


def delay_route(seconds: int, end_of_key: str) -> tuple[str, str]:
    """Exchange and routing key that keep a message back for that long."""
    return _ENTRY, ".".join(f"{min(seconds, LONGEST):0{LEVELS}b}") + f".{end_of_key}"


def dead_queue(queue: str) -> str:
    """The queue of the dead letters of `queue`."""
    return f"{address(queue) if len(queue.encode()) > 200 else queue}.dead"


def dead_queue_spec(queue: str) -> QueueSpec:
    """How it is declared."""
    return QueueSpec(dead_queue(queue), arguments={"x-max-length": DEAD_LETTERS, "x-overflow": "drop-head"})
