"""Results as real Celery has them: the same script with both, on the same store."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from minicelery import _state
from tests.interop.pair import _leave_results_alone, close_connections
from tests.servers import RedisServer

pytest.importorskip("celery", reason="real Celery is the oracle")

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")  # Celery's of redis

LIBRARIES = ("celery", "minicelery")
NEVER = "Never call result.get() within a task"


class Library(NamedTuple):
    """One of the two, with an app."""

    app: Any
    result: ModuleType
    canvas: ModuleType

    def calls(self, *ids: str) -> list[Any]:
        return [self.app.AsyncResult(id) for id in ids]

    def group(self, id: str, results: list[Any], parent: Any = None) -> Any:
        return self.app.GroupResult(id, results, parent=parent)


class Both(NamedTuple):
    """The two on one Redis."""

    celery: Library
    mini: Library
    server: RedisServer

    def agree(self, script: Callable[[Library], Any]) -> Any:
        """What the script has with either."""
        theirs, ours = plain(script(self.celery)), plain(script(self.mini))
        assert ours == theirs
        return ours

    def store(self, id: str, value: Any, state: str = "SUCCESS", children: tuple[Any, ...] = ()) -> None:
        """Store a result, by Celery."""
        request = importlib.import_module("celery.app.task").Context(id=id)
        request._children = list(children)
        self.celery.app.backend.store_result(id, value, state, request=request)


@pytest.fixture
def both(redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    yield from opened(redis_server, redis_url, monkeypatch)


def opened(server: RedisServer, url: str, monkeypatch: pytest.MonkeyPatch, **conf: Any) -> Iterator[Both]:
    monkeypatch.setattr(_state, "shared", [])
    _leave_results_alone()
    libraries = []
    for name in LIBRARIES:
        module = importlib.import_module(name)
        app = module.Celery("oracle", broker=url, backend=url, set_as_current=False, **conf)
        libraries.append(Library(app, importlib.import_module(f"{name}.result"), module))
    yield Both(libraries[0], libraries[1], server)
    libraries[1].app.close()
    libraries[0].app.backend.result_consumer.stop()
    libraries[0].app.backend.client.connection_pool.disconnect()
    close_connections(libraries[0].app)


def plain(value: Any) -> Any:
    """What can be compared across the libraries: results become ids, exceptions their class and text."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key != "date_done"}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, BaseException):
        return [type(value).__name__, str(value)]
    return value if value is None or isinstance(value, (bool, int, float, str, bytes)) else str(value)


def outcome(ask: Callable[[], Any]) -> Any:
    """What it returns, or the exception it raises."""
    try:
        return ask()
    except Exception as error:
        return error


def structure(library: Library) -> Any:
    """A group with a parent, of a call, a call of a chain, and a group."""
    first, a, b, before, c = library.calls("first", "a", "b", "before", "c")
    b.parent = before
    return library.group("outer", [a, b, library.group("inner", [c])], first)


# -- documents -------------------------------------------------------------------------------


def test_results_refer_to_each_other_in_celerys_form(both: Both) -> None:
    both.agree(lambda library: structure(library).as_tuple())
    both.agree(lambda library: [one.as_tuple() for one in structure(library).results])
    both.agree(lambda library: structure(library).results[1].as_list())
    both.agree(lambda library: repr(structure(library)))
    both.agree(
        lambda library: library.result.result_from_tuple(
            json.loads(json.dumps(structure(library).as_tuple())), library.app
        ).as_tuple()
    )


def test_a_saved_group_is_the_same_document(both: Both) -> None:
    documents = []
    for library in (both.celery, both.mini):
        structure(library).save()
        documents.append(both.server.command("GET", "celery-taskset-meta-outer"))
        assert 86000 < int(both.server.command("TTL", "celery-taskset-meta-outer").strip(b":\r\n")) <= 86400
        structure(library).delete()
        assert both.server.command("EXISTS", "celery-taskset-meta-outer") == b":0\r\n"
    assert documents[0] == documents[1]
    assert b'{"result": [["outer", [["first", null], null]], [[["a", null], null], ' in documents[1]


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"result_compression": "gzip"},
        {"result_serializer": "pickle", "result_accept_content": ["pickle"]},
        {"result_serializer": "msgpack", "result_accept_content": ["msgpack"], "result_compression": "zlib"},
        {"result_backend_transport_options": {"global_keyprefix": "mine"}},
    ],
    ids=["json", "gzip", "pickle", "msgpack zlib", "prefix"],
)
def test_a_group_that_one_has_saved_is_restored_by_the_other(
    redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch, conf: dict[str, Any]
) -> None:
    for both in opened(redis_server, redis_url, monkeypatch, **conf):
        for saves, restores in ((both.celery, both.mini), (both.mini, both.celery)):
            structure(saves).save()
            found = restores.app.GroupResult.restore("outer")
            assert plain(found.as_tuple()) == plain(structure(saves).as_tuple())
            found.delete()
            assert saves.app.GroupResult.restore("outer") is None


def test_children_that_celery_has_stored_are_the_same_here(both: Both) -> None:
    both.store("leaf", "of b")
    both.store("b", 2, children=tuple(both.celery.calls("leaf")))
    both.store("a", 1)
    root, a, b = both.celery.calls("root", "a", "b")
    a.parent = root
    both.store("root", 0, children=(a, both.celery.group("group", [b])))
    root_of = lambda library: library.app.AsyncResult("root")  # noqa: E731
    both.agree(lambda library: root_of(library).children)
    both.agree(lambda library: [one.parent for one in root_of(library).children])
    both.agree(lambda library: list(root_of(library).iterdeps()))
    assert both.agree(lambda library: list(root_of(library).collect()))[-1] == ["leaf", "of b"]
    assert both.agree(lambda library: root_of(library).get_leaf()) == "of b"
    graph = both.agree(lambda library: list(root_of(library).graph.items()))
    assert graph == [["root", ["a", "group"]], ["a", []], ["group", ["b"]], ["b", ["leaf"]], ["leaf", []]]
    both.agree(lambda library: list(root_of(library).graph.edges()))
    both.agree(lambda library: [root_of(library).graph.valency_of(one) for one in root_of(library).graph])


def test_what_is_not_done_ends_iterdeps_or_not(both: Both) -> None:
    both.store("root", 0, children=tuple(both.celery.calls("pending")))
    for intermediate in (False, True):
        both.agree(
            lambda library, on=intermediate: (
                type(
                    outcome(lambda: list(library.app.AsyncResult("root").iterdeps(intermediate=on)))
                ).__name__
            )
        )


# -- results -----------------------------------------------------------------------------------


def ask_a_result(library: Library) -> Any:
    app = library.app
    heard: list[Any] = []
    answers = [
        [app.AsyncResult(id).exists(), app.AsyncResult(id).state, app.AsyncResult(id).ready()]
        for id in ("good", "bad", "revoked", "began", "unknown")
    ]
    answers += [
        outcome(lambda: app.AsyncResult("good").get(callback=lambda *call: heard.append(call))),
        outcome(lambda: app.AsyncResult("bad").get(callback=lambda *call: heard.append(call))),
        outcome(lambda: app.AsyncResult("bad").get(propagate=False)),
        outcome(lambda: app.AsyncResult("revoked").get()),
        outcome(lambda: app.AsyncResult("unknown").maybe_throw()),
        outcome(lambda: app.AsyncResult("began").maybe_throw()),
        outcome(lambda: app.AsyncResult("bad").maybe_reraise()),
        outcome(lambda: app.AsyncResult("good").throw(KeyError("given"))),
        [
            app.AsyncResult("began").children,
            app.AsyncResult("began").result,
            app.AsyncResult("unknown").children,
        ],
        type(outcome(lambda: app.AsyncResult("unknown").get(timeout=0.01))).__name__,
        type(outcome(lambda: app.AsyncResult(None))).__name__,
        app.AsyncResult("good") == "good",
        app.AsyncResult("good") == app.AsyncResult("good"),
        hash(app.AsyncResult("good")) == hash("good"),
    ]
    later = app.AsyncResult("good", parent=app.AsyncResult("bad"))
    answers += [outcome(lambda: later.get()), outcome(lambda: later.get(follow_parents=False))]
    answers += [later.parent, later.get(propagate=False)]
    ignored = app.AsyncResult("unknown")
    ignored.ignored = True
    return [*answers, [ignored.get(), ignored.ready(), ignored.state], heard]


def test_a_result_answers_as_celerys_does(both: Both) -> None:
    errors = importlib.import_module("celery.exceptions")
    both.store("good", {"a": [1, None]})
    both.store("bad", ValueError("bad", 1), "FAILURE")
    both.store("revoked", errors.TaskRevokedError("revoked"), "REVOKED")
    both.store("began", {"pid": 1}, "STARTED")
    both.agree(ask_a_result)


def test_forgetting_a_result_forgets_its_parents_as_in_celery(both: Both) -> None:
    def script(library: Library) -> Any:
        for id in ("first", "second"):
            both.store(id, 1)
        library.app.AsyncResult("second", parent=library.app.AsyncResult("first")).forget()
        return [library.app.AsyncResult(id).exists() for id in ("first", "second")]

    assert both.agree(script) == [False, False]


# -- sets --------------------------------------------------------------------------------------


def ask_a_set(library: Library) -> Any:
    app = library.app
    answers: list[Any] = []
    for ids in (["a", "b"], ["a", "bad", "b"], ["a", "unknown"], []):
        results = app.ResultSet(library.calls(*ids))
        answers.append([results.ready(), results.waiting(), results.successful(), results.failed()])
        answers.append([results.completed_count(), len(results), bool(results), repr(results)])
        if "unknown" not in ids:
            heard: list[Any] = []
            answers.append(outcome(results.get))
            answers.append(outcome(lambda results=results: results.get(propagate=False)))
            answers.append(outcome(results.join))
            answers.append(outcome(results.maybe_throw))
            results.join(propagate=False, callback=lambda *call, heard=heard: heard.append(call))
            answers.append(heard)
            answers.append(sorted(results.iter_native(), key=str) if ids else [])
    results = app.ResultSet(library.calls("a", "b"))
    results.add(app.AsyncResult("a"))
    results.add(app.AsyncResult("c"))
    results.update(library.calls("b", "d"))
    results.remove("a")
    results.discard("nobody")
    answers.append(
        [list(results), results[0], app.AsyncResult("b") in results, app.AsyncResult("a") in results]
    )
    answers.append([type(outcome(lambda: results.remove("nobody"))).__name__])
    answers.append(results == app.ResultSet(library.calls("b", "c", "d")))
    results.clear()
    return [*answers, list(results)]


def test_a_set_answers_as_celerys_does(both: Both) -> None:
    for id in ("a", "b", "c", "d"):
        both.store(id, f"{id}'s")
    both.store("bad", ValueError("bad"), "FAILURE")
    both.agree(ask_a_set)


def test_groups_in_a_group_answer_as_celerys_do(both: Both) -> None:
    for id in ("a", "b", "before", "c", "first"):
        both.store(id, f"{id}'s")

    def script(library: Library) -> Any:
        group = structure(library)
        found = [
            group.get(),
            group.join(),
            group.completed_count(),
            group.children,
            group.parent,
            group == group,
        ]
        return [*found, [id for id, _ in group.iter_native()], [meta for _, meta in group.iter_native()][-1]]

    assert both.agree(script)[0] == ["a's", "b's", ["c's"]]


def test_denied_waits_are_denied_with_celerys_words(both: Both) -> None:
    both.store("a", 1)

    def script(library: Library) -> Any:
        group, (one,) = library.group("group", library.calls("a")), library.calls("a")
        ways = (one.get, one.wait, one.get_leaf, group.get, group.join, group.join_native)
        with library.result.denied_join_result():
            refused = [str(outcome(way))[: len(NEVER)] for way in ways]
            with library.result.allow_join_result():
                allowed = [way() for way in ways]
        return refused, allowed

    refused, _ = both.agree(script)
    assert set(refused) == {NEVER}


# -- eager results -----------------------------------------------------------------------------


def run_eagerly(library: Library) -> Any:
    app, canvas = library.app, library.canvas

    @app.task(name="oracle.add", shared=False)
    def add(x: int, y: int = 1) -> int:
        return x + y

    @app.task(name="oracle.fail", shared=False)
    def fail() -> None:
        raise ValueError("bad", 1)

    good, bad = add.apply((1, 2)), fail.apply()
    answers: list[Any] = [
        [
            one.ready(),
            one.successful(),
            one.failed(),
            one.state,
            one.result,
            one.children,
            one.parent,
            one.name,
        ]
        for one in (good, bad)
    ]
    answers += [
        outcome(bad.get),
        bad.get(propagate=False),
        outcome(bad.maybe_throw),
        good.supports_native_join,
    ]
    answers += [
        good.as_list() == [good.id],
        good.as_tuple() == ((good.id, None), None),
        good.task_id == good.id,
    ]
    answers += [good.forget(), good.get(), good.revoke(), good.state, good.ready(), outcome(good.get)]
    answers += [good.get(propagate=False), outcome(good.maybe_throw)]
    answers += [outcome(library.result.EagerResult("id", "text", "FAILURE").get)]
    heard: list[Any] = []
    add.apply((1, 1)).then(lambda one: heard.append(one.get()))
    last = (canvas.chain(add.s(1), add.s(2)) | canvas.group([add.s(1), add.s(2)])).apply()
    answers += [last.get(), last.parent.get(), last.parent.parent.get(), last.ready(), last.successful()]
    return [*answers, heard]


def test_eager_results_answer_as_celerys_do(both: Both) -> None:
    both.agree(run_eagerly)
