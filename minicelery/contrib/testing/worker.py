"""Workers embedded in the process of a test, or forked from it."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minicelery import signals
from minicelery.broker.memory import MemoryBroker
from minicelery.exceptions import ImproperlyConfigured
from minicelery.exceptions import TimeoutError as TookTooLong
from minicelery.message import new_id
from minicelery.registry import task_from_function
from minicelery.result import DisabledBackend
from minicelery.worker import POOLS, Worker
from minicelery.worker.board import Board
from minicelery.worker.crowd import Crowd
from minicelery.worker.idle import IdleConsumer
from minicelery.worker.loop import Loop
from minicelery.worker.orders import CHANGE, STOP
from minicelery.worker.pausing import await_known

if TYPE_CHECKING:
    from minicelery.app import Celery

PING = "celery.ping"

test_worker_starting = signals.Signal("test_worker_starting")
test_worker_started = signals.Signal("test_worker_started", providing_args={"worker", "consumer"})
test_worker_stopped = signals.Signal("test_worker_stopped", providing_args={"worker"})


class TestWorker(Worker):
    """A worker in threads of this process: it sets neither logging up nor handlers of signals.

    Time limits can't be enforced here and are passed over.
    """

    __test__ = False

    def __init__(self, app: Celery, *, pool: str, concurrency: int, **options: Any) -> None:
        options.setdefault("hostname", f"test-{new_id()[:8]}@{socket.gethostname()}")
        options.setdefault("without_heartbeat", True)
        processes = 1 if pool in ("threads", "asyncio") else None
        super().__init__(
            app, pool=pool, concurrency=1 if pool == "solo" else concurrency, quiet=True, processes=processes, **options
        )  # fmt: skip
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._orders = self._order_end = -1
        self._ordering = threading.Lock()
        self._thread = threading.Thread(target=self._live, name="minicelery-test-worker", daemon=True)

    def _refuse_limits(self) -> None:
        """Refuse nothing: a test is to run the program's tasks as they are."""

    def _set_up_logging(self) -> None:
        """Leave logging to the test."""

    def ensure_started(self, timeout: float | None = None) -> None:
        """Wait until it fetches tasks.  Raises what has kept it from that."""
        self._started.wait(timeout)
        if self._failure is not None:
            raise self._failure

    def reload(
        self, modules: Sequence[str] | None = None, reload: bool = False, reloader: Any = None
    ) -> None:
        """Import modules, as `pool_restart` does; tasks that the test has defined are known at once."""
        self._reload(modules, reload)

    def start(self) -> None:
        """Begin, in threads; see `ensure_started`."""
        self.prepare()
        self._orders, self._order_end = os.pipe()
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Have it finish what runs and end; whether it has within `timeout` seconds."""
        self._order(STOP)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _order(self, line: bytes) -> None:
        """Have the loop hear it, if it still does."""
        with self._ordering:
            if self._order_end >= 0:
                os.write(self._order_end, line)

    def _live(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    def _serve(self) -> None:
        self.app.set_current()
        signals.worker_process_init.send(sender=self.hostname)
        board = Board(1, self.places)
        board.head = replace(board.head, concurrency=self.places, events=self.task_events)
        agent_orders, agent_order_end = os.pipe()
        os.write(agent_order_end, b"listen\n")
        slot, name = board.slots[0], f"{self.hostname}/{new_id()}"
        slot.open(os.getpid(), name)
        agent = self._with_beat(self._make_agent(agent_orders, board, lambda line: self._obey(line, board)))
        agent.vitals = None
        looking_after = threading.Thread(target=agent.run, name="minicelery-test-agent", daemon=True)
        looking_after.start()
        loop: Loop | Crowd | None = None
        try:
            await_known(board, self._orders)
            if self.pool == "solo":
                self.pool = "threads"  # one thread: a test has the main one, with its signals
            loop = self._loop(slot, self._orders, name, board)
            signals.worker_ready.send(sender=self)
            test_worker_started.send(sender=self.app, worker=self, consumer=loop.consumer)
            self._started.set()
            loop.run()
        finally:
            os.write(agent_order_end, b"stop\n")
            looking_after.join(5.0)
            signals.worker_shutdown.send(sender=self)
            for fd in (agent_orders, agent_order_end):
                os.close(fd)
            self._close_orders(loop if isinstance(loop, Crowd) else None)

    def _close_orders(self, loop: Crowd | None) -> None:
        with self._ordering:
            os.close(self._order_end)
            self._order_end = -1
        if loop is not None and loop.listener.ident is not None:
            loop.consumer = IdleConsumer("ended")  # which it wakes, as its orders have ended
            loop.listener.join(5.0)
        os.close(self._orders)

    def _obey(self, line: str, board: Board) -> None:
        """What the agent has to tell a parent: here remote control alone."""
        word, _, rest = line.partition(" ")
        if word == "terminate":
            self._order(b"t" + rest.partition(" ")[2].encode() + b"\n")
        elif word == "order" and (order := json.loads(rest))["what"] == "stop":
            self._order(STOP)
        elif word == "order" and order["what"] == "change":
            topic, _, value = order["change"]
            if topic == "events":
                board.head = replace(board.head, events=bool(value))
            self._order(CHANGE + json.dumps(order["change"]).encode() + b"\n")


class ForkedWorker(TestWorker):
    """A worker with children, in a process forked from this one."""

    def start(self) -> None:
        """Fork."""
        if isinstance(self.app.broker, MemoryBroker):
            raise ImproperlyConfigured(
                "a prefork worker can't share a broker in memory; use the solo, threads or asyncio pool, "
                "or broker_url='sqlite:////tmp/…/queue.db' in celery_config"
            )
        self._ready, tell = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._in_child, args=(tell,), name="minicelery-test-worker")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            self._process.start()
        tell.close()

    def _in_child(self, tell: Any) -> None:
        _log_to_stderr(self.loglevel)
        signals.worker_ready.connect(lambda **_: tell.send(None), weak=False)
        code = 1
        try:
            code = self.run()
        finally:
            os._exit(code)  # nothing of the test's own is to end here a second time

    def ensure_started(self, timeout: float | None = None) -> None:
        """Wait until it fetches tasks.  Raises RuntimeError where it does not come to that."""
        try:
            if not self._ready.poll(timeout or 30.0):
                raise RuntimeError(f"the worker did not get ready within {timeout or 30.0:g} s")
            self._ready.recv()
        except EOFError:
            raise RuntimeError("the worker has ended instead of getting ready; see its log") from None
        test_worker_started.send(sender=self.app, worker=self, consumer=None)

    def stop(self, timeout: float = 10.0) -> bool:
        """Have it finish what runs and end; kills it where it does not."""
        process = self._process
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGTERM)
        process.join(timeout)
        in_time = not process.is_alive()
        if not in_time:
            process.kill()
            process.join(5.0)
        self._ready.close()
        return in_time


def _log_to_stderr(level: str | int | None) -> None:
    """Log there alone, in a forked process.

    Of the test's handlers nothing would come back, and another thread may have been writing to
    their files when this was forked, which stay locked for ever.
    """
    handler = logging.StreamHandler(os.fdopen(2, "w", closefd=False))
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper() if isinstance(level, str) else level or logging.WARNING)


@contextlib.contextmanager
def start_worker(
    app: Celery,
    concurrency: int = 1,
    pool: str = "solo",
    loglevel: str | int | None = None,
    logfile: str | None = None,
    perform_ping_check: bool = True,
    ping_task_timeout: float = 10.0,
    shutdown_timeout: float = 10.0,
    **options: Any,
) -> Iterator[TestWorker]:
    """A worker of `app` within a ``with`` statement; other options are those of a worker.

    The pools solo, threads and asyncio live in threads of this process, prefork in processes
    forked from it.  It has run a task of its own before this goes on, unless
    `perform_ping_check` is off; no task has to be registered for that.  Raises RuntimeError
    where it does not get ready, or does not end within `shutdown_timeout` seconds.
    """
    if pool not in POOLS:
        raise ImproperlyConfigured(f"pool={pool!r}: expected {', '.join(POOLS[:-1])} or {POOLS[-1]}")
    for unused in ("without_mingle", "without_gossip", "ready_callback"):
        options.pop(unused, None)
    test_worker_starting.send(sender=app)
    app.set_default()
    if perform_ping_check:
        task_from_function(app, _pong, name=PING, quiet=True, ignore_result=False)
    kind = ForkedWorker if pool == "prefork" else TestWorker
    worker = kind(
        app, pool=pool, concurrency=concurrency, loglevel=loglevel, logfile=logfile, **options
    )  # fmt: skip
    try:
        worker.start()
        try:
            worker.ensure_started()
            if perform_ping_check:
                _check(app, worker, ping_task_timeout)
            yield worker
        except BaseException as error:
            worker.stop(shutdown_timeout)  # if not in time: what the test has raised tells more
            if error is not worker._failure:
                _raise_failure(worker)
            raise
        if not worker.stop(shutdown_timeout):
            raise RuntimeError(
                f"the worker did not end within shutdown_timeout={shutdown_timeout:g} s: "
                "a task still runs; give it more time, or have the test wait for the task"
            )
        _raise_failure(worker)
    finally:
        test_worker_stopped.send(sender=app, worker=worker)


def _raise_failure(worker: TestWorker) -> None:
    if worker._failure is not None:
        raise RuntimeError("the worker has ended while the test ran") from worker._failure


def _pong() -> str:
    return "pong"


def _check(app: Celery, worker: Worker, timeout: float) -> None:
    """See that the worker runs a task.  Raises RuntimeError."""
    if isinstance(app.backend, DisabledBackend) or not worker.queues:
        return
    result = app.tasks[PING].apply_async(queue=worker.queues[0], ignore_result=False)
    try:
        result.get(timeout=timeout, disable_sync_subtasks=False)
    except TookTooLong as error:
        raise RuntimeError(
            f"the worker did not run a task within ping_task_timeout={timeout:g} s; "
            "are broker and result backend those of the test?"
        ) from error
    result.forget()
