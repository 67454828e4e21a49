"""What the tasks do, the same for every peer."""

from __future__ import annotations

import time

from counting import count


def noop() -> int:
    """Nothing; returns 1 because huey does not store None."""
    count()
    return 1


def spin(seconds: float) -> int:
    """Use `seconds` of this thread's CPU."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    count()
    return 1


def nap(seconds: float) -> int:
    """Hold a slot for `seconds` without using CPU."""
    time.sleep(seconds)
    count()
    return 1


def moment() -> float:
    """When it ran."""
    count()
    return time.time()


def since_last(moments: list[float]) -> float:
    """Seconds since the last of `moments`."""
    gap = time.time() - max(moments)
    count()
    return gap


def late(due: float) -> float:
    """Seconds since `due`."""
    lateness = time.time() - due
    count()
    return lateness
