"""Results of single calls: what they know, how they are waited for, what follows from them."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import os
import pickle
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from minicelery import Celery, callbacks, hearing
from minicelery.exceptions import ImproperlyConfigured, IncompleteStream, TaskRevokedError, TimeoutError
from minicelery.groups import GroupResult, ResultSet
from minicelery.result import (
    AsyncResult,
    EagerResult,
    allow_join_result,
    assert_will_not_block,
    denied_join_result,
    result_from_tuple,
)
from tests.servers import RedisServer
from tests.unit.answering import Site, opened, soon
from tests.waiting import wait_until


@pytest.fixture(params=["memory", "sqlite", "redis", "rpc"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, request.param)


@pytest.fixture(params=["memory", "redis"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, request.param)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, "memory")


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, "redis")


def calling() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "minicelery-callbacks"]


# -- what is known -------------------------------------------------------------------------


def test_a_result_is_known_once_anything_is_stored_of_it(anywhere: Site) -> None:
    result = anywhere.result()
    assert (result.known, result.exists(), result.state) == (False, False, "PENDING")
    anywhere.answer(result, state="STARTED")
    wait_until(lambda: result.known)
    assert (result.exists(), result.state, result.children) == (True, "STARTED", [])
    anywhere.answer(result)
    wait_until(result.ready)
    assert (result.known, result.exists()) == (True, True)


def test_a_forgotten_result_is_unknown_again(site: Site) -> None:
    result = site.result()
    site.answer(result)
    assert result.get(timeout=20) == 4
    result.forget()
    assert (result.known, result.state) == (False, "PENDING")


def test_forgetting_a_result_forgets_the_steps_before_it(memory: Site) -> None:
    first, member = memory.result(), memory.result()
    group = GroupResult("group", [member], parent=first, app=memory.app)
    last = memory.result(parent=group)
    for result in (first, member, last):
        memory.answer(result)
    assert last.get(timeout=20) == 4
    last.forget()
    assert [result.known for result in (first, member, last)] == [False, False, False]


def test_an_id_that_this_process_has_not_sent_is_no_question_for_rpc(rabbit_url: str) -> None:
    with (
        Celery("asks", broker=rabbit_url, backend="rpc://", set_as_current=False) as app,
        pytest.raises(ImproperlyConfigured, match="was not asked for by this process"),
    ):
        _ = app.AsyncResult("foreign").known


def test_an_ignored_result_is_none_at_once_and_may_be_asked_for_after_all(memory: Site) -> None:
    result = memory.result()
    memory.answer(result, 5)
    result.ignored = True
    assert (result.get(), result.ready(), result.state) == (None, False, "PENDING")
    result.ignored = False
    assert result.get(timeout=20) == 5


# -- earlier steps ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_awaited", [False, True], ids=["get", "aget"])
def test_what_an_earlier_step_failed_with_is_raised_first(anywhere: Site, is_awaited: bool) -> None:
    first = anywhere.result()
    second = anywhere.result(parent=first)
    third = anywhere.result(parent=second)

    def ask(**options: Any) -> Any:
        return (
            asyncio.run(third.aget(timeout=20, **options)) if is_awaited else third.get(timeout=20, **options)
        )

    def end() -> None:
        anywhere.fail(first, ValueError("first"))
        anywhere.fail(second, ValueError("second"))
        anywhere.fail(third, KeyError("third"))

    soon(end)
    with pytest.raises(ValueError, match="first"):
        ask()
    with pytest.raises(KeyError, match="third"):
        ask(follow_parents=False)
    assert isinstance(ask(propagate=False), KeyError)


def test_a_member_of_the_header_is_raised_and_not_the_chord_error(redis: Site) -> None:
    good, bad = redis.result(), redis.result()
    body = redis.result(parent=GroupResult("header", [good, bad], app=redis.app))
    soon(
        lambda: [
            redis.answer(good),
            redis.fail(bad, ValueError("of a part")),
            redis.fail(body, OSError("chord")),
        ]
    )
    with pytest.raises(ValueError, match="of a part"):
        body.get(timeout=20)
    with pytest.raises(OSError, match="chord"):
        body.get(timeout=20, follow_parents=False)


@pytest.mark.parametrize("is_awaited", [False, True], ids=["get", "aget"])
def test_a_step_that_fails_while_a_later_one_is_waited_for_is_noticed(
    memory: Site, monkeypatch: pytest.MonkeyPatch, is_awaited: bool
) -> None:
    monkeypatch.setattr("minicelery.result.NET", 0.05)
    first = memory.result()
    last = memory.result(parent=first)
    soon(lambda: memory.fail(first, ValueError("meanwhile")))
    with pytest.raises(ValueError, match="meanwhile"):
        asyncio.run(last.aget(timeout=20)) if is_awaited else last.get(timeout=20)


def test_all_earlier_steps_are_asked_for_in_one_trip(private_redis: RedisServer) -> None:
    with Celery("asks", broker=private_redis.url(), backend=private_redis.url(), set_as_current=False) as app:
        site = Site(app, app)
        result = site.result()
        site.answer(result)
        for _ in range(50):
            result = site.result(parent=result)
            site.answer(result)
        before = reads(private_redis)
        assert result.get(timeout=20) == 4
        assert reads(private_redis) - before == 2


def reads(server: RedisServer) -> int:
    found = server.command("INFO", "commandstats").decode()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in found.split() if "cmdstat_mget" in line)


def test_an_outage_while_waiting_for_a_later_step_is_outlived(private_redis: RedisServer) -> None:
    url = private_redis.url()
    with Celery("asks", broker=url, backend=url, set_as_current=False) as app:
        site = Site(app, app)
        last = site.result(parent=site.result())
        assert not last.ready()
        private_redis.kill()
        soon(lambda: [private_redis.restart(), site.answer(last, 7)], 0.3)
        assert last.get(timeout=20) == 7


# -- callbacks of get ------------------------------------------------------------------------


def test_on_interval_is_called_while_nothing_happens_and_on_message_with_each_document(site: Site) -> None:
    result = site.result()
    ticks: list[float] = []
    states: list[str] = []

    def tick() -> None:
        ticks.append(time.monotonic() - began)
        if len(ticks) == 2:
            site.answer(result, {"done": 1}, state="PROGRESS")
        if len(ticks) == 4:
            site.answer(result)

    began = time.monotonic()
    value = result.get(
        timeout=20, interval=0.03, on_interval=tick, on_message=lambda meta: states.append(meta["status"])
    )
    assert (value, states) == (4, ["PROGRESS", "SUCCESS"])
    assert len(ticks) >= 4
    assert all(at >= 0.03 * number - 0.005 for number, at in enumerate(ticks, start=1))


def test_what_on_interval_raises_ends_the_wait(memory: Site) -> None:
    def stop() -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        memory.result().get(timeout=20, interval=0.01, on_interval=stop)


# -- then ------------------------------------------------------------------------------------


def test_a_callback_is_called_once_when_the_result_comes(
    anywhere: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "LINGER", 0.05)
    called: list[tuple[Any, str]] = []
    result = anywhere.result()
    assert result.then(lambda one: called.append((one, threading.current_thread().name))) is result
    anywhere.answer(result, state="STARTED")
    anywhere.answer(result, 6)
    assert result.get(timeout=20) == 6
    wait_until(lambda: called)
    assert called == [(result, "minicelery-callbacks")]
    assert called[0][0] is result and called[0][0].result == 6
    wait_until(lambda: not calling())
    assert len(called) == 1


def test_a_callback_of_a_result_that_was_stored_before_is_called(anywhere: Site) -> None:
    called: list[Any] = []
    result = anywhere.result()
    anywhere.answer(result)
    result.then(called.append)
    wait_until(lambda: called == [result])


def test_a_callback_of_a_known_result_is_called_here_and_now(memory: Site) -> None:
    result = memory.result()
    memory.answer(result)
    result.get(timeout=20)
    called: list[tuple[Any, threading.Thread]] = []
    result.then(lambda one: called.append((one, threading.current_thread())))
    assert called == [(result, threading.current_thread())]
    with pytest.raises(KeyError, match="mine"):
        result.then(lambda one: raise_(KeyError("mine")))


def test_a_failure_goes_to_the_callback_or_to_on_error_where_there_is_one(site: Site) -> None:
    called: list[Any] = []
    errors: list[BaseException] = []
    result = site.result()
    result.then(called.append)
    result.then(called.append, on_error=errors.append)
    site.fail(result, ValueError("bad"))
    wait_until(lambda: errors and called)
    assert (called, [(type(error), str(error)) for error in errors]) == ([result], [(ValueError, "bad")])
    assert called[0].failed()


def test_a_callback_that_raises_is_logged_and_the_next_is_called(
    memory: Site, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Any] = []
    first, second = memory.result(), memory.result()
    first.then(lambda one: raise_(KeyError("a fault of its own")))
    second.then(called.append)
    memory.answer(first)
    memory.answer(second)
    wait_until(lambda: called == [second])
    assert "a fault of its own" in caplog.text


def test_a_weak_callback_goes_with_its_result(memory: Site) -> None:
    called: list[str] = []
    kept, dropped, held = memory.result("kept"), memory.result("dropped"), memory.result("held")
    kept.then(lambda one: called.append(one.id), weak=True)
    dropped.then(lambda one: called.append(one.id), weak=True)
    held.then(lambda one: called.append(one.id))
    records = [memory.record(one) for one in (dropped, held, kept)]
    del dropped, held
    gc.collect()
    memory.store(records)
    wait_until(lambda: len(called) >= 2)
    assert sorted(called) == ["held", "kept"]


def test_a_result_that_can_not_be_read_is_an_error_of_then(memory: Site) -> None:
    errors: list[BaseException] = []
    result = memory.result()
    result.then(lambda one: None, on_error=errors.append)
    found = memory.record(result)
    found.document = b"no document"
    memory.store([found])
    wait_until(lambda: errors)
    assert "not json" in str(errors[0])


def test_a_callback_outlives_an_outage_and_says_so_once(
    private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hearing, "OUTAGE", 0.05)
    url = private_redis.url()
    called: list[Any] = []
    with Celery("asks", broker=url, backend=url, set_as_current=False) as app:
        site = Site(app, app)
        results = app.ResultSet([site.result(), site.result()])
        results.then(called.append)
        private_redis.kill()
        wait_until(lambda: "are awaited for a callback" in caplog.text)
        private_redis.restart()
        for result in results:
            site.answer(result, 7)
        wait_until(lambda: called)
        assert (called, results.get()) == ([results], [7, 7])
    assert caplog.text.count("are awaited for a callback") == 1


@pytest.mark.parametrize("given", [None, "callback", 5])
def test_then_takes_functions(memory: Site, given: Any) -> None:
    with pytest.raises(TypeError, match=r"callback=.* of then: expected a function"):
        memory.result().then(given)


def test_without_a_result_store_then_says_so() -> None:
    with (
        Celery("app", broker="memory://then", set_as_current=False) as app,
        pytest.raises(ImproperlyConfigured, match="no result backend"),
    ):
        app.AsyncResult("an-id").then(print)


def test_many_callbacks_share_two_threads(redis: Site) -> None:
    called: list[str] = []
    results = [redis.result() for _ in range(500)]
    others = set(threading.enumerate())
    for result in results:
        result.then(lambda one: called.append(one.id))
    redis.store([redis.record(result) for result in results[:1]])
    wait_until(lambda: called)
    assert len(set(threading.enumerate()) - others) <= 2
    redis.store([redis.record(result) for result in results])
    wait_until(lambda: len(called) == 500)
    assert sorted(called) == sorted(result.id for result in results)


def test_a_forked_child_calls_back_on_its_own(redis: Site) -> None:
    before = redis.result()
    called: list[Any] = []
    before.then(called.append)
    own = redis.result()
    redis.answer(own, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
        child = os.fork()
    if child == 0:
        try:
            own.then(lambda one: called.append(one.result))
            wait_until(lambda: called, timeout=20)
            os._exit(0 if called == [3] else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    redis.answer(before)
    wait_until(lambda: called == [before])


def raise_(error: Exception) -> None:
    raise error


# -- what follows ----------------------------------------------------------------------------


def family(site: Site) -> dict[str, Any]:
    """`root` has sent `a`, and a group of `b` and `c`; `c` has sent `d`."""
    found = {name: site.result() for name in ("root", "a", "b", "c", "d")}
    found["group"] = GroupResult("the group", [found["b"], found["c"]], app=site.app)
    site.answer(found["d"], "d's")
    site.answer(found["c"], "c's", found["d"])
    site.answer(found["b"], "b's")
    site.answer(found["a"], "a's")
    site.answer(found["root"], "root's", found["a"], found["group"])
    for name in ("root", "a", "b", "c", "d"):
        wait_until(found[name].ready)
    return found


def test_children_are_results_and_groups(anywhere: Site) -> None:
    found = family(anywhere)
    [child, group] = found["root"].children
    assert (child, group) == (found["a"], found["group"])
    assert isinstance(group, GroupResult) and group.get(timeout=20) == ["b's", "c's"]
    assert found["a"].children == []


def test_iterdeps_goes_over_what_follows(memory: Site) -> None:
    found = family(memory)
    root, a, group, b, c, d = (found[name] for name in ("root", "a", "group", "b", "c", "d"))
    pairs = [(None, root), (root, a), (root, group), (group, b), (group, c), (c, d)]
    assert list(root.iterdeps()) == pairs


def test_iterdeps_stops_at_what_is_not_done_unless_told_to_go_on(memory: Site) -> None:
    root, done, pending, of_done = (memory.result() for _ in range(4))
    memory.answer(of_done)
    memory.answer(done, 1, of_done)
    memory.answer(root, 1, pending, done)
    with pytest.raises(IncompleteStream, match=f"task {pending.id} is not done"):
        list(root.iterdeps())
    pairs = [(None, root), (root, pending), (root, done), (done, of_done)]
    assert list(root.iterdeps(intermediate=True)) == pairs


def test_collect_waits_for_each(memory: Site) -> None:
    root, child = memory.result(), memory.result()
    soon(lambda: [memory.answer(root, "first", child), time.sleep(0.1), memory.answer(child, "second")])
    assert list(root.collect(timeout=20)) == [(root, "first"), (child, "second")]
    assert root.get_leaf() == "second"


def test_collect_passes_its_options_to_get(memory: Site) -> None:
    root, child = memory.result(), memory.result()
    memory.answer(root, 1, child)
    with pytest.raises(TimeoutError):
        list(root.collect(timeout=0.05))
    memory.fail(child, ValueError("bad"))
    with pytest.raises(ValueError, match="bad"):
        list(root.collect(timeout=20))
    [(_, value), (_, error)] = root.collect(timeout=20, propagate=False)
    assert (value, str(error)) == (1, "bad")


def test_the_graph_knows_who_sent_whom(memory: Site) -> None:
    found = family(memory)
    root, a, group, b, c, d = (found[name] for name in ("root", "a", "group", "b", "c", "d"))
    graph = root.graph
    assert graph is root.graph
    assert list(graph) == [root, a, group, b, c, d]
    assert dict(graph.items()) == {root: [a, group], a: [], group: [b, c], b: [], c: [d], d: []}
    assert (graph[group], len(graph), d in graph, "x" in graph) == ([b, c], 6, True, False)
    assert graph.edges() == [root, group, c]
    assert (graph.valency_of(root), graph.valency_of(c)) == (5, 1)
    order = graph.topsort()
    assert sorted(map(str, order)) == sorted(map(str, graph))
    assert all(order.index(child) < order.index(node) for node in graph for child in graph[node])


def test_the_graph_is_written_for_graphviz_mermaid_and_browsers(memory: Site) -> None:
    found = family(memory)
    graph = found["root"].build_graph()
    out = io.StringIO()
    graph.to_dot(out)
    assert f'    "{found["c"].id}" -> "{found["d"].id}"\n' in out.getvalue()
    assert out.getvalue().startswith("digraph dependencies {\n")
    assert "flowchart" in graph.mermaid() and graph.svg().lstrip().startswith("<svg")


def test_a_graph_of_what_is_not_done_is_refused_unless_it_is_asked_for(memory: Site) -> None:
    root, child = memory.result(), memory.result()
    memory.answer(root, 1, child)
    with pytest.raises(IncompleteStream):
        _ = root.graph
    assert list(root.build_graph(intermediate=True)) == [root, child]
    with pytest.raises(TypeError, match="no formatter="):
        root.build_graph(formatter=object())  # type: ignore[arg-type]


# -- inside of a task ------------------------------------------------------------------------


def test_waiting_can_be_denied_and_allowed_anywhere(memory: Site) -> None:
    result = memory.result()
    memory.answer(result)
    with denied_join_result():
        with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task"):
            result.get(timeout=20)
        with pytest.raises(RuntimeError):
            assert_will_not_block()
        assert result.get(timeout=20, disable_sync_subtasks=False) == 4
        with allow_join_result():
            assert result.get(timeout=20) == 4
    assert_will_not_block()


# -- as values -------------------------------------------------------------------------------


def test_a_result_survives_tuple_copy_and_pickle(memory: Site) -> None:
    result = memory.result("last", parent=GroupResult("group", [memory.result("a")], memory.result("first")))
    as_tuple = (("last", (("group", (("first", None), None)), [(("a", None), None)])), None)
    assert result.as_tuple() == as_tuple
    assert result.as_list() == ["last", "a", "group", "first"]
    for again in (
        result_from_tuple(as_tuple, memory.app),
        copy.copy(result),
        pickle.loads(pickle.dumps(result)),
    ):
        assert again == result and again.as_tuple() == as_tuple
    assert copy.copy(result).app is memory.app
    assert result_from_tuple(result) is result


def test_the_tuple_of_a_very_long_chain_is_made_and_read(memory: Site) -> None:
    result = memory.result("0")
    for number in range(1, 5000):
        result = memory.result(str(number), parent=result)
    again = result_from_tuple(result.as_tuple(), memory.app)
    assert again.as_list() == result.as_list() == [str(number) for number in range(4999, -1, -1)]


def test_throw_raises_what_it_is_given(memory: Site) -> None:
    with pytest.raises(KeyError, match="given"):
        memory.result().throw(KeyError("given"))


def test_result_classes_are_found_where_celery_has_them() -> None:
    from minicelery import result

    assert (result.ResultSet, result.GroupResult) == (ResultSet, GroupResult)
    assert issubclass(AsyncResult.TimeoutError, TimeoutError)
    with pytest.raises(AttributeError, match="Nothing"):
        _ = result.Nothing


# -- eager results ---------------------------------------------------------------------------


def test_an_eager_result_is_ready_whatever_its_state() -> None:
    result: EagerResult[int] = EagerResult("an-id", 5, "RETRY")
    assert (result.ready(), result.exists(), result.known, result.children) == (True, True, True, None)
    assert EagerResult("an-id", 5, "SUCCESS").get() == 5
    result.forget()
    assert result.result == 5


def test_an_eager_failure_is_raised_by_get_or_returned() -> None:
    error = ValueError("bad")
    result: EagerResult[int] = EagerResult("an-id", error, "FAILURE", "the traceback", "a.task")
    for ask in (result.get, result.wait, result.maybe_throw, result.maybe_reraise):
        with pytest.raises(ValueError, match="bad"):
            ask()
    assert result.get(propagate=False) is error
    assert (result.failed(), result.traceback, result.name) == (True, "the traceback", "a.task")


def test_a_revoked_eager_result_raises_so() -> None:
    result: EagerResult[int] = EagerResult("an-id", 5, "SUCCESS")
    result.revoke(terminate=True)
    assert (result.state, result.ready(), result.successful()) == ("REVOKED", True, False)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get()


def test_an_eager_result_calls_back_at_once_and_is_a_value(memory: Site) -> None:
    called: list[Any] = []
    errors: list[BaseException] = []
    result: EagerResult[int] = EagerResult("an-id", 5, "SUCCESS", name="a.task")
    result.then(called.append)
    EagerResult("another", ValueError("bad"), "FAILURE").then(called.append, on_error=errors.append)
    assert (called, [str(error) for error in errors]) == ([result], ["bad"])
    for again in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert (again.get(), again.state, again.name) == (5, "SUCCESS", "a.task")
    assert (result.as_tuple(), result.as_list()) == ((("an-id", None), None), ["an-id"])
    assert list(result.collect()) == [(result, 5)]


def test_an_eager_result_may_be_asked_for_inside_of_a_task() -> None:
    with denied_join_result():
        assert EagerResult("an-id", 5, "SUCCESS").get() == 5
