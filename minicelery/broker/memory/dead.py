"""Dead letters in memory: looked at, put back on their queue, thrown away."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from minicelery.broker.dead import as_new, chosen
from minicelery.message import DeadLetter, Message

if TYPE_CHECKING:
    from minicelery.broker.memory.store import Store

Grave = tuple[DeadLetter, Message]
"""A letter, and the message that it was."""


class MemoryDeadLetters:
    """The part of the memory broker that keeps dead letters."""

    _store: Store

    def dead(self, queue: str) -> int:
        with self._store.changed:
            return len(self._store.dead.get(queue, ()))

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        with self._store.changed:
            letters = [letter for letter, _ in reversed(self._store.dead.get(queue, []))]
            return list(itertools.islice(letters, limit))

    def replay_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        with self._store.changed:
            found = self._dig(queue, ids)
            for _, message in found:
                self._store.add(as_new(message, queue))
            self._store.changed.notify_all()
            return len(found)

    def discard_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        with self._store.changed:
            return len(self._dig(queue, ids))

    def _dig(self, queue: str, ids: Collection[str] | None) -> list[Grave]:
        """Take the chosen ones out."""
        graves = self._store.dead.get(queue, [])
        found = [grave for grave in graves if chosen(grave[0].id, ids)]
        self._store.dead[queue] = [grave for grave in graves if not chosen(grave[0].id, ids)]
        return found


def grave(message: Message, reason: str) -> Grave:
    """What is kept of a rejected message."""
    body = base64.b64encode(message.body).decode()
    raw = {"headers": message.headers, "properties": message.properties, "body": body}
    text = json.dumps(raw, default=repr).encode()
    return DeadLetter(reason, time.time(), text, message.id, message.task), message
