"""Hearing of many results in one thread, while ids come and go."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from minicelery.broker import Backend
from minicelery.message import Record


class Listener(Protocol):
    """What one thread hears of the results of a backend.  `add` and `drop` are for any thread."""

    overlooks: bool
    """Whether what was stored before `add` may be missed while `wait` is on: load it once."""

    def add(self, id: str) -> None:
        """Listen for `id` from now on, also in the `wait` that is on; may end it."""

    def drop(self, id: str) -> None:
        """Listen for `id` no more."""

    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]:
        """Wait until a record differs from the document in `seen`; those that may, oldest first.

        Ends early, with nothing, now and then.  After BackendUnavailable call it again: it
        knows its ids.
        """

    def wake(self) -> None:
        """End the `wait` that is on, or the next one, soon.  From any thread."""

    def close(self, *, keep: bool = False) -> None:
        """Let go of the connection, or `keep` it for the next one who listens."""


_LISTENERS = {
    "minicelery.broker.redis.backend.RedisBackend": "minicelery.broker.redis.listening:RedisListener",
    "minicelery.broker.sqlite.backend.SQLiteBackend": "minicelery.broker.sqlite.listening:SQLiteListener",
}


def open_listener(backend: Backend) -> Listener:
    """A listener of `backend`; connects at its first `wait`."""
    if (own := getattr(backend, "listener", None)) is not None:
        listener: Listener = own()
        return listener
    kind = type(backend)
    target = _LISTENERS.get(f"{kind.__module__}.{kind.__qualname__}")
    if target is None:
        return WatchListener(backend)
    module, _, name = target.partition(":")
    listener = getattr(importlib.import_module(module), name)(backend)
    return listener


class Ids(Collection[str]):
    """Ids that change while they are watched: each look at them sees those of that moment."""

    def __init__(self) -> None:
        self.now: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.now))

    def __len__(self) -> int:
        return len(self.now)

    def __contains__(self, id: object) -> bool:
        return id in self.now


class WatchListener:
    """`Backend.watch` as a listener, for backends in whose `watch` ids may come and go.

    Others take part too, and notice an id that has been added after `SLICE`.
    """

    SLICE = 0.05

    overlooks = True

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._ids = Ids()

    def add(self, id: str) -> None:
        """See `Listener.add`."""
        self._ids.now[id] = None

    def drop(self, id: str) -> None:
        """See `Listener.drop`."""
        self._ids.now.pop(id, None)

    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]:
        """See `Listener.wait`."""
        found: list[Record] = self._backend.watch(self._ids, seen, min(seconds, self.SLICE))
        return found

    def wake(self) -> None:
        """It ends after `SLICE`."""

    def close(self, *, keep: bool = False) -> None:
        """Nothing is open."""
