"""How a delivery ends other than by a returned value: each end as an outcome."""

from __future__ import annotations

import inspect
import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import record, signals, states
from minicelery._state import request_var
from minicelery.exceptions import (
    ContentDisallowed,
    DecodeError,
    InvalidTaskError,
    NotRegistered,
    Reject,
    Retry,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from minicelery.message import Delivery, Message, Outcome, Record, Verdict, decode_body
from minicelery.registry import TaskRegistry, unknown_task
from minicelery.request import Request
from minicelery.worker.call import Call, ExceptionInfo, shown
from minicelery.worker.foreign_chords import ForeignChords
from minicelery.worker.links import Links
from minicelery.worker.recorder import Recorder

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.events.emitter import Emitter

log = logging.getLogger("minicelery.worker.executor")


class Endings:
    """The part of an executor that makes the outcomes of what has not simply returned."""

    app: Celery
    tasks: TaskRegistry
    recorder: Recorder
    delivery_cap: int
    unregistered: str  # what becomes of a message for a task that is not known
    links: Links
    foreign: ForeignChords
    accept: frozenset[str]
    events: Emitter | None

    def _retry(self, call: Call, retry: Retry) -> Outcome:
        request, plan, message = call.request, call.plan, call.delivery.message
        cause = retry.exc
        einfo = ExceptionInfo(retry)
        stored = None
        if self.recorder.wants(call):
            stored = self.recorder.state(
                call,
                states.RETRY,
                None if cause is None else record.exception_document(cause),
                einfo.traceback,
            )
        if plan.on_retry is not None:
            self._handle(call, plan.on_retry, cause or retry, message.id, call.args, call.kwargs, einfo)
        if signals.task_retry.receivers:
            self._guarded(
                signals.task_retry.send, sender=plan.task, request=request, reason=retry, einfo=einfo
            )
        if (events := self.events) is not None and plan.send_events:
            events.retried(message.id, (retry.excs or str(retry))[:1024], einfo.traceback)
        limit = plan.task.max_retries
        log.info(
            "Task %s[%s] retry %d/%s %s: %s", _name(message), message.id, request.retries + 1,
            "∞" if limit is None else limit, retry.humanize(), retry.excs or "asked for",
        )  # fmt: skip
        self._ran(call, states.RETRY, retry)
        return Outcome(call.delivery, Verdict.ACK, stored, tuple(request.outbox))

    def _failure(self, call: Call, error: BaseException, verdict: Verdict = Verdict.ACK) -> Outcome:
        request, plan, message = call.request, call.plan, call.delivery.message
        task = plan.task
        einfo = ExceptionInfo(error)
        stored = None
        if self.recorder.wants(call, failure=True):
            stored = self.recorder.state(
                call, states.FAILURE, record.exception_document(error), einfo.traceback
            )
        publish = [*request.outbox, *self.links.after_failure(call, error, einfo)]
        if plan.on_failure is not None:
            self._handle(call, plan.on_failure, error, message.id, call.args, call.kwargs, einfo)
        if signals.task_failure.receivers:
            self._guarded(
                signals.task_failure.send, sender=task, task_id=message.id, exception=error, args=call.args,
                kwargs=call.kwargs, traceback=error.__traceback__, einfo=einfo,
            )  # fmt: skip
        if (events := self.events) is not None and plan.send_events:
            events.failed(message.id, shown(error, task), einfo.traceback)
        if isinstance(error, task.throws):
            log.info("Task %s[%s] raised expected: %s", _name(message), message.id, shown(error, task))
        else:
            log.error(
                "Task %s[%s] raised unexpected: %s\n%s",
                _name(message),
                message.id,
                shown(error, task),
                einfo.traceback.rstrip() + _hint(call, error),
            )
        if plan.after_return is not None:
            self._handle(
                call, plan.after_return, states.FAILURE, error, message.id, call.args, call.kwargs, einfo
            )
        self._ran(call, states.FAILURE, error)
        if verdict is Verdict.ACK and self._rejects(call, error):
            verdict = Verdict.REJECT
        if verdict is Verdict.REJECT:
            self._tell_rejected(call, False)
        more = self._rest_of(call, error, einfo.traceback)
        outcome = Outcome(call.delivery, verdict, stored, publish, shown(error, task)[:500], more=more)
        return self.foreign.add_to(outcome, call.links, states.FAILURE, error)

    def _rejects(self, call: Call, error: BaseException) -> bool:
        """Whether a failed late-ack task goes to the dead letters: `acks_on_failure` and kin are off."""
        task = call.plan.task
        if not call.plan.acks_late:
            return False
        own = task.acks_on_timeout if isinstance(error, TimeLimitExceeded) else task.acks_on_failure
        acked = task.acks_on_failure_or_timeout if own is None else own
        return acked is False

    # -- ends without a run ----------------------------------------------------------------

    def lost(self, call: Call) -> Outcome:
        """The outcome of a delivery whose run somebody else had begun and did not end.

        `delivery.reason` says how the run ended; None means that worker, machine or
        connection were lost with it.
        """
        delivery, plan = call.delivery, call.plan
        reason = delivery.reason
        message = delivery.message
        if reason is not None and reason.startswith("time limit"):
            seconds = call.time_limit or 0
            if not self._rejects(call, TimeLimitExceeded(seconds)):
                return self._failure(call, TimeLimitExceeded(seconds))
            return self._again(call, TimeLimitExceeded(seconds))
        if reason is not None and reason.startswith("revoked"):
            return self.revoke(call, "terminated", signal.Signals[reason.rpartition(" ")[2]])
        terminated = reason is not None and reason.startswith("terminated")
        error: Exception = (
            Terminated(reason) if terminated else WorkerLostError(reason or "the worker running it was lost")
        )
        task = plan.task
        if task.retry_on_worker_lost and not terminated:
            try:
                self._within(call, task.retry, exc=error, throw=False, countdown=0)
                return self._retry(call, Retry(exc=error, when=0))
            except Exception as final:
                return self._failure(call, final)
        if plan.acks_late and (reason is None or terminated or task.reject_on_worker_lost):
            return self._again(call, error)
        log.error("Task %s[%s] is lost: %s", message.task, message.id, error)
        return self._failure(call, error)

    def _again(self, call: Call, error: Exception) -> Outcome:
        """Back to the front of its queue, up to the delivery cap."""
        delivery = call.delivery
        delivery.deliveries += 1
        message = delivery.message
        if delivery.deliveries >= self.delivery_cap:
            log.error(
                "Task %s[%s] died %d times and goes to the dead letters of %r: %s",
                message.task, message.id, delivery.deliveries, message.queue, error,
            )  # fmt: skip
            return self._failure(call, error, Verdict.REJECT)
        log.warning(
            "Task %s[%s] runs again (%d of %d): %s",
            message.task, message.id, delivery.deliveries + 1, self.delivery_cap, error,
        )  # fmt: skip
        self._tell_rejected(call, True)
        return Outcome(delivery, Verdict.REQUEUE)

    def _tell_rejected(self, call: Call, requeue: bool) -> None:
        if (events := self.events) is not None and call.plan.send_events:
            events.rejected(call.delivery.message.id, requeue)

    def terminated(self, call: Call, reason: str) -> Outcome:
        """The outcome of a running call that a cold shutdown stops."""
        call.delivery.started = True
        call.delivery.reason = f"terminated: {reason}"
        if call.plan.acks_late:
            # Stopped on purpose: the run does not count against the task.
            call.delivery.message.headers["redelivered"] = True
            self._tell_rejected(call, True)
            return Outcome(call.delivery, Verdict.REQUEUE)
        return self.lost(call)

    def timed_out(self, call: Call) -> Outcome:
        """The outcome of a running call that has passed its hard limit."""
        message = call.delivery.message
        log.error("Hard time limit (%ss) exceeded for %s[%s]", call.time_limit, message.task, message.id)
        try:
            raise TimeLimitExceeded(call.time_limit)  # with a traceback, as receivers expect one
        except TimeLimitExceeded as error:
            return self._failure(call, error)

    def terminated_by(self, call: Call, number: signal.Signals) -> Outcome:
        """The outcome of a running call that was revoked with ``terminate=True``."""
        return self.revoke(call, "terminated", number)

    def revoke(self, call: Call, why: str, number: signal.Signals | None = None) -> Outcome:
        """The outcome of a call that was revoked, has expired, or was terminated by a signal."""
        message = call.delivery.message
        error = TaskRevokedError(why)
        stored = None
        if self.recorder.wants(call):
            stored = self.recorder.state(call, states.REVOKED, record.exception_document(error), None)
        if signals.task_revoked.receivers:
            self._guarded(
                signals.task_revoked.send, sender=call.plan.task, request=call.request,
                terminated=number is not None, signum=number, expired=why == "expired",
            )  # fmt: skip
        if (events := self.events) is not None and call.plan.send_events:
            events.revoked(message.id, number, why == "expired")
        if number is None:
            log.info("Task %s[%s] %s: not run", message.task, message.id, why)
        else:
            log.warning("Task %s[%s] was terminated by %s: revoked", message.task, message.id, number.name)
        outcome = Outcome(call.delivery, Verdict.ACK, stored, more=self._rest_of(call, error))
        return self.foreign.add_to(outcome, call.links, states.REVOKED, error)

    def internal_error(self, delivery: Delivery, error: BaseException) -> Outcome:
        """The outcome of a delivery at which minicelery itself, or a handler, has failed."""
        message = delivery.message
        einfo = ExceptionInfo(error)
        log.error("Task %s[%s]: an internal error: %s", message.task, message.id, einfo.traceback.rstrip())
        if signals.task_internal_error.receivers:
            task = self.tasks.get(message.task)
            self._guarded(
                signals.task_internal_error.send, sender=task, task_id=message.id, args=None, kwargs=None,
                request=Request(task, id=message.id, message=message), exception=error,
                traceback=error.__traceback__, einfo=einfo,
            )  # fmt: skip
        if (events := self.events) is not None and message.id:
            self._guarded(events.failed, message.id, f"{type(error).__name__}: {error}", einfo.traceback)
        try:
            stored, more = self.recorder.failure_of(message, error), self._rest(message, error)
        except Exception:
            stored, more = None, []
        reason = f"internal error: {type(error).__name__}: {error}"[:500]
        outcome = Outcome(delivery, Verdict.REJECT, stored, reason=reason, more=more)
        self._guarded(self.foreign.add_to, outcome, self._links_of(message), states.FAILURE, error)
        return outcome

    def _reject_by_task(self, call: Call, error: Reject) -> Outcome:
        message = call.delivery.message
        self._ran(call, states.REJECTED, error)
        if error.requeue:
            log.info(
                "Task %s[%s] rejected, back to %s: %s", message.task, message.id, message.queue, error.reason
            )
            message.due = None
            message.exchange, message.routing_key = "", message.queue
            message.headers["redelivered"] = True
            self._tell_rejected(call, True)
            # To the end of the line, as Celery does.
            return Outcome(call.delivery, publish=(*call.request.outbox, message))
        log.warning("Task %s[%s] rejected: %s", message.task, message.id, error.reason)
        if signals.task_failure.receivers:
            self._guarded(
                signals.task_failure.send, sender=call.plan.task, task_id=message.id, exception=error,
                args=call.args, kwargs=call.kwargs, traceback=error.__traceback__, einfo=ExceptionInfo(error),
            )  # fmt: skip
        if (events := self.events) is not None and call.plan.send_events:
            events.failed(message.id, shown(error, call.plan.task), ExceptionInfo(error).traceback)
            events.rejected(message.id, False)
        stored = None
        if self.recorder.wants(call):
            stored = self.recorder.state(call, states.FAILURE, record.exception_document(error), None)
        reason = f"rejected by the task: {error.reason}"
        more = self._rest_of(call, error)
        outcome = Outcome(
            call.delivery, Verdict.REJECT, stored, tuple(call.request.outbox), reason, more=more
        )
        return self.foreign.add_to(outcome, call.links, states.FAILURE, error)

    def _reject(self, delivery: Delivery, reason: str, error: BaseException | None = None) -> Outcome:
        """A message that is no task call: kept with the dead letters, and recorded where it has an id."""
        message = delivery.message
        log.error(
            "Rejected a message of queue %r (task %s[%s]): %s; kept in the queue's dead letters",
            message.queue, message.task or "?", message.id or "?", reason,
        )  # fmt: skip
        if signals.task_rejected.receivers:
            self._guarded(signals.task_rejected.send, sender=self, message=message, exc=error)
        error = error or DecodeError(reason)
        stored, more = self.recorder.failure_of(message, error), self._rest(message, error)
        outcome = Outcome(delivery, Verdict.REJECT, stored, reason=reason, more=more)
        return self.foreign.add_to(outcome, self._links_of(message), states.FAILURE, error)

    def _unknown(self, delivery: Delivery) -> Outcome:
        message = delivery.message
        error = NotRegistered(message.task)
        text = unknown_task(message.task, self.tasks)
        log.error("Task [%s] of queue %r: %s", message.id, message.queue, text)
        if signals.task_unknown.receivers:
            self._guarded(
                signals.task_unknown.send,
                sender=self,
                message=message,
                exc=error,
                name=message.task,
                id=message.id,
            )
        if self.unregistered == "requeue":
            # Some other worker, or this one after its update, may know it.
            delivery.deliveries += 1
            if delivery.deliveries < self.delivery_cap * 10:
                message.headers["x-delivery-count"] = delivery.deliveries
                message.due = time.time() + 5.0
                message.exchange, message.routing_key = "", message.queue
                return Outcome(delivery, publish=(message,))
        if (events := self.events) is not None:
            events.failed(message.id, repr(error), None)
        verdict = Verdict.ACK if self.unregistered == "discard" else Verdict.REJECT
        stored, more = self.recorder.failure_of(message, error), self._rest(message, error)
        outcome = Outcome(delivery, verdict, stored, reason=text, more=more)
        return self.foreign.add_to(outcome, self._links_of(message), states.FAILURE, error)

    def never(self, message: Message, error: BaseException) -> list[Record]:
        """The records of a message that can't be sent, and of what would have followed."""
        stored = self.recorder.failure_of(message, error)
        return [*([] if stored is None else [stored]), *self._rest(message, error)]

    def _rest(self, message: Message, error: BaseException) -> list[Record]:
        """The failures of what would have followed a message that never became a call, if it can be told."""
        return self.recorder.of_the_rest(self._links_of(message), error, parent=message.id)

    def _links_of(self, message: Message) -> dict[str, Any]:
        try:
            return decode_body(message, self.accept)[2]
        except (ContentDisallowed, DecodeError, InvalidTaskError, RecursionError):
            return {}

    def _rest_of(
        self, call: Call, error: BaseException | None, traceback: str | None = None
    ) -> Sequence[Record]:
        """The records of what will not follow a call."""
        if not call.links:
            return ()
        return self.recorder.of_the_rest(call.links, error, traceback, call.delivery.message.id)

    # -- parts -----------------------------------------------------------------------------

    def _within(self, call: Call, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        token = request_var.set(call.request)
        try:
            return function(*args, **kwargs)
        finally:
            request_var.reset(token)

    def _guarded(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """A handler's own failure is logged and changes nothing."""
        try:
            function(*args, **kwargs)
        except Exception:
            log.exception("%s failed", getattr(function, "__qualname__", function))

    def _handle(self, call: Call, handler: Callable[..., Any], *args: Any) -> None:
        """Call a handler of the task's; its own failure is logged and told, and changes nothing."""
        try:
            handler(*args)
        except Exception as error:
            log.exception("%s failed", getattr(handler, "__qualname__", handler))
            if signals.task_internal_error.receivers:
                self._guarded(
                    signals.task_internal_error.send, sender=call.plan.task, task_id=call.delivery.message.id,
                    args=call.args, kwargs=call.kwargs, request=call.request, exception=error,
                    traceback=error.__traceback__, einfo=ExceptionInfo(error),
                )  # fmt: skip

    def _ran(self, call: Call, state: str, value: Any) -> None:
        """Tell that the run is over, however it ended."""
        task = call.plan.task
        if signals.task_postrun.receivers:
            self._guarded(
                signals.task_postrun.send, sender=task, task_id=call.delivery.message.id, task=task,
                args=call.args, kwargs=call.kwargs, retval=value, state=state,
            )  # fmt: skip


def _name(message: Message) -> Any:
    """What log lines call its task."""
    return message.headers.get("shadow") or message.task


def _hint(call: Call, error: BaseException) -> str:
    """What a link of a chain that was called with one argument too many should be told."""
    if (
        not isinstance(error, TypeError)
        or not call.args
        or not call.delivery.message.headers.get("parent_id")
    ):
        return ""
    try:  # not by its traceback: a class of the app's own may stand between, such as Flask's ContextTask
        inspect.signature(call.plan.task.run).bind(*call.args, **call.kwargs)
    except TypeError:
        return (
            "\nhint: as a link of a chain it is called with the result of the one before; "
            f"{call.plan.task.name.rpartition('.')[2]}.si(…) makes it one that is not"
        )
    except ValueError:  # it has no signature
        pass
    return ""
