"""Listening that waits for sockets, and is woken from other threads."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from minicelery.broker.post import Letter, Listening, Unreadable
from minicelery.exceptions import OperationalError


class Waker:
    """A pipe to poll beside sockets: readable once any thread has called `wake`."""

    def __init__(self) -> None:
        # Reentrant: a signal's handler may wake who is just being closed.
        self._lock = threading.RLock()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        """Make it readable; nothing where it is closed."""
        with self._lock:
            if self._write >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._write, b"w")

    def woken(self) -> bool:
        """Whether `wake` was called since this was asked last."""
        try:
            return bool(os.read(self._read, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Close the pipe; may be called again."""
        with self._lock:
            pipe = self._read, self._write
            self._read = self._write = -1
            for fd in pipe:
                if fd >= 0:
                    os.close(fd)

    def __del__(self) -> None:
        self.close()


class Connected(Protocol):
    """Something to poll."""

    def fileno(self) -> int: ...


class Polling(Listening):
    """A `Listening` by connections to a server, which may be lost."""

    failures: tuple[type[BaseException], ...]
    """What the parts below raise for a connection that is lost."""

    def __init__(self, where: str) -> None:
        self.unreadable = Unreadable(where)
        self.process = os.getpid()
        self._waker = Waker()
        self._ended = False
        self._failure: BaseException | None = None

    @abstractmethod
    def connections(self) -> Sequence[Connected]:
        """What to wait for; none where they are lost."""

    @abstractmethod
    def hear(self, found: list[Letter]) -> None:
        """Add what has come to `found`, as far as it is read at once; never waits."""

    @abstractmethod
    def patience(self) -> float:
        """Seconds after which to hear again, even where nothing is seen to come."""

    @abstractmethod
    def drop(self) -> None:
        """Close the connections; may be called again."""

    @abstractmethod
    def explained(self, error: BaseException) -> OperationalError:
        """The error of a lost connection, in words."""

    def take(self, wait: float) -> list[Letter]:
        """See `Listening.take`; what was heard of a lost connection comes first, the error next."""
        end = time.monotonic() + wait
        found: list[Letter] = []
        try:
            if self._failure is not None:
                raise self._failure
            while self._listen(end, found):
                pass
        except self.failures as error:
            self._failure = error
            self.drop()
            if not found:
                raise self.explained(error) from error
        return found

    def _listen(self, end: float, found: list[Letter]) -> bool:
        """Hear, and wait where nothing has come; whether to go on."""
        if not (connections := self.connections()):
            raise ConnectionError("it is closed")
        self.hear(found)
        if found:
            return False
        woken = self._waker.woken()
        if self._ended:
            raise ConnectionError("the broker was closed")
        left = end - time.monotonic()
        if woken or left <= 0:
            return False
        poll = select.poll()
        for one in (self._waker, *connections):
            poll.register(one, select.POLLIN)
        poll.poll(math.ceil(max(0.0, min(left, self.patience())) * 1000))
        return True

    def wake(self) -> None:
        """See `Listening.wake`."""
        self._waker.wake()

    def end(self) -> None:
        """See `Listening.end`."""
        self._ended = True
        self._waker.wake()

    def close(self) -> None:
        """See `Listening.close`."""
        self.drop()
        self._waker.close()
