"""Results, sets and groups of them, and results of tasks that were run at once."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from minicelery import chain, group
from minicelery.exceptions import ImproperlyConfigured, IncompleteStream, TaskRevokedError, TimeoutError
from minicelery.groups import GroupResult, ResultSet
from minicelery.message import new_id
from minicelery.result import (
    AsyncResult,
    EagerResult,
    allow_join_result,
    denied_join_result,
    result_from_tuple,
)
from tests.compat.stage import Stage, each
from tests.waiting import wait_until


class Troupe(NamedTuple):
    """A stage and the results of what has run on it."""

    stage: Stage
    good: AsyncResult[Any]  # add(2, 3)
    bad: AsyncResult[Any]  # raised ValueError("bad")
    parent: AsyncResult[Any]  # has sent `good`
    pending: AsyncResult[Any]  # never sent
    last: AsyncResult[Any]  # the end of a chain that begins with a failure

    def set(self, *names: str) -> ResultSet:
        return self.stage.app.ResultSet([getattr(self, name) for name in names])

    def group(self, *names: str) -> GroupResult:
        found: GroupResult = self.stage.app.GroupResult("group", self.set(*names).results)
        return found


@pytest.fixture
def troupe(stage: Stage) -> Troupe:
    app = stage.app
    app.conf.result_extended = True

    @app.task(name="add", shared=False)
    def add(x: int, y: int = 1) -> int:
        return x + y

    @app.task(name="fail", shared=False)
    def fail(*_: Any) -> None:
        raise ValueError("bad")

    sent: list[str] = []

    @app.task(name="call", shared=False)
    def call() -> str:
        sent.append(add.delay(2, 3).id)
        return "called"

    parent, bad = call.delay(), fail.delay()
    last = chain(fail.s(), add.s(1)).delay()
    stage.work()
    good = app.AsyncResult(sent[0])
    return Troupe(stage, good, bad, parent, app.AsyncResult(new_id()), last)


# -- one result ------------------------------------------------------------------------------

ATTRIBUTES: dict[str, Callable[[Troupe], bool]] = {
    "id, task_id": lambda t: t.good.id == t.good.task_id == str(t.good),
    "backend, app": lambda t: (t.good.backend, t.good.app) == (t.stage.app.backend, t.stage.app),
    "parent": lambda t: t.last.parent is not None and t.last.parent.failed() and t.good.parent is None,
    "children": lambda t: (t.parent.children, t.good.children, t.pending.children) == ([t.good], [], None),
    "result, info": lambda t: t.good.result == t.good.info == 5 and str(t.bad.result) == "bad",
    "state, status": lambda t: (t.good.state, t.bad.status, t.pending.state) == ("SUCCESS", "FAILURE", "PENDING"),
    "traceback": lambda t: "ValueError: bad" in (t.bad.traceback or "") and t.good.traceback is None,
    "name": lambda t: t.good.name == "add",
    "args, kwargs": lambda t: (t.good.args, t.good.kwargs) == ([2, 3], {}),
    "worker": lambda t: t.good.worker == "w1@compat",
    "retries, queue": lambda t: (t.good.retries, t.good.queue) == (0, "celery"),
    "date_done": lambda t: t.good.date_done is not None and t.good.date_done.tzinfo is not None,
    "supports_native_join": lambda t: t.good.supports_native_join,
    "exists": lambda t: (t.good.exists(), t.pending.exists()) == (True, False),
    "ready, successful, failed": lambda t: (
        (t.good.ready(), t.good.successful(), t.good.failed(), t.bad.failed(), t.pending.ready())
        == (True, True, False, True, False)
    ),
    "as_tuple": lambda t: t.good.as_tuple() == ((t.good.id, None), None),
    "as_list": lambda t: t.last.as_list() == [t.last.id, t.last.parent.id],
    "==, hash": lambda t: t.good == t.good.id == copy.copy(t.good) and hash(t.good) == hash(t.good.id),
}  # fmt: skip


@each(ATTRIBUTES)
def test_a_result_tells_what_celerys_does(troupe: Troupe, case: Callable[[Troupe], bool]) -> None:
    assert case(troupe)


def test_a_known_result_is_told_from_an_unknown_one(troupe: Troupe) -> None:
    assert (troupe.good.known, troupe.pending.known, troupe.pending.state) == (True, False, "PENDING")


def test_an_ignored_result_is_none_at_once(troupe: Troupe) -> None:
    found = troupe.stage.app.tasks["add"].apply_async((1,), ignore_result=True)
    assert (found.ignored, found.get(), found.ready()) == (True, None, False)


def heard(troupe: Troupe, option: str) -> list[Any]:
    calls: list[Any] = []
    result = troupe.stage.app.AsyncResult(troupe.good.id)
    result.get(timeout=5, **{option: lambda *call: calls.append(call)})
    return calls


def raised(ask: Callable[[], Any]) -> str:
    try:
        return f"returned {ask()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def ticks(troupe: Troupe) -> bool:
    """Whether it is called after each interval, until it has had enough."""
    began = time.monotonic()
    calls: list[float] = []

    def tick() -> None:
        calls.append(time.monotonic() - began)
        if len(calls) == 3:
            raise KeyError("enough")

    end = raised(lambda: troupe.pending.get(timeout=20, interval=0.02, on_interval=tick))
    return end == "KeyError: 'enough'" and all(at >= 0.02 * number for number, at in enumerate(calls, 1))


GETTING: dict[str, Callable[[Troupe], bool]] = {
    "get": lambda t: t.good.get() == t.good.wait() == 5,
    "timeout": lambda t: raised(lambda: t.pending.get(timeout=0.01)).startswith("TimeoutError"),
    "propagate": lambda t: raised(t.bad.get) == "ValueError: bad" and str(t.bad.get(propagate=False)) == "bad",
    "interval, on_interval": ticks,
    "no_ack": lambda t: t.good.get(no_ack=False) == 5,
    "follow_parents": lambda t: (
        raised(t.last.get) == "ValueError: bad"
        and raised(lambda: t.last.get(follow_parents=False)).startswith("ValueError")
    ),
    "callback": lambda t: heard(t, "callback") == [(t.good.id, 5)],
    "on_message": lambda t: [meta["status"] for (meta,) in heard(t, "on_message")] == ["SUCCESS"],
    "maybe_throw, maybe_reraise": lambda t: (
        raised(t.bad.maybe_throw) == raised(t.bad.maybe_reraise) == "ValueError: bad"
        and (t.good.maybe_throw(), t.pending.maybe_throw()) == (5, None)
    ),
    "throw": lambda t: raised(lambda: t.good.throw(KeyError("given"))) == "KeyError: 'given'",
    "AsyncResult.TimeoutError": lambda t: issubclass(t.good.TimeoutError, TimeoutError),
}  # fmt: skip


@each(GETTING)
def test_a_result_is_waited_for_as_celerys_is(troupe: Troupe, case: Callable[[Troupe], bool]) -> None:
    assert case(troupe)


def test_waiting_inside_of_a_task_is_refused_unless_allowed(troupe: Troupe) -> None:
    app, good = troupe.stage.app, troupe.good
    many = app.GroupResult("group", [good])

    @app.task(name="wait", shared=False)
    def wait() -> list[Any]:
        refused = [
            raised(way)[:12] for way in (good.get, many.get, many.join, many.join_native, good.get_leaf)
        ]
        with allow_join_result():
            allowed = [good.get(), many.get()]
        return [
            refused,
            allowed,
            good.get(disable_sync_subtasks=False),
            many.get(disable_sync_subtasks=False),
        ]

    assert troupe.stage.run(wait).get() == [["RuntimeError"] * 5, [5, [5]], 5, [5]]
    with denied_join_result(), pytest.raises(RuntimeError, match="Never call"):
        good.get()


def test_then_calls_back_once_when_the_result_is_there(troupe: Troupe) -> None:
    add = troupe.stage.app.tasks["add"]
    called: list[Any] = []
    result = add.delay(1)
    result.then(lambda one: called.append((one, one.get(), threading.current_thread().name)))
    troupe.stage.work()
    wait_until(lambda: called)
    assert called == [(result, 2, "minicelery-callbacks")]


def test_then_tells_on_error_of_a_failure(troupe: Troupe) -> None:
    errors: list[BaseException] = []
    troupe.bad.then(lambda one: None, on_error=errors.append)
    wait_until(lambda: errors)
    assert [str(error) for error in errors] == ["bad"]


def test_a_weak_then_needs_a_result_that_is_kept(troupe: Troupe) -> None:
    called: list[str] = []
    result = troupe.stage.app.AsyncResult(troupe.good.id)
    result.then(lambda one: called.append(one.id), weak=True)
    wait_until(lambda: called)
    assert called == [result.id]


FOLLOWING: dict[str, Callable[[Troupe], bool]] = {
    "iterdeps": lambda t: list(t.parent.iterdeps()) == [(None, t.parent), (t.parent, t.good)],
    "iterdeps(intermediate=True)": lambda t: (
        list(t.pending.iterdeps(intermediate=True)) == [(None, t.pending)]
    ),
    "collect": lambda t: list(t.parent.collect()) == [(t.parent, "called"), (t.good, 5)],
    "get_leaf": lambda t: t.parent.get_leaf() == 5,
}


@each(FOLLOWING)
def test_what_follows_from_a_task_is_found(troupe: Troupe, case: Callable[[Troupe], bool]) -> None:
    assert case(troupe)


def test_what_is_not_done_is_an_incomplete_stream(troupe: Troupe) -> None:
    with pytest.raises(IncompleteStream, match=f"task {troupe.pending.id} is not done"):
        list(troupe.pending.iterdeps())


def test_the_graph_of_a_result_has_nodes_and_edges(troupe: Troupe) -> None:
    parent, good = troupe.parent, troupe.good
    assert list(parent.graph.items()) == [(parent, [good]), (good, [])]
    assert (list(parent.build_graph().edges()), parent.graph.topsort()) == ([parent], [good, parent])


def test_forgetting_a_result_forgets_those_before_it(troupe: Troupe) -> None:
    troupe.last.forget()
    assert (troupe.last.exists(), troupe.last.parent.exists()) == (False, False)


def test_a_result_revokes_its_call(troupe: Troupe) -> None:
    result = troupe.stage.app.tasks["add"].delay(1)
    result.revoke(terminate=True, signal="KILL", wait=True, timeout=1)
    troupe.stage.work()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)


def test_results_are_made_from_tuples_and_pickles(troupe: Troupe) -> None:
    many = troupe.stage.app.GroupResult("group", [troupe.good], troupe.last)
    assert result_from_tuple(many.as_tuple(), troupe.stage.app) == many
    assert pickle.loads(pickle.dumps(many)) == many


# -- sets --------------------------------------------------------------------------------------


def changed(troupe: Troupe) -> list[list[Any]]:
    good, bad, parent = troupe.good, troupe.bad, troupe.parent
    many = troupe.set("good")
    states = []
    for change in (
        lambda: many.add(bad), lambda: many.add(good), lambda: many.update([parent, bad]),
        lambda: many.remove(bad.id), lambda: many.discard("nobody"), lambda: many.discard(good), many.clear,
    ):  # fmt: skip
        change()
        states.append(list(many))
    return states


def joined(way: str) -> Callable[[Troupe], bool]:
    def check(troupe: Troupe) -> bool:
        calls: list[Any] = []
        values = getattr(troupe.set("parent", "good"), way)(
            timeout=5, callback=lambda *call: calls.append(call)
        )
        wanted = [(troupe.parent.id, "called"), (troupe.good.id, 5)]
        return bool(values == ["called", 5] and calls == wanted)

    return check


def states_of(many: ResultSet) -> tuple[bool, ...]:
    return many.ready(), many.waiting(), many.successful(), many.failed()


SETS: dict[str, Callable[[Troupe], bool]] = {
    "add, remove, discard, update, clear": lambda t: (
        changed(t)
        == [[t.good, t.bad], [t.good, t.bad], [t.good, t.bad, t.parent], [t.good, t.parent], [t.good, t.parent],
            [t.parent], []]
    ),
    "remove of what is not there": lambda t: raised(lambda: t.set("good").remove("nobody")) == "KeyError: 'nobody'",
    "iteration, len, indexing, bool": lambda t: (
        list(t.set("good")) == [t.good] and len(t.set("good", "bad")) == 2 and t.set("good")[0] is t.good
        and not t.set()
    ),
    "ready, waiting, successful, failed": lambda t: (
        [states_of(t.set(*names)) for names in (["good"], ["good", "bad"], ["good", "pending"])]
        == [(True, False, True, False), (True, False, False, True), (False, True, False, False)]
    ),
    "completed_count": lambda t: t.set("good", "bad", "pending", "parent").completed_count() == 2,
    "maybe_throw, maybe_reraise of a set": lambda t: (
        raised(t.set("good", "bad").maybe_throw) == raised(t.set("bad").maybe_reraise) == "ValueError: bad"
        and t.set("good", "pending").maybe_throw() is None
    ),
    "get of a set": joined("get"),
    "join": joined("join"),
    "join_native": joined("join_native"),
    "propagate of a set": lambda t: (
        raised(t.set("good", "bad").get) == "ValueError: bad"
        and [str(value) for value in t.set("good", "bad").get(propagate=False)] == ["5", "bad"]
    ),
    "timeout of a set": lambda t: raised(lambda: t.set("pending").join(timeout=0.01)).startswith("TimeoutError"),
    "iter_native": lambda t: (
        [(id, meta["status"]) for id, meta in t.set("good", "bad").iter_native()]
        == [(t.good.id, "SUCCESS"), (t.bad.id, "FAILURE")]
    ),
    "an empty set": lambda t: t.set().get() == [] and states_of(t.set()) == (True, False, True, False),
    "groups in a group": lambda t: (
        t.stage.app.GroupResult("outer", [t.parent, t.group("good")]).get() == ["called", [5]]
    ),
}  # fmt: skip


@each(SETS)
def test_a_set_of_results_answers_as_celerys_does(troupe: Troupe, case: Callable[[Troupe], bool]) -> None:
    assert case(troupe)


def test_then_of_a_set_calls_back_when_all_are_there(troupe: Troupe) -> None:
    called: list[Any] = []
    many = troupe.set("good", "parent")
    many.add(later := troupe.stage.app.tasks["add"].delay(1))
    many.then(called.append)
    assert called == []
    troupe.stage.work()
    wait_until(lambda: called)
    assert called[0] is many and later.ready()


def test_forgetting_a_set_forgets_each(troupe: Troupe) -> None:
    troupe.set("good", "bad").forget()
    assert (troupe.good.exists(), troupe.bad.exists(), troupe.parent.exists()) == (False, False, True)


def test_revoking_a_set_revokes_each(troupe: Troupe) -> None:
    many = troupe.stage.app.ResultSet(troupe.stage.app.tasks["add"].delay(n) for n in range(2))
    many.revoke()
    troupe.stage.work()
    assert [one.state for one in many] == ["REVOKED", "REVOKED"]


# -- groups ------------------------------------------------------------------------------------


def test_a_group_has_an_id_its_parent_and_its_children(troupe: Troupe) -> None:
    many = troupe.stage.app.GroupResult("group", [troupe.good], parent=troupe.bad)
    assert (many.id, many.parent, many.children, many.results) == (
        "group",
        troupe.bad,
        [troupe.good],
        [troupe.good],
    )
    assert (str(many), repr(many)) == ("group", f"<GroupResult: group [{troupe.good.id}]>")


def test_a_group_is_saved_restored_and_deleted(troupe: Troupe) -> None:
    app = troupe.stage.app
    many = troupe.group("good", "parent")
    assert many.save() is many
    found = app.GroupResult.restore("group")
    assert found == many and found.get() == [5, "called"]
    found.delete()
    assert app.GroupResult.restore("group") is None


def test_without_a_result_store_no_group_is_saved(stage: Stage) -> None:
    stage.app.close()
    stage.app.conf.result_backend = None
    with pytest.raises(ImproperlyConfigured, match="no result backend is configured"):
        stage.app.GroupResult("group", []).save()


def test_the_result_of_a_sent_group_is_one(troupe: Troupe) -> None:
    add = troupe.stage.app.tasks["add"]
    found = group([add.s(1), add.s(2)]).delay()
    troupe.stage.work()
    assert isinstance(found, GroupResult)
    assert (found.get(timeout=5), found.completed_count(), found.successful()) == ([2, 3], 2, True)


# -- eager results -----------------------------------------------------------------------------


def eager(troupe: Troupe, name: str) -> EagerResult[Any]:
    found: EagerResult[Any] = troupe.stage.app.tasks[name].apply((1,))
    return found


def revoked(result: EagerResult[Any]) -> EagerResult[Any]:
    result.revoke()
    return result


EAGER: dict[str, Callable[[Troupe], bool]] = {
    "EagerResult.ready": lambda t: eager(t, "add").ready() and EagerResult("id", None, "RETRY").ready(),
    "EagerResult.get": lambda t: eager(t, "add").get() == 2 and raised(eager(t, "fail").get) == "ValueError: bad",
    "EagerResult.get(propagate=False)": lambda t: str(eager(t, "fail").get(propagate=False)) == "bad",
    "EagerResult.children": lambda t: eager(t, "add").children is None,
    "EagerResult.forget": lambda t: eager(t, "add").forget() is None,
    "EagerResult.supports_native_join": lambda t: not eager(t, "add").supports_native_join,
    "EagerResult.as_tuple": lambda t: EagerResult("id", 5, "SUCCESS").as_tuple() == (("id", None), None),
}  # fmt: skip


@each(EAGER)
def test_an_eager_result_answers_as_celerys_does(troupe: Troupe, case: Callable[[Troupe], bool]) -> None:
    assert case(troupe)


def test_a_revoked_eager_result_is_revoked_from_then_on(troupe: Troupe) -> None:
    result = revoked(eager(troupe, "add"))
    assert (result.state, result.ready()) == ("REVOKED", True)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get()


def test_an_eager_result_inside_of_a_task_is_there(troupe: Troupe) -> None:
    with denied_join_result():
        assert eager(troupe, "add").get() == 2


def test_an_eager_result_exists(troupe: Troupe) -> None:
    assert eager(troupe, "add").exists()
