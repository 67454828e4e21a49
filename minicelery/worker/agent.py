"""The agent: a worker's network duties that are not tasks.

It renews the children's leases, settles what dead ones have left, takes over what other
workers' dead consumers hold, and notices messages of producers that do not ring the bell.
In `solo` it is a thread of the one process; else a child like any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minicelery.broker import Backend, Broker
from minicelery.exceptions import BackendError, OperationalError
from minicelery.message import Delivery, Outcome, Verdict, new_id
from minicelery.worker.board import Board
from minicelery.worker.executor import Executor

log = logging.getLogger(__name__)

TEND = 1.0
PATIENCE = 10.0
"""Seconds the agent tries to settle what is left when it is told to stop."""
JOB = 128
"""A child holds at most this many deliveries."""


class Agent:
    """Looks after the consumers of one worker."""

    def __init__(
        self,
        broker: Broker,
        backend: Backend | None,
        executor: Executor,
        queues: Sequence[str],
        hostname: str,
        board: Board,
        orders: int,
        report: Callable[[int], None],
    ) -> None:
        self.broker = broker
        self.backend = backend
        self.executor = executor
        self.queues = list(queues)
        self.hostname = hostname
        self.board = board
        self.orders = orders
        self.report = report
        self.lost: dict[int, str] = {}  # slots of dead children, and how they died
        self.stop_by: float | None = None
        self._heard = b""
        self._tended = 0.0
        self._outage = 0
        self._retry_at = 0.0
        open_lookout = getattr(broker, "lookout", None)
        self.lookout = open_lookout(self.queues) if open_lookout is not None else None

    def run(self) -> int:
        """Until ordered to stop, or the parent is gone."""
        while True:
            now = time.monotonic()
            if self.stop_by is not None and (not self.lost or now > self.stop_by):
                break
            try:
                if now >= self._retry_at:
                    self._work(now)
                    self._outage = 0
            except (OperationalError, BackendError) as error:
                if self._outage % 60 == 0:
                    log.warning("agent: %s", error)
                self._outage += 1
                self._retry_at = time.monotonic() + random.uniform(0.3, 0.8)
            except Exception:
                log.exception("agent")
                self._retry_at = time.monotonic() + 1.0
            self._wait()
        if self.lookout is not None:
            self.lookout.close()
        self.broker.close()
        return 0

    def _work(self, now: float) -> None:
        for index, reason in list(self.lost.items()):
            slot = self.board.slots[index]
            receipt = slot.read().receipt
            started = {number: reason for number in range(max(1, receipt - JOB), receipt + 1)}
            self._adopt(slot.consumer_names(), started, slot.journal)
            del self.lost[index]
            self.report(index)
        if now - self._tended >= TEND:
            self._tended = now
            alive = []
            for index, slot in enumerate(self.board.slots):
                if slot.read().pid and index not in self.lost:
                    alive.append(slot.consumer_names()[0])
            for name in self.broker.tend(self.queues, alive):
                log.warning("Consumer %s is gone: what it held is taken over", name)
                self._adopt([name], {}, lambda held: {})

    def _adopt(
        self,
        names: Sequence[str],
        started: Mapping[int, str],
        journal: Callable[[dict[int, Delivery]], dict[int, Outcome]],
    ) -> None:
        """Take over what the consumers held, and settle it: run on, failed, or back to its queue."""
        consumer = self.broker.consumer(self.queues, f"{self.hostname}/agent/{new_id()}", self.backend)
        try:
            held: list[Delivery] = []
            for name in names:
                held += consumer.adopt(name, started)
            finished = journal({delivery.receipt: delivery for delivery in held})
            outcomes = []
            # The last one first: each that goes back goes to the front.
            for delivery in sorted(held, key=lambda delivery: -delivery.receipt):
                outcome: Any = finished.get(delivery.receipt)
                if outcome is None and delivery.started:
                    outcome = self.executor.begin(delivery)
                if not isinstance(outcome, Outcome):
                    outcome = Outcome(delivery, Verdict.REQUEUE)
                outcomes.append(outcome)
            if outcomes:
                consumer.swap(outcomes, 0, 0.0)
        finally:
            consumer.close()

    # -- waiting ---------------------------------------------------------------------------

    def _wait(self) -> None:
        now = time.monotonic()
        timeout = max(0.0, self._tended + TEND - now)
        if self._retry_at > now:
            timeout = min(max(timeout, 0.05), self._retry_at - now)
        elif self.lost:
            timeout = 0.0
        poll = select.poll()
        if self.orders >= 0:
            poll.register(self.orders, select.POLLIN)
        if self.lookout is not None:
            try:
                timeout = min(timeout, self.lookout.prepare(self.board.idle()))
                for fd in self.lookout.filenos():
                    poll.register(fd, select.POLLIN)
            except OperationalError:
                timeout = min(timeout, 0.5)
        ready = {fd for fd, _ in poll.poll(timeout * 1000)}
        if self.orders in ready:
            self._hear()
        if self.lookout is not None:
            with contextlib.suppress(OperationalError):
                self.lookout.look(ready)

    def _hear(self) -> None:
        data = os.read(self.orders, 4096)
        if not data:
            self.orders = -1  # the parent is gone; its children stop by themselves
            self.stop_by = time.monotonic() + PATIENCE
            return
        self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "lost":
                index, _, reason = rest.partition(" ")
                self.lost[int(index)] = reason
                self._retry_at = 0.0
            elif word == "stop":
                self.stop_by = time.monotonic() + PATIENCE
