"""A consumer that holds many deliveries at once and settles them in any order."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from minicelery.broker.amqp import AMQPBroker
from minicelery.broker.topology import plain_queue
from minicelery.exceptions import BrokerUnavailable
from minicelery.message import Delivery, Outcome, Verdict, iso
from tests.conformance.messages import acked, call, drain, ids, requeued
from tests.faults.test_amqp_faults import opened, specs
from tests.rabbit import RabbitServer
from tests.waiting import wait_until

# A delivery that is given back twice would be dropped by the server.
QUORUM = [
    replace(plain_queue(name), arguments={"x-queue-type": "quorum", "x-delivery-limit": 1}) for name in "xyz"
]


@pytest.fixture
def broker(rabbit_url: str) -> Iterator[AMQPBroker]:
    yield from opened(rabbit_url, spec_of=specs(*QUORUM))


def publish(broker: AMQPBroker, number: int, queue: str = "q") -> None:
    broker.publish([call(f"{queue}{each}", queue=queue) for each in range(number)])


def holding(broker: AMQPBroker, places: int, *queues: str) -> Any:
    consumer = broker.consumer(queues or ("q",), "a", None)
    consumer.hold(places)
    return consumer


def take(consumer: Any, number: int, done: Sequence[Outcome] = ()) -> list[Delivery]:
    """So many deliveries, however they arrive."""
    found: list[Delivery] = consumer.swap(done, number, 10.0)
    while len(found) < number:
        fresh = consumer.swap((), number - len(found), 10.0)
        assert fresh
        found += fresh
    assert len(found) == number
    return found


def run_all(consumer: Any, places: int, number: int, seed: int) -> Counter[str]:
    """Hold up to `places`, settle at random; how often each message was handed out."""
    rng = random.Random(seed)
    held: list[Delivery] = []
    found: Counter[str] = Counter()
    end = time.monotonic() + 40
    while time.monotonic() < end:
        done = [held.pop(rng.randrange(len(held))) for _ in range(rng.randint(0, len(held)))]
        want = places - len(held)
        fresh = consumer.swap(acked(done), want, 0.05 if not held else 0.002)
        assert len(fresh) <= want
        held += fresh
        found.update(ids(fresh))
        if len(found) == number and not held and not done:
            break
    return found


def test_as_many_as_the_places_are_fetched_and_as_many_as_wanted_handed_out(broker: AMQPBroker) -> None:
    publish(broker, 50)
    consumer = holding(broker, 10)
    assert ids(take(consumer, 3)) == ["q0", "q1", "q2"]
    wait_until(lambda: broker.size("q") == 40)
    assert ids(take(consumer, 2)) == ["q3", "q4"]
    assert len(take(consumer, 5)) == 5
    assert consumer.swap((), 1, 0.05) == []
    assert broker.size("q") == 40
    consumer.close()
    assert broker.size("q") == 50


def test_wants_that_change_at_every_turn_make_no_consumer_anew(broker: AMQPBroker) -> None:
    publish(broker, 200)
    consumer = holding(broker, 30)
    held = take(consumer, 7)
    tags = set(consumer._tags)
    rng = random.Random(1)
    seen = len(held)
    while seen < 200:
        rng.shuffle(held)
        done, held = held[:5], held[5:]
        fresh = consumer.swap(acked(done), rng.randint(0, 30 - len(held)), 0.01)
        consumer.extend(fresh[:1])
        held += fresh
        seen += len(fresh)
    assert set(consumer._tags) == tags
    consumer.swap(acked(held), 0, 0)
    consumer.close()
    assert broker.size("q") == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_held_and_settled_in_any_order_all_run_once(broker: AMQPBroker, seed: int) -> None:
    publish(broker, 3000)
    consumer = holding(broker, 1000)
    found = run_all(consumer, 1000, 3000, seed)
    assert len(found) == 3000 and set(found.values()) == {1}
    consumer.close()
    assert broker.size("q") == 0


def test_what_has_not_begun_is_given_back_by_close_and_what_is_settled_is_not(broker: AMQPBroker) -> None:
    publish(broker, 20)
    consumer = holding(broker, 10)
    held = take(consumer, 4)
    consumer.swap(acked(held[1:3]), 0, 0)
    consumer.close()
    assert broker.size("q") == 18
    assert drain(broker.consumer(["q"], "b", None)) == [f"q{n}" for n in range(20) if n not in (1, 2)]


def test_a_stop_gives_back_at_once_what_has_not_begun_and_keeps_what_runs(broker: AMQPBroker) -> None:
    publish(broker, 20)
    consumer = holding(broker, 10)
    held = take(consumer, 4)
    wait_until(lambda: broker.size("q") == 10)
    consumer.hold(0)
    consumer.extend(())
    wait_until(lambda: broker.size("q") == 16)
    assert consumer.swap(acked(held[:1]), 3, 0.05) == []
    assert consumer.swap(acked(held[2:]), 5, 0) == []
    assert broker.size("q") == 16
    assert [consumer.holds(delivery) for delivery in held] == [False, True, False, False]
    consumer.swap(acked(held[1:2]), 0, 0)
    consumer.close()
    assert broker.size("q") == 16


def test_a_stop_that_only_swaps_gives_back_what_has_not_begun(broker: AMQPBroker) -> None:
    publish(broker, 20)
    consumer = holding(broker, 10)
    held = take(consumer, 4)
    consumer.hold(0)
    assert consumer.swap(acked(held), 0, 0) == []
    wait_until(lambda: broker.size("q") == 16)
    consumer.close()


def test_what_goes_back_comes_again(broker: AMQPBroker) -> None:
    publish(broker, 3)
    consumer = holding(broker, 2)
    [first, second] = take(consumer, 2)
    again = take(consumer, 1, requeued([first]))
    assert ids(again) == ["q0"] and again[0].message.headers["redelivered"]
    rejected = Outcome(second, Verdict.REJECT, reason="no good")
    last = take(consumer, 1, [rejected, *acked(again)])
    assert ids(last) == ["q2"]
    consumer.swap(acked(last), 0, 0)
    consumer.close()
    assert (broker.size("q"), broker.dead("q")) == (0, 1)


def test_more_or_fewer_places_are_taken_up_with_the_next_swap(broker: AMQPBroker) -> None:
    publish(broker, 50)
    consumer = holding(broker, 5)
    held = take(consumer, 2)
    wait_until(lambda: broker.size("q") == 45)
    consumer.hold(20)
    held += take(consumer, 18)
    consumer.hold(4)
    # A prefetch count is of the consumer: what it has of the earlier one counts no more.
    consumer.swap(acked(held), 1, 10.0)
    wait_until(lambda: broker.size("q") == 50 - 20 - 4)
    consumer.close()
    assert broker.size("q") == 30


@pytest.mark.parametrize("queues", ["xyz", "q"], ids=["quorum queues", "classic queue"])
def test_a_thread_pools_turns_run_each_message_of_the_queues_once(broker: AMQPBroker, queues: str) -> None:
    for queue in queues:
        publish(broker, 60, queue)
    consumer = holding(broker, 8, *queues)
    found = run_all(consumer, 8, 60 * len(queues), 7)
    assert len(found) == 60 * len(queues) and set(found.values()) == {1}
    consumer.close()
    assert sum(broker.size(queue) for queue in queues) == 0


def test_several_quorum_queues_take_turns_and_hand_out_no_more_than_wanted(broker: AMQPBroker) -> None:
    for queue in "xyz":
        publish(broker, 10, queue)
    consumer = holding(broker, 6, *"xyz")
    held = [delivery for _ in range(6) for delivery in take(consumer, 1)]
    assert len({delivery.message.queue for delivery in held}) >= 2
    tags = set(consumer._tags)
    for _ in range(24):
        [first, *held] = held
        [fresh] = take(consumer, 1, acked([first]))
        assert not fresh.message.headers.get("redelivered")
        held.append(fresh)
    assert set(consumer._tags) == tags
    consumer.swap(acked(held), 0, 0)
    consumer.close()


def test_after_a_lost_connection_the_places_are_filled_again(
    rabbit_server: RabbitServer, broker: AMQPBroker
) -> None:
    publish(broker, 30)
    consumer = holding(broker, 10)
    held = take(consumer, 4)
    rabbit_server.close_connections()

    def lost() -> bool:
        try:
            consumer.extend(())
        except BrokerUnavailable:
            return True
        return False

    wait_until(lost)
    assert not any(map(consumer.holds, held))
    found = run_all(consumer, 10, 30, 3)
    assert len(found) == 30 and set(found.values()) == {1}
    consumer.close()
    assert broker.size("q") == 0


def test_a_message_that_is_early_waits_for_its_time_and_keeps_none_from_running(broker: AMQPBroker) -> None:
    def overtaken_in_time() -> bool:
        due = time.time() + 0.6
        early = call("early")
        early.headers["eta"] = iso(due)
        broker.publish([early, call("now")])
        consumer = holding(broker, 5)
        first = consumer.swap((), 5, 10.0)
        rest = take(consumer, 2 - len(first))
        ended = time.time()
        assert ended >= due
        consumer.swap(acked([*first, *rest]), 0, 0)
        consumer.close()
        return (ids(first), ids(rest)) == (["now"], ["early"]) and ended < due + 2

    assert any(overtaken_in_time() for _ in range(3))


def test_a_swap_that_does_not_wait_hands_out_what_is_there(broker: AMQPBroker) -> None:
    publish(broker, 25)
    consumer = holding(broker, 10)
    found: list[Delivery] = []
    for _ in range(25):
        [fresh] = consumer.swap((), 1, 0)
        found.append(fresh)
        consumer.swap(acked([fresh]), 0, 0)
    assert consumer.swap((), 1, 0) == []
    assert len({delivery.receipt for delivery in found}) == 25
    consumer.close()
