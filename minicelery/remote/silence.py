"""What can be told where no worker has answered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import OperationalError

if TYPE_CHECKING:
    from minicelery.app import Celery

PRESENCE = "workers"
"""The topic under which workers note in the broker that they are there, with the time."""
PRESENT_FOR = 7 * 86400.0
FRESH = 150.0
"""Seconds since its last note after which a worker is taken to have gone."""
MAY_BE = "may have died, be held up in code that lets no other thread run, or have worker_enable_remote_control off"


def no_answer(app: Celery) -> str:
    """What was checked, in lines, and what to do: the broker, the queues, who was there last."""
    broker: Any = app.broker
    queues = list(app._sender.router.queues)[:10]
    try:
        waiting = ", ".join(f"{broker.size(queue)} wait in {queue!r}" for queue in queues)
        if getattr(broker, "has_cheap_notes", True):
            told = _last_seen(broker.recall(PRESENCE)) or "no worker was there in the last week"
        else:
            told = _served(sum(map(broker.consumers, queues)))
    except OperationalError as error:
        return f"the broker can't be reached: {error}"
    return "\n".join(
        (
            f"the broker {broker.url} answers; {waiting}",
            told,
            "start one with: minicelery worker; or ask with the app and the broker that the workers have",
        )
    )


def _served(consumers: int) -> str:
    if not consumers:
        return "no worker consumes from there"
    return f"{consumers} {'consumer is' if consumers == 1 else 'consumers are'} there: their workers {MAY_BE}"


def _last_seen(seen: Mapping[str, bytes]) -> str | None:
    now = time.time()
    fresh: list[tuple[float, str, bool]] = []
    gone: list[tuple[float, str, bool]] = []
    for node, text in seen.items():
        at, _, end = text.partition(b" ")
        if at.isdigit() and len(at) < 15:
            age = max(0.0, now - int(at))
            (fresh if age < FRESH and not end else gone).append((age, node, bool(end)))
    if fresh:
        names = ", ".join(node for _, node, _ in sorted(fresh)[:10])
        return f"{names} gave a sign of life lately, and {MAY_BE}"
    if gone:
        age, node, stopped = min(gone)
        return f"the last worker, {node}, {'stopped' if stopped else 'was there'} {_span(age)} ago"
    return None


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
