"""Tasks that look now and then whether they are to end: `is_aborted` in the task, `abort` outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minicelery import record, states
from minicelery.awaiting import in_thread
from minicelery.result import AsyncResult, EagerResult
from minicelery.task import Task

__all__ = ["ABORTED", "AbortableAsyncResult", "AbortableTask"]

ABORTED = "ABORTED"
"""The state of a task that was told to end and has not yet."""
_TOPIC = "aborted"


class AbortableAsyncResult(AsyncResult[Any]):
    """The result of an abortable task."""

    def abort(self) -> None:
        """Tell the task to end, and store the state ABORTED; nothing where it has ended.

        The order is kept in the broker too, where the states that the task stores meanwhile
        leave it alone, and where a task finds it whose results go to its caller (``rpc://``).
        Whether and when the task obeys is its own affair.
        """
        if self.ready():
            return
        conf = self.app.conf
        self.app.broker.remember(_TOPIC, self.id, conf.result_expires or 86400.0)
        self.backend.store(
            [record.encode(
                self.id, ABORTED, None, serializer=conf.result_serializer, ttl=conf.result_expires, zone=conf.zone()
            )]
        )  # fmt: skip

    async def aabort(self) -> None:
        """`abort`, without blocking the event loop."""
        await in_thread(self.app, self.abort)

    def is_aborted(self) -> bool:
        """Whether the task was told to end, and has not ended.  Up to two trips."""
        return _is_aborted(self, self.state, in_broker=True)


class AbortableTask(Task[..., Any]):
    """A base for tasks that can be told to end: ``@app.task(bind=True, base=AbortableTask)``."""

    abstract = True

    def is_aborted(self, *, task_id: str | None = None, **_: Any) -> bool:
        """Whether this run, or the call `task_id`, was told to end: up to two trips.

        False where the task was called as a function.
        """
        id = task_id or self.request.id
        if id is None:
            return False
        result = self.AsyncResult(id)
        # Results that go to their caller can't be read here.
        state = states.PENDING if getattr(result.backend, "direct", False) else result.state
        return _is_aborted(result, state, in_broker=task_id is not None or not self.request.is_eager)

    def AsyncResult(self, task_id: str, **options: Any) -> AbortableAsyncResult:  # noqa: N802 - Celery's name
        """The result of one of this task's calls."""
        return AbortableAsyncResult(task_id, app=self.app, task_name=self.name, **options)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """See `Task.apply_async`; the result can `abort`."""
        sent = super().apply_async(args, kwargs, **options)
        if isinstance(sent, EagerResult):
            return sent
        result = self.AsyncResult(sent.id, parent=sent.parent)
        result.ignored = sent.ignored
        return result


def _is_aborted(result: AbortableAsyncResult, state: str, *, in_broker: bool) -> bool:
    if state == ABORTED:  # stored by `abort`, here or of Celery
        return True
    if state in states.ENDED or not in_broker:
        return False
    broker: Any = result.app.broker
    # RabbitMQ's has what is new; all records of a stream are read in 0.3 s.
    told = broker.news if hasattr(broker, "news") else broker.recall
    return result.id in told(_TOPIC)
