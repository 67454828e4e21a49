"""What consumers do whose broker keeps leases: holding, marking, taking over.

RabbitMQ itself gives back what a lost connection held; what a worker makes of that is tested in
`test_amqp` and `tests/worker`.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from minicelery.broker import Backend, Broker, Consumer
from minicelery.message import Outcome, Verdict
from tests.conformance.conftest import MakeBroker, MakeConsumer, server_url
from tests.conformance.messages import acked, call, drain, ids, record, requeued
from tests.waiting import wait_until

LEASE = 0.3


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A broker that keeps leases: the three that are stores as well."""
    return server_url(request, tmp_path)


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
        while True:
            began = time.monotonic()
            busy.extend(held)
            ended = broker.tend(["q"], [])
            if time.monotonic() - began < LEASE:  # else the machine has stopped: once more
                return ended

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
