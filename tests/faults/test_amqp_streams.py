"""Streams of small records on RabbitMQ: followed, deleted, and broken by a crash of the server."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pika
import pytest

from minicelery.broker.amqp import AMQPBroker, codec
from minicelery.broker.amqp.link import Content
from minicelery.broker.amqp.notes import CHANNEL, Topic
from minicelery.exceptions import BrokerUnavailable, OperationalError
from tests.conformance.messages import acked, call, ids
from tests.faults.test_amqp_faults import opened
from tests.rabbit import RabbitServer
from tests.waiting import wait_until, within

STREAM = "minicelery.revoked"


@pytest.fixture
def broker(rabbit_url: str) -> Iterator[AMQPBroker]:
    yield from opened(rabbit_url)


@pytest.fixture
def private_broker(private_rabbit: RabbitServer) -> Iterator[AMQPBroker]:
    yield from opened(private_rabbit.url())


@pytest.fixture
def channel(rabbit_url: str) -> Iterator[Any]:
    """A channel of a client that is not ours."""
    with pika.BlockingConnection(pika.URLParameters(rabbit_url)) as connection:
        yield connection.channel()


def connections(server: RabbitServer) -> int:
    return int(server.eval("length(rabbit_networking:connections())"))


def erlang_name(stream: str) -> str:
    return f"rabbit_misc:r(<<{','.join(map(str, b'/'))}>>, queue, <<{','.join(map(str, stream.encode()))}>>)"


def await_made(server: RabbitServer, stream: str, seconds: float) -> None:
    """Return when the server has kept the stream as it is for so long: it writes down once more what it has made."""
    seen: list[str] = []

    def unchanged() -> bool:
        seen.append(server.eval(f"mnesia:dirty_read(rabbit_durable_queue, {erlang_name(stream)})"))
        recent = seen[-int(seconds / 0.1) :]
        return len(recent) == int(seconds / 0.1) and len(set(recent)) == 1

    wait_until(unchanged, 20, interval=0.1)


def break_stream(server: RabbitServer, how: str) -> None:
    """Leave the stream as a server does that is killed while it makes it: it can't be deleted either."""
    name = erlang_name(STREAM)
    if how == "half made":  # killed within 5 ms: readers' connections are closed, INTERNAL_ERROR
        server.eval(
            f"begin [Q] = mnesia:dirty_read(rabbit_durable_queue, {name}), "
            "mnesia:dirty_write(rabbit_durable_queue, amqqueue:set_pid(Q, none)) end"
        )
    server.eval(f"mnesia:dirty_delete(rabbit_queue, {name})")


# -- broken ------------------------------------------------------------------------------------


@pytest.fixture(params=["half made", "node down"])
def broken(
    private_rabbit: RabbitServer, private_broker: AMQPBroker, request: pytest.FixtureRequest
) -> AMQPBroker:
    """A broker whose stream of revoked ids is broken."""
    private_broker.remember("revoked", "old", 60.0)
    await_made(private_rabbit, STREAM, 1.0)
    break_stream(private_rabbit, request.param)
    with pytest.raises(OperationalError, match=r"INTERNAL_ERROR|home node"):
        private_broker.recall("revoked")
    return private_broker


def test_tasks_are_sent_and_run_though_the_stream_is_broken(
    broken: AMQPBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broken.publish([call("1"), call("2")])
    consumer = broken.consumer(["q"], "a", None)
    found = consumer.swap((), 2, 0)
    assert ids(found) == ["1", "2"]
    assert consumer.swap(acked(found), 1, 0) == []
    warned = [record for record in caplog.records if "Revoked tasks may run" in record.message]
    assert [record.levelname for record in warned] == ["WARNING"]
    assert "INTERNAL_ERROR" in warned[0].message or "home node" in warned[0].message
    consumer.close()


def test_a_broken_stream_does_not_keep_the_agent_from_its_work(
    broken: AMQPBroker, caplog: pytest.LogCaptureFixture
) -> None:
    def warned() -> list[logging.LogRecord]:
        assert within(4, lambda: broken.tend(["q"], [])) == []
        return [record for record in caplog.records if "is broken" in record.message]

    [record] = wait_until(warned, 20, interval=0.1)
    assert STREAM in record.getMessage()
    broken.publish([call("1")])
    assert broken.size("q") == 1


def test_the_news_of_a_broken_stream_are_an_error_in_words(broken: AMQPBroker) -> None:
    def ask() -> None:
        with pytest.raises(OperationalError, match=r"INTERNAL_ERROR|home node"):
            broken.news("revoked")

    for _ in range(2):
        within(4, ask)
    broken.remember("other", "key", 60.0)
    assert broken.news("other") == {"key": b""}


# -- news --------------------------------------------------------------------------------------


def test_the_news_are_all_records_that_have_not_expired(broker: AMQPBroker) -> None:
    assert broker.news("topic") == {}
    broker.remember("topic", "a", 60.0, b"1")
    broker.remember("topic", "b", 60.0, b"2")
    broker.remember("other", "c", 60.0)
    wait_until(lambda: broker.news("topic") == {"a": b"1", "b": b"2"})
    broker.remember("topic", "a", 60.0, b"3")
    broker.remember("topic", "b", 0.0)

    def is_heard(seconds: float) -> bool:
        broker.remember("topic", "brief", seconds)
        end = time.time() + seconds
        while time.time() < end:
            if "brief" in broker.news("topic"):
                return True
        return False

    assert is_heard(1.0) or is_heard(8.0)  # that for a machine that takes a second for it
    wait_until(lambda: broker.news("topic") == {"a": b"3"})
    assert broker.recall("topic") == {"a": b"3"}


def test_all_news_of_a_topic_come_by_one_connection_which_close_ends(
    rabbit_server: RabbitServer, broker: AMQPBroker
) -> None:
    broker.remember("topic", "a", 60.0)
    before = connections(rabbit_server)
    for _ in range(20):
        assert broker.news("topic") == {"a": b""}
    assert connections(rabbit_server) <= before + 1
    within(4, lambda: [broker.news("topic") for _ in range(50)])
    broker.close()
    wait_until(lambda: connections(rabbit_server) <= before)
    assert broker.news("topic") == {"a": b""}


def test_news_go_on_after_a_connection_that_was_closed(
    rabbit_server: RabbitServer, broker: AMQPBroker
) -> None:
    broker.remember("topic", "a", 60.0)
    assert set(broker.news("topic")) == {"a"}
    rabbit_server.close_connections()
    broker.remember("topic", "b", 60.0)
    wait_until(lambda: set(broker.news("topic")) == {"a", "b"})


def test_news_are_unavailable_without_a_server_and_come_again_with_it(
    private_rabbit: RabbitServer, private_broker: AMQPBroker
) -> None:
    private_broker.remember("topic", "a", 60.0)
    assert set(private_broker.news("topic")) == {"a"}
    # A stream it has made in the last second it would not have afterwards.
    await_made(private_rabbit, "minicelery.topic", 1.5)
    private_rabbit.kill()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="cannot reach RabbitMQ"):
            private_broker.news("topic")
    private_rabbit.restart()

    def again() -> set[str]:
        try:
            return set(private_broker.news("topic"))
        except OperationalError:  # the stream comes back after the server has
            return set()

    assert wait_until(again, 30) == {"a"}


def test_a_stream_that_is_deleted_is_made_again_and_followed(broker: AMQPBroker, channel: Any) -> None:
    broker.remember("topic", "a", 60.0)
    assert set(broker.news("topic")) == {"a"}
    channel.queue_delete("minicelery.topic")
    wait_until(lambda: broker.news("topic") == {})
    broker.remember("topic", "b", 60.0)
    wait_until(lambda: set(broker.news("topic")) == {"b"})


def test_a_forked_child_hears_its_own_news(broker: AMQPBroker) -> None:
    broker.remember("topic", "a", 60.0)
    assert set(broker.news("topic")) == {"a"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            broker.remember("topic", "b", 60.0)
            wait_until(lambda: set(broker.news("topic")) == {"a", "b"})
            broker.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    wait_until(lambda: set(broker.news("topic")) == {"a", "b"})


# -- revoked ids -------------------------------------------------------------------------------


def revoked(broker: AMQPBroker, consumer: Any, id: str) -> bool:
    """Whether the consumer takes a message of that id to be revoked."""
    broker.publish([call(id)])
    [delivery] = consumer.swap((), 1, 10.0)
    consumer.swap(acked([delivery]), 0, 0)
    return bool(delivery.revoked)


def test_a_child_that_began_before_anything_was_revoked_hears_of_it(broker: AMQPBroker) -> None:
    consumer = broker.consumer(["q"], "a", None)
    assert not revoked(broker, consumer, "1")
    broker.remember("revoked", "1", 60.0)
    wait_until(lambda: revoked(broker, consumer, "1"), 20, interval=0.1)
    assert not revoked(broker, consumer, "2")
    consumer.close()


def test_a_child_hears_of_what_is_revoked_after_the_stream_was_deleted(
    broker: AMQPBroker, channel: Any
) -> None:
    broker.remember("revoked", "1", 60.0)
    consumer = broker.consumer(["q"], "a", None)
    wait_until(lambda: revoked(broker, consumer, "1"))  # it may take the stream to be empty at first
    channel.queue_delete(STREAM)
    broker.remember("revoked", "2", 60.0)
    wait_until(lambda: revoked(broker, consumer, "2"), 20, interval=0.1)
    consumer.close()


def test_more_records_than_the_server_sends_ahead_are_all_read(broker: AMQPBroker, channel: Any) -> None:
    broker.remember("revoked", "first", 60.0)
    expires = time.time() + 60
    for number in range(2500):
        headers = {"key": f"{number}", "expires": f"{expires}"}
        channel.basic_publish("", STREAM, b"", pika.BasicProperties(headers=headers))
    wait_until(lambda: len(broker.recall("revoked")) == 2501, 30)
    assert len(broker.news("revoked")) == 2501
    consumer = broker.consumer(["q"], "a", None)
    wait_until(lambda: revoked(broker, consumer, "2499"))
    assert revoked(broker, consumer, "first")
    consumer.close()


def note(key: str, expires: float, offset: int) -> Content:
    """A record as it comes in."""
    headers = {"key": key, "expires": expires, "x-stream-offset": offset}
    frames = codec.publish_frames(1, "", "", {"headers": headers}, b"", 131072)
    start = 8 + int.from_bytes(frames[3:7], "big")
    content = Content(CHANNEL, codec.DELIVER, b"")
    content.header = frames[start + 7 : -1]
    return content


def test_expired_records_are_forgotten_by_who_follows_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr("minicelery.broker.amqp.notes.time", SimpleNamespace(time=lambda: now))
    topic = Topic("revoked")
    for number in range(900):
        topic.take(note(f"brief {number}", now + 0.5, number))
    now += 1
    assert topic.present() == {}
    for number in range(900, 1100):
        topic.take(note(f"{number}", now + 3600, number))
    assert set(topic.records) == {f"{number}" for number in range(900, 1100)}
