"""A child's one loop: it fetches, runs and settles, one task at a time, in the main thread.

Its `Keeper` does meanwhile what must not wait for a slow task.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from minicelery.broker import Consumer
from minicelery.exceptions import OperationalError
from minicelery.message import Delivery, Outcome, Verdict, new_id
from minicelery.worker import coroutines
from minicelery.worker.board import Board, Slot
from minicelery.worker.call import Call
from minicelery.worker.executor import Executor
from minicelery.worker.fates import key_of
from minicelery.worker.keeper import Keeper, soft_limit_reached
from minicelery.worker.orders import Change
from minicelery.worker.swapper import IDLE_WAIT, UNSETTLED, Swapper

log = logging.getLogger(__name__)

BATCH = 16
BATCH_SECONDS = 0.02  # a batch is at most this much work


class Loop(Swapper):
    """Fetch, run, settle, in the main thread of a child."""

    def __init__(
        self,
        consumer: Consumer,
        executor: Executor,
        board: Board,
        slot: Slot,
        orders: int,
        *,
        batch: int = BATCH,
        **options: Any,
    ) -> None:
        super().__init__(consumer, executor, board, slot, **options)
        self.batch = batch
        self.waiting: deque[Delivery] = deque()  # popping is owning: the loop left, the keeper right
        self.current: Call | None = None
        self.began = 0.0  # of the running delivery; 0 while none runs
        self.last_busy = 0.0
        self.pace = BATCH_SECONDS  # seconds a task takes, averaged: one is fetched at first
        self._ordered: tuple[Call, BaseException] | None = None  # what to raise in which call, by an order
        self._armed = False
        self.obey: Callable[[Change], bool] = lambda change: False
        self.reopen: Callable[[str], Consumer] | None = None
        self._moved = False  # other queues are to be served
        self._waking = threading.Lock()  # nobody wakes a consumer that is being closed
        self.keeper = Keeper(self, orders)

    def run(self) -> int:
        """Work until ordered to stop, or until this child has done its share; the exit code.

        It is not 0 where something could not be settled: then the parent has the agent do it.
        """
        signal.signal(signal.SIGALRM, self._on_alarm)
        self.keeper.start()
        try:
            while not self.stopping.is_set() and not self.worn_out():
                if self._moved:
                    self._consume_anew()
                fresh = self.swap(self._room(), IDLE_WAIT)
                if fresh:
                    self.slot.clear_journal()
                if self.aside or (self.told and fresh):
                    fresh = self.learn(fresh)
                if fresh:
                    self.waiting.extend(fresh)
                    self._work()
            self.give_back()
            settled = self.settle_all()
        finally:
            self.keeper.stop()
        # After an error nothing is given back: what has begun would run again, uncounted.
        if not settled:
            return UNSETTLED
        with self.lock:
            self.consumer.close()
        coroutines.close()
        return 0

    # -- orders ----------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        """Obey a change; from any thread."""
        if self.obey(change):
            self._moved = True
            self.wake()

    def wake(self) -> None:
        """End a waiting swap; from any thread."""
        with self._waking:
            self.consumer.wake()

    def _consume_anew(self) -> None:
        """Serve the queues that are to be served now: by another consumer, as this one holds nothing."""
        assert self.reopen is not None
        self._moved = False
        if not self.settle_all():
            self._moved = True
            return
        self.aside = []
        with self.lock, self._waking:
            self.consumer.close()
            name = f"{self.slot.name.rpartition('/')[0]}/{new_id()}"
            self.slot.call(name)
            self.consumer = self.reopen(name)
            self._name = self.consumer.name
            self._heeded = 0  # it has not been told yet what is paused

    # -- fetching --------------------------------------------------------------------------

    def _room(self) -> int:
        """How many to fetch: as many as make `BATCH_SECONDS` of work."""
        share = self.batch if self.max_tasks is None else self.max_tasks - self.slot.processed
        return max(1, min(self.batch, int(BATCH_SECONDS / self.pace), share))

    # -- running ---------------------------------------------------------------------------

    def _work(self) -> None:
        waiting = self.waiting
        self.last_busy = time.monotonic()
        self.keeper.unpark()
        if self.max_tasks is not None and self.slot.processed + len(waiting) >= self.max_tasks:
            self.wear_out()
        while True:
            try:
                delivery = waiting.popleft()
            except IndexError:  # done, or the keeper has given the rest back
                return
            if self.stopping.is_set():
                waiting.appendleft(delivery)
                self.give_back()
                return
            suspect = delivery.deliveries > 0
            if suspect and self.done:
                # A run of it has died before: if it does so again, nothing else goes with it.
                self.swap(0, 0)
            took = self._run(delivery)
            # Slow ones count at once, fast ones halve it: one at a time until they prove fast.
            self.pace = max(took, self.pace / 2)
            if suspect:
                self.swap(0, 0)
            elif took > BATCH_SECONDS:
                self.give_back()

    def give_back(self) -> None:
        """Let go of all that has not begun, the last one first: each goes to the queue's front."""
        while True:
            try:
                delivery = self.waiting.pop()
            except IndexError:
                return
            if not self.done:
                self.done_since = time.monotonic()
            self.done.append(Outcome(delivery, Verdict.REQUEUE))

    def _run(self, delivery: Delivery) -> float:
        """Run one delivery; the seconds it took."""
        began = self.began = time.monotonic()
        slot, executor = self.slot, self.executor
        key = ""
        if self.told:
            if not self.consumer.holds(delivery):
                return 0.0  # its connection was lost meanwhile: it comes again
            key = key_of(delivery)
            slot.name_run(key)
        slot.write(delivery.receipt, began)
        try:
            call = executor.begin(delivery)
            if type(call) is Outcome:
                outcome = call
            else:
                assert type(call) is Call
                if (
                    self.told
                    and delivery.once
                    and call.request.redelivered
                    and not self._let_go(delivery, key)
                ):
                    self.began = 0.0
                    slot.write(delivery.receipt, 0.0)
                    return 0.0
                self.current = call
                if call.time_limit is not None and not self.alone:
                    slot.write(delivery.receipt, began, began + call.time_limit)
                if call.soft_limit is not None:
                    self._armed = True
                    signal.setitimer(signal.ITIMER_REAL, call.soft_limit)
                outcome = executor.call(call)
        except Exception as error:  # of our own, or of a handler
            outcome = executor.internal_error(delivery, error)
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.current = None
        slot.processed += 1
        now = time.monotonic()
        self.last_busy = now
        # As `finish` does, without the call.
        if executor.admission is not None:
            outcome = executor.admission.free(outcome)
        if not self.done:
            self.done_since = now
        self.done.append(outcome)
        if not slot.note(outcome, key) and self.waiting:
            self.swap(0, 0)
        self.began = 0.0
        slot.write(delivery.receipt, 0.0)
        return now - began

    def _let_go(self, delivery: Delivery, key: str) -> bool:
        """Have the broker forget a message that somebody had before, or it may come back for ever.

        What had become of it nobody here knows: it may have killed a whole worker.  False
        where it is not this child's any more.
        """
        if not self.slot.keep_messages({key: delivery.message}):
            return True
        try:
            with self.lock:
                self.consumer.acknowledge(delivery)
        except OperationalError as error:
            log.debug("%s", error)
            return False
        return True

    def interrupt(self, call: Call, error: BaseException) -> None:
        """Have `error` raised in a call, if it still runs then; from any thread."""
        self._ordered = call, error
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    def _on_alarm(self, *_: object) -> None:
        """The timer's signal, or an order's: raise in the running task what is to be raised."""
        order, self._ordered = self._ordered, None
        call = self.current
        if call is None or not call.running:
            return
        message = call.delivery.message
        if order is not None:
            meant, error = order
            if meant is not call:
                return  # it has just ended by itself
            log.warning("%s is raised in %s[%s] by an order", type(error).__name__, message.task, message.id)
        else:
            log.warning(
                "Soft time limit (%ss) exceeded for %s[%s]", call.soft_limit, message.task, message.id
            )
            error = soft_limit_reached(call)
        if not call.plan.is_async or not coroutines.interrupt(error):
            raise error
