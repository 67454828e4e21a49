"""`app.events`: what is sent is heard, on every broker."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from minicelery import Celery
from minicelery.broker.post import Letter
from minicelery.events.receiver import PATIENCE
from minicelery.exceptions import EncodeError, ImproperlyConfigured, OperationalError
from tests.events.conftest import capturing, heard
from tests.servers import RedisServer
from tests.waiting import wait_until


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_an_event_is_heard_as_it_was_sent(app: Celery) -> None:
    with heard(app) as events:
        with app.events.default_dispatcher("me@here") as dispatcher:
            dispatcher.send("custom-thing", number=5, text="ü")
        wait_until(lambda: events)
    (event,) = events
    assert (event["type"], event["hostname"], event["number"], event["text"]) == (
        "custom-thing",
        "me@here",
        5,
        "ü",
    )
    assert event["clock"] >= 1
    assert abs(event["local_received"] - event["timestamp"]) < 5


def test_a_receiver_hears_what_it_asked_for(app: Celery) -> None:
    with heard(app, routing_key="worker.#") as events, app.events.default_dispatcher() as dispatcher:
        for type in ("task-started", "worker-online", "task-failed", "worker-heartbeat"):
            dispatcher.send(type, uuid="an-id")
        wait_until(lambda: len(events) == 2)
    assert types(events) == ["worker-online", "worker-heartbeat"]


def test_a_handler_of_its_type_goes_before_the_one_of_all(app: Celery) -> None:
    found: list[tuple[str, str]] = []
    receiver = app.events.Receiver(
        app.connection(),
        handlers={
            "task-failed": lambda event: found.append(("failed", event["uuid"])),
            "*": lambda event: found.append(("other", event["uuid"])),
        },
    )
    with capturing(receiver, lambda: receiver.capture(limit=2, timeout=10)) as thread:
        with app.events.default_dispatcher() as dispatcher:
            for type in ("task-started", "task-failed", "task-retried"):
                dispatcher.send(type, uuid=type[5:])
        thread.join(10)  # the limit ends it
        assert not thread.is_alive()
    assert found == [("other", "started"), ("failed", "failed")]


def test_silence_ends_a_capture_that_does_not_wait_for_ever(app: Celery) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no event has come"):
        app.events.Receiver().capture(timeout=0.2)
    assert time.monotonic() - began < 5


def test_an_event_that_has_come_is_heard_however_late_the_receiver_looks() -> None:
    with Celery("events", broker="memory://late", set_as_current=False) as app:
        events: list[dict[str, Any]] = []
        receiver = app.events.Receiver(handlers={"*": events.append})
        receiver.wakeup_workers = lambda: app.events.Dispatcher().send("custom-one")
        with pytest.raises(TimeoutError):
            receiver.capture(timeout=0)
    assert types(events) == ["custom-one"]


def test_a_capture_that_is_stopped_ends_at_once(app: Celery) -> None:
    def span() -> float:
        with heard(app):
            began = time.monotonic()
        return time.monotonic() - began

    assert any(span() < PATIENCE / 4 for _ in range(5))


def test_what_a_handler_raises_ends_the_capture(app: Celery) -> None:
    def fail(event: dict[str, Any]) -> None:
        raise KeyError("a handler's own")

    receiver = app.events.Receiver(handlers={"*": fail})
    letter = Letter("celeryev", "x", b"", content={"type": "x-y"})
    with pytest.raises(KeyError, match="own"):
        receiver._receive(letter)


@pytest.mark.parametrize(
    "body", [b"5", b"null", b'"text"', b"[]", b"[5, null, {}]", b'{"type": 5}', b'{"no": "type"}', b"[[[]]]"]
)
def test_letters_that_are_no_events_are_passed_over(body: bytes) -> None:
    with Celery("events", broker="memory://hostile", set_as_current=False) as app, heard(app) as events:
        good = json.dumps([{"type": "custom-good", "clock": "x"}, 5]).encode()
        app.broker.post.send([Letter("celeryev", "task.multi", text) for text in (body, good)])
        wait_until(lambda: events)
    assert types(events) == ["custom-good"]
    assert type(events[0]["clock"]) is int


def test_a_receiver_listens_again_after_an_outage(private_redis: RedisServer) -> None:
    with Celery("events", broker=private_redis.url(), set_as_current=False) as app, heard(app) as events:
        sender = app.events.Dispatcher(buffer_while_offline=False)
        sender.send("custom-one")
        wait_until(lambda: events)
        private_redis.stop()
        private_redis.start()

        def heard_again() -> bool:
            try:
                sender.send("custom-two")
            except OperationalError:
                return False
            return "custom-two" in types(events)

        wait_until(heard_again, 15, interval=0.1)


def test_a_durable_queue_is_refused() -> None:
    with Celery("events", broker="memory://", set_as_current=False) as app:
        with pytest.raises(ImproperlyConfigured, match="queue_durable"):
            app.events.Receiver(queue_durable=True)
        with pytest.raises(ImproperlyConfigured, match="serializer='pickle'"):
            app.events.Dispatcher(serializer="pickle")


def test_the_settings_say_where_events_go() -> None:
    conf = {"event_exchange": "elsewhere", "event_queue_prefix": "mine", "event_queue_ttl": 3.0}
    with Celery("events", broker="memory://settings", set_as_current=False, **conf) as app:
        box = app.events.Receiver(node_id="me").box
        assert (box.exchange, box.name, box.ttl, box.expires) == ("elsewhere", "mine.me", 3.0, 60.0)
        with heard(app) as events:
            app.events.Dispatcher().send("custom-one")
            wait_until(lambda: events)


# -- sending --------------------------------------------------------------------------------


def test_a_dispatcher_sends_the_groups_it_is_for() -> None:
    with Celery("events", broker="memory://groups", set_as_current=False) as app, heard(app) as events:
        dispatcher = app.events.Dispatcher(groups=["worker"])
        dispatcher.send("task-failed")
        dispatcher.send("worker-online")
        dispatcher.disable()
        dispatcher.send("worker-heartbeat")
        dispatcher.enable()
        dispatcher.send("worker-offline")
        wait_until(lambda: len(events) == 2)
    assert types(events) == ["worker-online", "worker-offline"]


def test_buffered_groups_leave_together() -> None:
    with Celery("events", broker="memory://buffers", set_as_current=False) as app, heard(app) as events:
        dispatcher = app.events.Dispatcher(buffer_group=["task"], buffer_limit=3)
        for number in range(4):
            dispatcher.send("task-started", uuid=str(number))
        wait_until(lambda: len(events) == 3)
        dispatcher.flush()
        wait_until(lambda: len(events) == 4)
    assert [event["uuid"] for event in events] == ["0", "1", "2", "3"]


def test_what_could_not_be_sent_leaves_with_the_next_flush(private_redis: RedisServer) -> None:
    with Celery("events", broker=private_redis.url(), set_as_current=False) as app:
        dispatcher = app.events.Dispatcher()
        dispatcher.send("custom-zero")
        private_redis.stop()
        dispatcher.send("custom-one")
        with pytest.raises(OperationalError):
            app.events.Dispatcher(buffer_while_offline=False).send("custom-lost")
        private_redis.start()
        with heard(app) as events:
            dispatcher.flush()
            wait_until(lambda: events)
    assert types(events) == ["custom-one"]


def test_a_field_that_json_cant_carry_is_named_at_the_call() -> None:
    with Celery("events", broker="memory://", set_as_current=False) as app:  # noqa: SIM117
        with pytest.raises(EncodeError, match="of type object"):
            app.events.Dispatcher().send("custom-one", what=object())


# -- task-sent ------------------------------------------------------------------------------


def test_callers_tell_of_what_they_send_where_the_setting_says_so(app: Celery) -> None:
    app.conf.task_send_sent_event = True
    add = app.task(lambda x, y=0: None, name="add")
    with heard(app) as events:
        result = add.apply_async((2,), {"y": 3}, queue="other", countdown=60)
        add.apply_many([(1,), (2,)])
        wait_until(lambda: len(events) == 3)
    event = events[0]
    assert event["type"] == "task-sent"
    assert event["hostname"].startswith("gen")
    expected = {
        "uuid": result.id, "root_id": result.id, "parent_id": None, "name": "add", "args": "(2,)",
        "kwargs": "{'y': 3}", "retries": 0, "expires": None, "queue": "other",
    }  # fmt: skip
    assert {name: event[name] for name in expected} == expected
    assert event["eta"]
    assert [event["args"] for event in events[1:]] == ["(1,)", "(2,)"]


def test_callers_tell_nothing_by_default(app: Celery) -> None:
    with heard(app) as events:
        app.send_task("add", (1,))
        app.events.Dispatcher().send("custom-end")
        wait_until(lambda: events)
    assert types(events) == ["custom-end"]


def test_a_task_is_sent_even_if_no_event_can_tell_of_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Celery("events", broker="memory://told", set_as_current=False, task_send_sent_event=True) as app:

        def fail(letters: Any) -> None:
            raise OperationalError("no way")

        monkeypatch.setattr(app.broker.post, "send", fail)
        with caplog.at_level(logging.WARNING):
            app.send_task("add", (1,))
        assert app.broker.size("celery") == 1
    assert "no way" in caplog.text


# -- with a consumer's trips ------------------------------------------------------------------


def test_what_was_under_way_when_the_connection_was_lost_is_told_again(private_redis: RedisServer) -> None:
    with Celery("events", broker=private_redis.url(), set_as_current=False) as app:
        consumer = app.broker.consumer(["celery"], "w1", None)
        consumer.swap([], 0, 0)  # it is connected
        private_redis.stop()
        consumer.post([Letter("celeryev", "task.multi", b'[{"type": "task-succeeded"}]')])
        with pytest.raises(OperationalError):
            consumer.swap([], 1, 0)
        private_redis.start()
        with heard(app) as events:
            consumer.swap([], 1, 0)
            wait_until(lambda: events)
        consumer.close()
    assert types(events) == ["task-succeeded"]
