"""What remote control knows of its worker, and can have it do; the `state` that commands get."""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from minicelery.broker.url import ServerURL, parse_urls
from minicelery.message import new_id
from minicelery.remote.client import TERMINATED_FOR
from minicelery.remote.request import Request
from minicelery.worker.board import Board, Run, Slot
from minicelery.worker.changes import Changes
from minicelery.worker.memory import kib_of
from minicelery.worker.orders import LONGEST, Change
from minicelery.worker.tally import total

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.worker import Worker
    from minicelery.worker.agent import Agent

TRIED_FOR = 60.0
"""Seconds for which a queue that the broker has taken is not tried again: it costs a connection."""
MOST_TRIED = 1000
OBEYED = 0.5
"""Seconds for which the parent is waited for: it takes a millisecond, unless it is starting a process."""
_PORTS = {"redis": 6379, "rediss": 6379, "valkey": 6379, "amqp": 5672, "pyamqp": 5672, "amqps": 5671}
_USAGE = (
    "utime", "stime", "maxrss", "ixrss", "idrss", "isrss", "minflt", "majflt", "nswap", "inblock", "oublock",
    "msgsnd", "msgrcv", "nsignals", "nvcsw", "nivcsw",
)  # fmt: skip


class Station:
    """One worker, as its agent sees it.  Thread-safe; asks no child for anything."""

    def __init__(self, worker: Worker, agent: Agent, changes: Changes) -> None:
        self.worker = worker
        self.agent = agent
        self.changes = changes
        self.app: Celery = worker.app
        self.board: Board = agent.board
        self.hostname = worker.hostname
        self.pid = self.board.pid
        self.events = self.board.head.events  # the tasks are told of
        self._tried: dict[str, float] = {}  # queues that the broker has not refused, and when

    # -- changing --------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        """Obey a change here, and have all other processes obey it.  Raises ValueError."""
        order = _order("change", change=[change.topic, change.key, change.value])
        if change.topic == "queue" and change.value is not None:
            self._try_queue(change)
        self._obey(change)
        self.agent.report(order)

    def _try_queue(self, change: Change) -> None:
        """Raise OperationalError where the broker refuses the queue: children would fetch nothing at all."""
        broker, now, text = self.app.broker, time.monotonic(), change.text()
        if now - self._tried.get(text, -math.inf) < TRIED_FOR:
            return
        self.changes.learn(change.key, change.value)
        broker.size(change.key)
        consumer = broker.consumer([change.key], f"{self.hostname}/{new_id()}", None)
        try:
            consumer.swap([], 0, 0.0)
        finally:
            consumer.close()
        if len(self._tried) >= MOST_TRIED:
            self._tried.clear()
        self._tried[text] = now

    def obey(self, line: str) -> None:
        """Obey what was changed before this process was started."""
        self._obey(Change.from_text(line))

    def _obey(self, change: Change) -> None:
        if change.topic == "events":
            self.events = bool(change.value)
        if self.changes.obey(change):
            self.agent.serve(self.changes.queues)

    def order(self, what: str, done: Callable[[], bool] = lambda: True, **details: Any) -> None:
        """Have the parent do something; it mostly is `done` when this returns, so that what is asked next tells.

        Raises ValueError where it is too long for a pipe.
        """
        self.agent.report(_order(what, **details))
        end = time.monotonic() + OBEYED
        while not done() and time.monotonic() < end:
            time.sleep(0.001)

    # -- tasks -----------------------------------------------------------------------------

    def runs(self) -> Iterator[tuple[int, Run]]:
        """What runs, with the pid of the child; what has only just begun is not among it."""
        for slot in self.board.slots:
            entry = slot.read()
            if not entry.pid:
                continue
            running = slot.running_receipts() or ([entry.receipt] if entry.began else [])
            for run in slot.runs():
                if run.receipt in running:
                    yield entry.pid, run

    def describe(self, pid: int | None, run: Run, safe: bool) -> dict[str, Any]:
        """A run, as Celery describes one; its arguments as values where their text tells them."""
        return {
            "id": run.id,
            "name": run.name,
            "args": run.args if safe else _value(run.args),
            "kwargs": run.kwargs if safe else _value(run.kwargs),
            "type": run.name,
            "hostname": self.hostname,
            "time_start": run.began or None,
            "acknowledged": run.acknowledged,
            "delivery_info": {
                "exchange": run.exchange,
                "routing_key": run.routing_key,
                "priority": run.priority or 0,
                "redelivered": run.redelivered,
            },
            "worker_pid": pid,
        }

    def terminate(self, is_meant: Callable[[Run], bool], name: str) -> list[str]:
        """Have runs ended by a signal; the ids of those that are."""
        found = [run.id for _, run in self.runs() if is_meant(run)]
        self.agent.end_runs(is_meant, name)
        return found

    def keep_revoked(self, ids: Sequence[str], seconds: float) -> None:
        """Put ids down in the broker, where all workers find them."""
        if ids:
            self.app.broker.remember_all("revoked", dict.fromkeys(ids, b""), seconds)

    def keep_terminated(self, ids: Sequence[str], name: str) -> None:
        """The same of runs that are to be ended, by a signal's name."""
        if ids:
            self.app.broker.remember_all("terminate", dict.fromkeys(ids, name.encode()), TERMINATED_FOR)

    def refuses_limits(self, name: str, soft: float | None, hard: float | None) -> str | None:
        """Why the pool can't enforce these limits of a task; None where it can."""
        pool = self.worker.pool
        plain = not inspect.iscoroutinefunction(self.app.tasks[name].run)
        refused = (hard,) if pool == "solo" else (soft, hard)
        if any(refused) and (pool in ("solo", "threads") or (pool == "asyncio" and plain)):
            return f"the {pool} pool can't enforce {'a hard time limit' if pool == 'solo' else 'time limits'}"
        return None

    # -- the worker ------------------------------------------------------------------------

    def children(self) -> list[Slot]:
        """The slots of the children that are there."""
        return [slot for slot in self.board.slots if slot.read().pid]

    def memory(self) -> int:
        """KiB that all processes have in memory, those that they share counted for each."""
        pids = {self.pid, os.getpid(), *(slot.read().pid for slot in self.children())}
        return sum(map(kib_of, pids))

    def stats(self) -> dict[str, Any]:
        """What `inspect stats` tells."""
        head = self.board.head
        return {
            "total": total(self.board),
            "pid": self.pid,
            "clock": str(self.app.clock.value),
            "uptime": int(max(0.0, time.time() - head.started)),
            "pool": self._pool(),
            "broker": self._broker(),
            "prefetch_count": self.concurrency * (1 if self.worker.places > 1 else self.worker.batch),
            "rusage": _usage(),
            **({} if self.scale is None else {"autoscaler": self._autoscaler()}),
        }

    @property
    def concurrency(self) -> int:
        """How many tasks may run at once."""
        return self.board.head.concurrency * self.worker.places or self.worker.concurrency

    @property
    def scale(self) -> tuple[int, int] | None:
        """The least and the most children, where their number follows the work."""
        head = self.board.head
        return (head.least, head.most) if head.most else None

    def _pool(self) -> dict[str, Any]:
        worker = self.worker
        entries = [slot.read() for slot in self.children()]
        counts = [entry.processed for entry in entries]
        done = sum(counts)
        shares = [f"{count / done:.2f}" if done else "0.00" for count in counts]
        return {
            "implementation": f"minicelery.worker:{worker.pool}",
            "max-concurrency": self.concurrency,
            "processes": [entry.pid for entry in entries],
            "max-tasks-per-child": worker.max_tasks or "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": [worker.soft_time_limit or 0, worker.time_limit or 0],
            "writes": {
                "total": done,
                "avg": f"{1 / len(counts) if counts and done else 0:.2f}",
                "all": ", ".join(shares),
                "raw": ", ".join(map(str, counts)),
                "strategy": "fair",
                "inqueues": {"total": len(entries), "active": sum(bool(entry.began) for entry in entries)},
            },
        }

    def _autoscaler(self) -> dict[str, int]:
        least, most = self.scale or (0, 0)
        return {"max": most, "min": least, "current": self.board.head.concurrency, "qty": 0}

    def _broker(self) -> dict[str, Any]:
        conf = self.app.conf
        first, *others = parse_urls(conf.broker_url or "amqp://")
        amqp = first.scheme in ("amqp", "amqps", "pyamqp", "py-amqp")
        return {
            "hostname": first.host or ("localhost" if amqp or "redis" in first.scheme else first.path),
            "userid": first.user or ("guest" if amqp else None),
            "virtual_host": _virtual_host(first, amqp),
            "port": first.port or _PORTS.get(first.scheme),
            "insist": False,
            "ssl": bool(conf.broker_use_ssl) or first.scheme in ("rediss", "amqps"),
            "transport": first.scheme,
            "connect_timeout": conf.broker_connection_timeout,
            "transport_options": conf.table(with_defaults=True)["broker_transport_options"],
            "login_method": conf.broker_login_method,
            "uri_prefix": None,
            "heartbeat": float(conf.broker_heartbeat or 0),
            "failover_strategy": conf.broker_failover_strategy or "round-robin",
            "alternates": [other.masked for other in others],
            "credential_provider": None,
        }


class State:
    """What one command gets: the worker, and the request."""

    def __init__(self, station: Station, request: Request) -> None:
        self.station = station
        self.request = request
        self.app = station.app
        self.hostname = station.hostname
        self.pool = station.worker.pool
        self.keep_revoked = station.keep_revoked
        self.keep_terminated = station.keep_terminated
        self.terminate = station.terminate
        self.refuses_limits = station.refuses_limits
        self.order = station.order
        self.stats = station.stats
        self.memory = station.memory

    @property
    def queues(self) -> list[str]:
        """The queues that the worker serves."""
        return list(self.station.changes.queues)

    @property
    def events(self) -> bool:
        """Whether the worker tells of its tasks."""
        return self.station.events

    @property
    def concurrency(self) -> int:
        """How many children there should be."""
        return self.station.board.head.concurrency

    @property
    def room(self) -> int:
        """How many children there may be."""
        return (len(self.station.board.slots) - 4) // 2

    @property
    def scale(self) -> tuple[int, int] | None:
        """The least and the most children, where their number follows the work."""
        return self.station.scale

    def active(self, safe: bool) -> list[dict[str, Any]]:
        """The runs, described."""
        return [self.station.describe(pid, run, safe) for pid, run in self.station.runs()]

    def reserved(self) -> list[dict[str, Any]]:
        """What children hold and have not begun."""
        return []

    def change(self, topic: str, key: str, value: Any) -> None:
        """Change something for all processes, also those to come."""
        self.station.change(Change(topic, key, value))

    def heartbeat(self) -> None:
        """Give a sign of life, as an event."""
        self.station.agent.send_heartbeat()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"state.{name} is not there for commands of a minicelery worker; there are app, hostname, pool, "
            "queues, concurrency, request and stats()"
        )


def _order(what: str, **details: Any) -> str:
    text = json.dumps({"what": what, **details})
    if len(text) > LONGEST:
        raise ValueError(f"{what} is too long by {len(text) - LONGEST} bytes")
    return f"order {text}"


def _value(text: str) -> Any:
    """What a repr shows, in JSON's kinds; the text itself where it shows more, or was cut."""
    try:
        found = ast.literal_eval(text)
        json.dumps(found)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return list(found) if isinstance(found, tuple) else found


def _virtual_host(server: ServerURL, amqp: bool) -> str:
    if amqp:
        return server.path[1:] or "/"
    return server.path.strip("/") or "0" if "redis" in server.scheme else "/"


def _usage() -> dict[str, Any]:
    found = resource.getrusage(resource.RUSAGE_SELF)
    return {name: getattr(found, f"ru_{name}") for name in _USAGE}
