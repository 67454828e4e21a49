"""minicelery: Celery's API and wire format on a smaller, faster engine.

>>> from minicelery import Celery
>>> app = Celery("tasks", broker="sqlite:///queue.db", backend="sqlite:///queue.db")
>>> @app.task
... def add(x, y):
...     return x + y
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Broadcast",
    "Celery",
    "Exchange",
    "Queue",
    "Signature",
    "Task",
    "binding",
    "bugreport",
    "chain",
    "chord",
    "chunks",
    "current_app",
    "current_task",
    "group",
    "install_as_celery",
    "maybe_signature",
    "shared_task",
    "signature",
    "uuid",
    "xmap",
    "xstarmap",
]

_HOMES = {
    "Celery": "minicelery.app",
    "bugreport": "minicelery.app",
    "shared_task": "minicelery.registry",
    "Signature": "minicelery.canvas",
    "chain": "minicelery.canvas",
    "chord": "minicelery.canvas",
    "chunks": "minicelery.canvas",
    "group": "minicelery.canvas",
    "maybe_signature": "minicelery.canvas",
    "signature": "minicelery.canvas",
    "xmap": "minicelery.canvas",
    "xstarmap": "minicelery.canvas",
    "Task": "minicelery.task",
    "current_app": "minicelery._state",
    "current_task": "minicelery._state",
    "uuid": "minicelery.message",
    "install_as_celery": "minicelery.alias",
    "Broadcast": "minicelery.routing",
    "Exchange": "minicelery.routing",
    "Queue": "minicelery.routing",
    "binding": "minicelery.routing",
}

if TYPE_CHECKING:
    from minicelery._state import current_app, current_task
    from minicelery.alias import install_as_celery
    from minicelery.app import Celery, bugreport
    from minicelery.canvas import (
        Signature,
        chain,
        chord,
        chunks,
        group,
        maybe_signature,
        signature,
        xmap,
        xstarmap,
    )
    from minicelery.message import uuid
    from minicelery.registry import shared_task
    from minicelery.routing import Broadcast, Exchange, Queue, binding
    from minicelery.task import Task


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'minicelery' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
