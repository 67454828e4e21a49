"""What a fleet looks like, as far as its events tell: Celery's `State`, by its names.

One thread may tell while others look: what they look at does not change under their hands.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from itertools import islice
from typing import Any, TypeVar

from minicelery.events import nodes
from minicelery.events.nodes import Task, Worker, heartbeat_expires

__all__ = ["State", "Task", "Worker", "heartbeat_expires"]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class Recent(MutableMapping[K, V]):
    """At most `limit` entries: those that were looked at or set longest ago go first."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.data: OrderedDict[K, V] = OrderedDict()

    def __getitem__(self, key: K) -> V:
        value = self.data[key]
        self.data.move_to_end(key)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        data = self.data
        while self.limit and key not in data and len(data) >= self.limit:
            data.popitem(last=False)
        data[key] = value
        data.move_to_end(key)

    def __delitem__(self, key: K) -> None:
        del self.data[key]

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def __iter__(self) -> Iterator[K]:
        try:
            oldest = next(iter(self.data))
        except (StopIteration, RuntimeError):  # there is none, or another thread has just changed it
            yield from list(self.data)
            return
        yield oldest  # Flower asks for this one alone, for each task once it has 100,000
        yield from [key for key in list(self.data) if key is not oldest]

    def __len__(self) -> int:
        return len(self.data)

    def items(self) -> Any:
        """As of now."""
        return self.data.copy().items()

    def values(self) -> Any:
        """As of now."""
        return self.data.copy().values()


class Moment:
    """When something was told of a task."""

    __slots__ = ("clock", "node", "task", "timestamp")

    def __init__(self, clock: int, timestamp: float, node: str, task: Task) -> None:
        self.clock = clock
        self.timestamp = timestamp
        self.node = node
        self.task = weakref.ref(task)

    def __lt__(self, other: Moment) -> bool:
        # By the clocks, which follow each other; by the time where one of the two has none.
        if self.clock and other.clock:
            return (self.clock, self.node) < (other.clock, other.node)
        return self.timestamp < other.timestamp


class Index(defaultdict[str, "weakref.WeakSet[Task]"]):
    """Tasks by a name.  Called, it goes through those of one name in the order of time."""

    def __init__(self, ordered: Callable[[str], Iterator[tuple[str, Task]]]) -> None:
        super().__init__(weakref.WeakSet)
        self._ordered = ordered

    def __call__(
        self, name: str, limit: int | None = None, reverse: bool = True
    ) -> Iterator[tuple[str, Task]]:
        found = list(self._ordered(name))  # the last one first
        return islice(found if reverse else reversed(found), limit)


class State:
    """Workers and tasks as their events show them; feed it with `event`."""

    Worker = nodes.Worker
    Task = nodes.Task
    heap_multiplier = 4

    def __init__(
        self,
        callback: Callable[[State, dict[str, Any]], Any] | None = None,
        workers: Any = None,
        tasks: Any = None,
        taskheap: Any = None,
        max_workers_in_memory: int = 5000,
        max_tasks_in_memory: int = 10000,
        on_node_join: Callable[[nodes.Worker], Any] | None = None,
        on_node_leave: Callable[[nodes.Worker], Any] | None = None,
    ) -> None:
        self.event_callback = callback
        self.workers: Recent[str, nodes.Worker] = (
            Recent(max_workers_in_memory) if workers is None else workers
        )
        self.tasks: Recent[str, nodes.Task] = Recent(max_tasks_in_memory) if tasks is None else tasks
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.on_node_join = on_node_join
        self.on_node_leave = on_node_leave
        self.event_count = 0
        self.task_count = 0
        self.handlers: dict[str, Callable[[str, dict[str, Any]], Any]] = {}  # by the type's first word
        self.tasks_by_type = Index(self._of_type)
        self.tasks_by_worker = Index(self._of_worker)
        self._mutex = threading.Lock()
        self._types: set[str] = set()
        self._orphans: Recent[str, weakref.WeakSet[nodes.Task]] = Recent(max_tasks_in_memory)
        self._moments: list[Moment] = [] if taskheap is None else taskheap
        for task in self.tasks.values():
            self._restore(task)
        self.rebuild_taskheap()

    def __reduce__(self) -> Any:
        callbacks = self.event_callback, self.on_node_join, self.on_node_leave
        limits = self.max_workers_in_memory, self.max_tasks_in_memory
        return type(self), (callbacks[0], self.workers, self.tasks, None, *limits, *callbacks[1:])

    def _restore(self, task: nodes.Task) -> None:
        """Take in a task that another state has known."""
        task.cluster_state = self
        if task.name is not None:
            self._types.add(task.name)
            self.tasks_by_type[task.name].add(task)
            if task.worker is not None:
                self.tasks_by_worker[str(task.worker.hostname)].add(task)
        self._relate(task)

    # -- telling ---------------------------------------------------------------------------

    def event(self, event: dict[str, Any]) -> Any:
        """Take an event in; ``((worker or task, whether it is new), what happened to it)``.

        None where it is of neither, or says too little.
        """
        with self._mutex:
            return self._event(event)

    def _event(self, event: dict[str, Any]) -> Any:
        self.event_count += 1
        if self.event_callback is not None:
            self.event_callback(self, event)
        group, _, subject = str(event.get("type")).partition("-")
        if (handler := self.handlers.get(group)) is not None:
            return handler(subject, event), subject
        named = event.get("hostname")
        if type(named) is not str or not _is_moment(event.get("timestamp")):
            return None
        if group == "worker":
            return self._worker_event(subject, event), subject
        if group == "task" and type(event.get("uuid")) is str:
            return self._task_event(subject, _with_names(event)), subject
        return None

    def _worker_event(self, subject: str, event: dict[str, Any]) -> tuple[nodes.Worker, bool]:
        name, left = event["hostname"], subject == "offline"
        worker = self.workers.data.get(name)
        created = worker is None and not left
        if worker is None:
            worker = self.Worker(name)
            if not left:
                self.workers[name] = worker
        worker.event(subject, event["timestamp"], event.get("local_received"), event)
        if self.on_node_join is not None and (created or subject == "online"):
            self.on_node_join(worker)
        if self.on_node_leave is not None and left:
            self.on_node_leave(worker)
            self.workers.pop(name, None)
        return worker, created

    def _task_event(self, subject: str, event: dict[str, Any]) -> tuple[nodes.Task, bool]:
        id, node = event["uuid"], event["hostname"]
        task, created = self.tasks.data.get(id), False
        if task is None:
            task, created = self.Task(id, cluster_state=self), True
            self.tasks[id] = task
        if subject == "sent":  # by a client
            task.client = origin = node
        else:
            worker = self.workers.data.get(node)
            if worker is None:
                worker = self.workers[node] = self.Worker(node)
            task.worker, origin = worker, worker.id
            worker.event(None, event["timestamp"], event.get("local_received"))
        self._note(Moment(_number(event.get("clock")), event["timestamp"], origin, task))
        if subject == "received":
            self.task_count += 1
        task.event(subject, event["timestamp"], event.get("local_received"), event)
        if task.name is not None:
            self._types.add(task.name)
            if created:
                self.tasks_by_type[task.name].add(task)
                self.tasks_by_worker[node].add(task)
                self._forget_names()
        self._relate(task)
        return task, created

    def _forget_names(self) -> None:
        """Of names that are new each time, keep no more than those of tasks that are kept."""
        most = 2 * self.max_tasks_in_memory
        if len(self._types) > most:
            self._types = {task.name for task in self.tasks.data.values() if task.name is not None}
        for index in (self.tasks_by_type, self.tasks_by_worker):
            if len(index) > most:
                for name in [name for name, tasks in index.items() if not tasks]:
                    del index[name]

    def _note(self, moment: Moment) -> None:
        moments = self._moments
        if len(moments) >= self.max_tasks_in_memory * self.heap_multiplier:
            del moments[: 1 + len(moments) // 10]  # some at once: each time the others move
        if moments and not moment < moments[-1]:
            moments.append(moment)
        else:
            bisect.insort(moments, moment)

    def _relate(self, task: nodes.Task) -> None:
        if task.parent_id:
            parent = self.tasks.data.get(task.parent_id)
            if parent is not None:
                parent.children.add(task)
            else:
                self._orphans.setdefault(task.parent_id, weakref.WeakSet()).add(task)
        if (children := self._orphans.pop(task.uuid or "", None)) is not None:
            task.children.update(children)

    def get_or_create_worker(self, hostname: str, **fields: Any) -> tuple[nodes.Worker, bool]:
        """The worker, and whether it is new."""
        worker = self.workers.get(hostname)
        if worker is not None:
            worker.update(fields)
            return worker, False
        worker = self.workers[hostname] = self.Worker(hostname, **fields)
        return worker, True

    def get_or_create_task(self, uuid: str) -> tuple[nodes.Task, bool]:
        """The task, and whether it is new."""
        task = self.tasks.get(uuid)
        if task is not None:
            return task, False
        task = self.tasks[uuid] = self.Task(uuid, cluster_state=self)
        return task, True

    # -- looking ---------------------------------------------------------------------------

    def alive_workers(self) -> Iterator[nodes.Worker]:
        """The workers that have been heard of lately."""
        return (worker for worker in self.workers.values() if worker.alive)

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, nodes.Task]]:
        """`(id, task)` of all tasks, or of the first `limit`."""
        return islice(self.tasks.items(), limit or None)

    def tasks_by_time(
        self, limit: int | None = None, reverse: bool = True
    ) -> Iterator[tuple[str, nodes.Task]]:
        """`(id, task)` in the order of their events, the last ones first; `limit` is how many events count."""
        moments = list(self._moments)
        seen = set()
        for moment in islice(reversed(moments) if reverse else moments, limit):
            task = moment.task()
            if task is not None and task.uuid is not None and task.uuid not in seen:
                seen.add(task.uuid)
                yield task.uuid, task

    tasks_by_timestamp = tasks_by_time

    def _of_type(self, name: str) -> Iterator[tuple[str, nodes.Task]]:
        return ((id, task) for id, task in self.tasks_by_time() if task.name == name)

    def _of_worker(self, hostname: str) -> Iterator[tuple[str, nodes.Task]]:
        return (
            (id, task)
            for id, task in self.tasks_by_time()
            if task.worker is not None and task.worker.hostname == hostname
        )

    def task_types(self) -> list[str]:
        """The names of all tasks that have been told of."""
        return sorted(self._types)

    def freeze_while(self, fun: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What `fun` returns; no event is taken in meanwhile.  With `clear_after` all is forgotten then."""
        clear = kwargs.pop("clear_after", False)
        with self._mutex:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear:
                    self._clear()

    # -- forgetting ------------------------------------------------------------------------

    def clear_tasks(self, ready: bool = True) -> None:
        """Forget the tasks that have ended; without `ready` all of them."""
        with self._mutex:
            self._clear_tasks(ready)

    def clear(self, ready: bool = True) -> None:
        """Forget the workers, and the tasks as `clear_tasks` does."""
        with self._mutex:
            self._clear(ready)

    def _clear_tasks(self, ready: bool = True) -> None:
        kept = {id: task for id, task in self.tasks.items() if ready and not task.ready}
        self.tasks.clear()
        self.tasks.update(kept)
        self._moments.clear()

    def _clear(self, ready: bool = True) -> None:
        self.workers.clear()
        self._clear_tasks(ready)
        self.event_count = self.task_count = 0

    def rebuild_taskheap(self) -> None:
        """Put the tasks in order anew."""
        self._moments[:] = sorted(
            Moment(_number(task.clock), task.timestamp or 0.0, task.origin or "", task)
            for task in self.tasks.values()
        )

    def __repr__(self) -> str:
        return f"<State: events={self.event_count} tasks={self.task_count}>"


def _is_moment(value: Any) -> bool:
    return type(value) in (int, float) and -1e12 < value < 1e12


def _with_names(event: dict[str, Any]) -> dict[str, Any]:
    """The event with texts, or nothing, where others would break what is looked up by them."""
    for field in ("name", "root_id", "parent_id"):
        if type(value := event.get(field)) is not str and value is not None:
            event = {**event, field: str(value)[:1024]}
    return event


def _number(value: Any) -> int:
    return value if type(value) is int else 0
