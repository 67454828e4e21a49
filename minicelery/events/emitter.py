"""What a worker's processes tell of their tasks: noted as it happens, written with the next trip."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from minicelery.broker.post import Letter
from minicelery.clock import Clock
from minicelery.events import records
from minicelery.events.records import utcoffset
from minicelery.message import Message, short_repr

LETTER = 64 * 1024
"""Characters after which a letter is full."""
LONGEST = 32 * 1024
"""Characters of a traceback that are told, the last ones."""
UNSENT = 10_000
"""Notes that wait for a trip; the oldest are dropped where there are more."""


class Emitter:
    """Events of the tasks that one process runs.  Any of its threads may tell; one takes.

    To note something is one append.  The events of a batch are written together, and by hand: 3 µs
    for the three of a task, where dicts and `json.dumps` took 10.
    """

    __slots__ = ("_clock", "_exchange", "_head", "_hostname", "_names", "_notes", "_offset", "_pid", "note")

    def __init__(self, hostname: str, pid: int, clock: Clock, exchange: str = records.EXCHANGE) -> None:
        self._hostname = hostname
        self._pid = pid
        self._clock = clock
        self._exchange = exchange
        self._notes: deque[tuple[Any, ...]] = deque(maxlen=UNSENT)
        self._names: dict[str, str] = {}  # of tasks, as JSON
        self._offset: float | None = None
        self._head = ""
        self.note: Callable[[tuple[Any, ...]], None] = self._notes.append
        """Note that a task has succeeded: ``(nanoseconds, id, repr of the result, runtime)``."""

    def __bool__(self) -> bool:
        """Whether there is something to send."""
        return bool(self._notes)

    # -- what happens to a task ------------------------------------------------------------

    def begun(self, message: Message, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """`task-received` and `task-started`: here a task is begun as soon as it is looked at."""
        headers = message.headers
        if "argsrepr" not in headers:  # its sender has left it out
            headers["argsrepr"], headers["kwargsrepr"] = short_repr(tuple(args)), short_repr(kwargs)
        self.note((time.time_ns(), message))

    def failed(self, id: str, exception: str, traceback: str | None) -> None:
        """`task-failed`, by the repr of an exception."""
        self._end(id, "failed", _failure(exception, traceback))

    def retried(self, id: str, exception: str, traceback: str | None) -> None:
        """`task-retried`, because of an exception."""
        self._end(id, "retried", _failure(exception, traceback))

    def revoked(self, id: str, signum: int | None, expired: bool) -> None:
        """`task-revoked`: not run, or ended by a signal."""
        fields = (
            f'"terminated": {"false" if signum is None else "true"}, '
            f'"signum": {"null" if signum is None else int(signum)}, "expired": {"true" if expired else "false"}'
        )
        self._end(id, "revoked", fields)

    def rejected(self, id: str, requeue: bool) -> None:
        """`task-rejected`."""
        self._end(id, "rejected", f'"requeue": {"true" if requeue else "false"}')

    def _end(self, id: str, what: str, fields: str) -> None:
        self.note((time.time_ns(), id, what, fields, None))

    # -- sending ---------------------------------------------------------------------------

    def take(self) -> list[Letter]:
        """What has been noted since, in letters; from one thread at a time."""
        if (offset := utcoffset()) != self._offset:
            self._offset = offset
            self._head = f'{{"hostname": {quote(self._hostname)}, "utcoffset": {offset!r}, "pid": {self._pid}, "clock": '
        texts = self._written()
        if sum(map(len, texts)) <= LETTER:
            return [self._letter(texts)] if texts else []
        letters, begin, size = [], 0, 0
        for place, text in enumerate(texts):
            if size and size + len(text) > LETTER:
                letters.append(self._letter(texts[begin:place]))
                begin, size = place, 0
            size += len(text)
        return [*letters, self._letter(texts[begin:])]

    def _letter(self, texts: list[str]) -> Letter:
        body = f"[{', '.join(texts)}]".encode("ascii")
        return records.letter(self._exchange, "task-multi", self._hostname, body)

    def _written(self) -> list[str]:
        """The notes as JSON objects; those of a task's begin are two, one behind the other."""
        notes, head, names = self._notes, self._head, self._names
        count = len(notes)
        clock = self._clock.forward(2 * count) - 2 * count
        texts, uuid, last = [], "", ""
        for _ in range(count):
            try:
                note = notes.popleft()
            except IndexError:  # another thread takes as well
                break
            clock += 1
            # Whole numbers, also of nanoseconds: a third of what the text of a float takes.
            if len(note) == 2:
                at, message = note
                last = message.id
                uuid = quote(last)
                name = names.get(message.task) or self._name(message.task)
                texts.append(
                    f'{head}{clock}, "uuid": {uuid}, {_call(message, name, uuid)}, "timestamp": {at}e-9, '
                    f'"type": "task-received"}}, '
                    f'{head}{clock + 1}, "uuid": {uuid}, "timestamp": {at}e-9, "type": "task-started"}}'
                )
                clock += 1
            elif len(note) == 4:
                at, id, result, runtime = note
                if id is not last:
                    last, uuid = id, quote(id)
                texts.append(
                    f'{head}{clock}, "uuid": {uuid}, "result": {quote(result)}, "runtime": {int(runtime * 1e6)}e-6, '
                    f'"timestamp": {at}e-9, "type": "task-succeeded"}}'
                )
            else:
                at, id, what, fields, _ = note
                texts.append(
                    f'{head}{clock}, "uuid": {quote(id)}, {fields}, "timestamp": {at}e-9, "type": "task-{what}"}}'
                )
        return texts

    def _name(self, name: str) -> str:
        if len(self._names) > 1000:
            self._names.clear()
        text = self._names[name] = quote(name[:1024])
        return text


def _call(message: Message, name: str, uuid: str) -> str:
    """The fields of `task-received` from the name on; `name` is how the task is called, as JSON."""
    headers = message.headers
    try:
        if (
            headers["root_id"] == message.id
            and headers["parent_id"] is None
            and headers["eta"] is None
            and headers["expires"] is None
            and headers["shadow"] is None
            and not headers["retries"]
        ):  # as most are
            return (
                f'"name": {name}, "args": {quote(headers["argsrepr"])}, "kwargs": {quote(headers["kwargsrepr"])}, '
                f'"root_id": {uuid}, "parent_id": null, "retries": 0, "eta": null, "expires": null'
            )
    except (KeyError, TypeError):  # neither Celery nor minicelery send such headers
        pass
    header = headers.get
    shadow, retries = header("shadow"), header("retries")
    if shadow and isinstance(shadow, str):
        name = quote(shadow[:1024])
    return (
        f'"name": {name}, "args": {quote(str(header("argsrepr"))[:1024])}, '
        f'"kwargs": {quote(str(header("kwargsrepr"))[:1024])}, "root_id": {_plain(header("root_id"))}, '
        f'"parent_id": {_plain(header("parent_id"))}, "retries": {retries if type(retries) is int else 0}, '
        f'"eta": {_plain(header("eta"))}, "expires": {_plain(header("expires"))}'
    )


def _failure(exception: str, traceback: str | None) -> str:
    if traceback is None:
        return f'"exception": {quote(exception)}'
    return f'"exception": {quote(exception)}, "traceback": {quote(traceback[-LONGEST:])}'


def _plain(value: Any) -> str:
    """A header as JSON; headers are what somebody else has sent."""
    return quote(value) if isinstance(value, str) else "null"
