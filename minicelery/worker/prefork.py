"""The parent: starts children and an agent, waits, restarts and kills.

It opens no socket and starts no thread, so it can fork at any time and no broker can wedge
it.  Pipes carry orders and reports, never tasks.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from minicelery import signals
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id
from minicelery.worker import starting
from minicelery.worker.autoscale import Autoscaler, keepalive_of
from minicelery.worker.board import DONE, Board, Slot
from minicelery.worker.orders import QUIT, STOP, Terminate
from minicelery.worker.roster import LINGERING, Child, Roster
from minicelery.worker.starting import AgentMain, ChildMain, Fork, Post, Starter
from minicelery.worker.steering import Reload, Steering

log = logging.getLogger(__name__)

LATE = 1.0
"""Seconds past a hard limit after which the parent kills a child whose keeper could not."""
STUBBORN = 2.0
"""Seconds that a task may go on after its child was told to terminate it; then the child is killed."""
COLD_PATIENCE = 3.0
UNSENT_PAUSE = 0.1
"""Seconds after which an order is sent again that a child's pipe had no room for."""
AGENT_PATIENCE = 15.0
HASTY = 1.0
"""A child that dies within this of getting ready, having run nothing, is replaced with a growing delay."""


class Supervisor:
    """Keeps `concurrency` children and one agent alive until told to stop.

    With `minimum` and `maximum` the number of children follows the work, beginning with the
    minimum; which of them go, and when others take their places, is the `Roster`'s to say.
    """

    def __init__(
        self,
        hostname: str,
        concurrency: int,
        child_main: ChildMain,
        agent_main: AgentMain,
        on_ready: Callable[[], None] = lambda: None,
        minimum: int | None = None,
        maximum: int | None = None,
        starter: Starter | None = None,
        places: int = 1,
        reload: Reload | None = None,
    ) -> None:
        self.hostname = hostname
        autoscaler = None if maximum is None else Autoscaler(minimum or 1, maximum, keepalive_of())
        self.roster = Roster(
            concurrency if autoscaler is None else autoscaler.minimum,
            autoscaler,
            lingering=LINGERING if places > 1 else 0,
        )
        self.children = self.roster.children
        self.on_ready = on_ready
        self.starter = starter or Fork(hostname, child_main, agent_main)
        # A dead child's slot is kept until the agent has settled what it held.
        self.board = Board(2 * self.roster.most + 4, places, shared=self.starter.shared)
        self.free = list(reversed(self.board.slots))
        self.steering = Steering(self, reload)
        self.agent: Child | None = None
        self.unsettled: dict[int, str] = {}  # slot index -> how its child died
        self.stopping = False
        self.cold = False
        self._cold_since = 0.0
        self._interrupts = 0
        self._hasty = 0
        self._start_after = 0.0
        self._reports, self._report_end = os.pipe()
        os.set_blocking(self._reports, False)
        self._reported = b""
        self._signals: list[int] = []
        self._alarm_read, self._alarm_write = os.pipe()
        os.set_blocking(self._alarm_read, False)
        os.set_blocking(self._alarm_write, False)

    def run(self) -> int:
        """Supervise until stopped; the exit code: 0 after a warm stop, 1 after a cold one."""
        if starting.importing_app:
            raise ImproperlyConfigured(
                "a spawned child imports the module of its app, and that starts a worker: "
                "put what starts it below if __name__ == '__main__':"
            )
        before = self._take_signals()
        gc.collect()
        gc.freeze()  # what is here now stays in pages shared with the children
        try:
            self._start_missing()
            self.on_ready()
            while self.children or not self.stopping:
                self._wait()
                self._handle_signals()
                self._reap()
                self._read_reports()
                self._kill_late()
                if not self.stopping:
                    self._start_missing()
            self._end_agent()
        finally:
            self._kill_all()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
        return 1 if self.cold else 0

    # -- starting --------------------------------------------------------------------------

    def _start_missing(self) -> None:
        now = time.monotonic()
        if now >= self._start_after:
            if self.agent is None:
                self._start_agent()
            self.roster.choose_relieved(now)
            for _ in range(min(self.roster.missing(), len(self.free))):
                if not self._start_child():
                    break
        self.roster.open_gates()
        self.steering.tell()

    def _start_child(self) -> bool:
        slot = self.free[-1]
        host = self.hostname.encode()[:100].decode(errors="ignore")  # the board has room for 160 bytes
        name = f"{host}/{new_id()}"
        slot.open(0, name)
        child = self._start(slot, name)
        if child is None:
            return False
        self.free.pop()
        self.children[child.pid] = child
        self.steering.replay(child)
        return True

    def _start_agent(self) -> None:
        self.agent = self._start(None)
        if self.agent is not None:
            for index, reason in self.unsettled.items():
                self.agent.order(_lost(index, reason))
            self.steering.replay(self.agent)
            self.agent.order(b"listen\n")

    def renew_agent(self) -> None:
        """Have another agent take the place of this one."""
        if self.agent is not None:
            self.agent.going = True
            self.agent.order(b"stop\n")

    def _start(self, slot: Slot | None, name: str = "") -> Child | None:
        """A new process; None where the system has no room for one now."""
        if signals.worker_before_create_process.receivers:
            signals.worker_before_create_process.send(sender=self)
        orders, order_end = os.pipe()
        os.set_blocking(order_end, False)  # who is long in reading must not stop the parent
        index = None if slot is None else self.board.slots.index(slot)
        others = [child.orders for child in self.children.values()]
        if self.agent is not None:
            others.append(self.agent.orders)
        foreign = (order_end, *others, self._reports, self._alarm_read, self._alarm_write)
        try:
            pid = self.starter.start(Post(self.board, orders, self._report_end, index, name), foreign)
        except OSError as error:
            os.close(order_end)
            log.error("No process can be started: %s; trying again in %.1f s", error, self._pause())
            return None
        finally:
            os.close(orders)
        return Child(pid, order_end, slot, time.monotonic())

    def _pause(self) -> float:
        """Start nothing for a while, longer each time that nothing has gone well; the seconds."""
        self._hasty += 1
        seconds = min(10.0, 0.1 * 2.0 ** min(self._hasty, 7))
        self._start_after = time.monotonic() + seconds
        return seconds

    # -- waiting ---------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until a signal, a report, or the time of the next thing to do; a second at most."""
        timeout = 1.0
        now = time.monotonic()
        if self._start_after > now:
            timeout = min(timeout, self._start_after - now)
        for child in self.children.values():
            entry = child.place.read()
            if entry.deadline and entry.began:
                timeout = min(timeout, max(0.0, entry.deadline + LATE - now))
            if child.doomed is not None:
                timeout = min(timeout, max(0.0, child.doomed[1] - now))
            if child.heavy_until > now:
                timeout = min(timeout, child.heavy_until - now)
            if child.unsent:
                child.send()
                timeout = min(timeout, UNSENT_PAUSE)
        if self.agent is not None and self.agent.unsent:
            self.agent.send()
            timeout = min(timeout, UNSENT_PAUSE)
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
                if self.agent.going:
                    log.info("The agent is replaced")
                elif not self.stopping or self.children:
                    log.error("The agent died (%s) and is restarted", _how(os.waitstatus_to_exitcode(status)))
                    if time.monotonic() - self.agent.born < HASTY:
                        self._start_after = max(self._start_after, time.monotonic() + 1.0)
                self.agent = None
                if self.children and self.stopping and not self._start_after > time.monotonic():
                    self._start_agent()

    def _bury(self, child: Child, code: int) -> None:
        slot = child.place
        entry = slot.read()
        if code == 0 and not entry.began:  # a task may call os._exit(0)
            self._hasty = 0
            if self.agent is not None and not self.stopping and slot.ended.entries():
                # What it has ended may come back yet: the agent writes it down.
                index = self.board.slots.index(slot)
                self.unsettled[index] = DONE
                self.agent.order(_lost(index, DONE))
                return
            self.board.empty(slot)
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
        if entry.receipt == 0 and (not child.ready or now - child.ready < HASTY):
            self._pause()
        else:
            self._hasty = 0

    # -- reports ---------------------------------------------------------------------------

    def _read_reports(self) -> None:
        """All of them: none may be left of a dead child when another one takes its slot."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reports, 4096):
                self._reported += data
        *lines, self._reported = self._reported.split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word.isdigit():
                self._free(int(word))
            elif word == b"order":
                self.steering.obey(rest)
            elif word == b"depth":
                if not self.stopping:
                    self.roster.scale(int(rest))
            else:
                self._hear(word, *rest.split(b" ", 1))

    def _free(self, index: int) -> None:
        """The agent has settled what the slot's child had left."""
        if self.unsettled.pop(index, None) is not None:
            self.board.empty(self.board.slots[index])
            self.free.insert(0, self.board.slots[index])

    def _hear(self, word: bytes, index: bytes, rest: bytes = b"") -> None:
        """What is said by or about a child; of one that is gone nothing is to be done."""
        slot = self.board.slots[int(index)]
        for child in self.children.values():
            if child.slot is slot:
                if word == b"ready":
                    child.ready = time.monotonic()
                elif word == b"worn" and rest:
                    self.roster.note_heavy(child, *map(int, rest.split()))
                elif word == b"worn":
                    child.spent = child.going
                    child.going = True
                elif word == b"terminate":
                    receipt, name, pid = rest.split()
                    if int(pid) == child.pid:  # else it is for the one that had the slot before
                        self._terminate(child, Terminate(int(receipt), signal.Signals[name.decode()]))

    def _terminate(self, child: Child, order: Terminate) -> None:
        """Have it end a run; where it is the only one, it must have ended soon."""
        slot, receipt, name = child.place, order.receipt, order.signal.name
        if child.ended.get(receipt) == name:
            return  # the word of an agent that was restarted
        many = slot.running_receipts()
        running = {*many, slot.read().receipt}
        child.ended = {one: ordered for one, ordered in child.ended.items() if one in running}
        child.ended[receipt] = name
        child.order(order.encoded())
        if order.signal is signal.SIGUSR1 or many:
            return  # the task may handle it, or others would be killed with it
        if child.doomed is None or child.doomed[0] != receipt:
            child.doomed = (receipt, time.monotonic() + STUBBORN)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for child in self.children.values():
            entry = child.place.read()
            reason = None
            if self.cold and now - self._cold_since > COLD_PATIENCE:
                reason = "terminated: cold shutdown"
            elif entry.deadline and entry.began and now > entry.deadline + LATE:
                reason = "time limit"
            elif child.doomed is not None and now > child.doomed[1]:
                if entry.began and entry.receipt == child.doomed[0]:
                    reason = "revoked: SIGKILL"
                child.doomed = None
            if reason is not None and child.killed is None:
                child.killed = reason
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)

    # -- the end ---------------------------------------------------------------------------

    def _end_agent(self) -> None:
        """The agent goes last: it settles what the children left."""
        end = time.monotonic() + AGENT_PATIENCE
        if self.agent is None and self.unsettled:
            self._start_agent()
        if self.agent is None:
            return
        self.agent.order(b"stop\n")
        while self.agent is not None and time.monotonic() < end:
            self.agent.send()
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
