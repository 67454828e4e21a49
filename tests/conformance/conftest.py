"""What a broker and a backend must do, on each of them.

A new server joins by one branch in `url`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from minicelery.broker import Backend, Broker, Consumer, open_backend, open_broker
from minicelery.broker.topology import QueueSpec, plain_queue
from minicelery.message import new_id
from tests.django_inside import use_database, use_postgres

MakeBroker = Callable[..., Broker]
MakeConsumer = Callable[..., Consumer]


def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "amqp":
        return str(request.getfixturevalue("rabbit_url"))
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    if request.param.startswith("django-db"):
        pytest.importorskip("django")
        if request.param.endswith("postgres"):
            use_postgres(request.getfixturevalue("postgres_server"))
        else:
            use_database(tmp_path)
        return "django-db"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.db"
    return f"memory://{new_id()}"


@pytest.fixture(params=["memory", "sqlite", "redis", "amqp"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A broker of the test's own, empty."""
    return server_url(request, tmp_path)


@pytest.fixture(params=["memory", "sqlite", "redis", "django-db", "django-db-postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A result store of the test's own, empty."""
    return server_url(request, tmp_path)


@dataclass(frozen=True)
class Traits:
    """In what brokers differ, each by its server's nature."""

    delay: float = 0.4  # seconds that a message can be delayed for without a worker holding it
    counts_delays: bool = True  # whether it can tell how many wait for a queue
    urgent: int = 0  # the priority that is served first; the other end is 9
    shared_priorities: bool = True  # whether priorities count over several queues
    longest_id: int = 10_000  # bytes of an id


@pytest.fixture
def traits(url: str) -> Traits:
    """What to expect of the broker at `url`."""
    if url.startswith("amqp"):
        return Traits(1.3, False, 9, False)
    return Traits()


def queue_with_priorities(name: str) -> QueueSpec:
    """Queues whose names begin with p have priorities: RabbitMQ must be told when they are made."""
    plain = plain_queue(name)
    return replace(plain, arguments={"x-max-priority": 9}) if name.startswith("p") else plain


@pytest.fixture
def make_broker(url: str) -> Iterator[MakeBroker]:
    """Opens one more handle on the same server; the options are transport options."""
    opened: list[Broker] = []

    def make(**options: Any) -> Broker:
        if url.startswith("amqp"):
            options = {"delay_queue_type": "classic", "spec_of": queue_with_priorities, **options}
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
    """The result store of the broker's own server; for RabbitMQ, which keeps none, another one."""
    backend = open_backend(f"memory://{new_id()}" if url.startswith("amqp") else url)
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
