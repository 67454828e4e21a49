"""What a broker and a backend must do, on each of them.

A new server joins by one branch in `url`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery.broker import Backend, Broker, Consumer, open_backend, open_broker
from minicelery.message import new_id

MakeBroker = Callable[..., Broker]
MakeConsumer = Callable[..., Consumer]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A server of its own, empty."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.db"
    return f"memory://{new_id()}"


@pytest.fixture
def make_broker(url: str) -> Iterator[MakeBroker]:
    """Opens one more handle on the same server; the options are transport options."""
    opened: list[Broker] = []

    def make(**options: Any) -> Broker:
        opened.append(open_broker(url, options=options))
        return opened[-1]

    yield make
    for broker in opened:
        broker.close()


@pytest.fixture
def broker(make_broker: MakeBroker) -> Broker:
    return make_broker()


@pytest.fixture
def backend(url: str) -> Iterator[Backend]:
    """The result store of the broker's own server."""
    backend = open_backend(url)
    yield backend
    backend.close()


@pytest.fixture
def other_backend() -> Iterator[Backend]:
    """A result store on another server than the broker's."""
    backend = open_backend(f"memory://{new_id()}")
    yield backend
    backend.close()


@pytest.fixture
def make_consumer(broker: Broker) -> Iterator[MakeConsumer]:
    """Opens consumers, named a, b, c, … unless told otherwise, and closes them."""
    opened: list[Consumer] = []

    def make(
        *queues: str, name: str | None = None, backend: Backend | None = None, on: Broker | None = None
    ) -> Consumer:
        name = name or f"{'abcdefgh'[len(opened)]}-{new_id()}"
        opened.append((on or broker).consumer(queues or ("q",), name, backend))
        return opened[-1]

    yield make
    for consumer in opened:
        consumer.close()


@pytest.fixture
def consumer(make_consumer: MakeConsumer, backend: Backend) -> Consumer:
    """A consumer of the queue ``q`` whose results go to `backend`."""
    return make_consumer(backend=backend)
