"""Leads in RabbitMQ: of all who consume a queue with a single active consumer, that one leads.

A token in that queue tells who it is: it comes to the active consumer, which keeps it
unacknowledged.  When its connection ends, or is silent for too long, the server gives the
token to the next one.  Nobody has to ask.  Everyone puts a token there when it comes, as the
last one may have gone with a server that was restarted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pika import spec

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.notes import ensure_stream_once, messages_of
from minicelery.broker.amqp.server import LOST, Lost, Refused, is_down, passes
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.forking import call_in_forked_children
from minicelery.message import Message

if TYPE_CHECKING:
    from minicelery.broker.amqp.link import Content, Link
    from minicelery.broker.amqp.notes import Notes

HEARTBEAT = 4
"""Seconds: a server gives up a silent connection after twice that, and the lead with it."""
FIRST_LOOK = 0.3
"""Seconds that a token which is there takes to come."""
AGED = 600.0
"""Seconds after which a token is exchanged: what is unacknowledged for half an hour is taken away."""
SOMEBODY = "somebody"
"""Who leads, where nobody knows their name."""
_PATIENCE = 5.0
_CHANNEL = 2
_UNUSED = 7 * 86400 * 1000
"""Milliseconds after which the server drops the queue of a lead that nobody wants any more."""


class Leads:
    """The leads of this process, or its places in their lines, each on a connection of its own.  Thread-safe."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes  # which connects, and says what went wrong
        self._reset()
        call_in_forked_children(self._reset)  # the parent leads on

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}

    def take(self, name: str) -> bool:
        """Whether the lead is ours, now or still.  Must be asked every second, for the heartbeat's sake.

        Raises BrokerUnavailable, or OperationalError.
        """
        with self._lock, self._notes.in_words():
            place = self._places.get(name)
            if place is not None and place.is_kept():
                return place.leads
            self._drop(name)
            if place is not None and place.leads:  # others may have led since
                raise Lost("the lead went with its connection")
            place = self._places[name] = Place(name, self._notes.connect(HEARTBEAT))
            try:
                return place.stand_in_line()
            except BaseException:
                self._drop(name)
                raise

    def publish(
        self, name: str, left: list[Message], topic: str, records: Mapping[str, bytes], ttl: float,
        deadline: float | None,
    ) -> None:  # fmt: skip
        """Publish as the leader, each message with the record in the same place that notes it.

        All goes by the connection that has the lead: who has lost that publishes nothing.  A message
        and its record leave in one write.  There are as many records as messages, or none.  `left` is
        emptied as the server confirms: after an error it has what may not be there.  Raises
        BrokerUnavailable, after which somebody else may lead, or OperationalError.
        """
        end = time.monotonic() + (_PATIENCE if deadline is None else deadline)
        broker = self._notes.broker
        with self._lock:
            place = self._places.get(name)
            try:
                if place is None or not place.is_kept() or not place.leads:
                    raise Lost("the lead went with its connection")
                link = place.link
                if records:
                    ensure_stream_once(link, topic, end)
                for message in left:  # what is refused here takes nothing with it
                    broker.address(link, message, time.time(), end)
                if records:
                    notes = messages_of(topic, records, ttl)
                    left[:] = [one for pair in zip(left, notes, strict=True) for one in pair]
                broker.publish_on(link, left, end, pairs=bool(records))
            except (Refused, *LOST) as error:
                text = broker.server.explain(error)
                if passes(error) or (isinstance(error, Refused) and error.whole):
                    self._drop(name)
                    raise BrokerUnavailable(text) from error
                assert place is not None
                self._go_on(name, place)
                raise OperationalError(text) from error
            except BaseException:
                self._drop(name)
                raise

    def _go_on(self, name: str, place: Place) -> None:
        """Publish on, where the server has closed the channel for what was published last."""
        try:
            place.link.closed.pop(1, None)
            place.link.open_channel(1, time.monotonic() + _PATIENCE)
            place.link.confirm()
        except (Refused, *LOST):
            self._drop(name)

    def holder(self, name: str) -> str:
        """Somebody, where there is who leads; the server does not say who."""

        def look(link: Link) -> str:
            try:
                found = link.call(spec.Queue.Declare(queue=queue_of(name), passive=True))
            except Refused as error:
                if error.code != 404 or is_down(error):
                    raise
                return ""
            return SOMEBODY if found.consumer_count else ""

        return self._notes.once(look)

    def give_up(self, name: str) -> None:
        """Let another one lead."""
        with self._lock:
            self._drop(name)

    def _drop(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is not None:
            place.link.close()

    def close(self) -> None:
        """Give up all of them."""
        for name in list(self._places):
            self.give_up(name)


def queue_of(name: str) -> str:
    """The queue whose active consumer leads."""
    return f"minicelery.lead.{name}"


class Place:
    """A place in the line for one lead."""

    def __init__(self, name: str, link: Link) -> None:
        self.link = link
        self._queue = queue_of(name)
        self._token = 0  # its delivery tag, where we have one
        self._token_at = 0.0
        self._sent_away = False
        link.on_content = self._take_token
        link.on_cancel = self._be_sent_away

    @property
    def leads(self) -> bool:
        """Whether the lead is ours, if the connection lives."""
        return self._token > 0

    def stand_in_line(self) -> bool:
        """Wait for the lead; whether it is ours at once."""
        link, end = self.link, time.monotonic() + _PATIENCE
        link.confirm()
        link.open_channel(_CHANNEL, end)
        arguments = {"x-single-active-consumer": True, "x-expires": _UNUSED}
        declare = spec.Queue.Declare(queue=self._queue, durable=True, arguments=arguments)
        link.call(declare, _CHANNEL, end)
        self._send_token()
        link.call(spec.Basic.Consume(queue=self._queue, consumer_tag="lead"), _CHANNEL, end)
        end = time.monotonic() + FIRST_LOOK
        while not self.leads and (left := end - time.monotonic()) > 0:
            link.pump(left)
        return self.leads

    def is_kept(self) -> bool:
        """Whether the connection lives, as far as is known."""
        try:
            self.link.beat()
            while self.link.readable(0):
                self.link.read()
            if self.leads and time.monotonic() - self._token_at > AGED:
                self._send_token()
        except (Refused, *LOST):
            return False
        return not self.link.closed and not self._sent_away

    def _send_token(self) -> None:
        self._token_at = time.monotonic()
        self.link.send(codec.publish_frames(_CHANNEL, "", self._queue, {}, b"", self.link.frame_max))

    def _take_token(self, content: Content) -> None:
        """Keep it, in place of the one before."""
        before = self._token
        _, self._token, _, _, _ = codec.decode_deliver(content.method)
        if before:
            self.link.send(codec.ack_frame(content.channel, before, multiple=False))

    def _be_sent_away(self, _: str) -> None:
        self._sent_away = True
