"""The loop of a child that runs many tasks at once: in threads, or as coroutines.

The main thread fetches and settles, and runs nothing itself, so it needs no keeper.  A
`Runner` makes the calls; what it begins and ends it tells the `Crowd` from its own threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from minicelery.broker import Consumer
from minicelery.exceptions import BackendError, OperationalError
from minicelery.message import Delivery, Message, Outcome, Record, Verdict
from minicelery.worker.board import Board, Slot
from minicelery.worker.call import Call
from minicelery.worker.executor import Executor
from minicelery.worker.fates import key_of
from minicelery.worker.keeper import run_of
from minicelery.worker.orders import QUIT, REPLACE, Change, Orders, Terminate
from minicelery.worker.suspects import Suspects
from minicelery.worker.swapper import IDLE_WAIT, RENEW, TICK, UNSETTLED, Swapper
from minicelery.worker.tally import Tally

log = logging.getLogger("minicelery.worker.loop")

FETCH = 250  # at once; the places may be more
SUSPECT_TICK = 0.05
LONG = 0.25
"""Seconds after which a run is marked as started in the broker, and shown on the Board."""


@dataclass(slots=True, eq=False)
class Running:
    """A delivery that a runner has."""

    delivery: Delivery
    place: int
    key: str
    call: Call | None = None  # once it has begun
    marked: bool = False
    given_up: bool = False  # it has ended for us, and goes on all the same
    handle: Any = None  # these two are the runner's own
    body: Any = None


class Runner(Protocol):
    """Makes the calls of a crowd, in a way of its own."""

    def start(self) -> None:
        """Be ready for `run`."""

    def run(self, batch: Sequence[Running]) -> None:
        """Have these run; each is told to `Crowd.begun` and `Crowd.ended`.  Returns at once."""

    def interrupt(self, one: Running, order: Terminate) -> None:
        """End a run as well as can be done here."""

    def close(self) -> None:
        """Nothing runs any more."""


class Crowd(Swapper):
    """Fetch and settle in the main thread of a child; have others run."""

    def __init__(
        self,
        consumer: Consumer,
        executor: Executor,
        board: Board,
        slot: Slot,
        orders: int,
        *,
        runner: Callable[[Crowd], Runner],
        **options: Any,
    ) -> None:
        super().__init__(consumer, executor, board, slot, **options)
        self.orders = Orders(orders)
        self.runner = runner(self)
        self.running: dict[int, Running] = {}  # by receipt
        self._places = list(range(board.places))  # that are free
        self._state = threading.Lock()  # around `running`, the places and what the board says of them
        self._something_ended = threading.Event()
        self._waiting = False  # the main thread waits for messages
        self._asleep = False  # … or for something to end
        self.suspects = Suspects()
        self._behind: list[Delivery] = []  # others that were fetched, and wait while a suspect is alone
        self._unnoted: list[Running] = []  # have ended, with an outcome that the Board has no room for
        self._settling: list[Running] = []  # those of them that the present swap settles
        self._kept: dict[str, Message] = {}  # the broker has let go of these
        self._newest = 0
        self._shown: list[Running] = []
        self._look_at = 0.0  # monotonic; when the next run will have lasted for `LONG`
        self._renewed = time.monotonic()
        self._draining = False  # nothing new begins
        self.obey: Callable[[Change], bool] = lambda change: False
        self.reopen: Callable[[str], Consumer] | None = None  # not called: another child takes its place
        self.tally = Tally(slot, executor)
        self._quitting = False
        self.listener = threading.Thread(target=self._listen, name="minicelery-orders", daemon=True)

    def run(self) -> int:
        """Work until ordered to stop, or until this child has done its share; the exit code."""
        hold = getattr(self.consumer, "hold", None)
        if hold is not None:
            hold(self.board.places)
        self.listener.start()
        self.runner.start()
        while not (self.stopping.is_set() or self.worn_out() or self._share_begun()):
            self._turn(self._room())
        self._draining = True
        if self.worn and self.on_worn is not None:
            self.on_worn(0)  # once more: nothing begins here any more
        self._give_back()
        if hold is not None:
            hold(0)  # what has been sent ahead goes back now
            self.swap(0, 0)
        while self.running and not self._quitting:
            self._turn(0)
        if self._quitting:
            self._leave()
        if not self.settle_all():
            return UNSETTLED
        self.consumer.close()
        self.runner.close()
        self.tally.show()
        return 0

    def _room(self) -> int:
        fetched = len(self._behind)
        room = min(len(self._places) - fetched, FETCH)
        if self.max_tasks is not None:
            begun = self.slot.processed + len(self.running)
            left = self.max_tasks - begun - fetched - len(self.suspects.waiting)
            if left <= room:
                room = left
                self.wear_out()
        return 0 if self.suspects.alone(self.running) else max(0, room)

    def _share_begun(self) -> bool:
        if self.max_tasks is None:
            return False
        with self._state:
            return self.slot.processed + len(self.running) >= self.max_tasks

    def _turn(self, want: int) -> None:
        """Settle what has ended, fetch, and look after what runs."""
        if want == 0 and not self.done:
            self._sleep()
        self._waiting = want > 0
        fresh = self.swap(want, self._patience() if want else 0)
        self._waiting = False
        if self.aside or (self.told and fresh):
            fresh = self.learn(fresh)
        if self._draining or self.stopping.is_set():
            self._give_back(fresh)
        elif fresh or self._behind or self.suspects.waiting:
            if want and not fresh:
                self.suspects.leave_no_rest()
            self._start(fresh)
        self._look_after()

    def _sleep(self) -> None:
        """Until something has ended, or it is time to look after what runs."""
        self._something_ended.clear()
        self._asleep = True
        if not self.done:
            self._something_ended.wait(self._patience())
        self._asleep = False

    def take_done(self) -> None:
        """See `Swapper`; the journal's other half takes what ends meanwhile."""
        if self.unsettled:
            return  # the last swap has failed: first these
        with self._state:
            self.unsettled.extend(self.done)
            self.done.clear()
            self._settling, self._unnoted = self._unnoted, []
            self.slot.turn_journal()
            if self._kept:
                running = {one.key for one in self.running.values()}
                self._kept = {key: message for key, message in self._kept.items() if key in running}

    def on_settled(self) -> None:
        """See `Swapper`: now the Board need not say any more that these run."""
        if self._settling:
            with self._state:
                for one in self._settling:
                    self._leave_place(one)
            self._settling = []

    def _patience(self) -> float:
        if self.suspects.waiting or self.suspects.running:
            return SUSPECT_TICK
        if (events := self.executor.events) is not None and (events or not self._last_has_begun()):
            return TICK
        if len(self._shown) == len(self.running):
            return IDLE_WAIT
        return min(LONG, max(0.005, self._look_at - time.monotonic()))

    def _last_has_begun(self) -> bool:
        with self._state:
            last = next(reversed(self.running.values()), None)
        return last is None or last.call is not None

    # -- running ---------------------------------------------------------------------------

    def _start(self, fresh: Sequence[Delivery]) -> None:
        """Have the deliveries run; those under which a run has died before, one after the other."""
        for delivery in fresh:
            (self.suspects.waiting if delivery.deliveries > 0 else self._behind).append(delivery)
        batch: list[Delivery] = []
        if not self.suspects.alone(self.running):
            batch, self._behind = self._behind[: len(self._places)], self._behind[len(self._places) :]
        elif self._places and (suspect := self.suspects.next(self.running)) is not None:
            if self.done:
                self.swap(0, 0)
            batch = [suspect]
        if self.told:
            batch = [one for one in batch if self.consumer.holds(one) and self._let_go(one)]
        if batch:
            with self._state:
                placed = [self._placed(delivery) for delivery in batch]
                self._write_entry()
            self.runner.run(placed)

    def _give_back(self, fresh: Sequence[Delivery] = ()) -> None:
        """Let go of what has not begun, the last one first: each goes to the queue's front."""
        for delivery in reversed([*self.suspects.waiting, *self._behind, *fresh]):
            self.done.append(Outcome(delivery, Verdict.REQUEUE))
        self.suspects.waiting.clear()
        self._behind.clear()

    def _placed(self, delivery: Delivery) -> Running:
        receipt, place = delivery.receipt, self._places.pop()
        key = ""
        if self.told:
            key = key_of(delivery)
            self.slot.name_run(key, place)
        self.slot.take_place(place, receipt)
        one = self.running[receipt] = Running(delivery, place, key)
        if receipt > self._newest:
            self._newest = receipt
        return one

    def _let_go(self, delivery: Delivery) -> bool:
        """Have the broker forget an early-ack message that somebody had before; see `Loop`."""
        if not delivery.message.headers.get("redelivered"):
            return True
        task = self.executor.tasks.get(delivery.message.task)
        if task is None or self.executor.plan(task).acks_late or not self._keep({key_of(delivery): delivery}):
            return True
        try:
            self.consumer.acknowledge(delivery)
        except OperationalError as error:
            log.debug("%s", error)
            return False
        return True

    def _keep(self, more: dict[str, Delivery]) -> bool:
        """Keep the messages on the board, as the broker is about to let go of them."""
        wanted = {**self._kept, **{key: one.message for key, one in more.items()}}
        if not self.slot.keep_messages(wanted):
            return False
        self._kept = wanted
        return True

    def _write_entry(self) -> None:
        began = time.monotonic() if len(self._places) < self.board.places else 0.0
        self.slot.write(self._newest, began, 0.0, len(self._places))

    def begun(self, one: Running, call: Call) -> None:
        """A runner is about to call; from any thread."""
        one.call = call

    def ended(self, one: Running, outcome: Outcome) -> None:
        """A runner has an outcome; from any thread.  One that comes late is passed over."""
        slot, receipt = self.slot, one.delivery.receipt
        with self._state:
            if self.running.get(receipt) is not one:
                return
            self.finish(outcome)
            slot.processed += 1
            del self.running[receipt]
            if slot.note(outcome, one.key):
                self._leave_place(one)
            else:
                # As far as anybody can tell it runs, until it is settled.
                self._unnoted.append(one)
        if self._waiting:
            self._waiting = False
            self.consumer.wake()
        elif self._asleep:
            self._asleep = False
            self._something_ended.set()

    def _leave_place(self, one: Running) -> None:
        self.slot.take_place(one.place, 0)
        if self.told:
            self.slot.name_run("", one.place)
        self._places.append(one.place)
        if len(self._places) == self.board.places:
            self._write_entry()

    # -- looking after what runs -----------------------------------------------------------

    def _look_after(self) -> None:
        """Mark long runs as started, show them on the Board, keep the lease."""
        now = time.monotonic()
        self.tally.look(now)
        long: list[Running] = []
        self._look_at = now + LONG
        with self._state:
            for one in self.running.values():  # in the order in which they were started
                if one.call is not None:
                    if now - one.call.began < LONG:
                        self._look_at = one.call.began + LONG
                        break
                    long.append(one)
        fresh = [one for one in long if not one.marked]
        if fresh:
            self._mark(fresh)
        if long != self._shown:
            self._shown = long
            self.tally.show()
            self.slot.show([run_of(one.call) for one in long if one.call is not None])
        if long and now - self._renewed > min(RENEW, self.consumer.renew):
            self._renewed = now
            with contextlib.suppress(OperationalError, BackendError):
                self.consumer.extend(())
                if self.executor.admission is not None:
                    self.executor.admission.renew([one.call for one in long if one.call is not None])

    def _mark(self, fresh: Sequence[Running]) -> None:
        records: list[Record] = []
        with ExitStack() as stack:
            for one in fresh:
                call = one.call
                assert call is not None
                if self.told and one.delivery.once:
                    one.delivery.once = self._keep({one.key: one.delivery})
                if call.plan.track_started:
                    stack.enter_context(call.request.state_lock)
                    if not call.request.reported and (record := self.executor.started(call)) is not None:
                        records.append(record)
            try:
                with self.lock:
                    self.post_news()
                    self.consumer.extend([one.delivery for one in fresh], records)
                    self.note_name()
            except (OperationalError, BackendError) as error:
                log.debug("%s", error)  # the next swap reports it
                return
        for one in fresh:
            one.marked = True

    # -- orders ----------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self.orders.closed:
            for order in self.orders.read():
                if isinstance(order, Terminate):
                    if (one := self.running.get(order.receipt)) is not None and one.call is not None:
                        self.runner.interrupt(one, order)
                    continue
                if isinstance(order, Change):
                    if not self._change(order):
                        continue
                    order = REPLACE  # what runs is held by this consumer
                if order == REPLACE:
                    self.wear_out()
                # The parent's death is an order to stop as well.
                self._quitting = self._quitting or order == QUIT
                self.stopping.set()
                self.consumer.wake()
                self._something_ended.set()

    def _change(self, order: Change) -> bool:
        """Obey a change; whether it takes another child."""
        try:
            return self.obey(order)
        except Exception:
            log.exception("a change is not obeyed: %s %s", order.topic, order.key)
            return False

    def _leave(self) -> None:
        """End what runs, and this process with it."""
        with self._state:
            left, self.running = list(self.running.values()), {}
        for one in left:
            if one.call is not None:
                outcome = self.executor.terminated(one.call, "cold shutdown")
                self.finish(outcome)
                self.slot.note(outcome, one.key)
        self._give_back()
        settled = self.settle_all() and all(one.call is not None for one in left)
        if settled:
            self.consumer.close()
            self.slot.write(self._newest, 0.0)  # or it would look like an end in mid-task
        with contextlib.suppress(Exception):
            logging.shutdown()
        os._exit(0 if settled else UNSETTLED)
