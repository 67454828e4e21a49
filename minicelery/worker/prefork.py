"""The parent: forks children and an agent, waits, restarts and kills.

It opens no socket and starts no thread, so it can fork at any time and no broker can wedge
it.  Pipes carry orders, never tasks.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from minicelery import signals
from minicelery.message import new_id
from minicelery.worker.board import DONE, Board, Slot
from minicelery.worker.loop import QUIT, STOP

log = logging.getLogger(__name__)

LATE = 1.0
"""Seconds past a hard limit after which the parent kills a child whose keeper could not."""
COLD_PATIENCE = 3.0
AGENT_PATIENCE = 15.0
HASTY = 1.0
"""A child that dies younger than this, having run nothing, is replaced with a growing delay."""


@dataclass(slots=True)
class Child:
    """A forked process, and the write end of its pipe of orders."""

    pid: int
    orders: int
    slot: Slot | None  # None: the agent
    born: float
    killed: str | None = None  # why the parent has killed it

    def order(self, order: bytes) -> None:
        """Send an order; a process that is gone hears none."""
        with contextlib.suppress(OSError):
            os.write(self.orders, order)


ChildMain = Callable[[Slot, int, str, Board], int]
AgentMain = Callable[[int, int, Board], int]


class Supervisor:
    """Keeps `concurrency` children and one agent alive until told to stop."""

    def __init__(
        self,
        hostname: str,
        concurrency: int,
        child_main: ChildMain,
        agent_main: AgentMain,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.hostname = hostname
        self.concurrency = concurrency
        self.child_main = child_main
        self.agent_main = agent_main
        self.on_ready = on_ready
        # A dead child's slot is kept until the agent has settled what it held.
        self.board = Board(2 * concurrency + 4)
        self.free = list(reversed(self.board.slots))
        self.children: dict[int, Child] = {}
        self.agent: Child | None = None
        self.unsettled: dict[int, str] = {}  # slot index -> how its child died
        self.stopping = False
        self.cold = False
        self._cold_since = 0.0
        self._interrupts = 0
        self._hasty = 0
        self._fork_after = 0.0
        self._reports, self._report_end = os.pipe()
        os.set_blocking(self._reports, False)
        self._reported = b""
        self._signals: list[int] = []
        self._alarm_read, self._alarm_write = os.pipe()
        os.set_blocking(self._alarm_read, False)
        os.set_blocking(self._alarm_write, False)

    def run(self) -> int:
        """Supervise until stopped; the exit code: 0 after a warm stop, 1 after a cold one."""
        before = self._take_signals()
        gc.collect()
        gc.freeze()  # what is here now stays in pages shared with the children
        try:
            self._fork_missing()
            self.on_ready()
            while self.children or not self.stopping:
                self._wait()
                self._handle_signals()
                self._reap()
                self._read_reports()
                self._kill_late()
                if not self.stopping:
                    self._fork_missing()
            self._end_agent()
        finally:
            self._kill_all()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
        return 1 if self.cold else 0

    # -- forking ---------------------------------------------------------------------------

    def _fork_missing(self) -> None:
        now = time.monotonic()
        if self.agent is None and now >= self._fork_after:
            self._fork_agent()
        while len(self.children) < self.concurrency and self.free and now >= self._fork_after:
            self._fork_child()

    def _fork_child(self) -> None:
        slot = self.free.pop()
        host = self.hostname.encode()[:100].decode(errors="ignore")  # the board has room for 160 bytes
        name = f"{host}/{new_id()}"
        slot.open(0, name)
        orders, order_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(order_end)
            self._become_child(lambda: self.child_main(slot, orders, name, self.board))
        os.close(orders)
        self.children[pid] = Child(pid, order_end, slot, time.monotonic())

    def _fork_agent(self) -> None:
        orders, order_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(order_end)
            self._become_child(lambda: self.agent_main(orders, self._report_end, self.board))
        os.close(orders)
        self.agent = Child(pid, order_end, None, time.monotonic())
        for index, reason in self.unsettled.items():
            self.agent.order(_lost(index, reason))

    def _become_child(self, main: Callable[[], int]) -> NoReturn:
        """In the forked process: drop what is the parent's, run, and never return."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            # No-op handlers, not SIG_IGN, which the task's own subprocesses would inherit: a
            # terminal's Ctrl-C reaches the whole group, but only the parent's orders count.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, _heard)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # The siblings must see their pipes close when the parent dies.
            others = [child.orders for child in self.children.values()]
            if self.agent is not None:
                others.append(self.agent.orders)
            for fd in (*others, self._reports, self._alarm_read, self._alarm_write):
                with contextlib.suppress(OSError):
                    os.close(fd)
            random.seed()
            code = main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            log.exception("a child failed")
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    # -- waiting ---------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until a signal, a report, or the time of the next thing to do; a second at most."""
        timeout = 1.0
        now = time.monotonic()
        if self._fork_after > now:
            timeout = min(timeout, self._fork_after - now)
        for child in self.children.values():
            assert child.slot is not None
            entry = child.slot.read()
            if entry.deadline and entry.began:
                timeout = min(timeout, max(0.0, entry.deadline + LATE - now))
        ready, _, _ = select.select([self._alarm_read, self._reports], [], [], timeout)
        if self._alarm_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._alarm_read, 4096)

    def _take_signals(self) -> dict[int, Any]:
        before: dict[int, Any] = {}
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            before[number] = signal.signal(number, lambda number, _: self._signals.append(number))
        signal.set_wakeup_fd(self._alarm_write, warn_on_full_buffer=False)
        return before

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGTERM:
                self.stop(number)
            elif number == signal.SIGINT:
                self._interrupts += 1
                if self._interrupts == 1:
                    self.stop(number)
                else:
                    self.quit(number)
            elif number == signal.SIGQUIT:
                self.quit(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Warm: what runs is finished, the rest given back."""
        if self.stopping:
            return
        self.stopping = True
        log.warning("Warm shutdown: finishing %d children's tasks", len(self.children))
        if signals.worker_shutting_down.receivers:
            name = signal.Signals(number).name
            signals.worker_shutting_down.send(sender=self.hostname, sig=name, how="Warm", exitcode=0)
        for child in self.children.values():
            child.order(STOP)

    def quit(self, number: int = signal.SIGQUIT) -> None:
        """Cold: what runs is ended, failed or given back as its `acks_late` says."""
        self.stopping = True
        if self.cold:
            return
        self.cold, self._cold_since = True, time.monotonic()
        log.warning("Cold shutdown: ending %d children's tasks", len(self.children))
        if signals.worker_shutting_down.receivers:
            name = signal.Signals(number).name
            signals.worker_shutting_down.send(sender=self.hostname, sig=name, how="Cold", exitcode=1)
        for child in self.children.values():
            child.order(QUIT)

    # -- deaths ----------------------------------------------------------------------------

    def _reap(self) -> None:
        for pid, child in list(self.children.items()):
            # Only our own: the program's other children are not ours to wait for.
            done, status = _waitpid(pid)
            if done:
                del self.children[pid]
                os.close(child.orders)
                self._bury(child, os.waitstatus_to_exitcode(status))
        if self.agent is not None:
            done, status = _waitpid(self.agent.pid)
            if done:
                os.close(self.agent.orders)
                if not self.stopping or self.children:
                    log.error("The agent died (%s) and is restarted", _how(os.waitstatus_to_exitcode(status)))
                    if time.monotonic() - self.agent.born < HASTY:
                        self._fork_after = time.monotonic() + 1.0
                self.agent = None
                if self.children and self.stopping and not self._fork_after > time.monotonic():
                    self._fork_agent()

    def _bury(self, child: Child, code: int) -> None:
        slot = child.slot
        assert slot is not None
        entry = slot.read()
        if signals.worker_process_shutdown.receivers:
            signals.worker_process_shutdown.send(sender=None, pid=child.pid, exitcode=code)
        if code == 0 and not entry.began:  # a task may call os._exit(0)
            self._hasty = 0
            if self.agent is not None and not self.stopping and slot.ended.entries():
                # What it has ended may come back yet: the agent writes it down.
                index = self.board.slots.index(slot)
                self.unsettled[index] = DONE
                self.agent.order(_lost(index, DONE))
                return
            slot.clear()
            self.free.insert(0, slot)
            return
        now = time.monotonic()
        reason = child.killed or f"Worker exited prematurely: {_how(code)}"
        if self.cold and child.killed is None:
            reason = f"terminated: cold shutdown ({_how(code)})"
        log.error("Child %d is lost: %s", child.pid, reason)
        index = self.board.slots.index(slot)
        self.unsettled[index] = reason
        if self.agent is not None:
            self.agent.order(_lost(index, reason))
        if now - child.born < HASTY and entry.receipt == 0:
            self._hasty += 1
            self._fork_after = now + min(10.0, 0.1 * 2.0 ** min(self._hasty, 7))
        else:
            self._hasty = 0

    def _read_reports(self) -> None:
        """The agent says which slots' deliveries it has settled."""
        with contextlib.suppress(BlockingIOError):
            self._reported += os.read(self._reports, 4096)
        *lines, self._reported = self._reported.split(b"\n")
        for line in lines:
            index = int(line)
            if self.unsettled.pop(index, None) is not None:
                self.board.slots[index].clear()
                self.free.insert(0, self.board.slots[index])

    def _kill_late(self) -> None:
        now = time.monotonic()
        for child in self.children.values():
            assert child.slot is not None
            entry = child.slot.read()
            reason = None
            if self.cold and now - self._cold_since > COLD_PATIENCE:
                reason = "terminated: cold shutdown"
            elif entry.deadline and entry.began and now > entry.deadline + LATE:
                reason = "time limit"
            if reason is not None and child.killed is None:
                child.killed = reason
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)

    # -- the end ---------------------------------------------------------------------------

    def _end_agent(self) -> None:
        """The agent goes last: it settles what the children left."""
        end = time.monotonic() + AGENT_PATIENCE
        if self.agent is None and self.unsettled:
            self._fork_agent()
        if self.agent is None:
            return
        self.agent.order(b"stop\n")
        while self.agent is not None and time.monotonic() < end:
            select.select([self._alarm_read, self._reports], [], [], 0.2)
            with contextlib.suppress(BlockingIOError):
                os.read(self._alarm_read, 4096)
            self._handle_signals()
            self._read_reports()
            done, _ = _waitpid(self.agent.pid)
            if done:
                os.close(self.agent.orders)
                self.agent = None
        if self.unsettled:
            log.error("%d dead children's tasks are left to the lease", len(self.unsettled))

    def _kill_all(self) -> None:
        left = [*self.children.values(), *([self.agent] if self.agent is not None else [])]
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
            with contextlib.suppress(OSError):
                os.close(child.orders)
        self.children.clear()
        self.agent = None
        for fd in (self._reports, self._report_end, self._alarm_read, self._alarm_write):
            with contextlib.suppress(OSError):
                os.close(fd)


def _heard(*_: object) -> None:
    """A signal that is meant for the parent."""


def _waitpid(pid: int) -> tuple[int, int]:
    try:
        return os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else has waited for it
        return pid, 70 << 8


def _lost(index: int, reason: str) -> bytes:
    return f"lost {index} {reason}\n".encode()


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {-code} ({signal.Signals(-code).name})"
        return f"signal {-code}"
    return f"exitcode {code}"
