"""A delivery in, an outcome out: everything that happens around the user's function.

What happens before (`begin`) and after (`finish`, `fail`) is plain code without I/O, so
that inline, threads and asyncio differ only in the line that calls the function.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minicelery import record, signals, states
from minicelery._state import request_var
from minicelery.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    Ignore,
    InvalidTaskError,
    NotRegistered,
    Reject,
    Retry,
    TaskPredicate,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from minicelery.message import (
    Delivery,
    Outcome,
    Record,
    Verdict,
    decode_body,
    iso,
    parse_time,
)
from minicelery.registry import unknown_task
from minicelery.request import Request
from minicelery.serialization import accepted
from minicelery.task import Task, retry_delay
from minicelery.worker.call import Call, ExceptionInfo, Plan, check_limits, shown
from minicelery.worker.links import Links
from minicelery.worker.recorder import Recorder

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

_NO_LIMITS = [None, None]
DELAY_WORTH_MOVING = 0.0
"""Seconds that a task must be early to go back to the broker's delay."""


class Executor:
    """Runs deliveries of one app in one process."""

    def __init__(
        self,
        app: Celery,
        hostname: str | None = None,
        *,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
    ) -> None:
        conf = app.conf
        self.app = app
        self.hostname = hostname
        self.tasks = app.tasks
        self.zone = conf.zone()
        self.accept = accepted(conf.accept_content)
        self.delivery_cap = conf.task_delivery_cap
        self.unregistered = conf.worker_unregistered_task
        self.limits = (time_limit, soft_time_limit)
        self.log_results = log.isEnabledFor(logging.INFO)
        self.recorder = Recorder(app, hostname)
        self.links = Links(app)
        self._plans: dict[str, Plan] = {}
        self._rng = random.Random()

    def plan(self, task: Task[..., Any]) -> Plan:
        """The task's plan; made on its first run."""
        found = self._plans.get(task.name)
        if found is None or found.task is not task:
            found = self._plans[task.name] = Plan(self.app, task, self.limits)
        return found

    # -- the life of a delivery ------------------------------------------------------------

    def run(self, delivery: Delivery) -> Outcome:
        """Begin, call, finish or fail: in this thread."""
        call = self.begin(delivery)
        if type(call) is Outcome:
            return call
        assert type(call) is Call
        return self.call(call)

    def call(self, call: Call) -> Outcome:
        """Call the function of a call that has begun; never raises what it raises."""
        token = request_var.set(call.request)
        try:
            try:
                call.running = True
                value = call.plan.function(*call.args, **call.kwargs)
                call.running = False
            except BaseException as error:
                call.running = False
                return self.fail(call, error)
            return self.finish(call, value)
        finally:
            request_var.reset(token)

    def begin(self, delivery: Delivery) -> Call | Outcome:
        """Decode and check a delivery: a call to make, or at once its outcome."""
        message = delivery.message
        headers = message.headers
        try:
            if delivery.broken is not None:
                return self._reject(delivery, delivery.broken)
            task = self.tasks.get(message.task)
            if task is None:
                return self._unknown(delivery)
            args, kwargs, links = decode_body(message, self.accept)
            retries = headers.get("retries") or 0
            if type(retries) is not int:
                raise InvalidTaskError(f"retries must be a whole number, got {retries!r:.80}")
            limits = headers.get("timelimit")
            if limits is not None and limits != _NO_LIMITS:
                check_limits(limits)
            else:
                limits = None
            if links and not any(links.values()):
                links = {}
            plan = self._plans.get(message.task) or self.plan(task)
            request = Request(task)
            request.id = message.id
            request.args = args
            request.kwargs = kwargs
            request.links = links
            request.retries = retries
            request.message = message
            request.hostname = self.hostname
            request.called_directly = False
            request.redelivered = bool(delivery.deliveries or headers.get("redelivered"))
            call = Call(delivery, plan, request, args, kwargs, links)
            delivery.once = not plan.acks_late
            if limits is not None:
                if limits[0]:
                    call.time_limit = limits[0]
                if limits[1]:
                    call.soft_limit = limits[1]
            if delivery.started:
                return self.lost(call)
            if delivery.revoked:
                return self._revoke(call, "revoked")
            if (expires := headers.get("expires")) is not None:
                message.expires = parse_time(expires, "expires", self.zone)
                if time.time() > message.expires:
                    return self._revoke(call, "expired")
            if (eta := headers.get("eta")) is not None:
                due = parse_time(eta, "eta", self.zone)
                if due - time.time() > DELAY_WORTH_MOVING:
                    # Sent where no minicelery worker was known: to the broker's delay with it.
                    message.due = due
                    message.exchange, message.routing_key = "", message.queue
                    headers["eta"] = iso(due)  # the broker knows no zone to read a naive time in
                    return Outcome(delivery, publish=(message,))
        except (ContentDisallowed, DecodeError, InvalidTaskError) as error:
            return self._reject(delivery, f"{type(error).__name__}: {error}", error)
        except RecursionError as error:
            return self._reject(delivery, "nested too deeply", DecodeError(str(error)))
        request.entering = plan.whole
        if signals.task_prerun.receivers:
            self._within(
                call, signals.task_prerun.send, sender=task, task_id=message.id, task=task, args=args, kwargs=kwargs
            )  # fmt: skip
        if plan.before_start is not None:
            try:
                self._within(call, plan.before_start, message.id, args, kwargs)
            except Exception as error:
                token = request_var.set(request)
                try:
                    return self._end(call, error)
                finally:
                    request_var.reset(token)
        call.began = time.monotonic()
        return call

    def finish(self, call: Call, value: Any) -> Outcome:
        """The outcome of a function that has returned `value`."""
        request, plan, message = call.request, call.plan, call.delivery.message
        sent = len(request.children)
        try:
            # First what follows: the record names it as the task's children.
            publish = self.links.after_success(call, value) if call.links or request.outbox else ()
            stored: Record | None = None
            if self.recorder.wants(call):
                stored = self.recorder.success(call, value)
        except (EncodeError, InvalidTaskError) as error:
            del request.children[sent:]
            return self._failure(call, error)
        if plan.on_success is not None:
            self._guarded(plan.on_success, value, message.id, call.args, call.kwargs)
        runtime = time.monotonic() - call.began
        if signals.task_success.receivers:
            self._guarded(signals.task_success.send, sender=plan.task, result=value)
        if self.log_results:
            log.info(
                "Task %s[%s] succeeded in %.6fs: %s",
                message.task,
                message.id,
                runtime,
                shown(value, plan.task),
            )
        if plan.after_return is not None or signals.task_postrun.receivers:
            self._after(call, states.SUCCESS, value, None)
        return Outcome(call.delivery, Verdict.ACK, stored, publish)

    def fail(self, call: Call, error: BaseException) -> Outcome:
        """The outcome of a function that has raised `error`: a retry, an end of its own, or failure."""
        return self._end(call, self._retried(call, error))

    def _end(self, call: Call, error: BaseException) -> Outcome:
        # Without automatic retries: those are for what the function itself raises.
        if isinstance(error, Ignore):
            self._after(call, states.IGNORED, error, None)
            return Outcome(call.delivery, publish=tuple(call.request.outbox))
        if isinstance(error, Reject):
            return self._reject_by_task(call, error)
        if isinstance(error, Retry):
            return self._retry(call, error)
        return self._failure(call, error)

    def _retried(self, call: Call, error: BaseException) -> BaseException:
        """What `autoretry_for` makes of `error`: a Retry, the error, or what ends the retries."""
        task = call.plan.task
        if not task.autoretry_for or not isinstance(error, task.autoretry_for):
            return error
        if isinstance(error, (TaskPredicate, *task.dont_autoretry_for)):
            return error
        options = dict(task.retry_kwargs)
        if task.retry_backoff:
            options["countdown"] = retry_delay(
                call.request.retries, float(task.retry_backoff), task.retry_backoff_max, task.retry_jitter, self._rng
            )  # fmt: skip
        frames = error.__traceback__
        try:
            retry: Retry = self._within(call, task.retry, exc=error, throw=False, **options)
            return retry
        except BaseException as final:  # the limit is reached, or the retry can't be sent
            return error.with_traceback(frames) if final is error else final

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
            self._guarded(plan.on_retry, cause or retry, message.id, call.args, call.kwargs, einfo)
        if signals.task_retry.receivers:
            self._guarded(
                signals.task_retry.send, sender=plan.task, request=request, reason=retry, einfo=einfo
            )
        limit = plan.task.max_retries
        log.info(
            "Task %s[%s] retry %d/%s %s: %s", message.task, message.id, request.retries + 1,
            "∞" if limit is None else limit, retry.humanize(), retry.excs or "asked for",
        )  # fmt: skip
        self._after(call, states.RETRY, retry, einfo)
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
            self._guarded(plan.on_failure, error, message.id, call.args, call.kwargs, einfo)
        if signals.task_failure.receivers:
            self._guarded(
                signals.task_failure.send, sender=task, task_id=message.id, exception=error, args=call.args,
                kwargs=call.kwargs, traceback=error.__traceback__, einfo=einfo,
            )  # fmt: skip
        if isinstance(error, task.throws):
            log.info("Task %s[%s] raised expected: %s", message.task, message.id, shown(error, task))
        else:
            log.error(
                "Task %s[%s] raised unexpected: %s\n%s",
                message.task,
                message.id,
                shown(error, task),
                einfo.traceback.rstrip(),
            )
        self._after(call, states.FAILURE, error, einfo)
        if verdict is Verdict.ACK and self._rejects(call, error):
            verdict = Verdict.REJECT
        return Outcome(call.delivery, verdict, stored, publish, reason=shown(error, task)[:500])

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
        return Outcome(delivery, Verdict.REQUEUE)

    def terminated(self, call: Call, reason: str) -> Outcome:
        """The outcome of a running call that a cold shutdown stops."""
        call.delivery.started = True
        call.delivery.reason = f"terminated: {reason}"
        if call.plan.acks_late:
            # Stopped on purpose: the run does not count against the task.
            call.delivery.message.headers["redelivered"] = True
            return Outcome(call.delivery, Verdict.REQUEUE)
        return self.lost(call)

    def timed_out(self, call: Call) -> Outcome:
        """The outcome of a running call that has passed its hard limit."""
        message = call.delivery.message
        log.error("Hard time limit (%ss) exceeded for %s[%s]", call.time_limit, message.task, message.id)
        return self._failure(call, TimeLimitExceeded(call.time_limit))

    def started(self, call: Call) -> Record | None:
        """The STARTED record of a running call, where it is tracked."""
        if not (call.plan.track_started and self.recorder.wants(call)):
            return None
        import os

        return self.recorder.state(
            call, states.STARTED, {"pid": os.getpid(), "hostname": self.hostname}, None
        )

    def _revoke(self, call: Call, why: str) -> Outcome:
        message = call.delivery.message
        error = TaskRevokedError(why)
        stored = None
        if self.recorder.wants(call):
            stored = self.recorder.state(call, states.REVOKED, record.exception_document(error), None)
        if signals.task_revoked.receivers:
            self._guarded(
                signals.task_revoked.send, sender=call.plan.task, request=call.request, terminated=False,
                signum=None, expired=why == "expired",
            )  # fmt: skip
        log.info("Task %s[%s] %s: not run", message.task, message.id, why)
        return Outcome(call.delivery, Verdict.ACK, stored)

    def _reject_by_task(self, call: Call, error: Reject) -> Outcome:
        message = call.delivery.message
        self._after(call, states.REJECTED, error, None)
        if signals.task_rejected.receivers:
            self._guarded(signals.task_rejected.send, sender=call.plan.task, message=message, exc=error)
        if error.requeue:
            log.info(
                "Task %s[%s] rejected, back to %s: %s", message.task, message.id, message.queue, error.reason
            )
            message.due = None
            message.exchange, message.routing_key = "", message.queue
            message.headers["redelivered"] = True
            # To the end of the line, as Celery does.
            return Outcome(call.delivery, publish=(*call.request.outbox, message))
        log.warning("Task %s[%s] rejected: %s", message.task, message.id, error.reason)
        stored = None
        if self.recorder.wants(call):
            stored = self.recorder.state(call, states.FAILURE, record.exception_document(error), None)
        reason = f"rejected by the task: {error.reason}"
        return Outcome(call.delivery, Verdict.REJECT, stored, tuple(call.request.outbox), reason)

    def _reject(self, delivery: Delivery, reason: str, error: BaseException | None = None) -> Outcome:
        """A message that is no task call: kept with the dead letters, and recorded where it has an id."""
        message = delivery.message
        log.error(
            "Rejected a message of queue %r (task %s[%s]): %s; kept in the queue's dead letters",
            message.queue, message.task or "?", message.id or "?", reason,
        )  # fmt: skip
        if signals.task_rejected.receivers:
            self._guarded(signals.task_rejected.send, sender=self, message=message, exc=error)
        return Outcome(
            delivery,
            Verdict.REJECT,
            self.recorder.failure_of(message, error or DecodeError(reason)),
            reason=reason,
        )

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
        verdict = Verdict.ACK if self.unregistered == "discard" else Verdict.REJECT
        return Outcome(delivery, verdict, self.recorder.failure_of(message, error), reason=text)

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

    def _after(self, call: Call, state: str, value: Any, einfo: ExceptionInfo | None) -> None:
        plan, id = call.plan, call.delivery.message.id
        if plan.after_return is not None:
            self._guarded(plan.after_return, state, value, id, call.args, call.kwargs, einfo)
        if signals.task_postrun.receivers:
            self._guarded(
                signals.task_postrun.send, sender=plan.task, task_id=id, task=plan.task, args=call.args,
                kwargs=call.kwargs, retval=value, state=state,
            )  # fmt: skip
