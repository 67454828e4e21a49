"""Running a task at once, in the caller's process: the executor without a broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import record, states
from minicelery._state import request_var
from minicelery.exceptions import Ignore, ImproperlyConfigured, Reject
from minicelery.message import Delivery, Message, Outcome, new_id
from minicelery.result import EagerResult
from minicelery.worker.call import Call
from minicelery.worker.executor import Executor
from minicelery.worker.recorder import Recorder

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.task import Task

MOST_ATTEMPTS = 10_000
_NOT_NOW = frozenset({"countdown", "eta", "expires", "throw", "retry", "retry_policy"})


class EagerRecorder(Recorder):
    """Keeps every state: the caller is right here."""

    def wants(self, call: Call, failure: bool = False) -> bool:
        return True


class EagerExecutor(Executor):
    """An executor that keeps the value or exception an attempt ended with."""

    def __init__(self, app: Celery) -> None:
        super().__init__(app, "eager")
        self.recorder = EagerRecorder(app, "eager")
        self.ended: tuple[str, Any, str | None] = (states.PENDING, None, None)

    def finish(self, call: Call, value: Any) -> Outcome:
        outcome = super().finish(call, value)
        if outcome.record is not None and outcome.record.state == states.SUCCESS:
            # As a client would read it: what the serializer changes shows here too.
            meta = record.decode(outcome.record.document, self.recorder.serializer)
            self.ended = states.SUCCESS, meta["result"], None
        return outcome

    def _failure(self, call: Call, error: BaseException, *args: Any) -> Outcome:
        outcome = super()._failure(call, error, *args)
        document = outcome.record
        text = record.decode(document.document, self.recorder.serializer)["traceback"] if document else None
        self.ended = states.FAILURE, error, text
        return outcome

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
    sent = {key: value for key, value in options.items() if key not in _NOT_NOW}
    message: Message | None = sender.message(task.name, args, kwargs, sent, sender.defaults(task), new_id())
    assert message is not None
    id = message.id
    executor = EagerExecutor(app)
    outcome: Outcome | None = None
    for _ in range(MOST_ATTEMPTS):
        message.headers["eta"] = message.due = None
        outcome = _attempt(executor, message)
        message = None
        for follower in outcome.publish:
            if follower.id == id:
                message = follower
            elif conf.task_always_eager and follower.task in app.tasks:
                EagerExecutor(app).run(Delivery(follower, 0))
            else:
                sender.publish([follower])
        if message is None or executor.ended[0] != states.PENDING:
            break  # an attempt that asked for another but ended all the same is the last, as in Celery
    else:
        raise ImproperlyConfigured(f"{task.name} retried {MOST_ATTEMPTS} times in a row: set max_retries")
    state, value, traceback = executor.ended
    if state == states.PENDING and outcome is not None:
        state, value = states.IGNORED if outcome.record is None else str(outcome.record.state), None
    if task.store_eager_result and outcome is not None and outcome.record is not None:
        app.backend.store([outcome.record])
    if throw and state == states.FAILURE:
        raise value
    return EagerResult(id, value, state, traceback, task.name)


def _attempt(executor: EagerExecutor, message: Message) -> Outcome:
    call = executor.begin(Delivery(message, 0))
    if isinstance(call, Outcome):
        return call
    call.request.is_eager = True
    token = request_var.set(None)  # a task that runs another in itself is not its parent's attempt
    try:
        return executor.call(call)
    finally:
        request_var.reset(token)
