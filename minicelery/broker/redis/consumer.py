"""One child's hold on queues in Redis: one script settles, stores, publishes and fetches."""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.broker import Backend, Leased
from minicelery.broker.chords import Apart
from minicelery.broker.post import Posting
from minicelery.broker.redis import scripts
from minicelery.broker.redis.backend import RedisBackend
from minicelery.broker.redis.envelope import decode, encode, step_of
from minicelery.broker.redis.limits import limit_arguments
from minicelery.broker.redis.link import FAILED, LOST, Link
from minicelery.broker.redis.post import RedisOutbox
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import COUNT_HEADER, Delivery, Message, Outcome, Record, Verdict

if TYPE_CHECKING:
    from minicelery.broker.redis.broker import RedisBroker

BATCH_BYTES = 1 << 20
"""A fetch ends when it has passed this size, so that big messages don't pile up in a child."""


MANY = 1000
"""Records that one outcome may bring."""
UNBLOCK_AGAIN = 0.002
"""Seconds after which a BLPOP that has not ended is ended once more."""


class RedisConsumer(Leased, Posting):
    """See `Consumer`.  After a lost connection it goes by a new name and adopts the old one's."""

    def __init__(
        self, broker: RedisBroker, queues: Sequence[str], name: str, backend: Backend | None
    ) -> None:
        if not queues:
            raise ValueError("a consumer needs at least one queue")
        self._broker = broker
        self._server = broker.server
        self.renew = broker.lease / 3
        self._arrange(list(queues))
        self._first_name = self.name = name
        self._generation = 0
        self._lost: list[str] = []  # names whose deliveries are still to be adopted
        self._held: dict[int, Delivery] = {}
        self._recovered: list[Delivery] = []  # adopted after a lost reply, not handed out yet
        self._receipt = 0
        self._turn = 0
        self._link: Link | None = None
        self._bell: Link | None = None
        self._bell_id = b""
        self._ringing = False  # a BLPOP waits on the bell's connection
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._outbox: RedisOutbox = RedisOutbox(broker.post)
        self._apart: Apart | None = None
        self._store: RedisBackend | None = None
        self._record_db = ""
        if isinstance(backend, RedisBackend) and backend.server.place == self._server.place:
            self._store = backend
            if backend.server.database != self._server.database:
                self._record_db = str(backend.server.database)
        elif backend is not None:
            self._apart = Apart(backend)

    def _arrange(self, queues: list[str], skipped: int = 0) -> None:
        """Take the keys in this order; nothing is fetched from the last `skipped` of them."""
        self._queues = queues
        self._keys = self._broker.queue_keys(queues)
        self._swap_keys = [*self._keys, self._broker.topic_key("revoked")]
        self._index = {queue: place for place, queue in enumerate(queues, 1)}
        self._fetched = len(queues) - skipped

    def skip(self, queues: Collection[str]) -> None:
        """See `Consumer.skip`."""
        skipped = [queue for queue in self._queues if queue in queues]
        self._arrange([*(queue for queue in self._queues if queue not in queues), *skipped], len(skipped))

    # -- swap ------------------------------------------------------------------------------

    def swap(self, done: Sequence[Outcome], want: int, wait: float) -> list[Delivery]:
        """See `Consumer.swap`: one trip where something is there to fetch, or nothing is wanted."""
        end = time.monotonic() + wait
        try:
            while True:
                link = self._connected()
                found, soonest = self._turn_once(link, done, 0 if self._recovered else want)
                done = ()
                if want and self._recovered:
                    found, self._recovered = self._recovered, []
                left = end - time.monotonic()
                if found or want == 0 or left <= 0:
                    return found
                if not self._listen(left if soonest is None else min(left, soonest)):
                    return []
        except LOST as error:
            self._disconnect()
            raise BrokerUnavailable(self._server.explain(error)) from error
        except FAILED as error:
            self._disconnect()
            raise OperationalError(self._server.explain(error)) from error

    def _turn_once(
        self, link: Link, done: Sequence[Outcome], want: int
    ) -> tuple[list[Delivery], float | None]:
        """One SWAP: the deliveries, and if there are none the seconds to the next due one."""
        if self._apart is not None and done:
            done = self._store_elsewhere(link, done)
        if any(len(outcome.more) > MANY for outcome in done):
            done = self._store_before(link, done)
        self._turn += 1
        fetch: Any = want if self._fetched == len(self._keys) else f"{want}/{self._fetched}"
        arguments: list[Any] = [
            self.name, self._broker.lease, fetch, BATCH_BYTES, self._receipt, self._turn,
            self._record_db, self._server.database, self._broker.prefix, len(done),
        ]  # fmt: skip
        for outcome in done:
            self._add(arguments, outcome)
        if self._ringing:
            answer = self._stop_listening(link, arguments)
        elif self._outbox.waiting:
            (answer,) = self._outbox.run(link, scripts.SWAP, self._swap_keys, arguments)
        else:
            answer = link.run(scripts.SWAP, self._swap_keys, arguments)
        for outcome in done:
            self._held.pop(outcome.delivery.receipt, None)
        if self._apart is not None and done:
            self._apart.settled()
        if len(answer) < 2:
            return [], float(answer[0]) if answer and answer[0] else None
        return self._take(answer), None

    def _add(self, arguments: list[Any], outcome: Outcome) -> None:
        delivery = outcome.delivery
        field, marked = delivery.raw
        verdict, text = "A" if marked else "a", ""
        limited: list[str] = []
        if outcome.release or outcome.park is not None:
            limited = self._limits_of(outcome)
        if outcome.verdict is Verdict.REQUEUE or (outcome.verdict is Verdict.PARK and outcome.park is None):
            verdict = "r"
            if delivery.deliveries > (delivery.message.headers.get(COUNT_HEADER) or 0):
                text = encode(_counted(delivery))
        elif outcome.verdict is Verdict.REJECT:
            verdict = "d"
            text = json.dumps(
                {
                    "reason": outcome.reason or "rejected",
                    "rejected": time.time(),
                    "id": delivery.message.id or None,
                    "task": delivery.message.task or None,
                }
            )
        key, document, ttl = "", b"", ""
        if outcome.record is not None and self._store is not None:
            key, document, ttl = self._store.arguments(outcome.record)
        broker, publish = self._broker, outcome.publish
        more = outcome.more if self._store is not None else ()
        arguments += (
            self._index[delivery.message.queue], field, verdict, text, key, document, ttl,
            len(publish) + len(more) + len(limited) // 4,
        )  # fmt: skip
        for record in more:
            assert self._store is not None
            more_key, more_document, more_ttl = self._store.arguments(record)
            arguments += (more_key, more_document, f"={more_ttl}", "")
        for message in publish:
            arguments += (
                broker.prefix + message.queue,
                step_of(message.priority),
                "" if message.due is None else broker.due_text(message, parked=message is delivery.message),
                encode(message),
            )
        arguments += limited

    def _limits_of(self, outcome: Outcome) -> list[str]:
        message = outcome.delivery.message
        broker, step = self._broker, outcome.delivery.raw[0].partition(b":")[2].decode() or "0"
        envelope = "" if outcome.park is None else encode(message)
        return limit_arguments(broker.base, broker.prefix + message.queue, step, outcome, envelope)

    def _take(self, answer: list[Any]) -> list[Delivery]:
        flags = answer[-1]
        found = []
        for at in range(0, len(answer) - 1, 3):
            receipt = self._receipt = self._receipt + 1
            field = answer[at + 1]
            delivery = decode(answer[at + 2], self._queues[answer[at] - 1], receipt)
            delivery.raw = (field, False)
            self._held[receipt] = delivery
            found.append(delivery)
        if b"1" in flags:
            for delivery, flag in zip(found, flags, strict=True):
                delivery.revoked = flag == 49
        return found

    def _store_before(self, link: Link, done: Sequence[Outcome]) -> list[Outcome]:
        """Store most of very many records by themselves: in one script they would keep everybody waiting."""
        held, store = self._still_held(link, done), self._store
        for outcome in held:
            while store is not None and len(outcome.more) > MANY:
                # Bodies that are due now are owed: an agent sends them.
                store.store(outcome.more[:MANY])
                outcome.more = outcome.more[MANY:]
        return held

    def _store_elsewhere(self, link: Link, done: Sequence[Outcome]) -> list[Outcome]:
        """Store the records of what is still held in the other server; the outcomes still to settle."""
        held = self._still_held(link, done)
        if self._apart is not None:
            self._apart.store(held)
        return held

    def _still_held(self, link: Link, done: Sequence[Outcome]) -> list[Outcome]:
        link.send_all(
            [
                (
                    "HEXISTS",
                    f"{self._keys[self._index[o.delivery.message.queue] - 1]}.held:{self.name}",
                    o.delivery.raw[0],
                )
                for o in done
            ]
        )
        return [outcome for outcome, there in zip(done, [link.read() for _ in done], strict=True) if there]

    # -- waiting ---------------------------------------------------------------------------

    def _listen(self, timeout: float) -> bool:
        """Wait for the bell, a wake or `timeout`; False when woken."""
        if self._bell is None:
            self._bell = self._server.link()
            self._bell_id = b"%d" % self._bell.call("CLIENT", "ID")
            self._ringing = False
        if not self._ringing and self._fetched:
            self._bell.send("BLPOP", *(f"{key}.bell" for key in self._keys[: self._fetched]), 0)
            self._ringing = True
        poll = select.poll()
        if self._ringing:
            poll.register(self._bell, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        # Redis looks at its own timeouts ten times a second: ours is kept here.
        ready = {fd for fd, _ in poll.poll(max(0.0, timeout) * 1000)}
        if self._bell.fileno() in ready:
            self._bell.read()
            self._ringing = False
        if self._wake_read in ready:
            self._drain_wakes()
            return False
        return True

    def _stop_listening(self, link: Link, arguments: list[Any]) -> Any:
        """SWAP and the end of a pending BLPOP in one trip: a busy child must take no tokens."""
        assert self._bell is not None
        unblock = ("CLIENT", "UNBLOCK", self._bell_id)
        ended, answer = self._outbox.run(link, scripts.SWAP, self._swap_keys, arguments, unblock)
        # Where it had ended by itself, or had not even reached the server: connections are not heard in turn.
        end = time.monotonic() + self._server.timeout
        while not ended and not self._bell.readable(UNBLOCK_AGAIN) and time.monotonic() < end:
            link.call("CLIENT", "UNBLOCK", self._bell_id)
        token = self._bell.read()
        self._ringing = False
        if token is not None and not ended:
            # It may have come after the SWAP, for a message which that one has not seen.
            link.send_all([("LPUSH", *token), ("EXPIRE", token[0], 60)])
            link.read(), link.read()
        return answer

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass

    def wake(self) -> None:
        """See `Consumer.wake`."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"w")

    # -- holding ---------------------------------------------------------------------------

    def extend(self, held: Sequence[Delivery], records: Sequence[Record] = ()) -> None:
        """See `Consumer.extend`."""
        arguments: list[Any] = [
            self.name, self._broker.lease, self._record_db, self._server.database, len(held)
        ]  # fmt: skip
        for delivery in held:
            arguments += (self._index[delivery.message.queue], delivery.raw[0])
        if self._store is not None:
            for record in records:
                arguments += self._store.arguments(record)
        elif self._apart is not None and records:
            self._apart.backend.store(records)
        self._ask(scripts.EXTEND, arguments)
        for delivery in held:
            delivery.raw = (delivery.raw[0], True)

    def adopt(self, name: str, started: Mapping[int, str] | None = None) -> list[Delivery]:
        """See `Consumer.adopt`."""
        found = self._adopt(name, started or {})
        for delivery in found:
            self._held[delivery.receipt] = delivery
            self._receipt = max(self._receipt, delivery.receipt)
        return found

    def _adopt(self, name: str, started: Mapping[int, str]) -> list[Delivery]:
        arguments: list[Any] = [name, self.name, self._broker.lease]
        for receipt, reason in started.items():
            arguments += (receipt, reason)
        answer = self._ask(scripts.ADOPT, arguments)
        marks: dict[int, str] = {}
        found: list[Delivery] = []
        for at in range(0, len(answer), 3):
            place, field, value = answer[at : at + 3]
            if field[:1] == b"s":
                marks[int(field[1:])] = value.decode()
                continue
            delivery = decode(value, self._queues[place - 1], int(field.partition(b":")[0]))
            delivery.raw = (field, False)
            found.append(delivery)
        found.sort(key=lambda delivery: delivery.receipt)
        for delivery in found:
            if delivery.receipt in marks:
                delivery.started, delivery.reason = True, marks[delivery.receipt] or None
                delivery.raw = (delivery.raw[0], True)
        return found

    def _ask(self, script: Any, arguments: list[Any]) -> Any:
        try:
            link = self._connected()
            if self._outbox.waiting:
                return self._outbox.run(link, script, self._keys, arguments)[0]
            return link.run(script, self._keys, arguments)
        except LOST as error:
            self._disconnect()
            raise BrokerUnavailable(self._server.explain(error)) from error
        except FAILED as error:
            self._disconnect()
            raise OperationalError(self._server.explain(error)) from error

    # -- connections -----------------------------------------------------------------------

    def _connected(self) -> Link:
        """The link; after a lost one, connect and adopt what the lost name holds."""
        if self._link is None:
            self._link = self._server.link()
            if self._lost:
                self._recover()
        return self._link

    def _recover(self) -> None:
        # The old name's last script may or may not have been done, or may yet be: whatever it
        # holds comes to the new name, and a late call under the old one settles nothing.
        while self._lost:
            for delivery in self._adopt(self._lost[0], {}):
                self._receipt = max(self._receipt, delivery.receipt)
                if (held := self._held.get(delivery.receipt)) is not None:
                    held.raw = delivery.raw
                    continue
                self._held[delivery.receipt] = delivery
                self._recovered.append(delivery)
            self._lost.pop(0)

    def _disconnect(self) -> None:
        used = self._link is not None  # else nothing was sent under this name
        for link in (self._link, self._bell):
            if link is not None:
                link.close()
        self._link = self._bell = None
        self._ringing = False
        if used:
            self._lost.append(self.name)
            self._generation += 1
            self.name = f"{self._first_name}~{self._generation}"

    def close(self) -> None:
        """See `Consumer.close`."""
        with contextlib.suppress(BrokerUnavailable, OperationalError, *FAILED):
            if self._held or self._lost:
                self._connected().run(scripts.GIVE_BACK, self._keys, [self.name])
        for link in (self._link, self._bell):
            if link is not None:
                link.close()
        self._link = self._bell = None
        self._held.clear()
        for fd in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._wake_read = self._wake_write = -1


def _counted(delivery: Delivery) -> Message:
    """The message as it goes back: marked, and with the number of runs that died under it."""
    message = delivery.message
    message.headers["redelivered"] = True
    message.headers[COUNT_HEADER] = delivery.deliveries
    return message
