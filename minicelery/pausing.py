"""Queues and tasks that are paused: records in the broker, which every worker obeys within two seconds.

A paused queue keeps its messages.  Messages of a paused task leave their queue, so that others are
not held up, for one of their own, and come back when the task is resumed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from minicelery.broker import Broker
from minicelery.broker.topology import aside

__all__ = ["Paused", "aside", "pause", "paused_in", "read_paused", "renew", "resume"]

TOPIC = "paused"
FOREVER = 10 * 365 * 86400.0
"""Seconds for which a record is kept."""
RENEWED = 7 * 86400.0
"""Seconds after which workers write a record anew: RabbitMQ keeps them for a month."""


@dataclass(frozen=True, slots=True)
class Paused:
    """What is paused, and what has ever been."""

    queues: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    known_tasks: bool = False  # some task is paused, or was: its messages may be put aside
    resumed_tasks: bool = False  # some task was paused, and goes on: they are to come back
    old: tuple[str, ...] = ()  # keys of records that are to be written anew


def pause(broker: Broker, *, queues: Iterable[str] = (), tasks: Iterable[str] = ()) -> None:
    """Have no worker fetch from `queues`, nor run `tasks`, until `resume`.  Raises OperationalError."""
    _write(broker, "paused", queues, tasks)


def resume(broker: Broker, *, queues: Iterable[str] = (), tasks: Iterable[str] = ()) -> None:
    """Have workers fetch from `queues` and run `tasks` again.  Raises OperationalError."""
    _write(broker, "resumed", queues, tasks)


def read_paused(broker: Broker) -> Paused:
    """What is paused now; asks the broker."""
    return paused_in(broker.recall(TOPIC))


def paused_in(records: dict[str, bytes]) -> Paused:
    """What the records of the topic say; those that can't be read say nothing."""
    found: dict[str, set[str]] = {"queue": set(), "task": set()}
    known_tasks, resumed, old, now = False, False, [], time.time()
    for key, value in records.items():
        kind, _, name = key.partition(":")
        try:
            said: Any = json.loads(value)
            state, at = said["state"], float(said["at"])
        except (ValueError, TypeError, KeyError):
            continue
        if kind not in found or not name:
            continue
        known_tasks = known_tasks or kind == "task"
        if state == "paused":
            found[kind].add(name)
            if now - at > RENEWED:
                old.append(key)
        else:
            resumed = resumed or kind == "task"
    return Paused(frozenset(found["queue"]), frozenset(found["task"]), known_tasks, resumed, tuple(old))


def renew(broker: Broker, keys: Iterable[str]) -> None:
    """Write records of what is paused anew.  Raises OperationalError."""
    broker.remember_all(TOPIC, dict.fromkeys(keys, _value("paused")), FOREVER)


def _write(broker: Broker, state: str, queues: Iterable[str], tasks: Iterable[str]) -> None:
    keys = [f"queue:{name}" for name in queues] + [f"task:{name}" for name in tasks]
    if keys:
        broker.remember_all(TOPIC, dict.fromkeys(keys, _value(state)), FOREVER)


def _value(state: str) -> bytes:
    return json.dumps({"state": state, "at": round(time.time(), 3)}).encode()
