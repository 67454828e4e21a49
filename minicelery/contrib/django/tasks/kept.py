"""What the result store has of a call of a Django task, and the `TaskResult` that is made of it.

Two records.  That of the call's id is as of any task: its state, what it has returned or raised.
Beside it, `BESIDE` behind the id, is what only Django asks for: the call, its attempts, and the
errors of those that were followed by another.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.tasks import TaskResult, TaskResultStatus
from django.tasks.base import TaskError
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch

from minicelery import record, states
from minicelery.contrib.django.tasks import BESIDE
from minicelery.contrib.django.tasks.declared import find_task, with_values
from minicelery.contrib.django.times import moment
from minicelery.exceptions import BackendError
from minicelery.message import Record

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

_HAVE_FAILED = frozenset({states.FAILURE, states.REVOKED, states.REJECTED})


@dataclass(slots=True)
class Kept:
    """The second record.  Times are unix seconds."""

    path: str
    args: list[Any]
    kwargs: dict[str, Any]
    backend: str
    priority: int = 0
    queue_name: str = "default"
    run_after: float | None = None
    takes_context: bool = False
    enqueued_at: float | None = None
    attempts: list[list[Any]] = field(default_factory=list)
    """Of each attempt its worker, and when it began."""
    errors: list[list[str]] = field(default_factory=list)
    """Of each that has failed and was followed by another: the class, and the traceback."""

    def of_call(self) -> dict[str, Any]:
        """The part that goes with the message, besides path and arguments."""
        names = ("backend", "priority", "queue_name", "run_after", "takes_context", "enqueued_at")
        return {name: getattr(self, name) for name in names}


def write(app: Celery, id: str, kept: Kept, worker: Mapping[str, Any] | None = None) -> None:
    """Store it, and, with the `worker` that begins an attempt, that it has.

    Where the store is away the task goes on without: that is logged.
    """
    conf = app.conf
    ttl = _seconds(conf.result_expires)
    if ttl is not None and kept.run_after is not None:
        ttl += max(0.0, kept.run_after - time.time())
    options: dict[str, Any] = {"serializer": conf.result_serializer, "ttl": ttl, "zone": conf.zone()}
    records: list[Record] = [record.encode(id + BESIDE, states.PENDING, asdict(kept), **options)]
    if worker is not None:
        records.append(record.encode(id, states.STARTED, dict(worker), **options))
    try:
        app.backend.store(records)
    except BackendError as error:
        log.warning("Task %s[%s]: its state is not stored: %s", kept.path, id, error)


def forget(app: Celery, id: str) -> None:
    """Drop what `write` has stored."""
    with contextlib.suppress(BackendError):
        app.backend.forget([id, id + BESIDE])


def read(app: Celery, id: str) -> tuple[Kept, dict[str, Any] | None]:
    """What is kept of the call, and the document of its state if it has one.

    Raises TaskResultDoesNotExist.
    """
    if not isinstance(id, str) or not id:
        raise TaskResultDoesNotExist(f"no task result has the id {id!r:.80}: ids are text")
    state, beside = app.backend.load([id, id + BESIDE])
    if beside is None:
        raise TaskResultDoesNotExist(
            f"no task result has the id {id!r:.80}: none was enqueued under it, or it has expired (result_expires)"
        )
    found = record.read(beside.document, app.conf)["result"]
    try:
        kept = Kept(**found)
    except TypeError as error:
        raise TaskResultMismatch(
            f"what is stored under {id!r:.80} is no task of Django's: {error}"
        ) from error
    return kept, None if state is None else record.read(state.document, app.conf)


def result_of(id: str, kept: Kept, meta: Mapping[str, Any] | None = None, task: Any = None) -> Any:
    """The `TaskResult`; `task` is what is at the path, if that is known.

    Raises TaskResultMismatch where there is no such task any more.
    """
    if task is None:
        try:
            task = find_task(kept.path)
        except InvalidTask as error:
            raise TaskResultMismatch(f"the task of result {id!r}: {error}") from error
    values = {
        "priority": kept.priority, "backend": kept.backend, "queue_name": kept.queue_name,
        "run_after": moment(kept.run_after), "takes_context": kept.takes_context,
    }  # fmt: skip
    status = _status(kept, meta)
    begun = [at for _, at in kept.attempts]
    result = TaskResult(
        task=with_values(task, values),
        id=id,
        status=status,
        enqueued_at=moment(kept.enqueued_at),
        started_at=moment(begun[0]) if begun else None,
        last_attempted_at=moment(begun[-1]) if begun else None,
        finished_at=_finished(meta),
        args=kept.args,
        kwargs=kept.kwargs,
        backend=kept.backend,
        errors=[TaskError(exception_class_path=kind, traceback=text) for kind, text in kept.errors],
        worker_ids=[worker for worker, _ in kept.attempts],
    )
    if meta is not None:
        if status == TaskResultStatus.SUCCESSFUL:
            object.__setattr__(result, "_return_value", meta.get("result"))
        elif status == TaskResultStatus.FAILED and (failed := _error_in(meta)) is not None:
            result.errors.append(TaskError(exception_class_path=failed[0], traceback=failed[1]))
    return result


def _error_in(meta: Mapping[str, Any]) -> list[str] | None:
    """The class and the traceback of what an attempt has raised, as far as the document says."""
    error = meta.get("result")
    if meta["status"] not in states.EXCEPTION_STATES or not isinstance(error, BaseException):
        return None
    kind = type(error)
    return [
        f"{kind.__module__}.{kind.__qualname__}",
        meta.get("traceback") or f"{kind.__qualname__}: {error}",
    ]


def _status(kept: Kept, meta: Mapping[str, Any] | None) -> Any:
    state = states.PENDING if meta is None else meta["status"]
    if state in (states.SUCCESS, states.IGNORED):
        return TaskResultStatus.SUCCESSFUL
    if state in _HAVE_FAILED:
        return TaskResultStatus.FAILED
    runs = bool(kept.attempts) and state != states.RETRY
    return TaskResultStatus.RUNNING if runs else TaskResultStatus.READY


def _finished(meta: Mapping[str, Any] | None) -> datetime | None:
    done = None if meta is None or meta["status"] not in states.ENDED else meta.get("date_done")
    if isinstance(done, str):
        done = datetime.fromisoformat(done)
    return moment(done.timestamp()) if isinstance(done, datetime) else None


def _seconds(expires: Any) -> float | None:
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    return float(seconds) if seconds else None
