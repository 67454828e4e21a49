"""Memory that the parent, its children and the agent share: who runs what, since when.

A child writes its own slot; everybody reads.  Nothing waits for anybody: a slot's number
stands at its head and at its tail, and a reader that sees two different ones reads again.
"""

from __future__ import annotations

import marshal
import mmap
import struct
from dataclasses import dataclass
from typing import Any

from minicelery.message import Delivery, Message, Outcome, Record, Verdict

_ENTRY = struct.Struct(
    "=Q I I Q d d Q Q"
)  # number, pid, generation, receipt, began, deadline, processed, number
_GENERATION = struct.Struct("=I")
_GENERATION_AT = struct.calcsize("=Q I")
_NAME = 160
JOURNAL = 128 * 1024
_LENGTH = struct.Struct("=I")
_SLOT = _ENTRY.size + _NAME + _LENGTH.size + JOURNAL


@dataclass(slots=True)
class Entry:
    """What a slot says of its child."""

    pid: int = 0  # 0: nobody
    generation: int = 0  # of the consumer's name
    receipt: int = 0  # of the delivery that runs, or ran last
    began: float = 0.0  # monotonic seconds; 0 while idle
    deadline: float = 0.0  # monotonic seconds of the hard limit; 0: none
    processed: int = 0


class Board:
    """`size` slots in one anonymous shared mapping, made before the first fork."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size * _SLOT)
        self.slots = [Slot(self._memory, index * _SLOT) for index in range(size)]

    def idle(self, but: Slot | None = None) -> bool:
        """Whether a child, other than `but`'s, has nothing to do."""
        for slot in self.slots:
            if slot is not but:
                entry = slot.read()
                if entry.pid and not entry.began:
                    return True
        return False


class Slot:
    """One child's place on the board."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        self._journal = offset + _ENTRY.size + _NAME
        self._number = 0
        self._end = 0  # of what the journal holds
        self.pid = 0
        self.generation = 0
        self.processed = 0

    # -- the child's side ------------------------------------------------------------------

    def write(self, receipt: int, began: float, deadline: float = 0.0) -> None:
        """Say what runs: 0.4 µs, no system call."""
        self._number = number = self._number + 1
        _ENTRY.pack_into(
            self._memory, self._offset,
            number, self.pid, self.generation, receipt, began, deadline, self.processed, number,
        )  # fmt: skip

    def rename(self, generation: int) -> None:
        """Say that the consumer goes by a new name; from any thread, the rest stays as it is."""
        self.generation = generation
        _GENERATION.pack_into(self._memory, self._offset + _GENERATION_AT, generation)

    def open(self, pid: int, name: str) -> None:
        """Take the slot for a new child whose consumer is called `name`."""
        text = name.encode()[:_NAME]
        start = self._offset + _ENTRY.size
        self._memory[start : start + _NAME] = text.ljust(_NAME, b"\0")
        self.pid, self.generation, self.processed, self._number = pid, 0, 0, 0
        # Whatever this process knows of it: another one has written the journal that is there, and
        # its receipts are the new child's as well.
        self._end = 0
        _LENGTH.pack_into(self._memory, self._journal, 0)
        self.write(0, 0.0)

    def clear_journal(self) -> None:
        """Everything in it has been settled."""
        if self._end:
            self._end = 0
            _LENGTH.pack_into(self._memory, self._journal, 0)

    def note(self, outcome: Outcome) -> bool:
        """Keep an outcome that is not settled yet, should the child die; False if there is no room."""
        record, messages = outcome.record, outcome.publish
        try:
            entry: Any = (
                outcome.delivery.receipt,
                outcome.verdict.value,
                record and (record.id, record.document, record.state, record.ttl),
                [_as_tuple(message) for message in messages] if messages else (),
                outcome.reason,
            )
            data = marshal.dumps(entry)
        except ValueError:  # a value of a kind marshal does not know
            return False
        start, end = self._end, self._end + _LENGTH.size + len(data)
        if end > JOURNAL:
            return False
        base = self._journal + _LENGTH.size
        self._memory[base + start : base + end] = _LENGTH.pack(len(data)) + data
        self._end = end
        _LENGTH.pack_into(self._memory, self._journal, end)
        return True

    # -- everybody's side ------------------------------------------------------------------

    def read(self) -> Entry:
        """What the slot says; never a mixture of two writes."""
        for _ in range(1000):
            head, *values, tail = _ENTRY.unpack_from(self._memory, self._offset)
            if head == tail:
                return Entry(*values)
        return Entry(*values)  # its child died while writing: the last it said, as far as it came

    @property
    def name(self) -> str:
        """The first name of the child's consumer."""
        start = self._offset + _ENTRY.size
        return self._memory[start : start + _NAME].rstrip(b"\0").decode(errors="replace")

    def consumer_names(self) -> list[str]:
        """The names the child's consumer goes by, the present one first."""
        name, generation = self.name, self.read().generation
        return [f"{name}~{number}" for number in range(generation, 0, -1)] + [name]

    def journal(self, held: dict[int, Delivery]) -> dict[int, Outcome]:
        """The outcomes its dead child had noted for deliveries that are still held, by receipt."""
        (end,) = _LENGTH.unpack_from(self._memory, self._journal)
        at = self._journal + _LENGTH.size
        end += at
        found: dict[int, Outcome] = {}
        while at < end:
            (length,) = _LENGTH.unpack_from(self._memory, at)
            at += _LENGTH.size
            try:
                receipt, verdict, record, messages, reason = marshal.loads(self._memory[at : at + length])
            except (ValueError, EOFError, TypeError):
                break  # two threads were writing when it died
            at += length
            if receipt in held:
                found[receipt] = Outcome(
                    held[receipt],
                    Verdict(verdict),
                    Record(*record) if record else None,
                    [Message(*fields) for fields in messages],
                    reason,
                )
        return found

    def clear(self) -> None:
        """Free the slot."""
        self.open(0, "")


def _as_tuple(message: Message) -> tuple[object, ...]:
    return tuple(getattr(message, name) for name in Message.__slots__)
