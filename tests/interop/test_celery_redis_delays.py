"""Where delayed messages wait in Redis, where Celery's workers may serve the queue as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery.broker import open_broker
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import Outcome
from tests.conformance.messages import acked, call, ids, serve

MakeBroker = Callable[[str], Any]
EITHER_WAY = pytest.mark.parametrize(
    ("delays", "served", "in_delays"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("native", False, True),
        ("native", True, True),
        ("celery", False, False),
        ("celery", True, False),
    ],
)


@pytest.fixture
def make_broker(redis_url: str) -> Iterator[MakeBroker]:
    opened: list[Any] = []

    def make(delays: str) -> Any:
        opened.append(open_broker(redis_url, options={"delays": delays}))
        return opened[-1]

    yield make
    for broker in opened:
        broker.close()


def places(broker: Any, queue: str = "q") -> tuple[int, int]:
    """How many messages wait in the list, and how many in the delays."""
    return broker.size(queue), broker.delayed(queue)


@EITHER_WAY
def test_a_delayed_message_waits_where_the_setting_says(
    make_broker: MakeBroker, delays: str, served: bool, in_delays: bool
) -> None:
    broker = make_broker(delays)
    if served:
        serve(broker, "q")
    due = time.time() + 60
    broker.publish([call("alone", due=due)])
    assert places(broker) == ((0, 1) if in_delays else (1, 0))
    broker.publish([call(str(number), due=due + number) for number in range(3)] + [call("now")])
    assert places(broker) == ((1, 4) if in_delays else (5, 0))


@EITHER_WAY
def test_what_a_task_sends_waits_where_the_setting_says(
    make_broker: MakeBroker, delays: str, served: bool, in_delays: bool
) -> None:
    broker = make_broker(delays)
    if served:
        serve(broker, "other")
    consumer = broker.consumer(["q"], "c", None)
    broker.publish([call("running")])
    (running,) = consumer.swap([], 1, 0)
    consumer.swap([Outcome(running, publish=(call("sent", "other", due=time.time() + 60),))], 0, 0)
    assert places(broker, "other") == ((0, 1) if in_delays else (1, 0))
    consumer.close()


@pytest.mark.parametrize(("delays", "in_delays"), [("auto", True), ("native", True), ("celery", False)])
def test_a_retry_to_the_consumers_own_queue_waits_where_the_setting_says(
    make_broker: MakeBroker, delays: str, in_delays: bool
) -> None:
    broker = make_broker(delays)
    consumer = broker.consumer(["q"], "c", None)
    broker.publish([call("running")])
    (running,) = consumer.swap([], 1, 0)
    consumer.swap([Outcome(running, publish=(call("running", due=time.time() + 60),))], 0, 0)
    assert places(broker) == ((0, 1) if in_delays else (1, 0))
    consumer.close()


@pytest.mark.parametrize("delays", ["auto", "native", "celery"])
def test_what_was_fetched_before_its_time_does_not_come_again_at_once(
    make_broker: MakeBroker, delays: str
) -> None:
    broker = make_broker(delays)
    consumer = broker.consumer(["q"], "c", None)
    make_broker("celery").publish([call("early", due=time.time() + 60)])
    (early,) = consumer.swap([], 1, 0)
    for seconds in (0.3, 3.0, 9.0):  # the last for a machine that takes seconds to look
        early.message.due = due = time.time() + seconds
        again = consumer.swap([Outcome(early, publish=(early.message,))], 1, 0)
        waiting = places(broker)
        if not again and waiting == (0, 1):
            break
        assert time.time() >= due, (again, waiting)
        (early,) = again or consumer.swap([], 1, 10.0)
    assert (again, waiting) == ([], (0, 1))
    assert ids(consumer.swap([], 1, 20.0)) == ["early"]
    assert time.time() >= due
    consumer.close()


def test_a_native_delay_is_kept_by_whoever_serves_the_queue_later(make_broker: MakeBroker) -> None:
    broker = make_broker("native")
    for seconds in (0.2, 3.0, 9.0):  # the last for a machine that takes seconds to look
        due = time.time() + seconds
        broker.publish([call("late", due=due)])
        consumer = make_broker("auto").consumer(["q"], "c", None)
        found = consumer.swap([], 1, 0)
        if not found:
            break
        assert time.time() >= due
        consumer.swap(acked(found), 0, 0)
        consumer.close()
    assert found == []
    assert ids(consumer.swap([], 1, 20.0)) == ["late"]
    assert time.time() >= due
    consumer.close()


def test_a_time_in_the_past_is_now_on_every_way(make_broker: MakeBroker) -> None:
    for delays in ("auto", "native", "celery"):
        make_broker(delays).publish([call(delays, due=time.time() - 1)])
    assert places(make_broker("auto")) == (3, 0)


def test_another_value_is_refused(make_broker: MakeBroker) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"broker_delays='later': expected one of 'auto'"):
        make_broker("later")
