"""Compositions as plain values: drawn at random, evaluated by hand, and made of either library's signatures.

What they mean is written down here a second time, apart from the library: how `|` and `chain`
put things together, and what a sequence of calls and groups comes to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from typing import Any, TypeAlias

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("COMPOSITIONS") or 0)
"""How many are drawn for each test; 0: few, and always the same."""

FAILURES = {"fail": "ValueError", "reject": "Reject", "unknown": "NotRegistered"}
"""Kinds of calls that fail, and the class of what they leave."""


def _said(name: str, args: Sequence[Any]) -> list[Any]:
    return [name, *args]


REPLACED: dict[str, Callable[[str, Sequence[Any]], Any]] = {
    "moved": _said,
    "spread": lambda name, args: [_said(name, args)] * 2,
    "gathered": lambda name, args: [name, [_said(name, args), [name, _said(name, args), *args]]],
}
"""Kinds of calls that have others take their place, and what those come to."""


@dataclass(frozen=True)
class Call:
    """A call of the task `kind`; `links` are called back with what it returns."""

    kind: str = "say"
    name: str = ""
    args: tuple[Any, ...] = ()
    immutable: bool = False
    links: tuple[Node, ...] = ()
    errback: bool = False
    key: str = ""  # under which its callbacks' and errback's results are found; unique


@dataclass(frozen=True)
class Each:
    """Calls of `say` one after the other, by one built-in task: map, starmap or chunks."""

    kind: str
    name: str = ""
    items: tuple[int, ...] = ()
    links: tuple[Node, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Chain:
    """`how`: by `|`, by ``chain(a, b)``, or as a message has it, nothing joined."""

    links: tuple[Node, ...]
    how: str = "raw"


@dataclass(frozen=True)
class Group:
    members: tuple[Node, ...]


@dataclass(frozen=True)
class Chord:
    header: tuple[Node, ...]
    body: Node


@dataclass(frozen=True)
class Partial:
    """A clone of a composition with arguments in front of its own."""

    whole: Node
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Linked:
    """A composition with a callback that it was given as a whole."""

    whole: Node
    callback: Call
    key: str = ""


Node: TypeAlias = "Call | Each | Chain | Group | Chord | Partial | Linked"


def examples(number: int) -> settings:
    """So many, the same ones each time."""
    return settings(
        max_examples=EXAMPLES or number, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip


# -- at random -------------------------------------------------------------------------------------


@lru_cache
def compositions(depth: int, kinds: tuple[str, ...] = ("say",)) -> st.SearchStrategy[Node]:
    """Compositions of at most so many levels, of calls of these kinds, each call with a name of its own."""
    return _nodes(depth, kinds).map(_named)


@lru_cache
def _nodes(depth: int, kinds: tuple[str, ...]) -> st.SearchStrategy[Node]:
    numbers = st.lists(st.integers(0, 9), max_size=2).map(tuple)
    if depth == 0:
        links: st.SearchStrategy[tuple[Node, ...]] = st.just(())
    else:
        links = st.one_of(st.just(()), st.just(()), st.lists(_nodes(0, kinds), max_size=2).map(tuple))
    call = st.builds(
        Call, st.sampled_from(kinds), st.just(""), numbers, st.sampled_from([False, False, False, True]), links,
        st.booleans(),
    )  # fmt: skip
    each = st.builds(Each, st.sampled_from(["map", "starmap", "chunks"]), st.just(""), numbers)
    if depth == 0:
        return st.one_of(call, call, call, each)
    part = _nodes(depth - 1, kinds)
    parts = st.lists(part, max_size=3).map(tuple)
    some = st.lists(part, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        call,
        st.builds(Chain, some, st.sampled_from(["|", "chain", "raw"])),
        st.builds(Group, parts),
        st.builds(Chord, parts, part),
        st.builds(Partial, part, numbers),
        st.builds(_with_callback, part, st.builds(Call, st.sampled_from(kinds), st.just(""), numbers)),
    )


def _with_callback(whole: Node, callback: Call) -> Node:
    return Linked(whole, callback) if _takes_a_callback(whole) else whole


def _takes_a_callback(node: Node) -> bool:
    """Not what has no last call, and what is sent as a group where it is alone."""
    if isinstance(node, (Partial, Linked)):
        return _takes_a_callback(node.whole)
    if isinstance(node, Chord):
        return _takes_a_callback(node.body)
    if isinstance(node, Chain):
        return _takes_a_callback(node.links[-1])
    if isinstance(node, Group):
        return bool(node.members) and _takes_a_callback(node.members[0])
    return node.kind != "chunks"


def _named(whole: Node) -> Node:
    names = iter(range(10**6))

    def name(node: Node) -> Node:
        if isinstance(node, Call):
            own = f"{node.kind}{next(names)}"
            return replace(node, name=own, key=own, links=tuple(map(name, node.links)))
        if isinstance(node, Each):
            own = f"{node.kind}{next(names)}"
            return replace(node, name=own, key=own)
        if isinstance(node, Linked):
            return Linked(name(node.whole), name(node.callback), f"link{next(names)}")  # type: ignore[arg-type]
        return _with_parts(node, name)

    return name(whole)


def renamed(node: Node, prefix: str) -> Node:
    """The same with `prefix` in front of its calls' names; their keys stay."""
    if isinstance(node, Call):
        links = tuple(renamed(link, prefix) for link in node.links)
        return replace(node, name=prefix + node.name, links=links)
    if isinstance(node, Each):
        return replace(node, name=prefix + node.name)
    return _with_parts(node, lambda part: renamed(part, prefix))


def _with_parts(node: Node, change: Callable[[Node], Node]) -> Node:
    if isinstance(node, Chain):
        return replace(node, links=tuple(map(change, node.links)))
    if isinstance(node, Group):
        return replace(node, members=tuple(map(change, node.members)))
    if isinstance(node, Chord):
        return replace(node, header=tuple(map(change, node.header)), body=change(node.body))
    assert isinstance(node, (Partial, Linked))
    return replace(node, whole=change(node.whole))


# -- evaluated by hand -----------------------------------------------------------------------------


@dataclass
class Done:
    """A call that has returned."""

    value: Any


@dataclass
class Failed:
    """A call that has failed, or was never made as one before it had failed."""

    kind: str  # the class of the exception


@dataclass
class Several:
    """The ends of a group's members."""

    members: list[End]
    ignored: bool = False  # none was made


@dataclass
class Ignored:
    """A call that has raised Ignore, or was never made as one before it had."""

    value: None = None


End: TypeAlias = "Done | Failed | Several | Ignored"


@dataclass
class Evaluation:
    """What a composition comes to, and what is called back on its way."""

    end: End | None = None  # None: there is nothing in it
    linked: dict[str, End | None] = field(default_factory=dict)  # by key; None: it is not called

    @classmethod
    def of(cls, whole: Node, args: Sequence[Any] = ()) -> Evaluation:
        found = cls()
        node = joined(whole)
        if isinstance(node, Each) and node.kind == "chunks":  # by itself it is a group
            pairs = [node.items[at : at + 2] for at in range(0, len(node.items), 2)]
            node = Group(tuple(replace(node, kind="starmap", items=items) for items in pairs))
        found.end = found.evaluate(_trimmed(steps(node)), tuple(args))
        return found

    def failed(self) -> bool:
        return failed_with(self.end) is not None

    def evaluate(self, steps: Sequence[Step], args: tuple[Any, ...], lost: End | None = None) -> End | None:
        """`lost`: what each call comes to, as none is made."""
        end: End | None = None
        for step in steps:
            body = isinstance(end, Several) and lost is None  # made, though it may be to no avail
            if end is not None and lost is None:
                kind = failed_with(end)
                lost = end if isinstance(end, Ignored) else Failed(kind) if kind else None
                args = () if lost else (value_of(end),)
            if isinstance(step, Side):
                found = [self.evaluate(one, args, lost) for one in step.members]
                end = Several([one for one in found if one is not None], isinstance(lost, Ignored))
                continue
            if body and lost and isinstance(step, Call) and step.kind == "unknown":
                lost = Failed(FAILURES["unknown"])
            end = self._call(step, args, lost)
            if isinstance(step, Call) and step.errback:
                told = end == Failed("ChordError") and body if lost else step.kind == "fail"
                self.linked[f"{step.key}.errback"] = Done(step.key) if told else None
        return end

    def _call(self, call: Call | Each, args: tuple[Any, ...], lost: End | None) -> End:
        end = lost or self._made(call, args)
        for at, link in enumerate(call.links):
            key, link = (link.key, link.callback) if isinstance(link, Linked) else (f"{call.key}.{at}", link)
            self.linked[key] = self.evaluate(steps(link), (value_of(end),)) if isinstance(end, Done) else None
        return end

    def _made(self, call: Call | Each, args: tuple[Any, ...]) -> End:
        if isinstance(call, Each):
            return Done([[call.name, item] for item in call.items])
        if call.kind in FAILURES:
            return Failed(FAILURES[call.kind])
        if call.kind == "ignore":
            return Ignored()
        own = call.args if call.immutable else (*args, *call.args)
        return Done(own[0] if call.kind == "values" else REPLACED.get(call.kind, _said)(call.name, own))


def value_of(end: End) -> Any:
    """What follows is called with it."""
    assert not isinstance(end, Failed)
    if isinstance(end, Several):
        return None if end.ignored else [value_of(one) for one in end.members]
    return end.value


def failed_with(end: End | None) -> str | None:
    """What those fail with that wait for it."""
    if isinstance(end, Several):
        return "ChordError" if any(failed_with(one) for one in end.members) else None
    return end.kind if isinstance(end, Failed) else None


def any_failed(end: End | None) -> bool:
    """Whether there is a failure anywhere in what it has come to."""
    return any(map(any_failed, end.members)) if isinstance(end, Several) else isinstance(end, Failed)


@dataclass
class Side:
    """Steps side by side."""

    members: list[list[Step]]


Step: TypeAlias = "Call | Each | Side"


def steps(node: Node) -> list[Step]:
    """What is done one after the other; groups in groups are one."""
    if isinstance(node, (Call, Each)):
        return [node]
    if isinstance(node, (Chain, Chord)):
        links = node.links if isinstance(node, Chain) else (Group(node.header), node.body)
        return reduce(_followed, map(steps, links), [])
    assert isinstance(node, Group)
    members: list[list[Step]] = []
    for found in map(_trimmed, map(steps, node.members)):
        if len(found) == 1 and isinstance(found[0], Side):
            members += found[0].members
        elif found:
            members.append(found)
    return [Side(members)]


def _followed(first: list[Step], then: list[Step]) -> list[Step]:
    if first and then and _is_nothing(first[-1]) and _is_nothing(then[0]):
        return [*first, *then[1:]]
    if first and then and isinstance(first[-1], Side) and isinstance(then[0], Side):
        return [*first, Call("values"), *then]
    return [*first, *then]


def _trimmed(steps: list[Step]) -> list[Step]:
    """Where nothing takes the last value, that is the result."""
    return steps[:-1] if len(steps) > 1 and _is_nothing(steps[-1]) else steps


def _is_nothing(step: Step) -> bool:
    return isinstance(step, Side) and not step.members


# -- how they are put together: the rules of Celery 5.7 --------------------------------------------


def joined(node: Node) -> Node:
    """The same without partials, and with chains joined as they are when they are made."""
    if isinstance(node, (Call, Each)):
        return node
    node = _with_parts(node, joined)
    if isinstance(node, Partial):
        return _begun(node.whole, node.args)
    if isinstance(node, Linked):
        return _linked(node.whole, node)
    if isinstance(node, Chain):
        if node.how == "|":
            return reduce(_piped, node.links)
        if node.how == "chain" and len(node.links) > 1:
            return reduce(_piped, node.links, Chain(()))
    return node


def _linked(node: Node, link: Linked) -> Node:
    """The callback of the whole is that of its last call; of a group, without arguments, of its first member."""
    if isinstance(node, (Call, Each)):
        return replace(node, links=(*node.links, link))
    if isinstance(node, Chord):
        return replace(node, body=_linked(node.body, link))
    if isinstance(node, Chain):
        return replace(node, links=(*node.links[:-1], _linked(node.links[-1], link)))
    assert isinstance(node, Group)
    immutable = replace(link, callback=replace(link.callback, immutable=True))
    first = tuple(_linked(one, immutable) for one in node.members[:1])
    return Group((*first, *node.members[1:]))


def _begun(node: Node, args: tuple[Any, ...]) -> Node:
    if isinstance(node, Call):
        return node if node.immutable else replace(node, args=(*args, *node.args))
    if isinstance(node, Each):
        return node
    if isinstance(node, Chain):
        return replace(node, links=(*(_begun(link, args) for link in node.links[:1]), *node.links[1:]))
    if isinstance(node, Group):
        return Group(tuple(_begun(one, args) for one in node.members))
    assert isinstance(node, Chord)
    return replace(node, header=tuple(_begun(one, args) for one in node.header))


def _piped(first: Node, then: Node) -> Node:
    """``first | then``: a group of one is its member, but for what is first in a `|`; x | nothing is x."""
    if isinstance(first, Group):
        return first if _is_empty(then) else Chord(first.members, then)
    if isinstance(first, Chain):
        if _is_empty(then):
            return first
        then = _unrolled(then)
        if isinstance(then, Chain):
            return reduce(_piped, then.links, first)
        if not first.links:
            return then if isinstance(then, Group) else Chain((then,))
        *before, last = first.links
        if isinstance(last, Group) and not isinstance(then, Group):
            last = Chord(last.members, then)
            if before and isinstance(before[-1], Chord):
                last = _extended(before.pop(), last)
        elif isinstance(last, Chord) and not isinstance(then, Chord):
            last = _extended(last, then)
        else:
            return Chain((*first.links, then))
        return Chain((*before, last))
    only = _unrolled(then)
    if isinstance(first, Chord) and (only is not then or not isinstance(then, (Group, Chain))):
        return _extended(first, only)
    return Chain((first, *(then.links if isinstance(then, Chain) else (only,))))


def _extended(first: Chord, then: Node) -> Chord:
    return Chord(first.header, _piped(first.body, then))


def _is_empty(node: Node) -> bool:
    return (isinstance(node, Group) and not node.members) or (isinstance(node, Chain) and not node.links)


def _unrolled(node: Node) -> Node:
    return node.members[0] if isinstance(node, Group) and len(node.members) == 1 else node
