"""Running a task at once, in the caller's process: the executor without a broker."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import record, serialization, states
from minicelery._state import request_var
from minicelery.exceptions import DecodeError, Ignore, ImproperlyConfigured, Reject
from minicelery.message import Delivery, Message, Outcome, Record, new_id
from minicelery.result import EagerResult
from minicelery.worker import coroutines
from minicelery.worker.call import Call
from minicelery.worker.executor import Executor
from minicelery.worker.recorder import Recorder

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.task import Task

MOST_ATTEMPTS = 10_000
_NOT_NOW = frozenset(
    {
        "countdown",
        "eta",
        "expires",
        "throw",
        "retry",
        "retry_policy",
        "logfile",
        "loglevel",
        "connection",
        "producer",
    }
)


class EagerRecorder(Recorder):
    """Keeps every state: the caller is right here."""

    stores = False  # a worker would have stored the latest one

    def wants(self, call: Call, failure: bool = False) -> bool:
        self.stores = super().wants(call, failure)
        return True


class EagerExecutor(Executor):
    """An executor that keeps the value or exception an attempt ended with."""

    def __init__(self, app: Celery, **details: Any) -> None:
        super().__init__(app, socket.gethostname())
        self.recorder: EagerRecorder = EagerRecorder(app, self.hostname)
        self.details = {"loglevel": 0, **details, "is_eager": True}  # set on each attempt's request
        self.ended: tuple[str, Any, str | None] = (states.PENDING, None, None)

    def attempt(self, message: Message) -> Outcome:
        """Run one attempt in this thread; an `async def` task in an event loop, or in a thread of its own."""
        self.accept |= {message.content_type}  # it comes from here
        self.details["outer"] = request_var.get()
        token = request_var.set(None)  # a task that runs another in itself is not its parent's attempt
        had_loop = coroutines.has_loop()
        try:
            call = self.begin(Delivery(message, 0))
            if isinstance(call, Outcome):
                return call
            call.request.update(self.details)
            return self.call(call)
        finally:
            request_var.reset(token)
            if not had_loop:
                coroutines.close()  # this thread belongs to the caller

    def _within(self, call: Call, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call.request.update(self.details)  # signals and before_start come before the call
        return super()._within(call, function, *args, **kwargs)

    def finish(self, call: Call, value: Any) -> Outcome:
        outcome = super().finish(call, value)
        if outcome.record is not None and outcome.record.state == states.SUCCESS:
            # As a client would read it: what the serializer changes shows here too.
            self.ended = states.SUCCESS, self._read(outcome.record)["result"], None
        return outcome

    def _failure(self, call: Call, error: BaseException, *args: Any) -> Outcome:
        outcome = super()._failure(call, error, *args)
        text = self._read(outcome.record)["traceback"] if outcome.record else None
        self.ended = states.FAILURE, error, text
        return outcome

    def _read(self, stored: Record) -> dict[str, Any]:
        serializer = self.recorder.serializer
        return record.decode(stored.document, serializer, serialization.accepted((serializer,)))

    def _reject(self, delivery: Delivery, reason: str, error: BaseException | None = None) -> Outcome:
        self.ended = states.FAILURE, error or DecodeError(reason), None  # as its sender reads it of a worker
        return super()._reject(delivery, reason, error)

    def _end(self, call: Call, error: BaseException) -> Outcome:
        if isinstance(error, (Ignore, Reject)):
            self.ended = states.IGNORED if isinstance(error, Ignore) else states.REJECTED, error, None
        return super()._end(call, error)


def run_eagerly(
    app: Celery,
    task: Task[Any, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> EagerResult[Any]:
    """Run `task` here, its retries at once; see `Task.apply`."""
    conf = app.conf
    throw = options.get("throw")
    if throw is None:
        throw = conf.task_eager_propagates
    sender = app._sender
    sent = {key: value for key, value in options.items() if key not in _NOT_NOW} | {"expires": None}
    message: Message | None = sender.message(task.name, args, kwargs, sent, sender.defaults(task), new_id())
    assert message is not None
    id, parent = message.id, message.headers["parent_id"]
    executor = EagerExecutor(app, **{key: options[key] for key in ("logfile", "loglevel") if key in options})
    outcome: Outcome | None = None
    for _ in range(MOST_ATTEMPTS):
        message.headers["eta"] = message.due = None
        outcome = executor.attempt(message)
        message = None
        for follower in outcome.publish:
            if follower.id == id:
                message = follower
                message.headers["parent_id"] = parent
            elif conf.task_always_eager and follower.task in app.tasks:
                EagerExecutor(app).attempt(follower)
            else:
                sender.publish([follower])
        if message is None or executor.ended[0] != states.PENDING:
            break  # an attempt that asked for another but ended all the same is the last, as in Celery
    else:
        raise ImproperlyConfigured(f"{task.name} retried {MOST_ATTEMPTS} times in a row: set max_retries")
    state, value, traceback = executor.ended
    if state == states.PENDING and outcome is not None:
        state, value = states.IGNORED if outcome.record is None else str(outcome.record.state), None
    if task.store_eager_result and outcome.record is not None and executor.recorder.stores:
        app.backend.store([outcome.record])
    if throw and state == states.FAILURE:
        raise value
    return EagerResult(id, value, state, traceback, task.name)
