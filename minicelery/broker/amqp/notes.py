"""Small durable records, such as revoked ids: one stream a topic, read by everybody from its beginning.

A stream is a log that reading does not empty (RabbitMQ 3.9).  Each record carries the time
it expires; the server drops what is old, or too much.  A reader knows that it has seen
everything when it sees the mark that it has written itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pika import spec

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.server import LOST, Blocked, Refused
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import Message, new_id

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

log = logging.getLogger(__name__)

CHANNEL = 3
_KEPT = "31D"
_BYTES = 20_000_000
_SEGMENT = 1_000_000
_PATIENCE = 5.0
_QUIET = 0.3


class Topic:
    """The records of one topic, as far as they have been read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: dict[str, tuple[float, bytes]] = {}
        self.marks: set[str] = set()

    def take(self, content: Content) -> None:
        """Note one record of the stream."""
        try:
            headers = codec.decode_properties(content.header).get("headers") or {}
            if mark := headers.get("mark"):
                self.marks.add(str(mark))
                return
            self.records[str(headers["key"])] = (float(headers["expires"]), bytes(content.body))
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


def follow(link: Link, topic: Topic, end: float, write: Callable[[str], None]) -> None:
    """Read `topic` on a channel of its own from the beginning, and go on hearing what is added.

    Returns when all that was there before has been read: `write` puts a mark at the end of
    the stream, on another connection, as the server may not read one that publishes.  Where
    it can't, the end is where nothing more comes.  `link.on_content` must pass what comes on
    that channel to `heard`.  Raises Refused with code 404 where nothing was ever noted.
    """
    name = stream(topic.name)
    link.open_channel(CHANNEL, end)
    link.call(spec.Basic.Qos(prefetch_count=1000), CHANNEL, end)
    consume = spec.Basic.Consume(queue=name, consumer_tag="notes", arguments={"x-stream-offset": "first"})
    link.call(consume, CHANNEL, end)
    mark = new_id()
    try:
        write(mark)
    except OperationalError:
        end = min(end, time.monotonic() + _QUIET)
    while mark not in topic.marks and time.monotonic() < end:
        if CHANNEL in link.closed:
            raise link.closed.pop(CHANNEL)
        link.pump(end - time.monotonic())


def heard(link: Link, topic: Topic, content: Content) -> None:
    """Note what has come on the channel of `follow`, and ask for more."""
    _, tag, _, _, _ = codec.decode_deliver(content.method)
    topic.take(content)
    link.send(codec.ack_frame(CHANNEL, tag))


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

    def mark(self, topic: str, mark: str) -> None:
        """Put a mark at the end of the stream, soon or not at all.  Raises OperationalError."""
        name = stream(topic)
        end = time.monotonic() + 1.0

        def send(link: Link) -> None:
            if link.blocked is not None:
                raise Blocked(link.blocked)
            properties = {"headers": {"mark": mark}, "delivery_mode": 2}
            link.send(codec.publish_frames(1, "", name, properties, b"", link.frame_max))

        self.broker.insist(send, end, 1, self.broker.plain)

    def read(self, topic: str) -> dict[str, bytes]:
        """The records that have not expired."""
        found = Topic(topic)

        def look(link: Link) -> None:
            link.on_content = lambda content: heard(link, found, content)
            try:
                end = time.monotonic() + _PATIENCE
                follow(link, found, end, lambda mark: self.mark(topic, mark))
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
