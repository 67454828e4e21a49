"""Pauses, as a worker obeys them: the agent reads them, the Board tells the children."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minicelery.broker import Broker
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import Delivery, Outcome, Verdict, new_id
from minicelery.pausing import TOPIC, Paused, aside, paused_in, renew

if TYPE_CHECKING:
    from minicelery.worker.board import Board

log = logging.getLogger(__name__)

KNOWN_WITHIN = 5.0
"""Seconds that a child waits at its start for the agent to know what is paused, before it fetches.

The agent itself tries for so long to read records of a server that can't: one that has just been
started may be able to soon."""
BEARABLE = 3
"""Times that the broker may be out of reach for the records before they alone are taken to be so."""
GONE_AFTER = 30.0
"""Seconds after which a record that is not found any more is taken to be gone, and not just unread."""
LOOK_ASIDE, RARELY = 5.0, 300.0
"""Seconds between two looks for messages of tasks that were paused; more where none was found."""
BATCH, BATCHES = 100, 10
"""Messages that are brought back at once, and how often at one look."""


class PauseWatch:
    """The agent's side: reads what is paused, and brings back what has been put aside."""

    def __init__(self, broker: Broker, queues: Sequence[str], hostname: str, board: Board) -> None:
        self.broker = broker
        self.queues = list(queues)
        self.board = board
        self.now = Paused()
        self._hostname = hostname
        self._records: Callable[[str], dict[str, bytes]] = getattr(broker, "news", broker.recall)
        self._look_at = 0.0
        self._look_every = LOOK_ASIDE
        self._failures = 0
        self._warned = False
        self._give_up_at = time.monotonic() + KNOWN_WITHIN
        self._known: dict[str, bytes] = {}  # records that were read
        self._missing_since: float | None = None

    @property
    def held(self) -> list[str]:
        """The queues that messages of this worker's queues may have been put aside in."""
        return [aside(queue) for queue in self.queues] if self.now.known_tasks else []

    @property
    def active(self) -> list[str]:
        """The worker's queues that are not paused."""
        return [queue for queue in self.queues if queue not in self.now.queues]

    def look(self) -> None:
        """Tell the children what is paused; what was put aside and need not be any more comes back.

        Raises BrokerUnavailable.
        """
        found = self._read()
        if found is None:
            return
        if found != self.now or not self.board.pauses.known:
            self._tell(found)
        try:
            if found.resumed_tasks and time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + self._look_every
                if sum(map(self._bring_back, self.queues)):
                    self._look_at, self._look_every = 0.0, LOOK_ASIDE
                else:
                    self._look_every = min(RARELY, 2 * self._look_every)
            if found.old:
                renew(self.broker, found.old)
        except BrokerUnavailable:
            raise
        except OperationalError as error:  # of one queue: all else must go on
            log.warning("What was put aside can't be brought back: %s", error)

    def _read(self) -> Paused | None:
        """What is paused; None where that can't be read now, and what was known stays."""
        try:
            records = self._records(TOPIC)
        except OperationalError as error:
            # The records alone may be out of reach, for good: whoever asks the server next sees.
            self._failures += 1
            if isinstance(error, BrokerUnavailable) and self._failures <= BEARABLE:
                raise
            # A server that is being started can't read its records yet.  Where none can be kept
            # nothing can have been paused: work goes on.
            if self.board.pauses.known or time.monotonic() < self._give_up_at:
                return None
            if not self._warned:
                self._warned = True
                log.warning("What is paused can't be read, so nothing is: %s", error)
            return Paused()
        self._failures = 0
        return paused_in(self._remembered(records))

    def _remembered(self, records: dict[str, bytes]) -> dict[str, bytes]:
        """The records, with those that were there a moment ago: nobody deletes any, but a server may be slow."""
        now = time.monotonic()
        if self._known.keys() <= records.keys():
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        if self._missing_since is not None and now - self._missing_since < GONE_AFTER:
            records = self._known | records
        self._known = dict(records)
        return records

    def _tell(self, found: Paused) -> None:
        if not self.board.pauses.write(found):
            log.error("More is paused than this worker can keep in mind; the last change is not obeyed")
        for kind, before, now in (
            ("queue", self.now.queues & set(self.queues), found.queues & set(self.queues)),
            ("task", self.now.tasks, found.tasks),
        ):
            for name in sorted(now - before):
                log.warning("The %s %s is paused", kind, name)
            for name in sorted(before - now):
                log.warning("The %s %s goes on", kind, name)
        self.now = found
        self._look_at, self._look_every = 0.0, LOOK_ASIDE

    def _bring_back(self, queue: str) -> int:
        """Put messages that wait aside back on their queue, but for those of tasks that are still paused."""
        size = self.broker.size(aside(queue))
        if not size:
            return 0
        consumer = self.broker.consumer([aside(queue)], f"{self._hostname}/{new_id()}", None)
        count = 0
        try:
            for _ in range(min(BATCHES, -(-size // BATCH))):
                fresh = consumer.swap([], BATCH, 0.0)
                # What stays goes to the end of the line, so that what is behind it is seen too.
                done = [self._brought(one, queue) for one in fresh]
                count += sum(one.message.task not in self.now.tasks for one in fresh)
                consumer.swap(done, 0, 0.0)
        finally:
            consumer.close()
        if count:
            log.info("%d messages of tasks that go on are back in %s", count, queue)
        return count

    def _brought(self, delivery: Delivery, queue: str) -> Outcome:
        if delivery.broken is not None:
            return Outcome(delivery, Verdict.REJECT, reason=delivery.broken)
        return _moved(delivery, aside(queue) if delivery.message.task in self.now.tasks else queue)


def await_known(board: Board, orders: int) -> None:
    """Wait until the agent knows what is paused: a child must not fetch before.

    Not for ever, as nothing else than this depends on the agent; and not if an order comes.
    """
    end = time.monotonic() + KNOWN_WITHIN
    pause = 0.001
    while not board.pauses.known and time.monotonic() < end:
        if select.select([orders], [], [], pause)[0]:
            return
        pause = min(0.02, pause * 1.5)


def put_aside(delivery: Delivery) -> Outcome:
    """The outcome of a delivery whose task is paused."""
    return _moved(delivery, aside(delivery.message.queue))


def _moved(delivery: Delivery, queue: str) -> Outcome:
    message = replace(delivery.message, queue=queue, exchange="", routing_key=queue)
    return Outcome(delivery, publish=(message,))
