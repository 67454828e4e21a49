"""The AMQP broker: publishing with confirms, and what operators ask for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pika import spec

from minicelery.broker import Backend
from minicelery.broker.amqp import codec, declare
from minicelery.broker.amqp.consumer import AMQPConsumer
from minicelery.broker.amqp.dead import DeadLetters
from minicelery.broker.amqp.envelope import dead_letter_properties, properties
from minicelery.broker.amqp.leads import Leads
from minicelery.broker.amqp.link import Link
from minicelery.broker.amqp.notes import Notes
from minicelery.broker.amqp.post import AMQPPost
from minicelery.broker.amqp.replies import Replies
from minicelery.broker.amqp.server import FULL, LOST, Blocked, Late, Refused, Server, passes
from minicelery.broker.pool import Pool, Slot, pool_limit
from minicelery.broker.topology import ExchangeSpec, QueueSpec, plain_queue, with_those_aside
from minicelery.broker.url import ServerURL
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import Delivery, Message

T = TypeVar("T")

PUBLISH_DEADLINE = 5.0
IDLE = 30.0
"""Seconds after which a link that nobody used is not trusted with the whole deadline."""
_CHUNK_BYTES = 1 << 16


class _Overdue(Late):
    """No time is left to begin."""


class AMQPBroker(DeadLetters):
    """Queues in RabbitMQ.

    Options: `confirm_publish` (True), `heartbeat`, `use_ssl`, `login_method`, `pool_limit`,
    `connect_timeout`, `socket_timeout`, `failover_strategy`, `client_properties`,
    `delay_queue_type`, and `spec_of`, which tells a queue's declaration from its name.
    """

    has_exchanges = True
    has_cheap_notes = False  # see `notes`: each stays in a log

    def __init__(self, urls: Sequence[ServerURL], options: Mapping[str, Any]) -> None:
        self.server = Server(urls, options)
        self.url = self.server.masked
        self.place = f"amqp:{self.server.virtual_host(self.server.urls[0])}"
        self.spec_of: Callable[[str], QueueSpec] = with_those_aside(options.get("spec_of") or plain_queue)
        self._bound_to: Callable[[str], Sequence[QueueSpec]] = options.get("bound_to") or (lambda name: ())
        self._exchange: Callable[[str], ExchangeSpec | None] = options.get("exchange_of") or (
            lambda name: None
        )
        self.delay_kind: str = options.get("delay_queue_type") or "quorum"
        limit = pool_limit(options)
        # What a worker sends for a task is confirmed, whatever callers have chosen for their own.
        self.sure, self.plain = Pool(limit, Late), Pool(limit, Late)
        self.pool = self.plain if options.get("confirm_publish") is False else self.sure
        self.notes = Notes(self)
        self.leads = Leads(self.notes)
        self.post = AMQPPost(self, limit)
        self._tended: set[str] = set()  # queues

    # -- publishing ------------------------------------------------------------------------

    def publish(
        self, messages: Sequence[Message], *, deadline: float | None = None, attempts: int | None = None
    ) -> None:
        """See `Broker.publish`.  Where a confirm is lost with its connection, what it was for is sent
        again, and may arrive twice.
        """
        self._publish(self.pool, list(messages), deadline, attempts)

    def publish_surely(self, left: list[Message], deadline: float | None = None) -> None:
        """Publish with confirms, even where `confirm_publish` is off.

        `left` is emptied as the server confirms: after an error it has what may not be there.
        """
        self._publish(self.sure, left, deadline, None)

    def _publish(self, pool: Pool, left: list[Message], deadline: float | None, attempts: int | None) -> None:
        if not left:
            return
        end = time.monotonic() + (PUBLISH_DEADLINE if deadline is None else deadline)

        def send(link: Link) -> None:
            self.publish_on(link, left, end)

        self.insist(send, end, attempts, pool)

    def insist(
        self, work: Callable[[Link], T], end: float, attempts: int | None = None, pool: Pool | None = None
    ) -> T:
        """`work(link)` on a pooled link, again on a new one when it is lost."""
        attempt = 0
        pool = pool or self.sure
        last: BaseException | None = None
        try:
            slot = pool.take(end)
            try:
                while True:
                    try:
                        was_idle = slot.link is not None
                        return work(self._link(slot, end, pool is self.sure))
                    except _Overdue as error:
                        raise last or error from None
                    except Blocked:
                        # The link is kept: it knows that the server reads nothing of it at present.
                        if slot.link is not None and slot.link.torn:
                            slot.drop()
                        raise
                    except (Refused, *LOST) as error:
                        slot.drop()
                        if not passes(error):
                            raise
                        last = error
                        # An idle link may have died long ago: that is no failed attempt.
                        attempt += not was_idle or attempt > 0
                        wait = random.uniform(0.5, 1.0) * min(1.0, 0.1 * attempt)
                        if (attempts is not None and attempt >= attempts) or time.monotonic() + wait >= end:
                            raise
                        time.sleep(wait)
                    except BaseException as error:
                        # A message that can't be packed leaves the link as it was, before it is sent.
                        if not (isinstance(error, ValueError) and slot.link and not slot.link.outstanding):
                            slot.drop()
                        raise
            finally:
                pool.put_back(slot)
        except Refused as error:
            kind = BrokerUnavailable if passes(error) or error.code == FULL else OperationalError
            raise kind(self.server.explain(error)) from error
        except LOST as error:
            raise BrokerUnavailable(self.server.explain(error)) from error

    def _link(self, slot: Slot, end: float, confirms: bool) -> Link:
        """The slot's link, connected, with what came while it was idle read."""
        link: Link | None = slot.link
        if link is None:
            left = end - time.monotonic()
            if left <= 0:
                raise _Overdue("the deadline has passed")
            link = slot.link = Link(self.server, timeout=left)
            if confirms:
                link.confirm()
            return link
        while link.readable(0):
            link.read()
        if link.closed:
            raise link.closed.popitem()[1]
        return link

    def publish_on(self, link: Link, left: list[Message], end: float, pairs: bool = False) -> None:
        """Send `left` on a link that is being used, emptying it as the server confirms; `pairs` in one write."""
        self._begin(link, end)
        if time.monotonic() - link.used_at > IDLE:
            # The way there may have been forgotten meanwhile: leave time for another link.
            end -= (end - time.monotonic()) / 2
        left_seconds = end - time.monotonic()
        if left_seconds < link.timeout - 0.5:
            link.limit(max(0.05, left_seconds))
        elif link.limited < link.timeout:
            link.limit(link.timeout)
        again: set[str] = set()  # ids of those that no queue took at first
        while left:
            first = link.published + 1
            try:
                self._send_all(link, left, end, pairs)
                if link.confirms:
                    self._wait_for_confirms(link, left, first, end)
                    left[:] = self._unroutable(link, left, again)
                else:
                    left.clear()
            except BaseException:
                # What has been confirmed is not to be sent once more.
                left[:] = [
                    message
                    for number, message in enumerate(left, first)
                    if number > link.published or number in link.outstanding or number in link.refused
                ]
                raise
        link.used_at = time.monotonic()

    def _send_all(self, link: Link, messages: Sequence[Message], end: float, pairs: bool) -> None:
        """Send the messages, the server being at work on the first while the last are packed."""
        now = time.time()
        frames: list[bytes] = []
        size = 0
        for message in messages:
            exchange, key, mandatory = self.address(link, message, now, end)
            data = codec.publish_frames(
                1, exchange, key, properties(message, now), message.body, link.frame_max,
                mandatory and link.confirms,
            )  # fmt: skip
            frames.append(data)
            size += len(data)
            if size > _CHUNK_BYTES and not (pairs and len(frames) % 2):
                self._send(link, frames)
                link.pump(0.0)
                frames, size = [], 0
        self._send(link, frames)

    def _send(self, link: Link, frames: Sequence[bytes]) -> None:
        if link.confirms:
            first, link.published = link.published + 1, link.published + len(frames)
            link.outstanding.update(dict.fromkeys(range(first, link.published + 1)))
        link.send(b"".join(frames))
        if 1 in link.closed:
            raise link.closed.pop(1)

    def address(self, link: Link, message: Message, now: float, end: float) -> tuple[str, str, bool]:
        """Exchange and routing key of a message, its queue declared; whether a queue must take it."""
        queue, exchange = message.queue, message.exchange
        if exchange:
            self._ensure_exchange(link, exchange, end)
        elif ("queue", queue) not in link.declared:
            declare.ensure_queue(link, self.spec_of(queue), end)
        if message.due is not None and (seconds := int(message.due - now)) >= 1:
            return self._delayed_address(link, message, seconds, end)
        if exchange:
            known = self._exchange(exchange)
            return exchange, message.routing_key, known is not None and known.type in ("direct", "topic")
        return "", queue, True

    def _ensure_exchange(self, link: Link, name: str, end: float) -> None:
        """Declare an exchange and the queues it is known to feed: what none takes would be lost."""
        if ("exchange", name) in link.declared:
            return
        if (found := self._exchange(name)) is not None:
            link.call_all(declare.exchange_methods(found), end=end)
        for queue in self._bound_to(name):
            declare.ensure_queue(link, queue, end)
        link.declared.add(("exchange", name))

    def _delayed_address(
        self, link: Link, message: Message, seconds: int, end: float
    ) -> tuple[str, str, bool]:
        declare.ensure_delays(link, self.delay_kind, max(end, time.monotonic() + PUBLISH_DEADLINE))
        known = self._exchange(message.exchange) if message.exchange else None
        if known is not None and known.type != "direct":
            for queue in self._bound_to(message.exchange):
                declare.ensure_delayed_queue(link, queue, end)
            return *declare.delay_route(seconds, message.routing_key), True
        declare.ensure_queue(link, self.spec_of(message.queue), end)
        declare.ensure_delayed_queue(link, self.spec_of(message.queue), end)
        return *declare.delay_route(seconds, declare.address(message.queue)), True

    def _wait_for_confirms(self, link: Link, sent: Sequence[Message], first: int, end: float) -> None:
        """Until all of `sent`, numbered from `first`, are confirmed."""
        while link.outstanding and not link.closed:
            left = end - time.monotonic()
            if left <= 0:
                if link.blocked is not None:
                    raise Blocked(link.blocked)
                raise Late(f"{len(link.outstanding)} of {len(sent)} messages were not confirmed")
            link.pump(left)
        if 1 in link.closed:
            raise link.closed.pop(1)
        if link.refused:
            queues = sorted({sent[number - first].queue for number in link.refused})
            raise Refused(
                FULL,
                f"queue {', '.join(map(repr, queues))} is full (x-max-length) and takes no more messages",
            )

    def _unroutable(self, link: Link, sent: Sequence[Message], again: set[str]) -> list[Message]:
        """Those of `sent` that no queue took, to be sent again: their queue was there when it was declared."""
        if not link.returned:
            return []
        ids = set()
        for content in link.returned:
            try:
                ids.add(codec.decode_properties(content.header)["headers"]["id"])
            except (KeyError, ValueError, IndexError):
                continue
        link.returned.clear()
        found = [message for message in sent if message.id in ids]
        for message in found:
            if message.id in again:
                where = f"exchange {message.exchange!r} with routing key {message.routing_key!r}"
                raise Refused(312, f"no queue takes {where if message.exchange else repr(message.queue)}")
            again.add(message.id)
        link.declared.clear()
        return found

    def _begin(self, link: Link, end: float) -> None:
        """Wait until the server takes messages, and forget what it did not confirm of earlier attempts."""
        while link.blocked is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise Blocked(link.blocked)
            link.pump(left)
        link.outstanding.clear()
        link.refused.clear()
        link.returned.clear()

    # -- consuming -------------------------------------------------------------------------

    def consumer(self, queues: Sequence[str], name: str, backend: Backend | None) -> AMQPConsumer:
        """See `Broker.consumer`."""
        return AMQPConsumer(self, queues, name, backend)

    def replies(self, expires: Any, persistent: bool | None, serializer: str = "json") -> Replies:
        """Results sent straight to who asked: ``rpc://``."""
        return Replies(self, expires, persistent, serializer)

    def tend(self, queues: Sequence[str], alive: Sequence[str]) -> list[str]:
        """See `Broker.tend`.  The server itself gives back what a lost consumer held: none is named."""
        fresh = [self.spec_of(queue) for queue in queues if queue not in self._tended]
        if fresh:
            end = time.monotonic() + 4 * PUBLISH_DEADLINE
            self.insist(lambda link: self._declare(link, fresh, end), end)
            self._tended.update(queue.name for queue in fresh)
        self.notes.make("revoked")
        return []

    def _declare(self, link: Link, queues: Sequence[QueueSpec], end: float) -> None:
        """Make the queues, and let arrive in them what Celery's senders, or ours, delay.

        Celery's delay in the broker once any of their queues is a quorum queue; ours make the
        delays with the first message.
        """
        for queue in queues:
            declare.ensure_queue(link, queue, end)
        if any(queue.is_quorum for queue in queues):
            declare.ensure_delays(link, self.delay_kind, end)
        elif not self._there_are_delays(link, end):
            return
        for queue in queues:
            declare.ensure_delayed_queue(link, queue, end)

    def _there_are_delays(self, link: Link, end: float) -> bool:
        try:
            link.call(declare.LOOK_FOR_DELAYS, end=end)
        except Refused as error:
            if error.code != 404:
                raise
            self._reopen(link)
            return False
        return True

    # -- asking ----------------------------------------------------------------------------

    def ask(self, work: Callable[[Link], T]) -> T:
        """`work(link)` within the usual deadline."""
        return self.insist(work, time.monotonic() + PUBLISH_DEADLINE)

    def size(self, queue: str) -> int:
        """See `Broker.size`."""
        return self._count(queue)[0]

    def consumers(self, queue: str) -> int:
        """How many consumers `queue` has: children of workers that wait for a message, or are at one."""
        return self._count(queue)[1]

    def dead(self, queue: str) -> int:
        """See `Broker.dead`."""
        return self._count(declare.dead_queue(queue))[0]

    def _count(self, queue: str) -> tuple[int, int]:
        """Ready messages and consumers of a queue; none where there is no such queue."""

        def count(link: Link) -> tuple[int, int]:
            try:
                answer = link.call(spec.Queue.Declare(queue=queue, passive=True))
            except Refused as error:
                if error.code != 404:
                    raise
                self._reopen(link)
                return 0, 0
            return answer.message_count, answer.consumer_count

        return self.ask(count)

    def _reopen(self, link: Link) -> None:
        """Go on after the server has closed the channel."""
        link.closed.clear()
        link.open_channel(1)
        link.confirm()

    def delayed(self, queue: str) -> int | None:
        """See `Broker.delayed`: RabbitMQ does not tell for which queue a delayed message is."""
        return None

    def purge(self, queue: str) -> int:
        """See `Broker.purge`.  What is delayed can't be told apart by queue, and stays."""

        def drop(link: Link) -> int:
            try:
                number: int = link.call(spec.Queue.Purge(queue=queue)).message_count
            except Refused as error:
                if error.code != 404:
                    raise
                self._reopen(link)
                return 0
            return number

        return self.ask(drop)

    def bury(self, delivery: Delivery, reason: str, deadline: float | None = None) -> None:
        """Keep a rejected message among the dead letters of its queue."""
        queue = declare.dead_queue_spec(delivery.message.queue)
        found = dead_letter_properties(delivery, reason)
        end = time.monotonic() + (PUBLISH_DEADLINE if deadline is None else deadline)

        def send(link: Link) -> None:
            self._begin(link, end)
            declare.ensure_queue(link, queue, end)
            body, first = delivery.message.body, link.published + 1
            try:
                data = codec.publish_frames(1, "", queue.name, found, body, link.frame_max)
            except ValueError:  # headers that fill a frame, and ours make them too large
                bare = {"headers": {"x-rejected-reason": reason[:500]}, "delivery_mode": 2}
                data = codec.publish_frames(1, "", queue.name, bare, body, link.frame_max)
            self._send(link, [data])
            self._wait_for_confirms(link, [delivery.message], first, end)

        self.insist(send, end)

    def remember(self, topic: str, key: str, ttl: float, value: bytes = b"") -> None:
        """See `Broker.remember`."""
        self.notes.write(topic, {key: value}, ttl)

    def remember_all(self, topic: str, records: Mapping[str, bytes], ttl: float) -> None:
        """See `Broker.remember_all`."""
        self.notes.write(topic, records, ttl, often=True)

    def lead(self, name: str, holder: str, seconds: float) -> str:
        """See `Broker.lead`.  Who leads as long as its connection lives is not told by name."""
        return holder if self.leads.take(name) else ""

    def leader(self, name: str) -> str:
        """See `Broker.leader`."""
        return self.leads.holder(name)

    def step_down(self, name: str, holder: str) -> None:
        """See `Broker.step_down`."""
        self.leads.give_up(name)

    def recall(self, topic: str) -> dict[str, bytes]:
        """See `Broker.recall`."""
        return self.notes.read(topic)

    def news(self, topic: str) -> dict[str, bytes]:
        """The records of `topic` that have not expired, for who asks again and again.

        The first call makes the stream of the topic; the others read what has
        come meanwhile.  Raises BrokerUnavailable, or OperationalError; may then be called again.
        """
        return self.notes.news(topic)

    def close(self) -> None:
        """See `Broker.close`."""
        self.post.close()
        self.notes.close()
        self.leads.close()
        self.sure.close()
        self.plain.close()
