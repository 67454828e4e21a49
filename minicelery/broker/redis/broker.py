"""The Redis broker: publishing, looking after leases, and what operators ask for."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import redis.exceptions

from minicelery.broker import LEASE, Backend
from minicelery.broker.pool import Slot, pool_limit
from minicelery.broker.redis import dead, scripts
from minicelery.broker.redis.bindings import Binding, read_bindings
from minicelery.broker.redis.consumer import RedisConsumer
from minicelery.broker.redis.envelope import SEPARATOR, encode, step_of
from minicelery.broker.redis.limits import PURGE, RedisLimits, milliseconds
from minicelery.broker.redis.link import FAILED, LOST, Pool, Server
from minicelery.broker.redis.lookout import Lookout
from minicelery.broker.redis.post import RedisPost
from minicelery.broker.redis.restore import RESTORE
from minicelery.broker.url import ServerURL
from minicelery.exceptions import BrokerUnavailable, ImproperlyConfigured, OperationalError
from minicelery.limits import LEAD
from minicelery.message import BODY_HEADER, DeadLetter, Message, new_ids

log = logging.getLogger(__name__)

PUBLISH_DEADLINE = 5.0
DELAYS = ("auto", "native", "celery")
VISIBILITY_TIMEOUT = 3600.0
RESTORE_EVERY = 60.0
"""Seconds between looks at what Celery's workers have left; less where messages are due sooner."""
_CHUNK, _CHUNK_BYTES = 500, 1 << 20
_RESTORE_AT_ONCE = 10
_STEP_SUFFIXES = ("", f"{SEPARATOR}3", f"{SEPARATOR}6", f"{SEPARATOR}9")


class RedisBroker:
    """Queues in Redis.  Keys: `scripts`.

    Options: `global_keyprefix`, `lease`, `delays`, `visibility_timeout` (of Celery's workers),
    `pool_limit`, `socket_timeout`, `socket_connect_timeout`, `use_ssl` and redis-py's `ssl_…`.
    `delays` says where a delayed message waits: ``native``, in the queue's `.due`; ``celery``, in its
    list, as Celery has it; ``auto``, in `.due` where a minicelery worker serves the queue.
    """

    def __init__(self, url: ServerURL, options: Mapping[str, Any]) -> None:
        self.server = Server(url, options)
        self.url = url.masked
        self.prefix: str = options.get("global_keyprefix") or url.query.get("global_keyprefix") or ""
        self.base = f"{self.prefix}minicelery."
        self.place = f"redis:{self.server.database}:{self.prefix}"
        self.lease = float(options.get("lease") or LEASE)
        self.pool = Pool(self.server, pool_limit(options))
        self.delays: str = options.get("delays") or "auto"
        if self.delays not in DELAYS:
            raise ImproperlyConfigured(
                f"broker_delays={self.delays!r}: expected one of {', '.join(map(repr, DELAYS))}"
            )
        self.visibility_timeout = float(options.get("visibility_timeout") or VISIBILITY_TIMEOUT)
        self.post = RedisPost(self, options)
        self._restore_at = 0.0  # monotonic
        self._restore_from = 0

    # -- publishing ------------------------------------------------------------------------

    def publish(
        self, messages: Sequence[Message], *, deadline: float | None = None, attempts: int | None = None
    ) -> dict[str, str] | None:
        """See `Broker.publish`.  A repeated attempt never puts a message there twice."""
        end = time.monotonic() + (PUBLISH_DEADLINE if deadline is None else deadline)
        try:
            slot = self.pool.take(end)
            try:
                if len(messages) == 1:
                    slot.sequence += 1
                    answer = self._insist(slot, *self._one(messages[0]), end, attempts)
                    return None if type(answer) is int else _pairs(answer)
                return self._publish_chunks(slot, self._chunks(messages), end, attempts)
            finally:
                self.pool.put_back(slot)
        except LOST as error:
            raise BrokerUnavailable(self.server.explain(error)) from error
        except FAILED as error:
            raise OperationalError(self.server.explain(error)) from error

    def _one(self, message: Message) -> tuple[list[str], list[Any]]:
        step = step_of(message.priority) if message.priority else "0"
        keys = [self.prefix + message.queue]
        if message.unique is not None:
            call = (1, step, self.due_text(message), encode(message))
            return keys, [*self._claim(1, message, message.unique), *call]
        if message.due is None:
            return keys, [0, step, encode(message)]
        return keys, [1, step, self.due_text(message), encode(message)]

    def _claim(self, index: int, message: Message, unique: tuple[str, float]) -> tuple[Any, ...]:
        """What has PUBLISH send the next message only if its key is free."""
        key, seconds = unique
        return index, key, f"~{milliseconds(seconds)} {self.base}", message.id

    def _chunks(self, messages: Sequence[Message]) -> Iterator[tuple[list[str], list[Any]]]:
        """Keys and arguments of as many PUBLISH as the messages need."""
        if not messages:
            return
        first = messages[0]
        step = step_of(first.priority)
        alike = all(
            m.queue == first.queue and m.priority == first.priority and m.due is None and m.unique is None
            for m in messages
        )
        keys: dict[str, int] = {self.prefix + first.queue: 1}
        arguments: list[Any] = [0, step] if alike else []
        count = size = 0
        for message, tag in zip(messages, new_ids(len(messages)), strict=True):
            envelope = encode(message, tag)
            if count and (count >= _CHUNK or size + len(envelope) > _CHUNK_BYTES):
                yield list(keys), arguments
                keys = {self.prefix + first.queue: 1}
                arguments = [0, step] if alike else []
                count = size = 0
            count += 1
            size += len(envelope)
            if alike:
                arguments.append(envelope)
                continue
            index = keys.setdefault(self.prefix + message.queue, len(keys) + 1)
            if message.unique is not None:
                arguments += self._claim(index, message, message.unique)
            arguments += (index, step_of(message.priority), self.due_text(message), envelope)
        yield list(keys), arguments

    def due_text(self, message: Message, *, parked: bool = False) -> str:
        """When the message is due, as `push` of the scripts takes it.

        A `parked` one waits in `.due` in any case: its consumer found it in the list before its time,
        and there would find it again at once.  So does the body of a chord, which only our workers run.
        """
        parked = parked or BODY_HEADER in message.headers
        if message.due is None or (self.delays == "celery" and not parked):
            return ""
        return f"{'!' if parked or self.delays == 'native' else ''}{message.due:.6f}"

    def _publish_chunks(
        self, slot: Slot, chunks: Iterator[tuple[list[str], list[Any]]], end: float, attempts: int | None
    ) -> dict[str, str] | None:
        """Publish chunk by chunk; the next one is made while the server is busy with one."""
        flying: tuple[list[str], list[Any]] | None = None
        there: dict[str, str] = {}
        for chunk in chunks:
            if flying is not None:
                there |= self._land(slot, flying, end, attempts)
            slot.sequence += 1
            flying = chunk
            if slot.link is not None:
                try:
                    slot.link.start(scripts.PUBLISH, *self._numbered(slot, *chunk))
                except LOST:
                    slot.drop()
        if flying is not None:
            there |= self._land(slot, flying, end, attempts)
        return there or None

    def _land(
        self, slot: Slot, chunk: tuple[list[str], list[Any]], end: float, attempts: int | None
    ) -> dict[str, str]:
        """Wait for the answer to a chunk that was sent; send it again if none comes."""
        if slot.link is not None:
            try:
                return _pairs(slot.link.read())
            except redis.exceptions.NoScriptError:
                pass  # sent again below, with its text
            except LOST:
                slot.drop()
        return _pairs(self._insist(slot, *chunk, end, attempts))

    def _numbered(self, slot: Slot, keys: list[str], arguments: list[Any]) -> tuple[list[str], list[Any]]:
        return [*keys, f"{self.prefix}minicelery.sent.{slot.name}"], [slot.sequence, *arguments]

    def _insist(
        self, slot: Slot, keys: list[str], arguments: list[Any], end: float, attempts: int | None
    ) -> Any:
        """The answer; publish under the slot's number, as often as it takes and is allowed."""
        keys, arguments = self._numbered(slot, keys, arguments)
        attempt = 0
        was_idle = slot.link is not None
        while True:
            try:
                return self.pool.attempt(slot, end, lambda link: link.run(scripts.PUBLISH, keys, arguments))
            except LOST:
                attempt += 1
                # A link that had been idle may have died long ago: that is no failed attempt.
                allowed = attempts is None or attempt < attempts + was_idle
                wait = random.uniform(0.5, 1.0) * min(1.0, 0.1 * (attempt - 1))
                if not allowed or time.monotonic() + wait >= end:
                    raise
                time.sleep(wait)

    # -- consuming -------------------------------------------------------------------------

    def consumer(self, queues: Sequence[str], name: str, backend: Backend | None) -> RedisConsumer:
        """See `Broker.consumer`."""
        return RedisConsumer(self, queues, name, backend)

    def tend(self, queues: Sequence[str], alive: Sequence[str]) -> list[str]:
        """See `Broker.tend`."""
        keys = self.queue_keys(queues)
        ended = self.ask(lambda link: link.run(scripts.TEND, keys, [self.lease, self.base, *alive]))
        if time.monotonic() >= self._restore_at:
            self._restore(keys)
        return [name.decode() for name in ended]

    def _restore(self, keys: Sequence[str]) -> None:
        """Put a few of the messages back that Celery's workers took too long ago to be alive."""
        # Set first: where this fails, leases are looked after all the same.
        self._restore_at = time.monotonic() + min(RESTORE_EVERY, self.visibility_timeout)
        theirs = [self.prefix + name for name in ("unacked", "unacked_index", "unacked_mutex")]
        arguments = [self.prefix, self.visibility_timeout, self._restore_from, _RESTORE_AT_ONCE]
        go_on, *ids = self.ask(lambda link: link.run(RESTORE, [*theirs, *keys], arguments))
        self._restore_from = max(0, go_on)
        if go_on >= 0:
            self._restore_at = 0.0
        if ids:
            log.warning(
                "Celery workers have held %d messages for more than %g s: back in their queues are %s",
                len(ids), self.visibility_timeout, ", ".join(id.decode() for id in ids),
            )  # fmt: skip

    def lookout(self, queues: Sequence[str]) -> Lookout:
        """Notices messages of Celery's producers; for the agent's thread."""
        return Lookout(self, self.queue_keys(queues))

    def queue_keys(self, queues: Sequence[str]) -> list[str]:
        """The keys of the queues' lists."""
        return [self.prefix + queue for queue in queues]

    # -- asking ----------------------------------------------------------------------------

    def limits(self, *, parks: bool) -> RedisLimits:
        """Where the limits are kept: on this server."""
        return RedisLimits(self, parks)

    def ask(self, work: Any) -> Any:
        """`work(link)` on a pooled link.  Raises BrokerUnavailable or OperationalError."""
        try:
            return self.pool.call(time.monotonic() + PUBLISH_DEADLINE, work)
        except LOST as error:
            raise BrokerUnavailable(self.server.explain(error)) from error
        except FAILED as error:
            raise OperationalError(self.server.explain(error)) from error

    def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to commands, in one trip.  Raises BrokerUnavailable or OperationalError."""

        def work(link: Any) -> list[Any]:
            link.send_all(commands)
            return [link.read() for _ in commands]

        answers: list[Any] = self.ask(work)
        return answers

    def size(self, queue: str) -> int:
        """See `Broker.size`."""
        key = self.prefix + queue
        # What is due is moved to the lists by the next fetch.
        due = ("ZCOUNT", f"{key}.due", "-inf", time.time())
        counts: list[int] = self.ask_all([due, *(("LLEN", key + step) for step in _STEP_SUFFIXES)])
        return sum(counts)

    def delayed(self, queue: str) -> int:
        """See `Broker.delayed`."""
        key = self.prefix + queue
        due = ("ZCOUNT", f"{key}.due", f"({time.time()}", "+inf")
        counts: list[int] = self.ask_all([due, ("HLEN", f"{key}.waiting")])
        return sum(counts)

    def dead(self, queue: str) -> int:
        """How many dead letters of `queue` are kept."""
        count: int = self.ask(lambda link: link.call("LLEN", f"{self.prefix}{queue}.dead"))
        return count

    def bindings(self, seconds: float = 2.0) -> tuple[list[Binding], bool]:
        """What Celery has bound to exchanges, as far as `seconds` reach; and whether that is all."""
        found: tuple[list[Binding], bool] = self.ask(lambda link: read_bindings(self, link, seconds))
        return found

    def purge(self, queue: str) -> int:
        """See `Broker.purge`."""
        keys = [self.prefix + queue, self.base]
        count: int = self.ask(lambda link: link.run(PURGE, keys, []))
        return count

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """See `Broker.dead_letters`."""
        found = self.ask(lambda link: link.call("LRANGE", f"{self.prefix}{queue}.dead", 0, limit - 1))
        return [dead.letter_of(entry) for entry in found]

    def replay_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        """See `Broker.replay_dead`."""
        return dead.settle(self, queue, ids, replay=True)

    def discard_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        """See `Broker.discard_dead`."""
        return dead.settle(self, queue, ids, replay=False)

    def remember(self, topic: str, key: str, ttl: float, value: bytes = b"") -> None:
        """See `Broker.remember`."""
        self.remember_all(topic, {key: value}, ttl)

    def remember_all(self, topic: str, records: Mapping[str, bytes], ttl: float) -> None:
        """See `Broker.remember_all`."""
        name, now = self.topic_key(topic), time.time()
        until = f"{now + ttl:.3f}"
        keep = max(int(ttl) + 1, 86400)
        commands: list[tuple[Any, ...]] = [
            ("ZREMRANGEBYSCORE", name, "-inf", f"{now:.3f}"),
            ("ZADD", name, *(part for key in records for part in (until, key))),
            ("EXPIRE", name, keep),
        ]
        if values := [part for item in records.items() if item[1] for part in item]:
            commands += [("HSET", f"{name}.values", *values), ("EXPIRE", f"{name}.values", keep)]
        self.ask_all(commands)

    def lead(self, name: str, holder: str, seconds: float) -> str:
        """See `Broker.lead`."""
        return self.limits(parks=True).claim(LEAD + name, holder, seconds)

    def leader(self, name: str) -> str:
        """See `Broker.leader`."""
        found: bytes = self.ask(lambda link: link.call("GET", f"{self.base}{LEAD}{name}")) or b""
        return found.decode(errors="replace").partition(SEPARATOR)[0]

    def step_down(self, name: str, holder: str) -> None:
        """See `Broker.step_down`."""
        self.limits(parks=True).free(holder, [LEAD + name])

    def recall(self, topic: str) -> dict[str, bytes]:
        """See `Broker.recall`."""
        name = self.topic_key(topic)
        keys, values = self.ask_all(
            [("ZRANGEBYSCORE", name, f"{time.time():.3f}", "+inf"), ("HGETALL", f"{name}.values")]
        )
        kept = dict(zip(values[::2], values[1::2], strict=True))
        return {key.decode(errors="backslashreplace"): kept.get(key, b"") for key in keys}

    def topic_key(self, topic: str) -> str:
        """The key of the records of `topic`."""
        return f"{self.prefix}minicelery.{topic}"

    def close(self) -> None:
        """See `Broker.close`."""
        self.post.close()
        self.pool.close()


def _pairs(answer: Any) -> dict[str, str]:
    """By the ids of what is not sent, who holds its unique key."""
    if type(answer) is int:
        return {}
    ids = [id.decode() for id in answer]
    return dict(zip(ids[::2], ids[1::2], strict=True))
