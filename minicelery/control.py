"""Orders to running workers: `app.control`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from minicelery import record, states
from minicelery.exceptions import TaskRevokedError
from minicelery.result import DisabledBackend
from minicelery.stop_signals import stop_signal

if TYPE_CHECKING:
    from minicelery.app import Celery

REVOKED_FOR = 30 * 86400.0
"""Seconds for which the order not to run a task is kept; it must outlast the task's delay."""
TERMINATED_FOR = 600.0
"""Seconds for which workers look for a run of it that is to be ended."""
_NOT_BEGUN = (states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED)


class Control:
    """Orders to all workers of an app."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def revoke(
        self, task_id: str | Iterable[str], destination: Any = None, terminate: bool = False,
        signal: str | int | None = "SIGTERM", **_: Any,
    ) -> None:  # fmt: skip
        """Have tasks not run, by id or several ids; with `terminate` end them if they run.

        The order is kept in the broker, so it outlives every worker.  Raises ValueError for a
        signal that ends no task, OperationalError where the broker can't be reached.
        """
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        name = stop_signal(signal).encode()
        broker = self.app.broker
        for id in ids:
            broker.remember("revoked", id, REVOKED_FOR)
            if terminate:
                broker.remember("terminate", id, TERMINATED_FOR, name)
        self._record(ids)

    def terminate(
        self, task_id: str | Iterable[str], destination: Any = None, signal: str | int | None = "SIGTERM", **_: Any
    ) -> None:  # fmt: skip
        """`revoke` with ``terminate=True``."""
        self.revoke(task_id, destination, True, signal)

    def _record(self, ids: list[str]) -> None:
        """Store REVOKED for those that have not begun, for who waits for them."""
        app, conf = self.app, self.app.conf
        if not ids or isinstance(app.backend, DisabledBackend) or getattr(app.backend, "direct", False):
            return
        error = record.exception_document(TaskRevokedError("revoked"))
        revoked = [
            record.encode(
                id, states.REVOKED, error, serializer=conf.result_serializer, ttl=conf.result_expires,
                zone=conf.zone(), children=None, compression=conf.result_compression,
            )
            for id, found in zip(ids, app.backend.load(ids), strict=True)
            if found is None or record.read(found.document, conf)["status"] in _NOT_BEGUN
        ]  # fmt: skip
        if revoked:
            app.backend.store(revoked)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"app.control.{name} needs remote control, which is not part of this version; revoke() and "
            "terminate() are"
        )
