"""Messages, outcomes and records for the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from minicelery.broker import Broker, Consumer
from minicelery.message import Delivery, Message, Outcome, Record, Verdict, new_id


def call(name: str | None = None, queue: str = "q", **fields: Any) -> Message:
    """A message as the application makes it; `name` becomes its id."""
    id = name if name is not None else new_id()
    headers = {"lang": "py", "task": "tasks.add", "id": id, "root_id": id, "retries": 0}
    body = fields.pop(
        "body", b'[[2, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
    )
    return Message(id, "tasks.add", body, headers, queue, routing_key=queue, **fields)


def record(id: str, state: str = "SUCCESS", result: object = 4, ttl: float | None = 60.0) -> Record:
    document = json.dumps({"status": state, "result": result, "task_id": id}).encode()
    return Record(id, document, state, ttl)


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def acked(deliveries: Iterable[Delivery]) -> list[Outcome]:
    return [Outcome(delivery) for delivery in deliveries]


def requeued(deliveries: Iterable[Delivery]) -> list[Outcome]:
    return [Outcome(delivery, Verdict.REQUEUE) for delivery in deliveries]


def serve(broker: Broker, *queues: str) -> None:
    """Tend the queues once, as a worker does: only a queue that is served has delays."""
    broker.tend(queues, [])


def drain(consumer: Consumer, limit: int = 1000) -> list[str]:
    """Fetch and acknowledge all there is; the ids in the order they came."""
    found: list[str] = []
    fresh: list[Delivery] = []
    while fresh := consumer.swap(acked(fresh), limit, 0):
        found += ids(fresh)
    return found
