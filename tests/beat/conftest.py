"""Time that passes when the test says so, and an app whose messages are counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, signals
from minicelery.beat import Beat
from minicelery.beat.service import Clock

_numbers = itertools.count()
NOON = datetime(2026, 5, 13, 12, tzinfo=timezone.utc).timestamp()


class Travel(Clock):
    """A clock that is moved by hand."""

    def __init__(self, start: float = NOON) -> None:
        self.shown = start
        self.passed = 1000.0

    def now(self) -> float:
        return self.shown

    def steady(self) -> float:
        return self.passed

    def wait(self, seconds: float) -> None:
        self.shown += seconds
        self.passed += seconds

    def jump(self, seconds: float) -> None:
        """Somebody changes the clock."""
        self.shown += seconds


class Sent:
    """What was sent: entry's task, and when by the clock."""

    def __init__(self, clock: Travel) -> None:
        self.clock = clock
        self.runs: list[tuple[str, float]] = []
        self.ids: list[str] = []

    def hear(self, sender: Any, headers: Any, **_: Any) -> None:
        self.runs.append((sender, self.clock.shown))
        self.ids.append(headers["id"])

    def times(self, task: str = "t.a") -> list[float]:
        """Seconds after noon."""
        return [round(at - NOON, 3) for name, at in self.runs if name == task]


@pytest.fixture
def clock() -> Travel:
    return Travel()


@pytest.fixture
def sent(clock: Travel) -> Iterator[Sent]:
    found = Sent(clock)
    signals.after_task_publish.connect(found.hear, weak=False)
    yield found
    signals.after_task_publish.disconnect(found.hear)


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with the tasks t.a and t.b, on a memory broker of its own."""
    with make_app(f"memory://beat{next(_numbers)}") as app:
        yield app


@pytest.fixture(params=["memory", "sqlite", "redis"])
def claiming_app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Celery]:
    """The same on each broker that keeps unique calls."""
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: f"memory://beat{next(_numbers)}",
        "sqlite": lambda: f"sqlite:///{tmp_path}/queue.db",
        "redis": lambda: str(request.getfixturevalue("redis_url")),
    }
    with make_app(urls[request.param]()) as app:
        yield app


def make_app(url: str) -> Celery:
    app = Celery("t", broker=url, set_as_current=False)

    @app.task(name="t.a", shared=False)
    def a(*args: Any, **kwargs: Any) -> None: ...

    @app.task(name="t.b", shared=False)
    def b(x: int, y: int = 0) -> int:
        return x + y

    return app


def live(beat: Beat, clock: Travel, seconds: float) -> None:
    """Let the beat live so long."""
    end = clock.passed + seconds
    while True:
        pause = max(beat.turn(), 1e-3)
        if clock.passed + pause > end:
            clock.wait(end - clock.passed)
            return
        clock.wait(pause)


def start(app: Celery, clock: Travel, **options: Any) -> Beat:
    """A beat that has read its entries."""
    beat = Beat(app, clock=clock, **options)
    beat.read()
    return beat
