"""Results: reading, waiting for and raising what a task has left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

from minicelery import exceptions, states
from minicelery.awaiting import in_thread
from minicelery.broker.disabled import DisabledBackend as DisabledBackend
from minicelery.exceptions import TaskRevokedError
from minicelery.joining import allow_join_result as allow_join_result
from minicelery.joining import assert_will_not_block as assert_will_not_block
from minicelery.joining import denied_join_result as denied_join_result
from minicelery.lineage import calls_before, dependencies, raise_first_failure, steps_before
from minicelery.stop_signals import stop_signal
from minicelery.stored import StoredCall, has_failed, raise_stored, value_of
from minicelery.waiting import NET, finals

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.groups import GroupResult as GroupResult
    from minicelery.groups import ResultSet as ResultSet
    from minicelery.result_graph import ResultGraph

R = TypeVar("R")


class StateChange(NamedTuple):
    """A state that a task has reached, and its value, exception or meta."""

    state: str
    info: Any


class AsyncResult(StoredCall, Generic[R]):
    """A handle on one task call: its id, and the app whose backend knows the rest.

    Reading an attribute reads the store, until the state is final.
    """

    TimeoutError = exceptions.TimeoutError

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: Any = None,
    ) -> None:
        if not id:
            raise ValueError("AsyncResult needs a task id, got an empty one")
        self.id = id
        self.parent = parent  # the result of the step before it, which may be a group's
        self._app = app
        self._backend = backend
        self._name = task_name
        self._final: dict[str, Any] | None = None
        self._ignored = False

    # -- what follows from it --------------------------------------------------------------

    @property
    def children(self) -> list[Any] | None:
        """The results of what the task sent, groups among them; None while it has none stored."""
        children = self._meta().get("children")
        return None if children is None else [result_from_tuple(child, self.app) for child in children]

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Pairs of a result and one that its task has sent, or its member; first `(None, self)`.

        Raises IncompleteStream at one that is not final, unless `intermediate`.
        """
        return dependencies(self, intermediate)

    def collect(self, intermediate: bool = False, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Each result of `iterdeps` and its value, waited for with these options of `get`."""
        for _, node in self.iterdeps(intermediate):
            yield node, node.get(**options)

    def get_leaf(self) -> Any:
        """The value of what was sent last by what follows from the task; waits for all of them."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def build_graph(self, intermediate: bool = False, formatter: None = None) -> ResultGraph:
        """What follows from the task, as far as it is final; more is IncompleteStream, see `iterdeps`."""
        from minicelery.result_graph import ResultGraph

        if formatter is not None:
            raise TypeError("build_graph has no formatter=: see mermaid(), svg() and to_dot() of the graph")
        return ResultGraph(self, intermediate)

    @cached_property
    def graph(self) -> ResultGraph:
        """`build_graph()`, made once."""
        return self.build_graph()

    # -- waiting ---------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the final state and return the task's value, or raise what it raised.

        Waits `timeout` seconds (None: as long as it takes), then raises TimeoutError.  With
        `propagate=False` an exception is returned.  Where an earlier step has failed, what that
        one raised is raised, the first one's first, unless `follow_parents=False`.  `callback`
        is called with id and value; `on_message` with every state's document; `on_interval`
        each `interval` seconds.  One subscription, no polling.  Raises RuntimeError inside of a
        task: see `allow_join_result`.
        """
        if self._ignored:
            return None  # type: ignore[return-value]  # Celery's answer for an ignored result
        if disable_sync_subtasks:
            assert_will_not_block()
        earlier = calls_before(self) if follow_parents and propagate and self.parent is not None else []
        if earlier:
            raise_first_failure(earlier)
        if self._final is None:
            each, tick = _each(earlier, interval, on_interval)
            for _ in finals([self], timeout, on_message=on_message, interval=tick, on_interval=each):
                pass
        if earlier and has_failed(self._final):
            raise_first_failure(earlier)
        return self.maybe_throw(propagate, callback)  # type: ignore[no-any-return]

    wait = get

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raise what the task raised, if it has failed already; else its value so far."""
        meta = self._meta()
        if propagate and has_failed(meta):
            raise_stored(meta)
        if callback is not None:
            callback(self.id, meta.get("result"))
        return meta.get("result")

    maybe_reraise = maybe_throw

    def throw(self, exc: BaseException, tb: Any = None, propagate: bool = True) -> NoReturn:
        """Raise `exc`."""
        raise exc

    def then(
        self: Self, callback: Callable[[Self], Any], on_error: Callable[[BaseException], Any] | None = None,
        weak: bool = False,
    ) -> Self:  # fmt: skip
        """Have `callback` called with this result, once, when it is ready; returns at once.

        Where it is known to be ready that is here and now; else in a thread of the process that
        calls all callbacks, one after the other, and logs what they raise.  A failed result goes
        to the callback as well, or, if there is `on_error`, its exception to that one instead.
        `weak`: only if somebody else still has the result.  A process that ends, or a forked
        child, calls nobody back.
        """
        from minicelery.callbacks import call_when_ready

        call_when_ready(self, callback, on_error, weak)
        return self

    def __await__(self) -> Generator[Any, None, R]:
        return self.aget().__await__()

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """`get`, without blocking the event loop, where the callbacks are called too."""
        if self._ignored:
            return None  # type: ignore[return-value]  # Celery's answer for an ignored result
        if disable_sync_subtasks:
            assert_will_not_block()
        earlier = calls_before(self) if follow_parents and propagate and self.parent is not None else []
        look = partial(raise_first_failure, earlier)
        if earlier:
            await in_thread(self.app, look)
        if self._final is None:
            from minicelery.hearing import Documents

            tick = interval if on_interval else NET if earlier else None
            async with Documents([self], timeout, tick) as documents:
                while self._final is None:
                    meta, _ = await documents.next()
                    if meta is not None:
                        if on_message is not None:
                            on_message(meta)
                        continue
                    if earlier:
                        await in_thread(self.app, look)
                    if on_interval is not None:
                        on_interval()
        if earlier and has_failed(self._final):
            await in_thread(self.app, look)
        return self.maybe_throw(propagate, callback)  # type: ignore[no-any-return]

    async def aiter_states(self, timeout: float | None = None) -> AsyncIterator[StateChange]:
        """Each state from the present one on, as it is stored; the final one is the last.

        Of states that follow each other faster than they can be told only the later ones
        come.  Raises TimeoutError after `timeout` seconds in all; a failure is a state.
        """
        if self._ignored:
            return
        assert_will_not_block()
        if self._final is not None:
            yield StateChange(self._final["status"], self._final.get("result"))
            return
        from minicelery.hearing import Documents

        async with Documents([self], timeout) as documents:
            change: StateChange | None = None
            # Not until `_final` is set: whoever else awaits this result may have heard before.
            while change is None or change.state not in states.ENDED:
                meta, _ = await documents.next()
                if meta is not None:
                    change = StateChange(meta["status"], meta.get("result"))
                    yield change

    # -- acting ----------------------------------------------------------------------------

    def forget(self) -> None:
        """Drop what is stored of the call, and of the steps before it."""
        calls = [*calls_before(self), self]
        for call in calls:
            call._final = None
        self.backend.forget([call.id for call in calls])

    async def aforget(self) -> None:
        """`forget`, without blocking the event loop."""
        await in_thread(self.app, self.forget)

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Have the task not run, if it has not begun: the worker that meets it says REVOKED.

        `terminate` ends it where it runs as well, by `signal` (SIGTERM).  The order is kept
        in the broker, so it outlives every worker; it is there when this returns, and
        nothing else is waited for.
        """
        name = stop_signal(signal)
        self.app._revoke(self.id, terminate=terminate, signal=name)

    async def arevoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """`revoke`, without blocking the event loop."""
        await in_thread(self.app, partial(self.revoke, connection, terminate, signal, wait, timeout))

    def revoke_by_stamped_headers(
        self, headers: Any, connection: Any = None, terminate: bool = False,
        signal: str | int | None = None, wait: bool = False, timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Have calls not run that bear these stamps, whichever they are; see `app.control`."""
        self.app.control.revoke_by_stamped_headers(
            headers, terminate=terminate, signal=signal or "SIGTERM", reply=wait, timeout=timeout
        )

    # -- as a value ------------------------------------------------------------------------

    @property
    def supports_native_join(self) -> bool:
        """Whether one wait serves many: always."""
        return True

    def as_tuple(self) -> tuple[tuple[str, Any], Any]:
        """`((id, parent), None)`: the form in which results refer to each other."""
        return (self.id, tuple_of_parents(self)), None

    def as_list(self) -> list[str]:
        """The ids of this task and of those before it."""
        return ids_with_parents(self)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return self.id == other.id
        return self.id == other if isinstance(other, str) else NotImplemented

    def __copy__(self) -> AsyncResult[R]:
        return AsyncResult(self.id, self._backend, self._name, self._app, self.parent)

    def __reduce__(self) -> Any:
        return type(self), (self.id, None, self._name, None, self.parent)


Self = TypeVar("Self", bound=AsyncResult[Any])


class EagerResult(AsyncResult[R]):
    """The result of a task that was run at once, by `apply`.  Nothing of it is stored."""

    def __init__(
        self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(id, task_name=name)
        self._final = {"status": state, "result": ret_value, "traceback": traceback, "children": None}

    def ready(self) -> bool:
        return True

    def forget(self) -> None:
        """Nothing is stored."""

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """It has run; its state is REVOKED from now on, as in Celery."""
        self._final = {
            "status": states.REVOKED,
            "result": TaskRevokedError("revoked"),
            "traceback": None,
            "children": None,
        }

    async def aforget(self) -> None:
        """Nothing is stored."""

    async def arevoke(self, *args: Any, **kwargs: Any) -> None:
        """See `revoke`."""
        self.revoke()

    def get(self, timeout: float | None = None, propagate: bool = True, *_: Any, **__: Any) -> R:
        """The value, or raise what the task raised; inside of a task too, as it never waits."""
        assert self._final is not None
        if propagate and has_failed(self._final):
            raise_stored(self._final)
        value: R = value_of(self._final)
        return value

    wait = get

    async def aget(self, timeout: float | None = None, propagate: bool = True, *_: Any, **__: Any) -> R:
        """See `get`."""
        return self.get(timeout, propagate)

    @property
    def supports_native_join(self) -> bool:
        return False

    def __copy__(self) -> EagerResult[R]:
        rebuild, details = self.__reduce__()
        copied: EagerResult[R] = rebuild(*details)
        copied.parent = self.parent
        return copied

    def __reduce__(self) -> Any:
        final = self._final or {}
        return type(self), (self.id, final["result"], final["status"], final["traceback"], self._name)


def tuple_of_parents(result: Any) -> Any:
    """The tuple of what came before; None of the first."""
    found: Any = None
    for step in steps_before(result):  # chains may be longer than calls may be nested
        members = getattr(step, "results", None)
        found = (step.id, found), None if members is None else [one.as_tuple() for one in members]
    return found


def ids_with_parents(result: Any) -> list[str]:
    """The ids of the calls and groups, the last step's first."""
    ids = []
    for step in reversed([*steps_before(result), result]):
        ids += [id for one in getattr(step, "results", ()) for id in one.as_list()]
        ids.append(step.id)
    return ids


def result_from_tuple(value: Any, app: Celery | None = None) -> Any:
    """The result that `as_tuple` was made from."""
    levels = []
    parent: Any = None
    while value:
        if hasattr(value, "as_tuple"):
            parent = value
            break
        head, members = value
        id, value = head if isinstance(head, (list, tuple)) else (head, None)
        levels.append((id, members))
    for id, members in reversed(levels):
        if members is None:
            parent = AsyncResult(id, app=app, parent=parent)
        else:
            from minicelery.groups import GroupResult

            results = [result_from_tuple(member, app) for member in members]
            parent = GroupResult(id, results, parent, app=app)
    return parent


def _each(
    earlier: list[AsyncResult[Any]], interval: float, on_interval: Callable[[], Any] | None
) -> tuple[Callable[[], Any] | None, float]:
    """What to do now and then while waiting, and how often: see whether an earlier step has failed."""
    if not earlier:
        return on_interval, interval if on_interval else NET
    if on_interval is None:
        return partial(raise_first_failure, earlier), NET

    def each() -> None:
        raise_first_failure(earlier)
        on_interval()

    return each, interval


def __getattr__(name: str) -> Any:
    if name in ("ResultSet", "GroupResult"):
        from minicelery import groups

        return getattr(groups, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
