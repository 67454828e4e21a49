"""What an event is: the fields of every type, in Celery's order, and the letter it travels in."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

from minicelery.broker.post import Letter
from minicelery.exceptions import EncodeError
from minicelery.message import Message

EXCHANGE = "celeryev"
"""Celery's name for where events go."""
SOFTWARE = "minicelery"

_WORKER = ("freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")
_CALL = ("uuid", "name", "args", "kwargs", "root_id", "parent_id", "retries", "eta", "expires")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "worker-online": _WORKER,
    "worker-heartbeat": _WORKER,
    "worker-offline": _WORKER,
    "task-sent": (
        "uuid", "root_id", "parent_id", "name", "args", "kwargs", "retries", "eta", "expires",
        "queue", "exchange", "routing_key",
    ),
    "task-received": _CALL,
    "task-started": ("uuid",),
    "task-succeeded": ("uuid", "result", "runtime"),
    "task-failed": ("uuid", "exception", "traceback"),
    "task-retried": ("uuid", "exception", "traceback"),
    "task-revoked": ("uuid", "terminated", "signum", "expired"),
    "task-rejected": ("uuid", "requeue"),
}  # fmt: skip
"""The fields of each type, after those that all have and before `timestamp` and `type`."""


def event(
    type: str, fields: Mapping[str, Any], *, hostname: str, pid: int, clock: int | None
) -> dict[str, Any]:
    """An event of now, its fields in Celery's order."""
    found: dict[str, Any] = {"hostname": hostname, "utcoffset": utcoffset(), "pid": pid, "clock": clock}
    found.update(fields)
    found.setdefault("timestamp", time.time())
    found["type"] = type
    return found


def sent(message: Message) -> dict[str, Any]:
    """The fields of `task-sent`, of a message that is on its way."""
    header = message.headers.get
    return {
        "uuid": message.id, "root_id": header("root_id"), "parent_id": header("parent_id"), "name": message.task,
        "args": header("argsrepr"), "kwargs": header("kwargsrepr"), "retries": header("retries") or 0,
        "eta": header("eta"), "expires": header("expires"), "queue": message.queue,
        "exchange": message.exchange, "routing_key": message.routing_key or message.queue,
    }  # fmt: skip


def letter(exchange: str, key: str, hostname: str, body: bytes) -> Letter:
    """The letter of an event, or of several; `key` is their type, or ``task-multi``."""
    return Letter(exchange, key.replace("-", "."), body, {"hostname": hostname})


def encoded(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bytes:
    """An event, or several, as JSON.  Raises EncodeError naming the field that JSON can't carry."""
    try:
        return json.dumps(value, default=_as_json).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"an event can't be written as JSON: {error}; give it plain data") from error


def software() -> dict[str, str]:
    """Which program it is that tells, on which system."""
    from minicelery import __version__

    return {"sw_ident": SOFTWARE, "sw_ver": __version__, "sw_sys": platform.system()}


def utcoffset() -> float:
    """Hours that the local time is west of UTC."""
    return (time.altzone if time.localtime().tm_isdst > 0 else time.timezone) / 3600


def _as_json(value: Any) -> Any:
    for method in ("__json__", "isoformat"):
        if callable(found := getattr(value, method, None)):
            return found()
    raise TypeError(f"{value!r:.80} is of type {type(value).__name__}")
