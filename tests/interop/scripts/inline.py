"""What tasks do that are run at once, called directly, or refused: one JSON object, in either library.

``python -m tests.interop.scripts.inline celery`` or ``… minicelery``.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

warnings.simplefilter("ignore")

LIBRARY = sys.argv[1] if len(sys.argv) > 1 else "minicelery"
library = importlib.import_module(LIBRARY)
errors = importlib.import_module(f"{LIBRARY}.exceptions")
BACKEND = "cache+memory://" if LIBRARY == "celery" else "memory://inline"

scenarios: dict[str, Callable[[Any], Any]] = {}


def scenario(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    scenarios[function.__name__] = function
    return function


def new_app(**conf: Any) -> Any:
    app = library.Celery("inline", broker="memory://inline", backend=BACKEND, set_as_current=True)
    app.conf.update(conf)
    return app


def ended(result: Any) -> list[Any]:
    """State, value or error, and id of a result."""
    return [result.state, plain(result.result), result.id]


def plain(value: Any) -> Any:
    if isinstance(value, BaseException):
        return [type(value).__name__, str(value)]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def raised(function: Callable[[], Any]) -> str:
    """The name of what it raises."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return "nothing"


# -- run at once -------------------------------------------------------------------------------------------


@scenario
def values(app: Any) -> Any:
    @app.task(name="t")
    def task(*args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    return [
        ended(task.apply((1, "two"), {"x": None}, task_id="a")),
        ended(task.apply(args=[1], kwargs=None, task_id="b")),
        ended(task.s(1).apply((2,), {"y": 3}, task_id="c")),
        ended(task.si(1).apply(task_id="d")),
    ]


@scenario
def failures(app: Any) -> Any:
    @app.task(name="t")
    def task(kind: str) -> None:
        raise {"KeyError": KeyError("x"), "Own": ValueError("bad", 42)}[kind]

    found = task.apply(("KeyError",), task_id="a")
    return [
        ended(found), ended(task.apply(("Own",), task_id="b")), found.failed(), found.successful(), found.ready(),
        raised(found.get), raised(lambda: task.apply(("Own",), throw=True)),
        plain(found.get(propagate=False)), "KeyError" in found.traceback,
    ]  # fmt: skip


@scenario
def ends_of_ones_own(app: Any) -> Any:
    @app.task(name="t")
    def task(kind: str) -> None:
        raise {"Ignore": errors.Ignore(), "Reject": errors.Reject("no", requeue=False)}[kind]

    return [task.apply((kind,), task_id="a").state for kind in ("Ignore", "Reject")]


@scenario
def always_eager(app: Any) -> Any:
    app.conf.task_always_eager = True

    @app.task(name="t")
    def task(x: Any) -> Any:
        return x

    @app.task(name="outer")
    def outer() -> Any:
        return task.delay(5).result

    @app.task(name="failing")
    def failing() -> None:
        raise KeyError("x")

    found = [ended(task.apply_async(((1, 2),), task_id="a")), outer.delay().result, failing.delay().state]
    app.conf.task_eager_propagates = True
    return [*found, raised(failing.delay), raised(lambda: task.delay({1, 2}))]


@scenario
def the_request_of_an_eager_run(app: Any) -> Any:
    fields = "id task args kwargs is_eager called_directly retries root_id parent_id group chord chain callbacks".split()

    @app.task(name="t", bind=True)
    def task(self: Any, *args: Any, **kwargs: Any) -> Any:
        return {name: plain(getattr(self.request, name)) for name in fields}

    return ended(task.apply((1,), {"x": 2}, task_id="an-id"))


@scenario
def handlers_of_an_eager_run(app: Any) -> Any:
    noted: list[Any] = []

    class Noting(app.Task):  # type: ignore[name-defined,misc]
        def before_start(self, *given: Any) -> None:
            noted.append(["before_start", *plain(given)])

        def on_success(self, *given: Any) -> None:
            noted.append(["on_success", *plain(given)])

        def on_retry(self, *given: Any) -> None:
            noted.append(["on_retry", *plain(given)])

        def on_failure(self, *given: Any) -> None:
            noted.append(["on_failure", *plain(given)])

        def after_return(self, *given: Any) -> None:
            noted.append(["after_return", *plain(given)[:5]])

    @app.task(name="t", bind=True, base=Noting)
    def task(self: Any, how: str) -> int:
        noted.append("run")
        if how == "fail":
            raise KeyError("x")
        if how == "retry" and self.request.retries == 0:
            raise self.retry(exc=KeyError("y"))
        if how == "ignore":
            raise errors.Ignore
        return 5

    for how in ("value", "fail", "retry", "ignore"):
        task.apply((how,), task_id=how)
    return noted


@scenario
def links_of_an_eager_run(app: Any) -> Any:
    app.conf.task_always_eager = True
    seen: list[Any] = []

    @app.task(name="t")
    def task(*numbers: int) -> int:
        seen.append(list(numbers))
        return sum(numbers)

    @app.task(name="errback")
    def errback(id: str) -> None:
        seen.append(id)

    @app.task(name="failing")
    def failing() -> None:
        raise KeyError("x")

    task.apply_async((1, 2), link=task.s(10))
    failing.apply_async(task_id="an-id", link_error=errback.s())
    return seen


@scenario
def state_reported_by_the_task(app: Any) -> Any:
    @app.task(name="t", bind=True)
    def task(self: Any) -> list[Any]:
        self.update_state(state="PROGRESS", meta={"done": 1})
        found = app.AsyncResult(self.request.id)
        return [found.state, found.info]

    return ended(task.apply(task_id="an-id"))


# -- called directly ---------------------------------------------------------------------------------------


@scenario
def calls_of_the_task_itself(app: Any) -> Any:
    @app.task(name="t", bind=True)
    def task(self: Any, x: int, y: int = 2) -> Any:
        return [x, y, self.request.called_directly, self.request.id, self.request.retries, self.name]

    return [task(1), task(1, y=5), task.run(7), raised(lambda: task()), raised(lambda: task(1, 2, 3))]


@scenario
def pushed_requests(app: Any) -> Any:
    @app.task(name="t", bind=True)
    def task(self: Any) -> Any:
        return [self.request.id, self.request.retries, self.request.get("mine")]

    task.push_request(id="an-id", retries=2, mine=1)
    try:
        found = [task.request.id, task.run()]
    finally:
        task.pop_request()
    return [found, task.request.id]


# -- declarations ------------------------------------------------------------------------------------------


@scenario
def attributes_and_their_defaults(app: Any) -> Any:
    names = (
        "max_retries default_retry_delay rate_limit ignore_result trail send_events store_errors_even_if_ignored "
        "serializer time_limit soft_time_limit track_started acks_late acks_on_failure acks_on_timeout "
        "acks_on_failure_or_timeout reject_on_worker_lost retry_on_worker_lost throws expires priority "
        "resultrepr_maxsize typing name"
    ).split()
    retrying = (
        "autoretry_for dont_autoretry_for retry_kwargs retry_backoff retry_backoff_max retry_jitter".split()
    )

    @app.task(name="t")
    def task() -> None: ...

    @app.task(
        name="u",
        autoretry_for=(KeyError,),
        retry_backoff=True,
        retry_backoff_max=9,
        retry_jitter=False,
        mine=1,
    )
    def other() -> None: ...

    # Celery's tasks have those of automatic retries only where they are given.
    own = {name: plain(getattr(other, name)) for name in retrying[:1] + retrying[3:]}
    return [{name: plain(getattr(task, name)) for name in names}, own, other.mine]


@scenario
def names_of_tasks(app: Any) -> Any:
    @app.task
    def plain_name() -> None: ...

    @app.task(name="given")
    def given() -> None: ...

    class Named(app.Task):  # type: ignore[name-defined,misc]
        name = "of a class"

        def run(self, x: int) -> int:
            return x + 1

    registered = app.register_task(Named())
    names = [plain_name.name.rpartition(".")[2], given.name, registered.name]
    return [names, sorted(name for name in names if name in app.tasks), registered.apply((1,)).result]


@scenario
def the_apps_task_class(app: Any) -> Any:
    @app.task(name="before")
    def before() -> str:
        return "before"

    class Context(app.Task):  # type: ignore[name-defined,misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["in context", self.run(*args, **kwargs)]

    app.Task = Context

    @app.task(name="after")
    def after() -> str:
        return "after"

    return [before.apply().result, after.apply().result, after()]


@scenario
def annotations_of_tasks(app: Any) -> Any:
    # Names of their own: which of several tasks for all apps gets a name is Celery's chance.
    app.conf.task_annotations = {"annotated": {"max_retries": 9}, "*": {"default_retry_delay": 4}}

    @app.task(name="annotated")
    def task() -> None: ...

    @app.task(name="annotated_by_all", max_retries=1)
    def other() -> None: ...

    app.finalize()  # Celery also applies them when the task is first looked at
    return [[one.max_retries, one.default_retry_delay] for one in (task, other)]


@scenario
def annotations_of_handlers(app: Any) -> Any:
    seen: list[Any] = []
    app.conf.task_annotations = {
        "t": {"on_failure": lambda self, exc, *_: seen.append([self.name, plain(exc)])}
    }

    @app.task(name="t")
    def task() -> None:
        raise KeyError("x")

    task.apply()
    return seen


@scenario
def models_of_pydantic(app: Any) -> Any:
    import pydantic

    class Order(pydantic.BaseModel):
        number: int
        note: str = "none"

    def double(order: Any, factor: int = 2) -> Any:
        return Order(number=order.number * factor)

    double.__annotations__ = {"order": Order, "factor": int, "return": Order}
    task = app.task(double, name="t", pydantic=True)
    short = app.task(double, name="u", pydantic=True, pydantic_dump_kwargs={"exclude_defaults": True})
    strict = app.task(double, name="v", pydantic=True, pydantic_strict=True)
    return [
        task.apply(({"number": 1},)).result,
        task.apply(({"number": "2"},), {"factor": 3}).result,
        short.apply(({"number": 1},)).result,
        plain(task.apply(({"number": "x"},)).state),
        strict.apply(({"number": "1"},)).state,
        plain(strict.apply(({"number": 1},)).result),
    ]


@scenario
def children_of_a_task(app: Any) -> Any:
    app.conf.task_always_eager = False

    @app.task(name="child", trail=False)
    def child() -> None: ...

    def parent(self: Any) -> int:
        child.delay()
        return len(self.request.children)

    parents = [app.task(parent, name=str(trail), bind=True, trail=trail) for trail in (True, False)]
    return [one.apply().result for one in parents]


# -- refused, or not ---------------------------------------------------------------------------------------


@scenario
def what_is_refused_at_the_call(app: Any) -> Any:
    @app.task(name="t")
    def task(x: int) -> None: ...

    return {
        "too few arguments": raised(lambda: task.delay()),
        "too many": raised(lambda: task.delay(1, 2)),
        "unknown keyword": raised(lambda: task.delay(1, z=2)),
        "no list of arguments": raised(lambda: task.apply_async(5)),
        "an argument that JSON can't carry": raised(lambda: task.delay(object())),
    }


def nothing(*_: Any) -> None: ...


def refusals() -> dict[str, str]:
    """Where each is refused: when it is declared, when it is called, or never."""

    def of(declared: dict[str, Any], called: dict[str, Any], conf: dict[str, Any] | None = None) -> str:
        app = new_app(**(conf or {}))
        try:
            task = app.task(nothing, name="t", shared=False, **declared)
            app.finalize()
        except Exception as error:
            return f"declared: {type(error).__name__}"
        try:
            task.apply_async(**called)
        except Exception as error:
            return f"called: {type(error).__name__}"
        return "never"

    return {
        "soft above hard, of the task": of({"soft_time_limit": 5, "time_limit": 2}, {}),
        "soft above hard, of the call": of({}, {"soft_time_limit": 5, "time_limit": 2}),
        "a limit below 0": of({}, {"time_limit": -1}),
        "a priority that is text": of({}, {"priority": "high"}),
        "an option of a task misspelt": of({"max_retry": 1}, {}),
        "an option of a call misspelt": of({}, {"coutdown": 1}),
        "a countdown that is text": of({}, {"countdown": "soon"}),
        "headers that are a list": of({}, {"headers": ["x"]}),
        "an unknown key of the retry_policy": of({}, {"retry_policy": {"max_retires": 1}}),
        "an unknown queue": of({}, {"queue": "nail"}, {"task_create_missing_queues": False, "task_queues": {"mail": {}}}),
        "an unknown serializer": of({}, {"serializer": "jsno"}),
        "an unknown compression": of({}, {"compression": "zib"}),
    }  # fmt: skip


def main() -> None:
    found: dict[str, Any] = {"refusals": refusals()}
    for name, function in scenarios.items():
        app = new_app()
        try:
            found[name] = function(app)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        finally:
            app.close()
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
