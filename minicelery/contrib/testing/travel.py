"""Time that stands still, and is moved by the test: what is delayed and periodic runs at its time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from minicelery import beat
from minicelery.contrib.testing.idle import Run, Runner

if TYPE_CHECKING:
    from minicelery.app import Celery

LIMIT = 10_000
"""Runs in one journey after which it is taken for one that never ends."""
SMALLEST = 1e-6
_OWN = __name__.rpartition(".")[0]
_travels = threading.Lock()  # held by the one that there may be


class Clock:
    """The time of minicelery within `time_travel`, in the whole process.  Waiting takes real time."""

    def __init__(self, app: Celery, start: float) -> None:
        self.app = app
        self.time = start
        """Unix seconds."""
        self._beat: beat.Beat | None = None

    def now(self) -> datetime:
        """The time in the app's zone; aware."""
        return datetime.fromtimestamp(self.time, self.app.conf.zone())

    def forward(
        self, span: timedelta | float = 0.0, /, *, propagate: bool = False, **units: float
    ) -> list[Run]:
        """Let time pass: ``forward(hours=2)``, seconds, or a timedelta; the runs on the way, in order.

        What gets due is run at its time, and so is what follows from it; periodic tasks of the
        app are sent when they are due.
        """
        seconds = span.total_seconds() if isinstance(span, timedelta) else float(span)
        return self.to(self.time + seconds + timedelta(**units).total_seconds(), propagate=propagate)

    def to(self, when: datetime | float, *, propagate: bool = False) -> list[Run]:
        """Let time pass until `when`, an aware datetime or unix seconds; see `forward`."""
        if isinstance(when, datetime):
            if when.tzinfo is None:
                raise ValueError(
                    f"{when!r} has no time zone; write when.replace(tzinfo=timezone.utc), or another"
                )
            when = when.timestamp()
        if when < self.time:
            raise ValueError(f"time goes forward only, and {when - self.time:g} s are asked for")
        runner = Runner(self.app)
        try:
            return self._pass(runner, when, propagate)
        finally:
            runner.close()

    def _pass(self, runner: Runner, end: float, propagate: bool) -> list[Run]:
        runs: list[Run] = []
        while True:
            due = self._send_periodic()
            runs += runner.run(None, LIMIT - len(runs), propagate)
            if len(runs) >= LIMIT:
                raise AssertionError(
                    f"{LIMIT} runs and no end, the last of {runs[-1].name}; move in smaller steps"
                )
            later = min(filter(None, (due, self._next_delayed(runner))), default=None)
            if later is None or later > end:
                break
            self.time = max(later, self.time + SMALLEST)
            self._tend(runner)
        if self.time < end:
            self.time = end
            self._tend(runner)
            runs += runner.run(None, LIMIT - len(runs), propagate)
        return runs

    def _next_delayed(self, runner: Runner) -> float | None:
        store = runner.store
        with store.changed:
            waits_for_limit = any(store.gates.waiting(queue) for queue in list(store.ready))
            due = store.delayed[0][0] if store.delayed else None
        if waits_for_limit:
            return min(self.time + 1.0, due or self.time + 1.0)
        return due

    def _tend(self, runner: Runner) -> None:
        """Have the broker look at what time alone changes: limits, what expires."""
        store = runner.store
        with store.changed:
            queues = list(store.ready)
            store.changed.notify_all()  # who waits there has another time now
        self.app.broker.tend(queues, ())

    def _send_periodic(self) -> float | None:
        """Send what beat has to send now; when it has to next."""
        if self._beat is None:
            if not self.app.periodic_entries():
                return None
            self._beat = beat.Beat(self.app, clock=_BeatClock(self))
        self._beat.turn()
        heap = self._beat._heap
        return heap[0][0] if heap and heap[0][0] < float("inf") else None

    def _begin(self) -> None:
        self._send_periodic()

    def _close(self) -> None:
        if self._beat is not None:
            self._beat.close()


class _BeatClock(beat.service.Clock):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock.time

    steady = now


class _Time:
    """Stands for the module `time` in minicelery's modules; waits are real."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return self._clock.time

    def time_ns(self) -> int:
        return int(self._clock.time * 1e9)


@contextmanager
def time_travel(app: Celery, start: datetime | None = None) -> Iterator[Clock]:
    """Have time stand still for minicelery, and be moved by the Clock that this gives.

    It begins now, or at `start`, an aware datetime.  Delays, expiry, retries, limits and
    periodic tasks go by it; what a task's own code reads from Python's clock does not.
    Raises ImproperlyConfigured where the app's broker is not in memory.
    """
    if start is not None and start.tzinfo is None:
        raise ValueError(
            f"start={start!r} has no time zone; write start.replace(tzinfo=timezone.utc), or another"
        )
    Runner(app).close()  # imports what it needs, and refuses another broker
    if not _travels.acquire(blocking=False):
        raise RuntimeError(
            "time stands still already: move it by the Clock of the time_travel that this one is within"
        )
    clock = Clock(app, time.time() if start is None else start.timestamp())
    stand_in: Any = _Time(clock)
    replaced: list[Any] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("minicelery.") and not name.startswith(_OWN) and vars(module).get("time") is time:
            replaced.append(module)
            module.time = stand_in  # type: ignore[attr-defined]  # where it stood
    vars(app)["now"] = clock.now
    try:
        clock._begin()
        yield clock
        clock._close()
    finally:
        for module in replaced:
            module.time = time
        vars(app).pop("now", None)
        _travels.release()
