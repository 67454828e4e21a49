"""The worker: options in, a pool chosen, run, exit code out."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minicelery import signals
from minicelery._state import request_var
from minicelery.beat import Beat
from minicelery.beat.choosing import open_scheduler
from minicelery.beat.watch import BeatWatch
from minicelery.broker import Backend, Consumer, open_limits
from minicelery.broker.url import mask_url
from minicelery.code_version import code_version, project_files
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id
from minicelery.registry import OWN_TASKS
from minicelery.result import DisabledBackend
from minicelery.security import check_content
from minicelery.settings.worker_options import check_worker_options
from minicelery.vitals import Vitals
from minicelery.worker import logs
from minicelery.worker.admission import Admission
from minicelery.worker.agent import Agent
from minicelery.worker.board import Board, Slot
from minicelery.worker.changes import Changes
from minicelery.worker.crowd import Crowd
from minicelery.worker.executor import Executor
from minicelery.worker.heart import INTERVAL, Heart
from minicelery.worker.idle import IdleConsumer
from minicelery.worker.loop import Loop
from minicelery.worker.memory import resident_kib
from minicelery.worker.orders import QUIT, STOP
from minicelery.worker.pausing import await_known
from minicelery.worker.prefork import Supervisor
from minicelery.worker.remote import attach, obey_alone
from minicelery.worker.runners import Coroutines, Threads
from minicelery.worker.sizes import COROUTINES, batch_of, concurrency_of, positive_of, scale_of, spread_of
from minicelery.worker.spawn import Origin, Spawn
from minicelery.worker.starting import await_gate, report_worn
from minicelery.worker.swapper import set_events

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

POOLS = ("prefork", "threads", "asyncio", "solo")
RUNNERS: Mapping[str, Any] = {"threads": Threads, "asyncio": Coroutines}
"""The pools that run many tasks in one child."""


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
        log_format: str | None = None,
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
        task_events: bool | None = None,
        without_heartbeat: bool = False,
        heartbeat_interval: float | None = None,
        origin: Origin | None = None,
    ) -> None:
        check_worker_options(locals())  # first: there is nothing else among them yet
        # As they were given: a spawned child makes this worker once more.
        self._given = {
            "concurrency": concurrency, "pool": pool, "queues": _names(queues) or None,
            "exclude_queues": _names(exclude_queues) or None, "loglevel": loglevel, "logfile": logfile, "log_format": log_format,
            "max_tasks_per_child": max_tasks_per_child, "max_memory_per_child": max_memory_per_child,
            "prefetch_multiplier": prefetch_multiplier, "time_limit": time_limit,
            "soft_time_limit": soft_time_limit, "processes": processes, "pool_start_method": pool_start_method,
            "autoscale": autoscale, "beat": beat, "scheduler": scheduler, "task_events": task_events,
            "without_heartbeat": without_heartbeat, "heartbeat_interval": heartbeat_interval,
        }  # fmt: skip
        self._origin = origin
        conf = app.conf
        self.app = app
        self.hostname = node_name(hostname)
        app.set_current()
        app.import_task_modules()
        self.started = time.time()
        if signals.celeryd_init.receivers:  # which may change the settings of a worker by its name
            signals.celeryd_init.send(sender=self.hostname, instance=self, conf=conf, options=self._given)
        self.pool = pool or conf.worker_pool
        if self.pool not in POOLS:
            raise ImproperlyConfigured(f"pool={self.pool!r}: expected {', '.join(POOLS[:-1])} or {POOLS[-1]}")
        wanted = concurrency or conf.worker_concurrency
        if self.pool == "asyncio" and wanted is None:
            wanted = COROUTINES
        self.concurrency = 1 if self.pool == "solo" else concurrency_of(wanted)
        # Children, and the tasks that each of them runs at once.
        self.children, self.places = spread_of(
            self.pool, self.concurrency, processes or conf.worker_processes
        )
        self.start_method = pool_start_method or conf.worker_pool_start_method
        if self.start_method not in ("fork", "spawn"):
            raise ImproperlyConfigured(f"pool_start_method={self.start_method!r}: expected 'fork' or 'spawn'")
        self.scale = scale_of(autoscale, self.pool)
        self.queues = app._sender.router.select(_names(queues), _names(exclude_queues), self.hostname)
        if not self.queues:
            raise ImproperlyConfigured("no queue is left to consume from: --exclude-queues names them all")
        self.loglevel = loglevel
        self.logfile = logfile
        self.log_format = log_format
        self.max_tasks = positive_of(
            conf.worker_max_tasks_per_child if max_tasks_per_child is None else max_tasks_per_child,
            "max_tasks_per_child",
        )
        self.max_memory = positive_of(
            conf.worker_max_memory_per_child if max_memory_per_child is None else max_memory_per_child,
            "max_memory_per_child",
        )
        self.batch = batch_of(conf, prefetch_multiplier)
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
        self.task_events: bool = conf.worker_send_task_events if task_events is None else task_events
        self.heartbeat = None if without_heartbeat else heartbeat_interval or INTERVAL
        self._executor: Executor | None = None
        self.changes: Changes

    def run(self) -> int:
        """Run until stopped by a signal; the exit code."""
        app = self.app
        if app._fixup is not None:
            app._fixup.check()
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

    @cached_property
    def code(self) -> str | None:
        """Which version of the project's files it runs."""
        return code_version(project_files())

    def prepare(self) -> None:
        """Set logging up, and refuse what can't work; in each process that wasn't forked."""
        app = self.app
        app.conf.check()
        check_content(app.conf)
        self._refuse_limits()
        if self.beat:
            open_scheduler(app, self.scheduler)  # so that it is refused here, not in the agent
        if app._fixup is not None:
            app._fixup.on_worker_start()
        signals.worker_init.send(sender=self)
        self._set_up_logging()
        if signals.celeryd_after_setup.receivers:
            signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=app.conf)
        self._executor = Executor(
            app, self.hostname, time_limit=self.time_limit, soft_time_limit=self.soft_time_limit
        )
        if (limits := open_limits(app)) is not None:
            self._executor.admission = Admission(app, limits)
        self.changes = Changes(app, self._executor, self.queues)

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
        if app._fixup is not None:
            tasks += app._fixup.other_tasks()
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
            *([f" code:        {self.code}"] if self.code else []),
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
        logs.setup_logging(conf, loglevel=level, logfile=logfile, log_format=self.log_format)
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
        supervisor = Supervisor(
            self.hostname,
            self.children,
            self.child_main,
            self.agent_main,
            ready,
            minimum=minimum,
            maximum=maximum,
            starter=starter,
            places=self.places,
            reload=None if starter is not None else self._reload,
        )
        board = supervisor.board
        board.head = replace(board.head, events=self.task_events)
        return supervisor.run()

    def _reload(self, modules: Sequence[str] | None, anew: bool) -> None:
        """Import modules, in the parent; those that are there already only if they are to be imported anew."""
        for name in modules or (*self.app.conf.imports, *self.app.conf.include):
            if name not in sys.modules:
                importlib.import_module(name)
            elif anew:
                importlib.reload(sys.modules[name])

    def child_main(self, slot: Slot, orders: int, reports: int, name: str, board: Board) -> int:
        """A child's whole life; its exit code."""
        index = board.slots.index(slot)
        logs.process_name = f"Child-{index + 1}"
        signals.worker_process_init.send(sender=self.hostname)
        at_birth = resident_kib()
        if not await_gate(index, orders, reports, self.changes.obey_line):
            return 0
        slot.open(os.getpid(), name)  # from now on it counts

        def worn(size: int) -> None:
            if size:
                report_worn(index, reports, size, at_birth, self.max_memory or 0)
            else:
                report_worn(index, reports)

        await_known(board, orders)
        return self._loop(slot, orders, name, board, worn).run()

    def _loop(
        self, slot: Slot, orders: int, name: str, board: Board, on_worn: Callable[[int], None] | None = None
    ) -> Loop | Crowd:
        executor = self._executor
        assert executor is not None
        parts: Any = (self._consumer(name), executor, board, slot, orders)
        options: Any = {"max_tasks": self.max_tasks, "max_memory": self.max_memory, "on_worn": on_worn}
        self.changes.on_events = lambda on: set_events(executor, board, on)
        set_events(executor, board, board.head.events)
        loop: Loop | Crowd
        if self.pool in RUNNERS:
            loop = Crowd(*parts, runner=RUNNERS[self.pool], **options)
        else:
            loop = Loop(*parts, batch=self.batch, alone=self.pool == "solo", **options)
        loop.obey, loop.reopen = self.changes.obey, self._consumer
        return loop

    def _consumer(self, name: str) -> Consumer:
        """A consumer of the queues that are served now."""
        broker = self.app.broker
        found = broker.consumer(self.queues or ["idle"], name, self._backend())  # connects to nothing yet
        return found if self.queues else IdleConsumer(name, found.adopts)

    def agent_main(self, orders: int, reports: int, board: Board) -> int:
        """The agent's whole life; its exit code."""
        logs.process_name = "Agent"

        def report(line: str) -> None:
            with contextlib.suppress(OSError):
                os.write(reports, line.encode() + b"\n")

        return self._with_beat(self._make_agent(orders, board, report)).run()

    def _make_agent(self, orders: int, board: Board, report: Callable[[str], None]) -> Agent:
        executor = self._executor
        assert executor is not None
        self.changes.on_events = lambda on: set_events(executor, board, on)
        set_events(executor, board, board.head.events)
        agent = Agent(
            self.app.broker,
            self._backend(),
            executor,
            self.queues,
            self.hostname,
            board,
            orders,
            report,
            self.app.conf.worker_lease,
            tell_depth=self.scale is not None,
        )
        attach(self, agent)
        pid = os.getpid() if self.pool == "solo" else os.getppid()
        agent.vitals = Vitals(
            pid,
            {
                "node": self.hostname,
                "app": self.app.main,
                "broker": self.app.broker.url,
                "code": self.code,
                "started": self.started,
            },
        )
        return agent

    def _with_beat(self, agent: Agent) -> Agent:
        """Have the agent send heartbeats, and periodic tasks too, or wonder who does."""
        agent.heart = Heart(self.app, self.hostname, agent.board, self.heartbeat)
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
        board.head = replace(board.head, concurrency=1, events=self.task_events)
        orders, order_end = os.pipe()
        agent_orders, agent_order_end = os.pipe()
        os.write(agent_order_end, b"listen\n")
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
            if word == "order":
                obey_alone(rest, order_end, board)
            elif word == "terminate":
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
            await_known(board, orders)
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


def _current_task_info() -> tuple[str, str] | None:
    request = request_var.get()
    if request is None or request.id is None or request.task is None:
        return None
    return request.task, request.id
