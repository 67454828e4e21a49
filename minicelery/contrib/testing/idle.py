"""Running what is queued here and now, in the test's own thread, by the engine that workers have."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minicelery import states
from minicelery.broker import open_limits
from minicelery.broker.memory import MemoryBroker
from minicelery.broker.memory.store import Store
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import Delivery, Outcome, new_id
from minicelery.result import DisabledBackend
from minicelery.worker import coroutines
from minicelery.worker.admission import Admission
from minicelery.worker.call import Call
from minicelery.worker.executor import Executor

if TYPE_CHECKING:
    from minicelery.app import Celery

LIMIT = 1000
"""Runs after which a queue that does not get empty is taken for one that never will."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task: what it was called with, and what became of it.

    `state` is SUCCESS, FAILURE, RETRY, IGNORED, REJECTED or REVOKED; `value` what it returned or raised.
    """

    name: str
    id: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: str
    value: Any

    def __repr__(self) -> str:
        return f"<Run of {self.name}: {self.state} {self.value!r:.200}>"


def run_until_idle(
    app: Celery, *, queues: Collection[str] | None = None, limit: int = LIMIT, propagate: bool = False
) -> list[Run]:
    """Run what is ready in the app's queues, and what follows from it, until nothing is; the runs in order.

    What is delayed stays; see `time_travel`.  With `propagate` the exception of a task that
    has failed is raised here.  Time limits are not enforced.  Raises AssertionError after
    `limit` runs, ImproperlyConfigured where the broker is not in memory.
    """
    runner = Runner(app)
    try:
        return runner.run(queues, limit, propagate)
    finally:
        runner.close()


class Runner:
    """Runs deliveries of one app in the thread that calls it."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        app.finalize()
        self.store = store_of(app)
        self.executor = _Recording(app, f"test@{new_id()[:8]}")
        if (limits := open_limits(app)) is not None:
            self.executor.admission = Admission(app, limits)
        self._had_loop = coroutines.has_loop()

    def run(self, queues: Collection[str] | None, limit: int, propagate: bool) -> list[Run]:
        """See `run_until_idle`."""
        runs: list[Run] = []
        while ready := self._ready(queues):
            for one in self._drain(ready, limit - len(runs)):
                runs.append(one)
                if propagate and one.state == states.FAILURE:
                    raise one.value
            if len(runs) >= limit and self._ready(queues):
                names = ", ".join(dict.fromkeys(run.name for run in runs[-20:]))
                raise AssertionError(
                    f"after {limit} runs there are still tasks ready; the last were of {names}; "
                    "do they send each other for ever? limit= allows more runs"
                )
        return runs

    def _ready(self, queues: Collection[str] | None) -> list[str]:
        self.app.broker.size("")  # now what is due is among what is ready, whatever its queue
        with self.store.changed:
            names = list(self.store.ready)
        return [name for name in names if (queues is None or name in queues) and self.app.broker.size(name)]

    def _drain(self, queues: list[str], limit: int) -> list[Run]:
        backend = self.app.backend
        consumer = self.app.broker.consumer(
            queues, f"{self.executor.hostname}/{new_id()}", None if isinstance(backend, DisabledBackend) else backend
        )  # fmt: skip
        runs: list[Run] = []
        done: list[Outcome] = []
        try:
            while (fresh := consumer.swap(done, 1 if len(runs) < limit else 0, 0)) and (delivery := fresh[0]):
                outcome = self.executor.run(delivery)
                if self.executor.admission is not None:
                    outcome = self.executor.admission.free(outcome)
                done = [outcome]
                if (run := self.executor.taken()) is not None:
                    runs.append(run)
        finally:
            consumer.close()
        return runs

    def close(self) -> None:
        """Close the event loop of `async def` tasks, if it was opened here."""
        if not self._had_loop:
            coroutines.close()


class _Recording(Executor):
    """An executor that tells what became of its last call."""

    _last: tuple[Call, str, Any] | None = None

    def begin(self, delivery: Delivery) -> Call | Outcome:
        call = super().begin(delivery)
        if isinstance(call, Call):
            self._last = (call, states.PENDING, None)
        return call

    def finish(self, call: Call, value: Any) -> Outcome:
        self._last = (call, states.SUCCESS, value)
        return super().finish(call, value)

    def _end(self, call: Call, error: BaseException) -> Outcome:
        self._last = (call, _STATES.get(type(error).__name__, states.FAILURE), error)
        return super()._end(call, error)

    def _failure(self, call: Call, error: BaseException, *args: Any) -> Outcome:
        self._last = (call, states.FAILURE, error)
        return super()._failure(call, error, *args)

    def revoke(self, call: Call, *args: Any) -> Outcome:
        self._last = (call, states.REVOKED, None)
        return super().revoke(call, *args)

    def taken(self) -> Run | None:
        """The last run, once; None of a delivery that did not come to one, such as one that waits for a limit."""
        last, self._last = self._last, None
        if last is None:
            return None
        call, state, value = last
        message = call.delivery.message
        return Run(message.task, message.id, tuple(call.args), dict(call.kwargs), state, value)


_STATES = {"Retry": states.RETRY, "Ignore": states.IGNORED, "Reject": states.REJECTED}


def store_of(app: Celery) -> Store:
    """What the app's memory broker keeps.  Raises ImproperlyConfigured for another broker."""
    broker = app.broker
    if not isinstance(broker, MemoryBroker):
        raise ImproperlyConfigured(
            f"the queues of this app are at {broker.url}, not in memory; "
            "use a TestApp, the fixture celery_app, or 'with in_memory(app):'"
        )
    return broker._store
