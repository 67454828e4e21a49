"""Celery's `events.snapshot`: a camera that looks at the state of a fleet now and then."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from minicelery.alias.times import rate as per_second
from minicelery.signals import Signal


class Polaroid:
    """Calls `on_shutter(state)` each `freq` seconds, and `on_cleanup()` each `cleanup_freq`; in a thread.

    A ``with`` statement installs it, and calls `on_shutter` once more at its end.
    """

    timer: Any = None
    shutter_signal = Signal("shutter_signal", ("state",))
    cleanup_signal = Signal("cleanup_signal")
    clear_after = False

    def __init__(
        self, state: Any, freq: float = 1.0, maxrate: Any = None, cleanup_freq: float = 3600.0,
        timer: Any = None, app: Any = None,
    ) -> None:  # fmt: skip
        self.state = state
        self.freq = freq
        self.cleanup_freq = cleanup_freq
        self.app = app
        self.maxrate = per_second(maxrate) if maxrate else 0.0
        self._stopped = threading.Event()
        self._last = float("-inf")

    def install(self) -> None:
        """Begin to look."""
        for every, act in ((self.freq, self.capture), (self.cleanup_freq, self.cleanup)):
            threading.Thread(
                target=self._repeat, args=(every, act), name="minicelery-camera", daemon=True
            ).start()

    def _repeat(self, every: float, act: Any) -> None:
        while not self._stopped.wait(every):
            act()

    def on_shutter(self, state: Any) -> None:
        """Overridden: look at it."""

    def on_cleanup(self) -> None:
        """Overridden: drop what is old."""

    def capture(self) -> None:
        """Look at the state now."""
        self.state.freeze_while(self.shutter, clear_after=self.clear_after)

    def shutter(self) -> None:
        """Tell of the state, unless that was just done."""
        now = time.monotonic()
        if self.maxrate and now - self._last < 1 / self.maxrate:
            return
        self._last = now
        self.shutter_signal.send(sender=self.state)
        self.on_shutter(self.state)

    def cleanup(self) -> None:
        """Have it cleaned up now."""
        self.cleanup_signal.send(sender=self.state)
        self.on_cleanup()

    def cancel(self) -> None:
        """Look no more."""
        self._stopped.set()

    def __enter__(self) -> Polaroid:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.capture()
        self.cancel()
