"""Orders of the parent to a child: a byte each, through a pipe.  Tasks never go this way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

STOP = b"s"
"""Finish what runs, give back the rest, and leave."""
QUIT = b"q"
"""End what runs, and leave."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """End the run of one delivery."""

    receipt: int
    signal: signal.Signals

    def encoded(self) -> bytes:
        """The order as the pipe carries it."""
        return b"t%d %s\n" % (self.receipt, self.signal.name.encode())


class Orders:
    """The reading end of the pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.closed = False
        self._rest = b""

    def read(self) -> Iterator[bytes | Terminate]:
        """What has come; waits for something to come.

        If the parent is gone, the last one is to stop, and `closed` is set.
        """
        data = os.read(self.fd, 4096)
        if not data:
            self.closed = True
            yield STOP
            return
        self._rest += data
        while self._rest:
            if self._rest[:1] != b"t":
                letter, self._rest = self._rest[:1], self._rest[1:]
                yield letter
                continue
            line, end, rest = self._rest.partition(b"\n")
            if not end:
                return
            self._rest = rest
            receipt, name, *_ = line[1:].split()
            yield Terminate(int(receipt), signal.Signals[name.decode()])
