"""Classes of tasks: what they inherit, when they are made, and what belongs to one attempt only."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from minicelery import Celery, Task, shared_task
from minicelery.exceptions import DuplicateTaskNameWarning, MaxRetriesExceededError, OperationalError, Retry
from minicelery.message import Delivery, Message, Outcome
from minicelery.worker.executor import Executor


def sent(app: Celery, queue: str = "celery") -> list[Message]:
    """The messages that wait on the queue, taken off it."""
    consumer = app.broker.consumer([queue], "reader", None)
    return [delivery.message for delivery in consumer.swap([], 1000, 0)]


def run(app: Celery, message: Message) -> Outcome:
    return Executor(app, "w1@host").run(Delivery(message, 1))


class Journal(Task):
    """A base that writes down what happens to it."""

    abstract = True
    journal: list[Any]

    def __init__(self) -> None:
        self.journal = []


# -- inheritance -------------------------------------------------------------------------------


def test_options_go_before_the_base_and_the_base_before_the_settings(app: Celery) -> None:
    class Base(Task):
        max_retries = 9
        acks_late = True
        serializer = "msgpack"

    app.conf.task_ignore_result = True
    task = app.task(lambda: None, name="t", base=Base, max_retries=1)
    assert (task.max_retries, task.acks_late, task.serializer, task.ignore_result) == (
        1,
        True,
        "msgpack",
        True,
    )


def test_an_option_that_is_none_is_that_of_the_settings_again(app: Celery) -> None:
    class Base(Task):
        serializer = "msgpack"
        track_started = None

    app.conf.task_track_started = True
    task = app.task(lambda: None, name="t", base=Base, serializer=None)
    task.delay()
    assert (task.serializer, task.track_started) == ("json", True)


def test_every_task_has_a_class_of_its_own(app: Celery) -> None:
    first, second = (app.task(lambda: None, name=name, base=Journal) for name in "ab")
    type(first).max_retries = 7
    assert (first.max_retries, second.max_retries, Journal.max_retries) == (7, 3, 3)
    assert first.journal is not second.journal


def test_a_function_given_as_a_handler_is_a_method(app: Celery) -> None:
    seen: list[Any] = []

    def on_failure(self: Any, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        seen.append((self.name, type(exc)))

    app.task(lambda: 1 / 0, name="t", on_failure=on_failure).apply()
    assert seen == [("t", ZeroDivisionError)]


def test_a_property_may_be_an_option(app: Celery) -> None:
    task = app.task(lambda: None, name="t", expires=property(lambda self: 60))
    task.delay()
    assert sent(app)[0].properties["expiration"] == "60000"


def test_init_is_called_once_with_name_and_app_in_place(app: Celery) -> None:
    class Base(Task):
        def __init__(self) -> None:
            made.append((self.name, self.app, self.max_retries))

    made: list[Any] = []
    task = app.task(lambda: None, name="t", base=Base, max_retries=5)
    assert made == []  # not before it is used: the settings may not be there yet
    task.delay()
    task.apply()
    assert app.tasks["t"] is task and made == [("t", app, 5)]


def test_an_attribute_that_init_makes_is_there_at_the_first_look(app: Celery) -> None:
    task = app.task(lambda: None, name="t", base=Journal)
    assert task.journal == []
    with pytest.raises(AttributeError, match="task t has no attribute 'nothing'"):
        task.nothing  # noqa: B018


def test_a_failing_init_fails_each_use_and_leaves_nothing_half_made(app: Celery) -> None:
    class Base(Task):
        def __init__(self) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise RuntimeError("not yet")

    tries: list[int] = []
    task = app.task(lambda: 5, name="t", base=Base)
    with pytest.raises(RuntimeError, match="not yet"):
        task.apply()
    assert task.apply().get() == 5 and len(tries) == 2


def test_from_config_names_settings_for_attributes_of_ones_own(app: Celery) -> None:
    class Base(Task):
        from_config = (("longest", "task_time_limit"),)
        longest = None

    app.conf.task_time_limit = 77
    assert app.task(lambda: None, name="t", base=Base).apply().state == "SUCCESS"
    assert app.tasks["t"].longest == 77


def test_a_class_may_have_types_or_none(app: Celery) -> None:
    class Typed(Task[[int], int]):
        def run(self, x: int) -> int:
            return x

    assert app.register_task(Typed).apply((3,)).get() == 3
    assert Task[int] and Task[..., int]


@pytest.mark.parametrize(
    "fun", [functools.partial(pow, 2), len, type("Length", (), {"__call__": lambda _, x: len(x)})()]
)
def test_anything_that_can_be_called_can_be_a_task(app: Celery, fun: Any) -> None:
    argument: Any = 3 if isinstance(fun, functools.partial) else "abc"
    task = app.task(fun, name="some.name")
    assert task.apply((argument,)).get() == fun(argument) == task(argument)
    if not hasattr(fun, "__name__"):
        with pytest.raises(TypeError, match=r"has no __name__ to name a task by: @app\.task\(name="):
            app.task(fun)


def test_a_task_looks_like_its_function(app: Celery) -> None:
    @app.task(bind=True)
    def documented(self: Any, x: int, y: int = 1) -> int:
        """What it does."""
        return x + y

    assert (documented.__name__, documented.__doc__) == ("documented", "What it does.")
    assert str(inspect.signature(documented)) == "(x: 'int', y: 'int' = 1) -> 'int'"
    with (
        mock.patch.object(documented, "run", return_value=9),
        mock.patch.object(documented, "delay") as delay,
    ):
        assert (documented(1), documented.apply((1,)).get()) == (9, 9)
        documented.delay(1)
    assert delay.call_args.args == (1,) and documented(1) == documented.apply((1,)).get() == 2


# -- the app's base ----------------------------------------------------------------------------


def test_a_context_around_all_tasks_as_flask_has_it(app: Celery) -> None:
    early = app.task(lambda: inside[-1], name="early")
    inside: list[str] = []

    class ContextTask(app.Task):  # type: ignore[name-defined, misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            inside.append(f"context of {self.name}")
            return self.run(*args, **kwargs)

    app.Task = ContextTask
    late = app.task(lambda: inside[-1], name="late")
    assert app.Task is ContextTask
    assert early.apply().get() == "context of early" and late.apply().get() == "context of late"


def test_a_task_that_was_used_keeps_its_base(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    task.delay()
    app.Task = type("Late", (app.Task,), {"max_retries": 99})
    assert task.max_retries == 3 and app.task(lambda: None, name="next").max_retries == 99


def test_a_base_that_is_no_task_is_refused(app: Celery) -> None:
    for wrong in (5, int, "Task"):
        with pytest.raises(TypeError, match="expected a subclass"):
            app.Task = wrong  # type: ignore[assignment]
        with pytest.raises(TypeError, match=r"base=.* of t: expected a subclass of minicelery.Task"):
            app.task(base=wrong, name="t")(lambda: None)


# -- registering classes -----------------------------------------------------------------------


def test_a_class_may_be_registered_with_several_apps(app: Celery) -> None:
    class Add(Task):
        name = "add"
        bonus = 0

        def run(self, x: int) -> Any:
            return [x + self.bonus, self.app.main]

    other = Celery("other", broker="memory://other", set_as_current=False)
    first, second = app.register_task(Add), other.register_task(Add, bonus=10)
    assert first(1) == [1, "app"] and second(1) == [11, "other"]
    assert isinstance(first, Add) and Add.bonus == 0


def test_an_instance_keeps_what_it_was_made_with(app: Celery) -> None:
    class Fetch(Task):
        def __init__(self, url: str) -> None:
            self.url = url
            self.throws = [KeyError]
            self.name = f"fetch.{url}"

        def run(self) -> str:
            return self.url

    a, b = app.register_task(Fetch("a")), app.register_task(Fetch("b"))
    assert [app.tasks[name].apply().get() for name in ("fetch.a", "fetch.b")] == ["a", "b"]
    assert a.throws == (KeyError,) and b is app.tasks["fetch.b"]
    assert app.register_task(a) is a


def test_a_class_of_a_taken_name_takes_it_over_with_a_warning(app: Celery) -> None:
    class New(Task):
        name = "t"

        def run(self) -> str:
            return "new"

    app.task(lambda: "old", name="t")
    with pytest.warns(
        DuplicateTaskNameWarning, match=r"'t' is registered already, and .*New takes its place"
    ):
        app.register_task(New)
    assert app.tasks["t"].apply().get() == "new"


@pytest.mark.parametrize("wrong", [5, int, len, lambda: None])
def test_only_tasks_can_be_registered(app: Celery, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"register_task takes a subclass of minicelery\.Task"):
        app.register_task(wrong)


def test_a_class_put_into_the_registry_is_a_task_of_the_current_app(app: Celery) -> None:
    class Old(Task):
        def run(self) -> int:
            return 3

    app.tasks.register(Old())
    assert app.tasks[f"{__name__}.Old"].apply().get() == 3
    app.tasks.unregister(f"{__name__}.Old")
    app.tasks.register(Old)
    assert app.tasks[f"{__name__}.Old"].app is app


def test_a_task_of_no_app_says_what_is_missing() -> None:
    class Lonely(Task):
        def run(self) -> int:
            return 3

    assert Lonely()() == 3
    with pytest.raises(
        RuntimeError, match=r"Lonely is not a task of any app yet: app.register_task\(Lonely\)"
    ):
        Lonely().delay()


# -- hooks -------------------------------------------------------------------------------------


def test_on_bound_is_told_the_app_once(app: Celery) -> None:
    class Base(Task):
        @classmethod
        def on_bound(cls, app: Any) -> None:
            bound.append((cls.name, app))

    bound: list[Any] = []
    app.task(lambda: None, name="t", base=Base).delay()
    assert app.tasks["t"] and bound == [("t", app)]


def test_shadow_name_is_what_logs_and_monitors_show(app: Celery) -> None:
    task = app.task(
        lambda x: None, name="t", shadow_name=lambda self, args, kwargs, options: f"t of {args[0]}"
    )
    task.delay(3)
    task.apply_async((4,), shadow="given")
    task.apply_many([(5,)])
    assert [message.headers["shadow"] for message in sent(app)] == ["t of 3", "given", "t of 5"]


def test_add_around_replaces_a_method_of_one_task(app: Celery) -> None:
    task = app.task(lambda x: x, name="t", bind=False)
    type(task).add_around("run", lambda run: lambda self, x: [run(x)])
    assert task.apply((1,)).get() == [1] and app.task(lambda x: x, name="u").apply((1,)).get() == 1


def test_what_only_celerys_workers_have_is_refused_in_words(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    with pytest.raises(NotImplementedError, match="t: minicelery's workers have no strategies"):
        task.start_strategy(app, None)
    for option in ("Strategy", "Request", "backend"):
        with pytest.raises(TypeError, match=rf"{option}= is not an option of a task \(u\)"):
            app.task(lambda: None, name="u", **{option: object()})


def test_a_filter_makes_of_the_task_what_it_likes(app: Celery) -> None:
    assert app.task(filter=lambda task: f"<{task.name}>", name="t")(lambda: None) == "<t>"
    assert "t" in app.tasks


def test_without_lazy_the_task_is_finished_at_once(app: Celery) -> None:
    class Base(Task):
        def __init__(self) -> None:
            made.append(1)

    made: list[int] = []
    app.task(lambda: None, name="t", base=Base, lazy=False)
    assert made == [1]


# -- requests ----------------------------------------------------------------------------------


def test_a_pushed_request_is_the_tasks_until_it_is_popped(app: Celery) -> None:
    task = app.task(lambda self: [self.request.id, self.request.root_id], name="t", bind=True)
    task.push_request(id="an-id", root_id="root", retries=2, called_directly=False)
    task.push_request({"root_id": "other"}, mine=1)
    assert (task.request.id, task.request.root_id, task.request.retries, task.request.mine) == (
        "an-id", "other", 2, 1,
    )  # fmt: skip
    task.pop_request()
    assert task.run() == ["an-id", "root"]
    task.pop_request()
    assert task.request.id is None
    with pytest.raises(RuntimeError, match="without push_request"):
        task.pop_request()


def test_a_retry_of_a_pushed_request_is_sent(app: Celery) -> None:
    task = app.task(lambda self, x: self.retry(countdown=-1), name="t", bind=True)
    task.push_request(id="an-id", args=(5,), kwargs={}, retries=1, called_directly=False)
    with pytest.raises(Retry):
        task.run(5)
    task.pop_request()
    (message,) = sent(app)
    assert (message.id, message.headers["retries"]) == ("an-id", 2)


def test_a_signature_of_a_request_is_the_same_call_again(app: Celery) -> None:
    taken: list[Any] = []
    task = app.task(lambda self, x, y=0: taken.append(self.signature_from_request()), name="t", bind=True)
    task.apply_async((1,), {"y": 2}, task_id="an-id", queue="q", priority=4, shadow="shown", headers={"x": 1})
    run(app, sent(app, "q")[0])
    taken[0].apply_async()
    (message,) = sent(app, "q")
    assert (message.id, message.priority, message.headers["shadow"], message.headers["x"]) == (
        "an-id", 4, "shown", 1,
    )  # fmt: skip


def test_a_request_is_cleared_of_what_was_set(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    task.push_request(id="an-id", stamps={"a": 1})
    task.request.clear()
    assert task.request.id is None and task.request.stamps == {}
    task.pop_request()


def test_the_worker_task_is_the_outermost_one(app: Celery) -> None:
    @app.task(name="inner")
    def inner() -> list[Any]:
        outermost = app.current_worker_task
        return [app.current_task.name, outermost and outermost.name]

    seen: list[Any] = []

    def eagerly() -> Any:
        return inner.apply().get(disable_sync_subtasks=False)

    assert inner() == ["inner", None]
    app.task(lambda: seen.extend(call() for call in (inner, inner.run, eagerly)), name="task").delay()
    run(app, sent(app)[0])
    assert seen == [["inner", "task"], ["task", "task"], ["inner", "task"]]


# -- one object, many attempts -----------------------------------------------------------------


def test_nothing_of_an_attempt_stays_on_the_task(app: Celery) -> None:
    """Fifty attempts at once: retries with limits of their own, states, children and requests."""
    together = threading.Barrier(10, timeout=20)

    @app.task(bind=True, name="t", max_retries=3, base=Journal)
    def task(self: Any, n: int) -> Any:
        self.request.mine = n
        together.wait()
        if n % 2:
            raise self.retry(countdown=0, max_retries=n, exc=KeyError(n))
        self.add_trail(self.AsyncResult(f"child-{n}"))
        return [n, self.request.mine, self.request.id, [child.id for child in self.request.children]]

    assert task.journal == []
    before = {name: value for name, value in vars(task).items() if name != "_send_defaults"}
    task.apply_many([(n,) for n in range(50)])
    messages = sent(app)
    outcomes: dict[int, Outcome] = {}
    executor = Executor(app, "w1@host")

    def work(part: list[Message], first: int) -> None:
        for number, message in enumerate(part):
            outcomes[first + number * 10] = executor.run(Delivery(message, 1))

    threads = [threading.Thread(target=work, args=(messages[n::10], n)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 50
    for n, outcome in outcomes.items():
        assert outcome.record is not None
        assert outcome.record.state == ("RETRY" if n % 2 else "SUCCESS")
        assert [message.headers["retries"] for message in outcome.publish] == ([1] if n % 2 else [])
        if not n % 2:
            assert f'"{messages[n].id}"'.encode() in outcome.record.document
            assert f'"child-{n}"'.encode() in outcome.record.document
    after = {name: value for name, value in vars(task).items() if name != "_send_defaults"}
    assert {name: value for name, value in after.items() if name not in before} .keys() <= {
        "__signature__", "_positional_range"
    }  # fmt: skip
    assert task.max_retries == 3 and task.journal == []


def test_a_limit_given_to_retry_lasts_one_attempt(app: Celery) -> None:
    limits = iter([5, None, None, None, None])
    tried: list[int] = []

    @app.task(bind=True, max_retries=2)
    def task(self: Any) -> None:
        tried.append(self.request.retries)
        raise self.retry(max_retries=next(limits))

    assert isinstance(task.apply().result, MaxRetriesExceededError) and tried == [0, 1, 2]
    assert task.max_retries == 2


def test_a_delay_of_retries_may_be_a_timedelta(app: Celery) -> None:
    task = app.task(lambda self: self.retry(), name="t", bind=True, default_retry_delay=timedelta(hours=1))
    task.delay()
    outcome = run(app, sent(app)[0])
    due = outcome.publish[0].due
    assert due is not None and 3500 < due - time.time() <= 3600


# -- async def ---------------------------------------------------------------------------------


def test_calling_an_async_task_gives_its_coroutine_with_its_own_request(app: Celery) -> None:
    @app.task(bind=True)
    async def task(self: Any, n: int) -> Any:
        self.request.mine = n
        await asyncio.sleep(0)
        return [self.request.mine, self.request.args, self.request.called_directly, app.current_task.name]

    async def several() -> Any:
        return await asyncio.gather(*(task(n) for n in range(5)))

    assert asyncio.run(several()) == [[n, (n,), True, task.name] for n in range(5)]
    assert app.current_task is None


def test_after_an_awaited_call_the_outer_request_is_back(app: Celery) -> None:
    inner = app.task(bind=True, name="inner")(_its_name)

    @app.task(bind=True, name="outer")
    async def outer(self: Any) -> Any:
        return [await inner(), self.request.task, app.current_task.name]

    assert outer.apply().get() == ["inner", "outer", "outer"]


async def _its_name(self: Any) -> str:
    await asyncio.sleep(0)
    return str(self.request.task)


# -- apps --------------------------------------------------------------------------------------


def test_a_task_and_an_app_survive_pickling_where_they_are_known(app: Celery) -> None:
    task = app.task(lambda: None, name="t", base=Journal)
    assert pickle.loads(pickle.dumps(task)) is task
    assert pickle.loads(pickle.dumps(app)) is app


def test_an_app_is_made_anew_from_a_pickle_where_it_is_not(app: Celery) -> None:
    with Celery("elsewhere", broker="memory://elsewhere", set_as_current=False) as other:
        other.conf.task_default_queue = "q"
        text = pickle.dumps(other)
        other.main = "renamed"
        found = pickle.loads(text)
    assert (found.main, found.conf.broker_url, found.conf.task_default_queue) == (
        "elsewhere", "memory://elsewhere", "q",
    )  # fmt: skip


def test_an_app_that_must_not_finalize_itself_says_so() -> None:
    app = Celery("strict", broker="memory://strict", autofinalize=False, set_as_current=False)
    with pytest.raises(RuntimeError, match=r"autofinalize=False: call app.finalize\(\) first"):
        app.finalize(auto=True)
    app.finalize()


def test_the_clock_of_an_app_is_in_its_zone(app: Celery) -> None:
    app.conf.timezone = "Asia/Tokyo"
    assert app.now().utcoffset() == timedelta(hours=9)


def test_defaults_may_be_given_as_a_function_that_is_called_later(app: Celery) -> None:
    called: list[int] = []

    def defaults() -> dict[str, Any]:
        called.append(1)
        return {"task_default_queue": "late", "task_serializer": "msgpack"}

    fresh = Celery("fresh", set_as_current=False, task_serializer="json")
    fresh.on_configure.connect(lambda **_: called.append(0), weak=False)
    fresh.add_defaults(defaults)
    assert called == []
    assert (fresh.conf.task_default_queue, fresh.conf.task_serializer) == ("late", "json")
    assert called == [0, 1]


def test_a_connection_of_the_app_stands_for_its_broker(app: Celery) -> None:
    with app.connection_for_write() as connection:
        assert connection.ensure_connection(max_retries=1) is connection and connection.connected
        assert connection.as_uri() == app.broker.url
        with pytest.raises(AttributeError, match=r"no 'channel': queues are read by app\.broker\.size"):
            connection.channel()
    with pytest.raises(NotImplementedError, match="another app"):
        app.connection_for_write("redis://elsewhere")
    nowhere = Celery("nowhere", broker="redis://127.0.0.1:1/0", set_as_current=False)
    assert not nowhere.connection().connected
    with pytest.raises(OperationalError):
        nowhere.connection().ensure_connection()


@pytest.mark.parametrize(
    "producer",
    [
        lambda app: app.producer_pool.acquire(block=True),
        lambda app: app.producer_or_acquire().__enter__(),
        lambda app: app.connection_or_acquire().__enter__(),
    ],
)
def test_a_call_may_name_a_producer_of_the_app(app: Celery, producer: Callable[[Celery], Any]) -> None:
    task = app.task(lambda: None, name="t")
    task.apply_async(producer=producer(app))
    assert len(sent(app)) == 1
    with pytest.raises(ValueError, match=r"producer=.*calls go to broker_url"):
        task.apply_async(producer=object())


# -- shared tasks ------------------------------------------------------------------------------


def test_a_mistake_in_a_shared_task_is_found_where_it_stands(app: Celery) -> None:
    with pytest.raises(
        TypeError, match=r"max_retry=3 of t is not an option of a task; did you mean max_retries="
    ):
        shared_task(name="t", max_retry=3)(lambda: None)
    with pytest.raises(ValueError, match="acks_late='no' of t: expected a boolean"):
        shared_task(name="t", acks_late="no")(lambda: None)


def test_a_shared_task_has_another_object_in_each_app(app: Celery) -> None:
    task = shared_task(name="t", base=Journal, bind=True)(lambda self: self.journal)
    other = Celery("other", broker="memory://other", set_as_current=False)
    app.tasks["t"].journal.append(1)
    assert task() == [1] and other.tasks["t"]() == []
