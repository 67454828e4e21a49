"""What letters leave in a database file: little, and not for long."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery.broker import Broker, open_broker
from minicelery.broker.post import Box, Letter
from minicelery.broker.sqlite import post
from minicelery.exceptions import BrokerUnavailable
from minicelery.message import new_id

EVENT = Letter("celeryev", "task.multi", b"[1]", {"hostname": "w@h"})


def events() -> Box:
    return Box("celeryev", "topic", f"celeryev.{new_id()}", "#")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def broker(path: Path) -> Iterator[Broker]:
    broker = open_broker(f"sqlite:///{path}")
    yield broker
    broker.close()


def rows(path: Path, statement: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def test_nothing_is_written_while_nobody_listens(broker: Broker, path: Path) -> None:
    consumer = broker.consumer(["q"], new_id(), None)
    consumer.swap([], 0, 0)
    broker.post.send([EVENT])
    consumer.post([EVENT])
    consumer.swap([], 1, 0)
    consumer.post([EVENT])
    consumer.extend([])
    listening = broker.post.listen([events()])
    listening.close()
    broker.post.send([EVENT])
    with broker.post.listen([Box("celery.pidbox", "fanout", "w@h.celery.pidbox")]):
        broker.post.send([EVENT])
    consumer.close()
    assert rows(path, "SELECT count(*) FROM letters") == [(0,)]
    assert rows(path, "SELECT count(*) FROM listeners") == [(0,)]


def test_the_last_who_leaves_takes_the_letters_along(broker: Broker, path: Path) -> None:
    with broker.post.listen([events()]) as listening:
        broker.post.listen([events()]).close()
        broker.post.send([EVENT])
        broker.post.listen([events()]).close()
        assert rows(path, "SELECT count(*) FROM letters") == [(1,)]
        assert listening.take(5) == [EVENT]
    assert rows(path, "SELECT count(*) FROM letters") == [(0,)]
    with broker.post.listen([events()]) as listening:
        broker.post.send([EVENT])
        assert listening.take(5) == [EVENT]


def test_a_closed_broker_leaves_no_listener_in_the_file(path: Path) -> None:
    broker = open_broker(f"sqlite:///{path}")
    listening = broker.post.listen([events()])
    broker.close()
    assert rows(path, "SELECT count(*) FROM listeners") == [(0,)]
    with pytest.raises(BrokerUnavailable, match="was closed"):
        listening.take(30)
    listening.close()


def test_a_listener_that_has_died_counts_for_a_minute(broker: Broker, path: Path) -> None:
    broker.post.listen([events()])
    ((until,),) = rows(path, "SELECT until - ? FROM listeners", time.time())
    assert 50 < until <= 60
    rows(path, "UPDATE listeners SET until = ?", time.time())
    broker.post.send([EVENT])
    assert rows(path, "SELECT count(*) FROM letters") == [(0,)]
    broker.tend(["q"], [])
    assert rows(path, "SELECT count(*) FROM listeners") == [(0,)]


def test_letters_are_dropped_after_a_minute(broker: Broker, path: Path) -> None:
    with broker.post.listen([events()]) as listening:
        broker.post.send([EVENT])
        broker.tend(["q"], [])
        assert rows(path, "SELECT count(*) FROM letters") == [(1,)]
        rows(path, "UPDATE letters SET sent = sent - 61")
        broker.tend(["q"], [])
        assert rows(path, "SELECT count(*) FROM letters") == [(0,)]
        broker.post.send([EVENT])
        assert listening.take(5) == [EVENT]


def test_of_too_many_letters_the_latest_are_kept(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "MOST", 3)
    with broker.post.listen([events()]) as listening:
        broker.post.send([Letter("celeryev", "task.multi", b"%d" % n) for n in range(10)])
        broker.tend(["q"], [])
        assert rows(path, "SELECT count(*) FROM letters") == [(3,)]
        assert [letter.content for letter in listening.take(5)] == [7, 8, 9]


def test_who_listens_says_so_again_and_again(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "RENEW", 0.02)
    with broker.post.listen([events()]) as listening:
        rows(path, "UPDATE listeners SET until = until - 30")
        listening.take(0.1)
        ((until,),) = rows(path, "SELECT until - ? FROM listeners", time.time())
        assert until > 50


def test_who_has_not_listened_for_long_is_told(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "RENEW", 0.0)
    with broker.post.listen([events()]) as listening:
        rows(path, "UPDATE listeners SET until = ?", time.time())
        broker.post.send([EVENT])
        with pytest.raises(BrokerUnavailable, match="listen anew"):
            listening.take(0)
