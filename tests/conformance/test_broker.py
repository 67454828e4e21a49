"""What every broker does: order, delays, what operators ask for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings

import pytest

from minicelery.broker import Broker, Consumer, open_broker
from minicelery.message import Delivery, Outcome, Verdict
from tests.conformance.conftest import MakeBroker, MakeConsumer, Traits
from tests.conformance.messages import acked, call, drain, ids, serve
from tests.waiting import wait_until

BUSY = 2.0
"""Seconds by which a machine that is busy with other things may be late; 50 ms is the promise."""


def test_messages_come_in_the_order_they_were_published(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1"), call("2")])
    broker.publish([call("3")])
    assert drain(consumer) == ["1", "2", "3"]


def test_a_message_arrives_as_it_was_sent(broker: Broker, consumer: Consumer) -> None:
    sent = call("1", body=b"\x00\xff binary", content_type="application/x-msgpack", content_encoding="binary")
    sent.headers["custom"] = {"nested": [1, 2.5, None, "ü"]}
    sent.properties["reply_to"] = "somebody"
    broker.publish([sent])
    (delivery,) = consumer.swap([], 1, 0)
    got = delivery.message
    assert (got.id, got.task, got.queue, got.body) == ("1", "tasks.add", "q", b"\x00\xff binary")
    assert (got.content_type, got.content_encoding) == ("application/x-msgpack", "binary")
    assert got.headers == sent.headers
    assert got.properties["reply_to"] == "somebody"
    assert (delivery.deliveries, delivery.started, delivery.revoked, delivery.broken) == (
        0,
        False,
        False,
        None,
    )


def test_the_most_urgent_priority_is_served_first(
    broker: Broker, make_consumer: MakeConsumer, traits: Traits
) -> None:
    consumer = make_consumer("p")
    broker.publish([call(str(priority), "p", priority=priority) for priority in (9, 3, 6, 0)])
    expected = ["0", "3", "6", "9"]
    assert drain(consumer, limit=1) == (expected if traits.urgent == 0 else expected[::-1])


def test_a_message_without_priority_counts_as_priority_0(
    broker: Broker, make_consumer: MakeConsumer, traits: Traits
) -> None:
    consumer = make_consumer("p")
    broker.publish([call("three", "p", priority=3), call("none", "p"), call("zero", "p", priority=0)])
    expected = ["none", "zero", "three"]
    assert drain(consumer, 1) == (expected if traits.urgent == 0 else ["three", "none", "zero"])


def test_priority_counts_over_several_queues(
    broker: Broker, make_consumer: MakeConsumer, traits: Traits
) -> None:
    if not traits.shared_priorities:
        pytest.skip("RabbitMQ's priorities are each queue's own")
    broker.publish([call("a9", "a", priority=9), call("b0", "b", priority=0)])
    broker.publish([call("a0", "a", priority=0), call("b9", "b", priority=9)])
    found = drain(make_consumer("a", "b"), limit=1)
    assert sorted(found[:2]) == ["a0", "b0"]
    assert sorted(found[2:]) == ["a9", "b9"]


def test_a_full_queue_does_not_starve_another(broker: Broker, make_consumer: MakeConsumer) -> None:
    broker.publish([call(f"full-{n}", "full") for n in range(50)])
    broker.publish([call(f"rare-{n}", "rare") for n in range(3)])
    found = drain(make_consumer("full", "rare"), limit=4)
    assert max(found.index(f"rare-{n}") for n in range(3)) < 12


def test_a_batch_is_no_larger_than_wanted(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call(str(n)) for n in range(10)])
    assert ids(consumer.swap([], 4, 0)) == ["0", "1", "2", "3"]
    assert ids(consumer.swap([], 100, 0)) == ["4", "5", "6", "7", "8", "9"]


def test_a_message_goes_to_one_consumer_only(broker: Broker, make_consumer: MakeConsumer) -> None:
    broker.publish([call(str(n)) for n in range(20)])
    first, second = make_consumer(), make_consumer()
    found = ids(first.swap([], 7, 0)) + ids(second.swap([], 7, 0)) + ids(first.swap([], 7, 0))
    assert found == [str(n) for n in range(20)]


def test_a_consumer_takes_from_its_own_queues_only(broker: Broker, make_consumer: MakeConsumer) -> None:
    broker.publish([call("mine", "mine"), call("other", "other")])
    assert drain(make_consumer("mine")) == ["mine"]
    assert broker.size("other") == 1


def test_a_wait_ends_when_another_thread_publishes(
    broker: Broker, make_broker: MakeBroker, consumer: Consumer
) -> None:
    timer = threading.Timer(0.2, make_broker().publish, ([call("1")],))
    began = time.monotonic()
    timer.start()
    assert ids(consumer.swap([], 1, 40)) == ["1"]
    assert 0.15 < time.monotonic() - began < 20
    timer.join()


def test_a_wait_ends_when_another_process_publishes(url: str, consumer: Consumer) -> None:
    if url.startswith("memory:"):
        pytest.skip("memory is not shared by processes")
    program = (
        "from minicelery.broker import open_broker; from tests.conformance.messages import call\n"
        f"broker = open_broker({url!r}); broker.publish([call('1')]); broker.close()"
    )
    with subprocess.Popen([sys.executable, "-W", "error", "-c", program]) as process:
        assert ids(consumer.swap([], 1, 40)) == ["1"]
        assert process.wait(10) == 0


def test_without_a_message_a_wait_takes_its_time(consumer: Consumer) -> None:
    began = time.monotonic()
    assert consumer.swap([], 1, 0.2) == []
    assert 0.15 < time.monotonic() - began < 5


def test_a_message_due_later_comes_in_time_and_not_before(
    broker: Broker, consumer: Consumer, traits: Traits
) -> None:
    serve(broker, "q")
    assert any(lateness(broker, consumer, traits.delay) < BUSY for _ in range(3))


def test_a_delay_of_less_than_a_second_is_kept(broker: Broker, consumer: Consumer) -> None:
    serve(broker, "q")
    assert any(lateness(broker, consumer, 0.4) < BUSY for _ in range(3))


def lateness(broker: Broker, consumer: Consumer, delay: float) -> float:
    """Seconds by which a message that is delayed comes late; it does not come before its time."""
    due = time.time() + delay
    broker.publish([call("1", due=due)])
    found = consumer.swap([], 1, 0) or consumer.swap([], 1, 20)
    late = time.time() - due
    assert ids(found) == ["1"] and late > -0.001
    consumer.swap(acked(found), 0, 0)
    return late


def test_due_messages_come_in_the_order_of_their_times(broker: Broker, consumer: Consumer) -> None:
    serve(broker, "q")
    for gap in (0.1, 0.5, 2.0):
        now = time.time()
        broker.publish([call(str(n), due=now + n * gap) for n in (3, 1, 2)])
        found: list[str] = []
        are_in_time = True
        while len(found) < 3:
            fresh = consumer.swap([], 1, 5)
            found += ids(fresh)
            are_in_time = are_in_time and time.time() < now + (len(found) + 1) * gap
            consumer.swap(acked(fresh), 0, 0)
        if are_in_time:  # else the machine has stopped until several were due
            break
    assert found == ["1", "2", "3"]


def test_a_time_in_the_past_is_now(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1", due=time.time() - 10)])
    assert drain(consumer) == ["1"]


def test_a_new_earlier_message_ends_the_wait_for_a_later_one(
    broker: Broker, make_broker: MakeBroker, consumer: Consumer
) -> None:
    serve(broker, "q")
    broker.publish([call("late", due=time.time() + 60)])
    early = call("early", due=time.time() + 0.4)
    timer = threading.Timer(0.2, make_broker().publish, ([early],))
    timer.start()
    assert ids(consumer.swap([], 1, 40)) == ["early"]
    assert early.due is not None
    assert time.time() - early.due < 20
    timer.join()


def test_a_delayed_message_is_held_by_nobody(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer, traits: Traits
) -> None:
    serve(broker, "q")

    def waits_in_the_broker() -> bool:
        due = time.time() + traits.delay
        broker.publish([call("1", due=due)])
        found = consumer.swap([], 10, 0.05)
        counted = broker.size("q"), broker.delayed("q")
        if time.time() < due:
            assert (found, counted) == ([], (0, 1 if traits.counts_delays else None))
            return True
        consumer.swap(acked(found or consumer.swap([], 10, 20)), 0, 0)  # the machine has stopped: once more
        return False

    wait_until(waits_in_the_broker, timeout=20)
    consumer.close()
    assert ids(make_consumer().swap([], 10, 20)) == ["1"]


def test_size_counts_a_message_whose_delay_is_over_though_nobody_fetches(
    broker: Broker, traits: Traits
) -> None:
    serve(broker, "q")
    broker.publish([call("1", due=time.time() + traits.delay)])
    wait_until(lambda: broker.size("q") == 1, timeout=traits.delay + 10)
    assert not broker.delayed("q")


def test_an_expired_message_is_left_to_the_executor(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1", expires=time.time() - 1)])
    assert drain(consumer) == ["1"]


def test_size_counts_neither_held_nor_delayed(broker: Broker, consumer: Consumer, traits: Traits) -> None:
    delayed = 1 if traits.counts_delays else None
    serve(broker, "q")
    broker.publish([call(str(n)) for n in range(4)])
    broker.publish([call("high", priority=9), call("delayed", due=time.time() + 60)])
    held = consumer.swap([], 2, 0)
    assert (broker.size("q"), broker.delayed("q")) == (3, delayed)
    consumer.swap(acked(held), 0, 0)
    assert (broker.size("q"), broker.delayed("q"), broker.size("empty")) == (3, delayed, 0)


def test_purge_drops_ready_and_delayed_but_not_held(
    broker: Broker, consumer: Consumer, traits: Traits
) -> None:
    delayed = (0, 1) if traits.counts_delays else (None, 0)  # left, dropped
    serve(broker, "q")
    broker.publish([call("held"), call("2"), call("3", priority=6), call("4", due=time.time() + 60)])
    broker.publish([call("other", "other")])
    held = consumer.swap([], 1, 0)
    assert broker.purge("q") == 2 + delayed[1]
    assert (broker.size("q"), broker.delayed("q"), broker.size("other")) == (0, delayed[0], 1)
    consumer.swap([Outcome(held[0], Verdict.REQUEUE)], 0, 0)
    assert drain(consumer) == ["held"]
    assert broker.purge("empty") == 0


def test_a_large_body_arrives_whole(broker: Broker, consumer: Consumer) -> None:
    body = os.urandom(5 * 1024 * 1024)
    broker.publish([call("1", body=body)])
    (delivery,) = consumer.swap([], 1, 0)
    assert delivery.message.body == body


@pytest.mark.parametrize("name", ["grün 🐇", 'it\'s "quoted"', "back\\slash", "a b:c/d%s{0}", "q" * 200])
def test_odd_characters_in_queues_and_ids(
    broker: Broker, make_consumer: MakeConsumer, traits: Traits, name: str
) -> None:
    serve(broker, name)
    broker.publish([call(name, name), call(f"{name}2", name, due=time.time() + 60)])
    broker.remember("revoked", name, 60)
    consumer = make_consumer(name)
    (delivery,) = consumer.swap([], 5, 0)
    assert (delivery.message.id, delivery.message.queue, delivery.revoked) == (name, name, True)
    consumer.swap([Outcome(delivery, Verdict.REJECT, reason=name)], 0, 0)
    assert [(letter.id, letter.reason) for letter in broker.dead_letters(name)] == [(name, name)]
    assert broker.purge(name) == (1 if traits.counts_delays else 0)


def test_publishing_nothing_is_no_error(broker: Broker) -> None:
    broker.publish([])
    assert broker.size("q") == 0


def test_many_messages_at_once_keep_their_order(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call(str(n)) for n in range(3000)])
    assert drain(consumer) == [str(n) for n in range(3000)]


def test_what_is_remembered_is_recalled_until_it_expires(broker: Broker, make_broker: MakeBroker) -> None:
    broker.remember("topic", "long", 60, b"old")
    broker.remember("topic", "long", 60, b"\x00new")
    broker.remember("other", "key", 60)
    reader = make_broker()

    def are_recalled() -> bool:
        broker.remember("topic", "short", 1.0, b"1")
        return reader.recall("topic") == {"short": b"1", "long": b"\x00new"}

    wait_until(are_recalled)  # where the machine stops in between, one has expired
    assert reader.recall("other") == {"key": b""}
    wait_until(lambda: broker.recall("topic") == {"long": b"\x00new"})
    assert broker.recall("unknown") == {}


def test_a_revoked_message_is_delivered_and_marked(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("revoked"), call("other"), call("forgiven")])
    broker.remember("revoked", "revoked", 60)
    broker.remember("revoked", "forgiven", 0.1)
    wait_until(lambda: list(broker.recall("revoked")) == ["revoked"])
    marks = {delivery.message.id: delivery.revoked for delivery in consumer.swap([], 3, 0)}
    assert marks == {"revoked": True, "other": False, "forgiven": False}


def test_dead_letters_come_newest_first(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call(str(n)) for n in range(4)])
    for delivery in consumer.swap([], 4, 0):
        consumer.swap([Outcome(delivery, Verdict.REJECT, reason=f"reason {delivery.message.id}")], 0, 0)
    letters = broker.dead_letters("q", limit=3)
    assert [(letter.id, letter.reason) for letter in letters] == [(n, f"reason {n}") for n in ("3", "2", "1")]
    assert letters[0].task == "tasks.add"
    assert letters[0].raw
    assert abs(letters[0].rejected - time.time()) < 60
    assert broker.dead_letters("other") == []
    assert (broker.dead("q"), broker.dead("other")) == (4, 0)


def test_a_closed_broker_may_be_used_again(broker: Broker, consumer: Consumer) -> None:
    broker.publish([call("1")])
    broker.close()
    broker.publish([call("2")])
    assert drain(consumer) == ["1", "2"]


def test_threads_share_one_broker(broker: Broker, make_consumer: MakeConsumer) -> None:
    found: list[str] = []

    def produce(thread: int) -> None:
        for n in range(0, 100, 5):
            broker.publish([call(f"{thread}-{n + i}") for i in range(5)])

    def consume(consumer: Consumer) -> None:
        fresh: list[Delivery] = []
        end = time.monotonic() + 30
        while len(found) < 400 and time.monotonic() < end:
            fresh = consumer.swap(acked(fresh), 7, 0.2)
            found.extend(ids(fresh))
        consumer.swap(acked(fresh), 0, 0)

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=consume, args=(make_consumer(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert sorted(found) == sorted(f"{thread}-{n}" for thread in range(4) for n in range(100))
    assert broker.size("q") == 0


def test_parent_and_forked_child_publish_through_one_broker(
    url: str, broker: Broker, consumer: Consumer
) -> None:
    if url.startswith("memory:"):
        pytest.skip("memory is not shared by processes")
    broker.publish([call("before")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for n in range(100):
                broker.publish([call(f"child-{n}")])
            code = 0
        finally:
            os._exit(code)
    for n in range(100):
        broker.publish([call(f"parent-{n}")])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    expected = ["before", *(f"{who}-{n}" for who in ("parent", "child") for n in range(100))]
    assert sorted(drain(consumer)) == sorted(expected)


def test_the_url_is_safe_to_print(broker: Broker) -> None:
    assert "://" in broker.url
    masked = open_broker("redis://:secret@127.0.0.1:1/0").url
    assert "secret" not in masked
