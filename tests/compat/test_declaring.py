"""What `@app.task(…)` takes, and what the attributes of a task do."""

from __future__ import annotations

import logging
import time
import warnings
from datetime import timedelta
from typing import Any

import pytest

from minicelery import Celery, Task
from minicelery.exceptions import EncodeError, Ignore, Reject
from minicelery.message import Verdict
from minicelery.worker.executor import Executor
from tests.compat.stage import Stage, body_of, delay_of, each
from tests.deliveries import delivery_of, document

# -- options of the decorator ------------------------------------------------------------------


def test_a_task_is_run_by_the_name_it_was_given(stage: Stage) -> None:
    stage.app.task(lambda: "ran", name="shop.send")
    found = stage.app.send_task("shop.send")
    stage.work()
    assert found.get(timeout=1) == "ran"


def test_the_base_gives_a_task_its_attributes_and_handlers(stage: Stage) -> None:
    class Counting(Task[..., Any]):
        max_retries = 7
        ended = 0

        def on_success(self, *_: Any) -> None:
            self.ended += 1

    task = stage.app.task(lambda: 1, name="t", base=Counting)
    stage.run(task)
    assert (task.max_retries, task.ended) == (7, 1)


def test_bind_gives_the_function_its_task(stage: Stage) -> None:
    task = stage.app.task(lambda self, x: [self.name, self.request.id, x], name="t", bind=True)
    assert stage.run(task, 1, task_id="an-id").get(timeout=1) == ["t", "an-id", 1]


def test_a_shared_task_belongs_to_every_app_and_another_to_its_own(stage: Stage) -> None:
    stage.app.task(lambda: "shared", name="shared")
    stage.app.task(lambda: "own", name="own", shared=False)
    other = Celery("other", broker=stage.app.conf.broker_url, backend=stage.app.conf.broker_url)
    assert stage.run(other.tasks["shared"]).get(timeout=1) == "shared"
    assert "own" not in other.tasks and "own" in stage.app.tasks


def test_a_lazy_task_follows_the_apps_base_until_the_app_is_finalized(stage: Stage) -> None:
    task = stage.app.task(lambda: 1, name="t", lazy=True)
    stage.app.task(lambda: 2, name="eager", lazy=False)

    class Context(stage.app.Task):  # type: ignore[name-defined,misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["in context", super().__call__(*args, **kwargs)]

    stage.app.Task = Context
    assert stage.run(stage.app.tasks["t"]).get(timeout=1) == ["in context", 1]
    assert task.name in stage.app.tasks and "eager" in stage.app.tasks


def test_the_filter_is_given_the_task_and_returns_what_the_decorator_does(stage: Stage) -> None:
    made: list[str] = []
    task = stage.app.task(lambda: 1, name="t", filter=lambda task: made.append(task.name) or task.s())
    assert made == ["t"] and task == stage.app.tasks["t"].s()
    found = task.apply_async()
    stage.work()
    assert found.get(timeout=1) == 1


def test_typing_checks_arguments_at_the_call_and_off_it_does_not(stage: Stage) -> None:
    strict = stage.app.task(lambda x: x, name="strict")
    loose = stage.app.task(lambda x: x, name="loose", typing=False)
    with pytest.raises(TypeError, match=r"strict.*missing a required argument: 'x'"):
        strict.delay()
    assert not stage.sent()
    assert isinstance(stage.run(loose).result, TypeError)


def test_pydantic_makes_models_of_arguments_and_plain_data_of_results(stage: Stage) -> None:
    pydantic = pytest.importorskip("pydantic")
    Order = pydantic.create_model("Order", number=(int, ...))  # noqa: N806 - a class

    def double(order: Any) -> Any:
        assert isinstance(order, Order)
        return Order(number=2 * order.number)

    double.__annotations__ = {"order": Order, "return": Order}
    task = stage.app.task(double, name="t", pydantic=True)
    assert stage.run(task, {"number": 21}).get(timeout=1) == {"number": 42}
    assert stage.run(task, Order(number=1)).get(timeout=1) == {"number": 2}


def test_pydantic_strict_takes_no_text_for_a_number(stage: Stage) -> None:
    pydantic = pytest.importorskip("pydantic")
    Order = pydantic.create_model("Order", number=(int, ...))  # noqa: N806

    def number(order: Any) -> Any:
        return order.number

    number.__annotations__ = {"order": Order}
    loose = stage.app.task(number, name="loose", pydantic=True)
    strict = stage.app.task(number, name="strict", pydantic=True, pydantic_strict=True)
    assert stage.run(loose, {"number": "1"}).get(timeout=1) == 1
    assert "ValidationError" in repr(stage.run(strict, {"number": "1"}).result)


def test_validators_see_the_pydantic_context(stage: Stage) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        number: int

        @pydantic.field_validator("number")
        def check(cls, value: int, info: Any) -> int:  # noqa: N805
            return value * int(info.context["factor"])

    def number(order: Any) -> Any:
        return order.number

    number.__annotations__ = {"order": Order}
    task = stage.app.task(number, name="t", pydantic=True, pydantic_context={"factor": 5})
    assert stage.run(task, {"number": 2}).get(timeout=1) == 10


def test_models_are_dumped_as_pydantic_dump_kwargs_say(stage: Stage) -> None:
    pydantic = pytest.importorskip("pydantic")
    Order = pydantic.create_model("Order", number=(int, 1), note=(str, "none"))  # noqa: N806

    def make() -> Any:
        return Order(number=3)

    make.__annotations__ = {"return": Order}
    task = stage.app.task(make, name="t", pydantic=True, pydantic_dump_kwargs={"exclude_defaults": True})
    assert stage.run(task).get(timeout=1) == {"number": 3}


def test_any_other_option_is_an_attribute_of_the_task(stage: Stage) -> None:
    task = stage.app.task(lambda self: self.tariff, name="t", bind=True, tariff="night")
    assert stage.run(task).get(timeout=1) == "night"


def test_an_option_that_is_nearly_a_known_one_is_refused(stage: Stage) -> None:
    with pytest.raises((TypeError, ValueError), match=r"max_retry.*max_retries"):
        stage.app.task(lambda: 1, name="t", max_retry=3)


@each({"Strategy": "Strategy", "Request": "Request", "backend": "backend"})
def test_a_part_of_celerys_machinery_cannot_be_put_in_place_of_ours(stage: Stage, case: str) -> None:
    with pytest.raises(TypeError, match=f"{case}= is not an option of a task"):
        stage.app.task(lambda: 1, name="t", **{case: "some.module:Thing"})


def test_annotations_of_the_settings_change_tasks(stage: Stage) -> None:
    stage.app.conf.accept_content = ["json", "msgpack"]
    stage.app.conf.task_annotations = {"t": {"serializer": "msgpack"}, "*": {"default_retry_delay": 4}}
    task = stage.app.task(lambda: 1, name="t")
    other = stage.app.task(lambda: 1, name="other")
    assert (stage.message(task).content_type, task.default_retry_delay) == ("application/x-msgpack", 4)
    assert (stage.message(other).content_type, other.default_retry_delay) == ("application/json", 4)


def test_the_apps_task_class_is_the_base_of_all_that_have_none(stage: Stage) -> None:
    entered: list[str] = []

    class ContextTask(stage.app.Task):  # type: ignore[name-defined,misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            entered.append(self.name)
            return self.run(*args, **kwargs)

    before = stage.app.task(lambda: 1, name="before")
    stage.app.Task = ContextTask
    after = stage.app.task(lambda: 2, name="after")
    assert [stage.run(task).get(timeout=1) for task in (before, after)] == [1, 2]
    assert entered == ["before", "after"]


def test_a_class_with_run_is_registered_as_a_task(stage: Stage) -> None:
    class Add(stage.app.Task):  # type: ignore[name-defined,misc]
        name = "add"

        def run(self, x: int, y: int) -> int:
            return x + y

    task = stage.app.register_task(Add())
    assert stage.run(task, 1, 2).get(timeout=1) == 3


# -- attributes: retries -------------------------------------------------------------------------


def failing(stage: Stage, **options: Any) -> Any:
    """A task that fails, and its attempts' retries in `task.seen`."""

    @stage.app.task(bind=True, name="failing", seen=[], **options)
    def task(self: Any) -> None:
        self.seen.append(self.request.retries)
        raise KeyError("why")

    return task


def retrying(stage: Stage, **options: Any) -> Any:
    """A task that asks for another attempt every time, at once."""

    @stage.app.task(bind=True, name="retrying", seen=[], **options)
    def task(self: Any) -> None:
        self.seen.append(self.request.retries)
        raise self.retry(countdown=0)

    return task


@each({"max_retries": ({}, [0, 1, 2, 3]), "max_retries=1": ({"max_retries": 1}, [0, 1])})
def test_a_task_is_tried_again_so_often(stage: Stage, case: Any) -> None:
    options, seen = case
    task = retrying(stage, **options)
    assert stage.run(task).state == "FAILURE"
    assert task.seen == seen


def test_max_retries_none_is_for_ever(stage: Stage) -> None:
    task = retrying(stage, max_retries=None)
    task.delay()
    stage.work(most=30)
    assert task.seen == list(range(30))


@each({"default_retry_delay": ({}, 180), "default_retry_delay=7": ({"default_retry_delay": 7}, 7)})
def test_a_retry_without_a_time_waits_the_default_delay(stage: Stage, case: Any) -> None:
    options, seconds = case

    @stage.app.task(bind=True, name="t", **options)
    def task(self: Any) -> None:
        raise self.retry()

    stage.run(task)
    [message] = stage.sent()
    assert delay_of(message) == pytest.approx(seconds, abs=6)


def test_autoretry_for_tries_again_after_these_exceptions(stage: Stage) -> None:
    task = failing(stage, autoretry_for=(KeyError,), default_retry_delay=0)
    assert stage.run(task).state == "FAILURE"
    assert task.seen == [0, 1, 2, 3]


def test_dont_autoretry_for_excepts_some_of_them(stage: Stage) -> None:
    task = failing(stage, autoretry_for=(Exception,), dont_autoretry_for=(KeyError,), default_retry_delay=0)
    stage.run(task)
    assert task.seen == [0]


def test_retry_kwargs_are_given_to_automatic_retries(stage: Stage) -> None:
    task = failing(stage, autoretry_for=(KeyError,), retry_kwargs={"max_retries": 5, "countdown": 0})
    stage.run(task)
    assert task.seen == [0, 1, 2, 3, 4, 5]


@each({
    "retry_backoff": ({"retry_backoff": True}, [1, 2, 4]),
    "retry_backoff=5": ({"retry_backoff": 5}, [5, 10, 20]),
    "retry_backoff_max": ({"retry_backoff": 5, "retry_backoff_max": 12}, [5, 10, 12]),
})  # fmt: skip
def test_automatic_retries_wait_longer_each_time(stage: Stage, case: Any) -> None:
    options, waits = case
    task = failing(stage, autoretry_for=(KeyError,), retry_jitter=False, **options)
    executor = Executor(stage.app)
    found = []
    for retries in range(3):
        before = time.time()
        [message] = executor.run(delivery_of(task, retries=retries)).publish
        found.append((delay_of(message), message.due - before))
    assert all(least - 0.01 < wait < most + 0.01 for (least, most), wait in zip(found, waits, strict=True)), (
        found
    )


def test_jitter_is_on_and_spreads_the_waits_from_nothing_to_the_whole(stage: Stage) -> None:
    task = failing(stage, autoretry_for=(KeyError,), retry_backoff=100)
    executor = Executor(stage.app)
    waits = [delay_of(executor.run(delivery_of(task)).publish[0]) for _ in range(60)]
    assert task.retry_jitter is True
    assert min(waits) < 40 and 60 < max(waits) <= 100 and len({round(one) for one in waits}) > 10


def test_what_a_task_throws_on_purpose_is_logged_without_a_traceback(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert stage.run(failing(stage, throws=(KeyError,))).state == "FAILURE"
    [line] = [one for one in caplog.records if "raised expected" in one.getMessage()]
    assert line.levelno == logging.INFO and "Traceback" not in line.getMessage()


# -- attributes: results -------------------------------------------------------------------------


def test_an_ignored_result_is_not_stored(stage: Stage) -> None:
    found = stage.run(stage.app.task(lambda: 1, name="t", ignore_result=True))
    assert found.get(timeout=1) is None
    assert stage.app.backend.load([found.id]) == [None]


def test_errors_of_ignored_tasks_are_stored_where_asked(stage: Stage) -> None:
    quiet = stage.run(failing(stage, ignore_result=True))
    assert stage.app.AsyncResult(quiet.id).state == "PENDING"
    stage.app.tasks.unregister("failing")
    loud = stage.run(failing(stage, ignore_result=True, store_errors_even_if_ignored=True))
    assert stage.app.AsyncResult(loud.id).state == "FAILURE"


def test_trail_records_what_a_task_has_sent_as_its_children(stage: Stage) -> None:
    def parent(self: Any) -> None:
        self.app.send_task("child", task_id=f"of {self.name}")

    stage.app.task(lambda: 1, name="child")
    for name, trail in (("with", True), ("without", False)):
        found = stage.run(stage.app.task(parent, name=name, bind=True, trail=trail))
        assert [one.id for one in found.children] == (["of with"] if trail else [])


def test_a_result_is_logged_up_to_its_size(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage.run(stage.app.task(lambda: "x" * 5000, name="default"))
    stage.run(stage.app.task(lambda: "x" * 5000, name="short", resultrepr_maxsize=50))
    lengths = [one.getMessage().count("x") for one in caplog.records if "succeeded" in one.getMessage()]
    assert 1000 < lengths[0] <= 1024 and 40 < lengths[1] <= 50


def test_started_is_stored_where_it_is_tracked(stage: Stage) -> None:
    executor = Executor(stage.app, "w1@compat")
    found = {}
    for name, tracked in (("tracked", True), ("untracked", False)):
        call = executor.begin(delivery_of(stage.app.task(lambda: 1, name=name, track_started=tracked)))
        found[name] = executor.started(call)  # type: ignore[arg-type]  # it has begun
    assert found["tracked"] is not None and found["tracked"].state == "STARTED"
    assert found["untracked"] is None


def test_the_backend_is_the_apps(stage: Stage) -> None:
    task = stage.app.task(lambda: 1, name="t")
    found = stage.run(task)
    assert task.backend is stage.app.backend
    [stored] = task.backend.load([found.id])
    assert stored is not None


# -- attributes: messages ------------------------------------------------------------------------


def test_the_serializer_of_a_task_writes_its_messages(stage: Stage) -> None:
    stage.app.conf.accept_content = ["json", "msgpack"]
    task = stage.app.task(lambda x: x, name="t", serializer="msgpack")
    assert stage.message(task, 1).content_type == "application/x-msgpack"
    assert stage.run(task, [1, "é"]).get(timeout=1) == [1, "é"]


def test_the_compression_of_a_task_packs_its_messages(stage: Stage) -> None:
    task = stage.app.task(len, name="t", compression="gzip", typing=False)
    message = stage.message(task, "x" * 5000)
    assert message.headers["compression"] == "application/x-gzip" and len(message.body) < 500
    assert stage.run(task, "x" * 5000).get(timeout=1) == 5000


@each({
    "time_limit": ({"time_limit": 9}, [9, None]), "soft_time_limit": ({"soft_time_limit": 8}, [None, 8])
})  # fmt: skip
def test_a_limit_of_a_task_is_in_its_messages_and_holds_in_the_worker(stage: Stage, case: Any) -> None:
    options, sent = case
    task = stage.app.task(lambda: 1, name="t", **options)
    assert stage.message(task).headers["timelimit"] == sent
    call = Executor(stage.app).begin(delivery_of(task))
    assert [call.time_limit, call.soft_limit] == sent  # type: ignore[union-attr]  # it has begun


def test_calls_of_a_task_that_expires_are_not_run_too_late(stage: Stage) -> None:
    task = stage.app.task(lambda: 1, name="t", expires=0.01)
    found = task.delay()
    time.sleep(0.02)
    stage.work()
    assert found.state == "REVOKED"
    message = stage.message(stage.app.task(lambda: 1, name="u", expires=timedelta(minutes=1)))
    assert message.properties["expiration"] in {"59999", "60000"}


def test_the_priority_of_a_task_is_in_its_messages(stage: Stage) -> None:
    stage.app.task(lambda: 1, name="plain").delay()
    with pytest.warns(DeprecationWarning, match="priority"):
        stage.app.task(lambda: 1, name="urgent", priority=4).delay()
    assert {one.task: one.priority for one in stage.sent()} == {"plain": None, "urgent": 4}


ADDRESSES: dict[str, dict[str, Any]] = {
    "queue": {"queue": "mail"},
    "exchange": {"exchange": "post", "routing_key": "letter"},
    "routing_key": {"routing_key": "letter", "exchange": "post"},
}


@each(ADDRESSES)
def test_an_address_as_attribute_works_and_warns_as_celerys(stage: Stage, case: dict[str, Any]) -> None:
    stage.app.conf.task_queues = {"mail": {"exchange": "post", "routing_key": "letter"}, "celery": {}}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        stage.app.task(lambda: 1, name="t", **case).delay()
    assert [one.queue for one in stage.sent()] == ["mail"]
    texts = [str(one.message) for one in warned if issubclass(one.category, DeprecationWarning)]
    assert all(any(name in text for text in texts) for name in case)


# -- attributes: what becomes of a lost run --------------------------------------------------------


def test_an_early_task_whose_child_died_has_failed(stage: Stage) -> None:
    outcome = stage.lose(stage.app.task(lambda: 1, name="t"))
    assert (outcome.verdict, document(outcome)["result"]["exc_type"]) == (Verdict.ACK, "WorkerLostError")


def test_a_late_task_runs_again_when_its_worker_is_gone(stage: Stage) -> None:
    task = stage.app.task(lambda: "ran", name="t", acks_late=True)
    outcome = stage.lose(task, reason=None)  # type: ignore[arg-type]  # nobody knows how it died
    assert outcome.verdict is Verdict.REQUEUE
    [again] = stage.work()
    assert document(again)["result"] == "ran"


def test_reject_on_worker_lost_runs_a_late_task_again_when_its_child_died(stage: Stage) -> None:
    def verdict(name: str, **options: Any) -> Verdict:
        return stage.lose(stage.app.task(lambda: 1, name=name, acks_late=True, **options)).verdict

    assert verdict("without") is Verdict.ACK  # and FAILURE
    assert verdict("with", reject_on_worker_lost=True) is Verdict.REQUEUE


def test_retry_on_worker_lost_makes_a_retry_of_a_death(stage: Stage) -> None:
    outcome = stage.lose(stage.app.task(lambda: 1, name="t", retry_on_worker_lost=True))
    assert [one.headers["retries"] for one in outcome.publish] == [1]
    assert document(outcome)["status"] == "RETRY"


def test_a_late_task_that_fails_is_kept_where_failures_are_not_acknowledged(stage: Stage) -> None:
    found = stage.run(failing(stage, acks_late=True, acks_on_failure=False))
    assert found.state == "FAILURE" and stage.app.broker.dead("celery") == 1


def test_a_late_task_past_its_limit_runs_again_where_timeouts_are_not_acknowledged(stage: Stage) -> None:
    def verdict(name: str, **options: Any) -> Verdict:
        task = stage.app.task(lambda: 1, name=name, acks_late=True, time_limit=9, **options)
        return stage.lose(task, reason="time limit").verdict

    assert verdict("acknowledged") is Verdict.ACK
    assert verdict("not", acks_on_timeout=False) is Verdict.REQUEUE


# -- limits ------------------------------------------------------------------------------------------


def test_a_rate_limit_holds_for_all_workers_together(stage: Stage) -> None:
    task = stage.app.task(lambda: 1, name="t", rate_limit="1/h")
    plain = stage.app.task(lambda: 2, name="plain")
    found = [task.delay(), task.delay(), plain.delay()]
    stage.work()
    assert [one.state for one in found] == ["SUCCESS", "PENDING", "SUCCESS"]


# -- what a task may end with ------------------------------------------------------------------------


def test_a_task_that_raises_ignore_stores_no_state(stage: Stage) -> None:
    @stage.app.task(name="t", bind=True)
    def task(self: Any) -> None:
        self.update_state(state="MINE", meta={"at": 1})
        raise Ignore

    found = stage.run(task)
    assert (found.state, found.info) == ("MINE", {"at": 1})


def test_a_task_may_reject_its_message_or_have_it_queued_again(stage: Stage) -> None:
    @stage.app.task(name="t", bind=True, acks_late=True)
    def task(self: Any, requeue: bool) -> str:
        if self.request.delivery_info["redelivered"]:
            return "taken at last"
        raise Reject("no", requeue=requeue)

    assert stage.run(task, True).get(timeout=1) == "taken at last"
    kept = stage.run(task, False)
    assert (kept.state, stage.app.broker.dead("celery")) == ("FAILURE", 1)


def test_an_argument_that_cannot_be_carried_is_named(stage: Stage) -> None:
    task = stage.app.task(lambda order: 1, name="t")
    with pytest.raises(EncodeError, match="argument 'order' of t is a set"):
        task.delay({1, 2})
    assert body_of(stage.message(task, 1))[0] == [1]
