"""What servers that fail do to letters, to who listens, and to consumers that take some along."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
import redis

from minicelery.broker import Broker, open_backend, open_broker
from minicelery.broker.amqp import post as amqp_post
from minicelery.broker.post import Box, Letter, Listening
from minicelery.broker.redis import letterbox
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import Delivery, Outcome, Record, new_id
from tests.conformance.messages import call
from tests.proxy import Proxy
from tests.rabbit import RabbitServer
from tests.servers import RedisServer
from tests.waiting import wait_until, within

EVENTS, REQUESTS, REPLIES = "celeryev", "celery.pidbox", "reply.celery.pidbox"
EVENT = Letter(EVENTS, "task.multi", b"[1]", {"hostname": "w@h"})
REQUEST = Letter(REQUESTS, "", b"{}", {"clock": 1}, True)


def events() -> Box:
    return Box(EVENTS, "topic", f"celeryev.{new_id()}", "#")


def requests(node: str = "w@h") -> Box:
    return Box(REQUESTS, "fanout", f"{node}.{REQUESTS}")


def replies(oid: str) -> Box:
    return Box(REPLIES, "direct", f"{oid}.{REPLIES}", oid)


@contextlib.contextmanager
def opened(url: str, **options: Any) -> Iterator[Broker]:
    broker = open_broker(url, options=options)
    try:
        yield broker
    finally:
        broker.close()


def heard(listening: Listening, seconds: float = 15.0) -> list[bytes]:
    return [letter.body for letter in listening.take(seconds)]


class Served:
    """A server and a way to it that fails when told to."""

    def __init__(self, url: str, far: str, proxy: Proxy) -> None:
        self.url, self.far, self.proxy = url, far, proxy


@pytest.fixture(params=["redis", "amqp"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    if request.param == "redis":
        url, port = request.getfixturevalue("redis_url"), request.getfixturevalue("redis_server").port
    else:
        url, port = request.getfixturevalue("rabbit_url"), request.getfixturevalue("rabbit_server").port
    with Proxy(port) as proxy:
        yield Served(url, url.replace(f":{port}", f":{proxy.port}"), proxy)


@pytest.mark.parametrize("box", [requests(), replies("me")], ids=["request", "reply"])
def test_who_listens_is_told_of_a_lost_connection_and_listens_anew(served: Served, box: Box) -> None:
    letter = Letter(box.exchange, box.routing_key, b"1")
    with opened(served.far) as broker, opened(served.url) as sender:
        with broker.post.listen([box]) as listening:
            sender.post.send([letter])
            assert heard(listening) == [b"1"]
            cutter = threading.Timer(0.05, served.proxy.cut)
            cutter.start()
            with pytest.raises(BrokerUnavailable):
                listening.take(30)
            cutter.join()
            with pytest.raises(BrokerUnavailable):
                listening.take(0)
            listening.wake()

        def anew() -> Listening | None:
            try:
                return broker.post.listen([box])
            except BrokerUnavailable:  # RabbitMQ may not have noticed yet
                return None

        with wait_until(anew) as listening:
            sender.post.send([letter])
            assert heard(listening) == [b"1"]


def test_letters_are_sent_again_after_a_lost_connection(served: Served) -> None:
    with contextlib.ExitStack() as closing:
        broker, listener = (closing.enter_context(opened(url)) for url in (served.far, served.url))
        listening = closing.enter_context(listener.post.listen([events()]))
        broker.post.send([EVENT])
        assert heard(listening) == [b"[1]"]
        served.proxy.cut()
        with contextlib.suppress(OperationalError):
            broker.post.send([EVENT])

        def arrives() -> bool:
            broker.post.send([EVENT])
            return bool(heard(listening, 0.2))

        wait_until(arrives)


def test_sending_and_listening_end_where_no_server_answers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_post, "PATIENCE", 0.3)
    options = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2, "connect_timeout": 0.2}
    with opened(served.far, **options) as broker:
        served.proxy.stall()

        def send() -> None:
            with pytest.raises(BrokerUnavailable, match="cannot reach"):
                broker.post.send([REQUEST])

        def listen() -> None:
            with pytest.raises(BrokerUnavailable, match="cannot reach"):
                broker.post.listen([requests()])

        within(4, send)
        within(4, listen)


@pytest.mark.parametrize(
    ("served", "boxes"),
    [("redis", [requests()]), ("redis", [replies("me")]), ("amqp", [requests(), replies("me")])],
    ids=["redis-request", "redis-reply", "amqp"],
    indirect=["served"],
)
def test_a_silent_server_is_noticed_by_who_listens(
    served: Served, boxes: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letterbox, "PATIENCE", 0.2)
    options = {"socket_timeout": 2.0, "heartbeat": 2}
    with opened(served.far, **options) as broker, broker.post.listen(boxes) as listening:
        assert listening.take(0) == []
        served.proxy.stall()
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            listening.take(30)
        assert time.monotonic() - began < 25


@pytest.mark.parametrize("boxes", [[requests()], [replies("me")]], ids=["request", "reply"])
def test_an_idle_listener_stays_connected(
    redis_url: str, boxes: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letterbox, "PATIENCE", 0.05)
    with opened(redis_url) as broker, broker.post.listen(boxes) as listening:
        assert listening.take(0.3) == []
        broker.post.send([Letter(boxes[0].exchange, boxes[0].routing_key, b"{}")])
        assert heard(listening) == [b"{}"]


def test_an_idle_listener_sends_heartbeats(rabbit_url: str) -> None:
    with opened(rabbit_url, heartbeat=3) as broker, broker.post.listen([requests()]) as listening:
        link = listening.connections()[0]  # type: ignore[attr-defined]
        sent = link._sent_at
        assert listening.take(2.0) == []
        assert link._sent_at > sent
        broker.post.send([REQUEST])
        assert heard(listening) == [b"{}"]


def test_a_letter_that_is_cut_is_not_heard(served: Served) -> None:
    with opened(served.far) as broker, opened(served.url) as sender:
        with broker.post.listen([events()]) as listening:
            served.proxy.cut_reply_after(100_000)
            sender.post.send([EVENT, Letter(EVENTS, "task.multi", b'"' + b"x" * 300_000 + b'"')])
            found: list[bytes] = []
            with pytest.raises(BrokerUnavailable):
                while True:
                    found += heard(listening)
        assert found == [b"[1]"]


def test_who_has_not_taken_anything_for_long_is_not_told_of_a_lost_server(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letterbox, "PATIENCE", 0.05)
    with opened(redis_url, socket_timeout=2.0) as broker, broker.post.listen([requests()]) as listening:
        for turn in range(2):
            listening._sources[0]._heard_at -= 60  # type: ignore[attr-defined]  # a minute has passed
            assert listening.take(0.2) == [], turn
            broker.post.send([REQUEST])
            assert heard(listening) == [b"{}"]


def test_a_failed_swap_loses_no_outcome_and_doubles_none(served: Served) -> None:
    with opened(served.far) as broker, opened(served.url) as sender:
        results = open_backend(served.url if served.url.startswith("redis") else f"memory://{new_id()}")
        consumer = broker.consumer(["q"], new_id(), results)
        sender.publish([call("a")])
        (delivery,) = consumer.swap([], 1, 5)
        consumer.post([EVENT])
        served.proxy.cut()
        record = Record("a", b'{"status": "SUCCESS"}', "SUCCESS")
        done = [Outcome(delivery, record=record, publish=[call("b", queue="next")])]
        with pytest.raises(BrokerUnavailable):
            consumer.swap(done, 0, 0)
        if consumer.adopts:
            consumer.swap(done, 0, 0)
        else:
            (again,) = consumer.swap([], 1, 5)
            consumer.swap([Outcome(again, record=record, publish=[call("b", queue="next")])], 0, 0)
        wait_until(lambda: (sender.size("q"), sender.size("next")) == (0, 1))
        consumer.close()
        results.close()


def test_a_forked_child_ends_nothing_of_its_parents(served: Served) -> None:
    with opened(served.url) as broker, broker.post.listen([events()]) as listening:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                broker.post.send([EVENT])
                broker.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        while not (found := heard(listening)):
            pass  # woken by the child's close
        assert found == [b"[1]"]
        broker.post.send([EVENT])
        assert heard(listening) == [b"[1]"]


# -- Redis -----------------------------------------------------------------------------------------


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = redis.Redis(port=redis_server.port)
    yield client
    client.close()


def test_scripts_that_the_server_has_forgotten_are_sent_again(redis_url: str, client: redis.Redis) -> None:
    with opened(redis_url) as broker, broker.post.listen([events()]) as listening:
        consumer = broker.consumer(["q"], new_id(), None)
        broker.publish([call("a")])
        (delivery,) = consumer.swap([], 1, 5)
        consumer.post([EVENT])
        client.script_flush()
        consumer.swap([Outcome(delivery)], 1, 0.05)  # also begins to wait for the bell
        assert heard(listening) == [b"[1]"]
        consumer.post([EVENT])
        client.script_flush()
        consumer.swap([], 1, 0.05)
        assert heard(listening) == [b"[1]"]
        client.script_flush()
        broker.post.send([EVENT])
        assert heard(listening) == [b"[1]"]
        assert client.dbsize() <= 3  # leases and what is served: no message is left
        consumer.close()


def test_letters_cost_a_consumer_no_further_trip(redis_url: str, redis_server: RedisServer) -> None:
    """Counted by reads: each trip ends in one, and the answers of one send come in one."""
    with opened(redis_url) as broker:
        consumer = broker.consumer(["q"], new_id(), None)
        broker.publish([call(f"{n}") for n in range(40)])
        deliveries = consumer.swap([], 40, 5)
        trips = {}
        for posting in (False, True):
            consumer.swap([], 0, 0)  # warm
            consumer.post([EVENT])
            consumer.swap([], 0, 0)
            before = events_processed(redis_server)
            for _ in range(20):
                if posting:
                    consumer.post([EVENT, EVENT, EVENT])
                consumer.swap([Outcome(deliveries.pop())], 0, 0)
            trips[posting] = events_processed(redis_server) - before
        consumer.close()
    assert trips[True] <= trips[False] + 3


def events_processed(server: RedisServer) -> int:
    """How often the server has read from some connection."""
    info = server.command("INFO", "stats").decode()
    return int(info.split("total_reads_processed:")[1].split()[0])


def test_letters_leave_while_memory_is_full(private_redis: RedisServer) -> None:
    with opened(private_redis.url()) as broker, broker.post.listen([events()]) as listening:
        consumer = broker.consumer(["q"], new_id(), None)
        broker.publish([call("a")])
        (delivery,) = consumer.swap([], 1, 5)
        private_redis.command("CONFIG", "SET", "maxmemory", "1")
        consumer.post([EVENT])
        consumer.swap([Outcome(delivery)], 0, 0)
        assert heard(listening) == [b"[1]"]
        broker.post.send([EVENT])
        assert heard(listening) == [b"[1]"]
        private_redis.command("CONFIG", "SET", "maxmemory", "0")
        consumer.close()


def test_who_does_not_take_is_dropped_by_the_server_and_nobody_else_waits(
    private_redis: RedisServer,
) -> None:
    private_redis.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 100kb 0 0")
    big = Letter(EVENTS, "task.multi", b'"' + b"x" * 1_000_000 + b'"')
    with opened(private_redis.url()) as broker, broker.post.listen([events()]) as slow:
        consumer = broker.consumer(["q"], new_id(), None)
        sent = 0
        while broker.post.send([EVENT]):  # somebody listens still
            consumer.post([big])
            consumer.swap([], 0, 0)
            sent += 1
            assert sent < 50
        consumer.close()
        with pytest.raises(BrokerUnavailable):
            while True:
                sent -= heard(slow).count(big.body)
        assert sent > 0
        with broker.post.listen([events()]) as listening:
            broker.post.send([EVENT])
            assert heard(listening) == [b"[1]"]


def test_an_asker_leaves_nothing_behind_and_gone_askers_get_nothing(
    redis_url: str, client: redis.Redis
) -> None:
    with opened(redis_url) as broker:
        listening = broker.post.listen([replies("one")])
        broker.post.send([Letter(REPLIES, "one", b"1"), Letter(REPLIES, "gone", b"2")])
        bound, asked = f"_kombu.binding.{REPLIES}".encode(), f"minicelery.asked.{REPLIES}".encode()
        assert sorted(client.keys("*reply*")) == [bound, asked]
        assert client.zscore("_kombu.binding_deadlines", REPLIES) > time.time() * 1000 + 3_000_000
        assert heard(listening) == [b"1"]
        listening.close()
        broker.post.send([Letter(REPLIES, "one", b"4")])
        assert client.keys("*reply*") == []


def test_who_was_killed_while_it_asked_is_forgotten_after_a_day(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, asked = f"_kombu.binding.{REPLIES}", f"minicelery.asked.{REPLIES}"
    with opened(redis_url) as broker:
        killed = broker.post.listen([replies("killed")])
        killed._replies.clear()  # type: ignore[attr-defined]  # it cleans up no more
        killed.close()
        broker.post.listen([replies("other")]).close()
        assert client.scard(bound) == client.zcard(asked) == 1
        monkeypatch.setattr(letterbox, "LONGEST_ASKING", 0.0)
        with broker.post.listen([replies("me")]):
            assert client.scard(bound) == client.zcard(asked) == 1
    assert client.keys("*reply*") == []


def test_replies_to_one_who_has_died_go_after_a_while(redis_url: str, client: redis.Redis) -> None:
    client.sadd(f"_kombu.binding.{REPLIES}", "\x06\x16".join(("one", "", f"one.{REPLIES}")))
    client.sadd(f"_kombu.binding.{REPLIES}", "\x06\x16".join(("two", "", "a queue of another name")))
    with opened(redis_url) as broker:
        broker.post.send([Letter(REPLIES, "one", b"1"), Letter(REPLIES, "two", b"2")])
    assert 290 < client.ttl(f"one.{REPLIES}") <= 300
    assert client.llen("a queue of another name") == 1


def test_one_letter_that_is_refused_keeps_no_other_back(redis_url: str, client: redis.Redis) -> None:
    client.hset("not-a-list", "a", 1)
    with opened(redis_url) as broker, broker.post.listen([events()]) as listening:
        with pytest.raises(OperationalError, match="WRONGTYPE"):
            broker.post.send([Letter("", "not-a-list", b"1"), EVENT])
        assert heard(listening) == [b"[1]"]


def test_what_others_publish_is_read_or_left_out(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(redis_url) as broker, broker.post.listen([events(), requests(), replies("me")]) as listening:
        for raw in (b"", b"\xff\xfe", b"{}", b"[" * 50_000, b"1" * 1_000_000):
            client.publish("/0.celery.pidbox", raw)
            client.publish("/0.celeryev/task.multi", raw)
            client.lpush(f"me.{REPLIES}", raw)
        broker.post.send([Letter(REPLIES, "me", b'"end"')])
        broker.post.send([Letter(EVENTS, "worker.online", b'"end"')])
        found: list[bytes] = []
        while len(found) < 2:
            found += heard(listening)
    assert found == [b'"end"'] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# -- RabbitMQ --------------------------------------------------------------------------------------


@pytest.fixture
def channel(rabbit_url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(rabbit_url))
    yield connection.channel()
    connection.close()


def test_a_name_that_is_taken_is_refused_in_words(rabbit_url: str) -> None:
    with opened(rabbit_url) as one, opened(rabbit_url) as other:
        with one.post.listen([requests("w@h")]), pytest.raises(BrokerUnavailable) as caught:
            other.post.listen([requests("w@h")])
        assert "'w@h.celery.pidbox'" in str(caught.value) and "--hostname" in str(caught.value)

        def anew() -> Listening | None:
            try:
                return other.post.listen([requests("w@h")])
            except BrokerUnavailable:  # the server may not have noticed yet that it is free
                return None

        with wait_until(anew) as listening:
            one.post.send([REQUEST])
            assert heard(listening) == [b"{}"]


def test_an_exchange_that_has_gone_is_made_again(rabbit_url: str, channel: Any) -> None:
    with opened(rabbit_url) as broker:
        broker.post.send([EVENT])
        channel.exchange_delete(EVENTS)
        broker.post.send([EVENT])  # lost
        with broker.post.listen([events()]) as listening:

            def arrives() -> bool:
                broker.post.send([EVENT])
                return bool(heard(listening, 0.1))

            wait_until(arrives)
        broker.publish([call("a")])
        assert broker.size("q") == 1


def test_who_listens_is_told_that_its_queue_is_gone(rabbit_url: str, rabbit_server: RabbitServer) -> None:
    with opened(rabbit_url) as broker, broker.post.listen([requests()]) as listening:
        rabbit_server.close_connections()
        with pytest.raises(BrokerUnavailable):
            listening.take(10)


def test_a_server_that_takes_long_to_reach_is_given_more_time(
    rabbit_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_post, "BRIEF", 0.0001)  # in which no connection is made
    monkeypatch.setattr(amqp_post.AMQPOutbox, "SHARE", 0)
    with opened(rabbit_url) as broker, broker.post.listen([events()]) as listening:
        consumer = broker.consumer(["q"], new_id(), None)

        def arrives() -> bool:
            consumer.post([EVENT])
            consumer.swap([], 0, 0)
            return bool(heard(listening, 0.01))

        assert not arrives()
        wait_until(arrives)
        assert consumer.letters_dropped > 0
        consumer.close()


def test_a_server_short_of_memory_delays_no_swap(rabbit_url: str, rabbit_server: RabbitServer) -> None:
    with opened(rabbit_url) as broker:
        consumer = broker.consumer(["q"], new_id(), None)
        broker.publish([call(f"{number}") for number in range(5)])
        deliveries: list[Delivery] = []
        while len(deliveries) < 5:
            deliveries += consumer.swap([], 5 - len(deliveries), 5)
        consumer.post([EVENT])
        consumer.swap([], 0, 0)
        rabbit_server.raise_memory_alarm()
        try:
            took = []
            for delivery in deliveries:
                began = time.monotonic()
                consumer.post([EVENT] * 5)
                consumer.swap([Outcome(delivery)], 0, 0)
                took.append(time.monotonic() - began)
            assert sorted(took)[2] < 0.4, took  # most of them
            with pytest.raises(BrokerUnavailable, match="takes no messages"):
                for _ in range(500):
                    broker.post.send([EVENT])
                    time.sleep(0.01)
        finally:
            rabbit_server.clear_memory_alarm()
        wait_until(lambda: broker.size("q") == 0)
        with broker.post.listen([events()]) as listening:

            def arrives() -> bool:
                consumer.post([EVENT])
                consumer.swap([], 0, 0)
                return bool(heard(listening, 0.1))

            wait_until(arrives)
        consumer.close()


def test_what_others_publish_in_rabbitmq_is_read_or_left_out(
    rabbit_url: str, channel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(rabbit_url) as broker, broker.post.listen([events(), requests()]) as listening:
        good = pika.BasicProperties(content_type="application/json")
        for body, properties in (
            (b"{}", pika.BasicProperties()),
            (b"{}", pika.BasicProperties(content_type="application/x-python-serialize")),
            (b"\xff", good),
            (b"[" * 50_000, good),
            (b"", good),
        ):
            channel.basic_publish(REQUESTS, "", body, properties)
        channel.basic_publish(REQUESTS, "", b'"end"', good)
        assert heard(listening) == [b'"end"']
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
