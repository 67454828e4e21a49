"""What `apply_async` and `send_task` take, and what each option does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import MiniCeleryError, OperationalError
from tests.compat.stage import Stage, body_of, delay_of, each

UTC = timezone.utc


def task_of(
    stage: Stage, function: Callable[..., Any] = lambda *args, **kwargs: [args, kwargs], **options: Any
) -> Any:
    return stage.app.task(function, name="t", **options)


# -- arguments and ids -------------------------------------------------------------------------------


@each({"args": ({"args": (1, "two")}, [[1, "two"], {}]), "kwargs": ({"kwargs": {"x": 1}}, [[], {"x": 1}])})
def test_arguments_arrive(stage: Stage, case: Any) -> None:
    options, arrived = case
    found = task_of(stage).apply_async(**options)
    by_name = stage.app.send_task("t", **options)
    stage.work()
    assert found.get(timeout=1) == by_name.get(timeout=1) == arrived


def test_arguments_that_do_not_fit_are_refused_at_the_call(stage: Stage) -> None:
    with pytest.raises(TypeError, match=r"t.*too many positional"):
        task_of(stage, lambda x: x).apply_async((1, 2))
    assert not stage.sent()


def test_the_task_id_is_the_one_given(stage: Stage) -> None:
    message = stage.message(task_of(stage), task_id="an-id")
    assert (message.id, message.properties["correlation_id"]) == ("an-id", "an-id")
    assert stage.run(stage.app.tasks["t"], task_id="other").id == "other"


# -- time --------------------------------------------------------------------------------------------


def test_a_countdown_delays_the_run(stage: Stage) -> None:
    task = task_of(stage, lambda: time.time())
    sent = time.time()
    found = task.apply_async(countdown=0.1)
    stage.work()
    assert found.state == "PENDING" or time.time() >= sent + 0.1
    stage.work(wait=10, most=1 - len(stage.outcomes))
    assert found.get(timeout=1) >= sent + 0.1


def test_an_eta_delays_the_run_to_that_time(stage: Stage) -> None:
    task = task_of(stage, lambda: time.time())
    eta = datetime.now(UTC) + timedelta(seconds=0.1)
    found = task.apply_async(eta=eta)
    stage.work(wait=10, most=1)
    assert found.get(timeout=1) >= eta.timestamp()


def test_a_naive_eta_is_read_in_the_timezone_of_the_settings(stage: Stage) -> None:
    stage.app.conf.timezone = "Asia/Tokyo"
    tokyo = timezone(timedelta(hours=9))
    eta = datetime.now(tokyo).replace(tzinfo=None) + timedelta(hours=1)
    assert delay_of(stage.message(task_of(stage), eta=eta)) == pytest.approx(3600, abs=60)


def test_of_countdown_and_eta_the_countdown_wins(stage: Stage) -> None:
    eta = datetime.now(UTC) + timedelta(days=1)
    assert delay_of(stage.message(task_of(stage), countdown=60, eta=eta)) == pytest.approx(60, abs=30)


@each({"expires": 0.5, "expires (datetime)": "datetime"})
def test_a_call_that_has_expired_is_revoked(stage: Stage, case: Any) -> None:
    task = task_of(stage)
    expires = datetime.now(UTC) + timedelta(seconds=0.5) if case == "datetime" else case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the machine has stopped it has expired, and is told so
        late, timely = task.apply_async(expires=expires), task.apply_async(expires=60)
    time.sleep(0.5)
    stage.work()
    assert (late.state, timely.state) == ("REVOKED", "SUCCESS")


# -- where it goes -------------------------------------------------------------------------------------


@each({
    "queue": {"queue": "mail"},
    "exchange": {"exchange": "post", "routing_key": "letter"},
    "routing_key": {"exchange": "post", "routing_key": "letter"},
    "exchange_type": {"exchange": "post", "routing_key": "letter", "exchange_type": "direct"},
    "declare": {"queue": "mail", "declare": []},
    "router": {"queue": "mail", "router": None},
})  # fmt: skip
def test_a_call_goes_where_it_is_told_to(stage: Stage, case: dict[str, Any]) -> None:
    stage.app.conf.task_queues = {"celery": {}, "mail": {"exchange": "post", "routing_key": "letter"}}
    found = task_of(stage).apply_async(**case)
    assert [one.queue for one in stage.sent()] == ["mail"]
    stage.work("mail")
    assert found.state == "SUCCESS"


def test_a_queue_that_may_not_be_made_is_refused(stage: Stage) -> None:
    stage.app.conf.task_queues = {"celery": {}, "mail": {}}
    stage.app.conf.task_create_missing_queues = False
    with pytest.raises(Exception, match=r"nail.*mail"):
        task_of(stage).apply_async(queue="nail")


def test_the_priority_goes_with_the_message(stage: Stage) -> None:
    assert stage.message(task_of(stage), priority=9).priority == 9
    for bad in (-1, 256, "high", 1.5):
        with pytest.raises(ValueError, match=r"priority=.*0 to 9"):
            stage.app.tasks["t"].apply_async(priority=bad)
    assert not stage.sent()


# -- how it is written ---------------------------------------------------------------------------------


def test_the_serializer_is_the_calls(stage: Stage) -> None:
    stage.app.conf.accept_content = ["json", "msgpack"]
    assert stage.message(task_of(stage), serializer="msgpack").content_type == "application/x-msgpack"
    assert stage.run(stage.app.tasks["t"], "é", serializer="msgpack").get(timeout=1) == [["é"], {}]


def test_the_compression_is_the_calls(stage: Stage) -> None:
    message = stage.message(task_of(stage), "x" * 5000, compression="bzip2")
    assert message.headers["compression"] == "application/x-bz2" and len(message.body) < 200
    assert stage.run(stage.app.tasks["t"], "x", compression="bzip2").get(timeout=1) == [["x"], {}]


def test_headers_are_the_requests(stage: Stage) -> None:
    task = task_of(stage, lambda self: self.request.headers, bind=True)
    assert stage.run(task, headers={"tenant": "a"}).get(timeout=1) == {"tenant": "a"}


def test_stamps_are_carried(stage: Stage) -> None:
    task = task_of(stage, lambda self: [self.request.stamped_headers, self.request.stamps], bind=True)
    message = stage.message(task, headers={"stamped_headers": ["batch"], "stamps": {"batch": ["7"]}})
    assert message.headers["stamps"] == {"batch": ["7"]}
    options = {"stamped_headers": ["batch"], "stamps": {"batch": ["7"]}}
    assert stage.run(task, **options).get(timeout=1) == [["batch"], {"batch": ["7"]}]


@each({
    "shadow": ({"shadow": "other"}, {"shadow": "other"}),
    "ignore_result": ({"ignore_result": True}, {"ignore_result": True}),
    "time_limit": ({"time_limit": 9}, {"timelimit": [9, None]}),
    "soft_time_limit": ({"soft_time_limit": 8}, {"timelimit": [None, 8]}),
    "root_id": ({"root_id": "r"}, {"root_id": "r"}),
    "parent_id": ({"parent_id": "p"}, {"parent_id": "p"}),
    "group_id": ({"group_id": "g"}, {"group": "g"}),
    "group_index": ({"group_index": 3}, {"group_index": 3}),
    "retries": ({"retries": 2}, {"retries": 2}),
    "replaced_task_nesting": ({"replaced_task_nesting": 1}, {"replaced_task_nesting": 1}),
    "argsrepr": ({"argsrepr": "(…)"}, {"argsrepr": "(…)"}),
    "kwargsrepr": ({"kwargsrepr": "{…}"}, {"kwargsrepr": "{…}"}),
})  # fmt: skip
def test_an_option_is_in_the_headers_of_the_message_and_in_the_request(stage: Stage, case: Any) -> None:
    options, headers = case
    names = [name for name in headers if not name.endswith("repr")]
    task = task_of(stage, lambda self: [getattr(self.request, name) for name in names], bind=True)
    assert headers.items() <= stage.message(task, **options).headers.items()
    found = stage.run(task, **options)
    if "ignore_result" in options:
        assert found.get(timeout=1) is None and stage.app.backend.load([found.id]) == [None]
    else:
        assert found.get(timeout=1) == [headers[name] for name in names]


@each({
    "reply_to": ({"reply_to": "me"}, {"reply_to": "me"}),
    "delivery_mode": ({"delivery_mode": 1}, {"delivery_mode": 1}),
    "any other option": ({"app_id": "shop"}, {"app_id": "shop"}),
})  # fmt: skip
def test_an_option_is_in_the_properties_of_the_message_and_in_the_request(stage: Stage, case: Any) -> None:
    options, properties = case
    task = task_of(stage, lambda self: self.request.properties, bind=True)
    assert properties.items() <= stage.message(task, **options).properties.items()
    assert properties.items() <= stage.run(task, **options).get(timeout=1).items()


@each({
    "connection": {"connection": None}, "producer": {"producer": None}, "publisher": {"publisher": None},
    "timeout": {"timeout": 3}, "confirm_timeout": {"confirm_timeout": 3},
    "mandatory": {"mandatory": False}, "immediate": {"immediate": False},
})  # fmt: skip
def test_an_option_of_celerys_connections_is_taken_and_not_sent(stage: Stage, case: dict[str, Any]) -> None:
    message = stage.message(task_of(stage), **case)
    assert not case.keys() & (message.headers.keys() | message.properties.keys())


# -- what follows --------------------------------------------------------------------------------------


def test_a_link_is_called_with_the_value(stage: Stage) -> None:
    task = task_of(stage, lambda *numbers: sum(numbers))
    stage.run(task, 1, 2, link=task.s(10).set(task_id="linked"))
    assert stage.app.AsyncResult("linked").get(timeout=1) == 13


def test_a_link_error_is_called_with_the_id_of_the_failed_call(stage: Stage) -> None:
    stage.app.task(lambda id: f"heard of {id}", name="errback")
    task = task_of(stage, lambda: 1 / 0)
    errback = stage.app.signature("errback", task_id="linked")
    stage.run(task, task_id="an-id", link_error=errback)
    assert stage.app.AsyncResult("linked").get(timeout=1) == "heard of an-id"


def test_a_chain_of_calls_goes_on_step_by_step(stage: Stage) -> None:
    task = task_of(stage, lambda *numbers: sum(numbers))
    steps = [task.s(10).set(task_id="last"), task.s(5).set(task_id="middle")]
    stage.run(task, 1, chain=steps)
    assert [stage.app.AsyncResult(id).get(timeout=1) for id in ("middle", "last")] == [6, 16]


def test_a_part_of_a_chord_of_celerys_carries_its_body(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    task = task_of(stage, lambda: 1)
    found = stage.run(task, chord=task.s(), group_id="g", group_index=0)
    links = body_of(stage.outcomes[0].delivery.message)[2]
    assert links["chord"]["task"] == task.name and found.get(timeout=1) == 1
    assert "a chord of Celery's" in caplog.text  # this store has none of its keys


def test_a_call_made_in_a_task_is_its_child_unless_it_is_not_added(stage: Stage) -> None:
    def parent(self: Any, add: bool) -> None:
        self.app.send_task("child", task_id=f"child {add}", add_to_parent=add)

    stage.app.task(lambda self: [self.request.parent_id, self.request.root_id], name="child", bind=True)
    task = task_of(stage, parent, bind=True)
    with_child = stage.run(task, True, task_id="parent")
    without = stage.run(task, False, task_id="parent-2")
    assert [one.id for one in with_child.children] == ["child True"] and not without.children
    assert stage.app.AsyncResult("child True").get(timeout=1) == ["parent", "parent"]


# -- a broker that is not there --------------------------------------------------------------------------


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    with Deaf() as server:
        yield server


class Deaf:
    """A server that hangs up on everybody, and counts them."""

    def __enter__(self) -> Deaf:
        self.calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._hang_up)
        self._thread.start()
        return self

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._socket.accept()
                self.calls += 1  # before the caller can know that it was hung up on
                caller.close()

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def task(self, deadline: float = 20.0) -> Any:
        address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        app = Celery("nowhere", broker=f"redis://{address}/0", set_as_current=False)
        app.conf.task_publish_deadline = deadline
        return app.task(lambda: 1, name="t")


def test_a_publish_that_fails_is_an_operational_error_within_its_deadline(deaf: Deaf) -> None:
    started = time.monotonic()
    with pytest.raises(OperationalError, match=r"127\.0\.0\.1:"):
        deaf.task(0.5).apply_async(retry_policy={"max_retries": None})
    assert time.monotonic() - started < 15


@each({
    "retry": ({"retry": False}, 1), "retry_policy": ({"retry_policy": {"max_retries": 2}}, 3),
})  # fmt: skip
def test_a_call_says_how_often_its_publish_is_tried(deaf: Deaf, case: Any) -> None:
    options, attempts = case
    with pytest.raises(OperationalError):
        deaf.task().apply_async(**options)
    assert deaf.calls == attempts


# -- what can't work -------------------------------------------------------------------------------------


@each({
    "soft_time_limit above time_limit": ({"time_limit": 1, "soft_time_limit": 2}, "soft_time_limit=2.*time_limit=1"),
    "a limit below 0": ({"time_limit": -1}, "time_limit=-1"),
    "a countdown that is no number": ({"countdown": "soon"}, "countdown='soon'.*seconds"),
    "an eta that is no datetime": ({"eta": 5}, "eta=5.*datetime"),
    "expires that is no time": ({"expires": "never"}, "expires='never'.*datetime"),
    "a queue that is no name": ({"queue": 5}, "queue.*5"),
    "an unknown serializer": ({"serializer": "jsn"}, "serializer.*jsn"),
    "an unknown compression": ({"compression": "zib"}, "compression.*zib"),
    "a link that is no signature": ({"link": 5}, "link= of t.*int"),
    "a link_error that is no signature": ({"link_error": 5}, "link_error= of t.*int"),
    "headers that are no dict": ({"headers": [1]}, "headers"),
    "an option that is nearly a known one": ({"coutdown": 3}, "coutdown.*countdown"),
    "an empty task_id": ({"task_id": ""}, "task_id=''"),
    "an unknown key of the retry_policy": ({"retry_policy": {"max_retires": 1}}, "retry_policy.*max_retires"),
    "a bad value in the retry_policy": ({"retry_policy": {"max_retries": "often"}}, "retry_policy.*often"),
})  # fmt: skip
def test_what_cannot_work_is_refused_at_the_call(stage: Stage, case: Any) -> None:
    options, text = case
    with pytest.raises((ValueError, TypeError, MiniCeleryError), match=text):
        task_of(stage).apply_async(**options)
    assert not stage.sent()


def test_the_task_named_in_an_error_is_the_one_called(stage: Stage) -> None:
    with pytest.raises(ValueError, match=r"\bt\b"):
        task_of(stage).apply_async(countdown="soon")
    assert body_of(stage.message(stage.app.tasks["t"], 1))[0] == [1]
