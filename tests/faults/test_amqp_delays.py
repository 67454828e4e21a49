"""Who makes the delays, and that what is delayed arrives whoever has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pika
import pika.exceptions
import pytest

from minicelery.broker.amqp import AMQPBroker
from minicelery.broker.topology import plain_queue
from minicelery.message import Outcome
from tests.conformance.messages import call, ids
from tests.faults.test_amqp_faults import opened, specs
from tests.waiting import wait_until

QUORUM = replace(plain_queue("quorum"), arguments={"x-queue-type": "quorum"})


@pytest.fixture
def broker(rabbit_url: str) -> Iterator[AMQPBroker]:
    yield from opened(rabbit_url, spec_of=specs(QUORUM))


@pytest.fixture
def other(rabbit_url: str) -> Iterator[AMQPBroker]:
    """The same server, seen from another process."""
    yield from opened(rabbit_url, spec_of=specs(QUORUM))


@pytest.fixture
def connection(rabbit_url: str) -> Iterator[Any]:
    """Of a client that is not ours."""
    with pika.BlockingConnection(pika.URLParameters(rabbit_url)) as connection:
        yield connection


def exists(connection: Any, *, exchange: str = "", queue: str = "") -> bool:
    channel = connection.channel()
    try:
        if exchange:
            channel.exchange_declare(exchange, passive=True)
        else:
            channel.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    channel.close()
    return True


def delayed_by_celery(connection: Any, queue: str, id: str, seconds: int) -> None:
    """Delay a message as Celery's senders do: they don't look whether the delays are there."""
    headers = {"task": "t", "id": id}
    properties = pika.BasicProperties("application/json", headers=headers)
    key = ".".join(f"{seconds:028b}") + f".{queue}"
    connection.channel().basic_publish("celery_delayed_27", key, b"[[], {}, {}]", properties)


def arrives(broker: AMQPBroker, queue: str) -> list[str]:
    consumer = broker.consumer([queue], "a", None)
    found = wait_until(lambda: ids(consumer.swap((), 1, 0.5)), 20)
    consumer.close()
    return found


def test_a_worker_of_classic_queues_makes_them_and_the_stream_and_no_delays(
    broker: AMQPBroker, connection: Any
) -> None:
    for queues in (["q"], ["q", "r"]):
        assert broker.tend(queues, []) == []
    assert exists(connection, queue="q") and exists(connection, queue="r")
    assert exists(connection, queue="minicelery.revoked")
    assert not exists(connection, exchange="celery_delayed_delivery")
    assert not exists(connection, exchange="celery_delayed_27")


def test_a_worker_of_a_quorum_queue_makes_the_delays_for_all_its_queues(
    broker: AMQPBroker, connection: Any
) -> None:
    broker.tend(["q", "quorum"], [])
    delayed_by_celery(connection, "quorum", "1", 1)
    delayed_by_celery(connection, "q", "2", 1)
    assert (arrives(broker, "quorum"), arrives(broker, "q")) == (["1"], ["2"])


def test_a_worker_binds_its_queues_where_the_delays_have_been_made(
    broker: AMQPBroker, other: AMQPBroker, connection: Any
) -> None:
    other.tend(["quorum"], [])
    broker.tend(["q"], [])
    delayed_by_celery(connection, "q", "1", 1)
    assert arrives(broker, "q") == ["1"]


def test_what_is_delayed_arrives_in_a_queue_that_no_worker_has_tended(broker: AMQPBroker) -> None:
    due = time.time() + 2.3
    broker.publish([call("1", due=due)])
    # What is due within a second goes to its queue at once.
    assert broker.size("q") == 0 or time.time() > due - 1
    assert arrives(broker, "q") == ["1"]
    assert time.time() >= due


def test_what_is_delayed_arrives_in_a_queue_that_a_worker_has_tended_before(
    broker: AMQPBroker, other: AMQPBroker
) -> None:
    other.tend(["q"], [])
    broker.publish([call("1", due=time.time() + 1.3)])
    assert arrives(other, "q") == ["1"]


@pytest.mark.parametrize("queue", ["q", "quorum"])
def test_a_retry_arrives_in_a_queue_that_no_worker_has_tended(broker: AMQPBroker, queue: str) -> None:
    broker.publish([call("1", queue=queue)])
    consumer = broker.consumer([queue], "a", None)
    [delivery] = consumer.swap((), 1, 10.0)
    due = time.time() + 1.3
    consumer.swap([Outcome(delivery, publish=[call("again", queue=queue, due=due)])], 0, 0)
    assert wait_until(lambda: ids(consumer.swap((), 1, 0.5)), 20) == ["again"]
    assert time.time() >= due
    consumer.close()


def test_what_is_delayed_arrives_though_its_queue_was_deleted_and_made_again_by_a_worker(
    broker: AMQPBroker, other: AMQPBroker, connection: Any
) -> None:
    for seconds in (1.3, 4.3, 12.3):  # the last for a machine that takes seconds for what follows
        queue, due = f"q{seconds}", time.time() + seconds
        broker.tend([queue], [])
        broker.publish([call("1", queue=queue, due=due)])
        connection.channel().queue_delete(queue)
        other.tend([queue], [])
        if time.time() < due - 1:  # it waits still
            break
    assert arrives(other, queue) == ["1"]
