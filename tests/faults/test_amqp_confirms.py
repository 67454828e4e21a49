"""What a publish that was given up leaves behind on its connection, and must not harm the next one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from minicelery.broker.amqp import AMQPBroker
from minicelery.broker.amqp.consumer import AMQPConsumer
from minicelery.broker.amqp.link import Link
from minicelery.broker.topology import plain_queue
from minicelery.exceptions import BackendUnavailable, BrokerUnavailable
from minicelery.message import Delivery, Outcome, Record, Verdict
from tests.conformance.messages import acked, call, drain, ids, record
from tests.faults.test_amqp_faults import opened, short_of_memory, specs
from tests.rabbit import RabbitServer
from tests.waiting import wait_until, within

FULL = replace(plain_queue("full"), arguments={"x-max-length": 1, "x-overflow": "reject-publish"})


@pytest.fixture
def broker(private_rabbit: RabbitServer) -> Iterator[AMQPBroker]:
    """A broker on a server whose memory alarm a test may raise; one message fills its queue `full`."""
    yield from opened(private_rabbit.url(), spec_of=specs(FULL))


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Within this block a publish has a second: what is to fail need not take five."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicelery.broker.amqp.broker.PUBLISH_DEADLINE", 1.0)
        yield


def is_blocked(broker: AMQPBroker, queue: str = "q", body: bytes = b"[]") -> bool:
    """Whether a publish is given up because the server takes no messages: it may not have said so in time."""
    with pytest.raises(BrokerUnavailable) as caught:
        broker.publish([call("during", queue=queue, body=body)], deadline=1.0)
    return "takes no messages at present" in str(caught.value)


def test_a_message_that_was_sent_in_part_does_not_spoil_the_connection(
    private_rabbit: RabbitServer, broker: AMQPBroker
) -> None:
    broker.publish([call("before")])
    private_rabbit.raise_memory_alarm()
    wait_until(lambda: is_blocked(broker, body=b"x" * 20_000_000))
    private_rabbit.clear_memory_alarm()
    broker.publish([call("after")])
    consumer = broker.consumer(["q"], "a", None)
    assert drain(consumer) == ["before", "after"]
    consumer.close()


def given_up(server: RabbitServer, broker: AMQPBroker) -> None:
    """Have the server refuse a message, on an idle connection, that was given up while it was blocked."""
    broker.publish([call("1", queue="full")])

    def blocked() -> Link | None:
        broker.size("full")
        link: Link = broker.sure._idle[0].link
        server.raise_memory_alarm()
        told = is_blocked(broker, "full")
        server.clear_memory_alarm()
        return link if told else None

    link = wait_until(blocked, 30)
    wait_until(lambda: link.readable(0))
    assert broker.sure._idle[0].link is link


def test_a_late_refusal_is_not_taken_for_the_next_messages(
    private_rabbit: RabbitServer, broker: AMQPBroker
) -> None:
    given_up(private_rabbit, broker)
    link = broker.sure._idle[0].link
    broker.publish([call("3", queue="other"), call("4", queue="other")], deadline=5.0)
    assert (broker.size("other"), broker.size("full")) == (2, 1)
    assert broker.sure._idle[0].link is link
    assert link.limited == link.timeout  # and has the usual time for each send again


def test_a_late_refusal_is_not_taken_for_a_dead_letters(
    private_rabbit: RabbitServer, broker: AMQPBroker
) -> None:
    given_up(private_rabbit, broker)
    broker.bury(Delivery(call("m"), 1), "no good")
    assert broker.dead("q") == 1


def test_dead_letters_wait_while_the_server_takes_no_messages_and_other_outcomes_do_not(
    private_rabbit: RabbitServer, broker: AMQPBroker
) -> None:
    broker.publish([call(f"{number}") for number in range(4)])
    consumer = broker.consumer(["q"], "a", None)
    [bad, good] = consumer.swap((), 2, 0)
    short_of_memory(private_rabbit, broker)
    done = [Outcome(bad, Verdict.REJECT, reason="no good"), Outcome(good)]

    def settle() -> None:
        with pytest.raises(BrokerUnavailable, match="1 outcomes wait"):
            consumer.swap((), 0, 0)

    with impatient():
        found = consumer.swap(done, 1, 10.0)
        assert ids(found) == ["2"]
        found = consumer.swap(acked(found), 1, 10.0)
        assert ids(found) == ["3"]
        consumer.swap(acked(found), 1, 0)
        within(0.9, settle)  # only the first attempt is given the usual time
    private_rabbit.clear_memory_alarm()
    wait_until(lambda: consumer.swap((), 1, 0.05) == [] and broker.dead("q") == 1)
    [letter] = broker.dead_letters("q")
    assert (letter.id, letter.reason) == ("0", "no good")


def test_what_waits_for_memory_is_sent_by_a_child_that_is_never_idle(
    private_rabbit: RabbitServer, broker: AMQPBroker
) -> None:
    broker.publish([call() for _ in range(250)])
    consumer = broker.consumer(["q"], "a", None)
    [first] = consumer.swap((), 1, 10.0)
    short_of_memory(private_rabbit, broker)
    with impatient():
        found = consumer.swap([Outcome(first, publish=[call("next", queue="other")])], 1, 10.0)
    private_rabbit.clear_memory_alarm()
    end = time.monotonic() + 20
    while broker.size("other") == 0 and time.monotonic() < end:
        broker.publish([call()])  # there are more, however fast this machine is
        found = consumer.swap(acked(found), 1, 10.0)
        assert found
    assert broker.size("other") == 1
    consumer.close()


def test_an_outcome_that_waits_for_memory_and_is_handed_in_again_is_sent_once(
    private_rabbit: RabbitServer, broker: AMQPBroker
) -> None:
    broker.publish([call("1")])
    consumer = broker.consumer(["q"], "a", None)
    done = [Outcome(each, publish=[call("next", queue="other")]) for each in consumer.swap((), 1, 10.0)]
    short_of_memory(private_rabbit, broker)
    for _ in range(2):
        with impatient(), pytest.raises(BrokerUnavailable, match="1 outcomes wait"):
            consumer.swap(done, 0, 0)
    private_rabbit.clear_memory_alarm()
    wait_until(lambda: settled(consumer, done))
    assert broker.size("other") == 1
    consumer.close()
    assert broker.size("q") == 0


def settled(consumer: AMQPConsumer, done: list[Outcome]) -> bool:
    try:
        consumer.swap(done, 0, 0)
    except BrokerUnavailable:
        return False
    return True


class Failing:
    """A result store that is away."""

    url = "nowhere"
    away = True

    def store(self, records: Sequence[Record]) -> None:
        if self.away:
            raise BackendUnavailable("it is away")


def test_what_waits_for_memory_is_not_forgotten_while_the_result_store_is_away(
    private_rabbit: RabbitServer, broker: AMQPBroker
) -> None:
    broker.publish([call("1"), call("2")])
    store = Failing()
    consumer = broker.consumer(["q"], "a", store)  # type: ignore[arg-type]
    [first, second] = consumer.swap((), 2, 0)
    short_of_memory(private_rabbit, broker)
    with impatient():
        consumer.swap([Outcome(first, publish=[call("next", queue="other")])], 1, 0)
    private_rabbit.clear_memory_alarm()
    done = [Outcome(second, record=record("2"))]
    with pytest.raises(BackendUnavailable):
        consumer.swap(done, 0, 0)
    store.away = False
    wait_until(lambda: settled(consumer, done))
    assert broker.size("other") == 1
    consumer.close()
    assert broker.size("q") == 0
