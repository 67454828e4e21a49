"""Signatures and what is put together of them: as in Celery, called, sent and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import minicelery
from minicelery import Signature, chain, chord, group, signature, xmap, xstarmap
from minicelery.canvas import StampingVisitor
from minicelery.exceptions import ChordError, ImproperlyConfigured
from minicelery.result import GroupResult
from tests.compat.stage import Stage, body_of, delay_of, each


class Tasks:
    """The tasks that the tests put together, and what was called."""

    def __init__(self, stage: Stage) -> None:
        self.calls: list[Any] = []
        task = stage.app.task

        @task(name="add")
        def add(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(("add", *args))
            return sum(args) + kwargs.get("more", 0)

        @task(name="mul")
        def mul(x: Any, y: Any = 2) -> Any:
            self.calls.append(("mul", x, y))
            return x * y

        @task(name="total")
        def total(values: list[Any], more: int = 0) -> Any:
            self.calls.append(("total", values, more))
            return sum(values) + more

        @task(name="fail")
        def fail(*args: Any) -> None:
            self.calls.append(("fail", *args))
            raise KeyError("missing")

        @task(name="note")
        def note(*args: Any) -> None:
            self.calls.append(("note", *args))

        self.add, self.mul, self.total, self.fail, self.note = add, mul, total, fail, note


@pytest.fixture
def tasks(stage: Stage) -> Tasks:
    return Tasks(stage)


def value(stage: Stage, whole: Any, *args: Any, **options: Any) -> Any:
    """What the composition ends with, once the worker has run all of it."""
    result = whole.apply_async(args, **options)
    stage.work()
    return result.get(timeout=1)


# -- signatures ------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Tasks], Any]] = {
    "task.s": lambda tasks: tasks.add.s(1, 2, more=3),
    "task.signature": lambda tasks: tasks.add.signature((1, 2), {"more": 3}),
    "task.subtask": lambda tasks: tasks.add.subtask((1, 2), {"more": 3}),
    "signature(name)": lambda tasks: signature("add", args=(1, 2), kwargs={"more": 3}, app=tasks.add.app),
    "signature(task)": lambda tasks: signature(tasks.add, (1, 2), {"more": 3}),
    "app.signature(name)": lambda tasks: tasks.add.app.signature("add", (1, 2), {"more": 3}),
    "a dict": lambda tasks: signature(dict(tasks.add.s(1, 2, more=3)), app=tasks.add.app),
    "a dict with what it needs": lambda tasks: signature(
        {"task": "add", "args": [1, 2], "kwargs": {"more": 3}}, app=tasks.add.app
    ),
    "JSON": lambda tasks: signature(json.loads(json.dumps(tasks.add.s(1, 2, more=3))), app=tasks.add.app),
}


@each(FORMS)
def test_a_signature_of_this_form_is_sent_and_called(stage: Stage, tasks: Tasks, case: Any) -> None:
    found = case(tasks)
    assert isinstance(found, Signature) and found() == 6
    assert value(stage, found) == 6


def test_arguments_of_the_call_come_first(stage: Stage, tasks: Tasks) -> None:
    assert value(stage, tasks.mul.s(3), "ab") == "ababab"


def test_keyword_arguments_of_the_call_win(stage: Stage, tasks: Tasks) -> None:
    tasks.add.s(1, more=5).apply_async(kwargs={"more": 7})
    assert body_of(stage.sent()[0])[1] == {"more": 7}


def test_options_of_the_call_win(stage: Stage, tasks: Tasks) -> None:
    tasks.add.s(1).set(priority=3, queue="mine").apply_async(priority=4)
    [message] = stage.sent()
    assert (message.priority, message.queue) == (4, "mine")


def test_an_immutable_signature_keeps_its_arguments_and_takes_options(stage: Stage, tasks: Tasks) -> None:
    tasks.add.si(1).apply_async((5,), priority=4)
    [message] = stage.sent()
    assert body_of(message)[0] == [1] and message.priority == 4


METHODS: dict[str, Callable[[Tasks], Any]] = {
    "set": lambda t: t.add.s(1).set(priority=3).options == {"priority": 3},
    "clone": lambda t: t.add.s(1).clone((2,), {"more": 3}, priority=4) == t.add.signature((2, 1), {"more": 3}, priority=4),
    "replace": lambda t: t.add.s(1).replace(args=(5,)) == t.add.s(5),
    "freeze": lambda t: t.add.s(1).freeze("an-id").id == "an-id",
    "link": lambda t: t.add.s(1).link(t.note.s()) == t.note.s(),
    "link_error": lambda t: t.add.s(1).link_error(t.note.s()) == t.note.s(),
    "on_error": lambda t: t.add.s(1).on_error(t.note.s()).options == {"link_error": [t.note.s()]},
    "set_immutable": lambda t: t.add.s(1).set_immutable(True) is None,
    "flatten_links": lambda t: t.add.s(1).set(link=[t.note.s()]).flatten_links()[1:] == [t.note.s()],
    "reprcall": lambda t: t.add.s(1).reprcall(5) == repr(t.add.s(5, 1)) == "add(5, 1)",
    "unchain_tasks": lambda t: chain(t.add.s(), t.mul.s()).unchain_tasks() == [t.add.s(), t.mul.s()],
    "type, task, name": lambda t: (t.add.s().type, t.add.s().task, t.add.s().name) == (t.add, "add", "add"),
    "args, kwargs": lambda t: (t.add.s(1, more=2).args, t.add.s(1, more=2).kwargs) == ((1,), {"more": 2}),
    "id, app": lambda t: (t.add.s().set(task_id="x").id, t.add.s().app) == ("x", t.add.app),
}  # fmt: skip


@each(METHODS)
def test_a_signature_has_this_of_celerys(tasks: Tasks, case: Any) -> None:
    assert case(tasks)


def test_a_tilde_calls_and_waits(stage: Stage, tasks: Tasks) -> None:
    stage.app.conf.task_always_eager = True
    assert ~tasks.add.s(1, 2) == 3
    assert ~(tasks.add.s(1, 2) | tasks.mul.s()) == 6


NAMES = ("Signature", "chain", "chord", "chunks", "group", "maybe_signature", "signature", "xmap", "xstarmap")


@each({name: name for name in NAMES})
def test_a_name_of_the_canvas_is_where_celery_has_it(case: str) -> None:
    assert getattr(minicelery, case) is getattr(minicelery.canvas, case)


# -- what a bar makes ------------------------------------------------------------------------------

BARS: dict[str, tuple[str, type[Signature[Any]], Any]] = {
    "task | task": ("add.s(1) | mul.s(5)", chain, 5),
    "task | chain": ("add.s(1) | (mul.s(5) | mul.s(2))", chain, 10),
    "chain | chain": ("(add.s(1) | mul.s(5)) | (mul.s(2) | add.s(1))", chain, 11),
    "task | group": ("add.s(1) | group(add.s(2), mul.s(5))", chain, [3, 5]),
    "task | group of one": ("add.s(1) | group(mul.s(5))", chain, 5),
    "task | empty group": ("add.s(1) | group([])", chain, 1),
    "chain | empty group": ("add.s(1) | mul.s(2) | group([])", chain, 2),
    "group | task": ("group(add.s(1), add.s(2)) | total.s()", chord, 3),
    "chain that ends in a group | task": ("add.s(1) | group(add.s(1), add.s(2)) | total.s()", chain, 5),
    "group | group": ("group(add.s(1), add.s(2)) | group(total.s(), total.s(5))", chord, [3, 8]),
    "group | empty group": ("group(add.s(1), add.s(2)) | group([])", group, [1, 2]),
    "chord | task": ("chord([add.s(1), add.s(2)], total.s()) | mul.s(2)", chord, 6),
    "chord | chord": ("chord([add.s(1)], total.s()) | chord([add.s(2), mul.s(3)], total.s())", chord, 6),
    "chain that ends in a chord | task": ("add.s(1) | chord([add.s(1)], total.s()) | mul.s(3)", chain, 6),
    "chain that ends in a chord | group": (
        "add.s(1) | chord([add.s(1)], total.s()) | group(mul.s(3), add.s(1))", chain, [6, 3]
    ),
    "chain(a)": ("chain(add.s(1))", chain, 1),
    "chain(a, b) is a | b": ("chain(group(add.s(1), add.s(2)), total.s())", chord, 3),
    "chain([a, b])": ("chain([add.s(1), mul.s(2)])", chain, 2),
    "chain of a generator": ("chain(add.s(i) for i in range(4))", chain, 6),
    "empty chord": ("chord([], total.s())", chord, 0),
    "group of groups": ("group(group(add.s(1), add.s(2)), add.s(3))", group, [1, 2, 3]),
}  # fmt: skip


@each(BARS)
def test_a_bar_makes_what_it_makes_in_celery(stage: Stage, tasks: Tasks, case: Any) -> None:
    oracle = pytest.importorskip("tests.unit.canvas_oracle")
    expression, kind, expected = case
    whole = eval(expression, {"chain": chain, "group": group, "chord": chord, **vars(tasks)})
    assert isinstance(whole, kind)
    assert oracle.plain(whole) == oracle.CELERY(expression)
    assert value(stage, whole) == expected
    assert value(stage, signature(json.loads(json.dumps(whole)), app=stage.app)) == expected


# -- chains ----------------------------------------------------------------------------------------


def test_a_chain_is_sent_as_its_first_task_with_the_rest_reversed(stage: Stage, tasks: Tasks) -> None:
    (tasks.add.s(1) | tasks.mul.s(2) | tasks.note.s()).apply_async((5,), countdown=60)
    [message] = stage.sent()
    args, _, links = body_of(message)
    assert (message.task, args, delay_of(message) > 50) == ("add", [5, 1], True)
    assert [link["task"] for link in links["chain"]] == ["note", "mul"]
    assert all("countdown" not in link["options"] for link in links["chain"])


def test_the_result_of_a_chain_is_its_last_tasks_and_knows_its_parents(stage: Stage, tasks: Tasks) -> None:
    result = (tasks.add.s(1) | tasks.mul.s(2) | tasks.add.s(5)).apply_async(task_id="the-end")
    stage.work()
    assert (result.id, result.get(timeout=1)) == ("the-end", 7)
    assert [result.parent.get(timeout=1), result.parent.parent.get(timeout=1)] == [2, 1]


def test_a_callback_of_a_chain_is_its_last_tasks_and_an_errback_every_tasks(
    stage: Stage, tasks: Tasks
) -> None:
    good = tasks.add.s(1) | tasks.mul.s(2)
    good.link(tasks.note.s())
    value(stage, good)
    assert tasks.calls == [("add", 1), ("mul", 1, 2), ("note", 2)]
    for bad in (chain(tasks.fail.s(), tasks.add.s()), chain(tasks.add.s(1), tasks.fail.s())):
        tasks.calls.clear()
        bad.link_error(tasks.note.si("failed"))
        bad.apply_async()
        stage.work()
        assert tasks.calls.count(("note", "failed")) == 1


def test_what_follows_a_failed_task_of_a_chain_has_failed_too(stage: Stage, tasks: Tasks) -> None:
    result = (tasks.fail.s() | tasks.add.s(1) | tasks.mul.s(2)).apply_async()
    stage.work()
    assert [each.state for each in (result, result.parent, result.parent.parent)] == ["FAILURE"] * 3
    with pytest.raises(KeyError, match="missing"):
        result.get(timeout=1)


# -- groups ----------------------------------------------------------------------------------------


def test_the_result_of_a_group_is_the_list_of_its_members_results(stage: Stage, tasks: Tasks) -> None:
    result = group(tasks.mul.s(i) for i in range(4)).apply_async((10,))
    assert isinstance(result, GroupResult) and len(result) == 4
    stage.work()
    assert result.get(timeout=1) == [0, 10, 20, 30]


def test_options_of_a_group_are_all_its_members(stage: Stage, tasks: Tasks) -> None:
    group(tasks.add.s(1), tasks.add.s(2), priority=3).apply_async(queue="mine")
    assert [(one.priority, one.queue) for one in stage.sent()] == [(3, "mine")] * 2


def test_an_empty_group_has_an_empty_result(stage: Stage) -> None:
    result = group([]).apply_async()
    assert result.get(timeout=1) == [] and stage.sent() == []


def test_a_callback_of_a_group_follows_its_first_member_only(stage: Stage, tasks: Tasks) -> None:
    whole = group(tasks.add.s(1), tasks.add.s(2))
    whole.link(tasks.note.s("first"))
    value(stage, whole)
    assert tasks.calls.count(("note", "first")) == 1


def test_an_errback_of_a_group_follows_every_member(stage: Stage, tasks: Tasks) -> None:
    whole = group(tasks.fail.s(1), tasks.fail.s(2))
    assert len(whole.link_error(tasks.note.si("failed"))) == 2
    whole.apply_async()
    stage.work()
    assert tasks.calls.count(("note", "failed")) == 2


@each({"link": "link", "link_error": "link_error"})
def test_a_call_of_a_group_takes_no_links(tasks: Tasks, case: str) -> None:
    with pytest.raises(TypeError, match=f"{case}= can't be given to a group"):
        group(tasks.add.s(1)).apply_async(**{case: tasks.note.s()})


def test_skew_spreads_the_members_over_time(stage: Stage, tasks: Tasks) -> None:
    group(tasks.add.s(i) for i in range(4)).skew(start=20, stop=40, step=10).apply_async()
    assert [round(delay_of(one), -1) for one in stage.sent()] == [20, 30, 40, 40]


# -- chords ----------------------------------------------------------------------------------------


def test_the_body_of_a_chord_gets_the_results_in_order(stage: Stage, tasks: Tasks) -> None:
    result = chord([tasks.mul.s(3, 2), tasks.add.s(1), tasks.mul.s(5)])(tasks.total.s())
    stage.work()
    assert tasks.calls[-1] == ("total", [6, 1, 10], 0) and result.get(timeout=1) == 17
    assert result.parent.get(timeout=1) == [6, 1, 10]


def test_a_failed_part_fails_the_body_and_is_named(stage: Stage, tasks: Tasks) -> None:
    body = tasks.total.s().on_error(tasks.note.si("failed"))
    result = (chord([tasks.fail.s(), tasks.add.s(1)], body) | tasks.mul.s(2)).apply_async()
    stage.work()
    part = result.parent.parent.results[0].id
    for failed in (result, result.parent):
        error = failed.get(timeout=1, propagate=False)
        assert (failed.state, type(error)) == ("FAILURE", ChordError)
        assert str(error) == f"Dependency {part} raised KeyError('missing')"
    assert ("add", 1) in tasks.calls and tasks.calls.count(("note", "failed")) == 1


def test_a_countdown_of_a_chord_delays_its_parts(stage: Stage, tasks: Tasks) -> None:
    chord([tasks.add.s(1), tasks.add.s(2)], tasks.total.s()).apply_async(countdown=60, task_id="the-body")
    assert [delay_of(one) > 50 for one in stage.sent()] == [True, True]


def test_an_errback_of_a_chord_is_the_bodys(stage: Stage, tasks: Tasks) -> None:
    whole = chord([tasks.add.s(1)], tasks.total.s()).on_error(tasks.note.s())
    assert [task.options for task in whole.tasks] == [{}] and whole.body.options["link_error"] == [
        tasks.note.s()
    ]


def test_an_errback_of_a_chord_is_every_parts_too_if_the_setting_says_so(stage: Stage, tasks: Tasks) -> None:
    stage.app.conf.task_allow_error_cb_on_chord_header = True
    whole = chord([tasks.add.s(1)], tasks.total.s()).on_error(tasks.note.s())
    assert whole.tasks[0].options["link_error"] == [tasks.note.si()]


def test_an_errback_of_more_arguments_is_called_with_the_request_and_the_error(
    stage: Stage, tasks: Tasks
) -> None:
    @stage.app.task(name="handle")
    def handle(request: Any, exc: BaseException, traceback: str) -> None:
        tasks.calls.append((request.id, type(exc), "missing" in traceback))

    tasks.fail.s().on_error(handle.s()).apply_async(task_id="failed")
    stage.work()
    assert tasks.calls[-1] == ("failed", KeyError, True)


def test_a_replacement_is_shown_to_on_replace(stage: Stage, tasks: Tasks) -> None:
    class Showing(stage.app.Task):  # type: ignore[misc, name-defined]
        def on_replace(self, sig: Any) -> Any:
            tasks.calls.append(("replacing", sig.task, sig.args))
            return super().on_replace(sig)

    @stage.app.task(bind=True, base=Showing, name="replaced")
    def replaced(self: Any) -> Any:
        return self.replace(tasks.add.s(1))

    assert value(stage, replaced.s()) == 1
    assert tasks.calls == [("replacing", "add", (1,)), ("add", 1)]


# -- one task for many arguments -------------------------------------------------------------------

MANY: dict[str, tuple[Callable[[Tasks], Any], Any, int]] = {
    "map": (lambda t: t.mul.map([1, 2, 3]), [2, 4, 6], 1),
    "xmap": (lambda t: xmap(t.mul.s(), range(3)), [0, 2, 4], 1),
    "starmap": (lambda t: t.mul.starmap([(1, 3), (2, 5)]), [3, 10], 1),
    "xstarmap": (lambda t: xstarmap(t.mul.s(), zip((1, 2), (3, 4), strict=True)), [3, 8], 1),
    "chunks": (lambda t: t.mul.chunks([(i, 2) for i in range(5)], 2), [[0, 2], [4, 6], [8]], 3),
    "chunks().group": (lambda t: t.mul.chunks([(i, 2) for i in range(4)], 2).group(), [[0, 2], [4, 6]], 2),
}


@each(MANY)
def test_one_task_is_called_with_each_of_many_arguments(stage: Stage, tasks: Tasks, case: Any) -> None:
    make, expected, messages = case
    result = make(tasks).apply_async()
    assert len(stage.sent()) == messages
    stage.work()
    assert result.get(timeout=1) == expected


# -- a task that is replaced -----------------------------------------------------------------------


@each({
    "a task": (lambda t: t.mul.s(4, 2), 8), "a chain": (lambda t: t.add.s(4) | t.mul.s(3), 12),
    "a chord": (lambda t: chord([t.add.s(1), t.add.s(3)], t.total.s()), 4),
})  # fmt: skip
def test_what_replaces_a_task_has_its_id_and_what_follows_it(stage: Stage, tasks: Tasks, case: Any) -> None:
    make, expected = case

    @stage.app.task(bind=True, name="replaced")
    def replaced(self: Any) -> None:
        self.replace(make(tasks))

    result = (replaced.s().set(task_id="kept", link=[tasks.note.s("linked")]) | tasks.mul.s(10)).apply_async()
    stage.work()
    assert result.get(timeout=1) == expected * 10
    assert stage.app.AsyncResult("kept").get(timeout=1) == expected
    assert ("note", expected, "linked") in tasks.calls


def test_a_group_that_replaces_a_task_gives_it_the_list(stage: Stage, tasks: Tasks) -> None:
    @stage.app.task(bind=True, name="replaced")
    def replaced(self: Any) -> None:
        self.replace(group(tasks.add.s(1), tasks.add.s(3)))

    assert value(stage, replaced.s() | tasks.total.s()) == 4


@each({
    "an empty chain": lambda t: chain(), "a part of a chord": lambda t: t.add.s(1).set(chord=t.total.s()),
})  # fmt: skip
def test_what_cannot_replace_a_task_is_refused(stage: Stage, tasks: Tasks, case: Any) -> None:
    @stage.app.task(bind=True, name="replaced")
    def replaced(self: Any) -> None:
        self.replace(case(tasks))

    result = stage.run(replaced)
    with pytest.raises(ImproperlyConfigured):
        result.get(timeout=1)


def test_a_task_adds_to_the_chord_that_it_is_a_part_of(stage: Stage, tasks: Tasks) -> None:
    @stage.app.task(bind=True, name="growing")
    def growing(self: Any) -> int:
        self.add_to_chord(tasks.add.s(100))
        return 1

    assert value(stage, chord([growing.s(), tasks.add.s(2)], tasks.total.s())) == 103


# -- stamps ----------------------------------------------------------------------------------------


class Recorder(StampingVisitor):
    """Stamps everything, and writes down where it was."""

    def __init__(self) -> None:
        self.been: list[str] = []

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        self.been.append("on_signature")
        return {"by": "signature"}


for _method in (
    "on_chain_start", "on_chain_end", "on_group_start", "on_group_end", "on_chord_header_start",
    "on_chord_header_end", "on_chord_body", "on_callback", "on_errback",
):  # fmt: skip

    def _record(self: Any, sig: Any, _method: str = _method, **headers: Any) -> dict[str, Any]:
        self.been.append(_method)
        return {_method: True}

    setattr(Recorder, _method, _record)

VISITED: dict[str, tuple[Callable[[Tasks], Any], int]] = {
    "on_signature": (lambda t: t.add.s(), 1),
    "on_chain_start": (lambda t: t.add.s() | t.mul.s(), 1),
    "on_chain_end": (lambda t: t.add.s() | t.mul.s(), 1),
    "on_group_start": (lambda t: group(t.add.s(), t.mul.s()), 1),
    "on_group_end": (lambda t: group(t.add.s(), group(t.mul.s(), t.mul.s())), 2),
    "on_chord_header_start": (lambda t: chord([t.add.s()], t.total.s()), 1),
    "on_chord_header_end": (lambda t: chord([t.add.s()], t.total.s()), 1),
    "on_chord_body": (lambda t: chord([t.add.s()], t.total.s()), 1),
    "on_callback": (lambda t: t.add.s().set(link=[t.note.s(), t.note.s(1)]), 2),
    "on_errback": (lambda t: t.add.s().on_error(t.note.s()), 1),
}


@each({name: (name, *case) for name, case in VISITED.items()})
def test_a_visitor_is_called_at(tasks: Tasks, case: Any) -> None:
    name, make, times = case
    visitor = Recorder()
    make(tasks).stamp(visitor)
    assert visitor.been.count(name) == times


@pytest.fixture
def stamps(stage: Stage) -> list[Any]:
    """What the requests of the task `seen` had for stamps, in order."""
    found: list[Any] = []

    @stage.app.task(bind=True, name="seen", max_retries=1)
    def seen(self: Any, *args: Any, again: bool = False) -> int:
        found.append((self.request.stamped_headers, self.request.stamps))
        if again and not self.request.retries:
            raise self.retry(countdown=0)
        return 1

    return found


STAMPED: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "a task": (lambda seen, fail: seen.s(), 1),
    "a retry": (lambda seen, fail: seen.s(again=True), 2),
    "links of a chain": (lambda seen, fail: seen.s() | seen.s() | seen.s(again=True), 4),
    "members of a group": (lambda seen, fail: group(seen.s(), seen.s() | seen.s()), 3),
    "a chord and its body": (lambda seen, fail: chord([seen.s(), seen.s()], seen.s()), 3),
    "a callback": (lambda seen, fail: seen.s().set(link=[seen.s()]), 2),
    "an errback": (lambda seen, fail: fail.s().on_error(seen.si()), 1),
}


@each(STAMPED)
def test_stamps_are_in_the_requests_of(stage: Stage, tasks: Tasks, stamps: list[Any], case: Any) -> None:
    make, calls = case
    whole = make(stage.app.tasks["seen"], tasks.fail)
    signature(json.loads(json.dumps(whole.stamp(order=5))), app=stage.app).apply_async()
    stage.work()
    assert stamps == [(["order"], {"order": 5})] * calls


def test_a_message_carries_its_stamps_as_celerys(stage: Stage, tasks: Tasks) -> None:
    tasks.add.s().stamp(order=5, customer=["a"]).apply_async()
    [message] = stage.sent()
    assert message.headers["stamped_headers"] == ["order", "customer"]
    assert message.headers["stamps"] == {"order": 5, "customer": ["a"]}
    assert not {"order", "customer"}.intersection(message.properties)


def test_stamps_are_appended_if_told_so(tasks: Tasks) -> None:
    stamped = tasks.add.s().stamp(order=5)
    assert stamped.clone().stamp(order=6).options["order"] == 6
    assert stamped.clone().stamp(append_stamps=True, order=6).options["order"] == [6, 5]
