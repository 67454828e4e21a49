"""What follows from finished deliveries: records stored, messages sent, dead letters kept.

Acknowledging is the consumer's, and comes last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from minicelery.broker import Backend
from minicelery.broker.amqp.server import FULL, Blocked, Refused
from minicelery.broker.chords import Apart
from minicelery.exceptions import BrokerUnavailable, MiniCeleryError
from minicelery.message import COUNT_HEADER, Delivery, Message, Outcome, Record, Verdict

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

log = logging.getLogger(__name__)

MOST_OWED = 64
"""Outcomes that may wait for the server to take messages again, while others are settled."""
_PAUSE, _TRY = 1.0, 0.5


@dataclass(slots=True)
class Verdicts:
    """What is now to be said of which deliveries."""

    acked: list[Delivery] = field(default_factory=list)
    given_back: list[Delivery] = field(default_factory=list)
    refused: list[Delivery] = field(default_factory=list)  # to the queue's dead-letter exchange


class Settler:
    """Carries out one consumer's outcomes.  Each part of one is done once, however often it is tried."""

    def __init__(self, broker: AMQPBroker, backend: Backend | None) -> None:
        self._broker = broker
        self._apart = None if backend is None else Apart(backend)
        self.owed: list[Outcome] = []  # the server, or a queue, takes no messages at present
        self._why = ""
        self._retry_at = 0.0
        self._deadline: float | None = None  # seconds for each message

    def carry_out(self, outcomes: Sequence[Outcome], *, all_of_them: bool = False) -> Verdicts:
        """Do everything but acknowledge.

        What can't be sent because the server is short of memory, or a queue is full, is owed
        and tried again later.  Raises BrokerUnavailable or BackendUnavailable; with
        `all_of_them` also for what is owed.
        """
        before = self.owed
        self._deadline = _TRY if before else None
        fresh = list(outcomes)
        if before:
            # After an error they are handed in once more.
            waiting = set(map(id, before))
            fresh = [outcome for outcome in outcomes if id(outcome) not in waiting]
        tried = not before or all_of_them or time.monotonic() > self._retry_at
        self.owed = [] if tried else list(before)
        try:
            verdicts = self._carry_out([*before, *fresh] if tried else fresh)
        except BaseException:
            self.owed = before
            raise
        if self.owed:
            if tried:
                self._retry_at = time.monotonic() + _PAUSE
            if all_of_them or len(self.owed) > MOST_OWED:
                raise BrokerUnavailable(f"{self._why} ({len(self.owed)} outcomes wait for that)")
        return verdicts

    def _carry_out(self, outcomes: Sequence[Outcome]) -> Verdicts:
        if self._apart is not None:
            self._apart.store(outcomes)
        owed, hopeless = self._send(outcomes)
        if self._apart is not None and not owed and not hopeless:
            self._apart.settled()
        verdicts = Verdicts()
        rejected: list[tuple[Outcome, str]] = []
        for outcome in outcomes:
            delivery = outcome.delivery
            if id(outcome) in owed:
                self.owed.append(outcome)
            elif id(outcome) in hopeless:
                rejected.append((outcome, hopeless[id(outcome)]))
            elif outcome.verdict is Verdict.REQUEUE and not _died(outcome):
                verdicts.given_back.append(delivery)
            elif outcome.verdict is not Verdict.REJECT:
                verdicts.acked.append(delivery)
            elif "x-dead-letter-exchange" in self._broker.spec_of(delivery.message.queue).arguments:
                verdicts.refused.append(delivery)
            else:
                rejected.append((outcome, outcome.reason or "rejected"))
        for outcome, reason in rejected:
            if self._bury(outcome.delivery, reason):
                verdicts.acked.append(outcome.delivery)
            else:
                self.owed.append(outcome)
        return verdicts

    def forget(self) -> None:
        """The connection is lost: what is owed comes back with it."""
        self.owed.clear()

    def store(self, records: Sequence[Record]) -> None:
        """Store the records, where there is a result store."""
        if records and self._apart is not None:
            self._apart.backend.store(records)

    def _send(self, outcomes: Sequence[Outcome]) -> tuple[set[int], dict[int, str]]:
        """Send what follows; the outcomes for which it must wait, and those for which it never can be."""
        pending: list[tuple[Outcome, list[Message]]] = []
        for outcome in outcomes:
            messages = list(outcome.publish)
            if outcome.verdict is Verdict.REQUEUE and _died(outcome):
                messages.append(_counted(outcome.delivery))
            if messages:
                pending.append((outcome, messages))
        if not pending:
            return set(), {}
        left = [message for _, messages in pending for message in messages]
        try:
            self._broker.publish_surely(left, self._deadline)
        except BrokerUnavailable as error:
            waiting = self._unsent(pending, left)
            if not self._waits(error):
                raise
            return {id(outcome) for outcome, _ in waiting}, {}
        except (MiniCeleryError, ValueError) as error:
            waiting = self._unsent(pending, left)
            if len(waiting) == 1:
                return set(), {id(waiting[0][0]): self._give_up(waiting[0][0], error)}
            owed: set[int] = set()
            hopeless: dict[int, str] = {}
            for outcome, _ in waiting:
                late, never = self._send([outcome])
                owed |= late
                hopeless |= never
            return owed, hopeless
        self._unsent(pending, [])
        return set(), {}

    def _unsent(
        self, pending: Sequence[tuple[Outcome, list[Message]]], left: Sequence[Message]
    ) -> list[tuple[Outcome, list[Message]]]:
        """Those of which something is left to send; what is sent is struck off."""
        unsent = {id(message) for message in left}
        waiting = []
        for outcome, messages in pending:
            outcome.publish = [message for message in outcome.publish if id(message) in unsent]
            if any(id(message) in unsent for message in messages):
                waiting.append((outcome, messages))
        return waiting

    def _bury(self, delivery: Delivery, reason: str) -> bool:
        """Keep it among the dead letters; False while the server takes no messages."""
        try:
            self._broker.bury(delivery, reason, self._deadline)
        except BrokerUnavailable as error:
            if not self._waits(error):
                raise
            self._deadline = _TRY
            return False
        return True

    def _waits(self, error: BrokerUnavailable) -> bool:
        """Whether the connection is good, and there will be room for messages later."""
        cause = error.__cause__
        self._why = str(error)
        return isinstance(cause, Blocked) or (isinstance(cause, Refused) and cause.code == FULL)

    def _give_up(self, outcome: Outcome, error: Exception) -> str:
        message = outcome.delivery.message
        log.error(
            "What follows from task %s[%s] can't be sent: %s; the message is kept in the dead letters of %r",
            message.task, message.id, error, message.queue,
        )  # fmt: skip
        return f"what follows from it could not be sent: {error}"


def _died(outcome: Outcome) -> bool:
    """Whether a run has died under the message since it was sent."""
    raw = outcome.delivery.raw
    return outcome.delivery.deliveries > (raw.deaths if raw is not None else 0)


def _counted(delivery: Delivery) -> Message:
    """The message as it goes back with one more death."""
    message = delivery.message
    headers = {name: value for name, value in message.headers.items() if name != "redelivered"}
    return replace(
        message, headers=headers | {COUNT_HEADER: delivery.deliveries}, headers_text="", exchange="",
        routing_key=message.queue, due=None,
    )  # fmt: skip
