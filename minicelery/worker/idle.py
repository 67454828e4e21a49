"""A consumer of no queue: of a worker all of whose queues were cancelled."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

from minicelery.broker import Leased
from minicelery.broker.post import Letter
from minicelery.message import Delivery, Outcome, Record


class IdleConsumer(Leased):
    """See `Consumer`.  It never holds anything."""

    renew = 60.0
    letters_dropped = 0

    def __init__(self, name: str, adopts: bool = True) -> None:
        self.name = name
        self.adopts = adopts
        self._woken = threading.Event()

    def swap(self, done: Sequence[Outcome], want: int, wait: float) -> list[Delivery]:
        """See `Consumer.swap`: nothing comes."""
        if want and wait:
            self._woken.wait(wait)
            self._woken.clear()
        return []

    def extend(self, held: Sequence[Delivery], records: Sequence[Record] = ()) -> None:
        """See `Consumer.extend`."""

    def adopt(self, name: str, started: Mapping[int, str] | None = None) -> list[Delivery]:
        """See `Consumer.adopt`."""
        return []

    def post(self, letters: Sequence[Letter]) -> None:
        """See `Consumer.post`: nothing runs that could be told of."""

    def skip(self, queues: Collection[str]) -> None:
        """See `Consumer.skip`: there is nothing to skip."""

    def wake(self) -> None:
        """See `Consumer.wake`."""
        self._woken.set()

    def close(self) -> None:
        """See `Consumer.close`."""
