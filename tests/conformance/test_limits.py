"""Limits: what every store of them does, and that what waits stays in the broker and blocks nobody."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from minicelery.broker import Broker, Limits, open_broker
from minicelery.broker.sqlite import file as sqlite_file
from minicelery.limits import Ask, Wait
from minicelery.message import TURN_HEADER, Delivery, Message, Outcome, Verdict, new_id
from tests.conformance.conftest import server_url
from tests.conformance.messages import call, drain
from tests.proxy import Proxy
from tests.servers import RedisServer
from tests.waiting import wait_until

ROOM, RATE = "room.t", "rate.t"


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A broker that keeps limits."""
    return server_url(request, tmp_path)


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = open_broker(url)
    broker.tend(["q"], [])
    yield broker
    broker.close()


@pytest.fixture
def limits(broker: Broker) -> Limits:
    """The broker's own: what waits stays there."""
    store: Limits = broker.limits(parks=True)  # type: ignore[attr-defined]
    return store


@pytest.fixture
def elsewhere(broker: Broker) -> Limits:
    """The store as one beside a broker that keeps no limits."""
    store: Limits = broker.limits(parks=False)  # type: ignore[attr-defined]
    return store


class Hand:
    """A worker as far as limits know one: fetches, asks, runs or parks, settles."""

    def __init__(self, broker: Broker, limits: Limits, ask: Callable[[Message], Ask | None]) -> None:
        self.consumer = broker.consumer(["q"], f"hand-{new_id()}", None)
        self.limits = limits
        self.ask = ask
        self.done: list[Outcome] = []
        self.running: list[Delivery] = []
        self.begun: list[str] = []
        self.asks: list[float] = []  # of what has begun: when it asked,
        self.starts: list[float] = []  # and when it had been let in
        self.asked = 0

    def turn(self, want: int = 16, wait: float = 0.0) -> list[str]:
        """Settle what is done, fetch, begin what may; the ids of what has begun."""
        fresh = self.consumer.swap(self.done, want, wait)
        self.done = []
        begun = [delivery.message.id for delivery in fresh if self._admitted(delivery)]
        self.begun += begun
        if self.done:
            self.consumer.swap(self.done, 0, 0)
            self.done = []
        return begun

    def _admitted(self, delivery: Delivery) -> bool:
        ask, asked_at = self.ask(delivery.message), time.time()
        if ask is not None:
            ask.turn = delivery.message.headers.get(TURN_HEADER)
            self.asked += 1
            wait = self.limits.admit(ask)
            if wait is not None:
                delivery.message.headers[TURN_HEADER] = wait.turn
                self.done.append(Outcome(delivery, Verdict.PARK, park=(wait.gate, wait.turn)))
                return False
        self.asks.append(asked_at)
        self.starts.append(time.time())
        self.running.append(delivery)
        return True

    def end(self, count: int = 100, release: tuple[str, ...] = (ROOM,)) -> None:
        """Have the first `count` that run come to their end."""
        ended, self.running = self.running[:count], self.running[count:]
        self.done += [Outcome(delivery, release=release) for delivery in ended]
        self.consumer.swap(self.done, 0, 0)
        self.done = []

    def until(self, count: int, seconds: float = 20.0) -> list[str]:
        """Go on, ending each run at once, until so many have begun."""
        end = time.monotonic() + seconds
        while len(self.begun) < count and time.monotonic() < end:
            self.turn(wait=0.02)
            self.end(release=())
        return self.begun


def room(size: int, lease: float = 60.0, only: str = "") -> Callable[[Message], Ask | None]:
    def ask(message: Message) -> Ask | None:
        return Ask(message.id, room=ROOM, size=size, lease=lease) if message.id.startswith(only) else None

    return ask


def rate(per_second: float, only: str = "") -> Callable[[Message], Ask | None]:
    def ask(message: Message) -> Ask | None:
        return Ask(message.id, rate=RATE, interval=1 / per_second) if message.id.startswith(only) else None

    return ask


def names(count: int, letter: str = "t") -> list[str]:
    return [f"{letter}{number:04}" for number in range(count)]


def publish(broker: Broker, *some: str) -> None:
    broker.publish([call(name) for name in some])


@pytest.fixture
def hand(broker: Broker, limits: Limits) -> Iterator[Callable[..., Hand]]:
    made: list[Hand] = []

    def make(ask: Callable[[Message], Ask | None]) -> Hand:
        made.append(Hand(broker, limits, ask))
        return made[-1]

    yield make
    for one in made:
        one.consumer.close()


MakeHand = Callable[..., Hand]

# -- rooms ---------------------------------------------------------------------------------


def test_no_more_run_at_a_time_than_there_is_room_for(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(5))
    one = hand(room(2))
    assert one.turn() == ["t0000", "t0001"]
    assert one.turn() == []
    assert (broker.size("q"), broker.delayed("q")) == (0, 3)


def test_a_free_place_goes_to_who_has_waited_longest(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(4))
    one = hand(room(1))
    for expected in names(4):
        assert one.turn() == [expected]
        one.end()


def test_who_is_called_comes_before_all_others_of_the_queue(broker: Broker, hand: MakeHand) -> None:
    publish(broker, "t1", "t2")
    one = hand(room(1, only="t"))
    one.turn()
    publish(broker, "o1", "o2")
    one.end()
    assert one.turn(want=1) == ["t2"]


def test_what_waits_blocks_nobody(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(40), *names(3, "o"))
    one = hand(room(1, only="t"))
    begun = [id for _ in range(6) for id in one.turn()]
    assert begun == ["t0000", *names(3, "o")]


def test_a_place_that_comes_free_before_the_message_waits_is_taken_at_once(
    broker: Broker, limits: Limits, hand: MakeHand
) -> None:
    publish(broker, "t1", "t2")
    one, two = hand(room(1)), hand(room(1))
    one.turn(want=1)
    (late,) = two.consumer.swap([], 1, 0)
    wait = limits.admit(Ask("t2", room=ROOM, size=1))
    assert wait is not None
    one.end()
    two.consumer.swap([Outcome(late, Verdict.PARK, park=(wait.gate, wait.turn))], 0, 0)
    assert broker.delayed("q") == 0
    assert two.turn() == ["t2"]


def test_whose_delivery_is_not_held_any_more_frees_nothing(broker: Broker, hand: MakeHand) -> None:
    publish(broker, "t1", "t2")
    lost, heir = hand(room(1)), hand(room(1))
    lost.turn()
    heir.consumer.adopt(lost.consumer.name)
    lost.end()
    assert heir.turn() == []
    assert broker.delayed("q") == 1


def test_the_place_of_a_dead_run_is_free_when_its_delivery_is_settled(broker: Broker, hand: MakeHand) -> None:
    publish(broker, "t1", "t2")
    dead, heir = hand(room(1)), hand(room(1))
    dead.turn()
    (left,) = heir.consumer.adopt(dead.consumer.name, {1: "killed"})
    heir.consumer.swap([Outcome(left, Verdict.REJECT, reason="killed", release=(ROOM,))], 0, 0)
    assert heir.turn() == ["t2"]


def test_a_run_that_goes_back_to_its_queue_frees_its_place(broker: Broker, hand: MakeHand) -> None:
    publish(broker, "t1", "t2")
    one = hand(room(1))
    one.turn()
    (delivery,) = one.running
    one.consumer.swap([Outcome(delivery, Verdict.REQUEUE, release=(ROOM,))], 0, 0)
    # Its place has gone to who waited; it waits in its turn.
    assert [id for _ in range(2) for id in one.turn()] == ["t2"]
    assert broker.delayed("q") == 1


def test_the_same_call_asking_again_has_its_place_already(limits: Limits) -> None:
    ask = Ask("t1", room=ROOM, size=1)
    assert limits.admit(ask) is None
    assert limits.admit(ask) is None
    assert limits.admit(Ask("t2", room=ROOM, size=1)) is not None


def test_a_place_that_nobody_renews_comes_free(broker: Broker, hand: MakeHand) -> None:
    publish(broker, "t1", "t2")
    one = hand(room(1, lease=0.3))
    assert one.turn() == ["t1"]
    assert one.turn() == []

    def called() -> list[str]:
        broker.tend(["q"], [])
        return one.turn()

    assert wait_until(called) == ["t2"]


def test_a_renewed_place_stays(broker: Broker, limits: Limits, hand: MakeHand) -> None:
    publish(broker, "t1", "t2")
    one = hand(room(1, lease=0.3))
    one.turn()
    limits.renew([(ROOM, "t1", 60.0)])
    wait_until(lambda: time.time() > one.starts[0] + 0.4)
    broker.tend(["q"], [])
    assert one.turn(wait=0.05) == []
    assert one.begun == ["t1"]


def test_a_place_that_has_been_given_up_is_not_renewed(limits: Limits) -> None:
    assert limits.admit(Ask("t1", room=ROOM, size=1)) is None
    limits.free("t1", [ROOM])
    limits.renew([(ROOM, "t1", 60.0)])
    assert limits.admit(Ask("t2", room=ROOM, size=1)) is None


def test_a_larger_room_lets_in_more_of_those_that_wait(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(4))
    small, large = hand(room(1)), hand(room(3))
    small.turn()
    publish(broker, "t0004")
    large.turn()
    large.turn()
    assert sorted(large.begun) == ["t0001", "t0002"]


def test_what_waits_outlives_every_connection(url: str, broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(3))
    one = hand(room(1))
    one.turn()
    other = open_broker(url)
    assert other.delayed("q") == 2
    one.end()
    again = Hand(other, other.limits(parks=True), room(1))  # type: ignore[attr-defined]
    assert again.turn() == ["t0001"]
    again.consumer.close()
    other.close()


def test_what_waits_is_purged_with_its_queue(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(4))
    one = hand(room(1))
    one.turn()
    publish(broker, "t9")
    assert broker.purge("q") == 4
    assert (broker.size("q"), broker.delayed("q")) == (0, 0)
    one.end()
    publish(broker, "new")
    assert one.turn() == ["new"]


def test_a_message_without_a_line_to_wait_in_goes_back(broker: Broker, hand: MakeHand) -> None:
    publish(broker, "t1")
    one = hand(room(1))
    (delivery,) = one.consumer.swap([], 1, 0)
    one.consumer.swap([Outcome(delivery, Verdict.PARK)], 0, 0)
    assert one.turn() == ["t1"]


def test_urgent_messages_keep_their_priority(broker: Broker, hand: MakeHand) -> None:
    broker.publish([call("t1"), call("t2", priority=6), call("o1", priority=9)])
    one = hand(room(1, only="t"))
    one.turn()
    one.end(1)
    (delivery,) = one.consumer.swap([], 1, 0)
    assert delivery.message.id == "t2"
    assert delivery.message.priority == 6


# -- rates ---------------------------------------------------------------------------------


def are_spaced(one: Hand, interval: float) -> bool:
    """Whether no more have begun than the rate allows.

    A late one does not make all others late: two may come close to each other, and never three.
    """
    some = zip(one.asks, one.starts[2:], strict=False)
    return one.starts[-1] - one.asks[0] > (len(one.starts) - 1) * interval - 0.01 and all(
        last - first > interval - 0.01 for first, last in some
    )


def test_runs_begin_evenly_spaced(broker: Broker, hand: MakeHand) -> None:
    def are_in_time(letter: str) -> bool:
        publish(broker, *names(9, letter))
        one = hand(rate(10))
        assert sorted(one.until(9)) == names(9, letter)
        assert are_spaced(one, 0.1)
        return one.begun == names(9, letter) and one.starts[-1] - one.starts[0] < 1.6

    # Where the machine stops, those whose turn has passed line up again.
    assert any(are_in_time(letter) for letter in "abc")


def test_a_rate_above_a_thousand_a_second_is_no_burden(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(300))
    one = hand(rate(2000))
    assert sorted(one.until(300, 20)) == names(300)
    assert one.asked < 4000  # the slower the machine, the more of them are late and ask again


def test_a_line_is_called_one_by_one_and_asks_twice(broker: Broker, hand: MakeHand) -> None:
    def asked(letter: str) -> int:
        publish(broker, *names(20, letter))
        one = hand(rate(20))
        assert sorted(one.until(20)) == names(20, letter)
        return one.asked

    # Once when it comes and once when it is called; a late one or two ask again, many where the machine stops.
    assert any(asked(letter) <= 46 for letter in "abc")


def test_a_rate_lets_others_pass(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(20), *names(3, "o"))
    one = hand(rate(0.01, only="t"))
    begun = [id for _ in range(4) for id in one.turn()]
    assert begun == ["t0000", *names(3, "o")]
    assert broker.delayed("q") == 19


def test_a_called_message_comes_before_a_full_queue(broker: Broker, hand: MakeHand) -> None:
    publish(broker, "t1", "t2")
    one = hand(rate(5, only="t"))
    one.turn()
    publish(broker, *names(50, "o"))
    wait_until(lambda: time.time() > one.starts[0] + 0.25)  # its turn has come
    assert one.turn(want=1) == ["t2"]


def test_a_purged_line_is_no_burden_for_who_comes_after_it(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(200))
    one = hand(rate(4))
    while broker.size("q"):
        one.turn()
    broker.purge("q")
    publish(broker, "new")
    began = time.monotonic()
    one.until(len(one.begun) + 1)
    assert one.begun[-1] == "new"
    assert time.monotonic() - began < 10


def test_who_does_not_begin_at_its_turn_passes_it_on(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(4))
    one = hand(rate(1))
    one.turn()
    for expired in names(4)[1:3]:
        (delivery,) = wait_until(lambda: one.consumer.swap([], 1, 0.2))
        assert delivery.message.id == expired
        one.consumer.swap([Outcome(delivery, release=(RATE,))], 0, 0)
    began = time.monotonic()
    one.until(2)
    assert one.begun == ["t0000", "t0003"]
    assert time.monotonic() - began < 15


def test_a_called_message_that_is_gone_holds_up_the_line_for_a_few_seconds_only(
    broker: Broker, hand: MakeHand
) -> None:
    publish(broker, *names(3))
    one = hand(rate(1))
    one.turn()
    (gone,) = wait_until(lambda: one.consumer.swap([], 1, 0.2))
    one.consumer.swap([Outcome(gone)], 0, 0)  # by a program that knows of no limits

    def called() -> list[str]:
        broker.tend(["q"], [])
        return one.turn()

    assert wait_until(called, timeout=30, interval=0.1) == ["t0002"]


def test_no_burst_comes_after_a_pause(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(12))
    one = hand(rate(10))
    one.turn()
    one.end(release=())
    time.sleep(1.3)  # all workers are away
    assert len(one.until(6)) == 6
    assert are_spaced(one, 0.1)


def test_a_call_that_passes_one_gate_and_not_the_other_holds_neither(
    broker: Broker, limits: Limits, hand: MakeHand
) -> None:
    def is_free_meanwhile(letter: str, interval: float) -> bool:
        space, pace = f"{ROOM}.{letter}", f"{RATE}.{letter}"
        publish(broker, *names(4, letter))
        one = hand(lambda message: Ask(message.id, room=space, size=1, rate=pace, interval=interval))
        one.turn()
        one.end(release=(space,))
        while broker.size("q"):
            one.turn()
        # Those that wait for the rate take no room.
        is_free = limits.admit(Ask("other", room=space, size=1)) is None
        limits.free("other", [space])
        end = time.monotonic() + 20
        while len(one.begun) < 4 and time.monotonic() < end:
            one.turn(wait=0.02)
            assert len(one.running) <= 1
            one.end(release=(space,))
        assert sorted(one.begun) == names(4, letter)
        assert one.asked < 40
        return is_free

    # Where the machine stops for longer than the interval, the next one has begun.
    assert any(is_free_meanwhile(*each) for each in (("a", 0.2), ("b", 1.0), ("c", 4.0)))


def test_five_thousand_that_wait_cost_nothing(broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(5000))
    one = hand(rate(1))
    began = time.monotonic()
    while broker.size("q"):
        one.turn(want=64)
    # Each second one of them is called.
    assert one.asked <= 5003 + time.monotonic() - began
    asked, came = one.asked, time.monotonic()
    while time.monotonic() < came + 1.5:
        one.turn(wait=0.2)
        broker.tend(["q"], [])
    assert one.asked - asked <= 3 + time.monotonic() - came
    assert broker.delayed("q") >= 4990 - (time.monotonic() - began)


# -- workers that die ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_rooms_hold_and_nobody_waits_for_ever_while_workers_die(
    broker: Broker, hand: MakeHand, seed: int
) -> None:
    rng = random.Random(seed)
    publish(broker, *names(60))
    hands = [hand(room(3)) for _ in range(3)]
    begun = 0
    ended: set[str] = set()
    deadline = time.monotonic() + 20
    while len(ended) < 60 and time.monotonic() < deadline:
        one = rng.choice(hands)
        begun += len(one.turn(want=rng.randint(1, 5)))
        assert sum(len(other.running) for other in hands) <= 3
        if one.running and rng.random() < 0.5:
            ended.add(one.running[0].message.id)
            one.end(1)
        elif rng.random() < 0.2:
            hands.remove(one)
            heir = hand(room(3))
            hands.append(heir)
            died = {delivery.receipt for delivery in one.running}
            left = heir.consumer.adopt(one.consumer.name)
            ended |= {delivery.message.id for delivery in left if delivery.receipt in died}
            outcomes = [
                Outcome(d, release=(ROOM,)) if d.receipt in died else Outcome(d, Verdict.REQUEUE)
                for d in left
            ]
            heir.consumer.swap(outcomes, 0, 0)
        if rng.random() < 0.05:
            broker.tend(["q"], [one.consumer.name for one in hands])
    assert len(ended) == 60
    assert begun == 60


def test_what_waits_goes_on_when_all_workers_have_died(url: str, broker: Broker, hand: MakeHand) -> None:
    publish(broker, *names(3))
    one = hand(room(1, lease=0.3))
    one.turn()
    # Nobody settles it: its place ends with its lease, and a new worker's agent sees that.
    other = open_broker(url)
    again = Hand(other, other.limits(parks=True), room(1))  # type: ignore[attr-defined]

    def called() -> list[str]:
        other.tend(["q"], [])
        return again.turn()

    assert wait_until(called) == ["t0001"]
    again.consumer.close()
    other.close()


# -- unique calls --------------------------------------------------------------------------


def unique(id: str, key: str = "unique.t:k", seconds: float = 60.0, queue: str = "q") -> Message:
    message = call(id, queue)
    message.unique = (key, seconds)
    return message


def test_a_unique_call_is_sent_once_and_the_first_ones_id_is_told(broker: Broker) -> None:
    assert broker.publish([unique("1")]) is None
    assert broker.publish([unique("2")]) == {"2": "1"}
    assert broker.publish([unique("3", "unique.t:other")]) is None
    assert broker.size("q") == 2


def test_the_unique_among_many_are_told_too(broker: Broker) -> None:
    some = [unique("1"), call("plain"), unique("2"), unique("3", "unique.t:other"), call("x", "other")]
    assert broker.publish(some) == {"2": "1"}
    assert (broker.size("q"), broker.size("other")) == (3, 1)


def test_many_unique_calls_in_several_chunks(broker: Broker) -> None:
    some = [unique(f"{n}", f"unique.t:{n // 2}") for n in range(1200)]
    assert broker.publish(some) == {f"{n}": f"{n - 1}" for n in range(1, 1200, 2)}
    assert broker.size("q") == 600


def test_copies_of_one_call_are_not_each_others_doubles(broker: Broker) -> None:
    assert broker.publish([unique("1"), unique("1", queue="other")]) is None
    assert (broker.size("q"), broker.size("other")) == (1, 1)


def test_a_delayed_unique_call_holds_its_key_as_well(broker: Broker) -> None:
    later = unique("1")
    later.due = time.time() + 60
    broker.publish([later])
    assert broker.delayed("q") == 1
    assert broker.publish([unique("2")]) == {"2": "1"}


def test_the_key_is_free_when_the_call_is_settled(broker: Broker, hand: MakeHand) -> None:
    broker.publish([unique("1")])
    one = hand(lambda message: None)
    one.turn()
    one.end(release=("unique.t:k",))
    assert broker.publish([unique("2")]) is None


def test_only_its_holder_frees_a_key(broker: Broker, limits: Limits) -> None:
    broker.publish([unique("1")])
    limits.free("2", ["unique.t:k"])
    assert broker.publish([unique("3")]) == {"3": "1"}


def test_the_key_is_free_after_its_time(broker: Broker) -> None:
    def is_held() -> bool:
        first, second = new_id(), new_id()
        free = broker.publish([unique(first, seconds=0.2)]) is None
        return broker.publish([unique(second, seconds=0.2)]) == {second: first} and free

    wait_until(is_held)  # where the machine stops in between, it is free again
    wait_until(lambda: broker.publish([unique("3")]) is None)


def test_a_purged_call_gives_up_its_key_and_a_running_one_does_not(broker: Broker, hand: MakeHand) -> None:
    broker.publish([unique("1", "unique.t:a")])
    hand(lambda message: None).turn()
    broker.publish([unique("2", "unique.t:b"), unique("3", "unique.t:c", queue="other")])
    broker.purge("q")
    assert broker.publish([unique("4", "unique.t:a")]) == {"4": "1"}
    assert broker.publish([unique("5", "unique.t:b")]) is None
    assert broker.publish([unique("6", "unique.t:c")]) == {"6": "3"}


def test_one_of_eight_that_send_at_once_is_first(url: str, broker: Broker) -> None:
    together = threading.Barrier(8)
    answers: dict[str, dict[str, str] | None] = {}

    def send(name: str) -> None:
        own = open_broker(url)
        together.wait(20)
        for turn in range(10):
            answers[f"{name}-{turn}"] = own.publish([unique(f"{name}-{turn}", f"unique.t:{turn}")])
        own.close()

    threads = [threading.Thread(target=send, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 80
    assert broker.size("q") == 10
    sent = {id for id, there in answers.items() if there is None}
    assert len(sent) == 10
    assert all(there is None or set(there.values()) <= sent for there in answers.values())


def test_a_key_is_claimed_and_freed_without_a_message(elsewhere: Limits) -> None:
    assert elsewhere.claim("unique.t:k", "1", 60) == "1"
    assert elsewhere.claim("unique.t:k", "1", 60) == "1"
    assert elsewhere.claim("unique.t:k", "2", 60) == "1"
    elsewhere.free("1", ["unique.t:k"])
    assert elsewhere.claim("unique.t:k", "2", 60) == "2"


# -- beside a broker that keeps no limits --------------------------------------------------


def test_each_that_waits_is_told_a_time_of_its_own(elsewhere: Limits) -> None:
    before = time.time()
    first, *others = (elsewhere.admit(Ask(id, rate=RATE, interval=60.0)) for id in names(5))
    after = time.time()
    waits = [wait for wait in others if wait is not None]
    assert first is None and len(waits) == 4
    for number, wait in enumerate(waits, start=1):
        assert before + 60 * number - 0.01 < wait.turn < after + 60 * number + 0.01
        assert wait.turn - after - 0.01 < wait.seconds < wait.turn - before + 0.01


def test_who_comes_back_at_its_time_begins(elsewhere: Limits) -> None:
    # Where the machine stops for longer than the interval, others begin.
    assert any(comes_back_and_begins(elsewhere, interval) for interval in (0.2, 1.0, 5.0))


def comes_back_and_begins(limits: Limits, interval: float) -> bool:
    def ask(id: str, turn: float | None = None) -> Wait | None:
        return limits.admit(Ask(id, turn, rate=f"{RATE}{interval}", interval=interval))

    waits = [ask(id) for id in ("t1", "t2", "t3")]
    if waits[0] is not None or waits[1] is None or waits[2] is None:
        return False
    second, third = waits[1].turn, waits[2].turn
    early = ask("t2", second)
    if early is None or early.turn != pytest.approx(second, abs=0.01):
        return False
    wait_until(lambda: time.time() >= second)
    if ask("t2", second) is not None:
        return False
    # One that comes after a pause waits behind those that have a time already.
    if ask("t9", time.time() - 100) is None:
        return False
    wait_until(lambda: time.time() >= third)
    return ask("t3", third) is None


def test_after_a_pause_those_that_come_back_at_once_get_new_times(elsewhere: Limits) -> None:
    for id in names(10):
        elsewhere.admit(Ask(id, rate=RATE, interval=30.0))
    waits = [elsewhere.admit(Ask(id, time.time() - 500, rate=RATE, interval=30.0)) for id in names(10)]
    turns = sorted(wait.turn for wait in waits if wait is not None)
    assert len(turns) >= 9
    assert all(b - a > 29 for a, b in pairwise(turns))


def test_a_full_room_tells_when_to_come_back_by_how_long_runs_take(elsewhere: Limits) -> None:
    for number in range(40):
        assert elsewhere.admit(Ask(f"r{number}", room=ROOM, size=2)) is None
        elsewhere.free(f"r{number}", [ROOM], 4.0)
    assert elsewhere.admit(Ask("a", room=ROOM, size=2)) is None
    assert elsewhere.admit(Ask("b", room=ROOM, size=2)) is None
    began = time.monotonic()
    for number, id in enumerate(names(10), start=1):
        wait = elsewhere.admit(Ask(id, room=ROOM, size=2))
        passed = time.monotonic() - began
        # Two places, four seconds a run: one comes free every two seconds.
        assert wait is not None and (number * 2 - passed) * 0.85 < wait.seconds < number * 2 * 1.15


def test_thousands_that_wait_elsewhere_do_not_come_back_all_the_time(elsewhere: Limits) -> None:
    elsewhere.admit(Ask("a", room=ROOM, size=1))
    began = time.monotonic()
    waits = [elsewhere.admit(Ask(id, room=ROOM, size=1)) for id in names(2000)]
    assert isinstance(waits[-1], Wait)
    soon = sum(wait.seconds < 60 for wait in waits if wait is not None)
    assert soon < 80 + time.monotonic() - began


# -- servers -------------------------------------------------------------------------------


@contextlib.contextmanager
def losing_one_reply(proxy: Proxy) -> Iterator[None]:
    """Answers are lost until one has been, at least."""

    def flow() -> None:
        try:
            wait_until(lambda: proxy.lost > before)
        finally:
            proxy.flow()

    before = proxy.lost
    proxy.lose_replies()
    flowing = threading.Thread(target=flow)
    flowing.start()
    yield
    flowing.join()
    assert proxy.lost > before


def test_a_unique_call_whose_reply_is_lost_is_not_its_own_double(
    redis_server: RedisServer, redis_url: str
) -> None:
    with Proxy(redis_server.port) as proxy:
        broker = open_broker(f"redis://127.0.0.1:{proxy.port}/0", options={"socket_timeout": 0.3})
        broker.publish([call("0", "other")])
        with losing_one_reply(proxy):
            assert broker.publish([unique("1")]) is None
        # The first answer told who was there, and so does the repeated one.
        with losing_one_reply(proxy):
            assert broker.publish([unique("2"), call("3")]) == {"2": "1"}
        assert broker.size("q") == 2
        broker.close()


def test_an_outage_takes_nobodys_place(redis_url: str) -> None:
    broker = open_broker(redis_url)
    limits: Limits = broker.limits(parks=True)  # type: ignore[attr-defined]
    assert limits.admit(Ask("t1", room=ROOM, size=1)) is None
    with redis.Redis.from_url(redis_url) as client:
        # As if for a hundred seconds nobody could reach the server.
        client.hset(f"minicelery.{ROOM}", "seen", time.time() - 100)
        client.zadd(f"minicelery.inside.{ROOM}", {"t1": time.time() - 40})
        assert limits.admit(Ask("t2", room=ROOM, size=1)) is not None
        limits.renew([(ROOM, "t1", 60.0)])
        assert client.zscore(f"minicelery.inside.{ROOM}", "t1") > time.time() + 50
    broker.close()


def test_a_file_made_before_there_were_limits_is_still_good(tmp_path: Path, sqlite_url: str) -> None:
    old = sqlite3.connect(tmp_path / "queue.db")
    for statement in sqlite_file.SCHEMA.split(";"):
        old.execute(statement)
    old.execute("PRAGMA user_version = 1")
    old.execute(
        "INSERT INTO messages (queue, priority, message_id, task, envelope, body) VALUES"
        " ('q', 0, '1', 'tasks.add', '[{}, {}, \"application/json\", \"utf-8\", \"\", \"q\", null]', '')"
    )
    old.commit()
    old.close()
    broker = open_broker(sqlite_url)
    consumer = broker.consumer(["q"], "a", None)
    assert drain(consumer) == ["1"]
    assert broker.limits(parks=True).admit(Ask("2", room=ROOM, size=1)) is None  # type: ignore[attr-defined]
    consumer.close()
    broker.close()


def test_redis_keeps_nothing_of_limits_for_ever(redis_url: str) -> None:
    broker = open_broker(redis_url)
    publish(broker, *names(4))
    limits: Limits = broker.limits(parks=True)  # type: ignore[attr-defined]
    one = Hand(broker, limits, lambda message: Ask(message.id, room=ROOM, size=1, rate=RATE, interval=0.05))
    broker.publish([unique("u")])
    end = time.monotonic() + 20
    while len(one.begun) < 5 and time.monotonic() < end:
        one.turn(wait=0.02)
        one.end(release=(ROOM, "unique.t:k"))
    assert len(one.begun) == 5
    with redis.Redis.from_url(redis_url) as client:
        assert all(client.ttl(key) > 0 for key in client.keys("minicelery.*"))
        assert client.keys("*.line.*") == client.keys("*.waiting") == client.keys("*unique*") == []
    one.consumer.close()
    broker.close()
