"""Documents in memory; see `minicelery.broker.archives`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minicelery.broker.memory import MemoryBroker

_FOR_EVER = float("inf")
_numbers = itertools.count(1)


class MemoryArchive:
    """A topic of the store; the document without a name is its version."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self._store = broker._store
        self._topic = f"archive.{name}"

    def version(self) -> str:
        return (self.get("") or b"").decode()

    def get(self, key: str) -> bytes | None:
        with self._store.changed:
            return self._store.topics.get(self._topic, {}).get(key, (0.0, None))[1]

    def read(self) -> tuple[str, dict[str, bytes]]:
        with self._store.changed:
            found = {key: value for key, (_, value) in self._store.topics.get(self._topic, {}).items()}
        return found.pop("", b"").decode(), found

    news = read

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        with self._store.changed:
            there = self.get(key)
            if there == new:
                return True
            if there != old:
                return False
            documents = self._store.topics.setdefault(self._topic, {})
            documents[""] = (_FOR_EVER, str(next(_numbers)).encode())
            if new is None:
                del documents[key]
            else:
                documents[key] = (_FOR_EVER, new)
        return True
