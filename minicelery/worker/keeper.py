"""The one thread of a child whose loop runs its tasks itself."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minicelery import signals
from minicelery.exceptions import BackendError, OperationalError, SoftTimeLimitExceeded
from minicelery.message import Outcome
from minicelery.worker import coroutines
from minicelery.worker.board import Run
from minicelery.worker.call import Call, RunRevoked
from minicelery.worker.fates import key_of
from minicelery.worker.orders import QUIT, REPLACE, Change, Orders, Terminate
from minicelery.worker.swapper import RENEW, TICK, UNSETTLED
from minicelery.worker.tally import Tally

if TYPE_CHECKING:
    from minicelery.worker.loop import Loop

log = logging.getLogger("minicelery.worker.loop")

LINGER = 0.5  # the keeper goes on ticking this long after the last task
STUCK = 0.5  # unstarted deliveries are given back now, whether or not a sibling is idle
KEEPER_PAUSE = 0.2  # after a failed act
STAMPS = 512  # characters of a run's stamps that the board has room for


class Keeper(threading.Thread):
    """The thread that looks after a loop while its main thread is busy."""

    def __init__(self, loop: Loop, orders: int) -> None:
        super().__init__(name="minicelery-keeper", daemon=True)
        self.loop = loop
        self.orders = Orders(orders)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        self.parked = True
        self._stopped = False
        self._marked: Call | None = None
        self._shown = False  # the board names a run
        self._renewed = time.monotonic()
        self._retry_at = 0.0
        self.tally = Tally(loop.slot, loop.executor)

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
        self.tally.show()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self.orders.fd, select.POLLIN)
        while not self._stopped:
            ready = poll.poll(None if self.parked else TICK * 1000)
            for fd, _ in ready:
                if fd == self._read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._read, 4096)
                elif not self._hear():
                    poll.unregister(self.orders.fd)
            if self._stopped:
                return
            try:
                self.tally.look(time.monotonic())
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
                else:
                    self.tally.show()

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
        elif self._shown and call is not self._marked:
            self._shown = False
            loop.slot.show(())
        if began and now - self._renewed > min(RENEW, loop.consumer.renew):
            self._locked(lambda: loop.consumer.extend(()))
            if call is not None and loop.executor.admission is not None:
                loop.executor.admission.renew([call])
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
                loop.post_news()
                loop.consumer.extend([call.delivery], [record] if record else ())

        self.tally.show()
        loop.slot.show([run_of(call)])
        self._shown = True
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
            loop.finish(outcome)
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
        code = 1 if loop.alone else 0  # a cold stop, as the parent would report it
        if signals.worker_process_shutdown.receivers:
            signals.worker_process_shutdown.send(
                sender=loop.executor.hostname, pid=os.getpid(), exitcode=code
            )
        with contextlib.suppress(Exception):
            logging.shutdown()
        loop.slot.write(loop.slot.read().receipt, 0.0)  # or it would look like an end in mid-task
        os._exit(code)

    # -- orders ----------------------------------------------------------------------------

    def _hear(self) -> bool:
        """Obey the parent; False when it is gone."""
        loop = self.loop
        for order in self.orders.read():
            if isinstance(order, Terminate):
                self._terminate(order)
            elif isinstance(order, Change):
                self._change(order)
            elif order == REPLACE:
                loop.wear_out()
                loop.stopping.set()
                loop.wake()
            elif order == QUIT:
                self._quit()
            else:
                # The parent's death is an order to stop as well.
                loop.stopping.set()
                loop.wake()
                if loop.waiting and loop.began:
                    with contextlib.suppress(OperationalError, BackendError):
                        self._give_back()
        return not self.orders.closed

    def _change(self, order: Change) -> None:
        try:
            self.loop.change(order)
        except Exception:
            log.exception("a change is not obeyed: %s %.80r", order.topic, order.key)

    def _quit(self) -> None:
        loop = self.loop
        loop.stopping.set()
        loop.wake()

        def leave() -> None:
            call = loop.current
            self._leave(None if call is None else loop.executor.terminated(call, "cold shutdown"))

        if not self._locked(leave, 1.0):
            os._exit(UNSETTLED)

    def _terminate(self, order: Terminate) -> None:
        """End the run of one delivery, if that is what runs; this process goes with it."""
        loop = self.loop
        call = loop.current
        if call is None or call.delivery.receipt != order.receipt:
            return
        if order.signal is signal.SIGUSR1:
            # As in Celery: the soft limit's exception, which the task may handle.
            loop.interrupt(call, soft_limit_reached(call))
            return
        if loop.alone:
            loop.interrupt(call, RunRevoked(order.signal))
            return
        if _is_the_tasks(signal.getsignal(order.signal)):
            os.kill(os.getpid(), order.signal)
            return

        def leave() -> None:
            if loop.current is call:
                loop.stopping.set()
                self._leave(loop.executor.terminated_by(call, order.signal))

        self._locked(leave, 1.0)


def soft_limit_reached(call: Call) -> SoftTimeLimitExceeded:
    """The soft limit's exception, of the kind that the task is of."""
    return coroutines.SoftLimitReached() if call.plan.is_async else SoftTimeLimitExceeded()


def run_of(call: Call) -> Run:
    """What the board tells of a call that runs."""
    message = call.delivery.message
    headers = message.headers
    return Run(
        message.id, message.task, call.delivery.receipt, time.time() - (time.monotonic() - call.began),
        str(headers.get("argsrepr", ""))[:1024], str(headers.get("kwargsrepr", ""))[:1024],
        message.queue, not call.plan.acks_late, message.exchange, message.routing_key or message.queue,
        message.priority, bool(call.request.redelivered), _stamps(headers),
    )  # fmt: skip


def _stamps(headers: dict[str, Any]) -> str:
    stamps = headers.get("stamps")
    if not stamps:
        return ""
    try:
        text = json.dumps(stamps)
    except (TypeError, ValueError):
        return ""
    return text if len(text) <= STAMPS else ""


def _is_the_tasks(handler: Any) -> bool:
    """Whether user code has said what a signal does."""
    if not callable(handler) or handler is signal.default_int_handler:
        return False
    return not str(getattr(handler, "__module__", "")).startswith("minicelery.")
