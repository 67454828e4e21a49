"""Lamport's clock: numbers that order what several processes tell of."""

from __future__ import annotations

from typing import Any

LATEST = 2**53
"""Numbers of others above this are not believed: no clock gets there by counting."""


class Clock:
    """Counts what this process tells, and follows those that are ahead.

    Thread-safe but for this: two threads may get the same number.
    """

    __slots__ = ("_cell", "value")

    def __init__(self) -> None:
        self.value = 0
        self._cell: memoryview[int] | None = None

    def share(self, cell: memoryview[int]) -> None:
        """Go by the number in `cell` as well: memory that other processes share."""
        self._cell = cell

    def forward(self, count: int = 1) -> int:
        """The number of the next event, or of the last one of the next `count`."""
        value, cell = self.value, self._cell
        if cell is None:
            self.value = value = value + count
            return value
        if (theirs := cell[0]) > value:
            value = theirs
        self.value = cell[0] = value = value + count
        return value

    def adjust(self, other: Any) -> int:
        """Be later than `other`, which somebody else has told; what is no such number is passed over."""
        if type(other) is int and self.value < other <= LATEST:
            self.value = other
        return self.forward()

    def __repr__(self) -> str:
        return f"<Clock {self.value}>"
