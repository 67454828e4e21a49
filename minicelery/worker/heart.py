"""A worker's signs of life: the events `worker-online`, `worker-heartbeat` and `worker-offline`."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Any

from minicelery.events import records
from minicelery.exceptions import OperationalError
from minicelery.worker.board import Board

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between two heartbeats, as Celery's workers have it."""
SELDOM = 5.0
"""What one says of itself that is sent because somebody has asked, where there are no others; as Celery's."""


class Heart:
    """Sends them for one worker; what it says of its tasks it reads from the Board.

    Every `interval` seconds; None: only what `send` is called for.
    """

    def __init__(self, app: Celery, hostname: str, board: Board, interval: float | None = INTERVAL) -> None:
        self.interval = interval
        self.due = 0.0 if interval is not None else math.inf  # monotonic seconds
        self._app = app
        self._hostname = hostname
        self._board = board
        self._software = records.software()
        self._online = False
        self._told = False  # that it can't be sent
        app.clock.share(board.clock)

    def beat(self, now: float) -> bool:
        """Send what is due; whether something was sent.  Never raises for a broker that is lost."""
        if self.interval is None or now < self.due:
            return False
        self.due = now + self.interval
        self._online = self.send("worker-heartbeat" if self._online else "worker-online")
        return self._online

    def stop(self) -> None:
        """Send that the worker is going."""
        if self._online:
            self._online = False
            self.send("worker-offline")

    def send(self, type: str) -> bool:
        """Send an event of this worker now; whether it could be.  From any thread."""
        app, board = self._app, self._board
        fields: dict[str, Any] = {
            "freq": self.interval or SELDOM, "active": board.active(), "processed": board.processed(), "loadavg": load(),
            **self._software,
        }  # fmt: skip
        event = records.event(type, fields, hostname=self._hostname, pid=board.pid, clock=app.clock.forward())
        letter = records.letter(app.conf.event_exchange, type, self._hostname, records.encoded(event))
        try:
            app.broker.post.send([letter])
        except OperationalError as error:
            # The agent's own work tells of outages; what comes after them is news again.
            (log.debug if self._told else log.warning)("no %s can be sent: %s", type, error)
            self._told = True
            return False
        self._told = False
        return True


def load() -> list[float]:
    """The system's load over 1, 5 and 15 minutes."""
    try:
        return [math.ceil(one * 100) / 100 for one in os.getloadavg()]
    except OSError:  # not to be had in some containers
        return [0.0, 0.0, 0.0]
