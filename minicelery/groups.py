"""Results of many calls: `ResultSet`, and `GroupResult` for those that belong together."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from minicelery._state import get_current_app
from minicelery.awaiting import in_thread
from minicelery.exceptions import BackendUnavailable, TimeoutError
from minicelery.joining import assert_will_not_block
from minicelery.message import new_id
from minicelery.result import AsyncResult

if TYPE_CHECKING:
    from minicelery.app import Celery

NET = 5.0
"""Seconds after which a wait reads the store again, should a notice have been lost."""
OUTAGE = 60.0
"""Seconds without the store after which a wait without a timeout gives up."""

Member = Any
"""An AsyncResult, or a GroupResult."""


class ResultSet:
    """Several results, in order; each once."""

    def __init__(self, results: Iterable[Member], app: Celery | None = None, **_: Any) -> None:
        self._app = app
        self.results: list[Member] = []
        self.update(results)

    @property
    def app(self) -> Celery:
        if self._app is not None:
            return self._app
        found: Celery = self.results[0].app if self.results else get_current_app()
        return found

    @property
    def backend(self) -> Any:
        return self.results[0].backend if self.results else self.app.backend

    # -- the set ---------------------------------------------------------------------------

    def add(self, result: Member) -> None:
        """Add a result that is not there yet."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Member | str) -> None:
        """Take a result away, by itself or its id.  Raises KeyError where it is not there."""
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Member | str) -> None:
        """Take a result away, if it is there."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Iterable[Member]) -> None:
        """Add results that are not there yet."""
        known = set(map(_id, self.results))
        for result in results:
            if _id(result) not in known:
                known.add(_id(result))
                self.results.append(result)

    def clear(self) -> None:
        """Take all away."""
        self.results.clear()

    def __iter__(self) -> Iterator[Member]:
        return iter(self.results)

    def __getitem__(self, index: int) -> Member:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return other.results == self.results if isinstance(other, ResultSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(map(_id, self.results)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(map(_id, self.results))}]>"

    # -- reading ---------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether all are final."""
        return not self._unfinished()

    def waiting(self) -> bool:
        """Whether one is not final yet."""
        return not self.ready()

    def successful(self) -> bool:
        """Whether all have returned."""
        self._unfinished()
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Whether one has failed."""
        self._unfinished()
        return any(result.failed() for result in self.results)

    def completed_count(self) -> int:
        """How many have returned."""
        self._unfinished()
        return sum(1 for result in self.results if result.successful())

    def maybe_throw(self, callback: Callable[[str, Any], Any] | None = None, propagate: bool = True) -> None:
        """Raise what the first has failed with that has failed."""
        self._unfinished()
        for result in self.results:
            result.maybe_throw(callback=callback, propagate=propagate)

    maybe_reraise = maybe_throw

    def _unfinished(self) -> list[AsyncResult[Any]]:
        """The calls among them that are not final, after a look at the store: one trip for all."""
        pending = [one for one in self.leaves() if one._final is None and not one._ignored]
        if pending:
            for one, found in zip(pending, self.backend.load([one.id for one in pending]), strict=True):
                if found is not None:
                    one._read(found.document)
        return [one for one in pending if one._final is None]

    def leaves(self) -> Iterator[AsyncResult[Any]]:
        """The calls, also of the groups among them."""
        for result in self.results:
            if isinstance(result, ResultSet):
                yield from result.leaves()
            else:
                yield result

    # -- waiting ---------------------------------------------------------------------------

    def get(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None, no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None, disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None, **_: Any,
    ) -> list[Any]:  # fmt: skip
        """Wait for all of them, and return their values in order, or raise what one has failed with.

        Raises TimeoutError when all together take longer than `timeout` seconds.  With
        `propagate=False` exceptions are among the values.  `callback` is called with each id and
        value, in order.  One subscription for all.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        wait = interval if on_interval else NET
        for _result in self._finals(timeout, propagate, on_message, wait, on_interval):
            pass
        return [_value(result, propagate, callback) for result in self.results]

    join = join_native = get

    def iter_native(
        self, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
        """Id and meta of each call as it becomes final; a failure is a meta."""
        for result in self._finals(timeout, False, on_message, interval if on_interval else NET, on_interval):
            assert result._final is not None
            yield result.id, result._final

    def _finals(
        self, timeout: float | None, propagate: bool, on_message: Callable[[dict[str, Any]], Any] | None,
        interval: float, on_interval: Callable[[], Any] | None,
    ) -> Iterator[AsyncResult[Any]]:  # fmt: skip
        """The calls as they become final; with `propagate` raises what the first has failed with."""
        end = None if timeout is None else time.monotonic() + timeout
        pending: dict[str, AsyncResult[Any]] = {}
        for result in self.leaves():
            if result._final is not None:
                yield result
            elif not result._ignored:
                pending[result.id] = result
        seen: dict[str, bytes] = {}
        outage_began: float | None = None
        while pending:
            wait = interval if end is None else min(interval, max(0.0, end - time.monotonic()))
            try:
                found = self.backend.watch(list(pending), seen, wait)
                outage_began = None
            except BackendUnavailable:
                now = time.monotonic()
                outage_began = outage_began or now
                if now - outage_began > OUTAGE:
                    raise
                found = []
                time.sleep(0.2)
            for news in found:
                result = pending[news.id]
                seen[news.id] = news.document
                meta = result._read(news.document)
                if on_message is not None:
                    on_message(meta)
                if result._final is not None:
                    del pending[news.id], seen[news.id]
                    if propagate:
                        result.maybe_throw()
                    yield result
            if pending and end is not None and time.monotonic() >= end:
                raise TimeoutError(f"{len(pending)} of {len(self)} tasks were not done within {timeout:g} s")
            if on_interval is not None:
                on_interval()

    async def aget(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> list[Any]:
        """`get`, without blocking the event loop."""
        if options.pop("disable_sync_subtasks", True):
            assert_will_not_block()
        more = {"disable_sync_subtasks": False, **options}
        return await in_thread(self.app, partial(self.get, timeout, propagate, **more))

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self.aget().__await__()

    # -- acting ----------------------------------------------------------------------------

    def forget(self) -> None:
        """Drop what is stored of them."""
        for result in self.results:
            result.forget()

    def revoke(
        self, connection: Any = None, terminate: bool = False, signal: str | int | None = None,
        wait: bool = False, timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Have those not run that have not begun; see `AsyncResult.revoke`."""
        ids = [result.id for result in self.leaves()]
        self.app.control.revoke(ids, terminate=terminate, signal=signal or "SIGTERM")

    @property
    def supports_native_join(self) -> bool:
        """Whether one wait serves all: always."""
        return True


class GroupResult(ResultSet):
    """The results of a group's members; `parent` is that of the step before it."""

    def __init__(
        self, id: str | None = None, results: Iterable[Member] = (), parent: Any = None,
        app: Celery | None = None, **_: Any,
    ) -> None:  # fmt: skip
        self.id = id or new_id()
        self.parent = parent
        super().__init__((), app)
        self.results = list(results)  # those of a group are many, and differ

    @property
    def children(self) -> list[Member]:
        """Its members."""
        return self.results

    def get(self, *args: Any, **options: Any) -> list[Any]:
        """See `ResultSet.get`; raises first what a step before the group has failed with."""
        if options.get("propagate", args[1] if len(args) > 1 else True) and self.parent is not None:
            _ask(self.parent)
        return super().get(*args, **options)

    join = join_native = get

    def as_tuple(self) -> tuple[tuple[str, Any], list[Any]]:
        """`((id, parent), [members])`: the form in which results refer to each other."""
        return (self.id, self.parent and self.parent.as_tuple()), [one.as_tuple() for one in self.results]

    def as_list(self) -> list[str]:
        """The ids of its members, its own and those of its parents."""
        found = [id for one in self.results for id in one.as_list()]
        return [*found, self.id, *(self.parent.as_list() if self.parent else [])]

    def _ask_parents(self) -> None:
        if self.parent is not None:
            _ask(self.parent)

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return (self.id, self.results, self.parent) == (other.id, other.results, other.parent)
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} [{', '.join(map(_id, self.results))}]>"

    def __reduce__(self) -> Any:
        return type(self), (self.id, self.results, self.parent)


class EagerGroupResult(GroupResult):
    """The result of a group that was run at once, by `apply`."""

    def get(self, timeout: float | None = None, propagate: bool = True, *_: Any, **__: Any) -> list[Any]:
        """The values, or raise what the first has failed with."""
        return [result.get(propagate=propagate) for result in self.results]


def _id(result: Member) -> str:
    id: str = result.id
    return id


def _ask(parent: Any) -> None:
    """Raise what a step has failed with, the first one's first; a result that is there already."""
    parent._ask_parents()
    parent.maybe_throw()


def _value(result: Member, propagate: bool, callback: Callable[[str, Any], Any] | None) -> Any:
    if isinstance(result, ResultSet):
        values = [_value(one, propagate, None) for one in result.results]
        if callback is not None:
            callback(_id(result), values)
        return values
    if result._ignored:
        return None
    return result.maybe_throw(propagate, callback)
