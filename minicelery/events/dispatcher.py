"""Sending events of one's own: `app.events.Dispatcher`."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minicelery._state import get_current_app
from minicelery.events import records
from minicelery.exceptions import ImproperlyConfigured, OperationalError
from minicelery.message import Origin

KEPT = 1000
"""Events that wait for a broker that can't be reached; the oldest are dropped where there are more."""


class Dispatcher:
    """Sends events under the name `hostname`, None: that of this process as a client.

    Thread-safe.  Those of the groups in `buffer_group` leave at once when there are `buffer_limit`
    of them, or at `flush`.
    """

    app: Any = None

    def __init__(
        self,
        connection: Any = None,
        hostname: str | None = None,
        enabled: bool = True,
        channel: Any = None,
        buffer_while_offline: bool = True,
        app: Any = None,
        serializer: str | None = None,
        groups: Iterable[str] | None = None,
        delivery_mode: int = 1,
        buffer_group: Iterable[str] | None = None,
        buffer_limit: int = 24,
        on_send_buffered: Callable[[], Any] | None = None,
    ) -> None:
        self.app = app or self.app or get_current_app()
        if serializer not in (None, "json"):
            raise ImproperlyConfigured(f"serializer={serializer!r} of a dispatcher: events are JSON, always")
        self.connection = connection
        self.channel = channel
        self.hostname = hostname or client_name()
        self.enabled = enabled
        self.buffer_while_offline = buffer_while_offline
        self.groups = set(groups or ())  # empty: all
        self.buffer_group = frozenset(buffer_group or ())
        self.buffer_limit = buffer_limit
        self.on_send_buffered = on_send_buffered
        self.on_enabled: set[Callable[[], Any]] = set()
        self.on_disabled: set[Callable[[], Any]] = set()
        self.pid = os.getpid()
        self.clock = self.app.clock
        self._buffers: dict[str, list[dict[str, Any]]] = {}
        self._unsent: deque[tuple[str, bytes]] = deque(maxlen=KEPT)
        self._mutex = threading.RLock()

    def send(
        self, type: str, blind: bool = False, retry: bool = False, retry_policy: Any = None, **fields: Any
    ) -> None:
        """Send an event; nothing where this dispatcher is disabled, or leaves its group out.

        Raises EncodeError naming what JSON can't carry, and OperationalError unless `buffer_while_offline`.
        """
        group = type.partition("-")[0]
        if not self.enabled or (self.groups and group not in self.groups):
            return
        if group not in self.buffer_group:
            self.publish(type, fields, blind=blind)
            return
        with self._mutex:
            buffer = self._buffers.setdefault(group, [])
            buffer.append(self._event(type, fields, blind))
            full = len(buffer) >= self.buffer_limit
        if full:
            self.flush()
        elif self.on_send_buffered is not None:
            self.on_send_buffered()

    def publish(
        self, type: str, fields: Mapping[str, Any], producer: Any = None, blind: bool = False, **_: Any
    ) -> None:
        """Send an event now, whatever is enabled; without a clock's number where it is `blind`."""
        self._send(type, records.encoded(self._event(type, fields, blind)))

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what waits: for a broker that could not be reached, and for its group to be complete."""
        with self._mutex:
            if errors and self._unsent:
                unsent = list(self._unsent)
                self._unsent.clear()
                for key, body in unsent:
                    self._send(key, body)
            for group, events in self._buffers.items() if groups else ():
                if events:
                    body = records.encoded(events)
                    events.clear()
                    self._send(f"{group}-multi", body)

    def extend_buffer(self, other: Dispatcher) -> None:
        """Take over what waits in another one."""
        self._unsent.extend(other._unsent)

    def enable(self) -> None:
        """Send from now on."""
        self.enabled = True
        for told in self.on_enabled:
            told()

    def disable(self) -> None:
        """Send nothing from now on."""
        if self.enabled:
            self.enabled = False
            for told in self.on_disabled:
                told()

    def close(self) -> None:
        """Nothing: the connection is the app's."""

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _event(self, type: str, fields: Mapping[str, Any], blind: bool) -> dict[str, Any]:
        clock = None if blind else self.clock.forward()
        return records.event(type, fields, hostname=self.hostname, pid=self.pid, clock=clock)

    def _send(self, key: str, body: bytes) -> None:
        try:
            self.app.broker.post.send(
                [records.letter(self.app.conf.event_exchange, key, self.hostname, body)]
            )
        except OperationalError:
            if not self.buffer_while_offline:
                raise
            self._unsent.append((key, body))


def client_name() -> str:
    """The name of this process as a client: ``gen<pid>@<host>``."""
    if not Origin.name:
        Origin.refresh()
    return Origin.name
