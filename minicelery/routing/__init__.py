"""Where a call goes: queues, exchanges, and the way from a task's name to one of them."""

from __future__ import annotations

from minicelery.routing.queues import Broadcast, Exchange, Queue, binding, worker_direct
from minicelery.routing.router import Route, Router

__all__ = ["Broadcast", "Exchange", "Queue", "Route", "Router", "binding", "worker_direct"]
