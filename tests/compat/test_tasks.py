"""What a task has: its methods, its handlers, and the order in which they are called."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, Task, signals
from minicelery.exceptions import Ignore, Reject, Retry
from minicelery.message import Delivery, Verdict
from minicelery.worker.board import Board
from minicelery.worker.executor import Executor
from minicelery.worker.swapper import set_events
from tests.compat.stage import Stage, body_of, each
from tests.deliveries import delivery_of, document
from tests.django_inside import use_database
from tests.events.conftest import heard
from tests.waiting import wait_until

# -- methods ---------------------------------------------------------------------------------------


def test_run_is_the_function_and_a_call_of_the_task_runs_it_here(stage: Stage) -> None:
    seen: list[Any] = []

    @stage.app.task(bind=True, name="t")
    def task(self: Any, x: int) -> int:
        seen.append((self.request.called_directly, self.request.id))
        return x + 1

    assert (task.run(1), task(2)) == (2, 3)
    assert seen == [(True, None)] * 2 and not stage.sent()


def test_delay_sends_its_arguments(stage: Stage) -> None:
    task = stage.app.task(lambda *args, **kwargs: [args, kwargs], name="t")
    found = task.delay(1, x=2)
    assert body_of(stage.sent()[0])[:2] == ([1], {"x": 2})
    stage.work()
    assert found.get(timeout=1) == [[1], {"x": 2}]


def test_apply_async_sends_arguments_and_options(stage: Stage) -> None:
    task = stage.app.task(lambda x, y: x - y, name="t")
    found = task.apply_async((5,), {"y": 2}, task_id="an-id", priority=3)
    [message] = stage.sent()
    assert (message.id, message.priority, found.id) == ("an-id", 3, "an-id")
    stage.work()
    assert found.get(timeout=1) == 3


def test_apply_runs_the_task_here_with_handlers_and_retries(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any, x: int) -> list[Any]:
        if self.request.retries < 2:
            raise self.retry(countdown=60)
        return [x, self.request.retries, self.request.is_eager]

    found = task.apply((7,), task_id="an-id")
    assert (found.state, found.result, found.id) == ("SUCCESS", [7, 2, True], "an-id")
    assert not stage.sent()


def test_always_eager_runs_calls_here_through_the_serializer(stage: Stage) -> None:
    stage.app.conf.task_always_eager = True
    task = stage.app.task(lambda x: (x, type(x).__name__), name="t")
    assert task.delay((1, 2)).get() == [[1, 2], "list"]
    failing = stage.app.task(lambda: {}["x"], name="failing")
    assert failing.delay().state == "FAILURE"
    stage.app.conf.task_eager_propagates = True
    with pytest.raises(KeyError):
        failing.delay()


def test_s_and_si_make_signatures_that_are_sent_later(stage: Stage) -> None:
    task = stage.app.task(lambda *args: list(args), name="t")
    task.s(1).apply_async((2,))
    task.si(1).apply_async((2,))
    assert [body_of(one)[0] for one in stage.sent()] == [[2, 1], [1]]


@each({"signature": "signature", "subtask": "subtask"})
def test_a_signature_holds_arguments_and_options(stage: Stage, case: str) -> None:
    task = stage.app.task(lambda x, y: x - y, name="t")
    signature = getattr(task, case)((5,), {"y": 1}, countdown=0, priority=2)
    found = signature.apply_async()
    assert stage.sent()[0].priority == 2
    stage.work()
    assert found.get(timeout=1) == 4


def test_a_signature_from_the_request_makes_the_same_call_again(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any, x: int) -> None:
        if self.request.retries == 0:
            self.signature_from_request(self.request, args=(x + 1,), retries=1, countdown=0).apply_async()

    stage.run(task, 1, task_id="an-id")
    requests = [(one.delivery.message.id, body_of(one.delivery.message)[0]) for one in stage.outcomes]
    assert requests == [("an-id", [1]), ("an-id", [2])]


@each({"delay_on_commit": (1, 2), "apply_async_on_commit": ((1, 2),)})
def test_a_call_in_django_may_wait_until_the_transaction_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, case: tuple[Any, ...]
) -> None:
    pytest.importorskip("django")
    from django.db import transaction

    use_database(tmp_path)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "as.configured")
    with Celery("django", broker=f"memory://{tmp_path.name}", set_as_current=False) as app:
        stage = Stage(app)
        task = app.task(lambda x, y: x + y, name="t")
        call = getattr(task, request.node.callspec.id)
        with transaction.atomic():
            assert call(*case) is None
            assert not stage.sent()
        assert [body_of(one)[0] for one in stage.sent()] == [[1, 2]]
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    with pytest.raises(AttributeError, match="on_commit"):
        _ = Celery("plain", set_as_current=False, task_cls=Task).task(lambda: 1, name="t").delay_on_commit


def test_update_state_stores_what_the_task_reports(stage: Stage) -> None:
    seen: list[Any] = []

    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> None:
        self.update_state(state="PROGRESS", meta={"done": 1})
        found = self.AsyncResult(self.request.id)
        seen.append((found.state, found.info))

    stage.run(task)
    assert seen == [("PROGRESS", {"done": 1})]


def test_send_event_tells_what_the_task_wants_told(stage: Stage) -> None:
    task = stage.app.task(lambda self: self.send_event("task-mine", more=1), name="t", bind=True)
    with heard(stage.app) as events:
        result = stage.run(task)
        wait_until(lambda: events)
    (event,) = events
    found = [event[name] for name in ("type", "uuid", "more", "hostname")]
    assert found == ["task-mine", result.id, 1, "w1@compat"]


def test_a_task_with_send_events_off_is_not_told_of(stage: Stage) -> None:
    quiet = stage.app.task(lambda: 1, name="quiet", send_events=False)
    loud = stage.app.task(lambda: 1, name="loud")
    executor = Executor(stage.app, "w1@compat")
    set_events(executor, Board(1), True)
    for number, task in enumerate((quiet, loud)):
        assert executor.run(Delivery(stage.message(task), number)).verdict is Verdict.ACK
    assert executor.events is not None
    (letter,) = executor.events.take()
    assert [event["type"] for event in json.loads(letter.body)] == [
        "task-received", "task-started", "task-succeeded",
    ]  # fmt: skip


def test_async_result_finds_the_result_of_a_call(stage: Stage) -> None:
    task = stage.app.task(lambda: 5, name="t")
    assert task.AsyncResult(stage.run(task).id).get(timeout=1) == 5


def test_shadow_name_gives_calls_another_name_in_logs(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    class Shadowed(Task[..., Any]):
        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
            return f"{self.name} of {args[0]}"

    caplog.set_level(logging.INFO)
    task = stage.app.task(lambda x: x, name="t", base=Shadowed)
    assert stage.message(task, "ada").headers["shadow"] == "t of ada"
    stage.run(task, "ada")
    assert any("t of ada[" in one.getMessage() for one in caplog.records)


def test_a_pushed_request_is_the_tasks_until_it_is_popped(stage: Stage) -> None:
    task = stage.app.task(lambda self: [self.request.id, self.request.retries], name="t", bind=True)
    task.push_request(id="an-id", retries=2)
    try:
        assert (task.request.id, task.run()) == ("an-id", ["an-id", 2])
    finally:
        task.pop_request()
    assert task.request.id is None


def test_on_bound_is_told_the_app(stage: Stage) -> None:
    bound: list[Any] = []

    class Bound(Task[..., Any]):
        @classmethod
        def on_bound(cls, app: Any) -> None:
            bound.append(app)

    stage.run(stage.app.task(lambda: 1, name="t", base=Bound))
    assert stage.app in bound


def test_annotate_applies_the_apps_annotations(stage: Stage) -> None:
    task = stage.app.task(lambda: 1, name="t")
    stage.app.finalize()
    stage.app.conf.task_annotations = {"*": {"resultrepr_maxsize": 7}}
    task.annotate()
    assert task.resultrepr_maxsize == 7


def test_add_around_wraps_a_method(stage: Stage) -> None:
    class Wrapped(Task[..., Any]):
        name = "t"

        def run(self, x: int) -> Any:
            return [self.name, x]

    Wrapped.add_around("run", lambda run: lambda self, x: ["around", *run(self, x)])
    assert stage.run(stage.app.register_task(Wrapped()), 1).get(timeout=1) == ["around", "t", 1]


def test_a_task_class_takes_type_parameters_and_a_task_pickles_by_its_name(stage: Stage) -> None:
    import pickle

    class Typed(Task[[int], str]):
        pass

    task = stage.app.task(lambda x: str(x), name="t", base=Typed)
    assert stage.run(pickle.loads(pickle.dumps(task)), 1).get(timeout=1) == "1"


def test_a_task_looks_like_its_function(stage: Stage) -> None:
    @stage.app.task(name="t")
    def add(x: int, y: int = 2) -> int:
        """Add."""
        return x + y

    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert list(inspect.signature(add).parameters) == ["x", "y"]


def test_a_task_has_no_strategy_for_celerys_consumer(stage: Stage) -> None:
    with pytest.raises(NotImplementedError, match=r"t: .*no strategies.*before_start"):
        stage.app.task(lambda: 1, name="t").start_strategy(stage.app, None)


def test_many_calls_leave_in_one_trip(stage: Stage) -> None:
    task = stage.app.task(lambda x: 2 * x, name="t")
    found = task.apply_many([(1,), {"x": 2}])
    stage.work()
    assert [one.get(timeout=1) for one in found] == [2, 4]


# -- handlers --------------------------------------------------------------------------------------


class Noting(Task[..., Any]):
    """Notes what its handlers are called with."""

    def note(self, name: str, *given: Any) -> None:
        self.app.noted.append((name, *given))  # type: ignore[attr-defined]  # of these tests

    def before_start(self, *given: Any) -> None:
        self.note("before_start", *given)

    def on_success(self, *given: Any) -> None:
        self.note("on_success", *given)

    def on_retry(self, *given: Any) -> None:
        self.note("on_retry", *given)

    def on_failure(self, *given: Any) -> None:
        self.note("on_failure", *given)

    def after_return(self, *given: Any) -> None:
        self.note("after_return", *given)


@pytest.fixture
def noted(stage: Stage) -> list[Any]:
    found: list[Any] = []
    stage.app.noted = found  # type: ignore[attr-defined]
    return found


def one_of(noted: list[Any], name: str) -> Any:
    [found] = [one[1:] for one in noted if one[0] == name]
    return found


def test_before_start_is_called_before_the_function(stage: Stage, noted: list[Any]) -> None:
    task = stage.app.task(lambda x: noted.append(("run",)), name="t", base=Noting)
    stage.run(task, 1, task_id="an-id")
    assert [one[0] for one in noted[:2]] == ["before_start", "run"]
    assert one_of(noted, "before_start") == ("an-id", [1], {})


def test_on_success_gets_the_value(stage: Stage, noted: list[Any]) -> None:
    stage.run(stage.app.task(lambda x: x + 1, name="t", base=Noting), 1, task_id="an-id")
    assert one_of(noted, "on_success") == (2, "an-id", [1], {})


def test_on_failure_gets_the_exception_and_its_traceback(stage: Stage, noted: list[Any]) -> None:
    stage.run(stage.app.task(lambda x: 1 / x, name="t", base=Noting), 0, task_id="an-id")
    error, *rest, info = one_of(noted, "on_failure")
    assert isinstance(error, ZeroDivisionError) and rest == ["an-id", [0], {}]
    assert "ZeroDivisionError" in str(info)


def test_on_retry_gets_the_cause(stage: Stage, noted: list[Any]) -> None:
    @stage.app.task(bind=True, name="t", base=Noting)
    def task(self: Any) -> None:
        raise self.retry(exc=KeyError("cause"), countdown=60)

    stage.run(task, task_id="an-id")
    error, *rest, info = one_of(noted, "on_retry")
    assert (repr(error), rest) == ("KeyError('cause')", ["an-id", [], {}])
    assert "Retry" in str(info)


def test_after_return_is_called_when_a_task_has_ended(stage: Stage, noted: list[Any]) -> None:
    stage.run(stage.app.task(lambda: 5, name="good", base=Noting), task_id="good")
    stage.run(stage.app.task(lambda: {}["x"], name="bad", base=Noting), task_id="bad")
    good, bad = [one[1:] for one in noted if one[0] == "after_return"]
    assert good == ("SUCCESS", 5, "good", [], {}, None)
    assert (bad[0], repr(bad[1]), bad[2]) == ("FAILURE", "KeyError('x')", "bad")


@each({"RETRY": Retry, "IGNORED": Ignore, "REJECTED": Reject})
def test_after_return_is_not_called_for_an_attempt_that_is_no_end(
    stage: Stage, noted: list[Any], case: Any
) -> None:
    @stage.app.task(bind=True, name="t", base=Noting)
    def task(self: Any) -> None:
        if case is Retry:
            raise self.retry(countdown=60)
        raise case("why")

    stage.run(task)
    assert "after_return" not in {one[0] for one in noted}


def test_a_handler_that_fails_is_logged_and_changes_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Task[..., Any]):
        def on_success(self, *_: Any) -> None:
            raise OSError("of the handler")

        after_return = on_failure = on_success

    good = stage.run(stage.app.task(lambda: 1, name="good", base=Failing))
    bad = stage.run(stage.app.task(lambda: {}["x"], name="bad", base=Failing))
    assert (good.get(timeout=1), type(bad.result)) == (1, KeyError)
    assert caplog.text.count("of the handler") >= 4


def test_handlers_and_signals_come_in_celerys_order(stage: Stage, noted: list[Any]) -> None:
    def hear(signal: Any, **_: Any) -> None:
        noted.append((signal.name,))

    heard = [
        getattr(signals, name) for name in ("task_prerun", "task_success", "task_failure", "task_postrun")
    ]
    for signal in heard:
        signal.connect(hear)
    try:
        stage.run(stage.app.task(lambda: noted.append(("run",)), name="good", base=Noting))
        good, noted[:] = [one[0] for one in noted], []
        stage.run(stage.app.task(lambda: {}["x"], name="bad", base=Noting))
    finally:
        for signal in heard:
            signal.disconnect(hear)
    begin, end = ["task_prerun", "before_start"], ["after_return", "task_postrun"]
    assert good == [*begin, "run", "on_success", "task_success", *end]
    assert [one[0] for one in noted] == [*begin, "on_failure", "task_failure", *end]


def test_what_is_linked_is_sent_with_the_outcome_and_recorded_as_a_child(stage: Stage) -> None:
    task = stage.app.task(lambda x: x, name="t")
    executor = Executor(stage.app)
    outcome = executor.run(delivery_of(task, 1, link=task.s(2).set(task_id="linked")))
    assert [one.id for one in outcome.publish] == ["linked"]
    assert document(outcome)["children"] == [[["linked", None], None]]


def test_attempts_in_threads_share_no_state(stage: Stage) -> None:
    import threading

    meet = threading.Barrier(8, timeout=10)

    @stage.app.task(bind=True, name="t", max_retries=3)
    def task(self: Any, number: int) -> list[int]:
        meet.wait()
        retries = self.request.retries
        meet.wait()
        return [number, retries, int(self.request.id)]

    executor = Executor(stage.app)
    deliveries = [delivery_of(task, number, task_id=str(number), retries=number) for number in range(8)]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda one=one: found.append(executor.run(one))) for one in deliveries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(document(one)["result"] for one in found) == [[number] * 3 for number in range(8)]
