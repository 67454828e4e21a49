"""What is put in the place of `celery.app.trace.build_tracer` is around each run, and plain runs know nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery import Celery, sending, signals
from minicelery.alias import producer
from minicelery.alias.trace import build_tracer, task_has_custom
from minicelery.contrib.testing.worker import start_worker
from minicelery.message import Outcome, Verdict
from minicelery.task import Task
from minicelery.worker import tracing
from minicelery.worker.executor import Executor


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    url = f"memory://{abs(hash(request.node.name))}"  # of this test alone
    with Celery("traced", broker=url, backend=url, set_as_current=False) as app:
        yield app


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order; with a tracer of each task's that tells of it too."""
    told: list[str] = []

    def build(name: str, task: Any, **options: Any) -> Callable[..., Any]:
        told.append(f"built for {name}")
        inner = build_tracer(name, task, **options)

        def tracer(uuid: str, args: Any, kwargs: Any, request: dict[str, Any]) -> Any:
            told.append(f"in {request['task']}{tuple(args)}")
            try:
                return inner(uuid, args, kwargs, request)
            finally:
                told.append("out")

        return tracer

    monkeypatch.setattr(tracing, "find_builder", lambda: build)
    return told


def listen(story: list[str], monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        signal = getattr(signals, name)
        monkeypatch.setattr(signal, "receivers", signal.receivers)
        signal.connect(lambda *_, name=name, **__: story.append(name), weak=False)


def run(app: Celery) -> list[Outcome]:
    """Run what waits in the default queue, as a child does."""
    executor = Executor(app, "w@host")
    consumer = app.broker.consumer(["celery"], "w@host/1", app.backend)
    done = [executor.run(delivery) for delivery in consumer.swap([], 16, 0)]
    consumer.swap(done, 0, 0)
    consumer.close()
    return done


def test_a_tracer_is_around_all_of_a_run(
    app: Celery, story: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(story, monkeypatch, "task_prerun", "task_success", "task_postrun")
    add = app.task(lambda x, y: story.append("run") or x + y, name="add")
    sent = [add.delay(1, 2), add.delay(3, 4)]
    run(app)
    one = ["task_prerun", "run", "task_success", "task_postrun", "out"]
    assert story == ["built for add", "in add(1, 2)", *one, "in add(3, 4)", *one]
    assert [result.get(timeout=5) for result in sent] == [3, 7]


def test_what_does_not_run_is_not_traced(app: Celery, story: list[str]) -> None:
    add = app.task(lambda: story.append("run"), name="add")
    with pytest.warns(UserWarning, match="expired"):
        add.apply_async(expires=-1)
    run(app)
    assert story == ["built for add"]


def test_a_failing_before_start_ends_within_the_tracer(app: Celery, story: list[str]) -> None:
    class Careful(Task[Any, Any]):
        def before_start(self, *_: Any) -> None:
            raise RuntimeError("not today")

    result = app.task(lambda: story.append("run"), name="add", base=Careful).delay()
    run(app)
    assert story == ["built for add", "in add()", "out"]
    assert result.state == "FAILURE" and "not today" in str(result.result)


def test_what_a_builder_puts_around_run_sees_what_an_async_task_raises(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def build(name: str, task: Any, **options: Any) -> Callable[..., Any]:
        inner = task.run

        def watched(*args: Any) -> Any:
            try:
                return inner(*args)
            except LookupError as error:
                seen.append(str(error))
                raise

        task.run = watched
        return build_tracer(name, task, **options)

    monkeypatch.setattr(tracing, "find_builder", lambda build=build: build)

    async def fail(x: int) -> None:
        raise LookupError(f"no {x}")

    task = app.task(fail, name="fail")
    results = [task.delay(1), task.delay(2)]
    executor = Executor(app, "w@host")
    executor.plan(app.tasks["fail"])
    executor.plan_anew("fail")  # it is not built, and not wrapped, again
    assert executor.plan(app.tasks["fail"]).is_async
    run(app)
    assert seen == ["no 1", "no 2"] and [result.state for result in results] == ["FAILURE"] * 2
    assert [str(task.apply((number,)).result) for number in (3, 4)] == ["no 3", "no 4"]
    assert seen == ["no 1", "no 2", "no 3", "no 4"]


@pytest.mark.parametrize("moment", ["before", "after", "never"])
def test_a_tracer_that_fails_does_not_lose_the_run(
    app: Celery, monkeypatch: pytest.MonkeyPatch, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    def build(name: str, task: Any, **options: Any) -> Callable[..., Any]:
        inner = build_tracer(name, task)

        def tracer(*args: Any) -> None:
            if moment != "never":
                if moment == "after":
                    inner(*args)
                raise OSError("the tracer's own")

        return tracer

    monkeypatch.setattr(tracing, "find_builder", lambda build=build: build)
    result = app.task(lambda: 5, name="five").delay()
    if moment == "after":
        assert run(app)[0].verdict is Verdict.ACK and result.get(timeout=5) == 5
        assert "the tracer of task five" in caplog.text
        return
    words = "the tracer's own" if moment == "before" else "without calling the tracer it is around"
    with pytest.raises((OSError, RuntimeError), match=words):
        run(app)


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_pools_of_many_tasks_at_once_are_traced_too_but_for_coroutines_in_one_loop(
    app: Celery, story: list[str], monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    listen(story, monkeypatch, "task_prerun")

    async def wait() -> str:
        return threading.current_thread().name

    tasks = [app.task(lambda: 1, name="plain"), app.task(wait, name="awaited")]
    with start_worker(app, pool=pool, concurrency=2, perform_ping_check=False):
        for task in tasks:
            task.delay().get(timeout=20)
    assert ("in plain()" in story, "in awaited()" in story) == (True, pool == "threads")
    assert story.count("task_prerun") == 2


def test_a_tracer_is_only_for_workers_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"task\.apply"):
        build_tracer("x", None)("id", (), {}, {})  # type: ignore[arg-type]


def test_a_tasks_own_call_is_told_from_the_usual_one(app: Celery) -> None:
    class Own(Task[Any, Any]):
        def __call__(self, *args: Any) -> Any:
            return self.run(*args)

    assert not task_has_custom(app.tasks.get(app.task(lambda: 1, name="a").name), "__call__")
    assert task_has_custom(app.tasks.get(app.task(lambda: 1, name="b", base=Own).name), "__call__")


def test_a_header_of_the_callers_own_is_an_attribute_of_the_request(app: Celery) -> None:
    seen: list[Any] = []

    @app.task(bind=True, name="look")
    def look(self: Any) -> None:
        request = self.request
        seen.append(
            (request.traceparent, request.get("tenant"), request.get("nothing"), hasattr(request, "nothing"))
        )

    look.apply_async(headers={"traceparent": "00-1", "tenant": "blue"})
    run(app)
    assert seen == [("00-1", "blue", None, False)]


def test_receivers_of_before_task_publish_get_the_queue_with_its_exchange(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(signals.before_task_publish, "receivers", ())
    signals.before_task_publish.connect(lambda declare, **_: seen.extend(declare), weak=False)
    app.task(lambda: 1, name="one").delay()
    (queue,) = seen
    assert (queue.name, queue.exchange.name, queue.exchange.type, queue.routing_key) == (
        "celery", "celery", "direct", "celery",
    )  # fmt: skip


def test_what_is_put_around_publish_sees_each_publish_and_can_not_lose_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    plain = producer.Producer.publish

    def publish(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(
            (options["headers"]["task"], options["routing_key"], self.connection.transport.driver_type)
        )
        return plain(self, *args, **options) if len(seen) < 3 else None

    monkeypatch.setattr(producer.Producer, "publish", publish)
    monkeypatch.setattr(sending, "around_publish", producer._around)
    one = app.task(lambda: 1, name="one")
    one.delay()
    one.apply_many([(), ()])
    one.delay()
    assert seen == [("one", "celery", "memory")] * 3 and app.broker.size("celery") == 4
    with pytest.raises(RuntimeError, match="apply_async"):
        plain(object())  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="install kombu"):
        producer.Producer()
