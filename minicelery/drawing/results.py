"""Pictures of results: of the calls that were made, and what has become of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from minicelery import states
from minicelery.drawing.shapes import BOXES, LINKS, Box, Branch, Fork, Row, ends_of, members_at, more
from minicelery.drawing.words import cut, cut_name, value_text, visible
from minicelery.groups import ResultSet
from minicelery.result import AsyncResult, result_from_tuple

_FAILED = 3
"""So many members that have failed are drawn, wherever in a large group they stand."""
_BAD = (states.FAILURE, states.REVOKED)
_UNKNOWN: dict[str, Any] = {"status": states.PENDING, "result": None}

Result = Any
"""An AsyncResult, or a ResultSet."""


def row_of(result: Result) -> Row:
    """What led to the result, itself, and what its task has sent; with the states of this moment.

    Raises BackendUnavailable.
    """
    return Reader().row(result, 0)


class Reader:
    """Makes rows of results: reads the store, many results in one trip, and draws each result once."""

    def __init__(self) -> None:
        self.left = BOXES
        self._metas: dict[str, dict[str, Any]] = {}
        self._seen: set[str] = set()

    def row(self, result: Result, depth: int) -> Row:
        """The steps that end with `result`, and what came of it."""
        line = self._line(result, climb=depth == 0)
        self._load(line)
        first, hidden, last = ends_of(line)
        found: Row = []
        for one in first:
            self._add(one, found, depth, followed=one is not line[-1])
        if hidden:
            found.append(self._more(hidden))
        for one in last:
            self._add(one, found, depth, followed=one is not line[-1])
        self._follow(line[-1], found, depth)
        return found

    def _line(self, result: Result, climb: bool) -> list[Result]:
        """The result and those before it, the first one first; `climb` by what is stored, too."""
        line = [result]
        self._seen.add(getattr(result, "id", ""))
        while above := self._before(line[-1], climb and len(line) <= LINKS):
            for one in above:
                if one.id in self._seen:
                    return line[::-1]
                self._seen.add(one.id)
                line.append(one)
        return line[::-1]

    def _before(self, result: Result, climb: bool) -> list[Result]:
        """What came directly before it, the last first."""
        if (parent := getattr(result, "parent", None)) is not None:
            return [parent]
        if not climb or not isinstance(result, AsyncResult):
            return []
        self._load([result])
        id = self._meta(result).get("parent_id")
        if not id:
            return []
        parent = AsyncResult(id, result.backend, app=result.app)
        self._load([parent])
        between: list[Result] = []  # a chord's header, which its body's record does not name
        for child in self._children(parent, drawn=True):
            one = child if child.id == result.id else None
            while one is not None and (one := one.parent) is not None and one.id != id:
                between.append(one)
        return [*between, parent]

    def _add(self, result: Result, row: Row, depth: int, followed: bool) -> None:
        if self.left <= 0:
            if not (row and isinstance(row[-1], Box) and row[-1].more):
                row.append(more("more"))
        elif isinstance(result, ResultSet):
            row.append(self._fork(result.results, "group of", depth, followed))
        else:
            self.left -= 1
            row.append(box := box_of(result, self._meta(result)))
            for child in self._children(result) if followed else ():
                box.branches.append(Branch("sent", self.row(child, depth + 1)))

    def _follow(self, last: Result, row: Row, depth: int) -> None:
        """Have the row go on with what the task of `last` has sent, and with what that one has."""
        while isinstance(last, AsyncResult) and self.left > 0 and (children := self._children(last)):
            if len(children) > 1:
                row.append(self._fork(children, "sent", depth, followed=False))
                return
            line = self._line(children[0], climb=False)
            self._load(line)
            last = children[0]
            for one in line:
                self._add(one, row, depth, followed=one is not last)

    def _fork(self, members: Sequence[Result], caption: str, depth: int, followed: bool) -> Box | Fork:
        size = len(members)
        if not size:
            return Box("(empty group)", more=True)
        self._seen.update(one.id for one in members)
        self._load(members)
        shown = self._shown(members, members_at(depth))
        rows: list[Row] = []
        hidden: list[Result] = []
        for at, one in enumerate(members):
            if at in shown and self.left > 0:
                rows.append(self.row(one, depth + 1))
            else:
                hidden.append(one)
        if hidden:
            rows.append([self._more(hidden)])
        return Fork(rows, f"{caption} {size:,}", f"all {size:,}" if followed else "")

    def _shown(self, members: Sequence[Result], count: int) -> set[int]:
        """Which members to draw: the first, and a few that have failed."""
        if len(members) <= count + 1:
            return set(range(len(members)))
        bad = [
            at for at, one in enumerate(members) if any(self._state(call) in _BAD for call in calls_of([one]))
        ]
        shown = set(bad[:_FAILED])
        for at in range(len(members)):
            if len(shown) == count:
                break
            shown.add(at)
        return shown

    def _more(self, hidden: Sequence[Result]) -> Box:
        counts = Counter(map(self._state, calls_of(hidden)))
        box = more(f"{len(hidden):,} more")
        box.detail = cut(
            ", ".join(f"{count:,} {visible(state)}" for state, count in counts.most_common(4)), 60
        )
        return box

    # -- the store -------------------------------------------------------------------------

    def _load(self, results: Iterable[Result]) -> None:
        """Read what is stored of the calls among these, in one trip."""
        wanted = [one for one in calls_of(results) if one.id not in self._metas]
        for one in wanted:
            if one._final is not None:
                self._metas[one.id] = one._final
        wanted = [one for one in wanted if one._final is None and not one._ignored]
        if wanted:  # those of one composition are in one store
            for one, found in zip(wanted, wanted[0].backend.load([one.id for one in wanted]), strict=True):
                self._metas[one.id] = _UNKNOWN if found is None else one._read(found.document)

    def _meta(self, result: AsyncResult[Any]) -> dict[str, Any]:
        return self._metas.get(result.id, _UNKNOWN)

    def _state(self, result: AsyncResult[Any]) -> str:
        return str(self._meta(result)["status"])

    def _children(self, result: AsyncResult[Any], drawn: bool = False) -> list[Result]:
        """The results of what its task has sent; those that are drawn nowhere yet, or all."""
        found = []
        for child in self._meta(result).get("children") or ():
            made = result_from_tuple(child, result.app)
            if drawn or made.id not in self._seen:
                found.append(made)
        return found


def calls_of(results: Iterable[Result]) -> Iterator[AsyncResult[Any]]:
    """The calls among them, also those of groups."""
    for one in results:
        if isinstance(one, ResultSet):
            yield from one.leaves()
        else:
            yield one


def box_of(result: AsyncResult[Any], meta: dict[str, Any]) -> Box:
    """The box of one call and its state."""
    name, state, value = result._name or meta.get("name"), str(meta["status"]), meta.get("result")
    short = result.id if len(result.id) <= 13 else f"{result.id[:8]}…"
    if isinstance(value, BaseException):
        text = f"{type(value).__name__}: {value}"
    elif state == states.SUCCESS or value is not None:
        text = f"= {value_text(value)}"
    else:
        text = short if name else ""
    about = f"{visible(result.id[:200])}: {visible(state)}{' ' if text else ''}{visible(text[:300])}"
    return Box(cut_name(name or short), cut(visible(text[:300])), visible(state), about)
