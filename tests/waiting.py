"""Waiting for something to become true, with an end; and what is done in time, on a machine that may stand still."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, interval: float = 0.01) -> T:
    """The first truthy value of `predicate()`; AssertionError naming it after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        if value := predicate():
            return value
        if time.monotonic() > end:
            name = getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout} s: {name}, last value {value!r}")
        time.sleep(interval)


def within(seconds: float, act: Callable[[], T], rounds: int = 3) -> T:
    """What `act()` returns, in the first of `rounds` in which that took less; in the others the machine was busy."""
    took = []
    for _ in range(rounds):
        began = time.monotonic()
        found = act()
        took.append(time.monotonic() - began)
        if took[-1] < seconds:
            return found
    raise AssertionError(f"it took {', '.join(f'{one:.2f}' for one in took)} s, not less than {seconds}")
