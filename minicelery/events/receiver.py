"""Hearing events, from whichever library: `app.events.Receiver`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from minicelery._state import get_current_app
from minicelery.broker.post import Box, Letter, Listening
from minicelery.exceptions import ImproperlyConfigured, OperationalError
from minicelery.message import new_id

PATIENCE = 1.0
"""Seconds after which `should_stop` is looked at, where no event comes."""
SLOWEST_RECONNECT = 1.0

Handler = Callable[[dict[str, Any]], Any]


class Receiver:
    """Calls `handlers` with the events that come: by their type, or ``"*"`` for the others.

    It listens while it captures.  `routing_key` says what it wants: ``#``, ``task.#``, ``worker.#``.
    """

    app: Any = None
    should_stop = False
    """Set, `capture` ends within a second."""

    def __init__(
        self,
        channel: Any = None,
        handlers: Mapping[str, Handler] | None = None,
        routing_key: str = "#",
        node_id: str | None = None,
        app: Any = None,
        queue_prefix: str | None = None,
        accept: Any = None,
        queue_ttl: float | None = None,
        queue_expires: float | None = None,
        queue_exclusive: bool | None = None,
        queue_durable: bool | None = None,
    ) -> None:
        self.app = app or self.app or get_current_app()
        conf = self.app.conf
        self.channel = channel
        self.handlers: Mapping[str, Handler] = {} if handlers is None else handlers
        self.routing_key = routing_key
        self.node_id = node_id or new_id()
        if queue_durable:
            raise ImproperlyConfigured(
                "a receiver of events can't have a durable queue: events are for those who listen at the moment; "
                "leave queue_durable at False"
            )
        self.box = Box(
            conf.event_exchange,
            "topic",
            f"{queue_prefix or conf.event_queue_prefix}.{self.node_id}",
            routing_key,
            conf.event_queue_ttl if queue_ttl is None else queue_ttl,
            conf.event_queue_expires if queue_expires is None else queue_expires,
        )
        self._listening: Listening | None = None

    def capture(self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True) -> None:
        """Handle events until `limit` messages have come; None: until `should_stop`.

        With `wakeup` the workers are asked for a heartbeat first.  Raises TimeoutError where for
        `timeout` seconds none has come, OperationalError where the broker is lost, and whatever a
        handler raises.
        """
        for _ in self.itercapture(limit, timeout, wakeup):
            pass

    def itercapture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> Iterator[None]:
        """`capture`, which gives a turn after each message."""
        count = 0
        with self.app.broker.post.listen([self.box]) as listening:
            self._listening = listening
            if wakeup:
                self.wakeup_workers()
            heard = time.monotonic()
            while not self.should_stop:
                left = PATIENCE if timeout is None else heard + timeout - time.monotonic()
                letters = listening.take(max(0.0, min(PATIENCE, left)))
                if left <= 0 and not letters:  # none waits that came while this could not run
                    raise TimeoutError(f"no event has come for {timeout:g} s")
                for letter in letters:
                    heard = time.monotonic()
                    self._receive(letter)
                    yield
                    count += 1
                    if self.should_stop or count == limit:
                        return

    def capture_on(self, on_lost: Callable[[OperationalError], Any]) -> None:
        """`capture` until `should_stop`, through outages: each is told to `on_lost`."""
        failures = 0
        while not self.should_stop:
            try:
                for _ in self.itercapture():
                    failures = 0
            except OperationalError as error:
                on_lost(error)
                ceiling = min(SLOWEST_RECONNECT, 0.1 * 2.0 ** min(failures, 10))
                failures += 1
                end = time.monotonic() + random.uniform(ceiling / 2, ceiling)
                while not self.should_stop and (left := end - time.monotonic()) > 0:
                    time.sleep(min(left, 0.1))

    def stop(self) -> None:
        """End `capture` now; from any thread."""
        self.should_stop = True
        if (listening := self._listening) is not None:
            listening.wake()

    def wakeup_workers(self, channel: Any = None) -> None:
        """Ask every worker for a heartbeat."""
        broadcast = getattr(self.app.control, "broadcast", None)
        if broadcast is not None:
            broadcast("heartbeat")

    # -- one message -----------------------------------------------------------------------

    def _receive(self, letter: Letter) -> None:
        content = letter.content
        for body in content if isinstance(content, list) else [content]:
            if isinstance(body, dict) and isinstance(body.get("type"), str):
                self.process(*self.event_from_message(body))

    def event_from_message(self, body: dict[str, Any], localize: bool = True) -> tuple[str, dict[str, Any]]:
        """Its type, and the event with `clock` and `local_received`.

        `timestamp` stays as it is: unix seconds are the same everywhere.
        """
        clock = self.app.clock
        if body["type"] == "task-sent":
            # Clients follow nobody's clock, so theirs says nothing.
            body["clock"] = (clock.value or 1) - 1
            clock.forward()
        elif type(body.get("clock")) is int:
            clock.adjust(body["clock"])
        else:
            body["clock"] = clock.forward()
        body["local_received"] = time.time()
        return body["type"], body

    def process(self, type: str, event: dict[str, Any]) -> None:
        """Call the handler of that type, or the one of all others."""
        handler = self.handlers.get(type) or self.handlers.get("*")
        if handler is not None:
            handler(event)
