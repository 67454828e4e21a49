"""How many children a pool should have, from how many are idle and how many messages wait."""

from __future__ import annotations

import os
from collections import deque

from minicelery.exceptions import ImproperlyConfigured

KEEPALIVE = 30.0
"""Seconds that a child more than needed is kept, unless AUTOSCALE_KEEPALIVE says otherwise."""


class Autoscaler:
    """Decides, about once a second, on the size of a pool between `minimum` and `maximum`.

    It grows at once where messages wait and nobody is idle: to twice its size, but by no more
    than there are messages.  It shrinks by one where over all of the last `keepalive` seconds
    at least one child was idle.
    """

    def __init__(self, minimum: int, maximum: int, keepalive: float = KEEPALIVE) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.keepalive = keepalive
        self._since = 0.0  # when the first look was that counts; 0: there was none
        self._idle: deque[tuple[float, int]] = deque()  # when, and how many were idle

    def decide(self, now: float, size: int, idle: int, depth: int) -> int:
        """The size that a pool of `size` children should have, `idle` of which do nothing, while
        `depth` messages wait in its queues.
        """
        if depth > 0 and idle == 0:
            self._forget()
            return max(size, min(self.maximum, max(2 * size, 1), size + depth))
        if not self._since:
            self._since = now
        looks = self._idle
        looks.append((now, idle))
        while looks[0][0] < now - self.keepalive:
            looks.popleft()
        long_enough = now - self._since >= self.keepalive
        if not long_enough or size <= self.minimum or min(idle for _, idle in looks) == 0:
            return size
        # One of them goes: with it gone, all these looks would have seen one less.
        self._idle = deque((when, idle - 1) for when, idle in looks)
        return size - 1

    def _forget(self) -> None:
        self._since = 0.0
        self._idle.clear()


def keepalive_of(environ: os._Environ[str] | dict[str, str] = os.environ) -> float:
    """Seconds that a child more than needed is kept; raises ImproperlyConfigured."""
    text = environ.get("AUTOSCALE_KEEPALIVE", "")
    try:
        seconds = float(text) if text else KEEPALIVE
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ImproperlyConfigured(f"AUTOSCALE_KEEPALIVE={text!r}: expected a number of seconds above 0")
    return seconds
