"""Whether a binding brings a message to its queue: what AMQP's exchanges do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from minicelery.broker.topology import BindingSpec, QueueSpec
from minicelery.exceptions import ImproperlyConfigured


def is_bound(queue: QueueSpec, exchange: str, key: str, headers: Mapping[str, Any]) -> bool:
    """Whether one of the queue's bindings brings a message there that is published to `exchange`."""
    return any(
        binding.exchange.name == exchange and matches(binding, key, headers) for binding in queue.bindings
    )


def matches(binding: BindingSpec, key: str, headers: Mapping[str, Any]) -> bool:
    """Whether the binding takes a message that has reached its exchange."""
    kind = binding.exchange.type
    if kind == "direct":
        return binding.key == key
    if kind == "topic":
        return topic_matches(binding.key, key)
    if kind == "fanout":
        return True
    if kind == "headers":
        return headers_match(binding.arguments, headers)
    raise ImproperlyConfigured(
        f"exchange {binding.exchange.name!r} is of the type {kind!r}, which needs a broker with exchanges; "
        "this one can do direct, topic, fanout and headers"
    )


@lru_cache(1024)
def topic_matches(pattern: str, key: str) -> bool:
    """Whether words between dots match: ``*`` stands for one word, ``#`` for any number, also none."""
    words = key.split(".") if key else []
    reached = {0}  # how many words what has been read of the pattern may stand for
    for part in pattern.split(".") if pattern else ():
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
        if not reached:
            return False
    return len(words) in reached


def headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Whether all of a binding's headers are there, or any of them with ``x-match: any``."""
    wanted = [
        name in headers and (value is None or headers[name] == value)
        for name, value in arguments.items()
        if not name.startswith("x-")
    ]
    return any(wanted) if arguments.get("x-match") in ("any", "any-with-x") else all(wanted)
