"""What remote control changes in a running worker, as each of its processes obeys it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minicelery.broker import open_limits
from minicelery.routing import Exchange, Queue
from minicelery.worker.admission import Admission
from minicelery.worker.orders import Change

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.worker.executor import Executor

MOST_STAMPS = 1000


class Changes:
    """One process's part in the changes.  Thread-safe; a change may be obeyed twice."""

    def __init__(self, app: Celery, executor: Executor, queues: list[str]) -> None:
        self.app = app
        self.executor = executor
        self.queues = queues  # the worker's own list: it is changed in place
        self.on_events: Callable[[bool], object] | None = None
        self._lock = threading.Lock()

    def obey(self, change: Change) -> bool:
        """Make the change; whether it is one of the queues that are served.

        Raises ImproperlyConfigured or ValueError, and leaves everything as it was.
        """
        with self._lock:
            getattr(self, f"_change_{change.topic}")(change.key, change.value)
        return change.topic == "queue"

    def obey_line(self, line: bytes) -> None:
        """`obey`, of a line that came through the pipe."""
        self.obey(Change.from_text(line))

    def _change_events(self, _: str, wanted: bool) -> None:
        if self.on_events is not None:
            self.on_events(wanted)

    def _change_rate(self, name: str, rate: Any) -> None:
        task, executor = self.app.tasks[name], self.executor
        before = task.rate_limit
        task.rate_limit = rate
        if executor.admission is not None:
            executor.admission.forget(name)
        else:
            try:
                limits = open_limits(self.app)
            except BaseException:
                task.rate_limit = before
                raise
            if limits is not None:
                executor.admission = Admission(self.app, limits)
        executor.plan_anew(name)

    def _change_time(self, name: str, limits: Any) -> None:
        task = self.app.tasks[name]
        task.time_limit, task.soft_time_limit = limits
        self.executor.plan_anew(name)

    def _change_queue(self, name: str, given: Any) -> None:
        if given is None:
            self.queues[:] = [queue for queue in self.queues if queue != name]
            return
        self.learn(name, given)
        if name not in self.queues:
            self.queues.append(name)

    def learn(self, name: str, given: Mapping[str, Any]) -> None:
        """Know how a queue is declared: as senders make it who know its name alone, unless more is given."""
        exchange, kind, key = given["exchange"] or name, given["type"] or "direct", given["key"] or name
        if (exchange, kind, key) != (name, "direct", name) or not self.app.conf.task_create_missing_queues:
            self.app._sender.router.learn(Queue(name, Exchange(exchange, kind), key))

    def _change_stamp(self, key: str, _: Any) -> None:
        header, value = json.loads(key)
        stamps = self.executor.revoked_stamps
        values = [one for one in stamps.get(header, ()) if one != value]
        # Another dict each time: the executor reads it in another thread.
        stamps = {**stamps, header: [*values, value][-MOST_STAMPS:]}
        if len(stamps) > MOST_STAMPS:
            del stamps[next(iter(stamps))]
        self.executor.revoked_stamps = stamps
