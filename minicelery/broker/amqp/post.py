"""Letters through RabbitMQ: Celery's exchanges, and a queue of each listener's own.

===================== ======= ========= =====================================================
exchange              type    durable   queues, exclusive and gone with their connection
===================== ======= ========= =====================================================
`celery.pidbox`       fanout  no        `<node>.celery.pidbox`
`reply.celery.pidbox` direct  no        `<oid>.reply.celery.pidbox`
`celeryev`            topic   yes       `celeryev.<uuid>`
===================== ======= ========= =====================================================

They are sent on connections of their own, without confirms: where an exchange is missing
the server closes the channel, and nothing else must hang on that.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pika import spec

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.server import LOST, Blocked, Late, Lost, Refused
from minicelery.broker.pool import Pool
from minicelery.broker.post import AT_ONCE, REPLY_TTL, Box, Letter, Open, Outbox, kind_of
from minicelery.broker.waking import Polling
from minicelery.exceptions import BrokerUnavailable, OperationalError

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

PATIENCE = 5.0
"""Seconds that sending, or beginning to listen, may take."""
BRIEF = 0.5
"""The same for letters that leave with a consumer's swap: nothing is to wait for news.

Four times as long at first, as a connection has to be made, and twice as long after each time that it was
too short, up to PATIENCE: a distant server takes longer to reach.
"""
READS = 8
"""Times that a listener reads before it looks whether it is woken, however little can be made of it."""
_EVENT_TTL, _EVENT_EXPIRES, _CONTROL_EXPIRES = 5.0, 60.0, 10.0
_LOCKED, _MISSING = 405, 404
_ODD = (ValueError, struct.error)  # what a letter raises that AMQP has no form for


class AMQPPost:
    """See `Post`."""

    def __init__(self, broker: AMQPBroker, limit: int) -> None:
        self.broker = broker
        self._pool = Pool(limit, Late)
        self._open = Open()

    def send(
        self, letters: Sequence[Letter], deadline: float | None = None, attempts: int | None = None
    ) -> None:
        """See `Post.send`."""
        if not letters:
            return
        end = time.monotonic() + (PATIENCE if deadline is None else deadline)

        def send() -> None:
            self.broker.insist(lambda link: _send(link, letters, end), end, attempts, self._pool)

        try:
            try:
                send()
            except OperationalError as error:
                if not isinstance(error.__cause__, Refused) or error.__cause__.code != _MISSING:
                    raise
                send()  # an exchange has gone, and with it earlier letters: a new connection makes it anew
        except _ODD as error:
            raise OperationalError(f"a letter can't be sent through RabbitMQ: {error}") from error

    def listen(self, boxes: Sequence[Box]) -> AMQPListening:
        """See `Post.listen`."""
        listening = AMQPListening(self, boxes)
        self._open.add(listening)
        return listening

    def close(self) -> None:
        """See `Post.close`."""
        self._open.end()
        self._pool.close()


def _send(link: Link, letters: Sequence[Letter], end: float) -> None:
    if link.blocked is not None:
        raise Blocked(link.blocked)
    for exchange in dict.fromkeys(letter.exchange for letter in letters):
        if exchange and exchange not in link.declared:
            link.call(exchange_method(exchange, kind_of(exchange)), end=end)
            link.declared.add(exchange)
    frames = [
        codec.publish_frames(
            1, letter.exchange, letter.routing_key, properties(letter), letter.body, link.frame_max
        )
        for letter in letters
    ]
    link.limit(max(0.05, min(link.timeout, end - time.monotonic())))
    link.send(b"".join(frames))


def properties(letter: Letter) -> dict[str, Any]:
    return {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": letter.headers,
        "delivery_mode": 2 if letter.persistent else 1,
        "priority": 0,
    }


def exchange_method(name: str, kind: str) -> Any:
    return spec.Exchange.Declare(exchange=name, type=kind, durable=kind == "topic")


def queue_methods(box: Box) -> list[Any]:
    """The methods that make a box's queue and bind it."""
    event = box.kind == "topic"
    ttl = box.ttl if box.ttl is not None else _EVENT_TTL if event else REPLY_TTL
    expires = box.expires if box.expires is not None else _EVENT_EXPIRES if event else _CONTROL_EXPIRES
    arguments = {"x-expires": max(1, int(expires * 1000)), "x-message-ttl": int(ttl * 1000)}
    return [
        exchange_method(box.exchange, box.kind),
        spec.Queue.Declare(queue=box.name, exclusive=True, auto_delete=True, arguments=arguments),
        spec.Queue.Bind(queue=box.name, exchange=box.exchange, routing_key=box.routing_key),
    ]


class AMQPListening(Polling):
    """See `Listening`: one connection, which `take` keeps alive."""

    failures = (Refused, *LOST)

    def __init__(self, post: AMQPPost, boxes: Sequence[Box]) -> None:
        super().__init__(post.broker.url)
        self._server = post.broker.server
        self._boxes = {f"box-{number}": box for number, box in enumerate(boxes)}
        self._arrived: list[Letter] = []
        self._gone: Lost | None = None
        self._link: Link | None = None
        try:
            self._connect()
        except BaseException as error:
            self.close()
            if isinstance(error, self.failures):
                raise self.explained(error) from error
            raise

    def _connect(self) -> None:
        self._link = link = Link(self._server, timeout=PATIENCE, heartbeat=self._server.heartbeat)
        link.on_content = self._take_content
        link.on_cancel = self._cancelled
        methods = [method for box in self._boxes.values() for method in queue_methods(box)]
        # All of them last: the server may answer these late, after what follows.
        methods += [
            spec.Basic.Consume(queue=box.name, consumer_tag=tag, no_ack=True)
            for tag, box in self._boxes.items()
        ]
        link.call_all(methods, end=time.monotonic() + PATIENCE)

    def _cancelled(self, tag: str) -> None:
        self._gone = Lost(f"the queue {self._boxes[tag].name!r} was deleted or has moved")

    def _take_content(self, content: Content) -> None:
        tag, _, _, exchange, key = codec.decode_deliver(content.method)
        try:
            found = codec.decode_properties(content.header)
        except (ValueError, IndexError, struct.error, RecursionError) as error:
            self.unreadable.add(exchange, f"its properties can't be read: {error}")
            return
        if (content_type := found.get("content_type")) != "application/json":
            self.unreadable.add(
                exchange, f"its content type is {content_type!r:.80}, and application/json is read"
            )
            return
        if not exchange:  # by the name of the queue
            exchange, key = self._boxes[tag].exchange, self._boxes[tag].routing_key
        headers, persistent = found.get("headers") or {}, found.get("delivery_mode") == 2
        letter = Letter(exchange, key, bytes(content.body), headers, persistent)
        self._arrived += self.unreadable.read(letter)

    def connections(self) -> Sequence[Link]:
        """See `Polling.connections`."""
        return (self._link,) if self._link is not None else ()

    def hear(self, found: list[Letter]) -> None:
        """See `Polling.hear`."""
        link = self._link
        assert link is not None
        try:
            for _ in range(READS):
                if len(self._arrived) >= AT_ONCE or not link.readable(0):
                    break
                link.read()
            link.beat()
            if link.closed:
                raise link.closed.popitem()[1]
            if self._gone is not None:
                raise self._gone
        finally:
            found += self._arrived
            self._arrived.clear()

    def patience(self) -> float:
        """See `Polling.patience`."""
        link = self._link
        if link is None or link.buffered:
            return 0.0
        return link.heartbeat / 4 if link.heartbeat else math.inf

    def drop(self) -> None:
        """See `Polling.drop`."""
        link, self._link = self._link, None
        if link is not None:
            # A forked child's goodbye would be its parent's.
            (link.close if self.process == os.getpid() else link.close_socket)()

    def explained(self, error: BaseException) -> OperationalError:
        """See `Polling.explained`."""
        if isinstance(error, Refused):
            if error.code != _LOCKED:
                return OperationalError(self._server.explain(error))
            names = ", ".join(repr(box.name) for box in self._boxes.values())
            return BrokerUnavailable(
                f"RabbitMQ at {self._server.masked} gives {names} to another connection: does another program "
                f"have the same name (--hostname), or has one just lost its connection? ({error.text})"
            )
        return BrokerUnavailable(self._server.explain(error))


class AMQPOutbox(Outbox):
    """Letters that leave with a consumer's turn: they are written, and nothing is waited for."""

    SHARE = 10
    """Times as long as it took in vain to send letters, further ones are dropped at once."""

    def __init__(self, post: AMQPPost) -> None:
        super().__init__()
        self._post = post
        self._patience = 4 * BRIEF
        self._again_at = 0.0
        self._why: OperationalError | None = None

    def send(self) -> None:
        """Send what waits; what can't be sent now is dropped.  Never raises."""
        letters, began = self.take(), time.monotonic()
        if began >= self._again_at:
            try:
                self._post.send(letters, self._patience, 1)
                self._patience = BRIEF
                return
            except OperationalError as error:
                self._why = error
                if not isinstance(error.__cause__, _ODD):
                    now = time.monotonic()
                    self._again_at = now + self.SHARE * (now - began)
                    if now - began > 0.9 * self._patience:
                        self._patience = min(2 * self._patience, PATIENCE)
        self.drop(letters, self._why)
