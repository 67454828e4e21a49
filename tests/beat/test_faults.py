"""What goes wrong with one entry, or for a moment, and that all the rest goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pika
import pytest

from minicelery import Celery, Task
from minicelery.beat import Beat, Scheduler
from minicelery.beat.lease import lead_of
from minicelery.broker.amqp import leads
from minicelery.broker.memory.archive import MemoryArchive
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.schedules import BaseSchedule, crontab, schedule
from tests.beat.conftest import Sent, Travel, live, start
from tests.rabbit import RabbitServer
from tests.servers import RedisServer
from tests.waiting import wait_until

# -- what is stored --------------------------------------------------------------------------


def test_a_leader_that_could_not_read_the_last_runs_reads_them_again(
    app: Celery, clock: Travel, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 10}}
    beat, recall = start(app, clock), app.broker.recall
    failures = iter([BrokerUnavailable("away for a moment")])

    def fails_once(topic: str) -> Any:
        for error in failures:
            raise error
        return recall(topic)

    monkeypatch.setattr(app.broker, "recall", fails_once)
    live(beat, clock, 25)
    assert len(sent.times()) == 2


@pytest.mark.parametrize("method", ["recall", "remember_all"])
def test_without_a_place_for_the_last_runs_entries_are_sent_all_the_same(
    app: Celery, clock: Travel, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:  # fmt: skip
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 10}}

    def refuses(*_: Any, **__: Any) -> Any:
        raise OperationalError("WRONGTYPE")

    monkeypatch.setattr(app.broker, method, refuses)
    live(start(app, clock), clock, 35)
    assert sent.times() == [10, 20, 30]
    assert caplog.text.count("WRONGTYPE") == 1


@pytest.mark.parametrize(
    "text", [b'{"last": 1, "runs": Infinity, "schedule": ""}', b"[" * 100_000, b"\xff", b'{"last": 1}']
)
def test_hostile_records_are_left_out(
    app: Celery, clock: Travel, sent: Sent, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 10}}
    beat = start(app, clock)
    app.broker.remember(f"beat.{beat.lead}", "e", 1000, text)
    live(beat, clock, 15)
    assert sent.times() == [10]
    assert "what is stored of entry 'e' can't be read" in caplog.text


def test_a_record_whose_name_is_no_text_is_no_harm(redis_url: str, clock: Travel, sent: Sent) -> None:
    with Celery("t", broker=redis_url, set_as_current=False) as app:
        app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 10}}
        beat = start(app, clock)
        name: Any = b"\xff\xfe"
        app.broker.remember(f"beat.{beat.lead}", name, 1000, b"{}")
        live(beat, clock, 15)
        assert sent.times() == [10]


def test_what_a_server_has_lost_is_written_again(private_redis: RedisServer, clock: Travel) -> None:
    with Celery("t", broker=private_redis.url(), set_as_current=False) as app:
        app.conf.beat_schedule = {"rare": {"task": "t.a", "schedule": 86400}}
        beat = start(app, clock)
        live(beat, clock, 5)
        topic = f"beat.{beat.lead}"
        before = app.broker.recall(topic)
        private_redis.command("FLUSHALL")
        live(beat, clock, 400)
        assert app.broker.recall(topic) == before != {}


# -- what is refused -------------------------------------------------------------------------


def test_a_refused_run_keeps_its_time_and_waits_longer_each_time(
    app: Celery, clock: Travel, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 600}}
    beat, publish = start(app, clock), app.broker.publish
    tried: list[tuple[float, str]] = []

    def refuses(messages: Any, **_: Any) -> Any:
        tried.append((clock.passed, messages[0].id))
        raise OperationalError("no")

    monkeypatch.setattr(app.broker, "publish", refuses)
    live(beat, clock, 800)
    assert 6 <= len(tried) <= 10 and len({id for _, id in tried}) == 1
    monkeypatch.setattr(app.broker, "publish", publish)
    live(beat, clock, 100)
    entry = beat.entries["e"]
    assert entry.runs == 1 and entry.due == pytest.approx(entry.last + 600)


def test_a_refused_entry_does_not_keep_one_whose_task_is_unique(
    app: Celery, clock: Travel, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.task(name="t.u", unique=5, shared=False)(lambda: None)
    app.conf.beat_schedule = {
        "full": {"task": "t.a", "schedule": 10, "options": {"queue": "full"}},
        "good": {"task": "t.u", "schedule": 10},
    }
    publish, tried = app.broker.publish, []

    def refuses(messages: Any, **named: Any) -> Any:
        if messages[0].queue == "full":
            raise OperationalError("no")
        tried.append(messages[0].task)
        return publish(messages, **named)

    monkeypatch.setattr(app.broker, "publish", refuses)
    live(start(app, clock), clock, 35)
    assert tried == ["t.u"] * 3


# -- schedules of the program's own ----------------------------------------------------------


class Weekdays(schedule):
    """As written for Celery: `is_due` says when not to run."""

    open = False

    def is_due(self, last_run_at: Any) -> Any:
        found = super().is_due(last_run_at)
        return found if self.open else (False, found.next)


def test_a_subclass_whose_is_due_says_no_is_heard(app: Celery, clock: Travel, sent: Sent) -> None:
    timing = Weekdays(10, nowfun=lambda: datetime.fromtimestamp(clock.shown).astimezone())
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": timing}}
    beat = start(app, clock)
    live(beat, clock, 30)
    assert sent.runs == []
    timing.open = True
    live(beat, clock, 30)
    assert len(sent.runs) == 3


class Says:
    """Whatever it was told to say; its text is another one in each process."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def is_due(self, last_run_at: Any) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_schedule_that_names_no_time_is_asked_again_after_minutes(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": Says((True, None))}}
    live(start(app, clock), clock, 700)
    assert sent.times() == [0, 300, 600]


def test_a_schedule_that_raises_when_it_is_asked_leaves_the_others_going(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    app.conf.beat_schedule = {
        "odd": {"task": "t.b", "schedule": Says(ValueError("no")), "args": (object(),)},
        "good": {"task": "t.a", "schedule": 10},
    }
    live(start(app, clock), clock, 25)
    assert sent.times() == [10, 20]


class Flaky(BaseSchedule):
    """Every hour, but that it fails when it is asked for the first time."""

    failures = 1

    def next(self, after: datetime) -> datetime:
        if self.failures:
            self.failures -= 1
            raise OSError("the table can't be read")
        return schedule(3600).next(after)


def test_a_schedule_that_fails_once_has_no_run_of_its_own_making(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": Flaky()}}
    beat = start(app, clock)
    live(beat, clock, 3500)
    assert sent.runs == []
    live(beat, clock, 200)
    assert sent.times() == [3600]


class Own(BaseSchedule):
    """Its text is another one in each process."""

    def next(self, after: datetime) -> datetime:
        return schedule(3600).next(after)


def test_a_schedule_of_ones_own_is_not_taken_for_another_after_a_restart(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    for _ in range(4):
        app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": Own()}}
        beat = start(app, clock)
        live(beat, clock, 1000)
        beat.close()
    assert sent.times() == [3600]


def test_entries_that_can_not_be_read_at_first_are_read_later(app: Celery, clock: Travel, sent: Sent) -> None:
    class FromTable(Scheduler):
        failures = 2

        def entries(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise OSError("the table is away")
            return {"e": {"task": "t.a", "schedule": 10}}

    beat = Beat(app, scheduler=FromTable, clock=clock)
    for _ in range(2):
        with pytest.raises(OSError, match="away"):
            beat.turn()
    live(beat, clock, 15)
    assert sent.times() == [10]


# -- tasks that send themselves --------------------------------------------------------------


def test_a_task_with_an_apply_async_of_its_own_is_sent_by_that(app: Celery, clock: Travel) -> None:
    calls: list[Any] = []

    class Loud(Task):  # type: ignore[type-arg]
        def apply_async(self, *args: Any, **options: Any) -> Any:
            calls.append((args, options))

    app.task(name="t.loud", base=Loud, shared=False)(lambda x: None)
    app.conf.beat_schedule = {
        "e": {"task": "t.loud", "schedule": 10, "args": (1,), "options": {"queue": "q"}}
    }
    live(start(app, clock), clock, 15)
    [(args, options)] = calls
    assert args == ([1], {}) and options.keys() == {"queue", "task_id"}


# -- clocks ----------------------------------------------------------------------------------


def test_a_beat_whose_clock_is_a_little_behind_repeats_nothing(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": crontab()}}
    first = start(app, clock)
    live(first, clock, 61)
    first.close()
    clock.jump(-3)
    live(start(app, clock), clock, 10)
    assert sent.times() == [60]


# -- stopping --------------------------------------------------------------------------------


def test_a_signal_in_the_middle_of_anything_stops_it(app: Celery) -> None:
    class Busy(Beat):
        turns = 0
        timer: threading.Timer

        def turn(self) -> float:
            self.turns += 1
            if self.turns == 1:
                self.timer = threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGUSR2))
                self.timer.start()
            return 0.0

    for _ in range(20):
        beat = Busy(app)
        before = signal.signal(signal.SIGUSR2, lambda *_, beat=beat: beat.stop())
        try:
            beat.run()
            beat.timer.join()
        finally:
            signal.signal(signal.SIGUSR2, before)


# -- RabbitMQ --------------------------------------------------------------------------------


@pytest.fixture
def rabbit_app(rabbit_url: str) -> Iterator[Celery]:
    with Celery("t", broker=rabbit_url, set_as_current=False) as app:
        yield app


def ids_in(app: Celery, queue: str) -> Counter[str]:
    """What is in a queue to which nobody sends any more."""
    size = app.broker.size(queue)
    consumer = app.broker.consumer([queue], "test", None)
    found: Counter[str] = Counter()

    def fetched() -> bool:
        batch = consumer.swap([], 64, 0.3)
        found.update(delivery.message.id for delivery in batch)
        return not batch and found.total() >= size

    wait_until(fetched)
    consumer.close()
    return found


def beats_until(app: Celery, enough: Callable[[], bool]) -> None:
    beat = Beat(app)
    thread = threading.Thread(target=beat.run)
    thread.start()
    try:
        wait_until(enough, 20)
    finally:
        beat.stop()
        thread.join(15)
    assert not thread.is_alive()


def test_a_missing_exchange_keeps_and_doubles_no_other_entry(rabbit_app: Celery) -> None:
    app = rabbit_app
    bad = {"task": "x", "schedule": 0.5, "options": {"exchange": "nowhere", "routing_key": "k"}}
    app.conf.beat_schedule = {
        **{f"good{number}": {"task": "y", "schedule": 0.5} for number in range(20)}, "bad": bad,
    }  # fmt: skip
    beats_until(app, lambda: app.broker.size("celery") >= 80)
    found = ids_in(app, "celery")
    assert set(found.values()) == {1} and len(found) >= 80


def test_a_full_queue_keeps_and_doubles_no_other_entry(
    private_rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    private_rabbit.ctl("set_policy", "full", "^full$", '{"max-length":1,"overflow":"reject-publish"}')
    with Celery("t", broker=private_rabbit.url(), set_as_current=False) as app:
        app.conf.beat_schedule = {
            "full": {"task": "x", "schedule": 0.5, "options": {"queue": "full"}},
            "good": {"task": "y", "schedule": 0.5},
        }
        beats_until(app, lambda: app.broker.size("celery") >= 8)
        found = ids_in(app, "celery")
        assert set(found.values()) == {1}
        assert app.broker.size("full") == 1
        assert "queue 'full' is full" in caplog.text
        assert "waiting for the broker" not in caplog.text  # the leader publishes on
        # What was refused is not noted as sent: who leads next goes on with it.
        assert json.loads(app.broker.recall(f"beat.{lead_of(app)}")["full"])["runs"] == 1


def test_leaders_whose_connections_are_cut_double_nothing(rabbit_url: str) -> None:
    apps = [Celery("t", broker=rabbit_url, set_as_current=False) for _ in range(2)]
    beats = []
    for app in apps:
        app.conf.beat_schedule = {f"e{number}": {"task": "y", "schedule": 0.2} for number in range(5)}
        beats.append(Beat(app))
    threads = [threading.Thread(target=beat.run) for beat in beats]
    for thread in threads:
        thread.start()

    def leaders_socket() -> Any:
        for beat in beats:
            for found in list(beat.app.broker.leads._places.values()):  # type: ignore[attr-defined]
                if found.leads and (socket := found.link._sock) is not None:
                    return socket
        return None

    try:
        for cut in range(5):
            with contextlib.suppress(OSError):  # it has just been given up
                wait_until(leaders_socket, 15).shutdown(2)
            enough = (cut + 1) * 40
            wait_until(lambda: apps[0].broker.size("celery") >= enough, 20)  # noqa: B023
    finally:
        for beat in beats:
            beat.stop()
        for thread in threads:
            thread.join(15)
    found = ids_in(apps[0], "celery")
    for app in apps:
        app.close()
    assert set(found.values()) == {1} and len(found) >= 200


def test_the_leader_exchanges_its_token_and_leads_on(
    rabbit_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = [Celery("t", broker=rabbit_url, set_as_current=False).broker for _ in range(2)]
    assert [broker.lead("x", str(number), 6) for number, broker in enumerate(brokers)] == ["0", ""]
    place = brokers[0].leads._places["x"]  # type: ignore[attr-defined]
    before = place._token
    monkeypatch.setattr(leads, "AGED", 0.0)
    wait_until(lambda: brokers[0].lead("x", "0", 6) == "0" and place._token > before)
    assert brokers[1].lead("x", "1", 6) == ""
    brokers[0].close()
    wait_until(lambda: brokers[1].lead("x", "1", 6) == "1")
    brokers[1].close()


def test_a_leader_that_lost_its_connection_asks_what_was_sent_meanwhile(rabbit_url: str) -> None:
    broker: Any = Celery("t", broker=rabbit_url, set_as_current=False).broker
    assert broker.lead("x", "0", 6) == "0"
    broker.leads._places["x"].link.close_socket()
    with pytest.raises(BrokerUnavailable, match="the lead went with its connection"):
        broker.lead("x", "0", 6)
    assert broker.lead("x", "0", 6) == "0"
    broker.close()


def test_a_forked_child_leaves_its_parents_lead_alone(rabbit_url: str) -> None:
    broker, other = (Celery("t", broker=rabbit_url, set_as_current=False).broker for _ in range(2))
    assert broker.lead("x", "0", 6) == "0"
    if (child := os.fork()) == 0:
        try:
            broker.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert broker.lead("x", "0", 6) == "0"
    assert other.lead("x", "1", 6) == ""
    for one in (broker, other):
        one.close()


def test_a_ledger_that_can_not_be_made_stops_no_run(rabbit_url: str) -> None:
    with Celery("t", broker=rabbit_url, set_as_current=False) as app:
        app.conf.beat_schedule = {"e": {"task": "y", "schedule": 0.5}}
        beat = Beat(app)
        with pika.BlockingConnection(pika.URLParameters(rabbit_url)) as connection:
            connection.channel().queue_declare(f"minicelery.beat.{beat.lead}", durable=True)
        beats_until(app, lambda: app.broker.size("celery") >= 4)
        assert set(ids_in(app, "celery").values()) == {1}


def test_one_stand_by_costs_the_server_no_connection_each_second(rabbit_url: str) -> None:
    brokers = [Celery("t", broker=rabbit_url, set_as_current=False).broker for _ in range(2)]
    assert [broker.lead("x", str(number), 6) for number, broker in enumerate(brokers)] == ["0", ""]
    link = brokers[1].leads._places["x"].link  # type: ignore[attr-defined]
    for _ in range(5):
        assert brokers[1].lead("x", "1", 6) == ""
        time.sleep(0.05)
    assert brokers[1].leads._places["x"].link is link  # type: ignore[attr-defined]
    brokers[0].step_down("x", "0")
    wait_until(lambda: brokers[1].lead("x", "1", 6) == "1")
    for broker in brokers:
        broker.close()


@pytest.mark.parametrize("away", ["the last runs", "the stored entries"])
def test_what_can_not_be_read_for_long_is_gone_on_without(
    app: Celery, clock: Travel, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    away: str,
) -> None:  # fmt: skip
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 10}}

    def fails(*_: Any) -> Any:
        raise BrokerUnavailable("the stream is broken")

    if away == "the last runs":
        monkeypatch.setattr(app.broker, "recall", fails)
    else:
        monkeypatch.setattr(MemoryArchive, "news", fails)
        monkeypatch.setattr(MemoryArchive, "version", fails)
    live(start(app, clock), clock, 200)
    assert "going on without it: the stream is broken" in caplog.text
    assert 10 <= len(sent.times()) <= 14
