"""The revoked ids, as far as one consumer's connection has heard of them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from minicelery.broker.amqp import notes
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.server import Late, Refused
from minicelery.exceptions import OperationalError

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

log = logging.getLogger(__name__)

TOPIC = "revoked"
LOOK_AGAIN, LONGEST = 1.0, 300.0
"""Seconds after which to look again for a stream that could not be read; doubled each time."""


class Revoked:
    """Follows the stream of revoked ids."""

    def __init__(self, broker: AMQPBroker) -> None:
        self._broker = broker
        self.ids = notes.Topic(TOPIC)
        """Grows while the connection is read."""
        self.look_at = 0.0
        """When to `follow` again: monotonic seconds."""
        self._pause = LOOK_AGAIN
        self._warned = False

    def heard(self, link: Link, content: Content) -> None:
        """Note what has come on the channels of the stream."""
        notes.heard(link, self.ids, content)

    def follow(self, link: Link, end: float) -> None:
        """Read the stream, and hear on `link` what is added; where that fails, look again later.

        Raises Lost, or Refused, where the link is lost with it.
        """
        self.ids = notes.Topic(TOPIC)
        self.look_at = float("inf")
        try:
            # First on a connection of its own: a broken stream takes whole connections with it.
            if not self._broker.notes.exist(TOPIC):
                self._failed("")  # nothing has been revoked yet
                return
            notes.follow(link, self.ids, end)
            self._pause = LOOK_AGAIN
        except Late:
            pass  # what is left of it comes while tasks run
        except OperationalError as error:
            while link.readable(0):  # it may be the server that is gone, and this link with it
                link.read()
            self._failed(str(error))
        except Refused as error:
            if error.whole:
                raise
            self._failed(self._broker.server.explain(error))

    def ended(self) -> None:
        """The stream has been deleted, or has moved."""
        self.look_at = time.monotonic() + LOOK_AGAIN

    def _failed(self, words: str) -> None:
        self.look_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST)
        if words and not self._warned:
            self._warned = True
            log.warning("Revoked tasks may run: %s", words)
