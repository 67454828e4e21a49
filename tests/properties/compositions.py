"""Compositions as plain values: drawn at random, evaluated by hand, and made of either library's signatures.

What they mean is written down here a second time, apart from the library: how `|` and `chain`
put things together, and what a sequence of calls and groups comes to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from typing import Any, TypeAlias

from hypothesis import strategies as st

FAILURES = {"fail": "ValueError", "reject": "Reject", "unknown": "NotRegistered"}
"""Kinds of calls that fail, and the class of what they leave."""


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


Node: TypeAlias = "Call | Each | Chain | Group | Chord | Partial"

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
    )


def _named(whole: Node) -> Node:
    names = iter(range(10**6))

    def name(node: Node) -> Node:
        if isinstance(node, Call):
            own = f"{node.kind}{next(names)}"
            return replace(node, name=own, key=own, links=tuple(map(name, node.links)))
        if isinstance(node, Each):
            return replace(node, name=f"{node.kind}{next(names)}")
        return _with_parts(node, name)

    return name(whole)


def _with_parts(node: Node, change: Callable[[Node], Node]) -> Node:
    if isinstance(node, Chain):
        return replace(node, links=tuple(map(change, node.links)))
    if isinstance(node, Group):
        return replace(node, members=tuple(map(change, node.members)))
    if isinstance(node, Chord):
        return replace(node, header=tuple(map(change, node.header)), body=change(node.body))
    assert isinstance(node, Partial)
    return replace(node, whole=change(node.whole))


def calls_in(node: Node) -> Iterable[Call | Each]:
    """All calls, also those that others are linked to."""
    if isinstance(node, (Call, Each)):
        yield node
        for link in getattr(node, "links", ()):
            yield from calls_in(link)
    else:
        found: list[Call | Each] = []
        _with_parts(node, lambda part: found.extend(calls_in(part)) or part)  # type: ignore[func-returns-value]
        yield from found


# -- evaluated by hand -----------------------------------------------------------------------------


@dataclass
class Done:
    """A call that has returned; what was ignored gives None."""

    value: Any


@dataclass
class Failed:
    """A call that has failed, or was never made as one before it had failed."""

    kind: str  # the class of the exception


@dataclass
class Several:
    """The ends of a group's members."""

    members: list[End]


End: TypeAlias = "Done | Failed | Several"


class Unspecified(Exception):
    """Nobody says what this composition comes to."""


@dataclass
class Evaluation:
    """What a composition comes to, and what is called back on its way."""

    end: End | None = None  # None: there is nothing in it
    linked: dict[str, End | None] = field(default_factory=dict)  # by key; None: it is not called

    @classmethod
    def of(cls, whole: Node, args: Sequence[Any] = ()) -> Evaluation:
        found = cls()
        found.end = found.evaluate(steps(joined(whole)), tuple(args))
        return found

    def failed(self) -> bool:
        return _failed(self.end) is not None

    def evaluate(
        self, steps: Sequence[Step], args: tuple[Any, ...], failed: str | None = None, counted: bool = False
    ) -> End | None:
        """`failed`: why none of it is done; `counted`: the end is the argument of a chord's body."""
        if len(steps) > 1 and isinstance(steps[-1], Side) and not steps[-1].members:
            steps = steps[:-1]  # nothing takes the value: it is the result
        end: End | None = None
        for at, step in enumerate(steps):
            made = not failed  # though it may be to no avail: the body of a chord
            if end is not None:
                failed = failed or _failed(end)
                made = made and isinstance(end, Several)
                args = () if failed else (value_of(end),)
            last = at == len(steps) - 1
            if isinstance(step, Side):
                inside = counted or not last
                found = [self.evaluate(one, args, failed, inside) for one in step.members]
                end = Several([one for one in found if one is not None])
            else:
                if made and isinstance(step, Call) and step.kind == "unknown":
                    failed = FAILURES["unknown"]
                end = self._call(step, args, failed, counted and last)
                if isinstance(step, Call) and step.errback:
                    told = isinstance(end, Failed) and (
                        step.kind == "fail" or (made and failed == "ChordError")
                    )
                    self.linked[f"{step.key}.errback"] = Done(step.key) if told else None
        return end

    def _call(self, call: Call | Each, args: tuple[Any, ...], failed: str | None, counted: bool) -> End:
        end: End
        if isinstance(call, Each):
            return Failed(failed) if failed else Done([[call.name, item] for item in call.items])
        own = call.args if call.immutable else (*args, *call.args)
        if failed or call.kind in FAILURES:
            end = Failed(failed or FAILURES[call.kind])
        elif call.kind == "ignore":
            if not counted:
                raise Unspecified
            end = Done(None)
        else:
            end = Done([call.name, *own])
        for at, link in enumerate(call.links):
            called = isinstance(end, Done) and call.kind != "ignore"
            self.linked[f"{call.key}.{at}"] = (
                self.evaluate([_leaf(link)], (value_of(end),)) if called else None
            )
        return end


def value_of(end: End) -> Any:
    """What follows is called with it."""
    assert not isinstance(end, Failed)
    return [value_of(one) for one in end.members] if isinstance(end, Several) else end.value


def _failed(end: End | None) -> str | None:
    """What those fail with that wait for it."""
    if isinstance(end, Several):
        return "ChordError" if any(_failed(one) for one in end.members) else None
    return end.kind if isinstance(end, Failed) else None


@dataclass
class Side:
    """Steps side by side."""

    members: list[list[Step]]


Step: TypeAlias = "Call | Each | Side"


def _leaf(node: Node) -> Call | Each:
    assert isinstance(node, (Call, Each))
    return node


def steps(node: Node) -> list[Step]:
    """What is done one after the other; groups in groups are one."""
    if isinstance(node, (Call, Each)):
        return [node]
    if isinstance(node, Chain):
        return [step for link in node.links for step in steps(link)]
    if isinstance(node, Chord):
        return [*steps(Group(node.header)), *steps(node.body)]
    assert isinstance(node, Group)
    members: list[list[Step]] = []
    for found in map(steps, node.members):
        if len(found) == 1 and isinstance(found[0], Side):
            members += found[0].members
        elif found:
            members.append(found)
    return [Side(members)]


# -- how they are put together: the rules of Celery 5.7 --------------------------------------------


def joined(node: Node) -> Node:
    """The same without partials, and with chains joined as they are when they are made."""
    if isinstance(node, (Call, Each)):
        return node
    node = _with_parts(node, joined)
    if isinstance(node, Partial):
        return _begun(node.whole, node.args)
    if isinstance(node, Chain) and len(node.links) > 1:
        if node.how == "|":
            return reduce(_piped, node.links)
        if node.how == "chain":
            return reduce(_piped, node.links, Chain(()))
    return node


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
    then = _unrolled(then)
    if isinstance(first, Chord) and not isinstance(then, (Group, Chain)):
        return _extended(first, then)
    return Chain((first, *(then.links if isinstance(then, Chain) else (then,))))


def _extended(first: Chord, then: Node) -> Chord:
    return Chord(first.header, _piped(first.body, then))


def _is_empty(node: Node) -> bool:
    return (isinstance(node, Group) and not node.members) or (isinstance(node, Chain) and not node.links)


def _unrolled(node: Node) -> Node:
    return node.members[0] if isinstance(node, Group) and len(node.members) == 1 else node


# -- as signatures ---------------------------------------------------------------------------------


@dataclass
class Library:
    """One of the two: its names, and an app with the tasks."""

    app: Any
    chain: Any
    group: Any
    chord: Any
    signature: Any
    xmap: Any
    xstarmap: Any
    chunks: Any
    prefix: str = ""  # of the ids of what is called back

    def made(self, node: Node) -> Any:
        """The composition, of this library's signatures."""
        if isinstance(node, Call):
            return self._call(node)
        if isinstance(node, Each):
            said = self.app.tasks["say"].s(name=node.name)
            if node.kind == "map":
                return self.xmap(said, node.items)
            items = [(item,) for item in node.items]
            return self.chunks(said, items, 2) if node.kind == "chunks" else self.xstarmap(said, items)
        if isinstance(node, Chain):
            links = [self.made(link) for link in node.links]
            if node.how == "|":
                return reduce(lambda one, two: one | two, links)
            return self.chain(*links) if node.how == "chain" else self.chain(links, app=self.app)
        if isinstance(node, Group):
            return self.group([self.made(one) for one in node.members], app=self.app)
        if isinstance(node, Chord):
            return self.chord([self.made(one) for one in node.header], self.made(node.body), app=self.app)
        return self.made(node.whole).clone(node.args)

    def _call(self, call: Call) -> Any:
        made = self.signature(call.kind, call.args, {"name": call.name}, immutable=call.immutable, app=self.app)
        for at, link in enumerate(call.links):
            made.link(self.made(link).set(task_id=self.id(f"{call.key}.{at}")))
        if call.errback:
            errback = self.signature("heard", (), {"key": call.key}, app=self.app)
            made.link_error(errback.set(task_id=self.id(f"{call.key}.errback")))
        return made

    def id(self, key: str) -> str:
        """The id of what is linked under that key."""
        return f"{self.prefix}{key}"
