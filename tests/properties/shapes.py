"""A fixed list of compositions: all forms, in and after each other."""

from __future__ import annotations

from collections.abc import Sequence

from tests.properties.compositions import Call, Chain, Chord, Each, Group, Node, Partial


def c(
    name: str, *args: object, immutable: bool = False, kind: str = "say", links: Sequence[Node] = ()
) -> Call:
    return Call(kind, name, args, immutable, tuple(links), key=name)


def pipe(*links: Node) -> Chain:
    return Chain(links, "|")


def chain(*links: Node) -> Chain:
    return Chain(links, "chain")


def group(*members: Node) -> Group:
    return Group(members)


def chord(header: Sequence[Node], body: Node) -> Chord:
    return Chord(tuple(header), body)


A, B, C, D, E, F = (c(name) for name in "abcdef")
LATER = c("later", kind="retried")

SHAPES: list[Node] = [
    pipe(A, B),
    pipe(A, B, C, D, E),
    chain(A, B, C),
    pipe(pipe(A, B), pipe(C, D)),
    pipe(A, c("i", 1, immutable=True), C),
    pipe(A, LATER, B),
    Partial(A, (1, 2)),
    Partial(pipe(A, B), (1,)),
    Partial(group(A, B), (1,)),
    Partial(chord([A, B], C), (1,)),
    pipe(A, Partial(c("b", 2), (1,))),
    c("a", links=[B]),
    c("a", links=[c("b", immutable=True), C]),
    pipe(c("a", links=[B]), C),
    group(A, B, C),
    group(A),
    group(),
    group(group(A, B), C),
    group(pipe(A, B), C),
    group(pipe(A, group(B, C)), D),
    group(c("a", immutable=True), LATER),
    group(chord([A, B], C), D),
    pipe(A, group(B, C)),
    pipe(A, group(B)),
    pipe(A, group(B), C),
    pipe(A, group()),
    pipe(A, group(), B),
    pipe(group(), B),
    chain(group(A), B),
    pipe(group(A), B),
    pipe(group(A, B), C),
    pipe(group(A, B), C, D),
    pipe(group(A, B), pipe(C, D)),
    pipe(A, group(B, C), D),
    pipe(A, group(B, C), D, group(E, F)),
    pipe(A, group(pipe(B, C), D), E),
    pipe(A, group(B, C), c("i", immutable=True)),
    pipe(group(c("a", immutable=True), c("b", immutable=True)), c("i", immutable=True)),
    pipe(group(A, B), group(C, D)),
    pipe(group(A, B), group(C, D), E),
    chain(group(A, B), group(C, D), E),
    pipe(group(A, B), C, group(D, E)),
    chord([A], B),
    chord([A, B], C),
    chord([], A),
    chord([A, LATER, B], C),
    chord([pipe(A, B), C], D),
    chord([pipe(A, group(B, C)), D], E),
    chord([pipe(group(A, B), C), D], E),
    chord([chord([A, B], C), D], E),
    chord([chord([chord([A, B], C), D], E), F], c("g")),
    chord([group(A), B], C),
    chord([A, B], pipe(C, D)),
    chord([A, B], group(C, D)),
    chord([A, B], chord([C, D], E)),
    chord([A, B], c("c", links=[D])),
    chord([c("a", links=[E]), B], C),
    pipe(chord([A, B], c("i", immutable=True)), D),
    pipe(chord([A, B], group(C, D)), E),
    pipe(A, chord([B, C], D), E),
    chain(A, chord([B, C], group(D, E))),
    pipe(A, group(B, C), chord([D, E], F)),
    Each("map", "", (1, 2)),
    Each("starmap", "", (1, 2)),
    Each("chunks", "", (1, 2, 3)),
    pipe(A, Each("map", "", (1, 2)), B),
    chord([Each("map", "", (1, 2)), A], B),
    chord([A, c("bad", kind="fail")], B),
    pipe(A, c("bad", kind="fail"), B, C),
    pipe(chord([A, c("bad", kind="fail")], B), C, D),
    group(A, c("bad", kind="fail")),
    chord([A, B], c("bad", kind="fail")),
    group(pipe(A, group()), B),
    chord([pipe(A, group()), B], C),
    chord([A, B], group()),
    chord([A, group(B, C)], D),
    chord([group(A, B), group(C, D)], E),
    pipe(A, group(group(B, C), D), E),
    chord([pipe(A, group(B, group(C, D))), E], F),
    group(pipe(A, group(B, C), D), chord([E], F)),
    chord([chord([], A), B], C),
    pipe(A, chord([], B), C),
    pipe(chord([], A), group(B, C)),
    chord([group(), A], B),
    chord([chain(A, group(B, C), D, group(E, F))], c("g")),
    chord([c("a", kind="ignore"), B], C),  # the last: Celery waits for it for ever
]

ELSEWHERE: dict[int, str] = {}
"""Where Celery 5.7 comes to something else, and why that is not right; by number."""


def _differs(shape: Node, why: str) -> None:
    ELSEWHERE[SHAPES.index(shape)] = why


_differs(chord([c("a", kind="ignore"), B], C), "a part that is ignored is waited for for ever")
_differs(chord([A, B], group()), "a body of nothing: the values are lost")
for _shape in (
    chord([A, group(B, C)], D), chord([group(A, B), group(C, D)], E), pipe(A, group(group(B, C), D), E),
    chord([pipe(A, group(B, group(C, D))), E], F),
):  # fmt: skip
    _differs(_shape, "the members of a group in a header come in another order")
for _number, _shape in enumerate(SHAPES):
    if isinstance(_shape, Partial) and isinstance(_shape.whole, (Chain, Group)):
        ELSEWHERE[_number] = "the arguments of a clone are lost, unless the call has some too"


def shown(node: Node) -> str:
    """The composition as one writes it."""
    if isinstance(node, Chain):
        links = map(shown, node.links)
        return " | ".join(links) if node.how == "|" else f"chain({', '.join(links)})"
    if isinstance(node, Group):
        return f"group([{', '.join(map(shown, node.members))}])"
    if isinstance(node, Chord):
        return f"chord([{', '.join(map(shown, node.header))}], {shown(node.body)})"
    if isinstance(node, Partial):
        whole = shown(node.whole)
        return f"{f'({whole})' if ' | ' in whole else whole}.clone({node.args!r})"
    name = getattr(node, "name", "") or type(node).__name__
    return f"ignored {name}" if getattr(node, "kind", "") == "ignore" else name
