"""Where events go: Celery's `events.event`."""

from __future__ import annotations

from typing import Any

from minicelery.routing import Exchange

EVENTS = "celeryev"

event_exchange = Exchange(EVENTS, "topic")


def get_exchange(conn: Any, name: str = EVENTS) -> Exchange:
    """The exchange of events; on Redis it is a fanout, as kombu has it there."""
    kind = "fanout" if conn.transport.driver_type in ("redis", "sqlite", "memory") else "topic"
    return Exchange(name, kind)


def group_from(type: str) -> str:
    """``task`` of ``task-sent``."""
    return type.partition("-")[0]
