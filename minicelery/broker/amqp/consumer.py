"""One child's hold on queues in RabbitMQ.

What a consumer may fetch is its *width*, the prefetch count it consumes with.  It is just
what is wanted, so that no message waits in a child that is busy, and wider once tasks prove
so fast that the server should send the next batch while one runs.  A prefetch count can't
be changed while consuming: to change it, and to give anything back, the consumer is
cancelled and made anew.  Where many tasks run at once what is wanted changes at every turn:
then the width is what can be held at all, see `hold`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import select
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pika import spec

from minicelery.broker import Backend
from minicelery.broker.amqp import codec, declare, notes
from minicelery.broker.amqp.envelope import decode
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.post import AMQPOutbox
from minicelery.broker.amqp.revoked import Revoked
from minicelery.broker.amqp.server import LOST, Lost, Refused
from minicelery.broker.amqp.settling import Settler
from minicelery.broker.amqp.shelf import Shelf
from minicelery.broker.amqp.unacked import Unacked
from minicelery.broker.post import Posting
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import Delivery, Outcome, Record

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

FAST = 4
"""A consumer that wants so many at once has tasks of a few milliseconds."""
STEADY = 2
AHEAD = 16
"""After `STEADY` full batches in a row of fast tasks so many are fetched at once."""
AHEAD_BYTES = 4 << 20
"""As long as they are no larger than this together."""
HEARING = 1.0
"""Seconds that a swap which does not wait hears what the queues have to send, at most."""
MOST_PREFETCHED = 65535
_EPOCH = 1 << 40  # receipts of one connection; a consumer of 2^40 messages would take years


class AMQPConsumer(Posting):
    """See `Consumer`.  What it holds goes back to the queue when the connection is lost."""

    adopts = False

    def __init__(self, broker: AMQPBroker, queues: Sequence[str], name: str, backend: Backend | None) -> None:
        if not queues:
            raise ValueError("a consumer needs at least one queue")
        self.name = self._first_name = name
        self._broker = broker
        self._server = broker.server
        self._queues = list(queues)
        self._fetched = list(queues)  # those of them that are not skipped
        self._choose_anew = False
        self._link: Link | None = None
        self._epoch = 0
        self._places: int | None = None  # see `hold`
        self._width = 0  # 0 while not consuming
        self._size = 0  # bytes of a message's body, averaged
        self._full = 0  # batches in a row that were all that was wanted
        self._tags: dict[str, str] = {}  # consumer tag -> queue
        self._next_tag = itertools.count(1)
        # Queues that go away with their last consumer: there is always one.
        specs = {queue: broker.spec_of(queue) for queue in queues}
        self._fleeting = {queue for queue, found in specs.items() if found.auto_delete}
        # A quorum queue counts what is given back, and drops a message at its delivery limit: of several
        # queues no message is fetched while another one runs.
        self._sparing = len(specs) > 1 and any(found.is_quorum for found in specs.values())
        self._outbox: AMQPOutbox = AMQPOutbox(broker.post)
        self._settler = Settler(broker, backend)
        self._unacked = Unacked()
        self._shelf = Shelf(self._queues)
        self._held: dict[int, Delivery] = {}  # handed out, by receipt
        self._revoked = Revoked(broker)
        self._failure: Refused | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    @property
    def renew(self) -> float:
        """`extend` must be called at least so often, in seconds."""
        return max(0.1, min(self._server.heartbeat or 60, self._link.heartbeat if self._link else 60) / 6)

    def hold(self, places: int) -> None:
        """From the next call on fetch up to `places`, of each queue, whatever `swap` wants.

        For who runs many at once and settles them in any order: as many as it can hold.  What
        has come beyond what is wanted waits here.  0, before the end: fetch no more, and give
        that back.
        """
        self._places = min(places, MOST_PREFETCHED)

    def skip(self, queues: Collection[str]) -> None:
        """See `Consumer.skip`."""
        fetched = [queue for queue in self._queues if queue not in queues or queue in self._fleeting]
        self._choose_anew = self._choose_anew or fetched != self._fetched
        self._fetched = fetched

    # -- swap ------------------------------------------------------------------------------

    def swap(self, done: Sequence[Outcome], want: int, wait: float) -> list[Delivery]:
        """See `Consumer.swap`."""
        places = self._places
        try:
            link = self._connected()
            link.beat()
            # Before anything is done for what may not be held any more.
            while link.readable(0):
                link.read()
            self._check(link)
            if self._choose_anew:
                self._let_go(link)
                self._choose_anew = False
            if places == 0 and self._width:
                self._let_go(link)
            elif places is None and want == 0 and self._full < STEADY:
                # Acknowledging makes room, and who wants nothing would be sent the next ones.
                self._cancel(link)
            if done or self._settler.owed:
                self._settle(link, done, last=want == 0 and not places)
            if self._outbox.waiting:
                self._outbox.send()
            if want == 0 or places == 0:
                return []
            if time.monotonic() > self._revoked.look_at:
                self._revoked.follow(link, time.monotonic() + self._server.timeout)
            if places is not None:
                if self._width != places:
                    self._renew(link, places)
            elif self._sparing and want < FAST:
                return self._pick(link) or self._fetch_sparingly(link, want, wait)
            else:
                self._consume(link, want)
            return self._fetch(link, want, wait)
        except (Refused, *LOST) as error:
            self._disconnect()
            raise self._explained(error) from error

    def _explained(self, error: BaseException) -> Exception:
        kind = OperationalError if isinstance(error, Refused) else BrokerUnavailable
        return kind(self._server.explain(error))

    # -- fetching --------------------------------------------------------------------------

    def _fetch(self, link: Link, want: int, wait: float) -> list[Delivery]:
        end = time.monotonic() + wait
        if wait <= 0 and (self._places is None or not self._shelf.ready):
            self._hear_all(link, want)
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        woken = False
        while True:
            found = self._take(want)
            left = end - time.monotonic()
            if found or woken or left <= 0:
                self._full = self._full + 1 if len(found) == want >= FAST else 0
                return found
            if (due := self._shelf.next_due) is not None:
                # What comes early must not use up the room of what is due.
                if self._places is None and len(self._unacked.counted) >= self._width:
                    self._renew(link, self._width)
                    continue
                left = min(left, max(0.0, due - time.time()))
            if link.heartbeat:
                link.beat()
                left = min(left, link.heartbeat / 4)
            ready = {fd for fd, _ in poll.poll(0 if link.buffered else left * 1000)}
            if link.fileno() in ready or link.buffered:
                link.read()
                self._check(link)
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    woken = bool(os.read(self._wake_read, 4096))

    def _pick(self, link: Link) -> list[Delivery]:
        """One message of the first queue in turn that has any."""
        self._let_go(link)
        for queue in self._shelf.turns():
            if queue not in self._fetched:
                continue
            link.send_method(1, spec.Basic.Get(queue=queue))
            answer = link.wait_for(1, (Content, spec.Basic.GetEmpty))
            if isinstance(answer, Content):
                tag, redelivered, exchange, key = codec.decode_get_ok(answer.method)
                self._unacked.tags[tag] = None
                self._shelf.put(decode(answer, redelivered, exchange, key, queue, self._epoch * _EPOCH + tag))
                if found := self._take(1):
                    return found
        return []

    def _fetch_sparingly(self, link: Link, want: int, wait: float) -> list[Delivery]:
        """Wait for a message of any queue; what else comes meanwhile goes back at once."""
        self._consume(link, want)
        found = self._fetch(link, want, wait)
        if found:
            self._let_go(link)
        return found

    def _hear_all(self, link: Link, want: int) -> None:
        """Read what the queues have to send now: until they are empty, or have sent what is wanted."""
        looks = [spec.Queue.Declare(queue=queue, passive=True) for queue in self._fetched]
        end = time.monotonic() + HEARING
        while time.monotonic() < end:
            left = sum(answer.message_count for answer in link.call_all(looks))
            if left == 0 or self._shelf.ready >= want:
                break
        # Once more: a channel that waits for a queue's answer passes on deliveries after that.
        link.call_all(looks)
        self._check(link)

    def _check(self, link: Link) -> None:
        if link.closed:
            if 1 in link.closed:
                raise link.closed.pop(1)
            link.closed.clear()
            self._revoked.ended()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _take(self, want: int) -> list[Delivery]:
        found = self._shelf.take(want)
        revoked = self._revoked.ids
        for delivery in found:
            self._held[delivery.receipt] = delivery
            delivery.revoked = delivery.message.id in revoked
        return found

    def _take_content(self, link: Link, content: Content) -> None:
        """A message has arrived."""
        if content.channel in notes.CHANNELS:
            self._revoked.heard(link, content)
            return
        consumer, tag, redelivered, exchange, key = codec.decode_deliver(content.method)
        queue = self._tags.get(consumer)
        self._unacked.tags[tag] = None
        if queue is None:
            self._give_back(link, [tag])
            return
        self._unacked.counted.add(tag)
        self._size += (len(content.body) - self._size) // 4
        self._shelf.put(decode(content, redelivered, exchange, key, queue, self._epoch * _EPOCH + tag))

    # -- consuming -------------------------------------------------------------------------

    def _consume(self, link: Link, want: int) -> None:
        """See to it that `want` messages may come, and few more."""
        width = want
        if self._full >= STEADY:
            width = max(want, min(want * AHEAD, AHEAD_BYTES // (self._size + 1)))
        room = self._width - len(self._unacked.counted) + self._shelf.ready
        if room < want or not width // 2 <= self._width <= width * AHEAD:
            self._renew(link, max(width, 1))

    def _renew(self, link: Link, width: int) -> None:
        if width < self._width:
            self._let_go(link)
        else:
            self._cancel(link)
        self._unacked.counted.clear()
        methods: list[Any] = [spec.Basic.Qos(prefetch_count=min(width, MOST_PREFETCHED))]
        kept = list(self._tags)  # of queues that would go with their last consumer
        for queue in self._fetched:
            tag = f"{next(self._next_tag)}"
            self._tags[tag] = queue
            arguments = dict(self._broker.spec_of(queue).consumer_arguments)
            methods.append(spec.Basic.Consume(queue=queue, consumer_tag=tag, arguments=arguments))
        methods += [spec.Basic.Cancel(consumer_tag=tag) for tag in kept]
        self._width = width
        link.call_all(methods)
        for tag in kept:
            del self._tags[tag]
        self._check(link)

    def _cancel(self, link: Link) -> None:
        """Stop consuming; what has arrived stays."""
        if not self._width:
            return
        self._width = 0
        tags = [tag for tag, queue in self._tags.items() if queue not in self._fleeting]
        link.call_all([spec.Basic.Cancel(consumer_tag=tag) for tag in tags])
        for tag in tags:
            del self._tags[tag]
        self._unacked.counted.clear()

    def _let_go(self, link: Link) -> None:
        """Stop consuming, and give back what has not been handed out."""
        self._cancel(link)
        self._give_back(link, [delivery.receipt % _EPOCH for delivery in self._shelf.clear()])

    def _give_back(self, link: Link, tags: Sequence[int]) -> None:
        if tags:
            link.send(b"".join(self._unacked.given_back(tags)))

    # -- settling --------------------------------------------------------------------------

    def _settle(self, link: Link, done: Sequence[Outcome], *, last: bool) -> None:
        """Carry out what is still held, then say so to the server."""
        mine = [outcome for outcome in done if outcome.delivery.let_go or self.holds(outcome.delivery)]
        verdicts = self._settler.carry_out(mine, all_of_them=last)
        if verdicts.given_back:
            if self._places is None:
                self._let_go(link)
            self._give_back(link, [delivery.receipt % _EPOCH for delivery in verdicts.given_back])
        refused = [delivery.receipt % _EPOCH for delivery in verdicts.refused if not delivery.let_go]
        acked = [delivery.receipt % _EPOCH for delivery in verdicts.acked if not delivery.let_go]
        frames = self._unacked.acked(acked)
        if refused:
            frames += self._unacked.refused(refused)
        if frames:
            link.send(b"".join(frames))
        for delivery in (*verdicts.acked, *verdicts.given_back, *verdicts.refused):
            self._held.pop(delivery.receipt, None)

    def holds(self, delivery: Delivery) -> bool:
        """Whether the delivery is still this consumer's: the connection it came by has not been lost."""
        return delivery.receipt in self._held

    def acknowledge(self, delivery: Delivery) -> None:
        """Let go of a delivery before it runs: it must not come back, whatever happens.

        Raises BrokerUnavailable where it is not held any more.
        """
        try:
            if self._link is None or self._held.pop(delivery.receipt, None) is None:
                raise Lost("the connection was lost")
            self._link.send(b"".join(self._unacked.acked([delivery.receipt % _EPOCH])))
        except LOST as error:
            self._disconnect()
            raise self._explained(error) from error
        delivery.let_go = True

    def extend(self, held: Sequence[Delivery], records: Sequence[Record] = ()) -> None:
        """See `Consumer.extend`: what must not run twice is acknowledged now.

        Without `hold` a task that lasts lets go of all that was fetched ahead.
        """
        self._settler.store(records)
        if self._outbox.waiting:
            self._outbox.send()
        link = self._link
        if link is None:
            return
        try:
            if (self._places == 0 and self._width) or (held and self._places is None):
                self._let_go(link)
            tags = []
            for delivery in held:
                if delivery.once and self._held.pop(delivery.receipt, None) is not None:
                    delivery.let_go = True
                    tags.append(delivery.receipt % _EPOCH)
            if tags:
                link.send(b"".join(self._unacked.acked(tags)))
            link.beat()
            while link.readable(0):
                link.read()
            self._check(link)
        except (Refused, *LOST) as error:
            self._disconnect()
            raise self._explained(error) from error

    def adopt(self, name: str, started: Mapping[int, str] | None = None) -> list[Delivery]:
        """Nothing: the server gives back what a lost connection held."""
        return []

    def wake(self) -> None:
        """See `Consumer.wake`."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"w")

    # -- connections -----------------------------------------------------------------------

    def _connected(self) -> Link:
        if self._link is None:
            heartbeat = self._server.heartbeat
            link = Link(self._server, timeout=self._server.connect_timeout, heartbeat=heartbeat)
            try:
                self._epoch += 1
                if self._epoch > 1:
                    self.name = f"{self._first_name}~{self._epoch}"
                self._link = link
                link.on_content = functools.partial(self._take_content, link)
                link.on_cancel = self._cancelled
                end = time.monotonic() + max(self._server.timeout, 5.0)
                for queue in self._queues:
                    declare.ensure_queue(link, self._broker.spec_of(queue), end)
                self._revoked.follow(link, end)
            except BaseException:
                self._link = None
                link.close_socket()
                raise
        return self._link

    def _cancelled(self, tag: str) -> None:
        """The server has ended a consumer: its queue is gone, or has moved."""
        queue = self._tags.get(tag)
        if queue is not None:
            self._failure = Refused(405, f"the queue {queue!r} was deleted or has moved")
        elif tag in notes.TAGS:
            self._revoked.ended()

    def _disconnect(self) -> None:
        """Drop the connection.  The server gives back what is held."""
        link, self._link = self._link, None
        if link is not None:
            link.close_socket()
        self._held.clear()
        self._settler.forget()
        self._shelf.clear()
        self._unacked.clear()
        self._tags.clear()
        self._width = 0
        self._failure = None

    def close(self) -> None:
        """See `Consumer.close`: the server puts what is held back to its place."""
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(Refused, *LOST):
                self._cancel(link)
                tags = sorted(self._unacked.tags)
                self._give_back(link, tags)
            link.close()
        self._held.clear()
        for fd in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._wake_read = self._wake_write = -1
