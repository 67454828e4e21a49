"""Bodies of chords where the store that counts their parts can't send them itself.

It is another server than the broker, or nobody ends a part any more and the deadline has
come.  Then a body is *owed* from the moment it is due until it has begun: whoever stored the
last part sends it, and should that one die, a worker's agent does.  Copies that are sent so
differ in a header, and the first one to begin claims the group for itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minicelery.broker import Backend
from minicelery.exceptions import MiniCeleryError
from minicelery.message import BODY_HEADER, COPY_HEADER, Message, Outcome, Record, new_id

RESEND = 5.0
"""Seconds after which a body that nobody has said to be sent is sent again; then twice as long, and so on."""
LOOK_AGAIN = 600.0
"""The same for a body that was sent, and has not begun."""


def pause(first: float, tries: int) -> float:
    """Seconds to the next try, after so many."""
    return first * 2.0 ** min(tries, 10)


def released(body: Message, countdown: float | None) -> Message:
    """The body as it is sent now by the server that keeps it."""
    due = body.due if countdown is None else time.time() + countdown
    return replace(body, headers=dict(body.headers), properties=dict(body.properties), due=due)


def as_copy(body: Message) -> Message:
    """A released body that others may send as well: straight to its queue."""
    body.headers[COPY_HEADER] = new_id()
    body.headers_text = ""
    body.exchange, body.routing_key = "", body.queue
    return body


def groups_of(bodies: Sequence[Message]) -> list[str]:
    """The ids of the groups that they are the bodies of."""
    return [body.headers[BODY_HEADER] for body in bodies]


class Apart:
    """A consumer's result store that is another server: records first, then what follows from them."""

    def __init__(self, backend: Backend) -> None:
        self.backend: Any = backend
        self._leaving: list[str] = []  # groups whose bodies are about to be sent
        self._ended: list[tuple[str, str]] = []  # groups and copies of bodies that are about to be settled

    def store(self, outcomes: Sequence[Outcome]) -> None:
        """Store the records of `outcomes`, once; bodies that are due leave with the last of them."""
        self._leaving.clear()  # what has not left by now may never do so
        self._ended.clear()
        records: list[Record] = []
        for outcome in outcomes:
            if outcome.record is not None:
                records.append(outcome.record)
            if outcome.more:
                records += outcome.more
            headers = outcome.delivery.message.headers
            if COPY_HEADER in headers:
                self._ended.append((str(headers.get(BODY_HEADER)), str(headers[COPY_HEADER])))
        if not records:
            return
        bodies = self.backend.store(records)
        for outcome in outcomes:
            outcome.record, outcome.more = None, ()
        if bodies:
            outcomes[-1].publish = [*outcomes[-1].publish, *bodies]
            self._leaving = groups_of(bodies)

    def settled(self) -> None:
        """What `store` was given last has been settled."""
        if self._leaving or self._ended:
            with contextlib.suppress(MiniCeleryError):  # then they are sent again, for nothing
                if self._leaving:
                    self.backend.group_sent(self._leaving)
                for id, copy in self._ended:
                    self.backend.claim_group(id, copy)  # also of one that was refused before it asked
            self._leaving.clear()
            self._ended.clear()
