"""Results: reading, waiting for and raising what a task has left."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Generator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

from minicelery import record, states
from minicelery._state import get_current_app
from minicelery.awaiting import in_thread
from minicelery.broker.disabled import DisabledBackend as DisabledBackend
from minicelery.exceptions import BackendUnavailable, TaskRevokedError, TimeoutError
from minicelery.joining import allow_join_result as allow_join_result
from minicelery.joining import assert_will_not_block
from minicelery.stop_signals import stop_signal

if TYPE_CHECKING:
    from minicelery.app import Celery

R = TypeVar("R")

_PENDING_META: dict[str, Any] = {"status": states.PENDING, "result": None}
_NET = 5.0  # seconds after which a wait reads the store again, should a notice have been lost
_OUTAGE = 60.0  # seconds without the store after which `get` without a timeout gives up


class StateChange(NamedTuple):
    """A state that a task has reached, and its value, exception or meta."""

    state: str
    info: Any


class AsyncResult(Generic[R]):
    """A handle on one task call: its id, and the app whose backend knows the rest.

    Reading an attribute reads the store, until the state is final.
    """

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: AsyncResult[Any] | None = None,
    ) -> None:
        if not id:
            raise ValueError("AsyncResult needs a task id, got an empty one")
        self.id = id
        self.parent = parent
        self._app = app
        self._backend = backend
        self._name = task_name
        self._final: dict[str, Any] | None = None
        self._ignored = False

    @property
    def app(self) -> Celery:
        return self._app or get_current_app()

    @property
    def backend(self) -> Any:
        return self._backend or self.app.backend

    @property
    def task_id(self) -> str:
        return self.id

    # -- reading ---------------------------------------------------------------------------

    def _meta(self) -> dict[str, Any]:
        if self._final is not None:
            return self._final
        if self._ignored:
            return _PENDING_META  # nothing is stored, whatever becomes of it
        found = self.backend.load([self.id])[0]
        return _PENDING_META if found is None else self._read(found.document)

    def _read(self, document: bytes) -> dict[str, Any]:
        return self._keep(record.read(document, self.app.conf))

    def _keep(self, meta: dict[str, Any]) -> dict[str, Any]:
        if meta["status"] in states.READY_STATES:
            self._final = meta
        return meta

    @property
    def state(self) -> str:
        """PENDING (also: unknown), STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or the task's own."""
        state: str = self._meta()["status"]
        return state

    status = state

    @property
    def result(self) -> Any:
        """The return value, the exception, or the meta of a state of the task's own."""
        return self._meta().get("result")

    info = result

    @property
    def traceback(self) -> str | None:
        """Text of the failed attempt's traceback."""
        return self._meta().get("traceback")

    @property
    def children(self) -> list[AsyncResult[Any]] | None:
        """The results of what the task sent; None while it has none stored."""
        children = self._meta().get("children")
        return None if children is None else [result_from_tuple(child, self.app) for child in children]

    @property
    def date_done(self) -> datetime | None:
        """When the final state was stored; aware."""
        done = self._meta().get("date_done")
        return datetime.fromisoformat(done) if isinstance(done, str) else done

    def _extended(self, name: str) -> Any:
        return self._meta().get(name)

    @property
    def name(self) -> str | None:
        """The task's name; stored with `result_extended`."""
        name: str | None = self._name or self._extended("name")
        return name

    @property
    def args(self) -> Any:
        """The call's arguments; stored with `result_extended`, like the four below."""
        return self._extended("args")

    @property
    def kwargs(self) -> Any:
        return self._extended("kwargs")

    @property
    def worker(self) -> str | None:
        worker: str | None = self._extended("worker")
        return worker

    @property
    def retries(self) -> int | None:
        retries: int | None = self._extended("retries")
        return retries

    @property
    def queue(self) -> str | None:
        queue: str | None = self._extended("queue")
        return queue

    @property
    def ignored(self) -> bool:
        """True where the call was sent with `ignore_result`."""
        return self._ignored

    def ready(self) -> bool:
        """Whether the state is final."""
        return self.state in states.READY_STATES

    def successful(self) -> bool:
        """Whether the task has returned."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Whether the task has failed for good."""
        return self.state == states.FAILURE

    def exists(self) -> bool:
        """Whether the store knows this id; PENDING may also mean an unknown one."""
        return self._final is not None or self.backend.load([self.id])[0] is not None

    def as_dict(self, *, traceback: bool = False) -> dict[str, Any]:
        """`{id, state, ready, successful, progress, result, error[, traceback]}`, fit for JSON.

        `progress` is `{current, total, percent}` where the task reports `current` (or
        `done`, `actual`) and `total`; `error` is `{type, message}` of a failure.
        """
        meta = self._meta()
        state, value = meta["status"], meta.get("result")
        is_error = isinstance(value, BaseException)
        out = {
            "id": self.id,
            "state": state,
            "ready": state in states.READY_STATES,
            "successful": state == states.SUCCESS,
            "progress": _progress(value),
            "result": None if is_error else value,
            "error": {"type": type(value).__name__, "message": str(value)} if is_error else None,
        }
        if traceback:
            out["traceback"] = meta.get("traceback")
        return out

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
        `propagate=False` an exception is returned.  `callback` is called with id and value;
        `on_message` with every state's document; `on_interval` each `interval` seconds.  One
        subscription, no polling.  Raises RuntimeError inside of a task: see `allow_join_result`.
        """
        if self._ignored:
            return None  # type: ignore[return-value]  # Celery's answer for an ignored result
        if disable_sync_subtasks:
            assert_will_not_block()
        if follow_parents and propagate and self.parent is not None:
            self._ask_parents()
        if self._final is None:
            self._wait(timeout, interval if on_interval else _NET, on_message, on_interval)
        return self.maybe_throw(propagate, callback)  # type: ignore[no-any-return]

    wait = get

    def _ask_parents(self) -> None:
        """Raise what an earlier task of the chain has failed with; the first one's first."""
        if self.parent is not None:
            self.parent._ask_parents()
            self.parent.maybe_throw()

    def _wait(
        self,
        timeout: float | None,
        interval: float,
        on_message: Callable[[dict[str, Any]], Any] | None,
        on_interval: Callable[[], Any] | None,
    ) -> dict[str, Any]:
        end = None if timeout is None else time.monotonic() + timeout
        seen: dict[str, bytes] = {}
        outage_began: float | None = None
        while True:
            wait = interval if end is None else min(interval, max(0.0, end - time.monotonic()))
            try:
                found = self.backend.watch([self.id], seen, wait)
                outage_began = None
            except BackendUnavailable:
                now = time.monotonic()
                outage_began = outage_began or now
                if now - outage_began > _OUTAGE:
                    raise
                found = []
                time.sleep(0.2)
            for news in found:
                seen[news.id] = news.document
                meta = self._read(news.document)
                if on_message is not None:
                    on_message(meta)
                if self._final is not None:
                    return self._final
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"task {self.id} was not done within {timeout:g} s")
            if on_interval is not None:
                on_interval()

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raise what the task raised, if it has failed already; else its value so far."""
        meta = self._meta()
        if propagate and meta["status"] in states.PROPAGATE_STATES:
            _raise(meta)
        if callback is not None:
            callback(self.id, meta.get("result"))
        return meta.get("result")

    maybe_reraise = maybe_throw

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
        if follow_parents and propagate and self.parent is not None:
            await in_thread(self.app, self._ask_parents)
        if self._final is None:
            from minicelery.hearing import Documents

            async with Documents(self, timeout, interval if on_interval else None) as documents:
                while self._final is None:
                    meta = await documents.next()
                    if meta is None and on_interval is not None:
                        on_interval()
                    elif meta is not None and on_message is not None:
                        on_message(meta)
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

        async with Documents(self, timeout) as documents:
            change: StateChange | None = None
            # Not until `_final` is set: whoever else awaits this result may have heard before.
            while change is None or change.state not in states.READY_STATES:
                if (meta := await documents.next()) is not None:
                    change = StateChange(meta["status"], meta.get("result"))
                    yield change

    # -- acting ----------------------------------------------------------------------------

    def forget(self) -> None:
        """Drop the stored result."""
        self._final = None
        self.backend.forget([self.id])

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

    def as_tuple(self) -> tuple[tuple[str, Any], Any]:
        """`((id, parent), None)`: the form in which results refer to each other."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    def as_list(self) -> list[str]:
        """The ids of this task and of its parents."""
        return [self.id, *(self.parent.as_list() if self.parent else [])]

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

    def __reduce__(self) -> Any:
        return type(self), (self.id, None, self._name, None, self.parent)


class EagerResult(AsyncResult[R]):
    """The result of a task that was run at once, by `apply`."""

    def __init__(
        self, id: str, value: Any, state: str, traceback: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(id, task_name=name)
        self._final = {"status": state, "result": value, "traceback": traceback, "children": []}

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
            "children": [],
        }

    async def aforget(self) -> None:
        """Nothing is stored."""

    async def arevoke(self, *args: Any, **kwargs: Any) -> None:
        """See `revoke`."""
        self.revoke()

    def get(self, timeout: float | None = None, propagate: bool = True, *_: Any, **__: Any) -> R:
        """The value, or raise what the task raised."""
        assert self._final is not None
        if propagate and self._final["status"] in states.PROPAGATE_STATES:
            _raise(self._final)
        value: R = self._final["result"]
        return value

    wait = get

    async def aget(self, timeout: float | None = None, propagate: bool = True, *_: Any, **__: Any) -> R:
        """See `get`."""
        return self.get(timeout, propagate)

    @property
    def supports_native_join(self) -> bool:
        return False


def result_from_tuple(value: Any, app: Celery | None = None) -> Any:
    """The result that `as_tuple` was made from."""
    if isinstance(value, AsyncResult):
        return value
    head, members = value
    id, parent = head if isinstance(head, (list, tuple)) else (head, None)
    if members is not None:
        from minicelery.groups import GroupResult

        above = result_from_tuple(parent, app) if parent else None
        return GroupResult(id, [result_from_tuple(member, app) for member in members], above, app=app)
    return AsyncResult(id, app=app, parent=result_from_tuple(parent, app) if parent else None)


def _raise(meta: dict[str, Any]) -> NoReturn:
    value = meta["result"]
    error = value if isinstance(value, BaseException) else Exception(value)
    if (
        (text := meta.get("traceback"))
        and hasattr(error, "add_note")
        and not getattr(error, "__notes__", None)
    ):
        error.add_note(f"in the worker:\n{text}")
    raise error


def _progress(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    current = next((value[key] for key in ("current", "done", "actual") if key in value), None)
    total = value.get("total")
    if not isinstance(current, (int, float)) or not isinstance(total, (int, float)) or not total:
        return None
    return {"current": current, "total": total, "percent": round(100 * current / total, 1)}
