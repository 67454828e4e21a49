"""Results of many calls: `ResultSet`, and `GroupResult` for those that belong together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from minicelery import saved_groups
from minicelery._state import get_current_app
from minicelery.awaiting import in_thread
from minicelery.joining import allow_join_result, assert_will_not_block
from minicelery.lineage import calls_before, raise_first_failure, read_all
from minicelery.message import new_id
from minicelery.result import AsyncResult, EagerResult, ids_with_parents, result_from_tuple, tuple_of_parents
from minicelery.stored import has_failed, raise_stored, value_of
from minicelery.waiting import NET, Tally, finals

if TYPE_CHECKING:
    from minicelery.app import Celery

Member = Any
"""An AsyncResult, or a GroupResult."""
Callback = Callable[[str, Any], Any]
Self = TypeVar("Self", bound="ResultSet")


class ResultSet:
    """Several results, in order; each once."""

    _app: Celery | None = None
    parent: Any = None

    def __init__(self, results: Iterable[Member], app: Celery | None = None, **_: Any) -> None:
        if app is not None:
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
        self.update([result])

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
            if isinstance(result, str):
                raise TypeError(f"a ResultSet takes results, got {result!r:.80}; app.AsyncResult(id) is one")
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

    def __eq__(self, other: object) -> bool:
        return other.results == self.results if isinstance(other, ResultSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(map(_id, self.results)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(map(_id, self.results))}]>"

    def leaves(self) -> Iterator[AsyncResult[Any]]:
        """The calls, also of the groups among them."""
        for result in self.results:
            if isinstance(result, ResultSet):
                yield from result.leaves()
            else:
                yield result

    # -- reading ---------------------------------------------------------------------------

    def _read(self) -> list[AsyncResult[Any]]:
        """The calls among them, after a look at the store: one trip for all."""
        calls = list(self.leaves())
        read_all(calls)
        return calls

    def ready(self) -> bool:
        """Whether all are final."""
        return all(call._final is not None or call._ignored for call in self._read())

    def waiting(self) -> bool:
        """Whether one is not final yet."""
        return not self.ready()

    def successful(self) -> bool:
        """Whether all have returned."""
        return all(_has_state(call, "SUCCESS") for call in self._read())

    def failed(self) -> bool:
        """Whether one has failed."""
        return any(_has_state(call, "FAILURE") for call in self._read())

    def completed_count(self) -> int:
        """How many have returned; a group among them counts as one."""
        self._read()
        return sum(all(_has_state(call, "SUCCESS") for call in _calls(one)) for one in self.results)

    def maybe_throw(self, callback: Callback | None = None, propagate: bool = True) -> None:
        """Raise what the first has failed with that has failed; `callback` as with `get`."""
        self._read()
        for result in self.results:
            _value(result, propagate, callback)

    maybe_reraise = maybe_throw

    # -- waiting ---------------------------------------------------------------------------

    def get(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5,
        callback: Callback | None = None, no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None, disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None, *, follow_parents: bool = True,
    ) -> list[Any]:  # fmt: skip
        """Wait for all of them, and return their values in order, or raise what one has failed with.

        Raises TimeoutError when all together take longer than `timeout` seconds.  With
        `propagate=False` exceptions are among the values.  `callback` is called with the id and
        the value of each as it ends.  What an earlier step has failed with is raised first, unless
        `follow_parents=False`.  One subscription for all.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        earlier = calls_before(self) if follow_parents and propagate else []
        if earlier:
            raise_first_failure(earlier)
        tally = Tally(self.results)
        values = _Values(propagate, follow_parents, callback)
        values.take(tally.ended)
        tick = interval if on_interval else NET
        for call in finals(
            tally.calls, timeout, on_message=on_message, interval=tick, on_interval=on_interval
        ):
            if propagate and has_failed(call._final):
                _raise(call, earlier, follow_parents)
            values.take(tally.end(call))
        return values.of(self.results)

    join_native = get

    def join(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5,
        callback: Callback | None = None, no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None, disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None, *, follow_parents: bool = True,
    ) -> list[Any]:  # fmt: skip
        """`get`, whose callbacks are called in the order of the results."""
        ordered = None if callback is None else _InOrder(self.results, callback)
        return self.get(
            timeout, propagate, interval, ordered, no_ack, on_message, disable_sync_subtasks, on_interval,
            follow_parents=follow_parents,
        )  # fmt: skip

    def iter_native(
        self, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, Any]]:  # fmt: skip
        """Id and meta of each as it ends, a failure too; of a group among them id and members.

        What is ignored is left out: nothing is stored of it.
        """
        tally = Tally(self.results)
        yield from _found(tally.ended)
        tick = interval if on_interval else NET
        for call in finals(
            tally.calls, timeout, on_message=on_message, interval=tick, on_interval=on_interval
        ):
            yield from _found(tally.end(call))

    async def aget(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5,
        callback: Callback | None = None, no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None, disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None, *, follow_parents: bool = True,
    ) -> list[Any]:  # fmt: skip
        """`get`, without blocking the event loop, where the callbacks are called too."""
        from minicelery.hearing import Documents

        if disable_sync_subtasks:
            assert_will_not_block()
        earlier = calls_before(self) if follow_parents and propagate else []
        if earlier:
            await in_thread(self.app, partial(raise_first_failure, earlier))
        tally = Tally(self.results)
        values = _Values(propagate, follow_parents, callback)
        values.take(tally.ended)
        left = len(tally.calls)
        async with Documents(tally.calls, timeout, interval if on_interval else None) as documents:
            while left:
                meta, ended = await documents.next()
                if meta is None and on_interval is not None:
                    on_interval()
                elif meta is not None and on_message is not None:
                    on_message(meta)
                for call in ended:
                    left -= 1
                    if propagate and has_failed(call._final):
                        await in_thread(self.app, partial(_raise, call, earlier, follow_parents))
                    values.take(tally.end(call))
        return values.of(self.results)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self.aget().__await__()

    def then(
        self: Self, callback: Callable[[Self], Any], on_error: Callable[[BaseException], Any] | None = None,
        weak: bool = False,
    ) -> Self:  # fmt: skip
        """Have `callback` called with this set, once, when all are ready; see `AsyncResult.then`.

        `on_error` gets the exception of the first that has failed.
        """
        from minicelery.callbacks import call_when_ready

        call_when_ready(self, callback, on_error, weak)
        return self

    # -- acting ----------------------------------------------------------------------------

    def forget(self) -> None:
        """Drop what is stored of them, and of the steps before each."""
        found = (call for leaf in self.leaves() for call in (*calls_before(leaf), leaf))
        calls = [call for call in found if not isinstance(call, EagerResult)]
        for call in calls:
            call._final = None
        if calls:
            self.backend.forget([call.id for call in calls])

    async def aforget(self) -> None:
        """`forget`, without blocking the event loop."""
        await in_thread(self.app, self.forget)

    def revoke(
        self, connection: Any = None, terminate: bool = False, signal: str | int | None = None,
        wait: bool = False, timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Have those not run that have not begun; see `AsyncResult.revoke`."""
        ids = [result.id for result in self.leaves()]
        self.app.control.revoke(ids, terminate=terminate, signal=signal or "SIGTERM")

    async def arevoke(self, *args: Any, **options: Any) -> None:
        """`revoke`, without blocking the event loop."""
        await in_thread(self.app, partial(self.revoke, *args, **options))

    @property
    def supports_native_join(self) -> bool:
        """Whether one wait serves all: always."""
        return True


class GroupResult(ResultSet):
    """The results of a group's members; `parent` is that of the step before it."""

    def __init__(
        self, id: str | None = None, results: Iterable[Member] | None = None, parent: Any = None,
        app: Celery | None = None, **_: Any,
    ) -> None:  # fmt: skip
        self.id = id or new_id()
        self.parent = parent
        super().__init__((), app)
        self.results = list(results or ())  # those of a group are many, and differ

    @property
    def children(self) -> list[Member]:
        """Its members."""
        return self.results

    # -- saved -----------------------------------------------------------------------------

    def save(self, backend: Any = None) -> GroupResult:
        """Keep the ids of the group and its members in the result store, for `restore` to find.

        They are kept for `result_expires`.  Raises ImproperlyConfigured where the store can't.
        """
        keeper = saved_groups.keeper_of(backend or self.app.backend)
        expires = self.app.conf.result_expires
        ttl = expires.total_seconds() if hasattr(expires, "total_seconds") else expires
        keeper.save_group(self.id, saved_groups.encode(self, self.app.conf), ttl or None)
        return self

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: Celery | None = None) -> GroupResult | None:
        """The results of the group that was saved under `id`; None where there is none."""
        app = app or cls._app or get_current_app()
        document = saved_groups.keeper_of(backend or app.backend).restore_group(id)
        if document is None:
            return None
        found: GroupResult = result_from_tuple(saved_groups.decode(document, app.conf), app)
        return found

    def delete(self, backend: Any = None) -> None:
        """Drop what `save` has kept; the results stay."""
        saved_groups.keeper_of(backend or self.app.backend).delete_group(self.id)

    # -- as a value ------------------------------------------------------------------------

    def as_tuple(self) -> tuple[tuple[str, Any], list[Any]]:
        """`((id, parent), [members])`: the form in which results refer to each other."""
        return (self.id, tuple_of_parents(self)), [one.as_tuple() for one in self.results]

    def as_list(self) -> list[str]:
        """The ids of its members, its own and those of the steps before it."""
        return ids_with_parents(self)

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
        return GroupResult, (self.id, self.results, self.parent)


class EagerGroupResult(GroupResult):
    """The result of a group that was run at once, by `apply`: never waited for, so in tasks too."""

    def get(self, *args: Any, **options: Any) -> list[Any]:
        """The values, or raise what the first has failed with."""
        with allow_join_result():
            return super().get(*args, **options)

    join_native = get

    async def aget(self, *args: Any, **options: Any) -> list[Any]:
        """See `get`."""
        return self.get(*args, **options)


class _Values:
    """The values of results as they end, and who is told of each."""

    def __init__(self, propagate: bool, follow_parents: bool, callback: Callback | None) -> None:
        self._propagate = propagate
        self._follow = follow_parents
        self._callback = callback

    def take(self, ended: Iterable[Member]) -> None:
        for result in ended:
            if self._propagate:
                for call in _calls(result):
                    if has_failed(call._final):
                        _raise(call, [], self._follow)
            if self._callback is not None:
                self._callback(_id(result), _value(result, self._propagate, None))

    def of(self, results: Iterable[Member]) -> list[Any]:
        return [_value(result, self._propagate, None) for result in results]


class _InOrder:
    """Passes ids and values on in the order of the results."""

    def __init__(self, results: Iterable[Member], callback: Callback) -> None:
        self._ids = list(map(_id, results))
        self._next = 0
        self._known: dict[str, Any] = {}
        self._callback = callback

    def __call__(self, id: str, value: Any) -> None:
        self._known[id] = value
        while self._next < len(self._ids) and (id := self._ids[self._next]) in self._known:
            self._next += 1
            self._callback(id, self._known[id])


def _id(result: Member) -> str:
    id: str = result.id
    return id


def _calls(result: Member) -> Iterable[AsyncResult[Any]]:
    return result.leaves() if isinstance(result, ResultSet) else (result,)


def _has_state(call: AsyncResult[Any], state: str) -> bool:
    return call._final is not None and call._final["status"] == state


def _found(ended: Iterable[Member]) -> Iterator[tuple[str, Any]]:
    for result in ended:
        if isinstance(result, ResultSet):
            yield _id(result), result.results
        elif result._final is not None:
            yield result.id, result._final


def _raise(call: AsyncResult[Any], earlier: list[AsyncResult[Any]], follow_parents: bool) -> None:
    """Raise what a call has failed with, or what a step before it has."""
    before = calls_before(call) if follow_parents else []
    if earlier or before:
        raise_first_failure([*earlier, *before])
    assert call._final is not None
    raise_stored(call._final)


def _value(result: Member, propagate: bool, callback: Callback | None) -> Any:
    """The value of what has ended, or raise what it has failed with; None of what has not."""
    value: Any
    if isinstance(result, ResultSet):
        value = [_value(one, propagate, None) for one in result.results]
    else:
        final = result._final
        if propagate and has_failed(final):
            raise_stored(final)
        value = value_of(final)
    if callback is not None:
        callback(_id(result), value)
    return value
