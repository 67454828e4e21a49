"""What dead children and consumers have left: taken over, and settled as they had noted it.

Where the broker gives back by itself what a lost connection held (`Consumer.adopts` is
False), the Board is told instead, for whoever fetches it: see `worker.fates`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicelery.broker import Backend, Broker, Consumer
from minicelery.message import Delivery, Message, Outcome, Verdict, new_id
from minicelery.worker.board import DONE, Board, as_outcome
from minicelery.worker.executor import Executor
from minicelery.worker.fates import bury, sort_out
from minicelery.worker.terminations import Terminations

log = logging.getLogger(__name__)

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
    told: Collection[int] = ()  # receipts of the runs that were long enough to be told of
    outcomes: list[Outcome] | None = None  # None until the heir has it


class Estates:
    """The estates of one worker; all calls may raise OperationalError or BackendError, and be repeated."""

    def __init__(
        self,
        broker: Broker,
        backend: Backend | None,
        executor: Executor,
        hostname: str,
        board: Board,
        terminations: Terminations,
        on_settled: Callable[[int], None],
    ) -> None:
        self.broker = broker
        self.backend = backend
        self.executor = executor
        self.hostname = hostname
        self.board = board
        self.terminations = terminations
        self.on_settled = on_settled  # called with the index of a slot that is free again
        self.lost: dict[int, str] = {}  # slots of dead children, and how they died
        self.untold = bool(board.obituaries.entries())
        """Obituaries were written, of what may be back in the queues by now."""
        self._left: list[Estate] = []

    @property
    def pending(self) -> bool:
        """Whether something waits to be settled."""
        return bool(self.lost or self._left)

    def alive(self) -> list[str]:
        """The consumers' names of the children that are there, and of their heirs."""
        names = [estate.heir.name for estate in self._left]
        left = {estate.index for estate in self._left}
        for index, slot in enumerate(self.board.slots):
            if slot.read().pid and index not in left and index not in self.lost:
                names.append(slot.consumer_names()[0])
        return names

    def take_over(self, name: str, queues: Sequence[str]) -> None:
        """Inherit what a consumer held that is of no child here."""
        heir = self.broker.consumer(queues, f"{self.hostname}/{new_id()}", self.backend)
        self._left.append(Estate(heir, [name], {}, lambda held: {}))

    def settle(self, queues: Sequence[str]) -> None:
        """Settle what dead children held, and what was taken over."""
        for index in list(self.lost):
            estate = self._of_child(index, self.lost.pop(index), queues)
            if not estate.heir.adopts:
                estate.outcomes = self._tell(index, estate.started)
            self._left.append(estate)
        while self._left:
            estate = self._left[0]
            if estate.outcomes is None:
                estate.outcomes = self._outcomes(estate)
            self._post_news(estate.heir)
            if estate.outcomes:
                estate.heir.swap(estate.outcomes, 0, 0.0)
            # Not before: what an heir that fails gives back would run again, uncounted.
            estate.heir.close()
            if estate.index is not None:
                self.on_settled(estate.index)
            self._left.pop(0)

    def collect(self, queues: Sequence[str]) -> None:
        """At the end: settle what dead children had begun and the broker has given back.

        No child of this worker is left to fetch it, and no other worker knows of it.
        """
        heir = self.broker.consumer(queues, f"{self.hostname}/{new_id()}", self.backend)
        try:
            left, outcomes, aside = sort_out(self.board, heir.swap([], JOB, 0.0))
            for delivery in reversed([*left, *aside]):
                outcome: Any = self._end_of(delivery) if delivery.started else None
                outcomes.append(
                    outcome if isinstance(outcome, Outcome) else Outcome(delivery, Verdict.REQUEUE)
                )
            self._post_news(heir)
            heir.swap(outcomes, 0, 0.0)
        finally:
            heir.close()
        self.untold = False

    # -- one of them -----------------------------------------------------------------------

    def _of_child(self, index: int, reason: str, queues: Sequence[str]) -> Estate:
        slot = self.board.slots[index]
        entry = slot.read()
        receipt = entry.receipt
        runs = slot.running_receipts()
        # Always of this name: should this agent die as well, the next one finds what it had taken over.
        heir = self.broker.consumer(queues, f"{slot.name}/heir", self.backend)
        if heir.adopts and self.board.places > 1:
            started = dict.fromkeys(runs, reason)
        else:
            started = dict.fromkeys([*range(max(1, receipt - JOB), receipt + 1), *runs], reason)
        for one in started:
            started[one] = self.terminations.reason(entry.pid, one) or reason
        told = [run.receipt for run in slot.runs()]
        return Estate(heir, slot.consumer_names(), started, slot.journal, index, told=told)

    def _outcomes(self, estate: Estate) -> list[Outcome]:
        """Take over what is left; how each delivery ends: as noted, failed, or back in its queue."""
        held: dict[int, Delivery] = {}
        for name in estate.names:
            held.update({delivery.receipt: delivery for delivery in estate.heir.adopt(name, estate.started)})
        finished = estate.journal(held)
        self._tell_begun(
            [one for one in held.values() if one.started and one.receipt not in finished], estate
        )
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
        self.untold = True
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

    # -- events ----------------------------------------------------------------------------

    def _tell_begun(self, lost: Sequence[Delivery], estate: Estate) -> None:
        """Tell of runs that their children have not told of: they were shorter than a tick."""
        events, tasks = self.executor.events, self.executor.tasks
        if events is None:
            return
        for delivery in lost:
            task = tasks.get(delivery.message.task)
            if delivery.receipt not in estate.told and task is not None and task.send_events:
                events.begun(delivery.message, (), {})

    def _post_news(self, heir: Consumer) -> None:
        if events := self.executor.events:
            heir.post(events.take())
