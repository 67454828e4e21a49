"""In which order a delivery is settled on RabbitMQ, and what becomes of one that is held no more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from minicelery.broker.amqp import AMQPBroker
from minicelery.broker.topology import plain_queue
from minicelery.exceptions import BackendUnavailable, BrokerUnavailable
from minicelery.message import Outcome, Record, Verdict
from tests.conformance.messages import acked, call, ids, record
from tests.faults.test_amqp_faults import lose_connection, opened, specs
from tests.rabbit import RabbitServer
from tests.waiting import wait_until


@pytest.fixture
def broker(rabbit_url: str) -> Iterator[AMQPBroker]:
    """One message fills its queue `full`; the queue `brief` goes with its last consumer."""
    full = replace(plain_queue("full"), arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    brief = replace(plain_queue("brief"), auto_delete=True)
    yield from opened(rabbit_url, spec_of=specs(full, brief))


class Store:
    """A result store that may be away, and notes what had been sent when a record came."""

    url = "nowhere"

    def __init__(self, broker: AMQPBroker, *, away: bool = False) -> None:
        self.broker = broker
        self.away = away
        self.sent: list[int] = []

    def store(self, records: Sequence[Record]) -> None:
        if self.away:
            raise BackendUnavailable("it is away")
        self.sent += [self.broker.size("next")] * len(records)


def held(broker: AMQPBroker, number: int, backend: Any = None, queue: str = "q") -> tuple[Any, list[Any]]:
    """A consumer, and so many deliveries that it holds."""
    broker.publish([call(f"{each}", queue) for each in range(number)])
    consumer = broker.consumer([queue], "a", backend)
    found = consumer.swap((), number, 10.0)
    while len(found) < number:
        found += consumer.swap((), number - len(found), 10.0)
    return consumer, found


def test_a_record_is_stored_before_what_follows_is_sent(broker: AMQPBroker) -> None:
    store = Store(broker, away=True)
    consumer, [delivery] = held(broker, 1, store)
    done = [Outcome(delivery, record=record("0"), publish=[call("1", "next")])]
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            consumer.swap(done, 0, 0)
    assert broker.size("next") == 0
    assert consumer.holds(delivery)
    store.away = False
    consumer.swap(done, 0, 0)
    assert (store.sent, broker.size("next")) == ([0], 1)
    consumer.close()
    assert broker.size("q") == 0


def test_a_delivery_whose_follow_up_was_not_sent_comes_back_with_a_lost_connection(
    rabbit_server: RabbitServer, broker: AMQPBroker
) -> None:
    broker.publish([call("first", "full")])
    consumer, [delivery] = held(broker, 1)
    with pytest.raises(BrokerUnavailable, match="'full' is full"):
        consumer.swap([Outcome(delivery, publish=[call("next", "full")])], 0, 0)
    lose_connection(rabbit_server, consumer)
    [again] = consumer.swap((), 1, 10.0)
    consumer.swap([Outcome(again, publish=[call("next", "other")])], 0, 0)
    consumer.close()
    assert (broker.size("q"), broker.size("full"), broker.size("other")) == (0, 1, 1)


def test_what_has_been_sent_is_not_sent_again_with_what_could_not_be(broker: AMQPBroker) -> None:
    broker.publish([call("first", "full")])
    consumer, [delivery] = held(broker, 1)
    done = [Outcome(delivery, publish=[call("a", "other"), call("b", "full"), call("c", "other")])]
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="'full' is full"):
            consumer.swap(done, 0, 0)
    assert (broker.size("other"), broker.purge("full")) == (2, 1)
    consumer.swap(done, 0, 0)
    assert (broker.size("other"), broker.size("full")) == (2, 1)
    consumer.close()
    assert broker.size("q") == 0


def test_a_retry_into_the_full_queue_it_came_from_waits_and_stops_nobody(broker: AMQPBroker) -> None:
    broker.publish([call("0", "full")])
    consumer = broker.consumer(["full"], "a", None)
    [first] = consumer.swap((), 1, 10.0)
    broker.publish([call("1", "full")])
    fresh = consumer.swap([Outcome(first, publish=[call("again", "full")])], 1, 10.0)
    assert ids(fresh) == ["1"]
    found = wait_until(lambda: ids(consumer.swap(acked(fresh), 1, 0.1)), 20)
    assert found == ["again"]
    consumer.close()


def test_what_was_let_go_of_does_not_come_back(
    rabbit_server: RabbitServer, rabbit_url: str, broker: AMQPBroker
) -> None:
    consumer, [early, late, kept] = held(broker, 3)
    early.once = True
    consumer.extend([early, late])
    consumer.acknowledge(kept)
    assert [delivery.let_go for delivery in (early, late, kept)] == [True, False, True]
    vhost = urlsplit(rabbit_url).path[1:]
    wait_until(lambda: rabbit_server.count(vhost, "q", "messages_unacknowledged") == 1)
    lose_connection(rabbit_server, consumer)
    assert ids(consumer.swap((), 3, 10.0)) == ["1"]
    assert consumer.swap((), 3, 0) == []
    consumer.close()


def test_what_is_held_no_more_cannot_be_let_go_of(rabbit_server: RabbitServer, broker: AMQPBroker) -> None:
    consumer, [old] = held(broker, 1)
    lose_connection(rabbit_server, consumer)
    assert ids(consumer.swap((), 1, 10.0)) == ["0"]
    with pytest.raises(BrokerUnavailable):
        consumer.acknowledge(old)
    assert not old.let_go
    consumer.close()
    assert broker.size("q") == 1
    again = broker.consumer(["q"], "b", None)
    assert ids(again.swap((), 1, 10.0)) == ["0"]
    again.close()


@pytest.mark.parametrize("way", ["extended", "waiting"])
def test_a_delivery_is_held_for_many_heartbeats_by_who_is_busy_or_waits(rabbit_url: str, way: str) -> None:
    def hold(broker: AMQPBroker, queue: str, seconds: float) -> None:
        consumer, [delivery] = held(broker, 1, queue=queue)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if way == "waiting":
                assert consumer.swap((), 1, left) == []
            else:
                consumer.extend(())
                time.sleep(consumer.renew)
        assert consumer.holds(delivery)
        consumer.swap(acked([delivery]), 0, 0)
        consumer.close()
        assert broker.size(queue) == 0

    def is_held(heartbeat: int) -> bool:
        with contextlib.closing(next(opened(rabbit_url, heartbeat=heartbeat))) as broker:
            try:
                hold(broker, f"q{heartbeat}", 4 * heartbeat)
            except (
                BrokerUnavailable
            ):  # the server has heard nothing for two heartbeats: this process may have stood still
                return False
        return True

    assert any(is_held(heartbeat) for heartbeat in (1, 2, 5))


@pytest.mark.parametrize("places", [None, 2])
def test_a_queue_that_goes_with_its_last_consumer_outlasts_a_change_of_what_is_wanted(
    broker: AMQPBroker, places: int | None
) -> None:
    consumer = broker.consumer(["brief"], "a", None)
    if places:
        consumer.hold(places)
    assert consumer.swap((), 1, 0) == []
    broker.publish([call(f"{number}", "brief") for number in range(5)])
    found: list[str] = []
    fresh: list[Any] = []
    for want in (1, 3, 1, 2):
        consumer.swap(acked(fresh), 0, 0)
        consumer.extend(())
        if places:
            consumer.hold(want)
        fresh = consumer.swap((), want, 10.0 if len(found) < 5 else 0.05)
        found += ids(fresh)
    while len(found) < 5 and (fresh := consumer.swap(acked(fresh), 5, 10.0)):
        found += ids(fresh)
    assert sorted(set(found)) == ["0", "1", "2", "3", "4"] and len(found) == 5
    consumer.close()


def test_what_goes_back_takes_with_it_what_was_fetched_ahead(broker: AMQPBroker) -> None:
    broker.publish([call(f"{number}") for number in range(200)])
    consumer = broker.consumer(["q"], "a", None)
    fresh: list[Any] = []
    for _ in range(4):  # fast tasks: more and more is fetched
        fresh = consumer.swap(acked(fresh), 4, 0)
    wait_until(lambda: broker.size("q") < 150)
    consumer.swap([Outcome(each, Verdict.REQUEUE) for each in fresh[:0:-1]], 0, 0)
    wait_until(lambda: broker.size("q") == 200 - 12 - 1)
    other = broker.consumer(["q"], "b", None)
    assert ids(other.swap((), 4, 0)) == ["13", "14", "15", "16"]
    other.close()
    consumer.close()
