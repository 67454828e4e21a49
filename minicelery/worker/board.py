"""Memory that the parent, its children and the agent share: who runs what, since when.

A child writes its own slot; everybody reads.  Nothing waits for anybody: a slot's number
stands at its head and at its tail, and a reader that sees two different ones reads again.

Where the broker itself gives back what a dead child held (`Consumer.adopts` is False), a
child that fetches such a message learns here what had become of it: see `fates`.
"""

from __future__ import annotations

import marshal
import mmap
import struct
import zlib
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
DONE = "done"
"""How a child ended that has settled everything and left by itself."""
_LENGTH = struct.Struct("=I")
_CHECKED = struct.Struct("=I I")  # length and checksum
KEY = 128
KEPT_MESSAGE = 64 * 1024
OBITUARIES = 512 * 1024
ENDED = 256 * 1024
_SLOT = _ENTRY.size + _NAME + _LENGTH.size + JOURNAL + KEY + _LENGTH.size + KEPT_MESSAGE + ENDED


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
        self._memory = mmap.mmap(-1, size * _SLOT + OBITUARIES)
        self.slots = [Slot(self._memory, index * _SLOT) for index in range(size)]
        # What dead children had done; written by the agent alone.
        self.obituaries = Ring(self._memory, size * _SLOT, OBITUARIES)

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
        self._key = self._journal + _LENGTH.size + JOURNAL
        self._kept = self._key + KEY
        # What its child has done, settled or not, as far back as there is room.
        self.ended = Ring(memory, self._kept + _LENGTH.size + KEPT_MESSAGE, ENDED)
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
        _LENGTH.pack_into(self._memory, self._kept, 0)
        self.ended.clear()
        self.name_run("")
        self.write(0, 0.0)

    def name_run(self, key: str) -> None:
        """Say which message is about to run, by a key that its redelivery has as well."""
        self._memory[self._key : self._key + KEY] = key.encode()[:KEY].ljust(KEY, b"\0")

    def keep_message(self, message: Message, key: str) -> bool:
        """Keep the message that runs, as the broker is about to let go of it; False if it is too big."""
        entry: Any = (key, _as_tuple(message))
        try:
            data = marshal.dumps(entry)
        except ValueError:
            return False
        if len(data) > KEPT_MESSAGE:
            return False
        start = self._kept + _LENGTH.size
        self._memory[start : start + len(data)] = data
        _LENGTH.pack_into(self._memory, self._kept, len(data))
        return True

    def clear_journal(self) -> None:
        """Everything in it has been settled."""
        if self._end:
            self._end = 0
            _LENGTH.pack_into(self._memory, self._journal, 0)

    def note(self, outcome: Outcome, key: str = "") -> bool:
        """Keep an outcome that is not settled yet, should the child die; False if there is no room.

        `key` is the message's, where the broker gives back what a dead child held.
        """
        delivery = outcome.delivery
        try:
            data = marshal.dumps((delivery.receipt, key, delivery.let_go, _fields(outcome)))
        except ValueError:  # a value of a kind marshal does not know
            return False
        if key and outcome.verdict is not Verdict.REQUEUE:
            self.ended.add(data)
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

    @property
    def key(self) -> str:
        """The key of the message that runs, or ran last."""
        return self._memory[self._key : self._key + KEY].rstrip(b"\0").decode(errors="replace")

    def kept_message(self) -> tuple[str, Message] | None:
        """The message that the broker has let go of, and its key."""
        (length,) = _LENGTH.unpack_from(self._memory, self._kept)
        start = self._kept + _LENGTH.size
        try:
            key, fields = marshal.loads(self._memory[start : start + length])
            return key, Message(*fields)
        except (ValueError, EOFError, TypeError):
            return None

    def noted(self) -> list[tuple[str, bool, tuple[Any, ...]]]:
        """What the journal has: key, whether the broker has let go of it, and the outcome's fields."""
        return [(key, let_go, fields) for _, key, let_go, fields in self._entries()]

    def journal(self, held: dict[int, Delivery]) -> dict[int, Outcome]:
        """The outcomes its dead child had noted for deliveries that are still held, by receipt."""
        return {
            receipt: as_outcome(held[receipt], fields)
            for receipt, _, _, fields in self._entries()
            if receipt in held
        }

    def _entries(self) -> list[tuple[int, str, bool, tuple[Any, ...]]]:
        (end,) = _LENGTH.unpack_from(self._memory, self._journal)
        at = self._journal + _LENGTH.size
        end += at
        found = []
        while at < end:
            (length,) = _LENGTH.unpack_from(self._memory, at)
            at += _LENGTH.size
            try:
                receipt, key, let_go, fields = marshal.loads(self._memory[at : at + length])
            except (ValueError, EOFError, TypeError):
                break  # two threads were writing when it died, or its child writes now
            at += length
            found.append((receipt, key, let_go, fields))
        return found

    def clear(self) -> None:
        """Free the slot."""
        self.open(0, "")


def _as_tuple(message: Message) -> tuple[object, ...]:
    return tuple(getattr(message, name) for name in Message.__slots__)


class Ring:
    """Entries in shared memory: two halves, of which the older is dropped when the newer is full.

    One process writes, any may read: what is being dropped is read as an end.
    """

    def __init__(self, memory: mmap.mmap, offset: int, size: int) -> None:
        self._memory = memory
        self._offset = offset
        self._half = size // 2

    def add(self, data: bytes) -> bool:
        """Keep what `marshal` has packed; False if it is larger than a half."""
        need = _CHECKED.size + len(data)
        if need + 2 * _LENGTH.size > self._half:
            return False
        newer = self._newer()
        base, end = self._place(newer)
        if end + need > self._half:
            newer ^= 1
            base, _ = self._place(newer)
            end = 2 * _LENGTH.size
            _LENGTH.pack_into(self._memory, base, end)
            self._memory[self._offset + _LENGTH.size] = newer
        at = base + end
        self._memory[at : at + need] = _CHECKED.pack(len(data), zlib.crc32(data)) + data
        _LENGTH.pack_into(self._memory, base, end + need)
        return True

    def entries(self) -> list[Any]:
        """What is kept, the oldest first."""
        found = []
        newer = self._newer()
        for half in (newer ^ 1, newer):
            base, end = self._place(half)
            at = 2 * _LENGTH.size
            while at + _CHECKED.size <= end:
                length, check = _CHECKED.unpack_from(self._memory, base + at)
                at += _CHECKED.size
                data = self._memory[base + at : base + at + length] if length <= end - at else b""
                if zlib.crc32(data) != check:  # it is being written over
                    break
                found.append(marshal.loads(data))
                at += length
        return found

    def clear(self) -> None:
        """Drop everything."""
        for half in (0, 1):
            _LENGTH.pack_into(self._memory, self._offset + half * self._half, 0)

    def _newer(self) -> int:
        return self._memory[self._offset + _LENGTH.size] & 1

    def _place(self, half: int) -> tuple[int, int]:
        """Where a half begins, and where its entries end; which one is newer stands in the first."""
        base = self._offset + half * self._half
        (end,) = _LENGTH.unpack_from(self._memory, base)
        return base, min(max(end, 2 * _LENGTH.size), self._half)


def _fields(outcome: Outcome) -> tuple[Any, ...]:
    """An outcome as marshal takes it, without its delivery."""
    record, messages = outcome.record, outcome.publish
    return (
        outcome.verdict.value,
        record and (record.id, record.document, record.state, record.ttl, record.reply_to),
        [_as_tuple(message) for message in messages] if messages else (),
        outcome.reason,
    )


def as_outcome(delivery: Delivery, fields: tuple[Any, ...]) -> Outcome:
    """The outcome of `delivery` that the fields were taken from."""
    verdict, record, messages, reason = fields
    return Outcome(
        delivery,
        Verdict(verdict),
        Record(*record) if record else None,
        [Message(*fields) for fields in messages],
        reason,
    )
