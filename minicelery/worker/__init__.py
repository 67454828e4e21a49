"""The worker: options in, a pool chosen, run, exit code out."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import signals
from minicelery._state import request_var
from minicelery.broker import Backend
from minicelery.broker.url import mask_url
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id
from minicelery.result import DisabledBackend
from minicelery.worker import logs
from minicelery.worker.agent import Agent
from minicelery.worker.board import Board, Slot
from minicelery.worker.executor import Executor
from minicelery.worker.loop import BATCH, Loop
from minicelery.worker.orders import QUIT, STOP
from minicelery.worker.prefork import Supervisor

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

POOLS = ("prefork", "solo")
UNLIMITED_BATCH = 64


class Worker:
    """One worker of `app`.  What is None here is taken from the app's settings."""

    def __init__(
        self,
        app: Celery,
        *,
        hostname: str | None = None,
        concurrency: int | str | None = None,
        pool: str | None = None,
        queues: str | Iterable[str] | None = None,
        exclude_queues: str | Iterable[str] | None = None,
        loglevel: str | int | None = None,
        logfile: str | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        prefetch_multiplier: int | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        purge: bool = False,
        quiet: bool = False,
    ) -> None:
        conf = app.conf
        self.app = app
        self.hostname = node_name(hostname)
        self.pool = pool or conf.worker_pool
        if self.pool not in POOLS:
            raise ImproperlyConfigured(
                f"pool={self.pool!r}: this version has the pools {' and '.join(POOLS)}"
            )
        self.concurrency = 1 if self.pool == "solo" else _concurrency(concurrency or conf.worker_concurrency)
        self.queues = app._sender.router.select(_names(queues), _names(exclude_queues), self.hostname)
        if not self.queues:
            raise ImproperlyConfigured("no queue is left to consume from: --exclude-queues names them all")
        self.loglevel = loglevel
        self.logfile = logfile
        self.max_tasks = _positive(
            conf.worker_max_tasks_per_child if max_tasks_per_child is None else max_tasks_per_child,
            "max_tasks_per_child",
        )
        self.max_memory = _positive(
            conf.worker_max_memory_per_child if max_memory_per_child is None else max_memory_per_child,
            "max_memory_per_child",
        )
        self.batch = _batch(conf, prefetch_multiplier)
        self.time_limit = conf.task_time_limit if time_limit is None else time_limit
        self.soft_time_limit = conf.task_soft_time_limit if soft_time_limit is None else soft_time_limit
        if self.time_limit and self.soft_time_limit and self.soft_time_limit > self.time_limit:
            raise ImproperlyConfigured(
                f"soft_time_limit={self.soft_time_limit:g} must not be greater than time_limit={self.time_limit:g}"
            )
        self.purge = purge
        self.quiet = quiet
        self._executor: Executor | None = None

    def run(self) -> int:
        """Run until stopped by a signal; the exit code."""
        app = self.app
        app.set_current()
        app.import_task_modules()
        app.conf.check()
        if signals.celeryd_init.receivers:
            signals.celeryd_init.send(sender=self.hostname, instance=self, conf=app.conf, options={})
        self._set_up_logging()
        if signals.celeryd_after_setup.receivers:
            signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=app.conf)
        if self.pool == "prefork" and app.conf.broker_url and app.conf.broker_url.startswith("memory"):
            raise ImproperlyConfigured(
                "broker memory:// lives in one process, so the prefork pool's children can't share it; "
                'use --pool solo in that process, or broker="sqlite:///queue.db"'
            )
        broker = app.broker  # imports its client once, for every child; connects to nothing
        if self.purge:
            for queue in self.queues:
                log.warning("Purged %d messages from %s", broker.purge(queue), queue)
            broker.close()
        self._executor = Executor(
            app, self.hostname, time_limit=self.time_limit, soft_time_limit=self.soft_time_limit
        )
        if not self.quiet:
            print(self.banner(), file=sys.__stdout__, flush=True)
        signals.worker_init.send(sender=self)
        if signals.worker_before_create_process.receivers:
            signals.worker_before_create_process.send(sender=self)
        code = self._run_solo() if self.pool == "solo" else self._run_prefork()
        signals.worker_shutdown.send(sender=self)
        return code

    def banner(self) -> str:
        """What the worker is, where it works, and what it can run; passwords masked."""
        import minicelery

        app, conf = self.app, self.app.conf
        results = app.backend.url if not isinstance(app.backend, DisabledBackend) else "disabled"
        tasks = sorted(name for name in app.tasks if not name.startswith("celery."))
        lines = [
            "",
            f" {self.hostname}  minicelery {minicelery.__version__}",
            "",
            f" app:         {app.main or '__main__'}",
            f" transport:   {mask_url(app.broker.url)}",
            f" results:     {results}",
            f" concurrency: {self.concurrency} ({self.pool})",
            f" acks:        {'late' if conf.task_acks_late else 'early'} by default, timezone {conf.timezone or 'UTC'}",
            f" queues:      {', '.join(self.queues)}",
            " tasks:" + ("" if tasks else "       none are registered"),
            *(f"   . {name}" for name in tasks),
            "",
        ]
        return "\n".join(lines)

    def _set_up_logging(self) -> None:
        conf = self.app.conf
        level = self.loglevel or "WARNING"
        logs.current_task_info = _current_task_info
        logfile = self.logfile
        if logfile:
            name, _, host = self.hostname.partition("@")
            for code, value in (("%n", name), ("%h", self.hostname), ("%d", host), ("%i", "0"), ("%I", "")):
                logfile = logfile.replace(code, value)
        logs.setup_logging(conf, loglevel=level, logfile=logfile)
        if conf.worker_redirect_stdouts and not signals.setup_logging.receivers:
            logs.redirect_stdouts(conf.worker_redirect_stdouts_level)

    # -- pools -----------------------------------------------------------------------------

    def _run_prefork(self) -> int:
        def ready() -> None:
            log.info("%s ready", self.hostname)
            signals.worker_ready.send(sender=self)

        return Supervisor(self.hostname, self.concurrency, self._child, self._agent, ready).run()

    def _child(self, slot: Slot, orders: int, name: str, board: Board) -> int:
        """A child's whole life."""
        logs.process_name = f"Child-{board.slots.index(slot) + 1}"
        slot.open(os.getpid(), name)
        signals.worker_process_init.send(sender=None)
        return self._loop(slot, orders, name, board).run()

    def _loop(self, slot: Slot, orders: int, name: str, board: Board) -> Loop:
        assert self._executor is not None
        consumer = self.app.broker.consumer(self.queues, name, self._backend())
        return Loop(
            consumer, self._executor, board, slot, orders,
            batch=self.batch, max_tasks=self.max_tasks, max_memory=self.max_memory,
            alone=self.pool == "solo",
        )  # fmt: skip

    def _agent(self, orders: int, reports: int, board: Board) -> int:
        """The agent's whole life."""
        logs.process_name = "Agent"

        def report(index: int) -> None:
            with contextlib.suppress(OSError):
                os.write(reports, b"%d\n" % index)

        return self._make_agent(orders, board, report).run()

    def _make_agent(self, orders: int, board: Board, report: Any) -> Agent:
        assert self._executor is not None
        return Agent(
            self.app.broker,
            self._backend(),
            self._executor,
            self.queues,
            self.hostname,
            board,
            orders,
            report,
            self.app.conf.worker_lease,
        )

    def _backend(self) -> Backend | None:
        backend = self.app.backend
        return None if isinstance(backend, DisabledBackend) else backend

    def _run_solo(self) -> int:
        """Loop and agent in this process, the agent in a thread."""
        if self.time_limit:
            log.warning("The solo pool can't enforce time_limit=%s: use the prefork pool", self.time_limit)
        board = Board(1)
        orders, order_end = os.pipe()
        agent_orders, agent_order_end = os.pipe()
        interrupts: list[int] = []

        def stop(number: int, _: object) -> None:
            interrupts.append(number)
            if number == signal.SIGQUIT or interrupts.count(signal.SIGINT) > 1:
                os.write(order_end, QUIT)
            elif len(interrupts) == 1:
                log.warning("Warm shutdown: finishing the running task")
                os.write(order_end, STOP)

        before = {
            number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        }
        slot = board.slots[0]
        name = f"{self.hostname}/{new_id()}"
        slot.open(os.getpid(), name)
        agent = threading.Thread(
            target=self._make_agent(agent_orders, board, lambda index: None).run,
            name="minicelery-agent",
            daemon=True,
        )
        agent.start()
        log.info("%s ready", self.hostname)
        signals.worker_ready.send(sender=self)
        try:
            return self._loop(slot, orders, name, board).run()
        finally:
            os.write(agent_order_end, b"stop\n")
            agent.join(5.0)
            for number, handler in before.items():
                signal.signal(number, handler)
            for fd in (orders, order_end, agent_orders, agent_order_end):
                with contextlib.suppress(OSError):
                    os.close(fd)


def node_name(text: str | None) -> str:
    """``celery@host``, or `text` with ``%h`` (host), ``%n`` (name) and ``%d`` (domain) filled in."""
    host = socket.gethostname()
    short, _, domain = host.partition(".")
    if not text:
        return f"celery@{host}"
    text = text.replace("%h", host).replace("%n", short).replace("%d", domain)
    return text if "@" in text else f"{text}@{host}"


def _names(value: str | Iterable[str] | None) -> list[str]:
    if value is None:
        return []
    parts: Sequence[str] = value.split(",") if isinstance(value, str) else list(value)
    return [part.strip() for part in parts if part.strip()]


def _concurrency(value: int | str | None) -> int:
    if value is None or value == "auto":
        with contextlib.suppress(AttributeError):
            return max(1, min(len(os.sched_getaffinity(0)), _cpu_quota()))
        return os.cpu_count() or 1
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ImproperlyConfigured(f"concurrency={value!r}: expected a whole number of at least 1, or 'auto'")
    return number


def _cpu_quota() -> int:
    """CPUs that the control group allows, rounded up."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as limits:
            quota, period = limits.read().split()[:2]
        return sys.maxsize if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return sys.maxsize


def _positive(value: int | None, option: str) -> int | None:
    if value is not None and value < 1:
        raise ImproperlyConfigured(f"{option}={value!r}: expected a whole number of at least 1")
    return value


def _batch(conf: Any, given: int | None) -> int:
    """The upper bound of a fetch: set to n, n per child; 0, many; not set, what measured best."""
    if given is None:
        if not conf.value_set_for("worker_prefetch_multiplier"):
            return BATCH
        given = conf.worker_prefetch_multiplier
    if given is None:
        return BATCH
    if given < 0:
        raise ImproperlyConfigured(f"prefetch_multiplier={given!r}: expected 0 (no bound) or more")
    return min(given, UNLIMITED_BATCH) or UNLIMITED_BATCH


def _current_task_info() -> tuple[str, str] | None:
    request = request_var.get()
    if request is None or request.id is None or request.task is None:
        return None
    return request.task, request.id
