"""A child's side of the broker: hands in what is done and fetches, through outages."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from minicelery.broker import Consumer
from minicelery.broker.topology import is_aside
from minicelery.events.emitter import Emitter
from minicelery.exceptions import BackendError, OperationalError
from minicelery.message import Delivery, Outcome, Verdict
from minicelery.worker.executor import Executor
from minicelery.worker.fates import sort_out
from minicelery.worker.memory import resident_kib

if TYPE_CHECKING:
    from collections.abc import Callable

    from minicelery.worker.board import Board, Slot

log = logging.getLogger("minicelery.worker.loop")

TICK = 0.02
IDLE_WAIT = 1.0
RENEW = 4.0  # at least three times a lease
SLOWEST_RECONNECT = 1.0
LAST_WORDS = 10.0
"""Seconds that a child which is about to leave tries to settle what is done."""

UNSETTLED = 70
"""Exit code of a child that leaves with something not settled."""


class Swapper:
    """What the loops of all pools have in common."""

    def __init__(
        self,
        consumer: Consumer,
        executor: Executor,
        board: Board,
        slot: Slot,
        *,
        max_tasks: int | None = None,
        max_memory: int | None = None,
        alone: bool = False,
        on_worn: Callable[[int], None] | None = None,
    ) -> None:
        self.consumer = consumer
        self.executor = executor
        self.board = board
        self.slot = slot
        self.max_tasks = max_tasks
        self.max_memory = max_memory
        self.alone = alone  # no parent replaces this process: no hard limit ends it
        # Called once this child has begun the last of its share (with 0), or has grown too large.
        self.on_worn = on_worn
        self.lock = threading.Lock()  # around the consumer
        self.done: deque[Outcome] = deque()
        self.done_since = 0.0
        self.unsettled: list[Outcome] = []  # handed to a swap that has not succeeded yet
        self.stopping = threading.Event()
        self.worn = False
        self._name = consumer.name
        self._pauses = board.pauses.number
        self._heeded = 0  # what it was when this child last looked
        self._outage = 0
        # The broker gives back what a dead child held: then the board must tell what it was.
        self.told = not consumer.adopts
        self.aside: list[Delivery] = []  # came back while a sibling runs them
        self._tells = bool(executor.app.conf.task_send_sent_event)

    def finish(self, outcome: Outcome) -> None:
        """Have the outcome of a run leave with the next swap, and with it what the run held of limits."""
        if (admission := self.executor.admission) is not None:
            outcome = admission.free(outcome)
        if not self.done:
            self.done_since = time.monotonic()
        self.done.append(outcome)

    # -- the end of a child ----------------------------------------------------------------

    def worn_out(self) -> bool:
        """Whether this child has run its share; one that has grown too large waits to be replaced."""
        if self.max_tasks is not None and self.slot.processed >= self.max_tasks:
            self.wear_out()
            return True
        if self.max_memory is not None and not self.worn and (size := resident_kib()) > self.max_memory:
            self.wear_out(size)
            return self.on_worn is None
        return False

    def wear_out(self, size: int = 0) -> None:
        """Have a replacement made ready."""
        if not self.worn:
            self.worn = True
            if self.on_worn is not None:
                self.on_worn(size)

    # -- fetching --------------------------------------------------------------------------

    def learn(self, fresh: list[Delivery]) -> list[Delivery]:
        """Of deliveries that have come back: settle what had ended; those that are still to be run.

        What a sibling is still running is kept aside until that has ended.
        """
        aside = [delivery for delivery in self.aside if self.consumer.holds(delivery)]
        left, ended, self.aside = sort_out(self.board, aside + fresh)
        for outcome in ended:
            self.finish(outcome)
        return left

    def swap(self, want: int, wait: float) -> list[Delivery]:
        """One swap; on failure a pause, with everything kept for the next."""
        try:
            with self.lock:
                fresh = self.swap_locked(want, wait)
        except (OperationalError, BackendError) as error:
            self._pause(error)
            return []
        if self._outage:
            log.warning("The broker is back")
            self._outage = 0
        return fresh

    def swap_locked(self, want: int, wait: float) -> list[Delivery]:
        """Settle everything that is done, and fetch; the caller holds the lock."""
        if self._pauses[0] != self._heeded:
            self._heed()
        known = len(self.unsettled)
        self.take_done()
        if self.executor.events is not None or self._tells:
            self.post_news(known)
        consumer = self.consumer
        try:
            fresh = consumer.swap(self.unsettled, want, wait)
        finally:
            self.note_name()
        if self.unsettled:
            self.unsettled = []
            self.on_settled()
        return fresh

    def _heed(self) -> None:
        """Fetch from now on what is not paused, and put aside calls of tasks that are."""
        self._heeded = self._pauses[0]
        queues, self.executor.paused = self.board.pauses.read()
        self.consumer.skip(queues)

    def set_events(self, on: bool) -> None:
        """Tell of tasks from now on, or no more; from any thread."""
        set_events(self.executor, self.board, on)

    def post_news(self, known: int | None = None) -> None:
        """Have the consumer take along what has been told; the caller holds the lock.

        And of what the outcomes send, but for the first `known` of `unsettled`.
        """
        events, app = self.executor.events, self.executor.app
        letters = events.take() if events else []
        if self._tells and known is not None:
            for outcome in self.unsettled[known:]:
                moved = outcome.delivery.message
                if fresh := [one for one in outcome.publish if one is not moved and not is_aside(one.queue)]:
                    letters += app.events.sent_letters(fresh)
        if letters:
            self.consumer.post(letters)

    def on_settled(self) -> None:
        """What was `unsettled` has been settled."""

    def take_done(self) -> None:
        """Move what is done to what the next swap settles."""
        done = self.done
        while True:
            try:
                self.unsettled.append(done.popleft())
            except IndexError:
                return

    def note_name(self) -> None:
        """Put the consumer's name on the board where a lost connection has changed it."""
        name = self.consumer.name
        if name is not self._name:
            self._name = name
            suffix = name.rpartition("~")[2]
            self.slot.rename(int(suffix) if suffix.isdigit() else 0)

    def _pause(self, error: Exception) -> None:
        if self._outage % 30 == 0:
            log.error("%s; trying again until it is back", error)
        ceiling = min(SLOWEST_RECONNECT, 0.05 * 2 ** min(self._outage, 5))
        self._outage += 1
        seconds = random.uniform(ceiling / 2, ceiling)
        if self.stopping.is_set():
            time.sleep(seconds)
        else:
            self.stopping.wait(seconds)

    def settle_all(self) -> bool:
        """Settle what is left, for as long as the broker's lease would last; whether it is done."""
        for delivery in self.aside:
            self.done.append(Outcome(delivery, Verdict.REQUEUE))
        end = time.monotonic() + LAST_WORDS
        while self.done or self.unsettled:
            try:
                with self.lock:
                    self.swap_locked(0, 0)
            except (OperationalError, BackendError) as error:
                if time.monotonic() > end:
                    left = len(self.unsettled) + len(self.done)
                    log.error("%d outcomes could not be settled: %s", left, error)
                    return False
                time.sleep(0.2)
        return True


def set_events(executor: Executor, board: Board, on: bool) -> None:
    """Have an executor tell of its tasks from now on, or no more."""
    if not on:
        executor.events = None
    elif executor.events is None:
        app = executor.app
        app.clock.share(board.clock)
        executor.events = Emitter(executor.hostname or "", board.pid, app.clock, app.conf.event_exchange)
