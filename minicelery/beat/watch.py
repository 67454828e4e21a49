"""A worker's question whether anybody sends its app's periodic tasks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from minicelery.beat.lease import lead_of

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds without a beat after which somebody should know."""
EVERY = 10.0


class BeatWatch:
    """Warns, once, where no beat is there for a minute."""

    def __init__(self, app: Celery, patience: float = PATIENCE) -> None:
        self._app = app
        self._patience = patience
        self._lead = lead_of(app)
        self._look_at = 0.0
        self._seen_at: float | None = None
        self._said = False

    def look(self, now: float) -> None:
        """Look whether a beat is there; `now` is monotonic.  Raises OperationalError."""
        if self._said or now < self._look_at:
            return
        self._look_at = now + EVERY
        if self._seen_at is None or self._app.broker.leader(self._lead):
            self._seen_at = now
        elif now - self._seen_at >= self._patience:
            self._said = True
            log.warning(
                "%d beat entries are configured, and no beat was seen for %.0f s: start `minicelery beat`, "
                "or this worker with --beat", len(self._app.periodic_entries()), self._patience,
            )  # fmt: skip
