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
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicelery import signals
from minicelery.beat import Beat
from minicelery.beat.watch import BeatWatch
from minicelery.broker import LEASE, Backend, Broker, Consumer
from minicelery.broker.chords import groups_of
from minicelery.exceptions import BackendError, BrokerUnavailable, MiniCeleryError, OperationalError
from minicelery.message import COPY_HEADER, Delivery, Message, Outcome, Verdict, new_id
from minicelery.worker.board import DONE, Board, as_outcome
from minicelery.worker.executor import Executor
from minicelery.worker.fates import bury, sort_out

log = logging.getLogger(__name__)

TEND = 1.0
LONG = 30.0
"""Seconds until a result store that has not answered is asked again."""
HEARTBEAT = 2.0
"""Seconds between two signals of life for `heartbeat_sent`, for as long as the broker answers."""
PATIENCE = 10.0
"""Seconds the agent tries to settle what is left when it is told to stop."""
JOB = 128
"""A child holds at most this many deliveries."""


@dataclass(slots=True)
class Estate:
    """What a dead consumer held, until it is settled."""

    heir: Consumer
    names: list[str]  # the dead one's, the last one first
    started: Mapping[int, str]
    journal: Callable[[dict[int, Delivery]], dict[int, Outcome]]
    index: int | None = None  # of its slot
    outcomes: list[Outcome] | None = None  # None until the heir has it


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
        report: Callable[[str], None],
        lease: float = LEASE,
        tell_depth: bool = False,
    ) -> None:
        self.broker = broker
        self.backend = backend
        self.executor = executor
        self.queues = list(queues)
        self.hostname = hostname
        self.board = board
        self.orders = orders
        self.report = report  # a line to the parent
        self.tell_depth = tell_depth
        self.beat: Beat | None = None
        self.beat_watch: BeatWatch | None = None
        self.lost: dict[int, str] = {}  # slots of dead children, and how they died
        self.estates: list[Estate] = []
        self.every = min(TEND, lease / 4)
        self.stop_by: float | None = None
        self._told = bool(
            board.obituaries.entries()
        )  # obituaries were written, of what may be back in the queues by now
        self._heard = b""
        self._tended = 0.0
        self._beaten = 0.0
        self._outage = 0
        self._retry_at = 0.0
        self._news: Callable[[str], dict[str, bytes]] = getattr(broker, "news", broker.recall)
        self._ended: dict[tuple[int, int], str] = {}  # runs whose end was ordered: pid, receipt -> signal
        self._owed_at = 0.0
        self._owed: Callable[[float, str], list[Message]] | None = getattr(backend, "owed_groups", None)
        open_lookout = getattr(broker, "lookout", None)
        self.lookout = open_lookout(self.queues) if open_lookout is not None else None

    def run(self) -> int:
        """Until ordered to stop, or the parent is gone."""
        beating = self._start_beat()
        while True:
            now = time.monotonic()
            done = not self.lost and not self.estates and not self._told
            if self.stop_by is not None and (done or now > self.stop_by):
                break
            try:
                if now >= self._retry_at:
                    self._work(now)
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
        if self.beat is not None and beating is not None:
            self.beat.stop()
            beating.join(PATIENCE)
        self.broker.close()
        return 0

    def _start_beat(self) -> threading.Thread | None:
        """Send periodic tasks in a thread: settling what a dead child held must not wait for it."""
        if self.beat is None:
            return None
        thread = threading.Thread(target=self.beat.run, name="minicelery-beat", daemon=True)
        thread.start()
        return thread

    def _work(self, now: float) -> None:
        for index in list(self.lost):
            estate = self._estate_of_child(index, self.lost.pop(index))
            if not estate.heir.adopts:
                estate.outcomes = self._tell(index, estate.started)
            self.estates.append(estate)
        self._settle_estates()
        if self.stop_by is not None and self._told:
            self._collect()
        if now - self._tended >= self.every:
            ended = self.broker.tend(self.queues, self._alive())
            self._tended, self._outage = now, 0
            for name in ended:
                log.warning("Consumer %s is gone: what it held is taken over", name)
                heir = self.broker.consumer(self.queues, f"{self.hostname}/{new_id()}", self.backend)
                self.estates.append(Estate(heir, [name], {}, lambda held: {}))
            self._settle_estates()
            self._end_revoked()
            if self.tell_depth:
                self.report(f"depth {sum(map(self.broker.size, self.queues))}")
            if signals.heartbeat_sent.receivers and now - self._beaten >= HEARTBEAT:
                self._beaten = now
                signals.heartbeat_sent.send(sender=self)
            self._send_owed()
            if self.beat_watch is not None:
                self.beat_watch.look(now)

    def _send_owed(self) -> None:
        """Send bodies of chords that nobody else sends: see `broker.chords`."""
        if self._owed is None or time.monotonic() < self._owed_at:
            return
        self._owed_at = time.monotonic() + LONG  # a store that does not answer must not keep it from the rest
        bodies = self._owed(time.time(), self.broker.place)
        for body in bodies:
            self._send_body(body)
        self._owed_at = 0.0

    def _send_body(self, body: Message) -> None:
        backend: Any = self.backend
        # Where messages are sent unconfirmed, this one is not.
        publish = getattr(self.broker, "publish_surely", self.broker.publish)
        try:
            publish([body])
            log.info("Task %s[%s], the body of a chord, has been sent", body.task, body.id)
            backend.group_sent(groups_of([body]))
        except BrokerUnavailable:
            raise
        except (MiniCeleryError, ValueError) as error:  # it never can be, and no other one must wait for it
            log.error("Task %s[%s], the body of a chord, can't be sent: %s", body.task, body.id, error)
            backend.store(self.executor.never(body, error))
            backend.claim_group(*groups_of([body]), str(body.headers[COPY_HEADER]))

    def _end_revoked(self) -> None:
        """Order the end of runs that were revoked with ``terminate=True``.

        Of each that is found: it may have been fetched before its task was revoked.
        """
        wanted = self._news("terminate")
        if not wanted and not self._ended:
            return
        running: set[tuple[int, int]] = set()
        for index, slot in enumerate(self.board.slots):
            # Its pid first: should another child take the slot now, the order is for nobody.
            entry = slot.read()
            if not entry.pid:
                continue
            receipts = slot.running_receipts() or [entry.receipt]
            running.update((entry.pid, receipt) for receipt in receipts)
            for run in slot.runs() if wanted else ():
                name, key = wanted.get(run.id, b"").decode(), (entry.pid, run.receipt)
                if name in signal.Signals.__members__ and self._ended.get(key) != name:
                    self._ended[key] = name
                    running.add(key)
                    self.report(f"terminate {index} {run.receipt} {name} {entry.pid}")
        self._ended = {key: name for key, name in self._ended.items() if key in running}

    def _alive(self) -> list[str]:
        alive = [estate.heir.name for estate in self.estates]
        left = {estate.index for estate in self.estates}
        for index, slot in enumerate(self.board.slots):
            if slot.read().pid and index not in left and index not in self.lost:
                alive.append(slot.consumer_names()[0])
        return alive

    def _estate_of_child(self, index: int, reason: str) -> Estate:
        slot = self.board.slots[index]
        entry = slot.read()
        receipt = entry.receipt
        runs = slot.running_receipts()
        # Always of this name: should this agent die as well, the next one finds what it had taken over.
        heir = self.broker.consumer(self.queues, f"{slot.name}/heir", self.backend)
        if heir.adopts and self.board.places > 1:
            started = dict.fromkeys(runs, reason)
        else:
            started = dict.fromkeys([*range(max(1, receipt - JOB), receipt + 1), *runs], reason)
        for one in started:
            name = self._ended.pop((entry.pid, one), None)
            if name is not None and name != signal.SIGUSR1.name:  # that one ends nothing
                started[one] = f"revoked: {name}"
        return Estate(heir, slot.consumer_names(), started, slot.journal, index)

    def _settle_estates(self) -> None:
        while self.estates:
            estate = self.estates[0]
            if estate.outcomes is None:
                estate.outcomes = self._outcomes(estate)
            if estate.outcomes:
                estate.heir.swap(estate.outcomes, 0, 0.0)
            # Not before: what an heir that fails gives back would run again, uncounted.
            estate.heir.close()
            if estate.index is not None:
                self.report(str(estate.index))
            self.estates.pop(0)

    def _outcomes(self, estate: Estate) -> list[Outcome]:
        """Take over what is left; how each delivery ends: as noted, failed, or back in its queue."""
        held: dict[int, Delivery] = {}
        for name in estate.names:
            held.update({delivery.receipt: delivery for delivery in estate.heir.adopt(name, estate.started)})
        finished = estate.journal(held)
        outcomes = []
        # The last one first: each that goes back goes to the front.
        for receipt in sorted(held, reverse=True):
            outcome: Any = finished.get(receipt)
            if outcome is None and held[receipt].started:
                outcome = self._end_of(held[receipt])
            if not isinstance(outcome, Outcome):
                outcome = Outcome(held[receipt], Verdict.REQUEUE)
            outcomes.append(outcome)
        return outcomes

    def _tell(self, index: int, started: Mapping[int, str]) -> list[Outcome]:
        """Where the broker gives back what a dead child held: tell who fetches it what it was.

        The outcomes of what it does not give back, as it had let go of it, are for the heir.
        """
        self._told = True
        slot = self.board.slots[index]
        entry = slot.read()
        if started.get(entry.receipt) == DONE:
            bury(self.board.obituaries, slot)
            return []
        kept = slot.kept_messages()
        outcomes = []
        noted = slot.noted()
        for key, let_go, fields in noted:
            if let_go:
                message = kept.get(key) or Message("", "", b"", {})
                outcomes.append(as_outcome(Delivery(message, 0, let_go=True), fields))
        ended = {key for key, _, _ in noted}
        receipts = slot.receipts_of_keys() if entry.began else {}
        running = {key: started.get(receipt) for key, receipt in receipts.items() if key not in ended}
        for key, reason in running.items():
            if key in kept:
                lost = Delivery(kept[key], 0, started=True, reason=reason, let_go=True)
                if isinstance(outcome := self._end_of(lost), Outcome):
                    outcomes.append(outcome)
        # Also of what had just been let go of: it may come back nevertheless.
        bury(self.board.obituaries, slot, running)
        return outcomes

    def _collect(self) -> None:
        """At the end: settle what dead children had begun and the broker has given back.

        No child of this worker is left to fetch it, and no other worker knows of it.
        """
        heir = self.broker.consumer(self.queues, f"{self.hostname}/{new_id()}", self.backend)
        try:
            left, outcomes, aside = sort_out(self.board, heir.swap([], JOB, 0.0))
            for delivery in reversed([*left, *aside]):
                outcome: Any = self._end_of(delivery) if delivery.started else None
                outcomes.append(
                    outcome if isinstance(outcome, Outcome) else Outcome(delivery, Verdict.REQUEUE)
                )
            heir.swap(outcomes, 0, 0.0)
        finally:
            heir.close()
        self._told = False

    def _end_of(self, delivery: Delivery) -> Any:
        try:
            outcome = self.executor.begin(delivery)
            if isinstance(outcome, Outcome) and (admission := self.executor.admission) is not None:
                admission.free(outcome)
            return outcome
        except Exception as error:  # of the task's own handlers: it must not stop the agent
            message = delivery.message
            log.exception("The end of task %s[%s] could not be handled", message.task, message.id)
            return Outcome(delivery, Verdict.REJECT, reason=f"{delivery.reason}; then {type(error).__name__}")

    # -- waiting ---------------------------------------------------------------------------

    def _wait(self) -> None:
        now = time.monotonic()
        timeout = max(0.0, self._tended + self.every - now)
        if self._retry_at > now:
            timeout = min(max(timeout, 0.05), self._retry_at - now)
        elif self.lost or self.estates:
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
