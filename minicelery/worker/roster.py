"""Who is there, who is to go, and who takes whose place: the children of a worker as numbers.

A child that is to go is replaced before: the new one is made ready while it still runs what it
has, stands by, and begins when it has gone.  So there is neither a gap, nor do more children
run tasks than were asked for.  A child that runs many tasks at once may be at one of them
for long: its successor begins as soon as the old one begins nothing more.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minicelery.worker.autoscale import Autoscaler
from minicelery.worker.board import Slot
from minicelery.worker.orders import STOP
from minicelery.worker.starting import GO

log = logging.getLogger("minicelery.worker.prefork")

GROWTH = 8
"""Children beyond the first number (or the maximum) for which the board has room."""
LINGERING = GROWTH
"""Children of many places that may be at their last tasks while others have taken their places."""
HEAVY_PAUSE = 10.0
HEAVY_PAUSE_MAX = 600.0
"""How long a child that was too big from its birth is kept, at first and at most."""


@dataclass(slots=True)
class Child:
    """A process, and the write end of its pipe of orders."""

    pid: int
    orders: int
    slot: Slot | None  # None: the agent
    born: float
    killed: str | None = None  # why the parent has killed it
    ready: float = 0.0  # when it said that it could begin; 0: not yet
    begun: bool = False  # it may fetch; else it stands by until another one has gone
    going: bool = False  # it leaves after its last tasks
    spent: bool = False  # … and has begun all of them
    heavy_until: float = 0.0  # it is over its memory limit, and to be relieved then; 0: it is not
    relieved: bool = False  # a child that takes its place is being made ready
    ended: dict[int, str] = field(default_factory=dict)  # the receipts of runs to be terminated, and how
    doomed: tuple[int, float] | None = None  # the receipt of one that must have ended, and by when
    unsent: dict[Any, bytes] = field(default_factory=dict)  # orders that its pipe has no room for yet

    @property
    def place(self) -> Slot:
        """The slot of what is no agent."""
        assert self.slot is not None
        return self.slot

    def order(self, order: bytes, key: Any = None) -> None:
        """Send an order; a process that is gone hears none.  One of the same key replaces it, until it is sent."""
        self.unsent[order if key is None else key] = order
        self.send()

    def send(self) -> None:
        """Send what can be sent now: a process may be long in reading its orders."""
        while self.unsent:
            key, order = next(iter(self.unsent.items()))
            try:
                os.write(self.orders, order)
            except BlockingIOError:
                return
            except OSError:
                self.unsent.clear()
                return
            del self.unsent[key]

    def leave(self) -> None:
        """Have it finish what it runs, and go."""
        self.going = True
        self.order(STOP)


class Roster:
    """The children of a worker, and how many there should be."""

    def __init__(self, concurrency: int, autoscaler: Autoscaler | None = None, lingering: int = 0) -> None:
        self.concurrency = concurrency
        self.lingering = lingering  # so many that leave need not have gone before others begin
        self.autoscaler = autoscaler
        self.most = max(concurrency, autoscaler.maximum if autoscaler is not None else 0) + GROWTH
        self.children: dict[int, Child] = {}  # by pid
        self._heavy_pause = 0.0

    def grow(self, number: int = 1) -> None:
        """Have `number` more children; raises ValueError where the board has no room for them."""
        if number < 1 or self.concurrency + number > self.most:
            raise ValueError(
                f"grow by {number}: this worker has {self.concurrency} children and room for {self.most}; "
                f"expected 1 or more, or start it with a greater concurrency"
            )
        self.concurrency += number
        if self.autoscaler is not None:
            self.autoscaler.maximum = max(self.autoscaler.maximum, self.concurrency)

    def shrink(self, number: int = 1) -> None:
        """Have `number` children less; idle ones go first, others after what they run.

        Raises ValueError where none would be left.
        """
        if number < 1 or self.concurrency - number < 1:
            raise ValueError(
                f"shrink by {number}: this worker has {self.concurrency} children, and one must stay"
            )
        self.concurrency -= number
        if self.autoscaler is not None:
            self.autoscaler.minimum = min(self.autoscaler.minimum, self.concurrency)
        self._dismiss(number)

    def rescale(self, minimum: int, maximum: int) -> None:
        """Have other bounds for the number of children.  Raises ValueError where there can't be so many."""
        scaler = self.autoscaler
        if scaler is None or not 1 <= minimum <= maximum <= self.most:
            raise ValueError(f"autoscale={maximum},{minimum}: expected 1 <= min <= max <= {self.most}")
        scaler.minimum, scaler.maximum = minimum, maximum
        surplus = self.concurrency - maximum
        self.concurrency = min(max(self.concurrency, minimum), maximum)
        if surplus > 0:
            self._dismiss(surplus)

    def _dismiss(self, number: int) -> None:
        """Have that many leave: those that stand by, then idle ones, the youngest first."""
        staying = [child for child in self.children.values() if not child.going]
        idle = set(map(id, self._idle()))
        staying.sort(key=lambda child: (child.begun, child.begun and id(child) not in idle, -child.born))
        for child in staying[:number]:
            child.leave()

    def _idle(self) -> list[Child]:
        """The children that may run more than they do."""
        entries = ((child, child.place.read()) for child in self._staying() if child.begun)
        return [child for child, entry in entries if entry.free or not entry.began]

    def missing(self) -> int:
        """How many are to be started, to take places or to stand by."""
        return self.concurrency - sum(1 for _ in self._staying())

    def _staying(self) -> Iterator[Child]:
        return (child for child in self.children.values() if not (child.going or child.relieved))

    def scale(self, depth: int) -> None:
        """Have as many as the work needs, where `depth` messages wait."""
        if self.autoscaler is None:
            return
        before, idle = self.concurrency, len(self._idle())
        size = self.autoscaler.decide(time.monotonic(), before, idle, depth)
        if size > before:
            log.info(
                "Autoscale: %d messages wait and none of %d children is idle: %d more",
                depth, before, size - before,
            )  # fmt: skip
        elif size < before:
            log.info("Autoscale: %d of %d children have been idle: %d less", idle, before, before - size)
        self.concurrency = size
        if size < before:
            self._dismiss(before - size)

    def choose_relieved(self, now: float) -> None:
        """One child at a time that has grown too big: two of its size at once may be too much."""
        if not any(
            child.relieved and (self.lingering or not child.going) for child in self.children.values()
        ):
            for child in self._staying():
                if 0 < child.heavy_until <= now:
                    child.relieved = True
                    return

    def open_gates(self) -> None:
        """Let as many begin as may run at once, and those leave for which another one is ready."""
        standing_by = [child for child in self.children.values() if not (child.begun or child.going)]
        standing_by.sort(key=lambda child: not child.ready)
        begun = [child for child in self.children.values() if child.begun]
        working = len(begun) - min(self.lingering, sum(child.spent for child in begun))
        if any(child.ready for child in standing_by):
            for child in self.children.values():
                if child.relieved and not child.going:
                    child.leave()
        for child in standing_by[: max(0, self.concurrency - working)]:
            child.begun = True
            child.order(GO)

    def note_heavy(self, child: Child, size: int, at_birth: int, limit: int) -> None:
        """A child is over its memory limit; one that was so before it had run anything stays for longer."""
        child.heavy_until = time.monotonic()
        if at_birth <= limit:
            self._heavy_pause = 0.0
            log.info("Child %d takes %d KiB, more than %d, and is replaced", child.pid, size, limit)
            return
        if not self._heavy_pause:
            log.warning(
                "Child %d took %d KiB before its first task, more than max_memory_per_child=%d allows, and so "
                "will each that replaces it: they are replaced no sooner than after %d s, then ever more "
                "slowly; give a limit well above %d",
                child.pid, at_birth, limit, HEAVY_PAUSE, at_birth,
            )  # fmt: skip
        self._heavy_pause = min(HEAVY_PAUSE_MAX, self._heavy_pause * 2 or HEAVY_PAUSE)
        child.heavy_until += self._heavy_pause
