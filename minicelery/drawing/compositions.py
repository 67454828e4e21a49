"""Pictures of signatures: of what would be called, after what, and with what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minicelery.canvas.signatures import Signature, as_list, signature
from minicelery.canvas.steps import Fork as ForkOfSteps
from minicelery.canvas.steps import Step, steps_of
from minicelery.drawing.shapes import BOXES, Box, Branch, Fork, Row, ends_of, members_at, more
from minicelery.drawing.words import call_text, cut, cut_name, value_text, visible

_DEEPEST = 12
"""Links of links that are drawn: one may lead back to where it began."""
_EACH = {"celery.map": "map", "celery.starmap": "starmap", "celery.chunks": "chunks"}


def row_of(whole: Signature[Any]) -> Row:
    """What the signature would do."""
    steps = steps_of(whole)
    found = Composer(steps).row(steps, 0)
    return found or [Box("(empty)", more=True)]


class Composer:
    """Makes rows of steps; counts the boxes, and draws an errback of many calls once."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.left = BOXES
        self.links = 0
        self._errbacks = Counter(_key(link) for call in _calls(steps) for link in _links(call, "link_error"))

    def row(self, steps: Sequence[Step], depth: int) -> Row:
        """The steps one after the other."""
        found: Row = []
        first, hidden, last = ends_of(steps)
        for step in first:
            self._add(step, found, depth, followed=step is not steps[-1])
        if hidden:
            found.append(more(f"{len(hidden):,} more"))
        for step in last:
            self._add(step, found, depth, followed=step is not steps[-1])
        return found

    def _add(self, step: Step, row: Row, depth: int, followed: bool) -> None:
        if self.left <= 0:
            if not (row and isinstance(row[-1], Box) and row[-1].more):
                row.append(more("more"))
        elif isinstance(step, ForkOfSteps):
            row.append(self._fork(step, depth, followed))
        else:
            row.append(self._box(step, depth))

    def _fork(self, step: ForkOfSteps, depth: int, followed: bool) -> Box | Fork:
        size = len(step.parts)
        if not size:
            return Box("(empty group)", more=True)
        shown = members_at(depth)
        shown = size if size <= shown + 1 else shown
        rows: list[Row] = []
        for part in step.parts[:shown]:
            if self.left <= 0:
                break
            rows.append(self.row(part, depth + 1))
        if len(rows) < size:
            rows.append([more(f"{size - len(rows):,} more")])
        return Fork(rows, f"group of {size:,}", f"all {size:,}" if followed else "")

    def _box(self, call: Signature[Any], depth: int) -> Box:
        self.left -= 1
        box = box_of(call)
        if self.links >= _DEEPEST:
            return box
        self.links += 1
        for link in _links(call, "link"):
            box.branches.append(Branch("link", self._link(link, depth)))
        for link in _links(call, "link_error"):
            key = _key(link)
            if calls := self._errbacks.get(key, 1):
                self._errbacks[key] = 0
                caption = "link_error" if calls == 1 else f"link_error of {calls:,} calls"
                box.branches.append(Branch(caption, self._link(link, depth), failure=True))
        self.links -= 1
        return box

    def _link(self, link: Mapping[str, Any], depth: int) -> Row:
        return self.row(steps_of(signature(link)), depth + 1) or [Box("(empty)", more=True)]


def box_of(call: Signature[Any]) -> Box:
    """The box of one call."""
    task, args, kwargs = call.task, call.args, call.kwargs
    way, inner = _EACH.get(task), kwargs.get("task")
    if way and isinstance(inner, Mapping):
        items = kwargs.get("it")
        many = f"{len(items):,} calls" if isinstance(items, (list, tuple)) else "calls"
        detail = f"{many}, {value_text(kwargs['n'])} to a message" if "n" in kwargs else many
        name = str(inner.get("task"))
        return Box(cut_name(f"{name}.{way}"), detail, about=visible(f"{name[:200]}.{way}: {detail}"))
    detail = _given(call) or call_text(args, kwargs)
    whole = _given(call) or call_text(args, kwargs, 200)
    return Box(cut_name(task), f"({cut(detail, 32)})", about=f"{visible(task[:200])}({whole})")


def _given(call: Signature[Any]) -> str:
    """What the caller has chosen to show of the arguments, as `argsrepr` and `kwargsrepr`."""
    options = call.options
    shown = [str(options[name])[:200] for name in ("argsrepr", "kwargsrepr") if options.get(name)]
    return visible(", ".join(shown))


def _key(link: Mapping[str, Any]) -> str:
    try:
        return repr([link.get(name) for name in ("task", "args", "kwargs")])
    except Exception:  # a `__repr__` of the user's
        return str(id(link))


def _links(call: Signature[Any], option: str) -> list[Mapping[str, Any]]:
    return [link for link in as_list(call.options.get(option)) if isinstance(link, Mapping)]


def _calls(steps: Sequence[Step]) -> Iterator[Signature[Any]]:
    for step in steps:
        if isinstance(step, ForkOfSteps):
            for part in step.parts:
                yield from _calls(part)
        else:
            yield step
