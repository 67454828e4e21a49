"""How many runs of which task a worker has begun: its children count, and write it on the Board."""

from __future__ import annotations

import marshal
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minicelery.worker.board import Board, Slot
    from minicelery.worker.executor import Executor

EVERY = 0.1


class Tally:
    """One child's counts.  Those of the children that had its slot before are among them."""

    def __init__(self, slot: Slot, executor: Executor) -> None:
        self._slot = slot
        self._executor = executor
        self._before: Counter[str] = Counter(slot.tally.read() or {})
        self._shown = 0
        self._due = 0.0

    def look(self, now: float) -> None:
        """Show what has changed, ten times a second at most."""
        if now >= self._due:
            self._due = now + EVERY
            self.show()

    def show(self) -> None:
        """Write the counts on the Board, if they have changed."""
        counts = self._executor.begun()
        total = sum(counts.values())
        if total == self._shown:
            return
        self._shown = total
        found = (self._before + Counter(counts)).most_common()
        while not self._slot.tally.write(marshal.dumps(dict(found))):
            found = found[: len(found) // 2]  # of very many tasks those that run most


def total(board: Board) -> dict[str, int]:
    """The runs that all children of a worker have begun, by task."""
    found: Counter[str] = Counter()
    for slot in board.slots:
        found.update(slot.tally.read() or {})
    return dict(found)
