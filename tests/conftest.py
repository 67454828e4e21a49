"""Fixtures for every test: servers of this run's own, and URLs on them."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from minicelery import _state
from tests.postgres import PostgresServer, served
from tests.rabbit import RabbitServer
from tests.servers import RedisServer

_vhosts = itertools.count(1)


def pytest_configure() -> None:
    _refuse_an_incomplete_ci()
    # Whoever starts the tests in the background may have them ignore an interrupt, and the programs they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _refuse_an_incomplete_ci() -> None:
    """In CI nothing is skipped for want of a package that a test compares with or runs on."""
    missing = [
        name
        for name in (
            "brotli",
            "celery",
            "croniter",
            "cronsim",
            "cryptography",
            "django",
            "ephem",
            "fastapi",
            "flask",
            "flower",
            "mypy",
            "opentelemetry",
            "PIL",
            "pika",
            "psycopg",
            "pydantic",
            "requests",
            "sentry_sdk",
            "uvicorn",
            "yaml",
        )
        if importlib.util.find_spec(name) is None
    ]
    if os.environ.get("CI") and missing:
        raise pytest.UsageError(f"not installed: {', '.join(missing)}; pip install -e '.[dev]'")


@pytest.fixture(autouse=True)
def no_task_outlives_its_test() -> Iterator[None]:
    """Every task is shared with all apps of the process unless it is declared otherwise: not with later tests."""
    before = len(_state.shared)
    yield
    del _state.shared[before:]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server that all tests share; see `redis_url`."""
    yield from _served()


@pytest.fixture
def private_redis() -> Iterator[RedisServer]:
    """A Redis server of this test's own, to be killed and restarted."""
    yield from _served()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the shared Redis server, emptied."""
    redis_server.command("FLUSHALL", timeout=20)
    return redis_server.url()


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """A RabbitMQ server that all tests share, on TCP and TLS; see `rabbit_url`."""
    yield from _served_rabbit(tls=True)


@pytest.fixture
def private_rabbit() -> Iterator[RabbitServer]:
    """A RabbitMQ server of this test's own, to be killed and restarted; takes two seconds."""
    yield from _served_rabbit()


@pytest.fixture
def rabbit_url(rabbit_server: RabbitServer) -> Iterator[str]:
    """The URL of a new virtual host of the shared RabbitMQ server: no queues, no connections."""
    vhost = f"test{next(_vhosts)}"
    rabbit_server.add_vhost(vhost)
    yield rabbit_server.url(vhost)
    rabbit_server.delete_vhost(vhost)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that all tests share."""
    yield from served()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a database file that does not exist yet."""
    return f"sqlite:///{tmp_path}/queue.db"


def _served() -> Iterator[RedisServer]:
    if not RedisServer.available():
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed, and in CI nothing is skipped")
        pytest.skip("redis-server is not installed")
    server = RedisServer().start()
    try:
        yield server
    finally:
        server.stop()


def _served_rabbit(*, tls: bool = False) -> Iterator[RabbitServer]:
    if not RabbitServer.available():
        if os.environ.get("CI"):
            pytest.fail("rabbitmq-server is not installed, and in CI nothing is skipped")
        pytest.skip("rabbitmq-server is not installed")
    server = RabbitServer(tls=tls).start()
    try:
        yield server
    finally:
        server.stop()
