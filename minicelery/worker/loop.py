"""A child's one loop, and its one thread.

The `Loop` fetches, runs and settles.  The `Keeper` does meanwhile what must not wait for a
slow task: hand in finished outcomes, give unstarted deliveries back, mark the running one
as started, renew the lease, enforce the hard limit, and hear the parent's orders.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minicelery.broker import Consumer
from minicelery.exceptions import BackendError, OperationalError, SoftTimeLimitExceeded
from minicelery.message import Delivery, Outcome, Verdict
from minicelery.worker.call import Call
from minicelery.worker.executor import Executor
from minicelery.worker.fates import key_of, sort_out
from minicelery.worker.memory import resident_kib

if TYPE_CHECKING:
    from minicelery.worker.board import Board, Slot

log = logging.getLogger(__name__)

BATCH = 16
BATCH_SECONDS = 0.02  # a batch is at most this much work
TICK = 0.02
IDLE_WAIT = 1.0
LINGER = 0.5  # the keeper goes on ticking this long after the last task
STUCK = 0.5  # unstarted deliveries are given back now, whether or not a sibling is idle
RENEW = 4.0  # at least three times a lease
SLOWEST_RECONNECT = 1.0

KEEPER_PAUSE = 0.2  # after a failed act of the keeper's

STOP = b"s"
QUIT = b"q"

UNSETTLED = 70
"""Exit code of a child that leaves with something not settled."""


class Loop:
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
        max_tasks: int | None = None,
        max_memory: int | None = None,
        alone: bool = False,
    ) -> None:
        self.consumer = consumer
        self.executor = executor
        self.board = board
        self.slot = slot
        self.batch = batch
        self.max_tasks = max_tasks
        self.max_memory = max_memory
        self.alone = alone  # no parent replaces this process: no hard limit ends it
        self.lock = threading.Lock()  # around the consumer
        self.waiting: deque[Delivery] = deque()  # popping is owning: the loop left, the keeper right
        self.done: deque[Outcome] = deque()
        self.done_since = 0.0
        self.unsettled: list[Outcome] = []  # handed to a swap that has not succeeded yet
        self.current: Call | None = None
        self.began = 0.0  # of the running delivery; 0 while none runs
        self.last_busy = 0.0
        self.stopping = threading.Event()
        self.pace = BATCH_SECONDS  # seconds a task takes, averaged: one is fetched at first
        self._name = consumer.name
        self._armed = False
        self._outage = 0
        # The broker gives back what a dead child held: then the board must tell what it was.
        self.told = not consumer.adopts
        self.aside: list[Delivery] = []  # came back while a sibling runs them
        self.keeper = Keeper(self, orders)

    def run(self) -> int:
        """Work until ordered to stop, or until this child has done its share; the exit code.

        It is not 0 where something could not be settled: then the parent has the agent do it.
        """
        signal.signal(signal.SIGALRM, self._soft_limit)
        self.keeper.start()
        try:
            while not self.stopping.is_set() and not self._worn_out():
                fresh = self._swap(self._room(), IDLE_WAIT)
                if fresh:
                    self.slot.clear_journal()
                if self.aside or (self.told and fresh):
                    fresh = self._learn(fresh)
                if fresh:
                    self.waiting.extend(fresh)
                    self._work()
            settled = self._settle_all()
        finally:
            self.keeper.stop()
        # After an error nothing is given back: what has begun would run again, uncounted.
        if not settled:
            return UNSETTLED
        with self.lock:
            self.consumer.close()
        return 0

    def _learn(self, fresh: list[Delivery]) -> list[Delivery]:
        """Of deliveries that have come back: settle what had ended; those that are still to be run.

        What a sibling is still running is kept aside until that has ended.
        """
        aside = [delivery for delivery in self.aside if self.consumer.holds(delivery)]
        left, ended, self.aside = sort_out(self.board, aside + fresh)
        for outcome in ended:
            self._finish(outcome)
        return left

    def _room(self) -> int:
        """How many to fetch: as many as make `BATCH_SECONDS` of work."""
        return max(1, min(self.batch, int(BATCH_SECONDS / self.pace), self._share()))

    def _share(self) -> int:
        return self.batch if self.max_tasks is None else self.max_tasks - self.slot.processed

    def _worn_out(self) -> bool:
        if self.max_tasks is not None and self.slot.processed >= self.max_tasks:
            return True
        return self.max_memory is not None and resident_kib() > self.max_memory

    # -- running ---------------------------------------------------------------------------

    def _work(self) -> None:
        waiting = self.waiting
        self.last_busy = time.monotonic()
        self.keeper.unpark()
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
                self._swap(0, 0)
            took = self._run(delivery)
            # Slow ones count at once, fast ones halve it: one at a time until they prove fast.
            self.pace = max(took, self.pace / 2)
            if suspect:
                self._swap(0, 0)
            elif took > BATCH_SECONDS:
                self.give_back()

    def give_back(self) -> None:
        """Let go of all that has not begun, the last one first: each goes to the queue's front."""
        while True:
            try:
                delivery = self.waiting.pop()
            except IndexError:
                return
            self._finish(Outcome(delivery, Verdict.REQUEUE))

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
        call = executor.begin(delivery)
        if type(call) is Outcome:
            outcome = call
        else:
            assert type(call) is Call
            if self.told and delivery.once and call.request.redelivered and not self._let_go(delivery, key):
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
            if self._armed:
                self._armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            self.current = None
        slot.processed += 1
        now = time.monotonic()
        self.last_busy = now
        self._finish(outcome)
        if not slot.note(outcome, key) and self.waiting:
            self._swap(0, 0)
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

    def _finish(self, outcome: Outcome) -> None:
        if not self.done:
            self.done_since = time.monotonic()
        self.done.append(outcome)

    def _soft_limit(self, *_: object) -> None:
        call = self.current
        if call is not None and call.running:
            log.warning(
                "Soft time limit (%ss) exceeded for %s[%s]",
                call.soft_limit, call.delivery.message.task, call.delivery.message.id,
            )  # fmt: skip
            raise SoftTimeLimitExceeded()

    # -- settling --------------------------------------------------------------------------

    def _swap(self, want: int, wait: float) -> list[Delivery]:
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
        done = self.done
        while True:
            try:
                self.unsettled.append(done.popleft())
            except IndexError:
                break
        consumer = self.consumer
        try:
            fresh = consumer.swap(self.unsettled, want, wait)
        finally:
            self.note_name()
        if self.unsettled:
            self.unsettled = []
        return fresh

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
        self.stopping.wait(random.uniform(ceiling / 2, ceiling))

    def _settle_all(self) -> bool:
        """Settle what is left, for as long as the broker's lease would last; whether it is done."""
        self.give_back()
        for delivery in self.aside:
            self._finish(Outcome(delivery, Verdict.REQUEUE))
        if not self.done and not self.unsettled:
            return True
        end = time.monotonic() + 10.0
        while True:
            try:
                with self.lock:
                    self.swap_locked(0, 0)
                return True
            except (OperationalError, BackendError) as error:
                if time.monotonic() > end:
                    log.error("%d outcomes could not be settled: %s", len(self.unsettled), error)
                    return False
                time.sleep(0.2)


class Keeper(threading.Thread):
    """The thread that looks after a loop while its main thread is busy."""

    def __init__(self, loop: Loop, orders: int) -> None:
        super().__init__(name="minicelery-keeper", daemon=True)
        self.loop = loop
        self.orders = orders
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        self.parked = True
        self._stopped = False
        self._marked: Call | None = None
        self._renewed = time.monotonic()
        self._retry_at = 0.0

    def unpark(self) -> None:
        """Begin to tick; from the loop, when it begins to work."""
        if self.parked:
            self.parked = False
            os.write(self._write, b"u")

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        with contextlib.suppress(OSError):
            os.write(self._write, b"x")
        if self.is_alive() and threading.current_thread() is not self:
            self.join(2.0)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self.orders, select.POLLIN)
        while not self._stopped:
            ready = poll.poll(None if self.parked else TICK * 1000)
            for fd, _ in ready:
                if fd == self._read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._read, 4096)
                elif not self._hear():
                    poll.unregister(self.orders)
            if self._stopped:
                return
            try:
                self._tick()
            except (OperationalError, BackendError) as error:
                log.debug("keeper: %s", error)  # the loop reports outages, and adopts after them
                self._retry_at = time.monotonic() + KEEPER_PAUSE
            except Exception:
                log.exception("keeper")
            if not self.loop.began and time.monotonic() - self.loop.last_busy > LINGER:
                self.parked = True
                # The loop sets its time first and looks at this then: one of the two sees the other.
                if self.loop.done or time.monotonic() - self.loop.last_busy <= LINGER:
                    self.parked = False

    # -- ticking ---------------------------------------------------------------------------

    def _tick(self) -> None:
        loop, now = self.loop, time.monotonic()
        began, call = loop.began, loop.current
        if call is not None and call.time_limit is not None and not loop.alone:
            # By the call's own clock: `began` may already be another one's.
            if now - call.began > call.time_limit:
                self._enforce(call)
        if now < self._retry_at:
            return
        if loop.done and now - loop.done_since > TICK and began:
            self._locked(lambda: loop.swap_locked(0, 0))
        running = now - began if began else 0.0
        if running > TICK and loop.waiting and (running > STUCK or loop.board.idle(but=loop.slot)):
            self._give_back()
        if call is not None and running > TICK and call is not self._marked:
            self._mark(call)
        if began and now - self._renewed > min(RENEW, loop.consumer.renew):
            self._locked(lambda: loop.consumer.extend(()))
            self._renewed = now

    def _locked(self, act: Callable[[], Any], patience: float = 0.5) -> bool:
        if not self.loop.lock.acquire(timeout=patience):
            return False
        try:
            act()
        finally:
            self.loop.note_name()
            self.loop.lock.release()
        return True

    def _give_back(self) -> None:
        self.loop.give_back()
        self._locked(lambda: self.loop.swap_locked(0, 0))

    def _mark(self, call: Call) -> None:
        """Mark the running delivery as started, and store STARTED with the same trip."""
        loop = self.loop

        def mark() -> None:
            if loop.current is not call:
                return
            if loop.told and call.delivery.once:
                kept = {key_of(call.delivery): call.delivery.message}
                call.delivery.once = loop.slot.keep_messages(kept)
            with call.request.state_lock:
                record = None if call.request.reported else loop.executor.started(call)
                loop.consumer.extend([call.delivery], [record] if record else ())

        if self._locked(mark):
            self._marked = call

    def _enforce(self, call: Call) -> None:
        """The hard limit has passed: settle the outcome and end this process."""
        loop = self.loop

        def end() -> None:
            # First, so that if it ends by itself meanwhile no other one begins.
            loop.stopping.set()
            if loop.current is not call:
                return  # it has just ended by itself
            self._leave(loop.executor.timed_out(call))

        self._locked(end)

    def _leave(self, outcome: Outcome | None) -> None:
        """Settle what is done and exit, the main thread being where it is; the caller holds the lock.

        `outcome` is the running call's.
        """
        loop = self.loop
        loop.give_back()
        if outcome is not None:
            loop.done.append(outcome)
            loop.slot.note(outcome, key_of(outcome.delivery))
        try:
            loop.swap_locked(0, 0)
        except (OperationalError, BackendError) as error:
            log.error("could not settle before leaving: %s", error)
            os._exit(UNSETTLED)
        if outcome is None and loop.began:
            os._exit(UNSETTLED)  # about to call, or just back: the agent sees from the board
        if outcome is None or loop.told:
            loop.consumer.close()
        with contextlib.suppress(Exception):
            logging.shutdown()
        loop.slot.write(loop.slot.read().receipt, 0.0)  # or it would look like an end in mid-task
        os._exit(1 if loop.alone else 0)  # a cold stop, as the parent would report it

    # -- orders ----------------------------------------------------------------------------

    def _hear(self) -> bool:
        """Obey the parent; False when it is gone."""
        loop = self.loop
        order = os.read(self.orders, 1)
        if order == QUIT:
            self._quit()
            return True
        # The parent's death is an order to stop as well.
        loop.stopping.set()
        loop.consumer.wake()
        if loop.waiting and loop.began:
            with contextlib.suppress(OperationalError, BackendError):
                self._give_back()
        return order != b""

    def _quit(self) -> None:
        loop = self.loop
        loop.stopping.set()
        loop.consumer.wake()

        def leave() -> None:
            call = loop.current
            self._leave(None if call is None else loop.executor.terminated(call, "cold shutdown"))

        if not self._locked(leave, 1.0):
            os._exit(UNSETTLED)
