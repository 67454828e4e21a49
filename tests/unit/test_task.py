"""Tasks: how functions become them, what they check, what they know of the attempt that runs."""

from __future__ import annotations

import json
import threading
import types
import warnings
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from minicelery import Celery, Task, current_app, current_task, shared_task, signals
from minicelery.exceptions import (
    DuplicateTaskNameWarning,
    EncodeError,
    ImproperlyConfigured,
    NotRegistered,
    Retry,
)
from minicelery.message import Delivery, Message, Outcome
from minicelery.result import EagerResult
from minicelery.worker.executor import Executor


def sent(app: Celery, queue: str = "celery") -> list[Message]:
    """The messages that wait on the queue, taken off it."""
    consumer = app.broker.consumer([queue], "reader", None)
    return [delivery.message for delivery in consumer.swap([], 1000, 0)]


def run(app: Celery, message: Message) -> Outcome:
    return Executor(app, "w1@host").run(Delivery(message, 1))


def result(app: Celery, message: Message) -> Any:
    outcome = run(app, message)
    assert outcome.record is not None
    return json.loads(outcome.record.document)["result"]


# -- from a function to a task -----------------------------------------------------------------


def test_a_task_is_called_like_its_function(app: Celery) -> None:
    @app.task
    def add(x: int, y: int = 1) -> int:
        """Add."""
        return x + y

    assert (add(1), add(1, y=5), add.run(2, 2)) == (2, 6, 4)
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert repr(add) == f"<@task: {add.name} of app>"


def test_a_task_is_named_by_its_module_and_function(app: Celery) -> None:
    @app.task
    def nested() -> None: ...

    assert nested.name == f"{__name__}.nested"
    assert app.tasks[nested.name] is nested


def test_in_a_script_the_apps_name_stands_for_the_module(app: Celery) -> None:
    script = types.ModuleType("__main__")
    exec("def job(): pass", vars(script))
    assert app.task(script.job).name == "app.job"
    nameless = Celery(set_as_current=False)
    assert nameless.task(script.job).name == "__main__.job"


def test_a_task_may_have_a_name_of_its_own(app: Celery) -> None:
    assert app.task(name="mail.send")(lambda: None).name == "mail.send"


def test_bind_passes_the_task_itself(app: Celery) -> None:
    @app.task(bind=True)
    def bound(self: Any, x: int) -> Any:
        return self, x

    assert bound(3) == (bound, 3)
    assert list(bound.__signature__.parameters) == ["x"]


@pytest.mark.parametrize("bad", [5, "name"])
def test_what_is_not_a_function_is_no_task(app: Celery, bad: Any) -> None:
    with pytest.raises(TypeError, match="function"):
        app.task(bad)


def test_an_attribute_that_would_hide_a_method_is_no_option(app: Celery) -> None:
    with pytest.raises(TypeError, match="delay= is not an option"):
        app.task(delay=5)(lambda: None)


def test_options_become_attributes_and_single_exceptions_tuples(app: Celery) -> None:
    @app.task(max_retries=7, autoretry_for=KeyError, throws=[ValueError], custom={"a": 1})
    def task() -> None: ...

    assert (task.max_retries, task.autoretry_for, task.throws) == (7, (KeyError,), (ValueError,))
    assert task.custom == {"a": 1}  # type: ignore[attr-defined]


def test_a_limit_that_could_never_be_reached_is_refused(app: Celery) -> None:
    with pytest.raises(ValueError, match="soft_time_limit=20 must not be greater than time_limit=10"):
        app.task(soft_time_limit=20, time_limit=10)(lambda: None)


def test_a_task_without_options_takes_the_settings(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    app.conf.task_acks_late = True
    app.conf.task_serializer = "msgpack"
    assert (task.acks_late, task.serializer) == (True, "msgpack")
    assert app.task(lambda: None, name="own", acks_late=False).acks_late is False


def test_a_setting_changed_after_the_first_call_holds_for_the_next(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    task.delay()
    app.conf.task_serializer = "msgpack"
    task.delay()
    task.serializer = "json"
    task.delay()
    assert [message.content_type.rpartition("/")[2] for message in sent(app)] == ["json", "x-msgpack", "json"]


# -- classes -----------------------------------------------------------------------------------


class Base(Task):  # type: ignore[type-arg]
    abstract = True
    max_retries = 9

    def hello(self) -> str:
        return f"hello from {self.name}"


def test_base_is_the_class_of_the_task(app: Celery) -> None:
    task = app.task(lambda: None, name="t", base=Base)
    assert isinstance(task, Base) and task.max_retries == 9
    assert task.hello() == "hello from t"  # type: ignore[attr-defined]


def test_a_class_can_be_registered_or_an_instance_of_it(app: Celery) -> None:
    class Add(Base):
        def run(self, x: int, y: int) -> int:
            return x + y

    by_class = app.register_task(Add)
    named = Add()
    named.name = "named.add"
    by_instance = app.register_task(named)
    assert by_class.name == f"{__name__}.Add" and by_instance.name == "named.add"
    assert by_class(1, 2) == by_instance(1, 2) == 3
    by_class.delay(2, 3)
    assert result(app, sent(app)[0]) == 5


def test_a_class_without_run_is_no_task(app: Celery) -> None:
    with pytest.raises(TypeError, match="run"):
        app.register_task(Base)


def test_a_base_assigned_to_the_app_later_is_that_of_earlier_tasks_too(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    app.Task = Base
    assert isinstance(app.tasks["t"], Base) and isinstance(task, Base)
    assert isinstance(app.task(lambda: None, name="later"), Base)


def test_a_base_may_be_given_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    named = Celery(task_cls=f"{__name__}:Base", set_as_current=False)
    assert isinstance(named.task(lambda: None, name="t", shared=False), Base)


def test_a_class_that_overrides_call_is_called_whole_by_the_worker(app: Celery) -> None:
    class Doubling(Task):  # type: ignore[type-arg]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().__call__(*args, **kwargs)

    task = app.task(base=Doubling, bind=True, name="t")(lambda self, x: x + self.request.retries)
    task.apply_async((5,), retries=1)
    assert task(5) == 10
    assert result(app, sent(app)[0]) == 12


# -- sharing -----------------------------------------------------------------------------------


def test_a_shared_task_belongs_to_apps_made_before_and_after_it(app: Celery) -> None:
    assert app.tasks is not None  # final

    @shared_task
    def common(x: int) -> int:
        return x

    @shared_task(name="named.common", bind=True)
    def named(self: Any) -> Any:
        return self.app

    later = Celery("later", broker="memory://later", set_as_current=False)
    for one in (app, later):
        assert one.tasks[f"{__name__}.common"].app is one
        assert one.tasks["named.common"]() is one
    assert common(3) == 3 and common.name == f"{__name__}.common"


def test_a_shared_task_is_sent_by_the_current_app(app: Celery) -> None:
    task = shared_task(name="t")(lambda: None)
    with Celery("other", broker="memory://other-app", set_as_current=False) as other:
        task.delay()
        assert [message.task for message in sent(app)] == ["t"]
        other.set_current()
        task.delay()
        assert [message.task for message in sent(other)] == ["t"] and sent(app) == []


def test_a_task_of_one_app_is_known_to_the_others_unless_it_is_not_shared(app: Celery) -> None:
    app.task(lambda: None, name="open")
    app.task(lambda: None, name="own", shared=False)
    other = Celery("other", set_as_current=False)
    assert "open" in other.tasks and "own" not in other.tasks
    assert other.tasks["open"].app is other


def test_a_second_function_of_one_name_warns_and_is_not_registered(app: Celery) -> None:
    first = app.task(lambda: 1, name="t")
    with pytest.warns(DuplicateTaskNameWarning, match="'t' is registered already"):
        second = app.task(name="t")(lambda: 2)
    assert second is first and app.tasks["t"]() == 1


def test_the_same_function_twice_does_not_warn(app: Celery) -> None:
    def fun() -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert app.task(fun) is app.task(fun)


def test_a_module_imported_twice_does_not_warn(app: Celery) -> None:
    code = compile("def job(): pass", "module.py", "exec")
    modules = [types.ModuleType("module") for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in modules:
            exec(code, vars(module))
            app.task(module.job)


def test_an_unknown_name_is_answered_with_the_nearest(app: Celery) -> None:
    app.task(lambda: None, name="tasks.send_mail")
    with pytest.raises(NotRegistered, match=r"did you mean 'tasks\.send_mail'"):
        app.tasks["tasks.send_mial"]


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1, "k": 1}), ((1,), {"k": 1, "z": 1}), ((1,), {})],
)
def test_a_call_that_does_not_fit_the_function_is_refused_by_the_caller(
    app: Celery, args: Any, kwargs: Any
) -> None:
    @app.task(name="t")
    def task(x: int, y: int = 0, *, k: int) -> None: ...

    for call in (task.apply_async, lambda a, k: task.delay(*a, **k)):
        with pytest.raises(TypeError, match=r"t\(x: 'int', y: 'int' = 0, \*, k: 'int'\)"):
            call(args, kwargs)
    assert sent(app) == []


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {"k": 1}), ((1, 2), {"k": 1}), ((), {"x": 1, "k": 1}), ((1,), {"y": 2, "k": 1})],
)
def test_a_call_that_fits_is_sent(app: Celery, args: Any, kwargs: Any) -> None:
    @app.task
    def task(x: int, y: int = 0, *, k: int) -> None: ...

    task.apply_async(args, kwargs)
    assert len(sent(app)) == 1


def test_without_typing_the_worker_finds_out(app: Celery) -> None:
    app.task(lambda x: x, name="t", typing=False).delay()
    untyped = Celery("untyped", broker=app.conf.broker_url, strict_typing=False, set_as_current=False)
    untyped.task(lambda x: x, name="u", shared=False).delay()
    assert len(sent(app)) == 2


class Customer:
    pk = 7


def test_an_argument_that_cannot_be_carried_is_named_with_its_type(app: Celery) -> None:
    @app.task(name="mail.send")
    def send(customer: Any, when: Any = None) -> None: ...

    with pytest.raises(
        EncodeError, match=r"argument 'customer' of mail\.send is a Customer.*pass customer\.pk"
    ):
        send.delay(Customer())
    with pytest.raises(EncodeError, match=r"argument 'when' of mail\.send is a set.*pass plain data"):
        send.delay(1, when={1})
    with pytest.raises(EncodeError, match=r"argument 'number 2' of elsewhere is a set"):
        app.send_task("elsewhere", (1, {1}))
    with pytest.raises(EncodeError, match=r"argument 'when' of mail\.send is a set"):
        send.apply_many([(1,), (2, {1})])
    assert sent(app) == []


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"countdown": "5"}, ValueError, "countdown='5'"),
        ({"countdown": float("nan")}, ValueError, "countdown"),
        ({"countdown": float("inf")}, ValueError, "countdown"),
        ({"eta": 5}, ValueError, "eta=5"),
        ({"eta": "tomorrow"}, ValueError, "eta='tomorrow'.*ISO 8601"),
        ({"eta": date(2026, 1, 1)}, ValueError, "eta"),
        ({"expires": "soon"}, ValueError, "expires='soon'"),
        ({"priority": "high"}, ValueError, "priority='high'"),
        ({"priority": -1}, ValueError, "priority"),
        ({"priority": 1.5}, ValueError, "priority"),
        ({"priority": True}, ValueError, "priority"),
        ({"task_id": 5}, ValueError, "task_id=5"),
        ({"task_id": ""}, ValueError, "task_id=''"),
        ({"queue": 5}, ValueError, "queue=5"),
        ({"queue": ""}, ValueError, "queue=''"),
        ({"time_limit": 0}, ValueError, "time_limit=0"),
        ({"time_limit": "60"}, ValueError, "time_limit='60'"),
        ({"soft_time_limit": -1}, ValueError, "soft_time_limit=-1"),
        ({"soft_time_limit": 20, "time_limit": 10}, ValueError, "must not be greater"),
        ({"soft_time_limit": 200}, ValueError, "must not be greater than time_limit=100"),
        ({"headers": ["x"]}, ValueError, "headers="),
        ({"headers": {1: "x"}}, ValueError, "headers="),
        ({"headers": {"x": {1}}}, EncodeError, "'x'"),
        ({"x-own": object()}, EncodeError, "'x-own'"),
        ({"shadow": object()}, ValueError, "shadow=.*: expected text"),
        ({"link": "notify"}, ImproperlyConfigured, r"link= of t takes signatures such as notify.s\(\)"),
        ({"link_error": [5]}, ImproperlyConfigured, "link_error="),
        ({"serializer": "jsno"}, ImproperlyConfigured, "jsno"),
        ({"compression": "zilb"}, ImproperlyConfigured, "zilb"),
        ({"exchange": "topicx", "routing_key": "mail.eu"}, ImproperlyConfigured, "queue="),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_work_is_refused_and_named(
    app: Celery, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    task = app.task(lambda: None, name="t", time_limit=100)
    with pytest.raises(error, match=text):
        task.apply_async(**options)
    assert sent(app) == []


def test_options_of_a_call_reach_its_message(app: Celery) -> None:
    with pytest.warns(DeprecationWarning, match="(queue|priority)= of t is deprecated") as warned:
        task = app.task(lambda: None, name="t", priority=3, expires=60, time_limit=100, queue="own")
    assert len(warned) == 2 and warned[0].filename == __file__
    task.delay()
    (message,) = sent(app, "own")
    assert (message.priority, message.headers["timelimit"]) == (3, [100, None])
    assert message.properties["expiration"] == "60000"
    task.apply_async(queue="other", priority=0, expires=timedelta(minutes=2), countdown=timedelta(0))
    (message,) = sent(app, "other")
    assert (message.priority, message.properties["expiration"]) == (0, "120000")


def test_both_countdown_and_eta_are_given_then_countdown_wins(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    task.apply_async(countdown=-1, eta=datetime(2126, 1, 1))
    assert len(sent(app)) == 1


def test_an_option_nobody_knows_becomes_a_property_of_the_message(app: Celery) -> None:
    app.task(lambda: None, name="t").apply_async(**{"app_id": "shop"})
    assert sent(app)[0].properties["app_id"] == "shop"


# -- many at once ------------------------------------------------------------------------------


def test_many_calls_are_sent_in_their_order(app: Celery) -> None:
    task = app.task(lambda x, y=0: None, name="t")
    results = task.apply_many([(1,), (2, 3), {"x": 4}], priority=2, headers={"batch": 1})
    messages = sent(app)
    assert [message.id for message in messages] == [found.id for found in results]
    assert [json.loads(message.body)[:2] for message in messages] == [[[1], {}], [[2, 3], {}], [[], {"x": 4}]]
    assert {message.priority for message in messages} == {2}
    assert len({message.id for message in messages}) == 3 and task.apply_many([]) == []


def test_many_calls_are_checked_before_the_first_is_sent(app: Celery) -> None:
    task = app.task(lambda x: None, name="t")
    with pytest.raises(TypeError):
        task.apply_many([(1,), ()])
    with pytest.raises(TypeError, match="task_id="):
        task.apply_many([(1,)], task_id="one")
    assert sent(app) == []


# -- the current task, app and request ---------------------------------------------------------


def test_outside_of_a_task_there_is_none(app: Celery) -> None:
    assert not current_task and app.current_task is None
    assert current_app == app
    task = app.task(lambda: None, name="t")
    assert (task.request.id, task.request.called_directly, task.request.retries) == (None, True, 0)


def test_inside_a_task_it_is_the_current_one(app: Celery) -> None:
    @app.task
    def task() -> list[Any]:
        return [current_task.name, app.current_task is task, current_app.main]

    assert task() == [task.name, True, "app"]
    task.delay()
    assert result(app, sent(app)[0]) == [task.name, True, "app"]
    assert not current_task


def test_the_request_tells_what_the_message_holds(app: Celery) -> None:
    seen: list[Any] = []

    @app.task(bind=True)
    def task(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(self.request)

    task.apply_async(
        (1,), {"b": 2}, task_id="an-id", headers={"x-my": 1}, shadow="shown", time_limit=60, soft_time_limit=50,
        root_id="root", parent_id="parent", group_id="group", group_index=3, retries=2, priority=4,
        reply_to="client", ignore_result=True, link=task.s(), link_error=task.si(),
    )  # fmt: skip
    run(app, sent(app)[0])
    request = seen[0]
    expected = {
        "id": "an-id", "args": [1], "kwargs": {"b": 2}, "retries": 2, "shadow": "shown", "root_id": "root",
        "parent_id": "parent", "group": "group", "group_index": 3, "headers": {"x-my": 1}, "reply_to": "client",
        "timelimit": [60, 50], "time_limit": 60, "soft_time_limit": 50, "ignore_result": True, "eta": None,
        "expires": None, "is_eager": False, "called_directly": False, "hostname": "w1@host", "task": task.name,
        "correlation_id": "an-id", "chain": None, "chord": None, "utc": True, "stamps": {},
        "stamped_headers": None, "replaced_task_nesting": 0,
        "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 4, "redelivered": False},
    }  # fmt: skip
    assert {name: getattr(request, name) for name in expected} == expected
    assert request.callbacks[0]["task"] == request.errbacks[0]["task"] == task.name
    assert request.origin.startswith("gen") and request.properties["reply_to"] == "client"
    assert (request["id"], request.get("nothing", 5), "id" in request) == ("an-id", 5, True)
    with pytest.raises(KeyError):
        request["nothing"]


def test_attributes_of_a_request_last_as_long_as_the_attempt(app: Celery) -> None:
    @app.task(bind=True)
    def task(self: Any) -> Any:
        before = self.request.get("mine")
        self.request.mine = 1
        self.request.update(more=2)
        return [before, self.request.mine, self.request.more]

    task.apply_many([(), ()])
    assert [result(app, message) for message in sent(app)] == [[None, 1, 2]] * 2


def test_attempts_in_several_threads_keep_their_requests_apart(app: Celery) -> None:
    meet = threading.Barrier(8, timeout=10)

    @app.task(bind=True)
    def task(self: Any, n: int) -> Any:
        self.request.mine = n
        first = self.request.id
        meet.wait()
        return [first, self.request.id, self.request.mine, self.request.args]

    task.apply_many([(n,) for n in range(8)])
    found: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda message=message: found.update({message.id: result(app, message)}))
        for message in sent(app)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    for id, (first, second, mine, args) in found.items():
        assert (first, second, [mine]) == (id, id, args)


def test_a_task_called_inside_another_has_a_request_of_its_own(app: Celery) -> None:
    inner = app.task(lambda self: self.request.id, name="inner", bind=True)

    @app.task(bind=True)
    def outer(self: Any) -> Any:
        return [self.request.id, inner(), inner.apply().get(disable_sync_subtasks=False), self.request.id]

    outer.apply_async(task_id="outer-id")
    first, called, applied, again = result(app, sent(app)[0])
    assert (first, called, again) == ("outer-id", None, "outer-id")
    assert applied not in (None, "outer-id")


# -- running at once ---------------------------------------------------------------------------


def test_apply_runs_the_task_here_and_returns_its_result(app: Celery) -> None:
    @app.task(bind=True)
    def task(self: Any, x: int) -> Any:
        return [x, self.request.is_eager, self.request.called_directly, self.request.id]

    found = task.apply((1,), task_id="an-id")
    assert isinstance(found, EagerResult)
    assert (found.get(), found.state, found.id, found.ready()) == (
        [1, True, False, "an-id"],
        "SUCCESS",
        "an-id",
        True,
    )
    assert sent(app) == []


def test_apply_keeps_the_exception_until_it_is_asked_for(app: Celery) -> None:
    @app.task
    def fail() -> None:
        raise KeyError("x")

    found = fail.apply()
    assert (found.state, found.failed(), type(found.result)) == ("FAILURE", True, KeyError)
    assert "in fail" in str(found.traceback) and found.get(propagate=False).args == ("x",)
    with pytest.raises(KeyError):
        found.get()
    with pytest.raises(KeyError):
        fail.apply(throw=True)


def test_apply_makes_retries_at_once(app: Celery) -> None:
    attempts: list[int] = []

    @app.task(bind=True, max_retries=3)
    def task(self: Any, n: int) -> int:
        attempts.append(self.request.retries)
        if self.request.retries < n:
            raise self.retry(exc=KeyError("again"), countdown=3600)
        return n

    assert task.apply((2,)).get() == 2 and attempts == [0, 1, 2]
    found = task.apply((9,))
    assert found.state == "FAILURE" and isinstance(found.result, KeyError)


def test_a_retry_is_not_an_error_for_who_throws(app: Celery) -> None:
    @app.task(bind=True, autoretry_for=(ValueError,), retry_backoff=600)
    def task(self: Any) -> int:
        if self.request.retries < 2:
            raise ValueError
        return self.request.retries

    assert task.apply(throw=True).get() == 2


def test_a_task_that_retries_for_ever_is_stopped_when_run_at_once(app: Celery, monkeypatch: Any) -> None:
    monkeypatch.setattr("minicelery.worker.eager.MOST_ATTEMPTS", 50)
    task = app.task(lambda self: self.retry(), name="t", bind=True, max_retries=None)
    with pytest.raises(ImproperlyConfigured, match="max_retries"):
        task.apply()


def test_eager_calls_go_through_the_serializer(app: Celery) -> None:
    app.conf.task_always_eager = True
    task = app.task(lambda x: x, name="t")
    assert task.delay((1, (2,))).get() == [1, [2]]
    assert task.delay({1: date(2026, 1, 2)}).get() == {"1": date(2026, 1, 2)}
    with pytest.raises(EncodeError, match="argument 'x'"):
        task.delay({1})
    assert isinstance(app.task(lambda: {1}, name="set").delay().result, EncodeError)


def test_always_eager_holds_for_every_way_to_call_but_send_task(app: Celery) -> None:
    app.conf.task_always_eager = True
    task = app.task(lambda x: x, name="t")
    assert task.apply_async((1,), countdown=3600, queue="q").get() == 1
    assert [found.get() for found in task.apply_many([(1,), (2,)])] == [1, 2]
    assert task.s(5).delay().get() == 5
    assert sent(app) == []
    app.send_task("t", (1,))
    assert len(sent(app)) == 1


def test_eager_propagates_raises_in_the_caller(app: Celery) -> None:
    app.conf.task_always_eager = app.conf.task_eager_propagates = True
    with pytest.raises(ZeroDivisionError):
        app.task(lambda: 1 / 0, name="t").delay()


def test_eager_links_are_run_too(app: Celery) -> None:
    app.conf.task_always_eager = True
    seen: list[Any] = []
    notify = app.task(lambda x: seen.append(x), name="notify")
    app.task(lambda: 5, name="good").apply_async(link=notify.s())
    app.task(lambda: 1 / 0, name="bad").apply_async(link_error=notify.s(), task_id="bad-id")
    assert seen == [5, "bad-id"]


def test_eager_results_are_stored_only_where_asked(app: Celery) -> None:
    app.conf.task_always_eager = True
    task = app.task(lambda: 5, name="t")
    assert app.AsyncResult(task.delay().id).state == "PENDING"
    app.conf.task_store_eager_result = True
    assert app.AsyncResult(task.delay().id).get(timeout=1) == 5


def test_handlers_and_signals_are_called_when_run_at_once(app: Celery) -> None:
    seen: list[str] = []

    class Loud(Task):  # type: ignore[type-arg]
        abstract = True

        def on_success(self, *args: Any) -> None:
            seen.append("on_success")

    signals.task_postrun.connect(lambda **_: seen.append("postrun"), weak=False, dispatch_uid="eager")
    try:
        app.task(lambda: 1, name="t", base=Loud).apply()
    finally:
        signals.task_postrun.disconnect(dispatch_uid="eager")
    assert seen == ["on_success", "postrun"]


# -- calls made by tasks -----------------------------------------------------------------------


def test_a_call_made_by_a_task_names_its_parent_and_root(app: Celery) -> None:
    child = app.task(lambda: None, name="child")
    parent = app.task(lambda: child.delay() and None, name="parent")
    parent.apply_async(task_id="parent-id", root_id="root-id")
    run(app, sent(app)[0])
    (message,) = sent(app)
    assert (message.headers["parent_id"], message.headers["root_id"]) == ("parent-id", "root-id")


def test_the_parents_priority_is_inherited_only_where_asked(app: Celery) -> None:
    child = app.task(lambda: None, name="child")
    parent = app.task(lambda: child.delay() and None, name="parent")
    for inherit, priority in ((False, None), (True, 7)):
        app.conf.task_inherit_parent_priority = inherit
        parent.apply_async(priority=7)
        run(app, sent(app)[0])
        assert sent(app)[0].priority == priority


def test_waiting_inside_a_task_is_refused(app: Celery) -> None:
    child = app.task(lambda: None, name="child")
    parent = app.task(lambda: child.delay().get(timeout=1), name="parent")
    parent.delay()
    assert result(app, sent(app)[0])["exc_type"] == "RuntimeError"


def test_a_retry_outside_of_a_worker_raises(app: Celery) -> None:
    task = app.task(lambda self: self.retry(), name="t", bind=True)
    with pytest.raises(Retry):
        task()


def test_update_state_stores_what_the_task_reports(app: Celery) -> None:
    @app.task(bind=True)
    def task(self: Any) -> Any:
        self.update_state(state="PROGRESS", meta={"done": 1, "total": 2})
        found = self.AsyncResult(self.request.id)
        return [found.state, found.info]

    task.delay()
    assert result(app, sent(app)[0]) == ["PROGRESS", {"done": 1, "total": 2}]
    with pytest.raises(ValueError, match="task_id="):
        task.update_state(state="PROGRESS")


def test_a_task_survives_pickling_by_its_name(app: Celery) -> None:
    import pickle

    task = app.task(lambda: None, name="t")
    assert pickle.loads(pickle.dumps(task)) is task
