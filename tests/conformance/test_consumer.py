"""What every consumer does: settling, holding, taking over."""

from __future__ import annotations

import contextlib
import threading
import time

from minicelery.broker import Backend, Broker, Consumer
from minicelery.message import Outcome, Verdict
from tests.conformance.conftest import MakeBroker, MakeConsumer, Traits
from tests.conformance.messages import acked, call, drain, ids, record, requeued, serve
from tests.waiting import wait_until


def test_receipts_rise(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call(str(n)) for n in range(6)])
    receipts = [delivery.receipt for _ in range(3) for delivery in consumer.swap([], 2, 0)]
    assert receipts == sorted(set(receipts))
    assert len(receipts) == 6


def test_what_is_acknowledged_is_gone(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1"), call("2")])
    consumer.swap(acked(consumer.swap([], 1, 0)), 0, 0)
    consumer.close()
    assert drain(make_consumer()) == ["2"]


def test_one_swap_settles_and_fetches(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1"), call("2")])
    fresh = consumer.swap([], 1, 0)
    assert ids(consumer.swap(acked(fresh), 1, 0)) == ["2"]


def test_an_outcome_stores_publishes_and_settles(
    broker: Broker, consumer: Consumer, backend: Backend, traits: Traits
) -> None:
    serve(broker, "q")
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 0)
    follow_ups = [call("next"), call("later", due=time.time() + 60), call("elsewhere", "other")]
    fresh = consumer.swap([Outcome(delivery, record=record("1"), publish=follow_ups)], 5, 0)
    assert ids(fresh) == ["next"]
    assert (broker.delayed("q"), broker.size("other")) == (1 if traits.counts_delays else None, 1)
    (stored,) = backend.load(["1"])
    assert stored is not None
    assert stored.document == record("1").document


def test_the_same_outcome_twice_applies_once(broker: Broker, consumer: Consumer, backend: Backend) -> None:
    broker.publish([call("1")])
    done = [Outcome(d, record=record("1"), publish=[call("next", "other")]) for d in consumer.swap([], 1, 0)]
    consumer.swap(done, 0, 0)
    consumer.swap(done, 0, 0)
    assert broker.size("other") == 1
    assert broker.size("q") == 0


def test_the_same_requeue_twice_applies_once(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1")])
    done = requeued(consumer.swap([], 1, 0))
    consumer.swap(done, 0, 0)
    consumer.swap(done, 0, 0)
    assert drain(consumer) == ["1"]


def test_a_lost_outcome_does_not_stop_the_others(
    broker: Broker, consumer: Consumer, backend: Backend
) -> None:
    broker.publish([call(str(n)) for n in range(3)])
    fresh = consumer.swap([], 3, 0)
    consumer.swap(acked(fresh[1:2]), 0, 0)
    consumer.swap([Outcome(d, record=record(d.message.id)) for d in fresh], 0, 0)
    stored = backend.load(["0", "1", "2"])
    assert [item is not None for item in stored] == [True, False, True]


def test_records_may_go_to_another_server(
    broker: Broker, make_consumer: MakeConsumer, other_backend: Backend
) -> None:
    broker.publish([call("1"), call("2")])
    consumer = make_consumer(backend=other_backend)
    first, second = consumer.swap([], 2, 0)
    consumer.swap(acked([second]), 0, 0)
    consumer.swap([Outcome(d, record=record(d.message.id)) for d in (first, second)], 0, 0)
    stored = other_backend.load(["1", "2"])
    assert [item is not None for item in stored] == [True, False]
    consumer.extend([], [record("3", "STARTED")])
    assert other_backend.load(["3"]) != [None]


def test_without_a_backend_records_are_dropped(broker: Broker, make_consumer: MakeConsumer) -> None:
    broker.publish([call("1")])
    consumer = make_consumer()
    consumer.swap([Outcome(d, record=record("1")) for d in consumer.swap([], 1, 0)], 0, 0)
    assert drain(consumer) == []


def test_a_requeued_message_goes_to_the_front_uncounted(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1"), call("2"), call("3")])
    (delivery,) = fresh = consumer.swap([], 1, 0)
    (again,) = consumer.swap(requeued(fresh), 1, 0)
    assert (again.message.id, again.deliveries, again.started) == ("1", 0, False)
    assert again.receipt > delivery.receipt
    assert ids(consumer.swap([], 5, 0)) == ["2", "3"]


def test_messages_requeued_together_keep_their_order(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call(str(n)) for n in range(5)])
    # The last one first, as each goes before all others.
    consumer.swap(requeued(consumer.swap([], 3, 0)[::-1]), 0, 0)
    assert drain(consumer) == ["0", "1", "2", "3", "4"]


def test_a_requeued_message_keeps_its_priority(
    broker: Broker, make_consumer: MakeConsumer, traits: Traits
) -> None:
    consumer = make_consumer("p")
    broker.publish([call("low", "p", priority=9 - traits.urgent)])
    fresh = consumer.swap([], 1, 0)
    broker.publish([call("high", "p", priority=traits.urgent)])
    consumer.swap(requeued(fresh), 0, 0)
    assert drain(consumer) == ["high", "low"]


def test_a_requeued_message_wakes_another_consumer(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1")])
    fresh = consumer.swap([], 1, 0)
    timer = threading.Timer(0.2, consumer.swap, (requeued(fresh), 0, 0))
    timer.start()
    began = time.monotonic()
    assert ids(make_consumer().swap([], 1, 10)) == ["1"]
    assert time.monotonic() - began < 5
    timer.join()


def test_a_counted_requeue_is_seen_by_the_next_consumer(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1")])
    other = make_consumer()
    for count in (1, 2):
        (delivery,) = consumer.swap([], 1, 5)
        delivery.deliveries += 1
        consumer.swap(requeued([delivery]), 0, 0)
        (seen,) = other.swap([], 1, 5)
        assert (seen.deliveries, seen.started) == (count, False)
        assert seen.message.headers["redelivered"] is True
        other.swap(requeued([seen]), 0, 0)


def test_a_rejected_message_is_a_dead_letter(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 0)
    consumer.swap([Outcome(delivery, Verdict.REJECT, reason="no good")], 0, 0)
    (letter,) = broker.dead_letters("q")
    assert (letter.id, letter.task, letter.reason) == ("1", "tasks.add", "no good")
    consumer.close()
    assert drain(make_consumer()) == []


def test_want_0_only_settles(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1"), call("2")])
    fresh = consumer.swap([], 1, 0)
    began = time.monotonic()
    assert consumer.swap(acked(fresh), 0, 40) == []
    assert time.monotonic() - began < 20
    assert broker.size("q") == 1


def test_wake_ends_a_wait(consumer: Consumer) -> None:
    timer = threading.Timer(0.2, consumer.wake)
    timer.start()
    began = time.monotonic()
    assert consumer.swap([], 1, 10) == []
    assert time.monotonic() - began < 5
    timer.join()


def test_wake_before_a_wait_ends_that_one_only(consumer: Consumer) -> None:
    consumer.wake()
    began = time.monotonic()
    assert consumer.swap([], 1, 10) == []
    assert time.monotonic() - began < 5
    assert consumer.swap([], 1, 0.2) == []
    assert time.monotonic() - began > 0.15


def test_outcomes_are_applied_before_the_wait(
    broker: Broker, make_broker: MakeBroker, consumer: Consumer, backend: Backend
) -> None:
    broker.publish([call("1")])
    done = [Outcome(d, record=record("1")) for d in consumer.swap([], 1, 0)]
    found: list[bool] = []

    def look() -> None:
        with contextlib.suppress(AssertionError):
            found.append(wait_until(lambda: backend.load(["1"]) != [None]))
        consumer.wake()

    looking = threading.Thread(target=look)
    looking.start()
    consumer.swap(done, 1, 40)
    looking.join()
    assert found == [True]


def test_extend_stores_records(broker: Broker, consumer: Consumer, backend: Backend) -> None:
    broker.publish([call("1")])
    fresh = consumer.swap([], 1, 0)
    consumer.extend(fresh, [record("1", "STARTED"), record("other", "STARTED")])
    assert None not in backend.load(["1", "other"])
    consumer.swap([Outcome(d, record=record("1")) for d in fresh], 0, 0)
    (stored,) = backend.load(["1"])
    assert stored is not None
    assert stored.document == record("1").document


def test_close_gives_everything_back_to_the_front_in_order(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call(str(n)) for n in range(5)])
    fresh = consumer.swap([], 2, 0) + consumer.swap([], 1, 0)
    consumer.extend(fresh[:1])
    consumer.close()
    found = make_consumer().swap([], 5, 0)
    assert ids(found) == ["0", "1", "2", "3", "4"]
    assert {(d.deliveries, d.started) for d in found} == {(0, False)}


def test_close_wakes_a_waiting_consumer(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1")])
    consumer.swap([], 1, 0)
    timer = threading.Timer(0.2, consumer.close)
    timer.start()
    assert ids(make_consumer().swap([], 1, 10)) == ["1"]
    timer.join()


def test_a_consumer_may_be_closed_without_ever_having_fetched(make_consumer: MakeConsumer) -> None:
    consumer = make_consumer()
    consumer.close()
    consumer.close()
