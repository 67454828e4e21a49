"""Runs that are ended by order: revoked with ``terminate=True``, or by a stamp."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from minicelery.worker.board import Board, Run

_ENDS_NOTHING = signal.SIGUSR1.name  # the soft time limit: the run may handle it and go on


class Terminations:
    """Finds on the Board what is to be ended, and remembers what was, until its child is gone."""

    def __init__(self, board: Board, report: Callable[[str], None]) -> None:
        self.board = board
        self.report = report
        self._wanted: list[tuple[Callable[[Run], bool], str]] = []
        self._ordered: dict[tuple[int, int], str] = {}  # pid and receipt of a run -> signal

    def want(self, is_meant: Callable[[Run], bool], name: str) -> None:
        """End the runs that are meant, with the next look, by a signal's name; from any thread."""
        self._wanted.append((is_meant, name))

    def look(self, by_id: Mapping[str, bytes]) -> None:
        """Order the end of what runs and should not; `by_id` has the signals of tasks that were revoked.

        Of each that is found: it may have been fetched before its task was revoked.
        """
        wanted, self._wanted = self._wanted, []
        if not by_id and not self._ordered and not wanted:
            return
        running: set[tuple[int, int]] = set()
        for index, slot in enumerate(self.board.slots):
            # Its pid first: should another child take the slot now, the order is for nobody.
            entry = slot.read()
            if not entry.pid:
                continue
            receipts = slot.running_receipts() or [entry.receipt]
            running.update((entry.pid, receipt) for receipt in receipts)
            for run in slot.runs() if by_id or wanted else ():
                name, key = by_id.get(run.id, b"").decode(), (entry.pid, run.receipt)
                name = name or next((how for is_meant, how in wanted if is_meant(run)), "")
                if name in signal.Signals.__members__ and self._ordered.get(key) != name:
                    self._ordered[key] = name
                    running.add(key)
                    self.report(f"terminate {index} {run.receipt} {name} {entry.pid}")
        self._ordered = {key: name for key, name in self._ordered.items() if key in running}

    def reason(self, pid: int, receipt: int) -> str | None:
        """Why a run of a child that has died was ended, where it was by order."""
        name = self._ordered.pop((pid, receipt), None)
        return None if name in (None, _ENDS_NOTHING) else f"revoked: {name}"
