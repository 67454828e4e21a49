"""What every broker does with rejected messages: they are kept, wanted again, or thrown away."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from minicelery.broker import Backend, Broker, Consumer, open_broker
from minicelery.broker.topology import QueueSpec
from minicelery.exceptions import OperationalError
from minicelery.message import COUNT_HEADER, Outcome, Verdict
from tests.conformance.conftest import MakeConsumer
from tests.conformance.messages import call, drain
from tests.waiting import wait_until


def reject(broker: Broker, consumer: Consumer, *ids: str, deliveries: int = 0) -> None:
    """Send messages of these ids, and have them rejected."""
    for id in ids:
        broker.publish([call(id)])
        (delivery,) = consumer.swap([], 1, 0)
        delivery.deliveries = deliveries
        consumer.swap([Outcome(delivery, Verdict.REJECT, reason=f"no good: {id}")], 0, 0)


def test_a_dead_letter_that_is_replayed_comes_as_it_was_sent(broker: Broker, consumer: Consumer) -> None:
    sent = call("1", body=b"\x00\xff binary", content_type="application/x-msgpack", content_encoding="binary")
    sent.headers["custom"] = {"nested": [1, 2.5, None, "ü"]}
    sent.properties["reply_to"] = "somebody"
    broker.publish([sent])
    (delivery,) = consumer.swap([], 1, 0)
    consumer.swap([Outcome(delivery, Verdict.REJECT, reason="no good")], 0, 0)
    assert broker.replay_dead("q") == 1
    assert broker.dead("q") == 0
    (delivery,) = consumer.swap([], 1, 0)
    got = delivery.message
    assert (got.id, got.task, got.queue, got.body) == ("1", "tasks.add", "q", b"\x00\xff binary")
    assert (got.content_type, got.content_encoding) == ("application/x-msgpack", "binary")
    assert got.headers == sent.headers
    assert got.properties["reply_to"] == "somebody"
    assert (delivery.deliveries, delivery.started, delivery.broken) == (0, False, None)


def test_all_dead_letters_come_back_in_the_order_in_which_they_died(
    broker: Broker, consumer: Consumer
) -> None:
    reject(broker, consumer, "1", "2", "3")
    assert broker.replay_dead("q") == 3
    assert (broker.dead("q"), broker.dead_letters("q")) == (0, [])
    assert drain(consumer) == ["1", "2", "3"]


def test_only_the_dead_letters_that_are_named_are_replayed(broker: Broker, consumer: Consumer) -> None:
    reject(broker, consumer, "1", "2", "3")
    assert broker.replay_dead("q", ["2", "unknown"]) == 1
    assert [letter.id for letter in broker.dead_letters("q")] == ["3", "1"]
    assert drain(consumer) == ["2"]


def test_dead_letters_that_are_discarded_are_gone(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    reject(broker, consumer, "1", "2", "3")
    assert broker.discard_dead("q", {"1", "3"}) == 2
    assert [letter.id for letter in broker.dead_letters("q")] == ["2"]
    assert broker.discard_dead("q") == 1
    assert broker.dead("q") == 0
    assert drain(make_consumer()) == []


def test_where_there_are_no_dead_letters_nothing_is_settled(broker: Broker) -> None:
    assert (broker.replay_dead("q"), broker.discard_dead("q"), broker.replay_dead("q", ["1"])) == (0, 0, 0)


def test_the_runs_that_died_under_a_dead_letter_are_forgotten(
    broker: Broker, consumer: Consumer, backend: Backend
) -> None:
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 0)
    delivery.deliveries = 3
    consumer.swap([Outcome(delivery, Verdict.REQUEUE)], 0, 0)
    (delivery,) = consumer.swap([], 1, 0)
    assert delivery.deliveries == 3
    consumer.swap([Outcome(delivery, Verdict.REJECT, reason="3 runs of it died")], 0, 0)
    broker.replay_dead("q")
    (delivery,) = consumer.swap([], 1, 0)
    assert (delivery.deliveries, COUNT_HEADER in delivery.message.headers) == (0, False)
    assert "redelivered" not in delivery.message.headers


def test_a_consumer_that_waits_hears_of_what_is_replayed(broker: Broker, consumer: Consumer) -> None:
    reject(broker, consumer, "1")
    broker.replay_dead("q")
    assert [delivery.message.id for delivery in consumer.swap([], 1, 5)] == ["1"]


def test_more_dead_letters_than_one_step_takes_are_replayed(broker: Broker, consumer: Consumer) -> None:
    names = [f"{number:03}" for number in range(230)]
    broker.publish([call(name) for name in names])
    while fresh := consumer.swap([], 50, 0):
        consumer.swap([Outcome(delivery, Verdict.REJECT, reason="no") for delivery in fresh], 0, 0)
    assert broker.dead("q") == 230
    assert broker.replay_dead("q") == 230
    assert drain(consumer) == names


DIE_REPLAYING = """
import os, sys
from pika import spec
from minicelery.broker import open_broker
from minicelery.broker.amqp.link import Link

call, commits = Link.call, 0

def call_or_die(link, method, *more, **named):
    global commits
    if isinstance(method, spec.Tx.Commit):
        commits += 1
        if commits == 3:
            if sys.argv[2] == "after":
                call(link, method, *more, **named)
            os._exit(9)
    return call(link, method, *more, **named)

Link.call = call_or_die
open_broker(sys.argv[1]).replay_dead("q")
"""


@pytest.mark.parametrize(("moment", "moved"), [("before", 2), ("after", 3)])
def test_who_dies_while_replaying_on_rabbitmq_loses_and_doubles_nothing(
    rabbit_url: str, moment: str, moved: int
) -> None:
    broker = open_broker(rabbit_url)
    consumer = broker.consumer(["q"], "rejecting", None)
    reject(broker, consumer, "1", "2", "3", "4", "5")
    consumer.close()
    died = subprocess.run([sys.executable, "-c", DIE_REPLAYING, rabbit_url, moment], check=False, timeout=30)
    assert died.returncode == 9
    wait_until(lambda: (broker.size("q"), broker.dead("q")) == (moved, 5 - moved))
    assert [letter.id for letter in broker.dead_letters("q")] == ["5", "4", "3", "2", "1"][: 5 - moved]
    broker.close()


def test_what_a_full_queue_of_rabbitmq_refuses_stays_a_dead_letter(rabbit_url: str) -> None:
    def spec_of(name: str) -> QueueSpec:
        full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
        return QueueSpec(name, arguments=full)

    broker = open_broker(rabbit_url, options={"spec_of": spec_of})
    consumer = broker.consumer(["q"], "rejecting", None)
    reject(broker, consumer, "1", "2", "3")
    consumer.close()
    with pytest.raises(OperationalError, match="queue 'q' is full"):
        broker.replay_dead("q")
    wait_until(lambda: (broker.size("q"), broker.dead("q")) == (1, 2))
    assert {letter.id: letter.reason for letter in broker.dead_letters("q")} == {
        "2": "no good: 2", "3": "no good: 3"
    }  # fmt: skip
    broker.close()
