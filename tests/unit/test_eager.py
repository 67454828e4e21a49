"""Running at once: `apply` and `task_always_eager`, beside Celery and in an event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from minicelery import Celery, Task, current_task, signals
from minicelery.exceptions import Ignore, Reject, Retry


@pytest.fixture(params=["apply", "always_eager"])
def way(request: pytest.FixtureRequest, app: Celery) -> str:
    app.conf.task_always_eager = request.param == "always_eager"
    return str(request.param)


def called(way: str, task: Any, *args: Any, **options: Any) -> Any:
    return (task.apply if way == "apply" else task.apply_async)(args, **options)


@pytest.fixture
def theirs() -> Any:
    """Celery's own app."""
    celery = pytest.importorskip("celery", reason="real Celery is the oracle")
    return celery.Celery("theirs", broker="memory://", backend="cache+memory://", set_as_current=False)


# -- beside Celery -----------------------------------------------------------------------------


def journal(library: Any, what: str, seen: list[Any]) -> Any:
    """A task of either library that writes down all that happens to it."""

    def handler(name: str) -> Any:
        return lambda self, *args: seen.append(
            (name, _short(args[0]), self.request.is_eager, self.request.retries)
        )

    def body(self: Any, x: Any) -> Any:
        request = self.request
        seen.append((
            "run", x, request.is_eager, request.called_directly, request.retries, request.id == "an-id",
            request.root_id == "an-id", request.parent_id, request.delivery_info["is_eager"], request.headers,
            request.hostname is not None, request.loglevel,
        ))  # fmt: skip
        if what == "retry" and request.retries < 2:
            raise self.retry(countdown=60, exc=KeyError("again"))
        if what == "retries" or (what == "autoretry" and request.retries < 1):
            raise self.retry(countdown=60) if what == "retries" else ValueError("x")
        if what == "fail":
            raise ZeroDivisionError("no")
        if what in ("ignore", "reject"):
            raise _predicate(library, what)
        return [x, (x,), {1: x}]

    return library.task(
        name="journal", shared=False, bind=True, max_retries=3,
        autoretry_for=(ValueError,), retry_kwargs={"countdown": 60},
        **{name: handler(name) for name in ("before_start", "on_success", "on_failure", "on_retry", "after_return")},
    )(body)  # fmt: skip


def _predicate(library: Any, what: str) -> BaseException:
    if isinstance(library, Celery):
        return Ignore() if what == "ignore" else Reject("no")
    from celery import exceptions

    found: BaseException = exceptions.Ignore() if what == "ignore" else exceptions.Reject("no")
    return found


def _short(value: Any) -> Any:
    if isinstance(value, Retry):
        return "value"  # where Celery's on_retry gets None, having been asked to retry without exc=
    return (
        type(value).__name__
        if isinstance(value, BaseException)
        else value
        if isinstance(value, str)
        else "value"
    )


@pytest.mark.parametrize("what", ["succeed", "fail", "retry", "retries", "autoretry", "ignore", "reject"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_run_at_once_is_celerys(app: Celery, theirs: Any, what: str, eager: bool) -> None:
    outcomes = []
    for library in (theirs, app):
        library.conf.task_always_eager = eager
        seen: list[Any] = []
        task = journal(library, what, seen)
        call = task.apply_async if eager else task.apply
        result = call((5,), task_id="an-id", headers={"x": 1})
        outcomes.append((result.state, result.id, _short(result.result), seen))
    assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize("what", ["succeed", "fail", "ignore", "reject"])
def test_throw_is_celerys(app: Celery, theirs: Any, what: str) -> None:
    # A retry is no error here; Celery raises Retry, and nothing runs again.
    ended = []
    for library in (theirs, app):
        try:
            ended.append(journal(library, what, []).apply((5,), throw=True).state)
        except Exception as error:
            ended.append(type(error).__name__)
    assert ended[1] == ended[0]


def test_eager_propagates_like_throw(app: Celery, theirs: Any) -> None:
    for library in (theirs, app):
        library.conf.task_always_eager = library.conf.task_eager_propagates = True
        task = journal(library, "fail", [])
        with pytest.raises(ZeroDivisionError):
            task.delay(5)
        assert task.apply_async((5,), throw=False).state == "FAILURE"


# -- results and arguments ---------------------------------------------------------------------


def test_arguments_and_results_are_what_the_serializer_makes_of_them(app: Celery, way: str) -> None:
    task = app.task(lambda x: [x, (1, 2)], name="t")
    assert called(way, task, {1: (2,)}).get() == [{"1": [2]}, [1, 2]]
    app.conf.task_serializer = app.conf.result_serializer = "msgpack"
    assert called(way, task, b"bytes").get() == [b"bytes", [1, 2]]


def test_results_are_stored_only_where_a_worker_would_and_the_setting_says_so(app: Celery, way: str) -> None:
    app.conf.task_store_eager_result = True
    kept = called(way, app.task(lambda: 5, name="kept"))
    failed = called(way, app.task(lambda: 1 / 0, name="failed"))
    ignored = called(way, app.task(lambda: 5, name="ignored", ignore_result=True))
    own = called(way, app.task(lambda: 5, name="own", store_eager_result=False))
    states = [app.AsyncResult(result.id).state for result in (kept, failed, ignored, own)]
    assert states == ["SUCCESS", "FAILURE", "PENDING", "PENDING"] and ignored.get() == 5


def test_an_app_without_a_result_store_runs_tasks_at_once_too() -> None:
    app = Celery("storeless", broker="memory://storeless", set_as_current=False, task_store_eager_result=True)
    assert app.task(lambda: 5, name="t").apply().get() == 5


def test_what_an_expired_or_delayed_call_would_do_is_not_waited_for(app: Celery, way: str) -> None:
    task = app.task(lambda: 5, name="t", expires=0)
    assert called(way, task).get() == 5
    assert called(way, task, countdown=3600, expires=0).get() == 5


# -- in one another ----------------------------------------------------------------------------


def test_a_task_run_inside_another_is_its_child(app: Celery, way: str) -> None:
    inner = app.task(lambda self: [self.request.parent_id, self.request.root_id], name="inner", bind=True)

    @app.task(name="outer", bind=True)
    def outer(self: Any) -> Any:
        found = called(way, inner).get(disable_sync_subtasks=False)
        return [found, self.request.id, current_task.name]

    assert called(way, outer, task_id="outer-id").get() == [["outer-id", "outer-id"], "outer-id", "outer"]


def test_links_of_links_are_run_in_their_order(app: Celery) -> None:
    app.conf.task_always_eager = True
    seen: list[Any] = []

    @app.task(name="note")
    def note(x: int, by: int = 0) -> int:
        seen.append(x + by)
        return x + by

    note.apply_async((1,), link=[note.s(by=10).on_error(note.si(0)), note.signature(kwargs={"by": 100})])
    assert seen == [1, 11, 101]
    app.task(lambda: 1 / 0, name="bad").apply_async(
        task_id="7", link_error=app.task(seen.append, name="tell").s()
    )
    assert seen[-1] == "7"


def test_signals_and_handlers_see_that_the_run_is_at_once(app: Celery) -> None:
    class Base(Task):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            seen.append(("before_start", self.request.is_eager))

    seen: list[Any] = []
    signals.task_prerun.connect(
        lambda task, **_: seen.append(("prerun", task.request.is_eager)), weak=False, dispatch_uid="eager"
    )
    try:
        app.task(lambda: None, name="t", base=Base).apply()
    finally:
        signals.task_prerun.disconnect(dispatch_uid="eager")
    assert seen == [("prerun", True), ("before_start", True)]


# -- async def ---------------------------------------------------------------------------------


def test_an_async_task_is_run_to_its_end(app: Celery, way: str) -> None:
    @app.task(name="t", bind=True, max_retries=2)
    async def task(self: Any, x: int) -> Any:
        await asyncio.sleep(0)
        if self.request.retries < 1:
            raise self.retry(countdown=60)
        return [x, self.request.retries, current_task.name, threading.current_thread() is here]

    here = threading.current_thread()
    assert called(way, task, 5).get() == [5, 1, "t", True]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_an_async_task_that_fails_fails(app: Celery, way: str) -> None:
    @app.task(name="t")
    async def task() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    assert called(way, task).state == "FAILURE"
    with pytest.raises(KeyError):
        called(way, task, throw=True)


def test_where_an_event_loop_runs_it_is_run_in_a_thread_of_its_own(app: Celery, way: str) -> None:
    @app.task(name="t", bind=True)
    async def task(self: Any) -> Any:
        await asyncio.sleep(0)
        return [self.request.is_eager, threading.current_thread() is here, current_task.name]

    here = threading.current_thread()

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        found = called(way, task).get()
        assert asyncio.get_running_loop() is loop
        return found

    assert asyncio.run(main()) == [True, False, "t"]


def test_async_tasks_run_in_one_another(app: Celery, way: str) -> None:
    inner = app.task(name="inner")(_five)

    @app.task(name="outer")
    async def outer() -> Any:
        return [called(way, inner).get(disable_sync_subtasks=False), await inner(), current_task.name]

    assert called(way, outer).get() == [5, 5, "outer"]


async def _five() -> int:
    await asyncio.sleep(0)
    return 5


def test_a_run_at_once_leaves_no_event_loop_behind(app: Celery) -> None:
    from minicelery.worker import coroutines

    before = threading.active_count()
    assert app.task(name="t")(_five).apply().get() == 5
    assert coroutines._here.loop is None and threading.active_count() <= before
