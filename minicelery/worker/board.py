"""Memory that the parent, its children and the agent share: who runs what, since when.

A child writes its own slot; everybody reads.  Nothing waits for anybody: a slot's number
stands at its head and at its tail, and a reader that sees two different ones reads again.

Where the broker itself gives back what a dead child held (`Consumer.adopts` is False), a
child that fetches such a message learns here what had become of it: see `fates`.
"""

from __future__ import annotations

import marshal
import mmap
import operator
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from minicelery.message import Delivery, Message, Outcome, Record, Verdict
from minicelery.pausing import Paused
from minicelery.worker.shared import Ring, Sheet

_ENTRY = struct.Struct(
    "=Q I I Q d d Q I Q"
)  # number, pid, generation, receipt, began, deadline, processed, free, number
_GENERATION = struct.Struct("=I")
_GENERATION_AT = struct.calcsize("=Q I")
_NAME = 160
JOURNAL = 128 * 1024
DONE = "done"
"""How a child ended that has settled everything and left by itself."""
_LENGTH = struct.Struct("=I")
_RECEIPT = 8
KEY = 128
KEPT_MESSAGES = 64 * 1024
RUNS = 8 * 1024
OBITUARIES = 512 * 1024
ENDED = 256 * 1024
TALLY = 8 * 1024
_HEAD = struct.Struct("=d I I I ?")  # started, concurrency, least, most, events
# What each further place of a child adds to these, in a pool that runs many tasks at once.
_JOURNAL_EACH, _KEPT_EACH, _RUNS_EACH, _ENDED_EACH = 1024, 4096, 1024, 2048
_CELLS = 3 * 8  # clock, processed by dead children, pid of the parent
_CUTS = (256, 64, 16, 0)
"""To how many characters the arguments of runs are cut on the Board, until all of them fit."""

_as_tuple: Callable[[Message], tuple[object, ...]] = operator.attrgetter(*Message.__slots__)


@dataclass(slots=True)
class Entry:
    """What a slot says of its child."""

    pid: int = 0  # 0: nobody
    generation: int = 0  # of the consumer's name
    receipt: int = 0  # of the delivery that runs, or ran last
    began: float = 0.0  # monotonic seconds; 0 while idle
    deadline: float = 0.0  # monotonic seconds of the hard limit; 0: none
    processed: int = 0
    free: int = 0  # places for more, while it runs something


@dataclass(slots=True)
class Run:
    """What the Board tells of a run that takes longer than a tick."""

    id: str
    name: str
    receipt: int
    began: float  # unix seconds
    args: str  # their repr, shortened
    kwargs: str
    queue: str
    acknowledged: bool  # it will not run again
    exchange: str = ""
    routing_key: str = ""
    priority: int | None = None
    redelivered: bool = False
    stamps: str = ""  # as JSON, where it bears any


@dataclass(slots=True)
class Head:
    """What the parent says of the whole worker."""

    started: float = 0.0  # unix seconds
    concurrency: int = 0  # children that there should be
    least: int = 0  # the bounds of that number, where it follows the work; else 0
    most: int = 0
    events: bool = False  # the tasks are told of


class Board:
    """`size` slots in one shared mapping, made before the first child is started.

    Each child runs up to `places` tasks at once.  `shared` mappings have a file descriptor,
    `fd`, from which a process that was not forked opens the same board.
    """

    def __init__(self, size: int, places: int = 1, fd: int | None = None, shared: bool = False) -> None:
        self.places = places
        layout = Layout(places)
        length = size * layout.size + OBITUARIES + _HEAD.size + Pauses.SIZE + _CELLS
        fresh = fd is None
        if fd is None and shared:
            fd = memory_file(length)
        self.fd = fd
        self._memory = mmap.mmap(-1 if fd is None else fd, length)
        self._cells = memoryview(self._memory)[length - _CELLS :].cast("Q")
        if fresh:
            self._cells[2] = os.getpid()
        self.slots = [Slot(self._memory, index * layout.size, layout) for index in range(size)]
        # What dead children had done; written by the agent alone.
        self.obituaries = Ring(self._memory, size * layout.size, OBITUARIES)
        # These too.
        self.pauses = Pauses(self._memory, size * layout.size + OBITUARIES + _HEAD.size)
        self._head = size * layout.size + OBITUARIES
        if fresh:
            self.head = Head(time.time())

    @property
    def head(self) -> Head:
        """What the parent says of the whole worker."""
        return Head(*_HEAD.unpack_from(self._memory, self._head))

    @head.setter
    def head(self, head: Head) -> None:
        _HEAD.pack_into(self._memory, self._head, *astuple(head))

    @property
    def pid(self) -> int:
        """The process that has made the board: under its number the worker is known."""
        return self._cells[2]

    @property
    def clock(self) -> memoryview[int]:
        """The cell of the clock that all processes of the worker go by."""
        return self._cells[:1]

    def empty(self, slot: Slot) -> None:
        """Free the slot of a child that has gone; called by the parent alone."""
        self._cells[1] += slot.read().processed
        slot.clear()

    def processed(self) -> int:
        """How many tasks the worker has run since it began."""
        return self._cells[1] + sum(slot.read().processed for slot in self.slots)

    def active(self) -> int:
        """How many tasks run now."""
        if self.places > 1:
            return sum(len(slot.running_receipts()) for slot in self.slots if slot.read().pid)
        return sum(1 for slot in self.slots if (entry := slot.read()).pid and entry.began)

    def idle(self, but: Slot | None = None) -> bool:
        """Whether a child, other than `but`'s, has nothing to do."""
        for slot in self.slots:
            if slot is not but:
                entry = slot.read()
                if entry.pid and (entry.free or not entry.began):
                    return True
        return False


class Pauses:
    """What is paused, as the agent has told the children."""

    ROOM = 32 * 1024
    SIZE = 4 + Sheet.room(ROOM)

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        # Its one number tells readers of a change, at the price of an index; 0: nobody has written yet.
        self.number = memoryview(memory)[offset : offset + 4].cast("I")
        self._sheet = Sheet(memory, offset + 4, self.ROOM)

    @property
    def known(self) -> bool:
        """Whether the agent has read what is paused."""
        return self.number[0] > 0

    def write(self, paused: Paused) -> bool:
        """Tell what is paused; False where that is too much."""
        written = self._sheet.write(marshal.dumps((sorted(paused.queues), sorted(paused.tasks))))
        self.number[0] = self.number[0] % 0xFFFFFFFF + 1
        return written

    def read(self) -> tuple[frozenset[str], frozenset[str]]:
        """The queues and the tasks that are paused."""
        queues, tasks = self._sheet.read() or ((), ())
        return frozenset(queues), frozenset(tasks)


def memory_file(length: int) -> int:
    """A file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("minicelery-board")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, length)
    return fd


class Layout:
    """Where the parts of a slot begin, counted from its own beginning."""

    def __init__(self, places: int) -> None:
        more = places - 1
        self.places = places
        self.journal_size = JOURNAL + more * _JOURNAL_EACH
        self.kept_size = KEPT_MESSAGES + more * _KEPT_EACH
        self.runs_size = RUNS + more * _RUNS_EACH
        self.ended_size = ENDED + more * _ENDED_EACH
        self.journal = _ENTRY.size + _NAME
        self.receipts = self.journal + 2 * (_LENGTH.size + self.journal_size)
        self.keys = self.receipts + places * _RECEIPT
        self.kept = self.keys + places * KEY
        self.runs = self.kept + Sheet.room(self.kept_size)
        self.ended = self.runs + Sheet.room(self.runs_size)
        self.tally = self.ended + self.ended_size
        self.size = self.tally + Sheet.room(TALLY)


class Slot:
    """One child's place on the board."""

    def __init__(self, memory: mmap.mmap, offset: int, layout: Layout) -> None:
        self._memory = memory
        self._offset = offset
        self._places = layout.places
        self._journal = offset + layout.journal
        self._journal_size = layout.journal_size
        self._receipts = memoryview(memory)[offset + layout.receipts : offset + layout.keys].cast("Q")
        self._keys = offset + layout.keys
        # Messages that run and that the broker keeps no more, by their keys.
        self._kept = Sheet(memory, offset + layout.kept, layout.kept_size)
        self._runs = Sheet(memory, offset + layout.runs, layout.runs_size)
        # What its child has done, settled or not, as far back as there is room.
        self.ended = Ring(memory, offset + layout.ended, layout.ended_size)
        # How many runs of which task its children have begun, one after the other.
        self.tally = Sheet(memory, offset + layout.tally, TALLY)
        self._number = 0
        self._noting = self._journal  # where the half of the journal begins to which is added
        self._end = 0  # of what that half holds
        self.pid = 0
        self.generation = 0
        self.processed = 0

    # -- the child's side ------------------------------------------------------------------

    def write(self, receipt: int, began: float, deadline: float = 0.0, free: int = 0) -> None:
        """Say what runs: 0.4 µs, no system call."""
        self._number = number = self._number + 1
        _ENTRY.pack_into(
            self._memory, self._offset,
            number, self.pid, self.generation, receipt, began, deadline, self.processed, free, number,
        )  # fmt: skip

    def call(self, name: str) -> None:
        """Say that the consumer has another name altogether; it holds nothing yet."""
        self.write(0, 0.0)
        self._name(name)
        self.rename(0)

    def _name(self, name: str) -> None:
        text = name.encode()[:_NAME]
        start = self._offset + _ENTRY.size
        self._memory[start : start + _NAME] = text.ljust(_NAME, b"\0")

    def rename(self, generation: int) -> None:
        """Say that the consumer goes by a new name; from any thread, the rest stays as it is."""
        self.generation = generation
        _GENERATION.pack_into(self._memory, self._offset + _GENERATION_AT, generation)

    def open(self, pid: int, name: str) -> None:
        """Take the slot for a new child whose consumer is called `name`."""
        self._name(name)
        self.pid, self.generation, self.processed, self._number = pid, 0, 0, 0
        # Whatever this process knows of it: another one has written the journal that is there, and
        # its receipts are the new child's as well.
        self._noting, self._end = self._journal, 0
        for half in self._halves():
            _LENGTH.pack_into(self._memory, half, 0)
        self._kept.write(b"")
        self._runs.write(b"")
        self.ended.clear()
        for place in range(self._places):
            self._receipts[place] = 0
            self.name_run("", place)
        self.write(0, 0.0)

    def name_run(self, key: str, place: int = 0) -> None:
        """Say which message is about to run, by a key that its redelivery has as well."""
        start = self._keys + place * KEY
        self._memory[start : start + KEY] = key.encode()[:KEY].ljust(KEY, b"\0")

    def take_place(self, place: int, receipt: int) -> None:
        """Say which delivery runs at a place; 0: none."""
        self._receipts[place] = receipt

    def keep_messages(self, messages: Mapping[str, Message]) -> bool:
        """Keep the messages that run, by their keys, as the broker is about to let go of them.

        False, and those kept before stay, where they are too much.
        """
        try:
            return self._kept.write(marshal.dumps([(key, _as_tuple(one)) for key, one in messages.items()]))
        except ValueError:
            return False

    def show(self, runs: Sequence[Run]) -> None:
        """Say what runs, for all to see; where there is little room, less of their arguments."""
        if self._runs.write(_packed(runs)):
            return
        for length in _CUTS:
            runs = [replace(run, args=run.args[:length], kwargs=run.kwargs[:length]) for run in runs]
            if self._runs.write(_packed(runs)):
                return
        # Names or ids of hundreds of bytes.
        runs = sorted(runs, key=lambda run: len(_packed([run])))
        while not self._runs.write(_packed(runs)):
            runs = runs[: len(runs) // 2]

    def clear_journal(self) -> None:
        """Everything in it has been settled."""
        if self._end:
            self._end = 0
            _LENGTH.pack_into(self._memory, self._noting, 0)

    def turn_journal(self) -> None:
        """What was noted before the last turn has been settled; what was noted since is about to be."""
        first, second = self._halves()
        self._noting = second if self._noting == first else first
        self._end = 0
        _LENGTH.pack_into(self._memory, self._noting, 0)

    def _halves(self) -> tuple[int, int]:
        return self._journal, self._journal + _LENGTH.size + self._journal_size

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
        if end > self._journal_size:
            return False
        base = self._noting + _LENGTH.size
        self._memory[base + start : base + end] = _LENGTH.pack(len(data)) + data
        self._end = end
        _LENGTH.pack_into(self._memory, self._noting, end)
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

    def running_keys(self) -> list[str]:
        """The keys of the messages that run, or ran last."""
        return [key for place in range(self._places) if (key := self._key(place))]

    def _key(self, place: int) -> str:
        start = self._keys + place * KEY
        return self._memory[start : start + KEY].rstrip(b"\0").decode(errors="replace")

    def running_receipts(self) -> list[int]:
        """The receipts of the deliveries that run, where many may; none in a child that has one place."""
        return [receipt for receipt in self._receipts if receipt]

    def receipts_of_keys(self) -> dict[str, int]:
        """The receipts under which the messages run whose keys are those; or ran last."""
        last = self.read().receipt
        keys = (self._key(place) for place in range(self._places))
        return {key: receipt or last for key, receipt in zip(keys, self._receipts, strict=True) if key}

    def kept_messages(self) -> dict[str, Message]:
        """The messages that run and that the broker has let go of, by their keys."""
        return {key: Message(*fields) for key, fields in self._kept.read() or ()}

    def runs(self) -> list[Run]:
        """What its child has been running for longer than a tick."""
        return [Run(*fields) for fields in self._runs.read() or ()]

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

    def _entries(self) -> Iterator[tuple[int, str, bool, tuple[Any, ...]]]:
        for at in self._halves():
            (end,) = _LENGTH.unpack_from(self._memory, at)
            at += _LENGTH.size
            end += at
            while at < end:
                (length,) = _LENGTH.unpack_from(self._memory, at)
                at += _LENGTH.size
                try:
                    receipt, key, let_go, fields = marshal.loads(self._memory[at : at + length])
                except (ValueError, EOFError, TypeError):
                    break  # two threads were writing when it died, or its child writes now
                at += length
                yield receipt, key, let_go, fields

    def clear(self) -> None:
        """Free the slot."""
        self.open(0, "")


def _packed(runs: Sequence[Run]) -> bytes:
    return marshal.dumps([astuple(run) for run in runs])


def _fields(outcome: Outcome) -> tuple[Any, ...]:
    """An outcome as marshal takes it, without its delivery."""
    record, messages = outcome.record, outcome.publish
    return (
        outcome.verdict.value,
        record and _record_fields(record),
        [_as_tuple(message) for message in messages] if messages else (),
        outcome.reason,
        outcome.release,
        outcome.park,
        [_record_fields(record) for record in outcome.more] if outcome.more else (),
    )


def _record_fields(record: Record) -> tuple[Any, ...]:
    return record.id, record.document, record.state, record.ttl, record.reply_to, record.part_of


def as_outcome(delivery: Delivery, fields: tuple[Any, ...]) -> Outcome:
    """The outcome of `delivery` that the fields were taken from."""
    verdict, record, messages, reason, release, park, more = fields
    return Outcome(
        delivery,
        Verdict(verdict),
        Record(*record) if record else None,
        [Message(*fields) for fields in messages],
        reason,
        release,
        park,
        [Record(*one) for one in more],
    )
