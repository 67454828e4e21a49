"""How large a worker is: options and settings as numbers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from minicelery.exceptions import ImproperlyConfigured
from minicelery.worker.loop import BATCH

MANY = ("threads", "asyncio")
"""The pools that run many tasks in one child."""
COROUTINES = 100
"""Tasks that the asyncio pool runs at once where no concurrency is given; enough for one process."""
UNLIMITED_BATCH = 64


def spread_of(pool: str, concurrency: int, processes: int | None) -> tuple[int, int]:
    """How many children a pool has, and how many tasks each of them runs at once."""
    if pool not in MANY:
        if processes is not None:
            raise ImproperlyConfigured(
                f"processes={processes}: the {pool} pool has one task for each process"
            )
        return concurrency, 1
    if processes is None:
        # One core can't serve them all; below that what they share in memory counts for more.
        processes = min(concurrency_of(None), max(1, concurrency // COROUTINES)) if pool == "asyncio" else 1
    if not 1 <= processes <= concurrency:
        raise ImproperlyConfigured(f"processes={processes}: expected 1 to {concurrency}, the concurrency")
    return processes, -(-concurrency // processes)


def scale_of(given: Sequence[int] | None, pool: str) -> tuple[int, int] | None:
    """`(least, most)` children; given, as in Celery, the most first."""
    if given is None:
        return None
    if pool != "prefork":
        raise ImproperlyConfigured(f"autoscale changes the number of children, which the {pool} pool has not")
    most, least = given
    if not 1 <= least <= most:
        raise ImproperlyConfigured(f"autoscale={most},{least}: expected MAX,MIN with 1 <= MIN <= MAX")
    return least, most


def concurrency_of(value: int | str | None) -> int:
    """How many tasks run at once: a number, or as many as the process may use CPUs."""
    if value is None or value == "auto":
        with contextlib.suppress(AttributeError):
            return max(1, min(len(os.sched_getaffinity(0)), _cpu_quota()))
        return os.cpu_count() or 1
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ImproperlyConfigured(f"concurrency={value!r}: expected a whole number of at least 1, or 'auto'")
    return number


def _cpu_quota() -> int:
    """CPUs that the control group allows, rounded up."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as limits:
            quota, period = limits.read().split()[:2]
        return sys.maxsize if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return sys.maxsize


def positive_of(value: int | None, option: str) -> int | None:
    """`value`, unless it is less than 1."""
    if value is not None and value < 1:
        raise ImproperlyConfigured(f"{option}={value!r}: expected a whole number of at least 1")
    return value


def batch_of(conf: Any, given: int | None) -> int:
    """The upper bound of a fetch: set to n, n per child; 0, many; not set, what measured best."""
    if given is None:
        if not conf.value_set_for("worker_prefetch_multiplier"):
            return BATCH
        given = conf.worker_prefetch_multiplier
    if given is None:
        return BATCH
    if given < 0:
        raise ImproperlyConfigured(f"prefetch_multiplier={given!r}: expected 0 (no bound) or more")
    return min(given, UNLIMITED_BATCH) or UNLIMITED_BATCH
