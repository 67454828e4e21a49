"""What `minicelery top` shows, before it is laid out: workers, queues, tasks and rates."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from minicelery.cli.choosing import queue_names
from minicelery.events import State
from minicelery.events.state import Recent
from minicelery.exceptions import OperationalError

if TYPE_CHECKING:
    from minicelery.app import Celery

SPAN = 10.0
"""Seconds over which rates are taken."""
HISTORY = 60
"""Seconds of which the course is kept."""
EVERY = 5.0
"""Seconds between two questions to the workers."""
GONE = 300.0
"""Seconds for which a worker is shown that is not heard of any more."""
TYPES = 1000
"""Tasks that are counted by name; those seen longest ago are forgotten where there are more."""
UNHEARD = "ENDED"
"""The state of a run whose worker does not have it any more, while no event has told of its end."""
_ENDS = {"task-succeeded": "succeeded", "task-failed": "failed", "task-retried": "retried"}


@dataclass(slots=True)
class WorkerRow:
    """A worker, as its last heartbeat has it."""

    name: str
    online: bool
    active: int | None
    processed: int | None
    rate: float | None  # tasks a second; None until two heartbeats have come
    load: float | None
    silent: float  # seconds since it was last heard of


@dataclass(slots=True)
class QueueRow:
    """A queue; None is what the broker can't tell."""

    name: str
    ready: int
    delayed: int | None
    dead: int | None
    rate: float | None  # by which the ready ones change in a second


@dataclass(slots=True)
class TypeRow:
    """The runs of one task since this began to listen."""

    name: str
    running: int
    succeeded: int
    failed: int
    retried: int
    rate: float  # ends a second
    mean: float | None  # seconds of a run that has succeeded


@dataclass(slots=True)
class RunRow:
    """A task's present state."""

    id: str
    name: str
    state: str
    since: float  # unix seconds
    worker: str
    text: str  # its result or exception; while it runs its arguments
    took: float | None = None  # seconds that it ran, or has been running


@dataclass(slots=True)
class View:
    """All of it at one moment."""

    broker: str
    workers: list[WorkerRow] = field(default_factory=list)
    queues: list[QueueRow] = field(default_factory=list)
    types: list[TypeRow] = field(default_factory=list)
    runs: list[RunRow] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)  # received, succeeded, failed, retried a second
    events: int = 0
    problem: str = ""  # the broker's, where it can't be reached
    running: int = 0
    course: list[int] = field(default_factory=list)  # ends in each of the last seconds, up to `HISTORY`

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Meter:
    """Counts what happens, and how much of it in the last seconds."""

    def __init__(self, began: float) -> None:
        self.total = 0
        self._began = began
        self._seconds: deque[list[float]] = deque()  # [second, count]

    def add(self, now: float) -> None:
        """One more."""
        self.total += 1
        second = float(int(now))
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += 1
        else:
            self._seconds.append([second, 1])
            while self._seconds[0][0] < now - HISTORY:
                self._seconds.popleft()

    def rate(self, now: float) -> float:
        """How many there are in a second."""
        count = sum(count for second, count in self._seconds if second >= now - SPAN)
        return count / max(1.0, min(SPAN, now - self._began))

    def course(self, now: float) -> list[int]:
        """How many there were in each of the last seconds that are over, since the first one."""
        last = int(now)
        counts = {int(second): int(count) for second, count in self._seconds}
        return [counts.get(second, 0) for second in range(max(int(self._began), last - HISTORY), last)]


class Ends:
    """How the runs of one task have ended."""

    def __init__(self) -> None:
        self.meters: dict[str, Meter] = {}
        self.count, self.seconds = 0, 0.0  # of those that have told their runtime


class Fleet:
    """Listens to events, and asks the broker and the workers, each in a thread; `view` is what came of it.

    Workers that send no events of tasks are had to, until `stop`; with `enable` False they are not.
    """

    def __init__(
        self, app: Celery, queues: Sequence[str] = (), every: float = 1.0, enable: bool = False
    ) -> None:
        self.app = app
        self.state = State(max_tasks_in_memory=2000)
        self._names = list(queues) or queue_names(app.conf)
        self._every = every
        self._enable = enable
        self._enabled: set[str] = set()  # workers that had sent no events of tasks
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._meters: dict[str, Meter] = {}
        self._types: Recent[str, Ends] = Recent(TYPES)
        self._heard: dict[str, float] = {}  # when workers were heard of last
        self._beats: dict[str, deque[tuple[float, int]]] = {}
        self._sizes: dict[str, deque[tuple[float, int]]] = {}
        self._queues: list[QueueRow] = []
        self._problem = ""
        self._stop = threading.Event()
        self._receiver = app.events.Receiver(handlers={"*": self.hear})
        self._threads = [
            threading.Thread(target=target, args=args, daemon=True)
            for target, args in (
                (self._receiver.capture_on, (self._lost,)),
                (self._regularly, (self._ask_broker, every, every)),
                (self._regularly, (self._ask_workers, 0.0, EVERY)),
            )
        ]

    def start(self) -> None:
        """Ask the broker, and begin to listen and to ask on.  Raises OperationalError."""
        self._ask_broker()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop it all, and have no more events sent than before; does not wait for long."""
        self._stop.set()
        self._receiver.stop()
        for thread in self._threads:
            thread.join(2.0)
        if self._enabled:
            with contextlib.suppress(OperationalError):
                self.app.control.disable_events(destination=sorted(self._enabled))

    # -- taking in -------------------------------------------------------------------------

    def hear(self, event: dict[str, Any]) -> None:
        """Take in an event."""
        now, type = time.monotonic(), event["type"]
        self._problem = ""
        with self._lock:
            found = self.state.event(event)
            if found is None:
                return
            if type != "task-sent":
                self._heard[event["hostname"]] = now
            if type.startswith("worker-"):
                if (processed := _whole(event.get("processed"))) is not None:
                    _note(self._beats.setdefault(event["hostname"], deque()), now, processed)
            elif type.startswith("task-"):
                self._count(type, found[0][0], event, now)

    def _count(self, type: str, task: Any, event: Mapping[str, Any], now: float) -> None:
        kind = "received" if type == "task-received" else _ENDS.get(type)
        if kind is None:
            return
        self._meters.setdefault(kind, Meter(self._began)).add(now)
        if kind == "received":
            return
        self._meters.setdefault("ended", Meter(self._began)).add(now)
        if isinstance(task.name, str):
            ends = self._types.setdefault(task.name, Ends())
            ends.meters.setdefault(kind, Meter(self._began)).add(now)
            if (runtime := _span(event.get("runtime"))) is not None:
                ends.count += 1
                ends.seconds += runtime

    def _lost(self, error: OperationalError) -> None:
        self._problem = str(error)

    # -- asking ----------------------------------------------------------------------------

    def _regularly(self, ask: Callable[[], None], first: float, every: float) -> None:
        wait = first
        while not self._stop.wait(wait):
            wait = every
            try:
                ask()
            except OperationalError as error:
                self._problem = str(error)

    def _ask_broker(self) -> None:
        broker = self.app.broker
        rows = []
        for name in self._names:
            size = broker.size(name)
            history = self._sizes.setdefault(name, deque())
            _note(history, time.monotonic(), size)
            rows.append(QueueRow(name, size, broker.delayed(name), broker.dead(name), _slope(history)))
        self._queues = rows
        self._problem = ""

    def _ask_workers(self) -> None:
        control = self.app.control
        if self._enable:
            for reply in control.enable_events(reply=True, timeout=1.0) or ():
                # Of those that have sent them already it says that.
                self._enabled |= {
                    name for name, answer in reply.items() if answer == {"ok": "task events enabled"}
                }
        asked = time.time()
        for reply in control.broadcast("active", reply=True, timeout=1.0) or ():
            for name, runs in reply.items():
                if isinstance(runs, list):
                    self.compare(name, [run for run in runs if isinstance(run, dict)], asked)

    def compare(self, worker: str, runs: Sequence[Mapping[str, Any]], asked: float) -> None:
        """Take in what a worker has said that it runs: of some of it no event may have been heard."""
        with self._lock:
            listed = {run["id"]: run for run in runs if isinstance(run.get("id"), str)}
            tasks = self.state.tasks.data
            for id, run in listed.items():
                if id not in tasks or tasks[id].state in ("PENDING", "RECEIVED", UNHEARD):
                    self._begin(worker, id, run, asked)
            for id, task in tasks.items():
                begun = task.timestamp or 0.0
                ours = task.worker is not None and task.worker.hostname == worker
                # One second: they do not list what has just begun.
                if ours and task.state == "STARTED" and begun < asked - 1.0 and id not in listed:
                    task.state = UNHEARD

    def _begin(self, worker: str, id: str, run: Mapping[str, Any], asked: float) -> None:
        start = run.get("time_start")
        begun = start if isinstance(start, (int, float)) and 0 < start <= asked else asked
        common = {"uuid": id, "hostname": worker, "timestamp": begun}
        call = {name: str(run.get(name, "")) for name in ("name", "args", "kwargs")}
        self.state.event({"type": "task-received", **call, **common})
        self.state.event({"type": "task-started", **common})

    # -- giving out ------------------------------------------------------------------------

    def view(self, runs: int = 50) -> View:
        """What there is now, with `runs` tasks: those that run first, the longest first, then the last ones."""
        now, moment = time.monotonic(), time.time()
        with self._lock:
            self._forget(now)
            tasks = self.state.tasks.values()
            running = [task for task in tasks if task.state == "STARTED"]
            longest = sorted(running, key=lambda task: task.timestamp or 0.0)[:runs]
            recent = [task for _, task in self.state.tasks_by_time(limit=4 * runs) if task.state != "STARTED"]
            by_name = Counter(task.name for task in running if isinstance(task.name, str))
            workers = map(self._worker, self.state.workers.values())
            return View(
                self.app.broker.url,
                sorted(workers, key=lambda row: (not row.online, row.name)),
                list(self._queues),
                [self._type(name, by_name, now) for name in sorted({*self._types, *by_name})],
                [_run(task, moment) for task in [*longest, *recent][:runs]],
                {kind: meter.rate(now) for kind, meter in self._meters.items() if kind != "ended"},
                self.state.event_count,
                self._problem,
                len(running),
                self._meters["ended"].course(now) if "ended" in self._meters else [],
            )

    def _forget(self, now: float) -> None:
        """Forget workers that are gone: where they come and go, there would be more and more."""
        for name, heard in list(self._heard.items()):
            if now - heard > GONE:
                del self._heard[name]
                self._beats.pop(name, None)
                self.state.workers.pop(name, None)

    def _worker(self, worker: Any) -> WorkerRow:
        load, heard = worker.loadavg, worker.heartbeats[-1] if worker.heartbeats else 0.0
        first = _span(load[0]) if isinstance(load, list) and load else None
        return WorkerRow(
            worker.hostname, worker.alive, _whole(worker.active), _whole(worker.processed),
            _slope(self._beats.get(worker.hostname, ())), first, max(0.0, time.time() - heard),
        )  # fmt: skip

    def _type(self, name: str, running: Mapping[str, int], now: float) -> TypeRow:
        ends = self._types.data.get(name) or Ends()
        total = {kind: meter.total for kind, meter in ends.meters.items()}
        return TypeRow(
            name, running.get(name, 0), total.get("succeeded", 0), total.get("failed", 0), total.get("retried", 0),
            sum(meter.rate(now) for meter in ends.meters.values()), ends.seconds / ends.count if ends.count else None,
        )  # fmt: skip


def _run(task: Any, now: float) -> RunRow:
    text = task.exception if task.state in ("FAILURE", "RETRY") else task.result
    if text is None:
        text = task.args
    worker = task.worker.hostname if task.worker is not None else task.client
    since = task.timestamp or 0.0
    took = max(0.0, now - since) if task.state == "STARTED" and since else task.runtime
    return RunRow(task.uuid, task.name or "?", task.state, since, worker or "", str(text or ""), _span(took))


def _note(history: deque[tuple[float, int]], now: float, number: int) -> None:
    history.append((now, number))
    while len(history) > 2 and history[0][0] < now - SPAN:
        history.popleft()


def _slope(history: Sequence[tuple[float, int]] | deque[tuple[float, int]]) -> float | None:
    if len(history) < 2:
        return None
    (first, before), (last, after) = history[0], history[-1]
    return (after - before) / (last - first) if last > first else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 2**53 else None


def _span(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e9 else None
