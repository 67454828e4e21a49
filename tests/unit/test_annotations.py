"""`task_annotations`: what the settings change on tasks, as Celery does."""

from __future__ import annotations

from typing import Any

import pytest

from minicelery import Celery, Task
from minicelery.exceptions import ImproperlyConfigured


def nothing() -> None: ...


def annotated(app: Any, setting: Any, name: str = "t") -> Any:
    app.conf.task_annotations = setting
    task = app.task(name=name, shared=False)(nothing)
    task.apply()
    return task


def test_attributes_are_changed_by_name_and_for_all(app: Celery) -> None:
    app.conf.task_annotations = {"a": {"max_retries": 7}, "*": {"acks_late": True, "custom": 1}}
    a, b = (app.task(lambda: None, name=name) for name in "ab")
    assert app.tasks and (a.max_retries, b.max_retries) == (7, 3)
    assert (a.acks_late, b.acks_late, a.custom, b.custom) == (True, True, 1, 1)


def test_a_setting_that_comes_after_the_task_counts_until_its_first_use(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    app.conf.task_annotations = {"t": {"priority": 3}}
    task.delay()
    app.conf.task_annotations = {"t": {"priority": 7}}
    assert task.priority == 3


class Loud:
    """An annotation as an object."""

    def annotate(self, task: Any) -> Any:
        return {"max_retries": 8} if task.name.startswith("t") else None

    def annotate_any(self) -> Any:
        return {"resultrepr_maxsize": 9}


CASES: dict[str, Any] = {
    "dict": {"t": {"max_retries": 5}},
    "all": {"*": {"max_retries": 5}},
    "all goes before one": {"t": {"max_retries": 5}, "*": {"max_retries": 6}},
    "the first that knows it": [
        {"t": {"max_retries": 5}},
        {"t": {"max_retries": 6, "resultrepr_maxsize": 2}},
    ],
    "the first of all": [{"*": {"max_retries": 5}}, {"*": {"max_retries": 6, "resultrepr_maxsize": 2}}],
    "one from each": ({"*": {"max_retries": 5}}, {"t": {"resultrepr_maxsize": 2}}),
    "other": {"u": {"max_retries": 5}},
    "object": Loud(),
    "objects": [Loud(), {"*": {"max_retries": 4}}],
    "path": f"{__name__}.Loud",
    "paths": [f"{__name__}:Loud"],
    "nothing": None,
    "empty": [],
}


@pytest.mark.parametrize("case", CASES)
def test_a_setting_means_what_it_means_to_celery(app: Celery, case: str) -> None:
    celery = pytest.importorskip("celery", reason="real Celery is the oracle")
    theirs = annotated(celery.Celery("theirs", broker="memory://", set_as_current=False), CASES[case])
    ours = annotated(app, CASES[case])
    for attribute in ("max_retries", "resultrepr_maxsize"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


def test_a_class_will_do_where_an_object_would(app: Celery) -> None:
    assert annotated(app, Loud).max_retries == 8


def test_handlers_can_be_annotated(app: Celery) -> None:
    seen: list[Any] = []

    def on_failure(self: Any, exc: Any, *_: Any) -> None:
        seen.append((self.name, type(exc)))

    app.conf.task_annotations = {"*": {"on_failure": on_failure}}
    app.task(lambda: 1 / 0, name="t").apply()
    assert seen == [("t", ZeroDivisionError)]


def test_an_at_sign_puts_something_around_a_method(app: Celery) -> None:
    class Base(Task):
        def on_success(self, retval: Any, *_: Any) -> None:
            seen.append(retval)

    def around(original: Any) -> Any:
        return lambda self, retval, *rest: original(self, [retval], *rest)

    seen: list[Any] = []
    app.conf.task_annotations = {"t": {"@on_success": around}}
    for name in "tu":
        app.task(lambda: 5, name=name, base=Base).apply()
    assert seen == [[5], 5]


def test_a_rate_limit_may_be_annotated_and_is_checked(app: Celery) -> None:
    assert annotated(app, {"t": {"rate_limit": "10/m"}}).rate_limit == "10/m"
    with pytest.raises(ValueError, match="rate_limit='10/x' of u"):
        annotated(app, {"u": {"rate_limit": "10/x"}}, name="u")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (5, "got 5"),
        ({"t": 5}, "got 't': 5"),
        ({5: {}}, "got 5: {}"),
        ([object()], "expected a dict of task names"),
        ("nowhere.Nothing", "'nowhere.Nothing' can't be imported"),
        ("Nothing", "can't be imported"),
        ({"t": {"max_retry": 5}}, "max_retry=5 of t is not an option of a task; did you mean max_retries="),
        ({"*": {"delay": 5}}, "delay= is not an option"),
        ({"t": {"@on_sucess": lambda original: original}}, "t has no method 'on_sucess'"),
        ({"t": {"run": len}}, "the function is what runs"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_work_is_refused_and_named(app: Celery, setting: Any, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"task_annotations: .*{said}"):
        annotated(app, setting)


def test_a_value_that_cannot_work_names_task_and_attribute(app: Celery) -> None:
    with pytest.raises(ValueError, match="max_retries='many' of t: expected an integer >= 0, or None"):
        annotated(app, {"*": {"max_retries": "many"}})


def test_an_app_that_cannot_be_finalized_says_so_each_time(app: Celery) -> None:
    app.conf.task_annotations = {"t": {"max_retry": 1}}
    app.task(nothing, name="t")
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured, match="did you mean max_retries"):
            app.tasks  # noqa: B018
    app.conf.task_annotations = {"t": {"max_retries": 1}}
    assert app.tasks["t"].max_retries == 1 and app.finalized
