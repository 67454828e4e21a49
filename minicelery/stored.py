"""What a result store has of a call: its state, its value, and what else was noted."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from minicelery import record, states
from minicelery._state import get_current_app

if TYPE_CHECKING:
    from minicelery.app import Celery

_PENDING_META: dict[str, Any] = {"status": states.PENDING, "result": None}


class StoredCall:
    """The part of `AsyncResult` that reads.

    Reading an attribute reads the store, until the state is final.
    """

    id: str
    _app: Celery | None
    _backend: Any
    _name: str | None
    _final: dict[str, Any] | None  # the document of the final state, once it is known
    _ignored: bool

    @property
    def app(self) -> Celery:
        return self._app or get_current_app()

    @property
    def backend(self) -> Any:
        return self._backend or self.app.backend

    @property
    def task_id(self) -> str:
        return self.id

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
        if meta["status"] in states.ENDED:
            self._final = meta
        return meta

    def _extended(self, name: str) -> Any:
        return self._meta().get(name)

    @property
    def state(self) -> str:
        """PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or a state of the task's own.

        PENDING is also the state of an id of which the store has no record: one that was never
        sent, that waits, that runs without `track_started`, or whose result has expired or was
        forgotten; see `known` and `task_track_sent`.
        """
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
    def date_done(self) -> datetime | None:
        """When the final state was stored; aware."""
        done = self._meta().get("date_done")
        return datetime.fromisoformat(done) if isinstance(done, str) else done

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
        """True where the call was sent with `ignore_result`: nothing will be stored, and nobody waits."""
        return self._ignored

    @ignored.setter
    def ignored(self, value: bool) -> None:
        self._ignored = bool(value)

    def ready(self) -> bool:
        """Whether the state is final."""
        return self.state in states.ENDED

    def successful(self) -> bool:
        """Whether the task has returned."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Whether the task has failed for good."""
        return self.state == states.FAILURE

    def exists(self) -> bool:
        """Whether the store has a record of this id, in whatever state."""
        return self._final is not None or self.backend.load([self.id])[0] is not None

    @property
    def known(self) -> bool:
        """`exists()`: False tells a PENDING of which nothing is stored.

        It does not tell whether the call was sent: one that waits in its queue has no record yet,
        unless `task_track_sent` is set; with it, also one whose sending has then failed.
        """
        return self.exists()

    def as_dict(self, *, traceback: bool = False) -> dict[str, Any]:
        """`{id, state, ready, successful, progress, result, error[, traceback]}`, fit for JSON.

        `progress` is `{current, total, percent}` where the task reports `current` (or
        `done`, `actual`) and `total`; `error` is `{type, message}` of a failure.
        """
        meta = self._meta()
        out = as_document(self.id, meta["status"], meta.get("result"))
        if traceback:
            out["traceback"] = meta.get("traceback")
        return out


def as_document(id: str, state: str, value: Any) -> dict[str, Any]:
    """What `as_dict` says of a call in that state, with that result or meta."""
    is_error = isinstance(value, BaseException)
    return {
        "id": id,
        "state": state,
        "ready": state in states.ENDED,
        "successful": state == states.SUCCESS,
        "progress": _progress(value),
        "result": None if is_error else value,
        "error": {"type": type(value).__name__, "message": str(value)} if is_error else None,
    }


def value_of(meta: dict[str, Any] | None) -> Any:
    """What a call has returned; None of one that has not, or was ignored or rejected."""
    if meta is None or meta["status"] in (states.IGNORED, states.REJECTED):
        return None
    return meta.get("result")


def has_failed(meta: dict[str, Any] | None) -> bool:
    """Whether `get` raises for it."""
    return meta is not None and meta["status"] in states.PROPAGATE_STATES


def raise_stored(meta: dict[str, Any]) -> NoReturn:
    """Raise what the document of a failure says."""
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
    try:
        percent = round(100 * current / total, 1)
    except OverflowError:
        return None
    if not math.isfinite(percent) or not math.isfinite(total):
        return None
    return {"current": current, "total": total, "percent": percent}
