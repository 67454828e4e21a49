"""Counts finished tasks in a file shared with the harness, so that no-op tasks stay off Redis."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading

SLOTS = 1024

_mine = threading.local()


def count(tasks: int = 1) -> None:
    """Add to this thread's own slot; about 0.1 µs."""
    try:
        slot = _mine.slot
    except AttributeError:
        slot = _mine.slot = _claim_slot()
    slot[0] += tasks


def _claim_slot() -> memoryview:
    with open(os.environ["BENCH_COUNTS"], "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        slots = memoryview(mmap.mmap(file.fileno(), SLOTS * 8)).cast("q")
        slots[0] += 1
        mine = slots[0]
        fcntl.flock(file, fcntl.LOCK_UN)  # closing does not unlock: mmap keeps a copy of the descriptor
    return slots[mine : mine + 1]
