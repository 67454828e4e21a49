"""Of several beats, who leads."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from typing import TYPE_CHECKING

from minicelery.broker import Broker

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

SECONDS = 6.0
"""A silent leader leads so long; then another takes over."""
RENEW = 1.0
"""Seconds between two signs of life, and between two looks of who stands by."""


def lead_of(app: Celery) -> str:
    """What the beats of an app compete for: apps of that name, with that default queue, share it."""
    return f"{app.main or '__main__'}@{app.conf.task_default_queue}"


class Lease:
    """One beat's part in the election of a leader."""

    def __init__(self, broker: Broker, lead: str) -> None:
        self.lead = lead
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.leads = False
        self.ask_at = 0.0
        self._broker = broker
        self._until = 0.0
        self._said = False

    def ask(self, steady: float) -> bool:
        """Ask who leads; whether we do so from now on, so that others may have led before.

        `steady` is a time that no clock changes.  Raises OperationalError.
        """
        if steady < self.ask_at:
            return False
        led, had = self.leads, self.holds(steady)
        self.leads = had
        holder = self._broker.lead(self.lead, self.holder, SECONDS)
        self.ask_at = steady + RENEW
        self.leads = holder == self.holder
        if not self.leads:
            if led or not self._said:
                log.warning("beat: another beat is active%s; standing by", _whereabouts(holder))
            self._said = True
            return False
        self._until = steady + SECONDS
        return not had

    def holds(self, steady: float) -> bool:
        """Whether the lead is ours at this moment."""
        return self.leads and steady < self._until

    def give_up(self) -> None:
        """Let another one lead."""
        if self.leads:
            self.leads = False
            self._broker.step_down(self.lead, self.holder)


def _whereabouts(holder: str) -> str:
    host, _, rest = holder.partition(":")
    return f" on {host}:{rest.partition(':')[0]}" if rest else ""
