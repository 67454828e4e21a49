"""Orders of the parent to a child: a byte each, or a line, through a pipe.  Tasks never go this way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

STOP = b"s"
"""Finish what runs, give back the rest, and leave."""
QUIT = b"q"
"""End what runs, and leave."""
REPLACE = b"r"
"""Say that another child should take this one's place, and stop."""
CHANGE, TERMINATE = b"c", b"t"
"""What the lines begin with."""
LONGEST = 4000
"""Bytes of a line: a pipe takes it whole or not at all."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """End the run of one delivery."""

    receipt: int
    signal: signal.Signals

    def encoded(self) -> bytes:
        """The order as the pipe carries it."""
        return b"t%d %s\n" % (self.receipt, self.signal.name.encode())


@dataclass(frozen=True, slots=True)
class Change:
    """Something is different from now on, also for children that come later; see `changes`."""

    topic: str  # "events", "rate", "time", "queue", "stamp"
    key: str  # what it is about; a later change of the same replaces this one
    value: Any

    def text(self) -> str:
        """The change as a line of JSON.  Raises ValueError where it is too long."""
        found = json.dumps([self.topic, self.key, self.value])
        if len(found) > LONGEST:
            raise ValueError(f"too long by {len(found) - LONGEST} bytes: {self.topic} {self.key:.80}")
        return found

    @classmethod
    def from_text(cls, text: str | bytes) -> Change:
        """The change that a line of JSON tells."""
        return cls(*json.loads(text))

    def encoded(self) -> bytes:
        """The order as the pipe carries it."""
        return CHANGE + self.text().encode() + b"\n"


class Orders:
    """The reading end of the pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.closed = False
        self._rest = b""

    def read(self) -> Iterator[bytes | Terminate | Change]:
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
            letter = self._rest[:1]
            if letter not in (TERMINATE, CHANGE):
                self._rest = self._rest[1:]
                yield letter
                continue
            line, end, rest = self._rest.partition(b"\n")
            if not end:
                return
            self._rest = rest
            if letter == CHANGE:
                yield Change.from_text(line[1:])
                continue
            receipt, name, *_ = line[1:].split()
            yield Terminate(int(receipt), signal.Signals[name.decode()])
