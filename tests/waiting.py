"""Waiting for something to become true, with an end."""

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
