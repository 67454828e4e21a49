"""Fixtures for tests of real workers; a failing test shows its workers' logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rabbit import RabbitServer
from tests.servers import RedisServer
from tests.worker.harness import Stage

TAIL = 12_000


@pytest.fixture(params=["redis", "sqlite", "rabbit"])
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An app and its workers on each broker."""
    yield from staged(request.getfixturevalue(f"{request.param}_url"), tmp_path, request)


@pytest.fixture(params=["redis", "sqlite"])
def leased_stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An app and its workers on each broker that keeps leases."""
    yield from staged(request.getfixturevalue(f"{request.param}_url"), tmp_path, request)


@pytest.fixture
def rabbit_stage(rabbit_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An app and its workers on RabbitMQ alone, its results on Redis."""
    yield from staged(rabbit_url, tmp_path, request)


@pytest.fixture
def private_stage(
    private_rabbit: RabbitServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Stage]:
    """An app and its workers on a RabbitMQ of the test's own."""
    yield from staged(private_rabbit.url(), tmp_path, request)


@pytest.fixture
def redis_stage(redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An app and its workers on Redis alone."""
    yield from staged(redis_url, tmp_path, request)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server for the test to kill, which has on disk all that it ever confirmed."""
    if not RedisServer.available():
        pytest.skip("redis-server is not installed")
    server = RedisServer(appendonly="yes", appendfsync="always").start()
    yield server
    server.stop()


@pytest.fixture
def outage_stage(server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An app and its workers on that server."""
    yield from staged(server.url(), tmp_path, request)


def staged(url: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage whose logs are shown where the test fails."""
    # RabbitMQ keeps no results that can be read again.
    backend = request.getfixturevalue("redis_url") if url.startswith("amqp") else ""
    stage = Stage(url, folder, backend)
    request.node.stash[_STAGE] = stage
    try:
        yield stage
    finally:
        stage.close()


_STAGE = pytest.StashKey[Stage]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    stage = item.stash.get(_STAGE, None)
    if report.failed and stage is not None:
        for worker in stage.workers:
            report.sections.append((f"log of {worker.log.name}", worker.output()[-TAIL:]))
        report.sections.append(("traces", stage.path.read_text()[-TAIL:]))
    return report
