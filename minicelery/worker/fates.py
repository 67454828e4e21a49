"""What had become of a message that the broker has given back.

Some brokers put back by themselves what a lost connection held (`Consumer.adopts` is
False), and only say that somebody had the message before.  Whoever of the same worker
fetches it learns the rest from the Board.
"""

from __future__ import annotations

import marshal
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicelery.message import Delivery, Outcome, Verdict
from minicelery.worker.board import KEY, Board, Slot, as_outcome
from minicelery.worker.shared import Ring

BURIAL = 1.0
"""Seconds that a dead child's obituary is waited for."""
REMEMBERED = 900.0
"""Seconds that an obituary is believed: a later message may have the same key."""
_TAIL = 100
_SETTLED = (Verdict.ACK.value, None, (), None, (), None, ())
"""The outcome of what the broker had let go of, and gives back all the same: it is applied elsewhere."""
_EPOCH = 40  # a receipt's bits below the number of its connection


@dataclass(slots=True)
class Fate:
    """A run's end: its outcome, or how its process died; or it is still running elsewhere."""

    outcome: tuple[Any, ...] | None = None  # fields for `as_outcome`
    reason: str | None = None
    running: bool = False


def key_of(delivery: Delivery) -> str:
    """What a delivery and its redelivery have in common, and no other message has.

    With a sender's message id it is of this one message (its copy in one queue, where an
    exchange has made several); else of a task's attempt.
    """
    message = delivery.message
    properties = message.properties
    sent = properties.get("message_id")
    retries = message.headers.get("retries") or 0
    name = f"m {sent}" if sent else f"i {message.id} {retries}"
    key = f"{name} {delivery.deliveries} {message.queue}"
    if len(key.encode()) <= KEY:
        return key
    import hashlib

    return f"{key[0]} {hashlib.blake2b(key.encode(), digest_size=32).hexdigest()}"


def fates(board: Board, deliveries: Sequence[Delivery]) -> dict[str, Fate]:
    """By key, what children of this worker had done with what the broker has given back.

    None is there of what had not begun, or another worker had.
    """
    keys = {key_of(delivery) for delivery in deliveries}
    end = time.monotonic() + BURIAL
    while True:
        found, dying = _look(board, keys)
        if not dying:
            return found
        # It has died just now: the agent is about to say how.
        if time.monotonic() > end:
            for key in dying:
                found[key] = Fate(reason="Worker exited prematurely")
            return found
        time.sleep(0.02)


def sort_out(board: Board, fresh: Sequence[Delivery]) -> tuple[list[Delivery], list[Outcome], list[Delivery]]:
    """Of deliveries that may have come back: those to be run, outcomes, and what a sibling still runs."""
    back = [delivery for delivery in fresh if delivery.message.headers.get("redelivered")]
    known = fates(board, back) if back else {}
    if not known:
        return list(fresh), [], []
    left, ended, aside = [], [], []
    for delivery in fresh:
        fate = known.get(key_of(delivery))
        if fate is not None and fate.outcome is not None:
            ended.append(as_outcome(delivery, fate.outcome))
        elif fate is not None and fate.running:
            aside.append(delivery)
        else:
            if fate is not None:
                delivery.started, delivery.reason = True, fate.reason
            left.append(delivery)
    return left, ended, aside


def _look(board: Board, keys: set[str]) -> tuple[dict[str, Fate], set[str]]:
    found: dict[str, Fate] = {}
    dying: set[str] = set()
    now = time.monotonic()
    for slot in board.slots:
        entry = slot.read()
        if not entry.pid:
            continue
        running = keys.intersection(slot.running_keys()) if entry.began else ()
        if running:
            if _alive(entry.pid):
                found.update(dict.fromkeys(running, Fate(running=True)))
            else:
                dying.update(running)
        for receipt, key, let_go, fields in slot.ended.entries():
            # Without a message's own id: only what a connection held that has been lost since.
            if key in keys and (key[0] == "m" or receipt >> _EPOCH < max(1, entry.generation)):
                found[key] = Fate(_SETTLED if let_go else fields)
                dying.discard(key)
    for key, reason, fields, died in board.obituaries.entries():
        if key in keys and now - died < REMEMBERED:
            found[key] = Fate(fields, reason)
            dying.discard(key)
    return found, dying


def bury(obituaries: Ring, slot: Slot, running: Mapping[str, str | None] | None = None) -> None:
    """Write down what a child that is gone had done lately, and how what it had been at has ended, by key."""
    now = time.monotonic()
    for _, key, let_go, fields in slot.ended.entries()[-_TAIL:]:
        obituaries.add(marshal.dumps((key, None, _SETTLED if let_go else fields, now)))
    for key, reason in (running or {}).items():
        obituaries.add(marshal.dumps((key, reason or "Worker exited prematurely", None, now)))


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not os.path.isdir("/proc/self")
