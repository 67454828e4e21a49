"""Signatures and compositions as values: what they keep, what they refuse, and how large they may be."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from functools import reduce
from operator import or_
from time import perf_counter
from typing import Any

import pytest

from minicelery import Celery, Signature, chain, chord, chunks, group, maybe_signature, signature, xstarmap
from minicelery.canvas.steps import Fork, carried, steps_of
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id

Refused = (TypeError, ValueError, ImproperlyConfigured)


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    with Celery("canvas", broker=f"memory://{new_id()}", backend="memory://", set_as_current=False) as app:
        for name in ("add", "total", "note"):
            app.task(_sum, name=name, shared=False)
        app.finalize()
        yield app


def _sum(*args: Any, **kwargs: Any) -> int:
    return sum(sum(arg) if isinstance(arg, list) else arg for arg in args)


@pytest.fixture
def add(app: Celery) -> Any:
    return app.tasks["add"]


@pytest.fixture
def total(app: Celery) -> Any:
    return app.tasks["total"]


@pytest.fixture
def note(app: Celery) -> Any:
    return app.tasks["note"]


# -- what was put together stays apart -------------------------------------------------------------


def test_a_bar_leaves_its_operands_as_they_were(add: Any, total: Any, note: Any) -> None:
    operands = [
        add.s(1), chain(add.s(1), add.s(2)), chain(add.s(), group(add.s(), add.s(2))).on_error(note.s()),
        group(add.s(), add.s(2)), group(add.s()), chord([add.s()], total.s()),
        chain(add.s(), chord([add.s()], total.s())), chord([add.s()], chain(add.s(), add.s())),
    ]  # fmt: skip
    before = json.dumps(operands)
    for first in operands:
        for then in operands:
            for whole in (first | then, chain(first, then), chain(first, then, queue="q")):
                whole.clone().set(countdown=3)
                steps_of(whole, (9,), task_id="x", link=note.s(), link_error=note.s(), queue="q")
    assert json.dumps(operands) == before


def test_what_changes_a_copy_does_not_change_the_original(add: Any, total: Any, note: Any) -> None:
    linked = add.s(1).on_error(note.s()).set(headers={"a": [1]})
    for original in (linked, chain(linked, add.s()), group(linked), chord([linked], total.s()), add.map([1])):
        before = json.dumps(original)
        copy = original.clone()
        copy.set(queue="q")
        copy.link(note.s())
        copy.link_error(note.s(5))
        copy.set_immutable(True)
        copy.freeze()
        copy.stamp(order=5)
        if "headers" in copy.options:
            copy.options["headers"]["a"].append(2)
        assert json.dumps(original) == before


def test_a_chain_keeps_its_callback_to_itself(add: Any, note: Any) -> None:
    last = add.s(2)
    whole = chain(add.s(1), last)
    whole.link(note.s())
    assert last.options == {}
    (_, end) = steps_of(whole)
    assert isinstance(end, Signature) and end.options["link"] == [note.s()]


def test_a_generator_is_taken_once_and_kept(add: Any, total: Any) -> None:
    for whole in (
        group(add.s(i) for i in range(3)),
        chord((add.s(i) for i in range(3)), total.s()),
        chain(add.s(i) for i in range(3)),
        add.starmap((i, i) for i in range(3)),
        add.chunks(((i, i) for i in range(3)), 2),
    ):
        first = json.dumps(whole)
        assert steps_of(whole) and whole.clone() == whole and json.dumps(whole) == first
        assert first.count('"add"') in (1, 3)


def test_what_went_through_json_is_the_same_and_works_alike(add: Any, total: Any, app: Celery) -> None:
    whole = add.s(1) | group(add.s(2), add.s(3) | add.s(4)) | total.s() | group(add.s(1), add.s(2))
    back = signature(json.loads(json.dumps(whole)), app=app)
    assert type(back) is type(whole) and back == whole and repr(back) == repr(whole)
    assert back.apply((5,)).get() == whole.apply((5,)).get() == [6 + 2 + 6 + 7 + 1, 6 + 2 + 6 + 7 + 2]
    assert back | add.s() == whole | add.s()
    assert back.clone((5,)) == whole.clone((5,))


def test_a_dict_in_the_form_of_a_signature_may_follow_and_be_followed(add: Any) -> None:
    plain = dict(add.s(2))
    assert isinstance(add.s(1) | plain, chain) and isinstance(plain | add.s(1), chain)
    assert [each.args for each in (plain | add.s(1)).tasks] == [(2,), (1,)]


# -- arguments, options and ids where they belong --------------------------------------------------


def test_an_immutable_chain_leaves_out_what_it_is_called_with(add: Any, total: Any) -> None:
    whole = chain(add.s(1), add.s(2)).set(immutable=True)
    first, then = steps_of(total.s() | group(whole, add.s()))[-1].parts  # type: ignore[union-attr]
    assert [each.immutable for each in first] == [True, False] and not then[0].immutable  # type: ignore[union-attr]
    assert whole.apply((100,)).get() == 3


def test_a_frozen_composition_is_sent_under_its_ids(add: Any, total: Any) -> None:
    whole = add.s(1) | group(add.s(2), chain(add.s(3), add.s(4))) | total.s()
    result = whole.freeze("the-end")
    assert result.id == "the-end"
    first, fork, end = steps_of(whole)
    assert isinstance(first, Signature) and isinstance(fork, Fork) and isinstance(end, Signature)
    assert end.id == result.id and fork.id == result.parent.id
    assert first.id == result.parent.parent.id
    members = [part[-1].id for part in fork.parts]
    assert members == [each.id for each in result.parent.results]
    again = steps_of(signature(json.loads(json.dumps(whole))))
    assert carried(again) == carried(steps_of(whole))


def test_a_signature_that_is_there_twice_gets_two_ids(add: Any) -> None:
    twice = add.s(1)
    for whole in (chain(twice, twice), group(twice, twice), twice | twice):
        result = whole.freeze()
        first, then = (each.id for each in whole.tasks)
        assert first != then and (result.id == then or [each.id for each in result.results] == [first, then])


def test_a_chord_that_celery_froze_keeps_the_id_of_its_body(add: Any) -> None:
    header = {"task": "celery.group", "args": [], "kwargs": {"tasks": [
        {"task": "add", "args": [1], "options": {"task_id": "part", "group_id": "gid", "chord": dict(add.s())}}
    ]}, "options": {"task_id": "gid", "root_id": None}, "subtask_type": "group", "immutable": False}  # fmt: skip
    body = {"task": "add", "args": [], "kwargs": {}, "options": {"task_id": "the-body"}}
    sent = {"task": "celery.chord", "args": [], "kwargs": {"kwargs": {}, "header": header, "body": body},
            "options": {"task_id": "gid"}, "subtask_type": "chord", "immutable": False}  # fmt: skip
    fork, end = steps_of(signature(sent))
    assert isinstance(fork, Fork) and isinstance(end, Signature)
    assert (fork.id, end.id, fork.parts[0][0].id) == ("gid", "the-body", "part")
    assert "chord" not in fork.parts[0][0].options  # type: ignore[union-attr]


def test_options_that_are_none_leave_those_of_the_signature(add: Any) -> None:
    result = add.s(1).set(task_id="kept").apply_async(task_id=None)
    assert result.id == "kept"


def test_a_chord_gives_its_body_later(add: Any, total: Any) -> None:
    header = chord([add.s(1, 1), add.s(2, 2)])
    assert header.with_body(total.s()).apply().get() == 6
    assert header["kwargs"]["body"] is None


# -- what is refused -------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a task among the members": (lambda add: group(add, add), r"group\(\) takes signatures .* did you mean add\.s\(\)"),
    "a task in place of the members": (lambda add: group(add), r"group\(\) takes signatures .* add\.s\(\)"),
    "None among the members": (lambda add: group([add.s(), None]), r"group\(\) takes signatures .* got None"),
    "None": (lambda add: chain(None), r"chain\(\) takes signatures .* got None"),
    "a number among the links": (lambda add: chain(add.s(), 5), r"chain\(\) takes signatures .* got 5"),
    "the name of a task": (lambda add: chain("add", "add"), r"chain\(\) takes signatures .* got 'add'"),
    "a name for a list": (lambda add: group("add"), r"group\(\) takes signatures .* got 'add'"),
    "a generator of numbers": (lambda add: group(i for i in range(2)), r"group\(\) takes .* got 0"),
    "no header": (lambda add: chord(None, add.s()), r"chord\(\) takes signatures .* got None"),
    "a body that is none": (lambda add: chord([add.s()], 5), "the body of a chord is a signature .* got 5"),
    "a body set that is none": (
        lambda add: setattr(chord([add.s()]), "body", add),
        "the body of a chord is a signature",
    ),
    "a chord called without a body": (lambda add: chord([add.s()])(), "this chord has no body"),
    "a chord sent without a body": (lambda add: chord([add.s()]).delay(), "this chord has no body"),
    "a chord followed without a body": (lambda add: chord([add.s()]) | add.s(), "this chord has no body"),
    "a task after a bar": (lambda add: add.s() | add, r"add \| .*did you mean add\.s\(\)\?"),
    "None after a bar": (lambda add: add.s() | None, r"add \| None: expected a signature"),
    "None after the bar of a group": (lambda add: group(add.s()) | None, r"celery.group \| None"),
    "a list before a bar": (lambda add: [add.s()] | add.s(), r"\.\.\. \| add: \[.*expected a signature"),
    "a dict that is no signature": (lambda add: add.s() | {"a": 1}, r"add \| \{'a': 1\}: expected a signature"),
    "chunks of none": (lambda add: add.chunks([(1, 2)], 0), "n=0: expected a whole number of at least 1"),
    "chunks below none": (lambda add: chunks(add.s(), [(1, 2)], -3), "n=-3: expected a whole number"),
    "chunks of a fraction": (lambda add: add.chunks([(1, 2)], 1.5), "n=1.5: expected a whole number"),
    "chunks of True": (lambda add: add.chunks([(1, 2)], True), "n=True: expected a whole number"),
    "a map of a number": (lambda add: add.map(5), "5 for calls of add: expected a list of their arguments"),
    "a starmap of numbers": (lambda add: add.starmap([1, 2]), "1 for a call of add: expected a tuple"),
    "a starmap of nothing": (lambda add: xstarmap(None, [(1,)]), "takes a task, its name or a signature, got None"),
    "a link that is a task": (lambda add: add.s().link(add), r"link= of add takes signatures .*add\.s\(\)\?"),
    "a link that is None": (lambda add: add.s().link(None), "link= of add takes signatures .* got NoneType"),
    "an errback by name": (lambda add: add.s().on_error("note"), "link_error= of add takes signatures .* got str"),
    "a link of a chain": (lambda add: chain(add.s()).link(5), "link= of celery.chain takes signatures .* got int"),
    "a link of a group": (lambda add: group(add.s()).link(5), "link= of a group takes signatures .* got int"),
    "an errback of a chord": (lambda add: chord([add.s()], add.s()).link_error(5), "link_error= of a chord takes"),
    "a link of nothing": (lambda add: group([]).link(add.s()), "link= of an empty group"),
    "a link given to a call of a group": (lambda add: group(add.s())(link=add.s()), "link= can't be given to a group"),
    "an errback given to a call of a group": (
        lambda add: group(add.s()).apply_async(link_error=add.s()),
        "link_error= can't be given to a group",
    ),
    "a link given to a call that is none": (lambda add: chain(add.s()).apply_async(link=5), "link="),
    "an unknown option": (lambda add: chain(add.s(1, 1)).set(countdwn=3).delay(), "countdwn=3.*countdown="),
    "an unknown option of a member": (
        lambda add: group(add.s(1, 1).set(countdwn=3)).delay(),
        "countdwn=3 of add .*countdown=",
    ),
    "text for arguments": (lambda add: add.s(1).apply_async("ab"), "args='ab' of add: expected a list or tuple"),
    "text for arguments of a chain": (lambda add: chain(add.s()).apply_async("ab"), "args='ab' of add"),
    "text for arguments of a copy": (lambda add: add.s().clone("ab"), "args='ab' of add: expected a list"),
    "text in place of arguments": (lambda add: add.s().replace(args="ab"), "args='ab' of add: expected a list"),
    "a number for arguments": (lambda add: group(add.s()).apply_async(5), "args=5 of add: expected a list"),
    "a list for keyword arguments": (lambda add: add.s().clone((), [1]), r"kwargs=\[1\] of add: expected a mapping"),
    "a signature of nothing": (lambda add: signature(None), "takes a task, its name or a signature, got None"),
    "a signature of a number": (lambda add: signature(5), "takes a task, its name or a signature, got 5"),
    "a visitor that is a class": (lambda add: add.s().stamp(str), "stamp.visitor=.*StampingVisitor"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_in_words(case: str, add: Any) -> None:
    act, words = WRONG[case]
    with pytest.raises(Refused, match=words):
        act(add)


def _compound(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"task": f"celery.{kind}", "args": [], "kwargs": kwargs, "options": {}, "subtask_type": kind}


MALFORMED: dict[str, tuple[Any, str]] = {
    "nothing in it": ({}, "a signature is a dict with the name of its task in 'task', got {}"),
    "a task that is no text": ({"task": 5}, "the name of its task in 'task'"),
    "no task": ({"task": "", "args": []}, "the name of its task in 'task'"),
    "args": ({"task": "t", "args": 5}, "args=5 in a signature of t: expected a list"),
    "text for args": ({"task": "t", "args": "ab"}, "args='ab' in a signature of t: expected a list"),
    "kwargs": ({"task": "t", "kwargs": [1]}, r"kwargs=\[1\] in a signature of t: expected a mapping"),
    "keys of kwargs": ({"task": "t", "kwargs": {1: 2}}, "kwargs of a signature of t has the key 1: expected text"),
    "options": ({"task": "t", "options": "x"}, "options='x' in a signature of t: expected a mapping"),
    "kind": ({"task": "t", "subtask_type": "star"}, "subtask_type 'star'; there are chain, group, chord"),
    "type of kind": ({"task": "t", "subtask_type": ["chain"]}, "there are chain, group, chord"),
    "a chain without tasks": (_compound("chain"), "tasks=None in a signature of celery.chain: expected a list"),
    "a group of a number": (_compound("group", tasks=5), "tasks=5 in a signature of celery.group"),
    "a group of text": (_compound("group", tasks="ab"), "tasks='ab' in a signature of celery.group"),
    "a member": (_compound("group", tasks=[None]), "tasks of a signature of celery.group has None"),
    "a member's args": (_compound("group", tasks=[{"task": "t", "args": 5}]), "args=5 in a signature of t"),
    "a header": (_compound("chord", header=3, body={"task": "t"}), "header=3 in a signature of celery.chord"),
    "a part": (_compound("chord", header=["t"], body={"task": "t"}), "header of a signature of celery.chord has 't'"),
    "a body": (_compound("chord", header=[], body=3), "the body of a chord is a signature .* got 3"),
    "a body's body": (_compound("chord", header=[], body=_compound("chord", header=[], body=[])), r"got \[\]"),
    "kwargs of a chain": ({**_compound("chain"), "kwargs": [1]}, r"kwargs=\[1\] in a signature of celery.chain"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_dict_is_refused_in_words(case: str) -> None:
    given, words = MALFORMED[case]
    for read in (signature, maybe_signature, Signature.from_dict):
        with pytest.raises(ImproperlyConfigured, match=words):
            read(given)


def test_a_dict_from_outside_never_breaks_in_other_ways() -> None:
    for read in (Signature.from_dict, chain.from_dict):
        with pytest.raises(ImproperlyConfigured):
            read(5)
    odd: list[Any] = [
        None,
        5,
        "x",
        [],
        [5],
        {},
        {"a": 1},
        {5: 5},
        [{"task": 3}],
        {"task": "t", "kwargs": 5},
        0,
        "",
    ]
    for kind in (None, "chain", "group", "chord", "star", 5):
        for key in ("task", "args", "kwargs", "options", "immutable"):
            for value in odd:
                given = {**_compound("chord", header=[], body=None), "subtask_type": kind, key: value}
                _read_all(given)
        for key in ("tasks", "header", "body", "kwargs"):
            for value in odd:
                _read_all(
                    _compound(str(kind), **{"tasks": [], "header": [], "body": {"task": "t"}, key: value})
                )


def _read_all(given: dict[str, Any]) -> None:
    with contextlib.suppress(*Refused):
        found = signature(given)
        repr(found), found.clone(), json.dumps(found, skipkeys=True), steps_of(found)


def test_a_callback_of_itself_is_refused(add: Any, note: Any) -> None:
    one, other = add.s(1), note.s()
    other.link(one)
    before = json.dumps([one, other])
    for act in (
        lambda: one.link(one), lambda: one.link(other), lambda: one.link_error(other), lambda: one.set(link=one),
        lambda: one.set(link_error=[note.s(), other]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"link(_error)?= of add: .* leads back to it.*clone\(\)"):
            act()
    assert json.dumps([one, other]) == before
    one.link(one.clone())
    assert len(one.flatten_links()) == 2


def test_what_contains_itself_ends_in_words(add: Any) -> None:
    loop = group(add.s())
    loop.tasks.append(loop)
    linked = add.s(1, 2)
    linked.options["link"] = [linked]
    for act in (loop.clone, loop.apply_async, lambda: steps_of(loop), linked.clone, linked.apply_async):
        with pytest.raises(Refused, match=r"contains? (itself|themselves)"):
            act()
    assert len(repr(loop)) < 100_000


# -- many ------------------------------------------------------------------------------------------

MANY = 10_000


def took(act: Callable[[], Any]) -> float:
    """Seconds, the best of three."""
    best = float("inf")
    for _ in range(3):
        begun = perf_counter()
        act()
        best = min(best, perf_counter() - begun)
    return best


@pytest.mark.parametrize("form", ["by bars", "at once", "after a chord"])
def test_a_chain_of_ten_thousand_is_put_together_in_linear_time(form: str, add: Any) -> None:
    links = [add.s(1) for _ in range(MANY)]
    begun = perf_counter()
    if form == "by bars":
        whole: Any = reduce(or_, links)
    elif form == "at once":
        whole = chain(*links)
    else:
        whole = chain(group(add.s(), add.s()), *links)
    text = json.dumps(whole)
    assert len(repr(whole.clone())) < 1500
    assert len(steps_of(signature(json.loads(text)))) >= MANY
    assert perf_counter() - begun < 10  # a quadratic way takes minutes


def test_a_group_of_ten_thousand_is_ready_to_be_sent_in_a_fraction_of_a_second(add: Any) -> None:
    def ready() -> None:
        (fork,) = steps_of(group(add.s(i, i) for i in range(MANY)).clone())
        assert isinstance(fork, Fork) and len(fork.parts) == MANY

    assert took(ready) < 1.0  # 0.08 on a quiet core


def test_groups_and_tasks_by_turns_are_put_together_without_end(add: Any, total: Any) -> None:
    whole = reduce(or_, [each for _ in range(500) for each in (group(add.s(), add.s()), total.s())])
    again = signature(json.loads(json.dumps(whole)))
    steps = steps_of(again)
    assert [isinstance(step, Fork) for step in steps] == [True, False] * 500
    assert len(repr(whole)) < 20_000


def test_the_text_of_many_names_the_first_and_the_last(add: Any) -> None:
    assert re.fullmatch(r"add\(0\) \| .* \| add\(17\) \| \.\.\. 81 more \.\.\. \| add\(99\)",
                        repr(chain(add.s(i) for i in range(100))))  # fmt: skip
    assert repr(group(add.s(i) for i in range(20))).count("add") == 20
