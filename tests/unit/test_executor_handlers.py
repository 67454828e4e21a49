"""Handlers, signals and logs of an attempt; and runs that somebody else began."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery import Celery, Task, signals
from minicelery.exceptions import (
    Ignore,
    ImproperlyConfigured,
    Reject,
    WorkerLostError,
)
from minicelery.message import Outcome, Verdict
from minicelery.worker.call import Call
from minicelery.worker.executor import Executor
from tests.deliveries import delivery_of, document, error_of, message_of, never, run


class Flaky(Exception):
    pass


# -- handlers --------------------------------------------------------------------------------


class Journal(Task):  # type: ignore[type-arg]
    """Writes down which handler was called with what."""

    abstract = True
    journal: list[str] = []

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.journal.append("before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.journal.append("on_success")

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.journal.append(f"on_retry {type(exc).__name__}")

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        assert "Traceback" in str(einfo) or einfo.exception is exc
        self.journal.append(f"on_failure {type(exc).__name__}")

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        self.journal.append(f"after_return {status}")


HEARD = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry", "task_rejected")


@pytest.fixture
def journal() -> Iterator[list[str]]:
    """What handlers and signals have been called, in order."""
    found = Journal.journal = []

    def receiver(name: str) -> Callable[..., None]:
        return lambda **_: found.append(name)

    for name in HEARD:
        getattr(signals, name).connect(receiver(name), weak=False, dispatch_uid="journal")
    yield found
    for name in HEARD:
        getattr(signals, name).disconnect(dispatch_uid="journal")


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("return", ["task_prerun", "before_start", "run", "on_success", "task_success",
                    "after_return SUCCESS", "task_postrun"]),
        ("raise", ["task_prerun", "before_start", "run", "on_failure ValueError", "task_failure",
                   "after_return FAILURE", "task_postrun"]),
        ("retry", ["task_prerun", "before_start", "run", "on_retry KeyError", "task_retry", "task_postrun"]),
        ("ignore", ["task_prerun", "before_start", "run", "task_postrun"]),
        ("reject", ["task_prerun", "before_start", "run", "task_postrun", "task_failure"]),
    ],
)  # fmt: skip
def test_handlers_are_called_in_celerys_order(
    app: Celery, journal: list[str], end: str, expected: list[str]
) -> None:
    @app.task(bind=True, base=Journal)
    def task(self: Any) -> None:
        journal.append("run")
        if end == "raise":
            raise ValueError
        if end == "retry":
            raise self.retry(exc=KeyError())
        if end != "return":
            raise {"ignore": Ignore, "reject": Reject}[end]()

    run(task)
    assert journal == expected


def test_links_leave_before_the_handlers_are_called(app: Celery, journal: list[str]) -> None:
    @app.task
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        journal.append("errback")

    @app.task(base=Journal)
    def task() -> None:
        raise ValueError

    run(task, link_error=errback.s())
    assert journal.index("errback") < journal.index("on_failure ValueError")


@pytest.mark.parametrize("end", ["return", "raise", "retry", "ignore", "reject"])
def test_a_failing_handler_or_receiver_changes_nothing(app: Celery, end: str, caplog: Any) -> None:
    class Rude(Task):  # type: ignore[type-arg]
        abstract = True

        def on_success(self, *args: Any) -> None:
            raise RuntimeError("rude handler")

        on_retry = on_failure = after_return = on_success

    def body(self: Any) -> str:
        if end == "raise":
            raise ValueError("x")
        if end == "retry":
            raise self.retry(exc=KeyError("x"), countdown=1)
        if end != "return":
            raise {"ignore": Ignore, "reject": Reject}[end]()
        return "value"

    calm = run(app.task(body, name="calm", bind=True), task_id="i")

    def shout(**_: Any) -> None:
        raise RuntimeError("rude receiver")

    for name in HEARD:
        getattr(signals, name).connect(shout, weak=False, dispatch_uid="rude")
    try:
        rude = run(app.task(body, name="rude", bind=True, base=Rude), task_id="i")
    finally:
        for name in HEARD:
            getattr(signals, name).disconnect(dispatch_uid="rude")
    assert (rude.verdict, len(rude.publish)) == (calm.verdict, len(calm.publish))
    assert (rude.record is None) == (calm.record is None)
    if rude.record is not None:
        ours, theirs = document(rude), document(calm)
        assert (ours["status"], ours["result"]) == (theirs["status"], theirs["result"])
    assert "rude" in caplog.text


def test_a_failing_before_start_fails_the_task_and_is_not_retried(app: Celery) -> None:
    class Unready(Task):  # type: ignore[type-arg]
        abstract = True

        def before_start(self, *args: Any) -> None:
            raise Flaky("not ready")

    @app.task(base=Unready, autoretry_for=(Flaky,))
    def task() -> None:
        raise AssertionError("it ran")

    outcome = run(task)
    assert (document(outcome)["result"]["exc_type"], outcome.publish) == ("Flaky", [])


def test_handlers_find_the_attempt_in_self_request(app: Celery) -> None:
    seen = []

    class Curious(Task):  # type: ignore[type-arg]
        abstract = True

        def before_start(self, *args: Any) -> None:
            seen.append(self.request.id)

        on_success = on_failure = after_return = before_start

    run(app.task(lambda: 1, name="good", base=Curious), task_id="a")
    run(app.task(lambda: 1 / 0, name="bad", base=Curious), task_id="b")
    assert seen == ["a"] * 3 + ["b"] * 3


def test_expected_errors_are_logged_without_a_traceback(app: Celery, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "minicelery")

    def fail() -> None:
        raise KeyError("k")

    run(app.task(fail, name="expected", throws=(KeyError,)))
    assert {entry.levelname for entry in caplog.records} == {"INFO"} and "Traceback" not in caplog.text
    run(app.task(fail, name="unexpected"))
    assert caplog.records[-1].levelname == "ERROR" and "Traceback" in caplog.text


def test_a_result_whose_repr_raises_is_logged_all_the_same(app: Celery, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "minicelery")

    class Rude(str):
        def __repr__(self) -> str:
            raise RuntimeError

    assert document(run(app.task(lambda: Rude("x"), name="t")))["result"] == "x"
    assert "Rude" in caplog.text


# -- runs that somebody else began ------------------------------------------------------------


def begun(app: Celery, reason: str | None, deliveries: int = 0, **options: Any) -> Outcome:
    """What becomes of a delivery whose run has died."""
    delivery = delivery_of(never(app, **options), task_id="an-id")
    delivery.started, delivery.reason, delivery.deliveries = True, reason, deliveries
    return Executor(app).run(delivery)


@pytest.mark.parametrize(
    ("acks_late", "reject_on_worker_lost", "reason", "deliveries", "verdict", "error"),
    [
        # early acknowledgement: at most once, and never silently
        (False, None, None, 0, Verdict.ACK, "WorkerLostError"),
        (False, None, "worker lost: signal 9", 0, Verdict.ACK, "WorkerLostError"),
        (False, True, "worker lost: signal 9", 0, Verdict.ACK, "WorkerLostError"),
        (False, None, "terminated: cold shutdown", 0, Verdict.ACK, "Terminated"),
        (False, None, "time limit", 0, Verdict.ACK, "TimeLimitExceeded"),
        # late acknowledgement: the death of a child fails it, unless it is to be put back
        (True, None, "worker lost: signal 9", 0, Verdict.ACK, "WorkerLostError"),
        (True, False, "worker lost: signal 9", 0, Verdict.ACK, "WorkerLostError"),
        (True, True, "worker lost: signal 9", 0, Verdict.REQUEUE, None),
        (True, True, "worker lost: signal 9", 1, Verdict.REQUEUE, None),
        (True, True, "worker lost: signal 9", 2, Verdict.REJECT, "WorkerLostError"),
        # late acknowledgement: the death of the worker, machine or connection runs it again
        (True, None, None, 0, Verdict.REQUEUE, None),
        (True, None, None, 1, Verdict.REQUEUE, None),
        (True, None, None, 2, Verdict.REJECT, "WorkerLostError"),
        (True, None, None, 7, Verdict.REJECT, "WorkerLostError"),
        (True, None, "terminated: cold shutdown", 0, Verdict.REQUEUE, None),
        (True, True, "time limit", 0, Verdict.ACK, "TimeLimitExceeded"),
    ],
)
def test_a_run_that_died_ends_as_the_task_says(
    app: Celery, acks_late: bool, reject_on_worker_lost: bool | None, reason: str | None, deliveries: int,
    verdict: Verdict, error: str | None,
) -> None:  # fmt: skip
    outcome = begun(app, reason, deliveries, acks_late=acks_late, reject_on_worker_lost=reject_on_worker_lost)
    assert outcome.verdict is verdict
    if error is None:
        assert (outcome.record, outcome.delivery.deliveries) == (None, deliveries + 1)
    else:
        assert document(outcome)["result"]["exc_type"] == error
        assert document(outcome)["result"]["exc_module"] == "billiard.exceptions"


def test_the_delivery_cap_is_a_setting(app: Celery) -> None:
    app.conf.task_delivery_cap = 1
    assert begun(app, None, acks_late=True).verdict is Verdict.REJECT


def test_a_lost_run_is_retried_where_the_task_wants_that(app: Celery) -> None:
    outcome = begun(app, "worker lost", retry_on_worker_lost=True)
    assert document(outcome)["status"] == "RETRY"
    assert [message.headers["retries"] for message in outcome.publish] == [1]
    assert document(outcome)["result"]["exc_type"] == "WorkerLostError"


def test_a_lost_run_calls_errbacks_and_handlers(app: Celery, journal: list[str]) -> None:
    delivery = delivery_of(never(app, base=Journal), link_error=app.signature("elsewhere"))
    delivery.started = True
    outcome = Executor(app).run(delivery)
    assert [message.task for message in outcome.publish] == ["elsewhere"]
    assert journal == ["on_failure WorkerLostError", "task_failure", "after_return FAILURE", "task_postrun"]
    assert isinstance(error_of(outcome), WorkerLostError)


def test_a_time_limit_runs_it_again_only_where_failures_are_not_acknowledged(app: Celery) -> None:
    assert begun(app, "time limit", acks_late=True, acks_on_timeout=False).verdict is Verdict.REQUEUE
    assert (
        begun(app, "time limit", acks_late=True, acks_on_timeout=False, deliveries=2).verdict
        is Verdict.REJECT
    )


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, Verdict.ACK),
        ({"acks_late": True}, Verdict.ACK),
        ({"acks_late": True, "acks_on_failure": False}, Verdict.REJECT),
        ({"acks_late": True, "acks_on_failure_or_timeout": False}, Verdict.REJECT),
        ({"acks_late": True, "acks_on_failure_or_timeout": False, "acks_on_failure": True}, Verdict.ACK),
        ({"acks_on_failure": False}, Verdict.ACK),
    ],
)
def test_a_failed_late_task_goes_to_the_dead_letters_where_failures_are_not_acknowledged(
    app: Celery, options: dict[str, Any], verdict: Verdict
) -> None:
    outcome = run(app.task(lambda: 1 / 0, name="fail", **options))
    assert outcome.verdict is verdict
    assert document(outcome)["status"] == "FAILURE"


def test_a_running_call_can_be_timed_out_or_terminated(app: Celery) -> None:
    executor = Executor(app)
    for late, verdict in ((False, Verdict.ACK), (True, Verdict.REQUEUE)):
        call = executor.begin(delivery_of(app.task(lambda: 1, name=f"t{late}", acks_late=late), time_limit=9))
        assert isinstance(call, Call)
        assert document(executor.timed_out(call))["result"]["exc_message"] == [9]
        outcome = executor.terminated(call, "cold shutdown")
        assert (outcome.verdict, outcome.delivery.deliveries) == (verdict, 0)


def test_limits_of_the_call_beat_the_tasks_and_those_the_workers(app: Celery) -> None:
    executor = Executor(app, time_limit=100, soft_time_limit=90)

    def limits(task: Task[..., Any], **options: Any) -> tuple[float | None, float | None]:
        call = executor.begin(delivery_of(task, **options))
        assert isinstance(call, Call)
        return call.time_limit, call.soft_limit

    plain = app.task(lambda: 1, name="plain")
    own = app.task(lambda: 1, name="own", time_limit=60, soft_time_limit=50)
    assert limits(plain) == (100, 90)
    assert limits(own) == (60, 50)
    assert limits(own, time_limit=30, soft_time_limit=20) == (30, 20)


def test_started_is_recorded_only_where_it_is_tracked(app: Celery) -> None:
    executor = Executor(app, "w1@host")

    def started(**options: Any) -> dict[str, Any] | None:
        call = executor.begin(delivery_of(app.task(lambda: 1, name=f"t{options}", **options)))
        assert isinstance(call, Call)
        found = executor.started(call)
        return None if found is None else json.loads(found.document)

    assert started() is None and started(track_started=True, ignore_result=True) is None
    found = started(track_started=True)
    assert found is not None and found["status"] == "STARTED" and found["result"]["hostname"] == "w1@host"


def test_an_unknown_setting_of_the_serializer_is_refused_at_once(app: Celery) -> None:
    with pytest.raises(ImproperlyConfigured):
        message_of(app.task(lambda: 1, name="t"), serializer="yml")
