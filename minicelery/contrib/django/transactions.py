"""Whether a transaction is open in this thread."""

from __future__ import annotations

from typing import Any

from django.db import connections


def open_transaction() -> str | None:
    """The alias of a database with an `atomic` block open; those of Django's `TestCase` don't count."""
    return next((one.alias for one in connections.all(initialized_only=True) if within(one)), None)


def within(connection: Any) -> bool:
    """Whether an `atomic` block is open on it that is not one of Django's `TestCase`."""
    if not connection.in_atomic_block:
        return False
    blocks = getattr(connection, "atomic_blocks", None)
    return blocks is None or not all(getattr(block, "_from_testcase", False) for block in blocks)
