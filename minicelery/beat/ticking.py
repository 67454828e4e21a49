"""Schedulers written for Celery: they keep their entries themselves, and send when they are called.

Such a class has a `tick`, which sends what is due and returns in how many seconds to call it again.
It is made when its beat begins to lead, and closed when that ends: so it goes on from what the
last leader has written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minicelery.beat.scheduler import Scheduler
from minicelery.exceptions import OperationalError

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

TURN = 0.5
"""Seconds of sending, after which the lead is looked after."""
LONGEST = 3600.0
FIRST_AGAIN, AGAIN = 1.0, 60.0
"""Seconds after which one that has failed is called again, at first and at most."""
_NO_TABLE = ("no such table", "does not exist", "doesn't exist")


class TickingScheduler(Scheduler):
    """Has a scheduler of Celery's kind send, while this beat leads."""

    def __init__(self, app: Celery, kind: Callable[..., Any], max_interval: float | None = None) -> None:
        super().__init__(app)
        self.kind = kind
        self.max_interval = max_interval
        self.theirs: Any = None
        self._again_at = 0.0
        self._failures = 0

    @property
    def described(self) -> str:
        """Which class it is."""
        return f"{self.kind.__module__}.{self.kind.__qualname__}"

    def entries(self) -> Mapping[str, Any]:
        """None: the class keeps them."""
        return {}

    def changed(self) -> bool:
        return False

    def lead(self) -> None:
        self.rest()
        self._again_at = 0.0

    def send(self, holds: Callable[[], bool]) -> float:
        until = time.monotonic() + TURN
        try:
            while self._again_at <= time.monotonic() < until and holds():
                self._again_at = time.monotonic() + self._tick()
            self._failures = 0
        except OperationalError:
            raise
        except Exception as error:  # its own code, or its database
            self._fail(error)
        return max(0.0, self._again_at - time.monotonic())

    def rest(self) -> None:
        theirs, self.theirs = self.theirs, None
        if theirs is None:
            return
        try:
            theirs.close()
        except Exception:  # its own code, or its database
            log.exception("beat: %s could not be closed", self.described)

    close = rest

    def _tick(self) -> float:
        if self.theirs is None:
            self.theirs = self._made()
        pause = self.theirs.tick()
        if self.theirs.should_sync():
            self.theirs._do_sync()
        return min(max(0.0, pause or 0.0), LONGEST)

    def _made(self) -> Any:
        log.info("beat: %s says what is sent", self.described)
        # Such classes read beat_schedule, which has not all that was added by functions.
        self.app.conf.beat_schedule = self.app.periodic_entries()
        more = {} if self.max_interval is None else {"max_interval": self.max_interval}
        return self.kind(app=self.app, **more)

    def _fail(self, error: Exception) -> None:
        pause = min(AGAIN, FIRST_AGAIN * 2.0 ** min(self._failures, 10))
        self._failures += 1
        self._again_at = time.monotonic() + pause
        if any(words in str(error) for words in _NO_TABLE):
            log.error("beat: %s: %s; python manage.py migrate", self.described, error)
            return
        log.error("beat: %s has failed, and is called again in %.0f s", self.described, pause, exc_info=True)
