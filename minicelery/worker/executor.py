"""A delivery in, an outcome out: everything that happens around the user's function.

What happens before (`begin`) and after (`finish`, `fail`) is plain code without I/O, so
that inline, threads and asyncio differ only in the line that calls the function.
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Any

from minicelery import signals, states
from minicelery._state import request_var
from minicelery.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
    TaskPredicate,
    TaskRevokedError,
)
from minicelery.message import (
    BODY_HEADER,
    PART_HEADER,
    Delivery,
    Outcome,
    Record,
    Verdict,
    decode_body,
    iso,
    parse_time,
)
from minicelery.remote.stamps import bears
from minicelery.request import Request
from minicelery.serialization import accepted
from minicelery.task import Task, retry_delay
from minicelery.worker import tracing
from minicelery.worker.bodies import Bodies
from minicelery.worker.call import Call, Plan, RunRevoked, check_limits, shown
from minicelery.worker.coroutines import run_coroutine
from minicelery.worker.endings import Endings
from minicelery.worker.foreign_chords import ForeignChords
from minicelery.worker.links import Links
from minicelery.worker.pausing import put_aside
from minicelery.worker.recorder import Recorder

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.events.emitter import Emitter
    from minicelery.worker.admission import Admission

log = logging.getLogger(__name__)

_NO_LIMITS = [None, None]
DELAY_WORTH_MOVING = 0.0
"""Seconds that a task must be early to go back to the broker's delay."""


class Executor(Endings):
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
        self.bodies = Bodies(app)
        self.foreign = ForeignChords(app, self.links, self.recorder)
        self.admission: Admission | None = None  # set where a task has limits across workers
        self.paused: frozenset[str] = frozenset()  # tasks
        self.revoked_stamps: dict[str, list[Any]] = {}  # calls that bear one of them are not run
        self.events: Emitter | None = None  # while events of tasks are on
        self._plans: dict[str, Plan] = {}
        self._rng = random.Random()

    def plan(self, task: Task[..., Any]) -> Plan:
        """The task's plan; made on its first run."""
        found = self._plans.get(task.name)
        if found is None or found.task is not task:
            found = self._plans[task.name] = Plan(self.app, task, self.limits)
        return found

    def plan_anew(self, name: str) -> None:
        """The options of that task have changed.  From any thread."""
        if (old := self._plans.get(name)) is not None:
            new = Plan(self.app, old.task, self.limits)
            new.begun = old.begun
            self._plans[name] = new

    def begun(self) -> dict[str, int]:
        """How many runs of which task have begun here.  From any thread."""
        return {name: plan.begun for name, plan in list(self._plans.items()) if plan.begun}

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
        if call.tracer is not None:
            return tracing.around(self, call)
        token = request_var.set(call.request)
        try:
            try:
                call.running = True
                value = call.plan.function(*call.args, **call.kwargs)
                if call.plan.is_async:
                    value = run_coroutine(value)
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
                return self.revoke(call, "revoked")
            if self.revoked_stamps and bears(headers.get("stamps"), self.revoked_stamps):
                return self.revoke(call, "revoked")
            if (expires := headers.get("expires")) is not None:
                message.expires = parse_time(expires, "expires", self.zone)
                if time.time() > message.expires:
                    return self.revoke(call, "expired")
            if (eta := headers.get("eta")) is not None:
                due = parse_time(eta, "eta", self.zone)
                if due - time.time() > DELAY_WORTH_MOVING:
                    # Sent where no minicelery worker was known: to the broker's delay with it.
                    message.due = due
                    message.exchange, message.routing_key = "", message.queue
                    headers["eta"] = iso(due)  # the broker knows no zone to read a naive time in
                    return Outcome(delivery, publish=(message,))
            if self.paused and message.task in self.paused:
                return put_aside(delivery)
            if BODY_HEADER in headers and (found := self.bodies.prepare(call)) is not None:
                if isinstance(found, Outcome):
                    return found
                expired = isinstance(found, TaskRevokedError)
                return self.revoke(call, "expired") if expired else self._failure(call, found)
            if plan.limits is not None and self.admission is not None:
                if (outcome := self.admission.admit(call)) is not None:
                    return outcome
        except (ContentDisallowed, DecodeError, InvalidTaskError) as error:
            return self._reject(delivery, f"{type(error).__name__}: {error}", error)
        except RecursionError as error:
            return self._reject(delivery, "nested too deeply", DecodeError(str(error)))
        if signals.task_received.receivers:
            self._guarded(signals.task_received.send, sender=self, request=request)
        if (events := self.events) is not None and plan.send_events:
            if "argsrepr" in headers:
                events.note((time.time_ns(), message))  # as `begun` does, without the call
            else:
                events.begun(message, args, kwargs)
        request.entering = plan.whole
        if (signals.task_prerun.receivers or plan.before_start is not None) and call.tracer is None:
            if (outcome := self.enter(call)) is not None:
                return outcome
        plan.begun += 1
        call.began = time.monotonic()
        return call

    def enter(self, call: Call) -> Outcome | None:
        """Tell that a call is about to be made; its outcome where its own `before_start` fails."""
        request, plan, message = call.request, call.plan, call.delivery.message
        if signals.task_prerun.receivers:
            self._within(
                call, signals.task_prerun.send, sender=plan.task, task_id=message.id, task=plan.task,
                args=call.args, kwargs=call.kwargs,
            )  # fmt: skip
        if plan.before_start is not None:
            try:
                self._within(call, plan.before_start, message.id, call.args, call.kwargs)
            except Exception as error:
                token = request_var.set(request)
                try:
                    return self._end(call, error)
                finally:
                    request_var.reset(token)
        return None

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
            outcome = Outcome(call.delivery, Verdict.ACK, stored, publish)
            if call.links and call.links.get("chord"):
                self.foreign.add_to(outcome, call.links, states.SUCCESS, value)
        except (EncodeError, InvalidTaskError) as error:
            del request.children[sent:]
            return self._failure(call, error)
        if plan.on_success is not None:
            self._guarded(plan.on_success, value, message.id, call.args, call.kwargs)
        runtime = time.monotonic() - call.began
        if signals.task_success.receivers:
            self._guarded(signals.task_success.send, sender=plan.task, result=value, runtime=runtime)
        text = ""
        if (events := self.events) is not None and plan.send_events:
            text = shown(value, plan.task)
            events.note((time.time_ns(), message.id, text, runtime))
        if self.log_results:
            log.info(
                "Task %s[%s] succeeded in %.6fs: %s",
                message.headers.get("shadow") or message.task,
                message.id,
                runtime,
                text or shown(value, plan.task),
            )
        if plan.after_return is not None:
            self._guarded(plan.after_return, states.SUCCESS, value, message.id, call.args, call.kwargs, None)
        if signals.task_postrun.receivers:
            self._ran(call, states.SUCCESS, value)
        return outcome

    def fail(self, call: Call, error: BaseException) -> Outcome:
        """The outcome of a function that has raised `error`: a retry, an end of its own, or failure."""
        return self._end(call, self._retried(call, error))

    def _end(self, call: Call, error: BaseException) -> Outcome:
        # Without automatic retries: those are for what the function itself raises.
        if isinstance(error, Ignore):
            self._ran(call, states.IGNORED, error)
            stored = None
            if PART_HEADER in call.delivery.message.headers and self.recorder.wants(call):
                stored = self.recorder.state(call, states.IGNORED, None, None)
            publish, more = tuple(call.request.outbox), self._rest_of(call, None)
            outcome = Outcome(call.delivery, Verdict.ACK, stored, publish, more=more)
            return self.foreign.add_to(outcome, call.links, states.IGNORED, None)
        if isinstance(error, Reject):
            return self._reject_by_task(call, error)
        if isinstance(error, Retry):
            return self._retry(call, error)
        if isinstance(error, RunRevoked):
            return self.terminated_by(call, error.signal)
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

    def started(self, call: Call) -> Record | None:
        """The STARTED record of a running call, where it is tracked."""
        if not (call.plan.track_started and self.recorder.wants(call)):
            return None
        import os

        return self.recorder.state(
            call, states.STARTED, {"pid": os.getpid(), "hostname": self.hostname}, None
        )
