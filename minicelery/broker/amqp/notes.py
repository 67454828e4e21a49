"""Small durable records, such as revoked ids: one stream a topic, read by everybody from its beginning.

A stream is a log that reading does not empty (RabbitMQ 3.9).  Each record carries the time
it expires; the server drops what is old, or too much.  A reader asks for the last records as
well as for the first, and has seen everything when it has come to those.

Only who writes a record makes the stream, and a worker's agent, once at its start: children
and operators find it there, or nothing was ever noted.  A RabbitMQ that is killed while it
makes a stream (within a second, 3.10) keeps a broken one, for good: it answers with an
internal error and closes the connection, or says that the stream's node is down.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from pika import spec

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.server import LOST, Failed, Late, Lost, Refused, is_down
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.forking import call_in_forked_children
from minicelery.message import Message

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

T = TypeVar("T")

log = logging.getLogger(__name__)

CHANNEL, LAST_CHANNEL = CHANNELS = (3, 4)
TAGS = ("notes-first", "notes-last")
"""The names of their consumers."""
_KEPT = "31D"
_BYTES = 20_000_000
_SEGMENT = 1_000_000
FOR_EVER, LARGEST = "archive.", 60_000_000
"""What the topics begin with that are kept however old they are, and their bytes: see `archive`."""
_PATIENCE = 5.0
_SHORT_PATIENCE = 1.0
_AHEAD, _ACKED_AT_ONCE = 1000, 250
"""Records that the server sends ahead, and that are acknowledged at once."""
_ASKED = 3
"""Answers of the server before which an empty stream has to be silent."""
QUIET = 0.05
"""Seconds without a record after which a child takes a stream to be empty."""
LONG_QUIET = 0.3
"""The same for who asks once, and would tell people so."""
LONGEST_PAUSE = 60.0
"""Seconds until a stream that could not be made is tried again, at most."""


class Topic:
    """The records of one topic, as far as they have been read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: dict[str, tuple[float, bytes]] = {}
        self.reached = -1  # offset of the last record read from the beginning
        self.last = -1  # offset of the last one there was, as far as is known
        self._roomy = 1000  # so many records before expired ones are looked for

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
                if len(self.records) > self._roomy:
                    self._forget_expired()
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

    def _forget_expired(self) -> None:
        now = time.time()
        self.records = {key: found for key, found in self.records.items() if found[0] > now}
        self._roomy = max(1000, 2 * len(self.records))


def stream(topic: str) -> str:
    """The stream of `topic`."""
    return f"minicelery.{topic}"


def patience(topic: str) -> float:
    """Seconds that reading a topic from its beginning may take."""
    return 6 * _PATIENCE if topic.startswith(FOR_EVER) else _PATIENCE


def ensure_stream(link: Link, topic: str, end: float) -> bool:
    """Make the stream of `topic` where there is none; whether it may be empty.

    Of several that do so at once some get an internal error from the server (3.10).
    """
    arguments = {
        "x-queue-type": "stream",
        "x-max-age": _KEPT,
        "x-max-length-bytes": _BYTES,
        "x-stream-max-segment-size-bytes": _SEGMENT,
    }
    if topic.startswith(FOR_EVER):
        del arguments["x-max-age"]
        arguments["x-max-length-bytes"] = LARGEST
    declare = spec.Queue.Declare(queue=stream(topic), durable=True, arguments=arguments)
    answer = link.call(declare, end=end)
    return not getattr(answer, "message_count", 0)


def ensure_stream_once(link: Link, topic: str, end: float) -> None:
    """The same, the first time that the topic is written on this link."""
    name = ("queue", stream(topic))
    if name not in link.declared:
        ensure_stream(link, topic, end)
        link.declared.add(name)


def messages_of(topic: str, records: Mapping[str, bytes], ttl: float) -> list[Message]:
    """The records as messages to the stream of `topic`."""
    expires = time.time() + ttl
    return [
        Message(
            key, "", value, {"key": key, "expires": expires}, stream(topic),
            content_type="application/octet-stream",
        )
        for key, value in records.items()
    ]  # fmt: skip


def follow(link: Link, topic: Topic, end: float, patience: float = QUIET) -> None:
    """Read `topic` from its beginning, and go on hearing what is added.

    Where nothing comes for `patience` seconds, and none before some answers of the server, there is
    nothing: an empty stream does not say so.

    Returns when all that was there before has been read.  `link.on_content` must pass what
    comes on the channels of this module to `heard`.  Raises Refused with code 404 where
    nothing was ever noted, and Late.
    """
    _consume(link, topic.name, LAST_CHANNEL, "last", end)
    _consume(link, topic.name, CHANNEL, "first", end)
    quiet, asked = time.monotonic() + patience, 0
    while topic.reached < topic.last or time.monotonic() < quiet or asked < _ASKED:
        for channel in CHANNELS:
            if channel in link.closed:
                raise link.closed.pop(channel)
        left = end - time.monotonic()
        if left <= 0:
            raise Late(f"the stream {stream(topic.name)} was not read to its end in time")
        if topic.reached >= topic.last and time.monotonic() >= quiet:
            # The time may have passed while the machine, and the server with it, had stopped.
            _hear_from_server(link, end)
            asked += 1
        elif not link.pump(min(left, 0.02)) and -1 < topic.last <= topic.reached:
            break
        if topic.last < 0 <= topic.reached:
            quiet, asked = time.monotonic() + patience, 0  # where it ends is still to be heard
    link.close_channel(LAST_CHANNEL, end)


def _hear_from_server(link: Link, end: float) -> None:
    """Have it answer once on the channels of a stream: what it has to deliver comes meanwhile."""
    for channel in CHANNELS:
        link.call(spec.Basic.Qos(prefetch_count=_AHEAD), channel, end)


def _consume(link: Link, topic: str, channel: int, offset: str, end: float) -> None:
    link.open_channel(channel, end)
    link.call(spec.Basic.Qos(prefetch_count=_AHEAD), channel, end)
    consume = spec.Basic.Consume(
        queue=stream(topic), consumer_tag=f"notes-{offset}", arguments={"x-stream-offset": offset}
    )
    link.call(consume, channel, end)


def heard(link: Link, topic: Topic, content: Content) -> None:
    """Note what has come on the channels of `follow`, and ask for more."""
    _, tag, _, _, _ = codec.decode_deliver(content.method)
    topic.take(content)
    if tag % _ACKED_AT_ONCE == 0:
        link.send(codec.ack_frame(content.channel, tag, multiple=True))


class Notes:
    """Writes and reads records for a broker."""

    def __init__(self, broker: AMQPBroker) -> None:
        self.broker = broker
        self._made: set[str] = set()
        self._make_at = 0.0
        self._failures = 0
        self._reset()
        call_in_forked_children(self._reset)  # the parent reads on

    def _reset(self) -> None:
        self._lock = threading.Lock()  # around the followers
        self._followers: dict[str, Follower] = {}
        self._writing = threading.Lock()
        self._writer: Link | None = None

    def make(self, topic: str) -> None:
        """Make the stream, once.  One that can't be made is warned of, and tried again now and then.

        Raises BrokerUnavailable.
        """
        if topic in self._made or time.monotonic() < self._make_at:
            return
        try:
            self.once(lambda link: ensure_stream(link, topic, time.monotonic() + _PATIENCE))
        except OperationalError as error:
            if isinstance(error, BrokerUnavailable) and not isinstance(error.__cause__, Failed):
                raise
            self._failures += 1
            self._make_at = time.monotonic() + min(LONGEST_PAUSE, 0.5 * 2**self._failures)
            if self._failures == 2:  # the first may be another agent's, making it at the same moment
                log.warning("The stream %s can't be made, or is broken: %s", stream(topic), error)
            return
        self._made.add(topic)

    def write(self, topic: str, records: Mapping[str, bytes], ttl: float, *, often: bool = False) -> None:
        """Add records; makes the stream where there is none.  Who writes `often` keeps a connection.

        Again where the server fails at it, as one does at which several make a stream at once: a
        record that is there twice is there.
        """
        messages = messages_of(topic, records, ttl)

        def send(link: Link) -> None:
            end = time.monotonic() + _PATIENCE
            ensure_stream_once(link, topic, end)
            self.broker.publish_on(link, list(messages), end)

        last = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._on_kept(send) if often else self.once(send)
            except OperationalError as error:
                if not isinstance(error, BrokerUnavailable) and not _is_being_made(error):
                    raise
                pause = random.uniform(0.1, 0.3)
                if time.monotonic() + pause > last:
                    raise
            time.sleep(pause)

    def begin(self, topic: str) -> bool:
        """Write a record that says nothing into an empty stream: its readers need not wait for what is not there.

        Returns whether it is there.

        On a connection of its own, which a server that is short of memory may stop reading.
        """
        message = Message("", "", b"", {"key": "", "expires": 0.0}, stream(topic))

        def send(link: Link) -> None:
            link.declared.add(("queue", stream(topic)))
            self.broker.publish_on(link, [message], time.monotonic() + _SHORT_PATIENCE)

        try:
            self.once(send)
        except OperationalError:
            return False
        return True

    def read(self, topic: str) -> dict[str, bytes]:
        """The records that have not expired, read once."""
        return self.scan(topic).present()

    def scan(self, topic: str) -> Topic:
        """The topic, read once."""
        found = Topic(topic)

        def look(link: Link) -> None:
            link.on_content = lambda content: heard(link, found, content)
            with _nothing_if_missing():
                follow(link, found, time.monotonic() + patience(topic), LONG_QUIET)

        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self.once(look)
                return found
            except OperationalError as error:
                if not _is_being_made(error) or time.monotonic() > end:
                    raise
            time.sleep(random.uniform(0.1, 0.3))

    def exist(self, topic: str) -> bool:
        """Whether there is a stream of the topic.  Raises OperationalError where it is broken."""

        def look(link: Link) -> bool:
            with _nothing_if_missing():
                _consume(link, topic, CHANNEL, "last", time.monotonic() + _PATIENCE)
                return True
            return False

        return self.once(look)

    def news(self, topic: str) -> dict[str, bytes]:
        """The same as `read`, without reading anything twice."""
        with self._lock:
            return self._follower(topic).present()

    def reached(self, topic: str) -> int:
        """The offset of the last record of a topic that is followed as by `news`."""
        with self._lock:
            follower = self._follower(topic)
            follower.present()
            return follower.reached

    def _follower(self, topic: str) -> Follower:
        follower = self._followers.get(topic)
        if follower is None:
            follower = self._followers[topic] = Follower(self, topic)
        return follower

    def close(self) -> None:
        """Follow no topic any more."""
        with self._lock:
            for follower in self._followers.values():
                follower.close()
            self._followers.clear()
        with self._writing:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def once(self, work: Callable[[Link], T]) -> T:
        """`work(link)` on a connection that is closed after it: a broken stream harms no other one."""
        with self.in_words():
            link = self.connect()
            try:
                link.confirm()
                return work(link)
            finally:
                link.close()

    def _on_kept(self, work: Callable[[Link], T]) -> T:
        """`work(link)` on a connection that is kept for the next time, if all goes well."""
        with self._writing, self.in_words():
            link, self._writer = self._writer, None
            if link is None:
                link = self.connect()
                link.confirm()
            try:
                while link.readable(0):
                    link.read()
                if link.closed:
                    raise link.closed.popitem()[1]
                found = work(link)
            except BaseException:
                link.close()
                raise
            self._writer = link
            return found

    def connect(self, heartbeat: int = 0) -> Link:
        """A new connection."""
        return Link(self.broker.server, timeout=_PATIENCE, heartbeat=heartbeat)

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Errors of the connection as OperationalError and BrokerUnavailable."""
        server = self.broker.server
        try:
            yield
        except Refused as error:
            hint = "; streams need RabbitMQ 3.9" if "x-queue-type" in error.text or error.code == 540 else ""
            raise OperationalError(server.explain(error) + hint) from error
        except LOST as error:
            raise BrokerUnavailable(server.explain(error)) from error


class Follower:
    """One topic, followed on a connection of its own, which is read when somebody asks."""

    def __init__(self, notes: Notes, topic: str) -> None:
        self._notes = notes
        self._topic = Topic(topic)
        self._link: Link | None = None
        self._ended = False

    def present(self) -> dict[str, bytes]:
        """The records that have not expired, as far as they have come.

        Raises BrokerUnavailable, or OperationalError; works again when the server does.
        """
        if self._link is not None:
            try:
                self._hear(self._link)
                return self._topic.present()
            except (Refused, *LOST):
                self.close()  # since when, nobody knows: a new one may do
        with self._notes.in_words():
            try:
                self._connect()
            except BaseException:
                self.close()
                raise
        return self._topic.present()

    @property
    def reached(self) -> int:
        """The offset of the last record that has come; -1 where none has."""
        return self._topic.reached

    def _connect(self) -> None:
        topic = self._topic = Topic(self._topic.name)
        end = time.monotonic() + patience(topic.name)
        link = self._link = self._notes.connect(self._notes.broker.server.heartbeat)
        self._ended = False
        link.on_content = lambda content: heard(link, topic, content)
        link.on_cancel = self._cancelled
        # A server that has just been started takes its time: what is sure to be there is waited for.
        there = not ensure_stream(link, topic.name, end) or self._notes.begin(topic.name)
        follow(link, topic, end, math.inf if there else LONG_QUIET)

    def _hear(self, link: Link) -> None:
        link.beat()
        while link.readable(0):
            link.read()
        if link.closed:
            raise link.closed.popitem()[1]
        if self._ended:
            raise Lost("the stream was deleted, or has moved")

    def _cancelled(self, tag: str) -> None:
        self._ended = True

    def close(self) -> None:
        """Close the connection; `present` makes a new one."""
        link, self._link = self._link, None
        if link is not None:
            link.close()


def _is_being_made(error: OperationalError) -> bool:
    """Whether a stream is there, and not yet where it will be."""
    cause = error.__cause__
    return isinstance(cause, Refused) and ("replica on the local node" in cause.text or is_down(cause))


@contextlib.contextmanager
def _nothing_if_missing() -> Iterator[None]:
    """Pass over there being no stream: nothing was ever noted."""
    try:
        yield
    except Refused as error:
        if error.code != 404 or is_down(error):
            raise
