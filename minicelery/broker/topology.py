"""Queues as a server of exchanges sees them: what is declared, and how it is bound.

Values only.  `minicelery.routing` makes them of an app's settings; the AMQP broker declares
them; brokers without exchanges need no more than the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minicelery.exceptions import QueueNotFound


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    """An exchange.  The one without a name is the server's own: it knows every queue by its name."""

    name: str = ""
    type: str = "direct"  # direct, topic, fanout, headers
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    declare: bool = True  # False: somebody else does


@dataclass(frozen=True, slots=True)
class BindingSpec:
    """An exchange that feeds a queue, and for which routing keys."""

    exchange: ExchangeSpec
    key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue and its bindings."""

    name: str
    bindings: tuple[BindingSpec, ...] = ()
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)  # x-max-priority, x-queue-type, …
    consumer_arguments: Mapping[str, Any] = field(default_factory=dict)
    declare: bool = True  # False: somebody else does
    no_ack: bool = False
    on_declared: Callable[[str, int, int], object] | None = field(default=None, compare=False)
    """Called with the name, the messages and the consumers that the server has answered."""

    @property
    def is_quorum(self) -> bool:
        """Whether it is replicated by consensus: no global prefetch, deliveries are counted."""
        return self.arguments.get("x-queue-type") == "quorum"


def plain_queue(name: str) -> QueueSpec:
    """A durable queue with a direct exchange of its own name, as Celery makes a queue it is not told about."""
    return QueueSpec(name, (BindingSpec(ExchangeSpec(name), name),))


ASIDE = ".paused"
"""What the names of queues end with in which messages of paused tasks wait."""


def aside(queue: str) -> str:
    """The queue where messages of paused tasks of `queue` wait."""
    return queue + ASIDE


def is_aside(queue: str) -> bool:
    """Whether messages of paused tasks wait there."""
    return queue.endswith(ASIDE)


def with_those_aside(spec_of: Callable[[str], QueueSpec]) -> Callable[[str], QueueSpec]:
    """The same, and a plain queue for what is put aside where unknown queues are refused."""

    def found(name: str) -> QueueSpec:
        try:
            return spec_of(name)
        except QueueNotFound:
            if not name.endswith(ASIDE):
                raise
            return plain_queue(name)

    return found
