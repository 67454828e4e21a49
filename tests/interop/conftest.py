"""Servers, and a worker of each library on them, once for all tests of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.interop.pair import Pair, Site, Way, pair_at
from tests.interop.tasks import Place
from tests.rabbit import RabbitServer
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def own_redis() -> Iterator[RedisServer]:
    """A Redis that no other test empties."""
    if not RedisServer.available():
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("redis-server is not installed")
    server = RedisServer().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_site(own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    url = own_redis.url()
    site = Site(Place("redis", url, url, url), own_redis, tmp_path_factory.mktemp("redis")).start()
    yield site
    site.stop()


@pytest.fixture(scope="session")
def rabbitmq_site(
    rabbit_server: RabbitServer, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    yield from _on_rabbitmq("rabbitmq", rabbit_server, own_redis, tmp_path_factory, "")


@pytest.fixture(scope="session")
def quorum_site(
    rabbit_server: RabbitServer, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    yield from _on_rabbitmq("quorum", rabbit_server, own_redis, tmp_path_factory, "rpc://")


def _on_rabbitmq(
    name: str, server: RabbitServer, redis: RedisServer, folders: pytest.TempPathFactory, backend: str
) -> Iterator[Site]:
    server.add_vhost(f"interop-{name}")
    store = redis.url(db=1)
    place = Place(name, server.url(f"interop-{name}"), backend or store, store)
    site = Site(place, server, folders.mktemp(name)).start()
    yield site
    site.stop()
    server.delete_vhost(f"interop-{name}")


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The pair that `case` asks for."""
    way: Way = request.param
    with pair_at(request.getfixturevalue(f"{way.place}_site"), way) as found:
        yield found
