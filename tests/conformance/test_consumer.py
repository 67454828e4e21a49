"""What every consumer does: settling, holding, taking over."""

from __future__ import annotations

import threading
import time

from minicelery.broker import Backend, Broker, Consumer
from minicelery.message import Outcome, Verdict
from tests.conformance.conftest import MakeBroker, MakeConsumer
from tests.conformance.messages import acked, call, drain, ids, record, requeued, serve
from tests.waiting import wait_until

LEASE = 0.3


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
    broker: Broker, consumer: Consumer, backend: Backend
) -> None:
    serve(broker, "q")
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 0)
    follow_ups = [call("next"), call("later", due=time.time() + 60), call("elsewhere", "other")]
    fresh = consumer.swap([Outcome(delivery, record=record("1"), publish=follow_ups)], 5, 0)
    assert ids(fresh) == ["next"]
    assert (broker.delayed("q"), broker.size("other")) == (1, 1)
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


def test_an_outcome_no_longer_held_is_skipped_whole(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer, backend: Backend
) -> None:
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 0)
    other = make_consumer(backend=backend)
    other.adopt(consumer.name)
    lost = Outcome(delivery, Verdict.REJECT, record("1", "FAILURE"), [call("next", "other")], "late")
    consumer.swap([lost], 0, 0)
    assert backend.load(["1"]) == [None]
    assert broker.size("other") == 0
    assert broker.dead_letters("q") == []


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


def test_a_requeued_message_keeps_its_priority(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("low", priority=9)])
    fresh = consumer.swap([], 1, 0)
    broker.publish([call("high", priority=0)])
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
    assert time.monotonic() - began < 1
    timer.join()


def test_a_counted_requeue_is_seen_by_the_next_consumer(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1")])
    other = make_consumer()
    for count in (1, 2):
        (delivery,) = consumer.swap([], 1, 0)
        delivery.deliveries += 1
        consumer.swap(requeued([delivery]), 0, 0)
        (seen,) = other.swap([], 1, 0)
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
    assert consumer.swap(acked(fresh), 0, 5) == []
    assert time.monotonic() - began < 2
    assert broker.size("q") == 1


def test_wake_ends_a_wait(consumer: Consumer) -> None:
    timer = threading.Timer(0.2, consumer.wake)
    timer.start()
    began = time.monotonic()
    assert consumer.swap([], 1, 10) == []
    assert time.monotonic() - began < 1
    timer.join()


def test_wake_before_a_wait_ends_that_one_only(consumer: Consumer) -> None:
    consumer.wake()
    began = time.monotonic()
    assert consumer.swap([], 1, 10) == []
    assert time.monotonic() - began < 1
    assert consumer.swap([], 1, 0.2) == []
    assert time.monotonic() - began > 0.15


def test_outcomes_are_applied_before_the_wait(
    broker: Broker, make_broker: MakeBroker, consumer: Consumer, backend: Backend
) -> None:
    broker.publish([call("1")])
    done = [Outcome(d, record=record("1")) for d in consumer.swap([], 1, 0)]
    found: list[bool] = []

    def look() -> None:
        found.append(backend.load(["1"]) != [None])
        consumer.wake()

    timer = threading.Timer(0.2, look)
    timer.start()
    consumer.swap(done, 1, 10)
    timer.join()
    assert found == [True]


def test_extend_marks_what_was_started_for_who_adopts(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1"), call("2")])
    first, second = consumer.swap([], 2, 0)
    consumer.extend([first])
    adopted = make_consumer().adopt(consumer.name)
    assert [(d.message.id, d.receipt, d.started) for d in adopted] == [
        ("1", first.receipt, True),
        ("2", second.receipt, False),
    ]


def test_extend_stores_records(broker: Broker, consumer: Consumer, backend: Backend) -> None:
    broker.publish([call("1")])
    fresh = consumer.swap([], 1, 0)
    consumer.extend(fresh, [record("1", "STARTED"), record("other", "STARTED")])
    assert None not in backend.load(["1", "other"])
    consumer.swap([Outcome(d, record=record("1")) for d in fresh], 0, 0)
    (stored,) = backend.load(["1"])
    assert stored is not None
    assert stored.document == record("1").document


def test_what_adopt_marks_stays_marked(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1"), call("2")])
    first, second = consumer.swap([], 2, 0)
    agent, next_agent = make_consumer(), make_consumer()
    for adopted in (
        agent.adopt(consumer.name, {second.receipt: "worker lost"}),
        agent.adopt(consumer.name),
        next_agent.adopt(agent.name),
    ):
        assert [(d.message.id, d.receipt) for d in adopted] == [("1", first.receipt), ("2", second.receipt)]
        assert [(d.started, d.reason) for d in adopted] == [(False, None), (True, "worker lost")]


def test_the_adopted_is_settled_by_ordinary_outcomes(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer, backend: Backend
) -> None:
    broker.publish([call(str(n)) for n in range(4)])
    consumer.swap([], 3, 0)
    agent = make_consumer(backend=backend)
    first, second, third = agent.adopt(consumer.name)
    agent.swap(
        [
            Outcome(first, record=record("0", "FAILURE")),
            Outcome(second, Verdict.REJECT, reason="worker lost"),
            Outcome(third, Verdict.REQUEUE),
        ],
        0,
        0,
    )
    assert backend.load(["0"]) != [None]
    assert [letter.id for letter in broker.dead_letters("q")] == ["1"]
    assert drain(make_consumer()) == ["2", "3"]


def test_after_adopt_the_old_name_settles_nothing(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call("1")])
    fresh = consumer.swap([], 1, 0)
    agent = make_consumer()
    (adopted,) = agent.adopt(consumer.name)
    consumer.swap(acked(fresh), 0, 0)
    consumer.swap(requeued(fresh), 0, 0)
    assert broker.size("q") == 0
    agent.swap(requeued([adopted]), 0, 0)
    assert broker.size("q") == 1


def test_who_adopted_fetches_on_with_new_receipts(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer
) -> None:
    broker.publish([call(str(n)) for n in range(4)])
    consumer.swap([], 2, 0)
    agent = make_consumer()
    adopted = agent.adopt(consumer.name)
    fresh = agent.swap([], 2, 0)
    assert min(d.receipt for d in fresh) > max(d.receipt for d in adopted)
    agent.swap(acked(adopted), 0, 0)
    agent.close()
    assert drain(make_consumer()) == ["2", "3"]


def test_adopting_who_holds_nothing_gives_nothing(consumer: Consumer) -> None:
    assert consumer.adopt("nobody") == []
    assert consumer.adopt("nobody", {7: "worker lost"}) == []


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


def test_tend_names_only_those_whose_lease_has_ended(
    make_broker: MakeBroker, make_consumer: MakeConsumer
) -> None:
    broker = make_broker(lease=LEASE)
    broker.publish([call(str(n)) for n in range(3)])
    alive, dead, idle = (make_consumer(on=broker) for _ in range(3))
    alive.swap([], 1, 0)
    dead.swap([], 1, 0)
    idle.swap(acked(idle.swap([], 1, 0)), 0, 0)
    ended = wait_until(lambda: broker.tend(["q"], [alive.name]))
    assert ended == [dead.name]


def test_a_consumer_that_extends_keeps_its_lease(
    make_broker: MakeBroker, make_consumer: MakeConsumer
) -> None:
    broker = make_broker(lease=LEASE)
    broker.publish([call("1"), call("2")])
    busy, dead = make_consumer(on=broker), make_consumer(on=broker)
    held = busy.swap([], 1, 0)
    dead.swap([], 1, 0)

    def tend() -> list[str]:
        busy.extend(held)
        return broker.tend(["q"], [])

    assert wait_until(tend) == [dead.name]


def test_what_is_adopted_is_not_reported_again(make_broker: MakeBroker, make_consumer: MakeConsumer) -> None:
    broker = make_broker(lease=LEASE)
    broker.publish([call("1")])
    dead, agent = make_consumer(on=broker), make_consumer(on=broker)
    dead.swap([], 1, 0)
    assert wait_until(lambda: broker.tend(["q"], [agent.name])) == [dead.name]
    adopted = agent.adopt(dead.name)
    assert ids(adopted) == ["1"]
    until = time.monotonic() + 2 * LEASE
    while time.monotonic() < until:
        assert broker.tend(["q"], [agent.name]) == []
        time.sleep(0.02)
    agent.swap(requeued(adopted), 0, 0)
    assert drain(make_consumer(on=broker)) == ["1"]


def test_nobody_is_reaped_until_a_lease_after_tending_began(
    make_broker: MakeBroker, make_consumer: MakeConsumer
) -> None:
    broker = make_broker(lease=LEASE)
    broker.publish([call("1")])
    dead = make_consumer(on=broker)
    dead.swap([], 1, 0)
    time.sleep(LEASE + 0.1)  # the lease ends while nobody tends, as in an outage
    began = time.monotonic()
    assert broker.tend(["q"], []) == []
    assert wait_until(lambda: broker.tend(["q"], [])) == [dead.name]
    assert time.monotonic() - began >= LEASE - 0.02


def test_after_a_gap_in_tending_everybody_has_one_more_lease(
    make_broker: MakeBroker, make_consumer: MakeConsumer
) -> None:
    broker = make_broker(lease=LEASE)
    broker.publish([call("1")])
    dead = make_consumer(on=broker)
    until = time.monotonic() + 2 * LEASE
    while time.monotonic() < until:
        assert broker.tend(["q"], []) == []
        time.sleep(0.02)
    dead.swap([], 1, 0)
    time.sleep(3.2)  # longer than the gap that counts as an outage
    assert broker.tend(["q"], []) == []
    assert wait_until(lambda: broker.tend(["q"], [])) == [dead.name]


def test_tend_looks_at_the_named_queues_only(make_broker: MakeBroker, make_consumer: MakeConsumer) -> None:
    broker = make_broker(lease=LEASE)
    broker.publish([call("1", "mine"), call("2", "other")])
    mine, other = make_consumer("mine", on=broker), make_consumer("other", on=broker)
    mine.swap([], 1, 0)
    other.swap([], 1, 0)
    assert wait_until(lambda: broker.tend(["mine"], [])) == [mine.name]
