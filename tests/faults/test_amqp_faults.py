"""What a RabbitMQ that fails or refuses does to those who send and consume."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest

from minicelery import Celery
from minicelery.broker import Backend
from minicelery.broker.amqp import AMQPBroker
from minicelery.broker.amqp.consumer import AMQPConsumer
from minicelery.broker.topology import BindingSpec, ExchangeSpec, QueueSpec, plain_queue
from minicelery.broker.url import parse_urls
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.message import Outcome, Verdict
from tests.conformance.messages import acked, call, drain, ids
from tests.proxy import Proxy
from tests.rabbit import RabbitServer
from tests.servers import free_port
from tests.waiting import wait_until, within
from tests.worker.conftest import staged
from tests.worker.harness import Stage

DEADLINE = 5.0
SECRET = "not-the-secret"


@pytest.fixture
def broker(rabbit_url: str) -> Iterator[AMQPBroker]:
    yield from opened(rabbit_url)


@pytest.fixture
def channel(rabbit_url: str) -> Iterator[Any]:
    """A channel of a client that is not ours."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit_url))
    channel = connection.channel()
    channel.confirm_delivery()  # what it has published is there
    yield channel
    with contextlib.suppress(pika.exceptions.AMQPError):  # a test may have closed it
        connection.close()


@pytest.fixture
def proxy(rabbit_server: RabbitServer) -> Iterator[Proxy]:
    with Proxy(rabbit_server.port) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, rabbit_url: str) -> Iterator[AMQPBroker]:
    """A broker that reaches the server through the proxy."""
    yield from opened(at_port(rabbit_url, proxy.port))


@pytest.fixture
def alarmed(private_rabbit: RabbitServer) -> Iterator[AMQPBroker]:
    """A broker on a server whose memory alarm a test may raise."""
    yield from opened(private_rabbit.url())


class ClosingBroker(AMQPBroker):
    """Closes its consumers with itself: a failing test leaves no socket behind."""

    def consumer(self, queues: Sequence[str], name: str, backend: Backend | None) -> AMQPConsumer:
        made = super().consumer(queues, name, backend)
        self.__dict__.setdefault("made", []).append(made)
        return made

    def close(self) -> None:
        for consumer in self.__dict__.get("made", ()):
            consumer.close()
        super().close()


def opened(url: str, **options: Any) -> Iterator[AMQPBroker]:
    broker = ClosingBroker(parse_urls(url), {"delay_queue_type": "classic", **options})
    try:
        yield broker
    finally:
        broker.close()


def short_of_memory(server: RabbitServer, broker: AMQPBroker) -> None:
    """Raise the alarm, and wait until publishers feel it."""
    server.raise_memory_alarm()

    def refused() -> bool:
        try:
            broker.publish([call("filler", queue="filler")], deadline=0.2)
        except BrokerUnavailable as error:
            return "takes no messages at present" in str(error)
        return False

    wait_until(refused, 30)


def at_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()


def specs(*queues: QueueSpec) -> Any:
    known = {queue.name: queue for queue in queues}
    return lambda name: known.get(name) or plain_queue(name)


def failure(url: str, deadline: float | None = None, *, seconds: float = DEADLINE + 2, **options: Any) -> str:
    """The text of the error that a publish to `url` ends with, within `seconds`; without `deadline` at once."""

    def publish() -> str:
        with (
            contextlib.closing(next(opened(url, **options))) as broker,
            pytest.raises(OperationalError) as caught,
        ):
            broker.publish([call("m")], deadline=deadline, attempts=1 if deadline is None else None)
        return str(caught.value)

    return within(seconds if deadline is None else deadline + 2, publish)


class Listener:
    """A port that answers every connection with `answer`, and says nothing more."""

    def __init__(self, answer: bytes = b"", end: bool = False) -> None:
        self._answer, self._end = answer, end
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.port: int = self._socket.getsockname()[1]
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._stopped = False

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join(5)
        for each in [self._socket, *self.connections]:
            each.close()

    def _serve(self) -> None:
        while not self._stopped:
            with contextlib.suppress(OSError):  # nobody came, or did not wait for the answer
                connection, _ = self._socket.accept()
                self.connections.append(connection)
                connection.sendall(self._answer)
                if self._end:
                    connection.shutdown(socket.SHUT_WR)


# -- nobody there, or somebody else ------------------------------------------------------------


def test_a_port_where_nobody_listens_is_reported_with_a_hint() -> None:
    port = free_port()
    text = failure(f"amqp://me:{SECRET}@127.0.0.1:{port}//")
    assert f"amqp://me:**@127.0.0.1:{port}" in text
    assert "connection refused" in text and "broker_url" in text
    assert SECRET not in text


def test_a_host_that_does_not_exist_is_reported() -> None:
    text = failure(f"amqp://me:{SECRET}@no-such-host.invalid//")
    assert "no-such-host.invalid" in text and "broker_url" in text
    assert SECRET not in text


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_port_that_says_nothing_is_reported_within_the_deadline(scheme: str) -> None:
    with Listener() as silent:
        text = failure(f"{scheme}://127.0.0.1:{silent.port}//", deadline=1.0)
    assert "no answer in time" in text and f"127.0.0.1:{silent.port}" in text


def test_connecting_takes_no_longer_than_the_connect_timeout() -> None:
    with (
        Listener() as silent,
        contextlib.closing(next(opened(f"amqp://127.0.0.1:{silent.port}", connect_timeout=0.3))) as broker,
    ):

        def publish() -> None:
            with pytest.raises(BrokerUnavailable, match="no answer in time"):
                broker.publish([call("m")], attempts=1)

        def consume() -> None:
            with pytest.raises(BrokerUnavailable, match="no answer in time"):
                broker.consumer(["q"], "a", None).swap((), 1, 5)

        within(2, publish)
        within(2, consume)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "does not speak AMQP 0-9-1"),
        (b"220 mail.example.com ESMTP\r\n", "does not speak AMQP 0-9-1"),
        (b"AMQP\x00\x01\x00\x00", "does not speak AMQP 0-9-1"),
        (b"\x15\x03\x03\x00\x02\x02\x0a", "amqps://"),
        (b"\x01\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff\xce", "can't be read"),
        (b"\x01\x00\x00\x00\x00\x00\x06\x00\x0a\x00\x0a\x00\x09\xce", "can't be read"),
        (b"\x01\x00\x00\x00\x00\x00\x01\x00\xce", "can't be read"),
        (b"\x02\x00\x00\x00\x00\x00\x01\x00\xce", "without its method"),
        (b"\x01\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff\x00", "not AMQP"),
        (b"", "closed the connection"),
    ],
    ids="http smtp other-version tls unknown-method short-method tiny-method no-method bad-end nothing".split(),
)  # fmt: skip
def test_a_port_that_speaks_something_else_is_reported(answer: bytes, words: str) -> None:
    with Listener(answer, end=True) as other:
        text = failure(f"amqp://me:{SECRET}@127.0.0.1:{other.port}//")
    assert words in text and f"127.0.0.1:{other.port}" in text
    assert SECRET not in text


def test_a_port_that_promises_an_endless_frame_is_given_up_in_time() -> None:
    with Listener(b"\x01\x00\x00\x7f\xff\xff\xff" + b"x" * 1000) as endless:
        assert "no answer in time" in failure(f"amqp://127.0.0.1:{endless.port}//", deadline=0.5)


# -- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("login", ["PLAIN", "AMQPLAIN"])
def test_a_wrong_password_is_reported_at_once_without_quoting_it(
    rabbit_server: RabbitServer, login: str
) -> None:
    # The server itself waits a second.
    text = failure(rabbit_server.url(password=SECRET), login_method=login, seconds=3)
    assert "user:password" in text and f"127.0.0.1:{rabbit_server.port}" in text
    assert SECRET not in text


def test_a_login_method_that_the_server_does_not_offer_is_reported(rabbit_url: str) -> None:
    assert "EXTERNAL" in failure(rabbit_url, login_method="EXTERNAL")


def test_an_unknown_virtual_host_is_reported_at_once(rabbit_server: RabbitServer) -> None:
    text = failure(rabbit_server.url("nowhere"), seconds=4)
    assert "'nowhere'" in text and "add_vhost" in text


def test_a_user_who_may_not_use_the_virtual_host_is_reported(rabbit_server: RabbitServer) -> None:
    rabbit_server.add_user("stranger", SECRET)
    text = failure(rabbit_server.url("/", "stranger", SECRET))
    assert "may not use it" in text
    assert SECRET not in text


def test_a_user_who_may_not_declare_is_reported(rabbit_server: RabbitServer, rabbit_url: str) -> None:
    vhost = urlsplit(rabbit_url).path[1:]
    rabbit_server.add_user("reader", SECRET)
    rabbit_server.ctl("set_permissions", "-p", vhost, "reader", "^$", "^$", ".*")
    url = rabbit_server.url(vhost, "reader", SECRET)
    text = failure(url)
    assert "grant the user permissions" in text
    with contextlib.closing(next(opened(url))) as broker:
        consumer = broker.consumer(["q"], "a", None)
        with pytest.raises(OperationalError, match="grant the user permissions"):
            consumer.swap((), 1, 0)
        consumer.close()


def test_a_client_without_tls_is_told_so_by_a_tls_port(rabbit_server: RabbitServer) -> None:
    text = failure(at_port(rabbit_server.url(), rabbit_server.tls_port))
    assert "amqps://" in text and str(rabbit_server.tls_port) in text


def test_a_client_with_tls_is_told_so_by_a_plain_port(rabbit_server: RabbitServer) -> None:
    text = failure(rabbit_server.url().replace("amqp:", "amqps:"))
    assert "check that the port speaks TLS" in text


# -- declared otherwise ------------------------------------------------------------------------


def test_a_queue_that_exists_with_other_arguments_is_reported(broker: AMQPBroker, channel: Any) -> None:
    channel.queue_declare("q", durable=True, arguments={"x-max-priority": 5})
    channel.basic_publish("", "q", b"[]")
    with pytest.raises(OperationalError, match=r"other arguments.*'x-max-priority'.*task_queue_max_priority"):
        broker.publish([call("m")])
    consumer = broker.consumer(["q"], "a", None)
    for _ in range(2):
        with pytest.raises(OperationalError, match=r"other arguments.*'x-max-priority'"):
            consumer.swap((), 1, 0)
    channel.queue_delete("q")
    broker.publish([call("m")])
    assert ids(consumer.swap((), 1, 0)) == ["m"]
    consumer.close()


def test_an_exchange_that_exists_with_another_type_is_reported(broker: AMQPBroker, channel: Any) -> None:
    channel.exchange_declare("q", "fanout", durable=True)
    with pytest.raises(OperationalError, match=r"exchange with other arguments.*inequivalent arg 'type'"):
        broker.publish([call("m")])
    broker.publish([call("n", queue="other")])
    assert broker.size("other") == 1


def test_a_name_that_amqp_has_no_room_for_is_reported_at_once(broker: AMQPBroker) -> None:
    def publish() -> None:
        with pytest.raises((OperationalError, ValueError), match=r"ShortStringTooLong|255") as caught:
            broker.publish([call("m", queue="q" * 256)])
        assert not isinstance(caught.value, BrokerUnavailable)

    def consume() -> None:
        with pytest.raises(OperationalError, match="can't carry"):
            broker.consumer(["q" * 256], "a", None).swap((), 1, 0)

    within(4, publish)
    within(4, consume)
    broker.publish([call("m")])


def test_an_argument_that_amqp_cannot_carry_is_reported_at_once(rabbit_url: str) -> None:
    queue = replace(plain_queue("q"), arguments={"x-odd": object()})
    assert "can't carry" in failure(rabbit_url, spec_of=specs(queue), seconds=4)


def test_a_message_that_amqp_cannot_carry_leaves_the_connection_in_use(broker: AMQPBroker) -> None:
    broker.publish([call("1")])
    link = broker.pool._idle[0].link
    bad = call("bad")
    bad.headers["odd"] = object()
    with pytest.raises(ValueError, match="no value of an AMQP header"):
        broker.publish([call("2"), bad])
    broker.publish([call("3")])
    assert broker.pool._idle[0].link is link
    assert broker.size("q") == 2


def exchange_options(queue: QueueSpec) -> dict[str, Any]:
    """The options of an app whose only queue that it was told of is `queue`."""
    exchange = queue.bindings[0].exchange
    return {
        "spec_of": specs(queue),
        "exchange_of": lambda name: exchange if name == exchange.name else None,
        "bound_to": lambda name: [queue] if name == exchange.name else [],
    }


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_a_message_that_no_queue_takes_is_reported(rabbit_url: str, kind: str) -> None:
    queue = QueueSpec("q", (BindingSpec(ExchangeSpec("ours", kind), "key"),))
    with contextlib.closing(next(opened(rabbit_url, **exchange_options(queue)))) as broker:
        message = replace(call("m"), exchange="ours", routing_key="other")
        for _ in range(2):
            with pytest.raises(
                OperationalError, match=r"no queue takes exchange 'ours' with routing key 'other'"
            ):
                broker.publish([message])
        broker.publish([replace(message, routing_key="key")])
        assert broker.size("q") == 1


def test_a_message_to_an_exchange_that_does_not_exist_is_reported(broker: AMQPBroker) -> None:
    for _ in range(2):
        with pytest.raises(OperationalError, match="no exchange 'nowhere'"):
            broker.publish([replace(call("m"), exchange="nowhere", routing_key="key")])
    broker.publish([call("n")])
    assert broker.size("q") == 1


# -- large messages, full queues ---------------------------------------------------------------


def test_a_message_larger_than_a_frame_arrives_whole(broker: AMQPBroker) -> None:
    body = bytes(range(256)) * 20_000
    broker.publish([call("m", body=body), call("n", body=b"")])
    consumer = broker.consumer(["q"], "a", None)
    [first, second] = consumer.swap((), 2, 0)
    assert (first.message.body, second.message.body) == (body, b"")
    consumer.close()


def test_frames_as_small_as_the_server_asks_for_carry_all(private_rabbit: RabbitServer) -> None:
    private_rabbit.eval("application:set_env(rabbit, frame_max, 4096)")
    body = bytes(range(256)) * 2000
    with contextlib.closing(next(opened(private_rabbit.url()))) as broker:
        broker.publish([call("m", body=body)])
        consumer = broker.consumer(["q"], "a", None)
        [delivery] = consumer.swap((), 1, 0)
        assert delivery.message.body == body
        large = call("large")
        large.headers["large"] = "x" * 5000
        with pytest.raises(ValueError, match="a frame has room for 4074"):
            broker.publish([large])
        consumer.close()


def test_a_message_larger_than_the_server_takes_is_reported_and_the_next_one_sent(
    private_rabbit: RabbitServer,
) -> None:
    private_rabbit.eval("application:set_env(rabbit, max_message_size, 1000000)")
    private_rabbit.eval("persistent_term:put(max_message_size, 1000000)")
    with contextlib.closing(next(opened(private_rabbit.url()))) as broker:

        def publish() -> None:
            with pytest.raises(
                OperationalError, match=r"message size .* is larger than .*1000000.*reference"
            ):
                broker.publish([call("m", body=b"x" * 3_000_000)])

        for _ in range(2):
            within(4, publish)
        broker.publish([call("n")])
        assert broker.size("q") == 1


def test_a_full_queue_is_reported_and_used_again_when_there_is_room(rabbit_url: str) -> None:
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
    queue = replace(plain_queue("q"), arguments=arguments)
    with contextlib.closing(next(opened(rabbit_url, spec_of=specs(queue)))) as broker:
        broker.publish([call("1"), call("2")])

        def publish() -> None:
            with pytest.raises(OperationalError, match="queue 'q' is full") as caught:
                broker.publish([call("3")])
            assert "127.0.0.1" in str(caught.value)

        within(4, publish)
        assert broker.purge("q") == 2
        broker.publish([call("4")])
        assert broker.size("q") == 1


# -- alarms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 20_000_000], ids=["small", "large"])
def test_a_server_short_of_memory_is_reported_as_such_and_used_again_after(
    private_rabbit: RabbitServer, alarmed: AMQPBroker, size: int
) -> None:
    alarmed.publish([call("before")])
    short_of_memory(private_rabbit, alarmed)

    def publish() -> None:
        with pytest.raises(BrokerUnavailable, match=r"takes no messages at present: low on memory") as caught:
            alarmed.publish([call("during", body=b"x" * size)], deadline=1.0)
        assert f"127.0.0.1:{private_rabbit.port}" in str(caught.value)

    for _ in range(2):
        within(4, publish)
    private_rabbit.clear_memory_alarm()
    alarmed.publish([call("after")])
    consumer = alarmed.consumer(["q"], "a", None)
    found = drain(consumer)
    assert {"before", "after"} <= set(found)
    consumer.close()


def test_a_publish_that_waits_for_memory_goes_on_when_there_is_some(
    private_rabbit: RabbitServer, alarmed: AMQPBroker
) -> None:
    alarmed.publish([call("before")])
    short_of_memory(private_rabbit, alarmed)
    timer = threading.Timer(0.7, private_rabbit.clear_memory_alarm)
    began = time.monotonic()
    timer.start()
    alarmed.publish([call("during")], deadline=30.0)
    assert time.monotonic() - began > 0.6
    timer.join()
    assert alarmed.size("q") == 2


def test_a_consumer_goes_on_while_the_server_is_short_of_memory(
    private_rabbit: RabbitServer, alarmed: AMQPBroker
) -> None:
    alarmed.publish([call(f"{number}") for number in range(20)])
    consumer = alarmed.consumer(["q"], "a", None)
    first = consumer.swap((), 4, 0)
    short_of_memory(private_rabbit, alarmed)
    found = ids(first)
    while len(found) < 20:
        fresh = consumer.swap(acked(first), 4, 10.0)
        assert fresh
        found += ids(fresh)
        first = fresh
    consumer.swap(acked(first), 0, 0)
    assert found == [f"{number}" for number in range(20)]
    private_rabbit.clear_memory_alarm()
    consumer.close()
    assert alarmed.size("q") == 0


@pytest.mark.parametrize("revoked", [False, True], ids=["nothing revoked", "something revoked"])
def test_a_consumer_that_begins_while_the_server_is_short_of_memory_gets_its_messages(
    private_rabbit: RabbitServer, alarmed: AMQPBroker, revoked: bool
) -> None:
    alarmed.publish([call("1"), call("2")])
    if revoked:
        alarmed.remember("revoked", "2", 60.0)
    short_of_memory(private_rabbit, alarmed)
    consumer = alarmed.consumer(["q"], "a", None)
    found = consumer.swap((), 2, 2.0)
    assert [(delivery.message.id, delivery.revoked) for delivery in found] == [("1", False), ("2", revoked)]
    consumer.swap(acked(found), 0, 0)
    consumer.close()
    private_rabbit.clear_memory_alarm()
    assert alarmed.size("q") == 0


# -- connections that are lost -----------------------------------------------------------------


@pytest.mark.parametrize("passed", [0, 1, 7, 8, 20, 21, 22, 30, 40])
def test_a_publish_whose_confirm_is_cut_arrives_at_least_once(
    through: AMQPBroker, proxy: Proxy, channel: Any, passed: int
) -> None:
    through.publish([call("first")])
    proxy.cut_reply_after(passed)
    through.publish([call(f"{number}") for number in range(3)])  # within its own deadline
    proxy.flow()
    found = drain_foreign(channel, "q")
    assert set(found) == {"first", "0", "1", "2"}
    assert max(Counter(found).values()) <= 2


def drain_foreign(channel: Any, queue: str) -> list[str]:
    found = []
    while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
        found.append(message[1].headers["id"])
    return found


def test_a_publish_whose_confirms_are_lost_is_reported_within_its_deadline(
    through: AMQPBroker, proxy: Proxy, channel: Any
) -> None:
    def publish() -> None:
        proxy.flow()
        through.publish([call("first")])
        proxy.lose_replies()
        with pytest.raises(BrokerUnavailable, match="not confirmed"):
            through.publish([call("m")], deadline=0.7)

    within(4, publish)
    proxy.flow()
    through.publish([call("n")])
    assert set(drain_foreign(channel, "q")) == {"first", "m", "n"}


def test_a_publish_to_a_server_that_stalls_is_reported_within_its_deadline(
    through: AMQPBroker, proxy: Proxy
) -> None:
    through.publish([call("first")])
    proxy.stall()

    def publish(body: bytes) -> None:
        with pytest.raises(BrokerUnavailable):
            through.publish([call("m", body=body)], deadline=0.7)

    within(4, lambda: publish(b"[]"))
    within(4, lambda: publish(b"x" * 20_000_000))
    proxy.flow()
    through.publish([call("n")])


def test_a_batch_during_which_connections_are_cut_arrives_whole(
    through: AMQPBroker, proxy: Proxy, channel: Any
) -> None:
    stop = threading.Event()

    def cut() -> None:
        pause = 0.1
        while not stop.wait(pause):
            proxy.cut()
            pause *= 1.3  # in the end there is time to connect and to publish, on any machine

    through.publish([call("first")])
    cutter = threading.Thread(target=cut, daemon=True)
    cutter.start()
    names = [f"{number}" for number in range(300)]
    try:
        for at in range(0, 300, 10):
            through.publish([call(name) for name in names[at : at + 10]], deadline=20.0)
            time.sleep(0.01)
    finally:
        stop.set()
        cutter.join(5)
    assert set(drain_foreign(channel, "q")) == {"first", *names}


@pytest.mark.parametrize("attempts", [None, 1])
def test_a_link_that_was_closed_while_idle_is_replaced_without_a_failed_attempt(
    rabbit_server: RabbitServer, broker: AMQPBroker, attempts: int | None
) -> None:
    for number in range(3):
        broker.publish([call(f"{number}")], attempts=attempts)
        rabbit_server.close_connections()
    broker.publish([call("3")], attempts=attempts)
    assert broker.size("q") == 4


def test_many_idle_links_closed_at_once_cost_no_message(rabbit_server: RabbitServer, rabbit_url: str) -> None:
    with contextlib.closing(next(opened(rabbit_url, pool_limit=4))) as broker:
        for round in range(3):
            threads = [
                threading.Thread(target=broker.publish, args=([call(f"{round} {number}")],))
                for number in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            rabbit_server.close_connections()
        consumer = broker.consumer(["q"], "a", None)
        assert len(drain(consumer)) == 24
        consumer.close()


def test_a_queue_deleted_between_two_publishes_is_made_again(broker: AMQPBroker, channel: Any) -> None:
    broker.publish([call("1")])
    channel.queue_delete("q")
    broker.publish([call("2"), call("other", queue="other"), call("3")])
    assert drain_foreign(channel, "q") == ["2", "3"]
    assert broker.size("other") == 1


def test_a_queue_deleted_a_second_time_is_made_again_too(broker: AMQPBroker, channel: Any) -> None:
    for name in ("1", "2", "3"):
        broker.publish([call(name)])
        assert drain_foreign(channel, "q") == [name]
        channel.queue_delete("q")


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_a_deleted_queue_of_an_exchange_is_made_again(rabbit_url: str, channel: Any, kind: str) -> None:
    queue = QueueSpec("q", (BindingSpec(ExchangeSpec("ours", kind), "key"),))
    for broker in opened(rabbit_url, **exchange_options(queue)):
        for name in ("1", "2"):
            broker.publish([replace(call(name), exchange="ours", routing_key="key")])
            assert drain_foreign(channel, "q") == [name]
            channel.queue_delete("q")


def test_a_publish_without_confirms_to_a_closed_link_is_sent_on_a_new_one(
    rabbit_server: RabbitServer, rabbit_url: str
) -> None:
    with contextlib.closing(next(opened(rabbit_url, confirm_publish=False))) as broker:
        broker.publish([call("1")])
        link = broker.pool._idle[0].link
        wait_until(lambda: broker.size("q") == 1)
        rabbit_server.close_connections()
        wait_until(lambda: link.readable(0))
        broker.publish([call("2")])
        wait_until(lambda: broker.size("q") == 2)


# -- consumers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [False, True], ids=["held", "settled before"])
def test_a_consumer_whose_connection_is_closed_gets_what_it_held_again_and_loses_nothing(
    rabbit_server: RabbitServer, rabbit_url: str, broker: AMQPBroker, settled: bool
) -> None:
    broker.publish([call(f"{number}") for number in range(12)])
    consumer = broker.consumer(["q"], "a", None)
    held = consumer.swap((), 4, 0)
    if settled:
        consumer.swap(acked(held), 0, 0)
        wait_until(lambda: rabbit_server.count(urlsplit(rabbit_url).path[1:], "q") == 8)
    lose_connection(rabbit_server, consumer)
    # The receipts are of another connection: such outcomes do nothing.
    fresh = consumer.swap(acked(held), 4, 10.0)
    found = Counter(ids(held))
    expected = Counter(f"{number}" for number in range(12)) + Counter([] if settled else ids(held))
    while fresh:
        again = [delivery for delivery in fresh if delivery.message.id in {"0", "1", "2", "3"}]
        assert all(delivery.message.headers["redelivered"] for delivery in again)
        found.update(ids(fresh))
        fresh = consumer.swap(acked(fresh), 4, 10.0 if found.total() < expected.total() else 0.2)
    assert found == expected
    consumer.close()
    assert broker.size("q") == 0


def lose_connection(server: RabbitServer, consumer: AMQPConsumer) -> None:
    """Have the server close it, and the consumer notice."""
    server.close_connections()

    def noticed() -> bool:
        try:
            consumer.extend(())
        except BrokerUnavailable:
            return True
        return False

    wait_until(noticed)


def test_a_consumer_that_is_idle_hears_that_its_connection_was_closed(
    rabbit_server: RabbitServer, broker: AMQPBroker
) -> None:
    consumer = broker.consumer(["q"], "a", None)
    assert consumer.swap((), 1, 0) == []
    timer = threading.Timer(0.2, rabbit_server.close_connections)
    timer.start()
    with pytest.raises(BrokerUnavailable, match="CONNECTION_FORCED"):
        consumer.swap((), 1, 10)
    timer.join()
    broker.publish([call("m")])
    assert ids(consumer.swap((), 1, 10.0)) == ["m"]
    consumer.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_consumer_whose_replies_are_cut_anywhere_settles_every_message(
    rabbit_server: RabbitServer, rabbit_url: str, through: AMQPBroker, proxy: Proxy, channel: Any, seed: int
) -> None:
    rng = random.Random(seed)
    channel.queue_declare("q", durable=True)
    for number in range(60):
        headers = {"task": "t", "id": f"{number}"}
        channel.basic_publish("", "q", b"[]", pika.BasicProperties("application/json", headers=headers))
    consumer = through.consumer(["q"], "cut", None)
    got: Counter[str] = Counter()
    done: list[Outcome] = []
    lost = 0
    end = time.monotonic() + 40
    while time.monotonic() < end:
        if len(got) < 60 and rng.random() < 0.3:
            proxy.cut_reply_after(rng.choice([0, 1, 5, 50, 500, 1500]))
        if len(got) < 60 and rng.random() < 0.1:
            proxy.cut()
        try:
            fetched = consumer.swap(done, rng.choice([1, 4, 16]), 0.05)
        except BrokerUnavailable:
            lost += 1
            continue
        done = [Outcome(delivery) for delivery in fetched]
        got.update(ids(fetched))
        # What was held by a connection that was cut comes back once the server has noticed that.
        if not fetched and len(got) == 60 and not rabbit_server.count(urlsplit(rabbit_url).path[1:], "q"):
            break
        proxy.flow()
    assert set(got) == {f"{number}" for number in range(60)}
    # Acknowledgements that were lost with their connection have their messages come again: a batch each.
    assert sum(got.values()) <= 60 + 16 * lost
    consumer.close()
    assert drain_foreign(channel, "q") == []


def test_a_consumer_whose_queue_is_deleted_says_so_and_makes_it_again(
    broker: AMQPBroker, channel: Any
) -> None:
    broker.publish([call("1"), call("2")])
    consumer = broker.consumer(["q", "other"], "a", None)
    held = consumer.swap((), 1, 0)
    channel.queue_delete("q")
    with pytest.raises(OperationalError, match="'q'"):
        for _ in range(100):
            consumer.swap((), 1, 0.05)
    assert consumer.swap(acked(held), 1, 0) == []
    broker.publish([call("3")])
    assert ids(consumer.swap((), 1, 10.0)) == ["3"]
    consumer.close()


def test_messages_that_look_alike_all_come_back_after_a_lost_connection(
    rabbit_server: RabbitServer, broker: AMQPBroker, channel: Any
) -> None:
    broker.publish([call("same", body=b"1"), call("same", body=b"2")])
    for body in (b"3", b"4"):
        channel.basic_publish("", "q", body)
    consumer = broker.consumer(["q"], "a", None)
    held = consumer.swap((), 4, 0)
    lose_connection(rabbit_server, consumer)
    fresh = consumer.swap((), 4, 1.0)
    while len(fresh) < 4:
        fresh += consumer.swap((), 4 - len(fresh), 1.0)
    assert sorted(delivery.message.body for delivery in fresh) == [b"1", b"2", b"3", b"4"]
    done = [
        Outcome(each, Verdict.REJECT, reason="no good", publish=[call(queue="next")])
        for each in [*held, *fresh]
    ]
    consumer.swap(done, 0, 0)
    consumer.close()
    assert len({json.loads(letter.raw)["body"] for letter in broker.dead_letters("q")}) == 4
    assert broker.size("q") == 0
    assert broker.size("next") == 4


@pytest.mark.parametrize(
    "follow_up",
    [
        call("next", queue="declared otherwise"),
        call("next", queue="q" * 256),
        replace(call("next"), exchange="nowhere", routing_key="key"),
        replace(call("next"), headers={"id": "next", "task": "t", "odd": object()}),
    ],
    ids=["queue of other arguments", "name too long", "no such exchange", "odd header"],
)  # fmt: skip
def test_an_outcome_whose_follow_up_can_never_be_sent_does_not_stop_the_others(
    broker: AMQPBroker, channel: Any, follow_up: Any
) -> None:
    channel.queue_declare("declared otherwise", durable=True, arguments={"x-max-priority": 5})
    broker.publish([call("1"), call("2"), call("3")])
    consumer = broker.consumer(["q"], "a", None)
    held = consumer.swap((), 2, 0)
    done = [Outcome(held[0], publish=[follow_up]), Outcome(held[1])]
    fresh: list[Any] = []
    for _ in range(3):
        with contextlib.suppress(OperationalError):
            fresh = consumer.swap(done, 1, 10.0)
            break
    assert ids(fresh) == ["3"]
    consumer.close()
    assert broker.size("q") == 1
    assert [letter.id for letter in broker.dead_letters("q")] == ["1"]


# -- messages of others ------------------------------------------------------------------------


JSON = "application/json"
HEADERS: dict[str, Any] = {"task": "t", "id": "1"}
FOREIGN: dict[str, tuple[pika.BasicProperties | None, bytes]] = {
    "nothing at all": (None, b""),
    "no headers": (pika.BasicProperties(JSON), b"[]"),
    "protocol 1 without id": (pika.BasicProperties(JSON), b'{"task": "t", "args": []}'),
    "text": (pika.BasicProperties("text/plain", headers=HEADERS), "é".encode("latin-1")),
    "no json": (pika.BasicProperties(JSON, headers=HEADERS), b"{"),
    "an object": (pika.BasicProperties(JSON, headers=HEADERS), b'{"a": 1}'),
    "no id": (pika.BasicProperties(JSON, headers={"task": "t"}), b"[[], {}, {}]"),
    "timelimit soon": (pika.BasicProperties(JSON, headers={**HEADERS, "timelimit": "soon"}), b"[[], {}, {}]"),
    "odd eta": (pika.BasicProperties(JSON, headers={**HEADERS, "eta": ["soon"]}), b"[[], {}, {}]"),
    "eta in year 10000": (pika.BasicProperties(JSON, headers={**HEADERS, "eta": "9999-12-31T23:59:59-10:00"}), b"[]"),
    "odd retries": (pika.BasicProperties(JSON, headers={**HEADERS, "retries": {"a": [1]}}), b"[[], {}, {}]"),
    "nested": (pika.BasicProperties(JSON, headers={**HEADERS, "x": {"y": [{"z": [[[]]]}]}}), b"[[], {}, {}]"),
    "a long id": (pika.BasicProperties(JSON, headers={"task": "t", "id": "i" * 10_000}), b"[[], {}, {}]"),
    "full headers": (pika.BasicProperties(JSON, headers={"task": "t", "long": "x" * 130_000}), b"[]"),
    "bytes": (pika.BasicProperties(JSON, headers={**HEADERS, "x": b"\xff"}), b"\xff"),
    "a price": (pika.BasicProperties(JSON, headers={"task": "t", "price": Decimal("1.50")}), b"[]"),
    "a moment": (pika.BasicProperties(JSON, headers={"task": "t", "at": datetime(2030, 1, 2)}), b"[]"),
    "all properties": (
        pika.BasicProperties(
            JSON, "utf-8", {"task": 5}, 1, 200, "c" * 255, "r", "100000", "m", 1 << 40, "t", "guest", "a", "c"
        ),
        b"[]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_message_of_a_stranger_is_handed_out_and_buried_whatever_it_is(
    broker: AMQPBroker, channel: Any, name: str
) -> None:
    properties, body = FOREIGN[name]
    channel.queue_declare("q", durable=True)
    channel.basic_publish("", "q", body, properties)
    broker.publish([call("good")])
    consumer = broker.consumer(["q"], "a", None)
    [foreign, good] = consumer.swap((), 2, 0)
    assert (foreign.message.body, good.message.id) == (body, "good")
    consumer.swap([Outcome(foreign, Verdict.REJECT, reason=foreign.broken or "bad"), Outcome(good)], 0, 0)
    [letter] = broker.dead_letters("q")
    assert letter.reason == (foreign.broken or "bad")
    assert json.loads(letter.raw)["body"] == b64encode(body).decode()
    consumer.close()
    assert broker.size("q") == 0


# -- the application ---------------------------------------------------------------------------


def test_the_application_reports_an_unreachable_broker_by_delay() -> None:
    app = Celery("faults", broker=f"amqp://me:{SECRET}@127.0.0.1:{free_port()}//", set_as_current=False)
    app.conf.task_publish_retry = False
    app.task(name="noop")(lambda: None)
    with pytest.raises(OperationalError, match="connection refused") as caught:
        app.tasks["noop"].delay()
    assert SECRET not in str(caught.value) + repr(caught.value.__cause__)
    app.close()


@pytest.fixture
def stage(rabbit_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    yield from staged(rabbit_url, tmp_path, request)


def test_a_worker_whose_connections_are_closed_again_and_again_ends_every_task(
    rabbit_server: RabbitServer, stage: Stage
) -> None:
    stage.worker(concurrency=2)
    results = stage.send_many("late_run", [(0.01,)] * 150) + stage.send_many("run", [(0.01,)] * 50)
    for ended in (20, 60, 100):
        wait_until(lambda ended=ended: len(stage.ends()) >= ended, 20)
        rabbit_server.close_connections()
    assert stage.wait_for(results, timeout=30) == {"SUCCESS": 200}
    # An acknowledgement may be lost with its connection; most are not.
    assert stage.runs().total() < 240


@pytest.mark.parametrize("heartbeat", [3, 120], ids=["noticed while it runs", "noticed when it ends"])
@pytest.mark.parametrize("task", ["run", "late_run"])
def test_a_task_during_which_the_connection_is_closed_runs_once_and_its_result_is_stored(
    rabbit_server: RabbitServer, rabbit_url: str, stage: Stage, task: str, heartbeat: int
) -> None:
    stage.worker(concurrency=1, conf={"broker_heartbeat": heartbeat})
    result = stage.send(task, 2.5)
    wait_until(lambda: stage.runs()[result.id])
    if task == "run":  # which is acknowledged while it runs; until then it would come back
        vhost = urlsplit(rabbit_url).path[1:]
        wait_until(lambda: rabbit_server.count(vhost, "celery", "messages_unacknowledged") == 0)
    rabbit_server.close_connections()
    assert stage.wait_for([result, stage.send(task, 0.0)], timeout=30) == {"SUCCESS": 2}
    assert stage.runs()[result.id] == 1
    stage.workers[0].term()
    assert stage.workers[0].wait() == 0
    assert stage.app.broker.size("celery") == 0
