"""The worker: options in, a pool chosen, run, exit code out."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import signals
from minicelery._state import request_var
from minicelery.beat import Beat
from minicelery.beat.scheduler import open_scheduler
from minicelery.beat.watch import BeatWatch
from minicelery.broker import Backend, open_limits
from minicelery.broker.url import mask_url
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id
from minicelery.registry import OWN_TASKS
from minicelery.result import DisabledBackend
from minicelery.security import check_content
from minicelery.settings.worker_options import check_worker_options
from minicelery.worker import logs
from minicelery.worker.admission import Admission
from minicelery.worker.agent import Agent
from minicelery.worker.board import Board, Slot
from minicelery.worker.crowd import Crowd
from minicelery.worker.executor import Executor
from minicelery.worker.loop import BATCH, Loop
from minicelery.worker.memory import resident_kib
from minicelery.worker.orders import QUIT, STOP
from minicelery.worker.prefork import Supervisor
from minicelery.worker.runners import Coroutines, Threads
from minicelery.worker.spawn import Origin, Spawn
from minicelery.worker.starting import await_gate, report_worn

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

POOLS = ("prefork", "threads", "asyncio", "solo")
RUNNERS: Mapping[str, Any] = {"threads": Threads, "asyncio": Coroutines}
"""The pools that run many tasks in one child."""
COROUTINES = 100
"""Tasks that the asyncio pool runs at once where no concurrency is given; enough for one process."""
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
        processes: int | None = None,
        pool_start_method: str | None = None,
        autoscale: Sequence[int] | None = None,
        purge: bool = False,
        beat: bool = False,
        scheduler: str | None = None,
        quiet: bool = False,
        origin: Origin | None = None,
    ) -> None:
        check_worker_options(locals())  # first: there is nothing else among them yet
        # As they were given: a spawned child makes this worker once more.
        self._given = {
            "concurrency": concurrency, "pool": pool, "queues": _names(queues) or None,
            "exclude_queues": _names(exclude_queues) or None, "loglevel": loglevel, "logfile": logfile,
            "max_tasks_per_child": max_tasks_per_child, "max_memory_per_child": max_memory_per_child,
            "prefetch_multiplier": prefetch_multiplier, "time_limit": time_limit,
            "soft_time_limit": soft_time_limit, "processes": processes, "pool_start_method": pool_start_method,
            "autoscale": autoscale, "beat": beat, "scheduler": scheduler,
        }  # fmt: skip
        self._origin = origin
        conf = app.conf
        self.app = app
        self.hostname = node_name(hostname)
        app.set_current()
        app.import_task_modules()
        if signals.celeryd_init.receivers:  # which may change the settings of a worker by its name
            signals.celeryd_init.send(sender=self.hostname, instance=self, conf=conf, options=self._given)
        self.pool = pool or conf.worker_pool
        if self.pool not in POOLS:
            raise ImproperlyConfigured(f"pool={self.pool!r}: expected {', '.join(POOLS[:-1])} or {POOLS[-1]}")
        wanted = concurrency or conf.worker_concurrency
        if self.pool == "asyncio" and wanted is None:
            wanted = COROUTINES
        self.concurrency = 1 if self.pool == "solo" else _concurrency(wanted)
        # Children, and the tasks that each of them runs at once.
        self.children, self.places = _spread(self.pool, self.concurrency, processes or conf.worker_processes)
        self.start_method = pool_start_method or conf.worker_pool_start_method
        if self.start_method not in ("fork", "spawn"):
            raise ImproperlyConfigured(f"pool_start_method={self.start_method!r}: expected 'fork' or 'spawn'")
        self.scale = _scale(autoscale, self.pool)
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
        self.beat = beat
        self.scheduler = scheduler
        self.quiet = quiet
        self._executor: Executor | None = None

    def run(self) -> int:
        """Run until stopped by a signal; the exit code."""
        app = self.app
        self.prepare()
        if self.pool != "solo" and (app.conf.broker_url or "").startswith("memory"):
            raise ImproperlyConfigured(
                f"broker memory:// lives in one process, so the children of the {self.pool} pool can't share it; "
                'use --pool solo in that process, or broker="sqlite:///queue.db"'
            )
        broker = app.broker  # imports its client once, for every child; connects to nothing
        if self.purge:
            for queue in self.queues:
                log.warning("Purged %d messages from %s", broker.purge(queue), queue)
            broker.close()
        if not self.quiet:
            print(self.banner(), file=sys.__stdout__, flush=True)
        code = self._run_solo() if self.pool == "solo" else self._run_children()
        signals.worker_shutdown.send(sender=self)
        return code

    def prepare(self) -> None:
        """Set logging up, and refuse what can't work; in each process that wasn't forked."""
        app = self.app
        app.conf.check()
        check_content(app.conf)
        self._refuse_limits()
        if self.beat:
            open_scheduler(app, self.scheduler)  # so that it is refused here, not in the agent
        signals.worker_init.send(sender=self)
        self._set_up_logging()
        if signals.celeryd_after_setup.receivers:
            signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=app.conf)
        self._executor = Executor(
            app, self.hostname, time_limit=self.time_limit, soft_time_limit=self.soft_time_limit
        )
        if (limits := open_limits(app)) is not None:
            self._executor.admission = Admission(app, limits)

    def _refuse_limits(self) -> None:
        """Refuse time limits that this pool can't enforce."""
        both = ("time_limit", "soft_time_limit")
        kinds = {"solo": ("time_limit",), "threads": both, "asyncio": both}.get(self.pool, ())
        tasks = [task for name, task in sorted(self.app.tasks.items()) if not name.startswith(OWN_TASKS)]
        if self.pool == "asyncio":
            tasks = [task for task in tasks if not inspect.iscoroutinefunction(task.run)]
        for kind in kinds:
            holders = [
                f"{task.name} ({limit:g} s)"
                for task in tasks
                if (limit := getattr(task, kind) or getattr(self, kind))
            ]
            if holders:
                more = f" and {len(holders) - 5} more" if len(holders) > 5 else ""
                where = f"{kind} for plain functions" if self.pool == "asyncio" else kind
                raise ImproperlyConfigured(
                    f"the {self.pool} pool can't enforce {where}, which {', '.join(holders[:5])}{more} has; "
                    "use the prefork pool, the asyncio pool for async def tasks, or take the limit away"
                )

    def banner(self) -> str:
        """What the worker is, where it works, and what it can run; passwords masked."""
        import minicelery

        app, conf = self.app, self.app.conf
        results = app.backend.url if not isinstance(app.backend, DisabledBackend) else "disabled"
        tasks = sorted(name for name in app.tasks if not name.startswith(OWN_TASKS))
        lines = [
            "",
            f" {self.hostname}  minicelery {minicelery.__version__}",
            "",
            f" app:         {app.main or '__main__'}",
            f" transport:   {mask_url(app.broker.url)}",
            f" results:     {results}",
            f" concurrency: {self._described()}",
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

    def _described(self) -> str:
        if self.scale is not None:
            return f"{self.scale[0]} to {self.scale[1]} ({self.pool})"
        spread = f" in {self.children} processes" if self.places > 1 and self.children > 1 else ""
        spawned = ", spawned" if self.start_method == "spawn" else ""
        return f"{self.concurrency} ({self.pool}{spread}{spawned})"

    # -- pools -----------------------------------------------------------------------------

    def _run_children(self) -> int:
        def ready() -> None:
            log.info("%s ready", self.hostname)
            signals.worker_ready.send(sender=self)

        minimum, maximum = self.scale or (None, None)
        starter = None
        if self.start_method == "spawn":
            starter = Spawn(self.app, self.hostname, self._given, self._origin)
        return Supervisor(
            self.hostname,
            self.children,
            self.child_main,
            self.agent_main,
            ready,
            minimum=minimum,
            maximum=maximum,
            starter=starter,
            places=self.places,
        ).run()

    def child_main(self, slot: Slot, orders: int, reports: int, name: str, board: Board) -> int:
        """A child's whole life; its exit code."""
        index = board.slots.index(slot)
        logs.process_name = f"Child-{index + 1}"
        signals.worker_process_init.send(sender=self.hostname)
        at_birth = resident_kib()
        if not await_gate(index, orders, reports):
            return 0
        slot.open(os.getpid(), name)  # from now on it counts

        def worn(size: int) -> None:
            if size:
                report_worn(index, reports, size, at_birth, self.max_memory or 0)
            else:
                report_worn(index, reports)

        return self._loop(slot, orders, name, board, worn).run()

    def _loop(
        self, slot: Slot, orders: int, name: str, board: Board, on_worn: Callable[[int], None] | None = None
    ) -> Loop | Crowd:
        assert self._executor is not None
        consumer = self.app.broker.consumer(self.queues, name, self._backend())
        parts: Any = (consumer, self._executor, board, slot, orders)
        options: Any = {"max_tasks": self.max_tasks, "max_memory": self.max_memory, "on_worn": on_worn}
        if self.pool in RUNNERS:
            return Crowd(*parts, runner=RUNNERS[self.pool], **options)
        return Loop(*parts, batch=self.batch, alone=self.pool == "solo", **options)

    def agent_main(self, orders: int, reports: int, board: Board) -> int:
        """The agent's whole life; its exit code."""
        logs.process_name = "Agent"

        def report(line: str) -> None:
            with contextlib.suppress(OSError):
                os.write(reports, line.encode() + b"\n")

        return self._with_beat(self._make_agent(orders, board, report)).run()

    def _make_agent(self, orders: int, board: Board, report: Callable[[str], None]) -> Agent:
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
            tell_depth=self.scale is not None,
        )

    def _with_beat(self, agent: Agent) -> Agent:
        """Have the agent send periodic tasks too, or wonder who does."""
        if self.beat:
            agent.beat = Beat(self.app, scheduler=self.scheduler, embedded=True)
        elif self.app.periodic_entries():
            agent.beat_watch = BeatWatch(self.app)
        return agent

    def _backend(self) -> Backend | None:
        backend = self.app.backend
        return None if isinstance(backend, DisabledBackend) else backend

    def _run_solo(self) -> int:
        """Loop and agent in this process, the agent in a thread."""
        signals.worker_process_init.send(sender=self.hostname)
        board = Board(1)
        orders, order_end = os.pipe()
        agent_orders, agent_order_end = os.pipe()
        interrupts: list[int] = []

        def stop(number: int, _: object) -> None:
            interrupts.append(number)
            if number == signal.SIGQUIT or interrupts.count(signal.SIGINT) > 1:
                shutting_down(number, "Cold", 1)
                os.write(order_end, QUIT)
            elif len(interrupts) == 1:
                log.warning("Warm shutdown: finishing the running task")
                shutting_down(number, "Warm", 0)
                os.write(order_end, STOP)

        def shutting_down(number: int, how: str, code: int) -> None:
            if signals.worker_shutting_down.receivers:
                name = signal.Signals(number).name
                signals.worker_shutting_down.send(sender=self.hostname, sig=name, how=how, exitcode=code)

        before = {
            number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        }

        def report(line: str) -> None:
            word, _, rest = line.partition(" ")
            if word == "terminate":
                os.write(order_end, b"t" + rest.partition(" ")[2].encode() + b"\n")

        slot = board.slots[0]
        name = f"{self.hostname}/{new_id()}"
        slot.open(os.getpid(), name)
        agent = threading.Thread(
            target=self._with_beat(self._make_agent(agent_orders, board, report)).run,
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


def _spread(pool: str, concurrency: int, processes: int | None) -> tuple[int, int]:
    """How many children a pool has, and how many tasks each of them runs at once."""
    if pool not in RUNNERS:
        if processes is not None:
            raise ImproperlyConfigured(
                f"processes={processes}: the {pool} pool has one task for each process"
            )
        return concurrency, 1
    if processes is None:
        # One core can't serve them all; below that what they share in memory counts for more.
        processes = min(_concurrency(None), max(1, concurrency // COROUTINES)) if pool == "asyncio" else 1
    if not 1 <= processes <= concurrency:
        raise ImproperlyConfigured(f"processes={processes}: expected 1 to {concurrency}, the concurrency")
    return processes, -(-concurrency // processes)


def _scale(given: Sequence[int] | None, pool: str) -> tuple[int, int] | None:
    """`(least, most)` children; given, as in Celery, the most first."""
    if given is None:
        return None
    if pool != "prefork":
        raise ImproperlyConfigured(f"autoscale changes the number of children, which the {pool} pool has not")
    most, least = given
    if not 1 <= least <= most:
        raise ImproperlyConfigured(f"autoscale={most},{least}: expected MAX,MIN with 1 <= MIN <= MAX")
    return least, most


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
