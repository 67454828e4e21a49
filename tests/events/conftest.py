"""An app on each broker, and what is heard there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from minicelery import Celery
from tests.waiting import wait_until


@pytest.fixture(params=["memory", "redis", "sqlite", "rabbit"])
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    """An app on each broker."""
    url = "memory://events" if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    with Celery("events", broker=url, set_as_current=False) as app:
        yield app


@contextmanager
def heard(app: Any, **options: Any) -> Iterator[list[dict[str, Any]]]:
    """The events that come meanwhile."""
    events: list[dict[str, Any]] = []
    receiver = app.events.Receiver(handlers={"*": events.append}, **options)
    with capturing(receiver, lambda: receiver.capture_on(lambda error: None)):
        yield events


@contextmanager
def capturing(receiver: Any, capture: Callable[[], Any]) -> Iterator[threading.Thread]:
    """Have a receiver capture meanwhile, in a thread; begins when it listens."""
    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    wait_until(lambda: receiver._listening is not None)
    try:
        yield thread
    finally:
        receiver.stop()
        thread.join(5)
