"""A client of one library and a worker of the same or the other: every combination, on every broker."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import redis

from tests.interop.tasks import QUEUES, TOPICS, Place, environment, make_app
from tests.rabbit import RabbitServer
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
TIMEOUT = 30
LIBRARIES = tuple(QUEUES)
EVERYWHERE = ("redis", "rabbitmq", "quorum")
F = TypeVar("F", bound=Callable[..., Any])


class Way(NamedTuple):
    """Who sends to whom, and where."""

    place: str
    producer: str
    worker: str

    def __str__(self) -> str:
        return f"{self.place}-{self.producer}-to-{self.worker}"


def case(
    *places: str, producers: tuple[str, ...] = LIBRARIES, workers: tuple[str, ...] = LIBRARIES
) -> Callable[[F], F]:
    """Run a test with a `pair` of each producer and each worker, on Redis and RabbitMQ, or on `places`."""
    ways = [
        Way(place, producer, worker)
        for place in places or ("redis", "rabbitmq")
        for worker in workers
        for producer in producers
    ]
    return pytest.mark.parametrize("pair", ways, ids=str, indirect=True)


@dataclass
class Site:
    """A place with a worker of each library, and clients."""

    place: Place
    server: Any  # RedisServer or RabbitServer
    folder: Path
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ready: set[str] = field(default_factory=set)
    _apps: dict[tuple[str, str], Any] = field(default_factory=dict)

    def start(self) -> Site:
        for library in LIBRARIES:
            with open(self.folder / f"{library}.log", "wb") as log:
                self.workers[library] = subprocess.Popen(
                    [sys.executable, "-m", library, "-A", "tests.interop.tasks", *self._arguments(library)],
                    cwd=ROOT,
                    env={**os.environ, **environment(library, self.place)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        return self

    def _arguments(self, library: str) -> list[str]:
        queue = QUEUES[library]
        queues = [queue]
        if self.place.name == "rabbitmq":
            queues += [f"{queue}.{name}" for name in ("urgent", *TOPICS)]
        if self.place.name == "quorum":
            queues.append(f"{queue}.later")
        # On RabbitMQ two of one name would quarrel about the queue of their requests.
        arguments = ["worker", "-Q", ",".join(queues), "-c", "1", "-l", "INFO", "-n", f"{library}@%h"]
        if library == "celery":
            arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return arguments

    def client(self, library: str, worker: str) -> Any:
        """An app of `library` with the settings of the worker of `worker`."""
        if library == "celery":
            _leave_results_alone()
        if (library, worker) not in self._apps:
            self._apps[library, worker] = make_app(library, self.place, QUEUES[worker])
        return self._apps[library, worker]

    def await_worker(self, library: str) -> None:
        """Return when the worker of `library` has run a task."""
        if library in self.ready:
            return
        worker = self.workers[library]
        found = self.client("celery", library).tasks["interop.add"].delay(1, 1)
        try:
            wait_until(lambda: found.ready() or worker.poll() is not None, timeout=90)
            assert found.ready(), f"the worker of {library} has ended"
        except AssertionError as error:
            log = (self.folder / f"{library}.log").read_text()
            raise AssertionError(f"{error}\n{log[-4000:]}") from None
        self.ready.add(library)

    def stop(self) -> None:
        try:
            with contextlib.ExitStack() as closing:  # each of them, whatever another one raises
                for (library, _), app in self._apps.items():
                    closing.callback(app.close)
                    if library == "celery":
                        closing.callback(close_connections, app)
        finally:
            for worker in self.workers.values():
                worker.send_signal(signal.SIGQUIT)  # cold: a warm stop takes Celery up to seven seconds
            for worker in self.workers.values():
                try:
                    worker.wait(15)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait(5)


@dataclass
class Pair:
    """A client of `producer`, whose calls go to the worker of `worker`."""

    site: Site
    producer: str
    worker: str
    redis: Any

    @property
    def app(self) -> Any:
        return self.site.client(self.producer, self.worker)

    @property
    def queue(self) -> str:
        return QUEUES[self.worker]

    @property
    def node(self) -> str:
        """The name of the worker."""
        return f"{self.worker}@{socket.gethostname()}"

    @property
    def on_redis(self) -> bool:
        return self.site.place.name == "redis"

    def send(self, name: str, *args: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        """Send a call to the queue, by name where no other one is given; the client's own result."""
        task = self.app.tasks[f"interop.{name}"]
        return task.apply_async(args, kwargs or {}, **{"queue": self.queue, **options})

    def sig(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.tasks[f"interop.{name}"].signature(args).set(queue=self.queue, **options)

    def chain(self, *signatures: Any) -> list[Any]:
        """Send a chain; a result for each of its steps."""
        results = [importlib.import_module(self.producer).chain(*signatures).apply_async()]
        while results[0].parent is not None:
            results.insert(0, results[0].parent)
        return results

    def group(self, *signatures: Any) -> list[Any]:
        """Send a group; a result for each of its parts."""
        parts: list[Any] = importlib.import_module(self.producer).group(signatures).apply_async().results
        return parts

    def errors(self, name: str) -> type[Exception]:
        """The client library's own exception of that name."""
        found: type[Exception] = getattr(importlib.import_module(f"{self.producer}.exceptions"), name)
        return found

    def readers(self, id: str) -> list[Any]:
        """The result `id` in Celery's and in minicelery's eyes."""
        return [self.site.client(library, self.worker).AsyncResult(id) for library in LIBRARIES]

    def notes(self, key: str) -> list[str]:
        """What tasks have noted under `key`."""
        return [note.decode() for note in self.redis.lrange(f"note.{key}", 0, -1)]

    def release(self, key: str) -> None:
        """Let the task go that holds on to `key`."""
        self.redis.rpush(f"release.{key}", "now")

    @contextlib.contextmanager
    def busy(self, queue: str | None = None) -> Iterator[Any]:
        """Within this block the worker runs one task, and fetches no other: it acknowledges late."""
        key = fresh()
        found = self.send("hold", key, queue=queue or self.queue)
        try:
            wait_until(lambda: found.state == "STARTED", timeout=TIMEOUT)
            yield found
        finally:
            self.release(key)
        assert found.get(timeout=TIMEOUT) == "released"

    def settled(self) -> None:
        """Return when what was sent before is settled: the worker has one process."""
        assert self.send("add", 1, 1).get(timeout=TIMEOUT) == 2

    def await_processes(self, number: int) -> None:
        """Return when the worker has so many: Celery's pool loses count of what it is told before."""

        def processes() -> int:
            stats: Any = self.app.control.inspect(destination=[self.node], timeout=TIMEOUT).stats()
            return len(stats[self.node]["pool"]["processes"])

        wait_until(lambda: processes() == number, timeout=TIMEOUT, interval=0.1)

    def held(self) -> int:
        """How many messages of its queue the worker has taken and not acknowledged."""
        if not self.on_redis:
            return self.on_queue("messages_unacknowledged")
        if self.worker == "celery":
            return int(self.redis.hlen("unacked"))
        return sum(
            not receipt.startswith(b"s")
            for key in self.redis.scan_iter("mini.held:*")
            for receipt in self.redis.hkeys(key)
        )

    def on_queue(self, what: str, queue: str | None = None) -> int:
        """A number that RabbitMQ has of a queue: messages_ready, messages_unacknowledged."""
        server: RabbitServer = self.site.server
        return server.count(f"interop-{self.site.place.name}", queue or self.queue, what)

    def stored(self, id: str) -> bool:
        """Whether there is a result of that id."""
        return bool(self.redis.exists(f"celery-task-meta-{id}"))

    def await_dead(self, id: str) -> None:
        """Return when minicelery keeps that message as a dead letter of the queue: its result is there before."""
        broker = self.site.client("minicelery", self.worker).broker
        wait_until(lambda: id in [letter.id for letter in broker.dead_letters(self.queue)], timeout=TIMEOUT)


@contextlib.contextmanager
def pair_at(site: Site, way: Way) -> Iterator[Pair]:
    """A pair whose worker is ready."""
    site.await_worker(way.worker)
    with redis.Redis.from_url(site.place.store) as store:
        yield Pair(site, way.producer, way.worker, store)


def done(result: Any) -> datetime:
    """When the result was stored, aware: Celery gives text where it can't know better."""
    moment = result.date_done
    moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _leave_results_alone() -> None:
    """Celery's results unsubscribe when they are dropped, which may be after Redis has gone."""
    result = importlib.import_module("celery.result").AsyncResult
    if "__del__" in vars(result):
        del result.__del__


def close_connections(app: Any) -> None:
    """Celery's `app.close` leaves its connections open, to be warned of when they are collected."""
    if app.conf.result_backend == "rpc://" and app.backend.result_consumer._consumer is not None:
        consumer = app.backend.result_consumer
        try:
            consumer.stop()
        except OSError:  # the server has closed it, idle as it was
            consumer._connection.collect()
    app.pool.force_close_all(close_pool=False)  # other apps of the same server use it too


def fresh() -> str:
    return str(uuid.uuid4())
