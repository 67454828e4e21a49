"""Bodies of chords that are complete, and whose last part's worker died before it sent them.

See `broker.chords` for how a group is owed until its body has begun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from minicelery.broker import Backend, Broker
from minicelery.broker.chords import groups_of
from minicelery.exceptions import BrokerUnavailable, MiniCeleryError
from minicelery.message import COPY_HEADER, Message, Record

log = logging.getLogger(__name__)

LONG = 30.0
"""Seconds until a result store that has not answered is asked again."""


class OwedBodies:
    """Sends them."""

    def __init__(
        self, broker: Broker, backend: Backend | None, never: Callable[[Message, Exception], list[Record]]
    ) -> None:
        self.broker = broker
        self.backend: Any = backend
        self.never = never  # the records of a body that can't be sent
        self._ask: Callable[[float, str], list[Message]] | None = getattr(backend, "owed_groups", None)
        self._ask_at = 0.0
        # Where messages are sent unconfirmed, these are not.
        self._publish = getattr(broker, "publish_surely", broker.publish)

    def send(self) -> None:
        """Send what nobody else has.  Raises BrokerUnavailable and BackendError."""
        if self._ask is None or time.monotonic() < self._ask_at:
            return
        self._ask_at = time.monotonic() + LONG  # a store that does not answer must not keep us from the rest
        for body in self._ask(time.time(), self.broker.place):
            self._send(body)
        self._ask_at = 0.0

    def _send(self, body: Message) -> None:
        try:
            self._publish([body])
            log.info("Task %s[%s], the body of a chord, has been sent", body.task, body.id)
            self.backend.group_sent(groups_of([body]))
        except BrokerUnavailable:
            raise
        except (MiniCeleryError, ValueError) as error:  # it never can be, and no other one must wait for it
            log.error("Task %s[%s], the body of a chord, can't be sent: %s", body.task, body.id, error)
            self.backend.store(self.never(body, error))
            self.backend.claim_group(*groups_of([body]), str(body.headers[COPY_HEADER]))
