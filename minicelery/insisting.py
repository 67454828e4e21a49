"""Asking a result store once more that is away, as publishing does with a broker."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from minicelery.exceptions import BackendUnavailable

T = TypeVar("T")

STEP, LONGEST = 0.1, 1.0
"""Seconds by which the pauses grow, and that one takes at most; each is cut by up to a half, at random."""


def insist(ask: Callable[[], T], seconds: float, attempts: int | None = None) -> T:
    """What `ask` returns; it may be asked again.  Raises BackendUnavailable after `seconds`, or so many attempts.

    Inside of a task None is right: its run is worth more than the wait.
    """
    end = time.monotonic() + seconds
    attempt = 0
    while True:
        try:
            return ask()
        except BackendUnavailable:
            attempt += 1
            pause = random.uniform(0.5, 1.0) * min(LONGEST, STEP * attempt)
            if attempt == attempts or time.monotonic() + pause >= end:
                raise
        time.sleep(pause)
