"""billiard's `pool.Worker`: the main function of a child, for libraries that put theirs around it."""

from __future__ import annotations

from typing import Any

from minicelery.signals import worker_process_shutdown


class Worker:
    """A child of the worker, as far as somebody wants to know when it ends."""

    def workloop(self, *args: Any, **kwargs: Any) -> int:
        """Called at a child's end: what is around it does then what it does after the work."""
        return 0


class ExceptionWithTraceback(Exception):
    """What billiard sends an exception in between processes; here nobody does."""


_plain = Worker.workloop


def on_served() -> None:
    """From now on a child calls `workloop` at its end, where somebody is around it."""
    worker_process_shutdown.connect(_end)


def _end(**_: Any) -> None:
    if Worker.workloop is not _plain:
        Worker().workloop()
