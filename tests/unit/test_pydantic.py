"""`pydantic=True`: models as arguments and results, as Celery 5.7 has them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Optional

import pydantic
import pytest

from minicelery import Celery
from minicelery.exceptions import EncodeError, ImproperlyConfigured
from minicelery.message import Delivery, Message
from minicelery.worker.executor import Executor


class Item(pydantic.BaseModel):
    id: int
    name: str = "thing"


class Special(Item):
    extra: int = 0


class Answer(pydantic.BaseModel):
    total: int
    label: str = pydantic.Field(default="sum", alias="as")


class Contextual(pydantic.BaseModel):
    value: int

    @pydantic.field_validator("value")
    @classmethod
    def _known(cls, value: int, info: pydantic.ValidationInfo) -> int:
        context = info.context or {}
        assert context["celery_app"].main in ("app", "theirs")
        assert context["celery_task_name"].startswith("task.")
        return value + int(context.get("bonus", 0))


def sent(app: Celery) -> list[Message]:
    """The messages that wait on the default queue, taken off it."""
    consumer = app.broker.consumer(["celery"], "reader", None)
    return [delivery.message for delivery in consumer.swap([], 1000, 0)]


def document(app: Celery, message: Message) -> Any:
    outcome = Executor(app, "w1@host").run(Delivery(message, 1))
    assert outcome.record is not None
    return json.loads(outcome.record.document)


# -- functions that both libraries are given ---------------------------------------------------


def plain(item: Item) -> Any:
    return [type(item).__name__, item.id, item.name]


def optional(item: Optional[Item] = None) -> Any:  # noqa: UP045 - both ways to write it
    return item if item is None else [type(item).__name__, item.id]


def or_none(item: Item | None, *, more: Item | None = None) -> Any:
    return [type(item).__name__, type(more).__name__]


def either(item: Item | int) -> Any:
    return type(item).__name__


def untyped(item, other: int = 0):  # type: ignore[no-untyped-def]
    return [type(item).__name__, other]


def many(first: Item, *rest: Item, **named: Item) -> Any:
    return [type(one).__name__ for one in (first, *rest, *named.values())]


def returns_model(n: int) -> Answer:
    return Answer(**{"total": n, "as": "x"})


def returns_base(n: int) -> pydantic.BaseModel:
    return Answer(total=n)


def returns_optional(n: int) -> Answer | None:
    return Answer(total=n) if n else None


def returns_other(n: int) -> str:
    return n  # type: ignore[return-value]


def returns_unannotated(n: int):  # type: ignore[no-untyped-def]
    return {"n": n}


def contextual(it: Contextual) -> Any:
    return it.value


def listed(items: list[Item]) -> Any:
    return [type(item).__name__ for item in items]


CASES: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], dict[str, Any]]] = [
    (plain, ({"id": 1},), {}, {}),
    (plain, ({"id": "1"},), {}, {}),
    (plain, ({"id": "1"},), {}, {"pydantic_strict": True}),
    (plain, ({"id": "one"},), {}, {}),
    (plain, (), {"item": {"id": 3, "name": "x"}}, {}),
    (plain, (None,), {}, {}),
    (optional, (), {}, {}),
    (optional, (None,), {}, {}),
    (optional, ({"id": 4},), {}, {}),
    (or_none, (None,), {"more": {"id": 1}}, {}),
    (or_none, ({"id": 1},), {}, {}),
    (either, ({"id": 1},), {}, {}),
    (untyped, ({"id": 1},), {"other": "5"}, {}),
    (many, ({"id": 1}, {"id": 2}), {"third": {"id": 3}}, {}),
    (returns_model, (5,), {}, {}),
    (returns_model, (5,), {}, {"pydantic_dump_kwargs": {"by_alias": True}}),
    (returns_base, (5,), {}, {}),
    (returns_optional, (0,), {}, {}),
    (returns_optional, (5,), {}, {"pydantic_dump_kwargs": {"exclude": {"total"}}}),
    (returns_other, (5,), {}, {}),
    (returns_unannotated, (5,), {}, {}),
    (contextual, ({"value": 5},), {}, {}),
    (contextual, ({"value": 5},), {}, {"pydantic_context": {"bonus": 10}}),
    (listed, ([{"id": 1}],), {}, {}),
]


@pytest.mark.parametrize("bind", [False, True], ids=["", "bind"])
@pytest.mark.parametrize(
    ("function", "args", "kwargs", "options"),
    CASES,
    ids=[f"{n}-{case[0].__name__}" for n, case in enumerate(CASES)],
)
def test_arguments_and_results_are_what_celery_makes_of_them(
    app: Celery, function: Any, args: Any, kwargs: Any, options: dict[str, Any], bind: bool
) -> None:
    celery = pytest.importorskip("celery", reason="real Celery is the oracle")
    theirs = celery.Celery("theirs", broker="memory://", set_as_current=False)
    found = []
    for library in (theirs, app):
        called = _bound(function) if bind else function
        task = library.task(
            name=f"task.{function.__name__}", shared=False, pydantic=True, bind=bind, **options
        )(called)
        result = task.apply(args, kwargs)
        found.append((result.state, _comparable(result.result)))
    assert found[1] == found[0]


def _bound(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a task before its parameters."""
    import inspect

    signature = inspect.signature(function)
    this = inspect.Parameter("this", inspect.Parameter.POSITIONAL_ONLY)

    def bound(this: Any, *args: Any, **kwargs: Any) -> Any:
        assert this.name.startswith("task.")
        return function(*args, **kwargs)

    bound.__signature__ = signature.replace(parameters=[this, *signature.parameters.values()])  # type: ignore[attr-defined]
    bound.__annotations__ = function.__annotations__
    return bound


def _comparable(value: Any) -> Any:
    if isinstance(value, pydantic.ValidationError):
        return [(error["type"], error["loc"]) for error in value.errors()]
    return type(value).__name__ if isinstance(value, BaseException) else value


# -- what a caller may pass --------------------------------------------------------------------


@pytest.mark.parametrize("call", ["delay", "apply_async", "apply_many", "retry", "eager"])
def test_a_caller_may_pass_models(app: Celery, call: str) -> None:
    @app.task(pydantic=True, bind=True, name="t")
    def task(self: Any, item: Item, other: Item | None = None) -> Any:
        if call == "retry" and self.request.retries == 0:
            raise self.retry(args=(Item(id=7),), kwargs={"other": Item(id=8)}, countdown=-1)
        return [item.id, item.name, other and other.id]

    item, other = Item(id=7), Item(id=8)
    app.conf.task_always_eager = call == "eager"
    if call == "eager":
        assert task.delay(item, other=other).get() == [7, "thing", 8]
        return
    if call == "delay":
        task.delay(item, other=other)
    elif call == "apply_many":
        task.apply_many([(item, other)])
    elif call == "retry":
        outcome = Executor(app, "w1@host").run(Delivery(_message_of(app, task, {"id": 1}), 1))
        assert document(app, next(iter(outcome.publish)))["result"] == [7, "thing", 8]
        return
    else:
        task.apply_async([item], {"other": other})
    (message,) = sent(app)
    expected = [{"id": 7, "name": "thing"}, {"id": 8, "name": "thing"}]
    body = json.loads(message.body)
    assert [*body[0], *body[1].values()] == expected
    assert document(app, message)["result"] == [7, "thing", 8]


def _message_of(app: Celery, task: Any, *args: Any) -> Message:
    task.delay(*args)
    return sent(app)[0]


def test_a_model_that_would_come_out_as_another_is_left_for_the_serializer_to_refuse(app: Celery) -> None:
    app.task(pydantic=True, name="plain")(plain)
    app.task(pydantic=True, name="untyped")(untyped)
    for name, value in (("plain", Special(id=1)), ("untyped", Item(id=1))):
        with pytest.raises(EncodeError, match=f"argument 'item' of {name} is a {type(value).__name__}"):
            app.tasks[name].delay(value)


def test_without_pydantic_a_model_cannot_be_carried(app: Celery) -> None:
    with pytest.raises(EncodeError, match="argument 'item' of t is a Item"):
        app.task(name="t")(plain).delay(Item(id=1))


# -- more than Celery --------------------------------------------------------------------------


def test_an_async_task_is_validated_too(app: Celery) -> None:
    @app.task(pydantic=True, name="t")
    async def task(item: Item) -> Answer:
        return Answer(total=item.id)

    assert task.apply(({"id": 5},)).get() == {"total": 5, "label": "sum"}
    assert task.apply(({"id": "x"},)).state == "FAILURE"


def test_an_annotation_that_is_only_there_for_type_checkers_hides_no_model(app: Celery) -> None:
    def task(item: Item, other: OnlyForCheckers = None) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return type(item).__name__

    assert app.task(pydantic=True, name="t")(task).apply(({"id": 5},)).get() == "Item"


def test_a_model_may_be_defined_after_the_task(app: Celery) -> None:
    space: dict[str, Any] = {"app": app, "__name__": __name__}
    exec(
        "from __future__ import annotations\n"
        "import pydantic\n"
        "@app.task(pydantic=True, name='t')\n"
        "def task(item: Later): return type(item).__name__\n"
        "class Later(pydantic.BaseModel): id: int\n",
        space,
    )
    assert space["task"].apply(({"id": 5},)).get() == "Later"


def test_without_the_package_the_declaration_says_what_to_install(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(
        ImproperlyConfigured, match=r"pydantic=True of t needs .*pip install 'minicelery\[pydantic\]'"
    ):
        app.task(pydantic=True, name="t")(plain)


@pytest.mark.parametrize("option", ["pydantic_context", "pydantic_dump_kwargs"])
def test_options_of_pydantic_are_checked(app: Celery, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=5 of t: expected a mapping"):
        app.task(pydantic=True, name="t", **{option: 5})(plain)


def test_arguments_are_still_checked_against_the_function(app: Celery) -> None:
    task = app.task(pydantic=True, name="t")(plain)
    with pytest.raises(TypeError, match=r"t\(item: 'Item'\)"):
        task.delay()
    assert task(item={"id": 5}) == ["Item", 5, "thing"]
