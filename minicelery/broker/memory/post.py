"""Letters inside one process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from minicelery.broker.post import AT_ONCE, Box, Letter, Listening, Open, Unreadable
from minicelery.exceptions import BrokerUnavailable

KEPT = 2000
"""Letters kept for one who listens and does not take them."""


class Ears:
    """All that listen to one store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listening: list[MemoryListening] = []

    def add(self, listening: MemoryListening) -> None:
        """Send it what is sent from now on."""
        with self._lock:
            self._listening.append(listening)

    def remove(self, listening: MemoryListening) -> None:
        """Send it nothing any more."""
        with self._lock:
            if listening in self._listening:
                self._listening.remove(listening)

    def send(self, letters: Sequence[Letter]) -> int:
        """Hand the letters to who wants them; how many do."""
        with self._lock:
            listening = list(self._listening)
        return sum(one.hear(letters) for one in listening)


class MemoryPost:
    """See `Post`."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self._open = Open()

    def send(self, letters: Sequence[Letter]) -> int:
        """See `Post.send`."""
        return self._ears.send(letters)

    def listen(self, boxes: Sequence[Box]) -> MemoryListening:
        """See `Post.listen`."""
        listening = MemoryListening(self._ears, boxes)
        self._open.add(listening)
        self._ears.add(listening)
        return listening

    def close(self) -> None:
        """See `Post.close`."""
        self._open.end()


class MemoryListening(Listening):
    """See `Listening`."""

    def __init__(self, ears: Ears, boxes: Sequence[Box]) -> None:
        self._ears = ears
        self._boxes = tuple(boxes)
        self._changed = threading.Condition()
        self._letters: deque[Letter] = deque(maxlen=KEPT)
        self._unreadable = Unreadable("memory://")
        self._woken = self._ended = False

    def hear(self, letters: Sequence[Letter]) -> bool:
        """Keep what is for one of the boxes; whether anything is."""
        found = []
        for letter in letters:
            for box in self._boxes:
                if (mine := box.found(letter)) is not None:
                    # A copy: what a real server hands out shares nothing with what was sent.
                    found.append(replace(mine, headers=dict(mine.headers), content=None))
                    break
        if found:
            with self._changed:
                self._letters.extend(found)
                self._changed.notify_all()
        return bool(found)

    def take(self, wait: float) -> list[Letter]:
        """See `Listening.take`."""
        end = time.monotonic() + wait
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news, max(0.0, end - time.monotonic()))
                letters = [self._letters.popleft() for _ in range(min(AT_ONCE, len(self._letters)))]
                woken = self._woken
            # Without the lock: who sends may be settling tasks.
            if found := [read for letter in letters for read in self._unreadable.read(letter)]:
                return found
            if self._ended:
                raise BrokerUnavailable("the broker was closed: nothing is heard any more")
            if woken:
                self._woken = False
            if woken or time.monotonic() >= end:
                return []

    def _has_news(self) -> bool:
        return bool(self._letters) or self._woken or self._ended

    def wake(self) -> None:
        """See `Listening.wake`."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def end(self) -> None:
        """See `Listening.end`."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """See `Listening.close`."""
        self._ears.remove(self)
