"""Retries, asked for and automatic: the rules are Celery's, to the letter."""

from __future__ import annotations

import json
import random
import time
from datetime import datetime, timezone
from typing import Any

import pytest

from minicelery import Celery
from minicelery.broker.redis.envelope import encode
from minicelery.exceptions import (
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Retry,
)
from minicelery.message import Delivery, Message, Verdict
from minicelery.task import retry_delay
from minicelery.worker.executor import Executor
from tests import golden
from tests.deliveries import body_of, document, error_of, message_of, run

# -- retries that a task asks for ---------------------------------------------------------


def test_a_retry_is_the_same_call_with_one_retry_more(app: Celery) -> None:
    @app.task(bind=True)
    def again(self: Any, x: int) -> None:
        raise self.retry(countdown=60, exc=KeyError("why"))

    before = time.time()
    outcome = run(again, 1, task_id="an-id", queue="mail", priority=3, headers={"x-my": 1}, shadow="s",
                  link=again.s(2), time_limit=90, soft_time_limit=80, expires=7200, reply_to="client")  # fmt: skip
    (message,) = outcome.publish
    headers = message.headers
    assert outcome.verdict is Verdict.ACK
    assert (message.id, message.queue, message.priority) == ("an-id", "mail", 3)
    assert (headers["retries"], headers["x-my"], headers["shadow"]) == (1, 1, "s")
    assert (headers["timelimit"], headers["parent_id"], headers["root_id"]) == ([90, 80], "an-id", "an-id")
    assert message.due == pytest.approx(before + 60, abs=5)
    assert datetime.fromisoformat(headers["eta"]).timestamp() == pytest.approx(message.due, abs=0.001)
    assert datetime.fromisoformat(headers["expires"]).timestamp() == pytest.approx(before + 7200, abs=5)
    assert message.properties["reply_to"] == "client"
    assert body_of(message) == ([1], {}, body_of(message_of(again, 1, link=again.s(2)))[2])
    found = document(outcome)
    assert (found["status"], found["date_done"]) == ("RETRY", None)
    assert found["result"] == {"exc_type": "KeyError", "exc_message": ["why"], "exc_module": "builtins"}


def test_our_retry_is_celerys(app: Celery) -> None:
    app.task(lambda: None, name="wireapp.noop")

    @app.task(name="wireapp.retry_me", bind=True)
    def retry_me(self: Any, n: int = 0, countdown: float | None = None) -> None:
        raise self.retry(exc=KeyError("try 0"), countdown=3600)

    theirs = golden.load("worker_messages")["retry (countdown 3600)"][0]["message"]
    first = json.loads(json.dumps(theirs["headers"]))
    first |= {"retries": 0, "eta": None, "parent_id": None}
    # It expires on 21 November 2026; the test must not.
    first["expires"] = theirs["headers"]["expires"] = "2126-11-21T04:18:27.121804+00:00"
    message = Message(
        first["id"], first["task"], json.dumps(theirs["body"]).encode(), first, priority=3,
        properties={name: theirs["properties"][name] for name in ("correlation_id", "reply_to", "expiration")},
    )  # fmt: skip
    (again,) = Executor(app).run(Delivery(message, 1)).publish
    ours = json.loads(encode(again))
    assert ours["headers"] == theirs["headers"] | {"eta": ours["headers"]["eta"]}
    assert list(body_of(again)) == theirs["body"]
    for name in ("correlation_id", "reply_to", "delivery_mode", "delivery_info", "priority"):
        assert ours["properties"][name] == theirs["properties"][name]


def test_without_a_delay_given_a_retry_waits_three_minutes(app: Celery) -> None:
    task = app.task(lambda self: self.retry(), name="t", bind=True)
    own = app.task(lambda self: self.retry(), name="own", bind=True, default_retry_delay=7)
    now = time.time()
    assert run(task).publish[0].due == pytest.approx(now + 180, abs=5)
    assert run(own).publish[0].due == pytest.approx(now + 7, abs=5)


def test_a_retry_may_name_its_time(app: Celery) -> None:
    moment = datetime(2126, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    task = app.task(lambda self: self.retry(eta=moment), name="t", bind=True)
    (message,) = run(task).publish
    assert message.due == moment.timestamp() and message.headers["eta"] == "2126-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    ("attribute", "argument", "retries", "again"),
    [
        (3, None, 2, True), (3, None, 3, False), (3, 5, 4, True), (3, 5, 5, False), (3, 1, 1, False),
        (0, None, 0, False), (None, None, 10_000, True), (None, 2, 2, False), (3, 0, 0, False),
    ],
)  # fmt: skip
def test_retries_end_at_the_limit(
    app: Celery, attribute: int | None, argument: int | None, retries: int, again: bool
) -> None:
    task = app.task(lambda self: self.retry(max_retries=argument), name="t", bind=True, max_retries=attribute)
    outcome = run(task, retries=retries)
    assert document(outcome)["status"] == ("RETRY" if again else "FAILURE")
    assert len(outcome.publish) == again


def test_an_override_of_the_limit_lasts_one_attempt(app: Celery) -> None:
    @app.task(bind=True, max_retries=1)
    def task(self: Any) -> None:
        raise self.retry(max_retries=5 if self.request.retries == 0 else None)

    (second,) = run(task).publish
    outcome = Executor(app).run(Delivery(second, 2))
    # The attempt was asked for with another limit; this one has the task's own again.
    second.headers["eta"] = None
    assert document(Executor(app).run(Delivery(second, 2)))["status"] == "FAILURE"
    assert outcome.verdict is Verdict.ACK and task.max_retries == 1


def test_too_many_retries_end_in_the_exception_given(app: Celery) -> None:
    @app.task(bind=True, max_retries=0)
    def task(self: Any) -> None:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise self.retry(exc=error) from error

    error = error_of(run(task))
    assert type(error) is KeyError and error.args == ("cause",)


def test_too_many_retries_without_an_exception_say_what_was_called(app: Celery) -> None:
    caught: list[MaxRetriesExceededError] = []

    @app.task(bind=True, max_retries=0)
    def task(self: Any, x: int, y: int = 0) -> None:
        try:
            raise KeyError("the cause does not matter")
        except KeyError:
            try:
                self.retry()
            except self.MaxRetriesExceededError as error:
                caught.append(error)
                raise

    outcome = run(task, 1, kwargs={"y": 2}, task_id="an-id")
    assert type(error_of(outcome)) is MaxRetriesExceededError
    assert str(error_of(outcome)) == f"Can't retry {task.name}[an-id] args:(1,) kwargs:{{'y': 2}}"
    assert (caught[0].task_args, caught[0].task_kwargs) == ([1], {"y": 2})


def test_a_retry_that_is_not_thrown_leaves_with_whatever_comes_after(app: Celery) -> None:
    @app.task(bind=True)
    def task(self: Any, fails: bool) -> Any:
        retry = self.retry(countdown=5, throw=False)
        assert isinstance(retry, Retry)
        return 1 / 0 if fails else "done"

    for fails, state in ((False, "SUCCESS"), (True, "FAILURE")):
        outcome = run(task, fails)
        assert document(outcome)["status"] == state
        assert [message.headers["retries"] for message in outcome.publish] == [1]


def test_a_retry_that_the_task_swallows_is_made_all_the_same(app: Celery) -> None:
    @app.task(bind=True)
    def task(self: Any) -> str:
        try:
            self.retry()
        except Exception:
            return "swallowed"
        return ""

    outcome = run(task)
    assert document(outcome)["result"] == "swallowed"
    assert [message.headers["retries"] for message in outcome.publish] == [1]


@pytest.mark.parametrize(
    ("args", "kwargs", "new_args", "new_kwargs", "x", "y", "z"),
    [
        ([1, 2], {"z": 3}, None, None, 1, 2, 3),
        ([1], {"y": 2, "z": 3}, [9], None, 9, 2, 3),
        ([1, 2], {"z": 3}, None, {"y": 8}, 1, 8, 0),
        ([1], {"y": 2, "z": 3}, [7, 8], None, 7, 8, 3),
        ([1, 2, 3], {}, None, {"x": 0}, 0, 2, 3),
        ([1, 2, 3], {}, [4, 5, 6], {}, 4, 5, 6),
    ],
)
def test_new_arguments_replace_the_old_ones_by_name(
    app: Celery, args: Any, kwargs: Any, new_args: Any, new_kwargs: Any, x: int, y: int, z: int
) -> None:
    @app.task(bind=True)
    def task(self: Any, x: int, y: int, z: int = 0) -> Any:
        if self.request.retries:
            return [x, y, z]
        raise self.retry(args=new_args, kwargs=new_kwargs)

    (message,) = run(task, *args, kwargs=kwargs).publish
    message.headers["eta"] = None
    assert document(Executor(app).run(Delivery(message, 1)))["result"] == [x, y, z]


def test_new_arguments_change_what_the_message_shows(app: Celery) -> None:
    @app.task(bind=True)
    def task(self: Any, x: int) -> None:
        raise self.retry(args=[2], countdown=1)

    (message,) = run(task, 1, headers={"x-my": 1}, ignore_result=True, priority=4, queue="mail").publish
    assert (message.headers["argsrepr"], message.headers["x-my"]) == ("(2,)", 1)
    assert (message.headers["ignore_result"], message.priority, message.queue) == (True, 4, "mail")


def test_a_retry_may_go_to_another_queue_with_other_options(app: Celery) -> None:
    task = app.task(
        lambda self: self.retry(queue="slow", priority=9, time_limit=30, countdown=1), name="t", bind=True
    )
    (message,) = run(task, queue="fast", headers={"x-my": 1}).publish
    assert (message.queue, message.priority, message.headers["timelimit"]) == ("slow", 9, [30, None])
    assert (message.headers["retries"], message.headers["x-my"]) == (1, 1)


def test_a_retry_called_directly_raises_what_it_was_given(app: Celery) -> None:
    @app.task(bind=True)
    def task(self: Any, error: Exception | None) -> None:
        self.retry(exc=error)

    with pytest.raises(KeyError, match="x"):
        task(KeyError("x"))
    with pytest.raises(Retry):
        task(None)


def test_a_raised_retry_without_a_message_only_sets_the_state(app: Celery) -> None:
    @app.task
    def task() -> None:
        raise Retry("by hand")

    outcome = run(task)
    assert (document(outcome)["status"], outcome.publish) == ("RETRY", ())


# -- automatic retries -----------------------------------------------------------------------


class Flaky(Exception):
    pass


class Hopeless(Flaky):
    pass


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Flaky(), "RETRY"),
        (Hopeless(), "FAILURE"),
        (KeyError(), "FAILURE"),
        (Ignore(), None),
        (Reject(), "FAILURE"),
    ],
)
def test_autoretry_takes_what_it_lists_less_what_it_excepts(
    app: Celery, error: Exception, state: str | None
) -> None:
    @app.task(autoretry_for=(Flaky, Ignore, Reject), dont_autoretry_for=(Hopeless,))
    def task() -> None:
        raise error

    outcome = run(task)
    assert (outcome.record and outcome.record.state) == state
    assert len(outcome.publish) == (state == "RETRY")


def test_autoretry_leaves_a_retry_of_the_tasks_own_alone(app: Celery) -> None:
    task = app.task(lambda self: self.retry(countdown=5), name="t", bind=True, autoretry_for=(Exception,))
    outcome = run(task)
    assert len(outcome.publish) == 1
    assert document(outcome)["result"] is None


def test_autoretry_ends_in_the_exception_itself_with_a_traceback_of_the_users(app: Celery) -> None:
    @app.task(autoretry_for=(Flaky,), max_retries=1)
    def task() -> None:
        raise Flaky("again")

    outcome = run(task, retries=1)
    assert document(outcome)["result"]["exc_type"] == "Flaky"
    assert "minicelery/" not in document(outcome)["traceback"]
    assert "in task" in document(outcome)["traceback"]


def test_autoretry_uses_retry_kwargs(app: Celery) -> None:
    @app.task(autoretry_for=(Flaky,), retry_kwargs={"max_retries": 5, "countdown": 7})
    def task() -> None:
        raise Flaky

    now = time.time()
    (message,) = run(task, retries=4).publish
    assert message.due == pytest.approx(now + 7, abs=5)
    assert document(run(task, retries=5))["status"] == "FAILURE"


@pytest.mark.parametrize(
    ("factor", "longest", "delays"),
    [
        (True, 600, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]),
        (1, 600, [1, 2, 4, 8]),
        (5, 600, [5, 10, 20, 40, 80, 160, 320, 600]),
        (2.9, 600, [2, 4, 8]),
        (0.5, 600, [1, 2, 4]),
        (1, 3, [1, 2, 3, 3]),
        (1000, 600, [600]),
    ],
)
def test_the_backoff_doubles_up_to_its_longest(
    app: Celery, factor: float, longest: int, delays: list[int]
) -> None:
    @app.task(
        autoretry_for=(Flaky,), retry_backoff=factor, retry_backoff_max=longest, retry_jitter=False,
        max_retries=None,
    )  # fmt: skip
    def task() -> None:
        raise Flaky

    for retries, delay in enumerate(delays):
        now = time.time()
        (message,) = run(task, retries=retries).publish
        assert now + delay - 0.9 < message.due < time.time() + delay + 0.9


def test_the_jitter_is_full(app: Celery) -> None:
    rng, same = random.Random(7), random.Random(7)
    drawn = [retry_delay(3, 2, 600, True, rng) for _ in range(2000)]
    assert drawn == [same.randrange(17) for _ in range(2000)]
    assert set(drawn) == set(range(17))
    assert {retry_delay(3, 2, 600, False, rng) for _ in range(9)} == {16}


def test_the_backoff_of_a_task_that_retries_for_ever_never_overflows() -> None:
    assert retry_delay(10**9, 1, 600, False, random.Random()) == 600


def test_the_backoff_has_no_say_in_a_retry_by_hand(app: Celery) -> None:
    task = app.task(lambda self: self.retry(), name="t", bind=True, autoretry_for=(Flaky,), retry_backoff=1)
    now = time.time()
    assert run(task).publish[0].due == pytest.approx(now + 180, abs=5)
