"""Deliveries under which a run has died before, in a child that runs many tasks at once.

Such a one may kill its process again, and all that runs beside it would go with it.  So it
begins alone where that is possible soon, and for a moment nothing else begins; but a long
task, be it this one or a neighbour, holds nobody up for longer than that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection

from minicelery.message import Delivery

ALONE = 0.5
"""Seconds that others wait at most until a suspect begins, that they wait after it has begun, and
that the next suspect leaves to them."""


class Suspects:
    """Those that wait for their turn, and the one that has it.  For one thread."""

    def __init__(self) -> None:
        self.waiting: deque[Delivery] = deque()
        self.running: int | None = None  # the receipt of the one that runs while others wait
        self._since = 0.0  # when the others began to wait, for it to begin or while it runs
        self._rest = 0.0  # until then it is the others' turn

    def alone(self, running: Collection[int]) -> bool:
        """Whether nothing else may begin now; `running`: the receipts of what runs."""
        now = time.monotonic()
        if self.running is not None:
            if self.running in running and now - self._since < ALONE:
                return True
            self.running, self._since, self._rest = None, 0.0, now + ALONE
        if not self.waiting or now < self._rest:
            return False
        self._since = self._since or now
        return True

    def leave_no_rest(self) -> None:
        """Nobody else wants a turn."""
        self._rest = 0.0

    def next(self, running: Collection[int]) -> Delivery | None:
        """The one whose turn it is: nothing else runs, or it has waited long enough for that."""
        now = time.monotonic()
        if not self.waiting or self.running is not None or now < self._rest:
            return None
        self._since = self._since or now
        if running and now - self._since < ALONE:
            return None
        suspect = self.waiting.popleft()
        self.running, self._since = suspect.receipt, now
        return suspect
