"""Limits across workers, as a worker keeps them: who may begin, who waits, what is free again.

A process has one `Admission`.  `admit` is asked before a run begins, `renew` keeps the places of
those that run, `free` adds to an outcome what its delivery has held.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from minicelery.broker import Limits
from minicelery.exceptions import MiniCeleryError, OperationalError
from minicelery.limits import LEASE, Ask, TaskLimits, Wait, of_task
from minicelery.message import TURN_HEADER, UNIQUE_HEADER, Delivery, Outcome, Verdict, decode_body
from minicelery.serialization import accepted

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.worker.call import Call

log = logging.getLogger(__name__)

OUTAGE_PAUSE = 2.0
"""Seconds after which a message asks again whose limits could not be asked."""
COMPLAIN_EVERY = 30.0


class Admission:
    """The limits of one app's tasks, in one process.  Thread-safe."""

    def __init__(self, app: Celery, store: Limits) -> None:
        self.app = app
        self.store = store
        self._limits: dict[str, TaskLimits | None] = {}
        self._accept = accepted(app.conf.accept_content)
        self._complained = float("-inf")

    def limits(self, name: str) -> TaskLimits | None:
        """The limits of the task of that name; None where it has none, or is not known."""
        try:
            return self._limits[name]
        except KeyError:
            task = self.app.tasks.get(name)
            found = self._limits[name] = None if task is None else of_task(task, self.app.conf)
            return found

    def forget(self, name: str) -> None:
        """The limits of that task have changed."""
        self._limits.pop(name, None)

    def admit(self, call: Call) -> Outcome | None:
        """None where the call may begin now; else the outcome that has its message wait.

        One trip to the store, none where the task is `unique` only.  Raises InvalidTaskError
        where a key function fails; never for a store that can't be reached: then nothing begins.
        """
        delivery = call.delivery
        delivery.gates = ()
        limits = self.limits(delivery.message.task)
        ask = limits.ask(delivery.message.id, call.args, call.kwargs) if limits is not None else None
        if ask is None:
            return None
        ask.turn = _turn(delivery)
        ask.lease = max(LEASE, (call.time_limit or 0.0) + LEASE)
        try:
            wait = self.store.admit(ask)
        except OperationalError as error:
            self._complain(error)
            return self._later(delivery, random.uniform(OUTAGE_PAUSE / 2, OUTAGE_PAUSE))
        if wait is not None:
            return self._waiting(delivery, wait)
        delivery.message.headers.pop(TURN_HEADER, None)
        delivery.admitted = time.monotonic()
        if ask.room:
            delivery.gates = (ask.room,)
        return None

    def renew(self, calls: Iterable[Call]) -> None:
        """Keep the places of calls that run; at least every ten seconds.  Raises OperationalError."""
        places = [
            (gate, call.delivery.message.id, max(LEASE, (call.time_limit or 0.0) + LEASE))
            for call in calls
            for gate in call.delivery.gates or ()
        ]
        if places:
            self.store.renew(places)

    def free(self, outcome: Outcome) -> Outcome:
        """The outcome of a limited task's delivery, with what is free again once it is settled.

        Every outcome may be given, once: those of calls that ran, of lost runs, of revoked,
        expired and rejected messages, and what `admit` has returned.
        """
        delivery = outcome.delivery
        if outcome.park is not None or (delivery.gates is None and _never_begun(outcome)):
            return outcome
        release = self._held(delivery)
        key = delivery.message.headers.get(UNIQUE_HEADER)
        if type(key) is str and _is_final(outcome):
            limits = self.limits(delivery.message.task)
            if limits is None or limits.until_done:
                release = (*release, key)
        if not release:
            return outcome
        if self.store.parks:
            outcome.release = release
            return outcome
        took = time.monotonic() - delivery.admitted if delivery.admitted else 0.0
        try:
            self.store.free(delivery.message.id, release, took)
        except OperationalError as error:
            self._complain(error)  # its lease ends by itself
        return outcome

    def _held(self, delivery: Delivery) -> tuple[str, ...]:
        """The gates that have counted with this delivery."""
        if delivery.gates is not None:
            return delivery.gates
        # Begun by a process that is dead, or revoked or expired at its turn.
        ask = self._ask(delivery)
        if ask is None:
            return ()
        called = ask.rate if not delivery.started and _turn(delivery) is not None else ""
        return tuple(gate for gate in (ask.room, called) if gate)

    def _ask(self, delivery: Delivery) -> Ask | None:
        limits = self.limits(delivery.message.task)
        if limits is None or delivery.broken is not None or not (limits.interval or limits.size):
            return None
        try:
            args, kwargs, _ = decode_body(delivery.message, self._accept)
            return limits.ask(delivery.message.id, args, kwargs)
        except (MiniCeleryError, RecursionError):
            return None

    def _waiting(self, delivery: Delivery, wait: Wait) -> Outcome:
        delivery.message.headers[TURN_HEADER] = wait.turn
        if self.store.parks:
            return Outcome(delivery, Verdict.PARK, park=(wait.gate, wait.turn))
        return self._later(delivery, wait.seconds)

    def _later(self, delivery: Delivery, seconds: float) -> Outcome:
        """Into the broker's delay."""
        message = delivery.message
        message.due = time.time() + seconds
        message.exchange, message.routing_key = "", message.queue
        return Outcome(delivery, publish=(message,))

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained > COMPLAIN_EVERY:
            self._complained = now
            log.warning("Limits can't be asked, so limited tasks wait: %s", error)


def _turn(delivery: Delivery) -> float | None:
    turn = delivery.message.headers.get(TURN_HEADER)
    return float(turn) if isinstance(turn, (int, float)) and 0 < turn < 1e11 else None


def _never_begun(outcome: Outcome) -> bool:
    return outcome.verdict is Verdict.REQUEUE and not outcome.delivery.started


def _is_final(outcome: Outcome) -> bool:
    """Whether the call has come to its end: no other attempt at it follows."""
    if outcome.verdict is Verdict.REQUEUE or outcome.verdict is Verdict.PARK:
        return False
    id = outcome.delivery.message.id
    return all(message.id != id for message in outcome.publish)
