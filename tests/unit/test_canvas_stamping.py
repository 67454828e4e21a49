"""Stamps come out as with Celery, where Celery does not mix those of neighbours."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("celery")

from minicelery import Celery, chain, chord, group, signature
from minicelery.canvas import Signature, StampingVisitor
from minicelery.message import new_id
from tests.unit.canvas_oracle import CELERY, OURS, Library


def visitors(library: Library) -> dict[str, Any]:
    """Visitors by name, of the library's own class; `log` holds what each was called with."""
    base: Any = library.names["StampingVisitor"]

    class Plain(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.log: list[Any] = []

        def on_signature(self, sig: Any, **headers: Any) -> Any:
            self.log.append(["signature", sig.task, sorted(headers)])
            return {"task": sig.task}

    class Every(Plain):
        def on_group_start(self, group: Any, **headers: Any) -> Any:
            self.log.append(["group starts", len(group.tasks), sorted(headers)])
            return {"members": len(group.tasks)}

        def on_group_end(self, group: Any, **headers: Any) -> None:
            self.log.append(["group ends", sorted(headers)])

        def on_chain_start(self, chain: Any, **headers: Any) -> Any:
            self.log.append(["chain starts", len(chain.tasks), sorted(headers)])
            return {"links": len(chain.tasks)}

        def on_chain_end(self, chain: Any, **headers: Any) -> None:
            self.log.append(["chain ends", sorted(headers)])

        def on_chord_body(self, sig: Any, **header: Any) -> Any:
            self.log.append(["body", sorted(header)])
            return {"body": True}

        def on_errback(self, errback: Any, **header: Any) -> Any:
            self.log.append(["errback", errback.task, sorted(header)])
            return {"errback": True}

    class Header(Every):
        def on_chord_header_start(self, sig: Any, **header: Any) -> Any:
            self.log.append(["header starts", sorted(header)])
            return {"header": True}

        def on_chord_header_end(self, sig: Any, **header: Any) -> None:
            self.log.append(["header ends", sorted(header)])

    class Some(Plain):
        def on_signature(self, sig: Any, **headers: Any) -> Any:
            return {"stamp": 1, "priority": 3, "stamped_headers": ["stamp"]}

    class Nothing(Plain):
        def on_signature(self, sig: Any, **headers: Any) -> Any:
            return None

    return {kind.__name__: kind for kind in (Plain, Every, Header, Some, Nothing)}


VISITORS = {id(library): visitors(library) for library in (CELERY, OURS)}

STAMPED = {
    "a task": "add.s(1)",
    "a task with stamps": "add.s(1).set(old=5, stamped_headers=['old'])",
    "a task with links": "linked(add.s(1))",
    "a chain": "chain(add.s(1), mul.s(2))",
    "a chain with links": "linked(chain(add.s(1), mul.s(2)))",
    "a group": "group(add.s(1), mul.s(2))",
    "a group with links": "linked(group(add.s(), mul.s()))",
    "a group with stamps": "group(add.s(1).set(old=[5], stamped_headers=['old']), mul.s())",
    "a group of compositions": "group(chain(add.s(), mul.s()), group(add.s(), total.s()))",
    "a chord": "chord([add.s(1), mul.s(2)], total.s())",
    "a chord of chains": "chord([chain(add.s(), mul.s())], chain(total.s(), note.s()))",
    "a chord with links": "linked(chord([add.s(1), mul.s(2)], total.s()))",
    "a chain with a chord in it": "chain(add.s(), group(mul.s(), total.s()), note.s())",
    "a map": "add.map([1])",
}
HEADERS: tuple[dict[str, Any], ...] = (
    {}, {"order": 5}, {"old": 7, "names": ["above"]}, {"order": [1], "stamped_headers": ["order"], "queue": "q"},
)  # fmt: skip


def outcome(library: Library, expression: str, visitor: str, append: bool, headers: dict[str, Any]) -> Any:
    """The stamped signature, and what the visitor saw."""
    made = VISITORS[id(library)][visitor]() if visitor else None
    library.names["stamped"] = lambda sig: (sig.stamp(made, append, **headers), sig)[1]
    return tidy(library(f"stamped({expression})")), made and made.log


def tidy(value: Any) -> Any:
    """Names of stamps in order, without those that Celery has of a neighbour and no value for."""
    if isinstance(value, dict):
        found = {key: tidy(one) for key, one in value.items()}
        if found.get("stamped_headers"):
            found["stamped_headers"] = sorted(name for name in found["stamped_headers"] if name in found)
        if isinstance(header := found.get("header"), dict):  # Celery makes it a group for the visitor
            found["header"] = header["kwargs"]["tasks"]
        return found
    return [tidy(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize(
    ("name", "visitor"),
    [
        (name, visitor)
        for name in STAMPED
        for visitor in ("", "Plain", "Every", "Header", "Some", "Nothing")
        if visitor or "chord" not in name  # without a visitor Celery leaves out the body
    ],
)
def test_stamps_come_out_as_with_celery(name: str, visitor: str, append: bool) -> None:
    for headers in HEADERS:
        given = (STAMPED[name], visitor, append, headers)
        assert outcome(OURS, *given) == outcome(CELERY, *given), headers


@pytest.mark.parametrize("append", [False, True])
def test_stamps_put_on_twice_come_out_as_with_celery(append: bool) -> None:
    for expression in (
        "add.s(1)",
        "group(add.s(1), chain(mul.s(2), total.s()))",
        "chord([add.s()], total.s())",
    ):
        once = f"(lambda one: (stamped(one), one)[1])({expression})"
        given = (once, "Every", append, {"order": 5})
        assert outcome(OURS, *given) == outcome(CELERY, *given)


def sent(library: Library, expression: str) -> Any:
    """The stamps in the headers of the message of an expression's first task, and of its links."""
    app = library.names["app"]
    whole = eval(expression, dict(library.names))
    whole.stamp(order=5, customer=["a", "b"])
    if library is CELERY:
        with app.connection_for_write() as connection, connection.SimpleQueue("celery") as queue:
            queue.clear()  # it is that of all apps in this process
    whole.apply_async()
    if library is OURS:
        [delivery] = app.broker.consumer(["celery"], "reader", None).swap([], 10, 0)
        headers, body = delivery.message.headers, json.loads(delivery.message.body)
    else:
        with app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
            message = queue.get(timeout=5)
            message.ack()
            headers, body = message.headers, message.payload
    links = [link for kind in ("callbacks", "errbacks", "chain") for link in body[2][kind] or ()]
    options = [{key: link["options"][key] for key in ("order", "customer")} for link in links]
    return sorted(headers["stamped_headers"]), headers["stamps"], options


@pytest.mark.parametrize(
    "expression", ["add.s(1)", "linked(add.s(1))", "chain(add.s(1), mul.s(2), total.s())"]
)
def test_messages_carry_stamps_as_celerys_do(expression: str) -> None:
    assert sent(OURS, expression) == sent(CELERY, expression)


# -- where Celery mixes or loses stamps ------------------------------------------------------------


@pytest.fixture
def app() -> Celery:
    app = Celery("stamps", broker=f"memory://{new_id()}", set_as_current=False)
    for name in ("add", "total", "note"):
        app.task(lambda *args: None, name=name, shared=False)
    app.finalize()
    return app


class Named(StampingVisitor):
    """Gives each signature a stamp of its own name."""

    def on_signature(self, sig: Signature[Any], **headers: Any) -> dict[str, Any]:
        return {f"is_{sig.task}": True, "names": [sig.task]}

    def on_callback(self, callback: Signature[Any], **header: Any) -> dict[str, Any]:
        return {"called_with": callback.args}


def test_the_stamps_of_one_link_are_not_on_the_next(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    for whole in (chain(add.s(), total.s()), group(add.s(), total.s()), chord([add.s(), total.s()], add.s())):
        first, then = whole.stamp(Named(), names=["above"]).tasks
        assert (first.options["stamped_headers"], first.options["names"]) == (
            ["names", "is_add"],
            ["above", "add"],
        )
        assert (then.options["stamped_headers"], then.options["names"]) == (
            ["names", "is_total"],
            ["above", "total"],
        )


def test_the_stamps_of_one_callback_are_not_on_the_next(app: Celery) -> None:
    add, note = app.tasks["add"], app.tasks["note"]
    whole = add.s().set(link=[note.s(1), note.s(2)])
    first, then = whole.stamp(Named(), append_stamps=True).options["link"]
    assert (first.options["called_with"], then.options["called_with"]) == ((1,), (2,))


def test_the_body_of_a_chord_is_stamped_without_a_visitor_too(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    whole = chord([add.s()], total.s()).stamp(order=5)
    assert whole.body.options == whole.tasks[0].options == {"order": 5, "stamped_headers": ["order"]}


def test_a_callback_that_two_tasks_have_is_stamped_for_each(app: Celery) -> None:
    add, note = app.tasks["add"], app.tasks["note"]
    callback = note.s()
    tasks = [add.s(place).on_error(callback) for place in (1, 2)]
    for place, task in enumerate(tasks):
        task.stamp(place=place)
    assert callback.options == {}
    assert [task.options["link_error"][0].options["place"] for task in tasks] == [0, 1]


def test_stamps_stay_where_options_of_the_call_have_the_same_name(app: Celery) -> None:
    stamped = app.tasks["add"].s().stamp(order=5)
    for again in (stamped.clone(order=6), signature(dict(stamped)).clone(order=6, stamped_headers=["x"])):
        assert again.options == {"order": 5, "stamped_headers": ["order"]}


class Wrong(StampingVisitor):
    """Returns what it is told to."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def on_signature(self, sig: Signature[Any], **headers: Any) -> Any:
        return self.found


@pytest.mark.parametrize("found", [5, "order", ["order"], {1: 2}, {"a": 1, "stamped_headers": "a"},
                                   {"a": 1, "stamped_headers": [1]}])  # fmt: skip
def test_a_visitor_that_returns_no_stamps_is_named(app: Celery, found: Any) -> None:
    with pytest.raises(TypeError, match=r"Wrong.on_signature returned .* for add: expected a dict of stamps"):
        chain(app.tasks["add"].s()).stamp(Wrong(found))


def test_a_visitor_has_to_say_what_it_does_with_a_signature() -> None:
    with pytest.raises(TypeError, match="on_signature"):
        StampingVisitor()  # type: ignore[abstract]


def test_a_stamp_without_a_value_is_refused_at_the_call(app: Celery) -> None:
    task = app.tasks["add"].s().stamp(order=5, stamped_headers=["order", "customer"])
    with pytest.raises(
        ValueError, match="stamped_headers= of add names 'customer', and there is no option customer="
    ):
        task.delay()
