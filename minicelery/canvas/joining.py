"""What `|` makes of two signatures, and `chain` of many.

The rules are those of Celery, down to the dicts that come out.  The operands stay as they were;
what comes out holds them, not copies, so that a long chain is put together in linear time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from minicelery.canvas.compound import chain, chord, group
from minicelery.canvas.signatures import Signature, as_list

OF_THE_END = frozenset({"task_id", "group_id", "group_index", "chord"})
"""Options of a chain that are its last call's; `link` is too, `link_error` every call's, others the first's."""

_DEEPEST = 20
"""Chords within the bodies of chords; beyond, the next is a link of the chain, which means the same."""


def joined(first: Signature[Any], then: Signature[Any]) -> Signature[Any]:
    """``first | then``."""
    if isinstance(first, chain):
        return _after_chain(first, then)
    if isinstance(first, group):
        return first if _is_empty(then) else chord(first, then, app=first.bound)
    only = _unrolled(then)
    if isinstance(first, chord) and (only is not then or not isinstance(then, (group, chain))):
        return _extended(first, only)
    return chain.of([first, *(links_of(then) if isinstance(then, chain) else [only])], first.bound)


def folded(tasks: Iterable[Signature[Any]]) -> Signature[Any]:
    """``tasks[0] | tasks[1] | …``, all of it after an empty chain."""
    links: list[Signature[Any]] = []
    left = iter(tasks)
    for task in left:
        if (whole := _follow(links, task)) is not None:
            return reduce(joined, left, whole)
    return chain.of(links)


def links_of(whole: chain) -> list[Signature[Any]]:
    """The links of a chain, with what is theirs of its own arguments and options."""
    links = whole.tasks
    if not links or not (whole["options"] or whole["args"] or whole["immutable"]):
        return links
    links = [link.clone() for link in links]
    if whole["args"]:
        links[0] = links[0].clone(whole["args"])
    if whole["immutable"]:
        links[0].set_immutable(True)
    _give(links, whole["options"])
    return links


def _give(links: list[Signature[Any]], options: Mapping[str, Any]) -> None:
    """The options of a chain to those of its links that they are for."""
    for name, value in options.items():
        if name == "link":
            for callback in as_list(value):
                links[-1].link(callback)
        elif name == "link_error":
            for link in links:
                for errback in as_list(value):
                    link.link_error(errback)
        else:
            links[-1 if name in OF_THE_END else 0].options[name] = value


def _after_chain(first: chain, then: Signature[Any]) -> Signature[Any]:
    if _is_empty(then) or (isinstance(then, chain) and not then.tasks):
        return first
    links = list(links_of(first))
    whole = _follow(links, then)
    return chain.of(links, first.bound) if whole is None else whole


def _follow(links: list[Signature[Any]], then: Signature[Any]) -> Signature[Any] | None:
    """Have `then` follow the links, in place; or return what comes out where that is no chain."""
    if _is_empty(then):
        return None
    then = _unrolled(then)
    if isinstance(then, chain):
        left = iter(links_of(then))
        for link in left:
            if (whole := _follow(links, link)) is not None:
                return reduce(joined, left, whole)
        return None
    last = links[-1] if links else None
    if last is None and isinstance(then, group):
        return then
    if isinstance(last, group) and not isinstance(then, group):
        links[-1] = chord(last, then, app=last.bound)
        if len(links) > 1 and isinstance(before := links[-2], chord) and _depth(before) < _DEEPEST:
            links[-2:] = [_extended(before, links[-1])]
    elif isinstance(last, chord) and isinstance(then, group) and _depth(last) >= _DEEPEST:
        links.append(then)
    elif isinstance(last, chord) and not isinstance(then, chord):
        links[-1] = _extended(last, then)
    else:
        links.append(then)
    return None


def _extended(first: chord, then: Signature[Any]) -> chord:
    """A chord with the same header, whose body `then` follows."""
    return first.with_body(joined(first.body, then))


def _depth(one: Signature[Any]) -> int:
    """How many chords end with one another."""
    depth = 0
    while depth < _DEEPEST:
        if isinstance(one, chain) and one.tasks:
            one = one.tasks[-1]
        elif isinstance(one, chord) and (body := one["kwargs"]["body"]) is not None:
            one = body
            depth += 1
        else:
            break
    return depth


def _is_empty(one: Signature[Any]) -> bool:
    return isinstance(one, group) and not one.tasks


def _unrolled(one: Signature[Any]) -> Signature[Any]:
    """The only member of a group of one; any other signature itself."""
    if not isinstance(one, group) or len(one.tasks) != 1:
        return one
    (only,) = one.tasks
    options = {name: value for name, value in one["options"].items() if name not in OF_THE_END}
    if not (options or one["args"]):
        return only
    return only.clone(one["args"], **options)
