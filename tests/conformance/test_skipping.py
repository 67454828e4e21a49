"""Queues that a consumer skips for a while, as they are paused."""

from __future__ import annotations

import threading
import time

import pytest

from minicelery.broker import Broker, Consumer, open_broker
from minicelery.broker.topology import QueueSpec, aside
from minicelery.exceptions import QueueNotFound
from minicelery.message import Outcome, Verdict
from tests.conformance.conftest import MakeConsumer
from tests.conformance.messages import acked, call, drain, ids, serve
from tests.waiting import wait_until


@pytest.fixture
def pair(make_consumer: MakeConsumer) -> Consumer:
    """A consumer of the queues a and b."""
    return make_consumer("a", "b")


def test_nothing_is_fetched_from_a_queue_that_is_skipped(broker: Broker, pair: Consumer) -> None:
    broker.publish([call("1", "a"), call("2", "b"), call("3", "a"), call("4", "b")])
    pair.skip({"a"})
    assert drain(pair) == ["2", "4"]
    assert broker.size("a") == 2
    pair.skip(())
    assert drain(pair) == ["1", "3"]


def test_what_was_fetched_before_is_settled_as_ever(
    broker: Broker, pair: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1", "a"), call("2", "a"), call("3", "b")])
    fresh = sorted(
        pair.swap([], 1, 5) + pair.swap([], 1, 5) + pair.swap([], 1, 5), key=lambda one: one.message.id
    )
    assert ids(fresh) == ["1", "2", "3"]
    pair.skip(["a"])
    done = [Outcome(fresh[0]), Outcome(fresh[1], Verdict.REQUEUE), Outcome(fresh[2])]
    assert pair.swap(done, 5, 0) == []
    wait_until(lambda: broker.size("a") == 1)
    assert drain(make_consumer("a")) == ["2"]


def test_a_consumer_that_skips_all_its_queues_waits_and_can_be_woken(
    broker: Broker, consumer: Consumer
) -> None:
    broker.publish([call("1")])
    consumer.skip(["q", "unknown"])
    began = time.monotonic()
    assert consumer.swap([], 1, 0.2) == []
    assert time.monotonic() - began > 0.15
    timer = threading.Timer(0.1, consumer.wake)
    timer.start()
    assert consumer.swap([], 1, 10) == []
    assert time.monotonic() - began < 5
    timer.join()
    consumer.skip([])
    assert ids(consumer.swap([], 1, 5)) == ["1"]


def test_a_message_for_a_skipped_queue_wakes_nobody_and_is_there_for_others(
    broker: Broker, pair: Consumer, make_consumer: MakeConsumer
) -> None:
    assert pair.swap([], 1, 0.05) == []  # it waits for both, and stops to
    pair.skip(["a"])
    broker.publish([call("1", "a")])
    assert pair.swap([], 1, 0.2) == []
    assert drain(make_consumer("a")) == ["1"]


def test_a_delayed_message_of_a_skipped_queue_stays_until_it_is_fetched_from_again(
    broker: Broker, consumer: Consumer
) -> None:
    serve(broker, "q")
    broker.publish([call("1", due=time.time() + 0.05)])
    consumer.skip(["q"])
    assert consumer.swap([], 1, 0.3) == []
    consumer.skip([])
    fresh = consumer.swap([], 1, 5)
    assert ids(fresh) == ["1"]
    consumer.swap(acked(fresh), 0, 0)


def test_places_that_are_held_for_many_are_not_used_for_a_skipped_queue(
    broker: Broker, pair: Consumer
) -> None:
    if (hold := getattr(pair, "hold", None)) is not None:
        hold(10)
    broker.publish([call("1", "a"), call("2", "b")])
    pair.skip(["a"])
    assert ids(pair.swap([], 10, 5)) == ["2"]
    assert pair.swap([], 10, 0.1) == []
    pair.skip([])
    assert ids(pair.swap([], 10, 5)) == ["1"]


def test_what_is_put_aside_has_a_queue_where_unknown_ones_are_refused(rabbit_url: str) -> None:
    def spec_of(name: str) -> QueueSpec:
        raise QueueNotFound(name)

    broker = open_broker(rabbit_url, options={"spec_of": spec_of})
    broker.publish([call("1", aside("q"))])
    assert broker.size(aside("q")) == 1
    with pytest.raises(QueueNotFound):
        broker.publish([call("1", "q")])
    broker.close()
