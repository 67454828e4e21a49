"""What the board says of children that are gone, and of those that took their places."""

from __future__ import annotations

import os
from collections.abc import Callable

from minicelery.message import Delivery, Message, Outcome, Record, Verdict
from minicelery.worker.board import JOURNAL, Board, Slot


def outcome(receipt: int, document: bytes = b"{}") -> Outcome:
    message = Message(f"task-{receipt}", "run", b"[]", {})
    return Outcome(
        Delivery(message, receipt), Verdict.ACK, Record(message.id, document, "SUCCESS"), [message]
    )


def in_a_child(act: Callable[[], object]) -> None:
    """Do it in a forked process: a slot's own memory is then another one's than the reader's."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def live_in(slot: Slot, *receipts: int) -> None:
    slot.open(os.getpid(), "name")
    for receipt in receipts:
        slot.write(receipt, 1.0)
        assert slot.note(outcome(receipt))


def test_what_a_dead_child_had_noted_is_read_by_others() -> None:
    slot = Board(1).slots[0]
    in_a_child(lambda: live_in(slot, 1, 2, 3))
    held = {receipt: outcome(receipt).delivery for receipt in (2, 3, 4)}
    found = slot.journal(held)
    assert {receipt: (o.delivery, o.record, o.publish) for receipt, o in found.items()} == {
        receipt: (held[receipt], outcome(receipt).record, outcome(receipt).publish) for receipt in (2, 3)
    }


def test_a_freed_slot_keeps_no_outcome_of_its_last_child() -> None:
    slot = Board(1).slots[0]
    in_a_child(lambda: live_in(slot, 1, 2, 3))
    slot.clear()
    in_a_child(lambda: live_in(slot))
    # The next child counts its receipts from 1 again.
    assert slot.journal({receipt: outcome(receipt).delivery for receipt in (1, 2, 3)}) == {}


def test_a_full_journal_refuses_and_keeps_what_it_has() -> None:
    slot = Board(1).slots[0]
    assert slot.note(outcome(1, b"x" * (JOURNAL - 2000)))
    assert not slot.note(outcome(2, b"x" * 2000))
    assert set(slot.journal({1: outcome(1).delivery, 2: outcome(2).delivery})) == {1}


def test_a_new_name_leaves_the_running_delivery_and_its_deadline_as_they_were() -> None:
    slot = Board(1).slots[0]
    slot.open(7, "name")
    slot.write(5, 10.0, 20.0)
    slot.rename(2)
    entry = slot.read()
    assert (entry.receipt, entry.began, entry.deadline) == (5, 10.0, 20.0)
    assert slot.consumer_names() == ["name~2", "name~1", "name"]


def test_a_sibling_without_work_makes_the_board_idle() -> None:
    board = Board(3)
    first, second, _ = board.slots
    first.open(1, "first")
    second.open(2, "second")
    first.write(1, 5.0)
    assert board.idle(but=first)
    second.write(1, 5.0)
    assert not board.idle(but=first)
