"""Results that go straight to who asked: ``rpc://``, one reply queue for each app that sends.

A worker sends each state of a task to the queue that the call's ``reply_to`` names; the
sender reads it and remembers what has come.  Nobody else can ask.  Documents are Celery's.

The queue is named by a UUID of the app's own, and of each process it is forked into.  The
server keeps it, with what comes, while the reader's connection is lost, for `result_expires`
but ten minutes at most (``x-expires``); a `close` deletes it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pika import spec

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.server import LOST, Refused
from minicelery.exceptions import (
    BackendError,
    BackendUnavailable,
    BrokerUnavailable,
    ImproperlyConfigured,
    OperationalError,
)
from minicelery.forking import call_in_forked_children
from minicelery.message import Message, Record, new_id
from minicelery.serialization import content_of

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

T = TypeVar("T")

REMEMBERED = 100_000
"""Calls whose results are waited for or kept; the oldest are forgotten."""
_DEADLINE = 5.0
_UNREAD = 600.0
"""Seconds that a reply queue stays without a reader: its process reconnects, or is gone."""


class Replies:
    """The backend of ``rpc://``; see `minicelery.broker.Backend`."""

    direct = True
    """Results reach only the process that sent the call."""

    def __init__(
        self, broker: AMQPBroker, expires: Any, persistent: bool | None, serializer: str = "json"
    ) -> None:
        self.broker = broker
        self.content_type, self.content_encoding = content_of(serializer)
        self.url = "rpc://"
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
        self.unread = min(_UNREAD, float(seconds or _UNREAD))
        self.mode = 2 if persistent else 1
        self._reset()
        call_in_forked_children(self._reset)  # which is another client

    def _reset(self) -> None:
        self._lock = threading.Lock()  # around the link: one thread reads for all
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._queue = ""
        self._closed = False  # until the next call is sent: who still waits must not connect anew
        self._known: dict[str, bytes | None] = {}  # calls of this process, and the latest document

    # -- the worker's side -----------------------------------------------------------------

    def store(self, records: Sequence[Record]) -> list[Message]:
        """Send each record to who asked for it; what nobody waits for any more is dropped there."""
        wanted = [record for record in records if record.reply_to]
        if not wanted:
            return []
        end = time.monotonic() + _DEADLINE

        def send(link: Link) -> None:
            frames = [
                codec.publish_frames(
                    1, "", record.reply_to, self._properties(record), record.document, link.frame_max
                )
                for record in wanted
            ]
            link.send(b"".join(frames))

        self._asking(lambda: self.broker.insist(send, end, pool=self.broker.plain))
        return []

    def _properties(self, record: Record) -> dict[str, Any]:
        return {
            "content_type": self.content_type,
            "content_encoding": self.content_encoding,
            "headers": {},
            "delivery_mode": self.mode,
            "priority": 0,
            "correlation_id": record.id[:255],
        }

    # -- the sender's side -----------------------------------------------------------------

    @property
    def queue(self) -> str:
        """Where this client's results come to: the `reply_to` of its calls."""
        if not self._queue:
            self._queue = new_id()
        return self._queue

    def expect(self, ids: Sequence[str]) -> None:
        """Before calls are sent: see that their results have a queue to come to."""
        if self._link is None:
            with self._lock:
                if self._link is None:
                    self._asking(self._connect)
        with self._changed:
            for id in ids:
                self._known.setdefault(id, None)
            while len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]

    def _connect(self) -> None:
        self._close_link()
        queue = self.queue
        # With heartbeats, so that a wait notices a connection that has silently gone.
        link = Link(self.broker.server, timeout=_DEADLINE, heartbeat=self.broker.server.heartbeat)
        try:
            # Not deleted with its reader, as Celery's is: a lost connection would take the answers with it.
            declare = spec.Queue.Declare(
                queue=queue, durable=True, arguments={"x-expires": max(1, int(self.unread * 1000))}
            )
            consume = spec.Basic.Consume(queue=queue, consumer_tag="replies", no_ack=True)
            link.on_content = self._take
            link.call_all([declare, consume])
        except BaseException:
            link.close_socket()
            raise
        self._link = link
        self._closed = False

    def _take(self, content: Content) -> None:
        try:
            id = codec.decode_properties(content.header).get("correlation_id")
        except (ValueError, IndexError):
            return
        if id:
            # Also of what the called task has called: its results come here as well.
            with self._changed:
                self._known[id] = bytes(content.body)
                while len(self._known) > REMEMBERED:
                    del self._known[next(iter(self._known))]
                self._changed.notify_all()

    def _pump(self, wait: float) -> None:
        """Read what has come, for at most `wait` seconds; or wait while another thread does."""
        if not self._lock.acquire(blocking=False):
            with self._changed:
                self._changed.wait(min(wait, 0.05))
            return
        try:
            if self._link is None and not self._closed:
                self._asking(self._connect)
            link = self._link
            if link is None:
                time.sleep(min(wait, 0.05))
                return
            try:
                # The link is for reading, and for nothing else: only who reads it finds it broken.
                while link.pump(wait):
                    wait = 0.0
                if 1 in link.closed:
                    raise link.closed.pop(1)
            except (Refused, *LOST) as error:
                self._close_link()
                raise BackendUnavailable(self.broker.server.explain(error)) from error
        finally:
            self._lock.release()

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        """See `Backend.load`; what has come so far."""
        self._check(ids)
        self._pump(0.0)
        return [self._record(id) for id in ids]

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        """See `Backend.watch`."""
        self._check(ids)
        end = time.monotonic() + wait
        while True:
            found = [
                record
                for id in ids
                if (record := self._record(id)) is not None and record.document != seen.get(id)
            ]
            left = end - time.monotonic()
            if found or left <= 0:
                return found
            self._pump(left)

    def _record(self, id: str) -> Record | None:
        document = self._known.get(id)
        return None if document is None else Record(id, document)

    def _check(self, ids: Collection[str]) -> None:
        for id in ids:
            if id not in self._known:
                raise ImproperlyConfigured(
                    f"the result of task {id} was not asked for by this process: rpc:// sends results only to "
                    "the process that sent the call, and does not keep them; to read results elsewhere or "
                    "later, use result_backend='redis://…' or 'sqlite:///…'"
                )

    def forget(self, ids: Sequence[str]) -> None:
        """See `Backend.forget`."""
        for id in ids:
            if id in self._known:
                self._known[id] = None

    # -- the end ---------------------------------------------------------------------------

    def _asking(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (BrokerUnavailable, *LOST) as error:
            raise BackendUnavailable(self._words(error)) from error
        except (OperationalError, Refused) as error:
            raise BackendError(self._words(error)) from error

    def _words(self, error: BaseException) -> str:
        return str(error) if isinstance(error, OperationalError) else self.broker.server.explain(error)

    def _close_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def close(self) -> None:
        """See `Backend.close`.  What has come stays known; the queue is deleted."""
        with self._lock:
            self._closed = True
            if self._link is not None:
                with contextlib.suppress(Refused, *LOST):
                    self._link.call(spec.Queue.Delete(queue=self.queue))
            self._close_link()
