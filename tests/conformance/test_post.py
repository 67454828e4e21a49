"""Letters: who listens hears what is sent, on every broker, and nobody else does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import warnings
from typing import Any

import pytest

from minicelery.broker import Backend, Broker, post
from minicelery.broker.amqp import post as amqp_post
from minicelery.broker.post import LONGEST, WAITING, Box, Letter, Listening
from minicelery.exceptions import BrokerUnavailable
from minicelery.message import Outcome, Record, new_id
from tests.conformance.conftest import MakeBroker, MakeConsumer
from tests.conformance.messages import call
from tests.waiting import wait_until

EVENTS, REQUESTS, REPLIES = "celeryev", "celery.pidbox", "reply.celery.pidbox"


@pytest.fixture(autouse=True)
def _time_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here letters are news that must arrive, on busy machines too."""
    monkeypatch.setattr(amqp_post, "BRIEF", amqp_post.PATIENCE)


def event(key: str = "task.multi", content: Any = None, **fields: Any) -> Letter:
    return Letter(EVENTS, key, json.dumps(content).encode(), {"hostname": "w@h"}, **fields)


def request(content: Any = None) -> Letter:
    return Letter(REQUESTS, "", json.dumps(content).encode(), {"clock": 1, "expires": 2.5}, True)


def reply(oid: str, content: Any = None) -> Letter:
    return Letter(REPLIES, oid, json.dumps(content).encode(), {"ticket": "t", "clock": 3})


def events(key: str = "#") -> Box:
    return Box(EVENTS, "topic", f"celeryev.{new_id()}", key)


def requests(node: str = "w@h") -> Box:
    return Box(REQUESTS, "fanout", f"{node}.celery.pidbox")


def replies(oid: str) -> Box:
    return Box(REPLIES, "direct", f"{oid}.{REPLIES}", oid)


def taken(listening: Listening, count: int = 1, timeout: float = 20.0) -> list[Letter]:
    """`count` letters, in the order in which they came, and no more."""
    found: list[Letter] = []
    end = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < end:
        found += listening.take(end - time.monotonic())
    assert len(found) == count, found
    return found


def contents(letters: list[Letter]) -> list[Any]:
    return [letter.content for letter in letters]


def test_a_letter_arrives_as_it_was_sent(broker: Broker, make_broker: MakeBroker) -> None:
    sent = [event("worker.heartbeat", {"type": "é"}), request({"method": "ping"})]
    with make_broker().post.listen([events(), requests()]) as listening:
        broker.post.send(sent)
        found = taken(listening, 2)
    assert sorted(found, key=lambda letter: letter.exchange, reverse=True) == sent
    assert found[0].content == json.loads(found[0].body)


def test_everybody_who_listens_hears_a_request(broker: Broker, make_broker: MakeBroker) -> None:
    others = make_broker()
    with broker.post.listen([requests("a@h")]) as one, others.post.listen([requests("b@h")]) as other:
        broker.post.send([request(1)])
        assert contents(taken(one)) == contents(taken(other)) == [1]


def test_nothing_is_kept_for_who_does_not_listen_yet(broker: Broker) -> None:
    broker.post.send([event(content=1), request(1)])
    with broker.post.listen([events(), requests()]) as listening:
        broker.post.send([event(content=2)])
        assert contents(taken(listening)) == [2]
        assert listening.take(0) == []


def test_nothing_sent_after_listen_is_missed(broker: Broker, make_broker: MakeBroker) -> None:
    sender = make_broker()
    for turn in range(5):
        with broker.post.listen([events()]) as listening:
            sender.post.send([event(content=turn)])
            assert contents(taken(listening)) == [turn]


def test_letters_come_in_the_order_in_which_they_were_sent(broker: Broker) -> None:
    with broker.post.listen([events()]) as listening:
        broker.post.send([event(content=n) for n in range(50)])
        broker.post.send([event(content=n) for n in range(50, 60)])
        assert contents(taken(listening, 60)) == list(range(60))


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("#", ["task.multi", "workers.x", "worker.heartbeat", "worker.online"]),
        ("worker.#", ["worker.heartbeat", "worker.online"]),
        ("worker.online", ["worker.online"]),
        ("*.online", ["worker.online"]),
    ],
)
def test_a_listener_hears_the_events_it_has_asked_for(broker: Broker, pattern: str, keys: list[str]) -> None:
    with broker.post.listen([events(pattern)]) as listening:
        for key in ("task.multi", "workers.x", "worker.heartbeat", "worker.online"):
            broker.post.send([event(key)])
        assert [letter.routing_key for letter in taken(listening, len(keys))] == keys


def test_a_reply_comes_to_who_has_asked_and_to_nobody_else(broker: Broker, make_broker: MakeBroker) -> None:
    worker = make_broker()
    with broker.post.listen([replies("one")]) as one, broker.post.listen([replies("other")]) as other:
        worker.post.send([reply("one", 1), reply("nobody", 0), reply("other", 2), reply("one", 3)])
        assert contents(taken(one, 2)) == [1, 3]
        found = taken(other)
    assert contents(found) == [2]
    assert (found[0].exchange, found[0].routing_key, found[0].headers["ticket"]) == (REPLIES, "other", "t")
    worker.post.send([reply("one", 4)])


def test_a_reply_may_be_sent_to_a_queue_by_its_name(broker: Broker) -> None:
    with broker.post.listen([replies("me")]) as listening:
        broker.post.send([Letter("", f"me.{REPLIES}", b"{}")])
        assert taken(listening) == [Letter(REPLIES, "me", b"{}")]


def test_take_returns_nothing_after_its_time(broker: Broker) -> None:
    with broker.post.listen([requests()]) as listening:
        began = time.monotonic()
        assert listening.take(0.1) == []
        assert 0.1 <= time.monotonic() - began < 20


def test_wake_ends_a_take_that_waits_and_the_next_one(broker: Broker) -> None:
    with broker.post.listen([requests()]) as listening:
        listening.wake()
        assert listening.take(30) == []
        waker = threading.Timer(0.05, listening.wake)
        waker.start()
        began = time.monotonic()
        assert listening.take(30) == []
        assert time.monotonic() - began < 5
        waker.join()


def test_a_wake_is_not_lost_among_letters(broker: Broker) -> None:
    with broker.post.listen([requests()]) as listening:
        broker.post.send([request(1)])
        assert contents(taken(listening)) == [1]
        broker.post.send([request(2)])
        listening.wake()
        found: list[Letter] = []
        while more := listening.take(60):
            found += more
        found += [] if found else taken(listening)
        assert contents(found) == [2]


def test_what_can_not_be_read_is_left_out_and_told_once(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    deep = b"[" * 200_000
    bad = [b"\xff", b"", b"{", deep, b" " * (LONGEST + 1), b'{"__type__": "no", "__value__": 1}']
    with broker.post.listen([events(), requests()]) as listening, caplog.at_level(logging.WARNING):
        broker.post.send([Letter(EVENTS, "task.multi", body) for body in bad])
        broker.post.send([event(content="good")])
        assert contents(taken(listening)) == ["good"]
    (line,) = [record.getMessage() for record in caplog.records if "can't be read" in record.getMessage()]
    assert line.startswith(f"left out 1 letters to '{EVENTS}'")


def test_closing_the_broker_ends_who_listens(make_broker: MakeBroker) -> None:
    broker = make_broker()
    with broker.post.listen([requests()]) as listening:
        closer = threading.Timer(0.05, broker.close)
        closer.start()
        with pytest.raises(BrokerUnavailable):
            listening.take(30)
        closer.join()
    with broker.post.listen([requests()]) as listening:
        broker.post.send([request(1)])
        assert contents(taken(listening)) == [1]


def test_close_may_be_called_twice_and_wake_after_it(broker: Broker) -> None:
    listening = broker.post.listen([requests(), replies("x")])
    listening.close()
    listening.close()
    listening.wake()


def test_a_flood_of_what_can_not_be_read_keeps_nobody_from_waking(
    broker: Broker, make_broker: MakeBroker
) -> None:
    sender, stopped = make_broker(), threading.Event()

    def flood() -> None:
        while not stopped.is_set():
            sender.post.send([Letter(EVENTS, "task.multi", b"{")] * 100)

    with broker.post.listen([events()]) as listening:
        flooding = threading.Thread(target=flood)
        flooding.start()
        waker = threading.Timer(0.1, listening.wake)
        waker.start()
        try:
            assert listening.take(60) == []
        finally:
            stopped.set()
            flooding.join()
            waker.join()


def test_a_forked_child_that_leaves_ends_nothing_of_its_parents(broker: Broker) -> None:
    with broker.post.listen([requests(), replies("me")]) as listening:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
            child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                listening.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        broker.post.send([request(1)])
        assert contents(taken(listening)) == [1]
        broker.post.send([reply("me", 2)])
        assert contents(taken(listening)) == [2]


def test_who_listens_again_and_again_leaves_nothing_open(broker: Broker) -> None:
    def listen() -> None:
        with broker.post.listen([events(), requests(), replies("me")]) as listening:
            broker.post.send([request(1)])
            taken(listening)
        broker.post.listen([requests()]).close()

    listen()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        listen()
    wait_until(lambda: threading.active_count() <= threads)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files)


# -- what leaves with a consumer's next trip -------------------------------------------------------


def test_letters_leave_with_the_next_swap_after_what_it_settles(
    broker: Broker, make_broker: MakeBroker, make_consumer: MakeConsumer, backend: Backend
) -> None:
    consumer = make_consumer(backend=backend)
    broker.publish([call("a")])
    with make_broker().post.listen([events()]) as listening:
        (delivery,) = consumer.swap([], 1, 5)
        consumer.post([event(content=1), event(content=2)])
        assert listening.take(0.05) == []
        consumer.swap([Outcome(delivery, record=Record("a", b'{"status": "SUCCESS"}', "SUCCESS"))], 0, 0)
        assert contents(taken(listening, 2)) == [1, 2]
        assert backend.load(["a"])[0] is not None
        consumer.swap([], 0, 0)
        assert listening.take(0) == []


def test_letters_leave_with_the_next_extend(
    broker: Broker, make_consumer: MakeConsumer, backend: Backend
) -> None:
    consumer = make_consumer(backend=backend)
    broker.publish([call("a")])
    with broker.post.listen([events()]) as listening:
        (delivery,) = consumer.swap([], 1, 5)
        consumer.post([event(content=1)])
        consumer.extend([delivery])
        assert contents(taken(listening)) == [1]
        consumer.swap([Outcome(delivery)], 0, 0)
        assert listening.take(0) == []


def test_of_too_many_letters_the_oldest_are_dropped_and_counted(
    broker: Broker, make_consumer: MakeConsumer
) -> None:
    consumer = make_consumer()
    with broker.post.listen([events()]) as listening:
        consumer.post([event(content=n) for n in range(WAITING)])
        assert consumer.letters_dropped == 0
        consumer.post([event(content=n) for n in range(WAITING, WAITING + 7)])
        assert consumer.letters_dropped == 7
        consumer.swap([], 0, 0)
        assert contents(taken(listening, WAITING)) == list(range(7, WAITING + 7))


def test_letters_that_wait_are_bounded_in_bytes(
    broker: Broker, make_consumer: MakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "WAITING_BYTES", 4000)
    consumer = make_consumer()
    with broker.post.listen([events()]) as listening:
        big = "x" * 1000
        consumer.post([event(content=[n, big]) for n in range(9)])
        assert consumer.letters_dropped == 6
        consumer.swap([], 0, 0)
        assert [number for number, _ in contents(taken(listening, 3))] == [6, 7, 8]


def test_a_swap_that_waits_takes_letters_along_first(broker: Broker, make_consumer: MakeConsumer) -> None:
    consumer = make_consumer()
    with broker.post.listen([events()]) as listening:
        for turn in range(3):  # in the first one it begins to wait for its bell
            consumer.post([event(content=turn)])
            consumer.swap([], 1, 0.05)
            assert contents(taken(listening)) == [turn]


def test_letters_of_several_threads_are_sent_whole(broker: Broker) -> None:
    with broker.post.listen([events()]) as listening:
        threads = [
            threading.Thread(target=lambda n=n: [broker.post.send([event(content=n)]) for _ in range(10)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        found = contents(taken(listening, 40))
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted([*range(4)] * 10)


def test_a_letter_that_can_not_be_sent_fails_no_swap(
    broker: Broker, make_consumer: MakeConsumer, backend: Backend
) -> None:
    consumer = make_consumer(backend=backend)
    broker.publish([call("a")])
    with broker.post.listen([events()]) as listening:
        (delivery,) = consumer.swap([], 1, 5)
        consumer.post([Letter(EVENTS, "task.multi", b"1", {"odd": object()})])
        consumer.extend([delivery])
        consumer.post([Letter(EVENTS, "task.multi", b"2", {"odd": object()})])
        consumer.swap([Outcome(delivery)], 0, 0)
        consumer.post([event(content="good")])
        consumer.swap([], 0, 0)
        while "good" not in contents(found := listening.take(5)):
            assert found, "nothing came"
    assert broker.size("q") == 0
