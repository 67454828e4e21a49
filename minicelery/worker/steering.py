"""The parent's part in remote control: what the agent reports as ordered is done here, or passed on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minicelery.worker.board import Board
from minicelery.worker.orders import REPLACE, Change
from minicelery.worker.roster import Child, Roster

if TYPE_CHECKING:
    from minicelery.worker.prefork import Supervisor

log = logging.getLogger("minicelery.worker.prefork")

LASTING = 2000
"""Changes that are kept for children to come; the oldest is dropped beyond that."""

Reload = Callable[[Sequence[str] | None, bool], None]


class Steering:
    """Obeys orders, and repeats to every process that is started later what is to last."""

    def __init__(self, supervisor: Supervisor, reload: Reload | None = None) -> None:
        self._supervisor = supervisor
        self._reload = reload
        self._lasting: dict[tuple[str, str], Change] = {}

    @property
    def _roster(self) -> Roster:
        return self._supervisor.roster

    def obey(self, text: bytes) -> None:
        """Do what a line of JSON orders."""
        try:
            order = json.loads(text)
            what = order.pop("what")
            log.info("Remote control: %s %s", what, order or "")
            getattr(self, f"_{what}")(**order)
        except (Exception, SystemExit) as error:  # a parent goes on, whatever a module does that it imports
            log.error("Remote control: %.200r can't be obeyed: %s", text, error)
        self.tell()

    def tell(self) -> None:
        """Say on the Board how many children there should be."""
        show_size(self._supervisor.board, self._roster)

    def replay(self, child: Child) -> None:
        """Tell a new process what has been changed; before it begins anything."""
        for key, change in self._lasting.items():
            if child.slot is None:
                child.order(f"change {change.text()}\n".encode(), key)
            else:
                child.order(change.encoded(), key)

    # -- orders ----------------------------------------------------------------------------

    def _change(self, change: Sequence[Any]) -> None:
        found = Change(*change)
        key = (found.topic, found.key)
        self._lasting.pop(key, None)
        self._lasting[key] = found
        if len(self._lasting) > LASTING:
            del self._lasting[next(iter(self._lasting))]
        if found.topic == "events":
            board = self._supervisor.board
            board.head = replace(board.head, events=bool(found.value))
        for child in self._supervisor.children.values():
            child.order(found.encoded(), key)

    def _grow(self, n: int) -> None:
        self._roster.grow(n)

    def _shrink(self, n: int) -> None:
        self._roster.shrink(n)

    def _scale(self, most: int, least: int) -> None:
        self._roster.rescale(least, most)

    def _restart(self, modules: Sequence[str] | None, reload: bool) -> None:
        if self._reload is not None and (modules or reload):
            self._reload(modules, reload)
            self._supervisor.renew_agent()  # what it has imported is old as well
        for child in self._supervisor.children.values():
            child.order(REPLACE)

    def _stop(self) -> None:
        self._supervisor.stop()


def show_size(board: Board, roster: Roster) -> None:
    """Say on the Board how many children there should be, if that has changed."""
    scaler, head = roster.autoscaler, board.head
    least, most = (scaler.minimum, scaler.maximum) if scaler is not None else (0, 0)
    if (head.concurrency, head.least, head.most) != (roster.concurrency, least, most):
        board.head = replace(head, concurrency=roster.concurrency, least=least, most=most)
