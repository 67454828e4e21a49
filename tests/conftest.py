"""Fixtures for every test: servers of this run's own, and URLs on them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import RedisServer


def pytest_configure() -> None:
    """In CI nothing is skipped for want of a package that a test compares with or runs on."""
    missing = [name for name in ("celery", "flask", "PIL") if importlib.util.find_spec(name) is None]
    if os.environ.get("CI") and missing:
        raise pytest.UsageError(f"not installed: {', '.join(missing)}; pip install -e '.[dev]'")


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
    redis_server.command("FLUSHALL")
    return redis_server.url()


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
