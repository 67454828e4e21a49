"""How results belong together: what came before a call, and what its task has sent."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import BackendUnavailable, ImproperlyConfigured, IncompleteStream
from minicelery.stored import has_failed, raise_stored

if TYPE_CHECKING:
    from minicelery.result import AsyncResult

AT_ONCE = 5000
"""Documents asked for in one trip: more would hold up everybody else's."""

Result = Any
"""An AsyncResult, or a ResultSet."""


def calls_of(result: Result) -> Iterable[AsyncResult[Any]]:
    """The result itself, or the calls of a set, also of those sets that are in it."""
    leaves = getattr(result, "leaves", None)
    found: Iterable[AsyncResult[Any]] = (result,) if leaves is None else leaves()
    return found


def steps_before(result: Result) -> list[Result]:
    """The results of the steps that came before, the first one first."""
    steps = []
    while (result := getattr(result, "parent", None)) is not None:
        steps.append(result)
    return steps[::-1]


def calls_before(result: Result) -> list[AsyncResult[Any]]:
    """The calls that came before, the first step's first."""
    return [call for step in steps_before(result) for call in calls_of(step)]


def read_all(calls: Iterable[AsyncResult[Any]]) -> None:
    """Have those that are final know it: one trip for all, more for some thousands."""
    pending = [call for call in calls if call._final is None and not call._ignored]
    for start in range(0, len(pending), AT_ONCE):
        part = pending[start : start + AT_ONCE]
        for call, found in zip(part, part[0].backend.load([call.id for call in part]), strict=True):
            if found is not None:
                call._read(found.document)


def raise_first_failure(calls: Collection[AsyncResult[Any]]) -> None:
    """Raise what the first of these calls has failed with that has failed; reads the store if it can."""
    # rpc:// tells only of what this process has sent itself; who waits for more will hear of an outage.
    with contextlib.suppress(ImproperlyConfigured, BackendUnavailable):
        read_all(calls)
    for call in calls:
        if call._final is not None and has_failed(call._final):
            raise_stored(call._final)


def dependencies(root: AsyncResult[Any], intermediate: bool) -> Iterator[tuple[Result | None, Result]]:
    """Pairs of a result and one that its task has sent, or its member; first `(None, root)`.

    Looks at what follows from a result only when the next pair is asked for.  Raises
    IncompleteStream where that one is not final then, unless `intermediate`.
    """
    waiting: deque[tuple[Result | None, Result]] = deque([(None, root)])
    while waiting:
        parent, node = waiting.popleft()
        yield parent, node
        if node.ready():
            children = node.children or []
            read_all(call for child in children for call in calls_of(child))
            waiting.extend((node, child) for child in children)
        elif not intermediate:
            raise IncompleteStream(
                f"task {getattr(node, 'id', node)} is not done, so what it sends is not known yet; "
                "get() it first, or go over what there is with intermediate=True"
            )
