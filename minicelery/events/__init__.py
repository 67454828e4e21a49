"""Events: what workers and clients tell of tasks, for whoever listens at that moment.

`app.events` has what sends them, hears them, and puts them together.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minicelery.broker.post import Letter
from minicelery.events import dispatcher, records
from minicelery.events.dispatcher import Dispatcher, client_name
from minicelery.events.receiver import Receiver
from minicelery.events.state import State
from minicelery.message import Message

__all__ = ["Dispatcher", "Event", "EventDispatcher", "EventReceiver", "Events", "Receiver", "State"]

EventDispatcher = Dispatcher
EventReceiver = Receiver


def Event(type: str, _fields: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:  # noqa: N802
    """An event as it is before it is sent: a dict with its `type`, and the time unless it has one."""
    return {"timestamp": time.time(), **(_fields or {}), **fields, "type": type}


class Events:
    """The events of one app: `app.events`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    @functools.cached_property
    def Receiver(self) -> type[Receiver]:  # noqa: N802 - Celery's name
        """Hears events; a class."""
        return type("Receiver", (Receiver,), {"app": self.app})

    @functools.cached_property
    def Dispatcher(self) -> type[Dispatcher]:  # noqa: N802
        """Sends events; a class."""
        return type("Dispatcher", (Dispatcher,), {"app": self.app})

    @functools.cached_property
    def State(self) -> type[State]:  # noqa: N802
        """Puts events together to what the fleet looks like; a class."""
        return type("State", (State,), {"app": self.app})

    @contextmanager
    def default_dispatcher(
        self, hostname: str | None = None, enabled: bool = True, buffer_while_offline: bool = False
    ) -> Iterator[dispatcher.Dispatcher]:
        """A dispatcher, for a ``with`` statement."""
        with self.Dispatcher(None, hostname, enabled, None, buffer_while_offline) as found:
            yield found

    def sent_letters(self, messages: Sequence[Message]) -> list[Letter]:
        """`task-sent` of each message, by this process as a client."""
        client = self._client
        exchange = self.app.conf.event_exchange
        return [
            records.letter(
                exchange,
                "task-sent",
                client.hostname,
                records.encoded(client._event("task-sent", records.sent(message), False)),
            )
            for message in messages
        ]

    @property
    def _client(self) -> dispatcher.Dispatcher:
        found: dispatcher.Dispatcher | None = self.__dict__.get("_sender")
        if found is None or found.hostname != client_name():  # it has forked since
            found = self.__dict__["_sender"] = self.Dispatcher()
        return found
