"""What `retry` does, sentence by sentence."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from minicelery.exceptions import MaxRetriesExceededError, Reject, Retry
from minicelery.message import Verdict
from minicelery.worker.executor import Executor
from tests.compat.stage import Stage, body_of, delay_of, each
from tests.deliveries import delivery_of, document


def retrying(stage: Stage, attributes: dict[str, Any] | None = None, /, **options: Any) -> Any:
    """A task that asks for another attempt with `options`, as often as it is run."""

    @stage.app.task(bind=True, name="t", seen=[], **(attributes or {}))
    def task(self: Any, x: int = 0, y: int = 0) -> None:
        self.seen.append([x, y, self.request.retries])
        raise self.retry(**{"countdown": 0, **options})

    return task


def next_of(stage: Stage, task: Any, *args: Any, **options: Any) -> Any:
    """The message of the attempt after this one."""
    outcome = Executor(stage.app).run(delivery_of(task, *args, **options))
    [message] = outcome.publish
    return message


def test_a_retry_has_the_same_id_and_one_retry_more_in_the_same_queue(stage: Stage) -> None:
    task = retrying(stage)
    first = next_of(stage, task, task_id="an-id", queue="mail")
    assert (first.id, first.queue, first.headers["retries"]) == ("an-id", "mail", 1)
    assert first.headers["root_id"] == "an-id"


def test_retry_ends_the_attempt_by_raising(stage: Stage) -> None:
    seen: list[str] = []

    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> None:
        self.retry(countdown=60)
        seen.append("went on")

    assert stage.run(task).state == "RETRY" and not seen


def test_a_retry_that_does_not_throw_is_returned(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> str:
        found = self.retry(countdown=60, throw=False)
        return f"{type(found).__name__} {found.when}"

    assert stage.run(task).get(timeout=1) == "Retry 60"
    assert len(stage.sent()) == 1


def test_a_retry_leaves_in_the_same_step_as_the_attempts_end(stage: Stage) -> None:
    outcome = Executor(stage.app).run(delivery_of(retrying(stage), task_id="an-id"))
    assert (outcome.verdict, [one.id for one in outcome.publish]) == (Verdict.ACK, ["an-id"])
    assert document(outcome)["status"] == "RETRY" and not stage.sent()


def test_called_directly_it_raises_what_it_was_given(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any, error: Any) -> None:
        raise self.retry(exc=error)

    with pytest.raises(KeyError):
        task(KeyError("x"))
    with pytest.raises(Retry):
        task(None)


def test_called_directly_it_raises_the_exception_at_hand(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> None:
        try:
            raise KeyError("at hand")
        except KeyError as error:
            raise self.retry(exc=error) from error

    with pytest.raises(KeyError, match="at hand"):
        task()


def test_past_the_limit_it_ends_in_the_exception_given(stage: Stage) -> None:
    found = stage.run(retrying(stage, {"max_retries": 1}, exc=KeyError("why")))
    assert (found.state, repr(found.result)) == ("FAILURE", "KeyError('why')")


def test_past_the_limit_without_one_it_says_what_was_called(stage: Stage) -> None:
    found = stage.run(retrying(stage, {"max_retries": 1}), 7, task_id="an-id")
    error = found.result
    assert isinstance(error, MaxRetriesExceededError)
    assert "Can't retry t[an-id] args:(7,) kwargs:{}" in str(error)


def test_inside_except_the_limit_is_the_same_error(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t", max_retries=0)
    def task(self: Any, x: int) -> list[Any]:
        try:
            raise KeyError("x")
        except KeyError:
            try:
                self.retry()
            except self.MaxRetriesExceededError as error:
                return [type(error).__name__, list(error.task_args), error.task_kwargs]
        raise AssertionError

    assert stage.run(task, 5).get(timeout=1) == ["MaxRetriesExceededError", [5], {}]


@each({
    "max_retries=None given to retry means the default": ({}, {"max_retries": None}, 4),
    "max_retries=None as attribute means for ever": ({"max_retries": None}, {}, 20),
    "max_retries given to retry beats the attribute": ({}, {"max_retries": 1}, 2),
})  # fmt: skip
def test_the_limit_is_the_calls_or_the_tasks(stage: Stage, case: Any) -> None:
    attributes, options, runs = case
    task = retrying(stage, attributes, **options)
    task.delay()
    stage.work(most=20)
    assert len(task.seen) == runs


def test_an_override_lasts_one_attempt_and_sits_on_no_shared_object(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t", seen=[])
    def task(self: Any) -> None:
        self.seen.append(self.max_retries)
        raise self.retry(countdown=0, **({"max_retries": 10} if self.request.retries == 0 else {}))

    stage.run(task)
    assert task.seen == [3, 3, 3, 3]


@each({
    "without a time: default_retry_delay": ({"countdown": None}, 180),
    "countdown": ({"countdown": 9}, 9),
    "eta": ({"countdown": None, "eta": "in 30 s"}, 30),
})  # fmt: skip
def test_a_retry_waits(stage: Stage, case: Any) -> None:
    options, seconds = case
    if "eta" in options:
        options = {**options, "eta": datetime.now(timezone.utc) + timedelta(seconds=30)}
    assert delay_of(next_of(stage, retrying(stage, **options))) == pytest.approx(seconds, abs=6)


def test_other_options_are_those_of_the_next_call(stage: Stage) -> None:
    message = next_of(stage, retrying(stage, queue="slow", priority=2, headers={"mine": 1}))
    assert (message.queue, message.priority, message.headers["mine"]) == ("slow", 2, 1)


def test_autoretry_is_for_what_is_listed_and_never_for_retry_ignore_or_reject(stage: Stage) -> None:
    from minicelery.exceptions import Ignore

    @stage.app.task(bind=True, name="t", autoretry_for=(Exception,), default_retry_delay=0, seen=[])
    def task(self: Any, kind: str) -> None:
        self.seen.append(kind)
        raise {"Ignore": Ignore(), "Reject": Reject("x"), "KeyError": KeyError("x")}[kind]

    for kind in ("Ignore", "Reject", "KeyError"):
        stage.run(task, kind)
    assert task.seen == ["Ignore", "Reject", *["KeyError"] * 4]


def test_the_backoff_is_that_of_automatic_retries_only(stage: Stage) -> None:
    task = retrying(stage, {"retry_backoff": 50, "retry_jitter": False}, countdown=None)
    assert delay_of(next_of(stage, task)) == pytest.approx(180, abs=6)


def test_the_backoff_doubles_to_its_longest_with_full_jitter(stage: Stage) -> None:
    @stage.app.task(name="t", autoretry_for=(KeyError,), retry_backoff=3, retry_backoff_max=20, max_retries=9)
    def task() -> None:
        raise KeyError("x")

    for retries, longest in enumerate([3, 6, 12, 20, 20]):
        waits = [delay_of(next_of(stage, task, retries=retries)) for _ in range(20)]
        assert max(waits) <= longest and min(waits) < longest


def test_the_state_is_retry_with_the_exception_until_the_next_attempt(stage: Stage) -> None:
    found = stage.run(retrying(stage, exc=KeyError("why"), countdown=60))
    assert (found.state, repr(found.info)) == ("RETRY", "KeyError('why')")
    assert "retry" in found.traceback


def test_errbacks_are_called_at_the_final_failure_only(stage: Stage) -> None:
    seen: list[str] = []
    stage.app.task(lambda id: seen.append(id), name="errback")
    stage.run(retrying(stage), task_id="an-id", link_error=stage.app.signature("errback"))
    assert seen == ["an-id"] and len(stage.app.tasks["t"].seen) == 4


def test_links_are_called_after_the_attempt_that_succeeds(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> int:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return 5

    stage.run(task, link=stage.app.task(lambda x: x + 1, name="more").s().set(task_id="linked"))
    assert stage.app.AsyncResult("linked").get(timeout=1) == 6


def test_run_at_once_retries_are_made_at_once(stage: Stage) -> None:
    task = retrying(stage, countdown=60)
    started = time.monotonic()
    assert task.apply().state == "FAILURE"
    assert len(task.seen) == 4 and time.monotonic() - started < 50


@each({
    "new args replace those of the same names": ({"args": (7,)}, (1,), {"y": 2}, [7, 2]),
    "new kwargs replace those of the same names": ({"kwargs": {"x": 9}}, (1, 2), {}, [9, 2]),
    "args and kwargs replace all": ({"args": (7,), "kwargs": {"y": 8}}, (1, 2), {}, [7, 8]),
})  # fmt: skip
def test_new_arguments_are_merged_by_name(stage: Stage, case: Any) -> None:
    options, args, kwargs, expected = case
    task = retrying(stage, {"max_retries": 1}, **options)
    task.apply_async(args, kwargs)
    stage.work()
    assert [one[:2] for one in task.seen] == [[args[0], (*args, kwargs.get("y"))[1]], expected]


def test_a_retry_carries_links_headers_and_limits_on(stage: Stage) -> None:
    task = retrying(stage, args=(5,))
    message = next_of(
        stage, task, 1, link=task.s(), headers={"mine": 1}, time_limit=9, expires=60, priority=4
    )
    links = body_of(message)[2]
    assert [one["task"] for one in links["callbacks"]] == ["t"]
    assert (message.headers["mine"], message.headers["timelimit"], message.priority) == (1, [9, None], 4)
    assert message.headers["expires"] is not None


def test_a_retry_that_cannot_be_made_fails_the_task_with_the_reason(stage: Stage) -> None:
    found = stage.run(retrying(stage, args=({1, 2},)))
    assert found.state == "FAILURE" and "set" in str(found.result)
