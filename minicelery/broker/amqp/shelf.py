"""What has arrived at a consumer and has not been handed out."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence

from minicelery.exceptions import InvalidTaskError
from minicelery.message import Delivery, parse_time

SOON = 1.0
"""Seconds before its time that a message leaves the delays, which know whole seconds only."""


class Shelf:
    """Deliveries by queue, in the order they came; what is not due yet waits for its time."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._lanes: dict[str, deque[Delivery]] = {queue: deque() for queue in queues}
        self._turn = deque(queues)
        self._early: list[tuple[float, int, Delivery]] = []  # a heap
        self._arrivals = itertools.count()

    @property
    def ready(self) -> int:
        """How many could be handed out, as far as is known."""
        return sum(map(len, self._lanes.values()))

    @property
    def next_due(self) -> float | None:
        """When the first of those comes that are not due yet; unix seconds."""
        return self._early[0][0] if self._early else None

    def put(self, delivery: Delivery) -> None:
        """It has arrived."""
        due = _due(delivery)
        if due is not None and due > time.time():
            heapq.heappush(self._early, (due, next(self._arrivals), delivery))
        else:
            self._lanes[delivery.message.queue].append(delivery)

    def take(self, want: int) -> list[Delivery]:
        """Up to `want` of what is due; the queues take turns."""
        early, turn = self._early, self._turn
        if early:
            now = time.time()
            while early and early[0][0] <= now:
                delivery = heapq.heappop(early)[2]
                self._lanes[delivery.message.queue].append(delivery)
        found: list[Delivery] = []
        turn.rotate(-1)
        idle = 0
        while len(found) < want and idle < len(turn):
            lane = self._lanes[turn[0]]
            if len(turn) > 1:
                turn.rotate(-1)
            if lane:
                idle = 0
                found.append(lane.popleft())
            else:
                idle += 1
        return found

    def turns(self) -> Iterator[str]:
        """Every queue once; who stops at one has the next one first the next time."""
        for queue in list(self._turn):
            self._turn.rotate(-1)
            yield queue

    def clear(self) -> list[Delivery]:
        """Empty it; what was there."""
        found = [delivery for lane in self._lanes.values() for delivery in lane]
        found += [delivery for _, _, delivery in self._early]
        for lane in self._lanes.values():
            lane.clear()
        self._early.clear()
        return found


def _due(delivery: Delivery) -> float | None:
    """When a message is due, if that is soon; what is later goes back to the delays."""
    eta = delivery.message.headers.get("eta")
    if eta is None or delivery.broken is not None:
        return None
    try:
        due = parse_time(eta, "eta")
    except InvalidTaskError:  # the executor says so
        return None
    # A time without a zone is read by the executor, which knows the app's.
    aware = eta.endswith("Z") or "+" in eta[10:] or "-" in eta[10:]
    return due if aware and due - time.time() < SOON else None
