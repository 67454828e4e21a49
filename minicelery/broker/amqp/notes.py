"""Small durable records, such as revoked ids: one stream a topic, read by everybody from its beginning.

A stream is a log that reading does not empty (RabbitMQ 3.9).  Each record carries the time
it expires; the server drops what is old, or too much.  A reader asks for the last records as
well as for the first, and has seen everything when it has come to those.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pika import spec

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.server import LOST, Late, Refused
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import Message

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

log = logging.getLogger(__name__)

CHANNEL, LAST_CHANNEL = CHANNELS = (3, 4)
_KEPT = "31D"
_BYTES = 20_000_000
_SEGMENT = 1_000_000
_PATIENCE = 5.0
QUIET = 0.05


class Topic:
    """The records of one topic, as far as they have been read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: dict[str, tuple[float, bytes]] = {}
        self.reached = -1  # offset of the last record read from the beginning
        self.last = -1  # offset of the last one there was, as far as is known

    def take(self, content: Content) -> None:
        """Note one record of the stream."""
        try:
            headers = codec.decode_properties(content.header).get("headers") or {}
            offset = int(headers.get("x-stream-offset", -1))
            if content.channel == LAST_CHANNEL:
                self.last = max(self.last, offset)
                return
            self.reached = max(self.reached, offset)
            expires = float(headers["expires"])
            if expires > time.time():
                self.records[str(headers["key"])] = (expires, bytes(content.body))
            else:
                self.records.pop(str(headers["key"]), None)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            log.warning("a record of stream %s is no good: %r", stream(self.name), error)

    def __contains__(self, key: str) -> bool:
        found = self.records.get(key)
        return found is not None and found[0] > time.time()

    def present(self) -> dict[str, bytes]:
        """The records that have not expired."""
        now = time.time()
        return {key: value for key, (expires, value) in self.records.items() if expires > now}


def stream(topic: str) -> str:
    """The stream of `topic`."""
    return f"minicelery.{topic}"


def ensure_stream(link: Link, topic: str, end: float) -> None:
    """Make the stream of `topic` where there is none; for one process at a time.

    Several that make one at once get an internal error from the server (3.10).
    """
    arguments = {
        "x-queue-type": "stream",
        "x-max-age": _KEPT,
        "x-max-length-bytes": _BYTES,
        "x-stream-max-segment-size-bytes": _SEGMENT,
    }
    link.call(spec.Queue.Declare(queue=stream(topic), durable=True, arguments=arguments), end=end)


def follow(link: Link, topic: Topic, end: float, patience: float = QUIET) -> None:
    """Read `topic` from its beginning, and go on hearing what is added.

    Where nothing comes for `patience` seconds there is nothing: an empty stream does not say so.

    Returns when all that was there before has been read.  `link.on_content` must pass what
    comes on the channels of this module to `heard`.  Raises Refused with code 404 where
    nothing was ever noted, and Late.
    """
    for channel, offset in ((LAST_CHANNEL, "last"), (CHANNEL, "first")):
        link.open_channel(channel, end)
        link.call(spec.Basic.Qos(prefetch_count=1000), channel, end)
        consume = spec.Basic.Consume(
            queue=stream(topic.name), consumer_tag=f"notes-{offset}", arguments={"x-stream-offset": offset}
        )
        link.call(consume, channel, end)
    quiet = time.monotonic() + patience
    while topic.reached < topic.last or time.monotonic() < quiet:
        for channel in CHANNELS:
            if channel in link.closed:
                raise link.closed.pop(channel)
        left = end - time.monotonic()
        if left <= 0:
            raise Late(f"the stream {stream(topic.name)} was not read to its end in time")
        if not link.pump(min(left, 0.02)) and -1 < topic.last <= topic.reached:
            break
        if topic.last < 0 <= topic.reached:
            quiet = time.monotonic() + patience  # where it ends is still to be heard
    link.call(spec.Channel.Close(0, "", 0, 0), LAST_CHANNEL, end)


def heard(link: Link, topic: Topic, content: Content) -> None:
    """Note what has come on the channels of `follow`, and ask for more."""
    _, tag, _, _, _ = codec.decode_deliver(content.method)
    topic.take(content)
    link.send(codec.ack_frame(content.channel, tag))


class Notes:
    """Writes and reads records for a broker, each time on a connection of its own: it is seldom done."""

    def __init__(self, broker: AMQPBroker) -> None:
        self.broker = broker

    def write(self, topic: str, key: str, ttl: float, value: bytes) -> None:
        """Add a record.  The stream is declared by the first who reads or writes it."""
        headers = {"key": key, "expires": time.time() + ttl}
        message = Message(key, "", value, headers, stream(topic), content_type="application/octet-stream")

        def send(link: Link) -> None:
            end = time.monotonic() + _PATIENCE
            ensure_stream(link, topic, end)
            link.declared.add(("queue", message.queue))
            self.broker.publish_on(link, [message], end)

        self._once(send)

    def read(self, topic: str, patience: float = 6 * QUIET) -> dict[str, bytes]:
        """The records that have not expired."""
        found = Topic(topic)

        def look(link: Link) -> None:
            link.on_content = lambda content: heard(link, found, content)
            try:
                follow(link, found, time.monotonic() + _PATIENCE, patience)
            except Refused as error:
                if error.code != 404:
                    raise

        self._once(look)
        return found.present()

    def _once(self, work: Callable[[Link], None]) -> None:
        server = self.broker.server
        try:
            link = Link(server, timeout=_PATIENCE)
            try:
                link.confirm()
                work(link)
            finally:
                link.close()
        except Refused as error:
            hint = "; streams need RabbitMQ 3.9" if "x-queue-type" in error.text or error.code == 540 else ""
            raise OperationalError(server.explain(error) + hint) from error
        except LOST as error:
            raise BrokerUnavailable(server.explain(error)) from error
