"""Orders to running workers: `app.control`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from minicelery.options import nearest
from minicelery.stop_signals import stop_signal

if TYPE_CHECKING:
    from minicelery.app import Celery

REVOKED_FOR = 30 * 86400.0
"""Seconds for which the order not to run a task is kept; it must outlast the task's delay."""
TERMINATED_FOR = 600.0
"""Seconds for which workers look for a run of it that is to be ended."""
_OPTIONS = frozenset({"destination", "terminate", "signal", "reply", "timeout", "limit", "connection"})


class Control:
    """Orders to all workers of an app."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def revoke(
        self, task_id: str | Iterable[str], destination: Any = None, terminate: bool = False,
        signal: str | int | None = "SIGTERM", **more: Any,
    ) -> None:  # fmt: skip
        """Have tasks not run, by id or several ids; with `terminate` end them if they run.

        The worker that meets one stores its state, REVOKED: whether it runs already nobody else
        knows.  The order is kept in the broker, so it outlives every worker.  Raises TypeError or
        ValueError for a value that can't be, OperationalError where the broker can't be reached.
        """
        ids = _ids(task_id)
        if terminate not in (True, False):
            raise ValueError(f"terminate={terminate!r:.80} of revoke: expected True or False")
        for option, value in more.items():
            if option not in _OPTIONS and (near := nearest(option, _OPTIONS)):
                raise TypeError(
                    f"{option}={value!r:.80} of revoke is not an option of it; did you mean {near}=?"
                )
        name = stop_signal(signal).encode()
        broker = self.app.broker
        for id in ids:
            broker.remember("revoked", id, REVOKED_FOR)
            if terminate:
                broker.remember("terminate", id, TERMINATED_FOR, name)

    def terminate(
        self, task_id: str | Iterable[str], destination: Any = None, signal: str | int | None = "SIGTERM", **more: Any
    ) -> None:  # fmt: skip
        """`revoke` with ``terminate=True``."""
        self.revoke(task_id, destination, True, signal, **more)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"app.control.{name} needs remote control, which is not part of this version; revoke() and "
            "terminate() are"
        )


def _ids(given: Any) -> list[str]:
    ids = [given] if isinstance(given, str) else given
    if isinstance(ids, Iterable) and not isinstance(ids, (bytes, Mapping)):
        ids = list(ids)
        if all(isinstance(id, str) and id for id in ids):
            return ids
    raise TypeError(f"task_id={given!r:.80} of revoke: expected the id of a task, or a list of ids")
