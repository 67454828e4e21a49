"""The agent: a worker's network duties that are not tasks.

It renews the children's leases, settles what dead ones have left, takes over what other
workers' dead consumers hold, sends the bodies of chords that nobody else does, notices messages
of producers that do not ring the bell, and answers remote control.
In `solo` it is a thread of the one process; else a child like any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minicelery import signals
from minicelery.beat import Beat
from minicelery.beat.watch import BeatWatch
from minicelery.broker import LEASE, Backend, Broker
from minicelery.exceptions import BackendError, OperationalError
from minicelery.vitals import Vitals
from minicelery.worker.board import Board, Run
from minicelery.worker.estates import Estates
from minicelery.worker.executor import Executor
from minicelery.worker.heart import Heart
from minicelery.worker.owed import OwedBodies
from minicelery.worker.pausing import PauseWatch
from minicelery.worker.swapper import set_events
from minicelery.worker.terminations import Terminations

if TYPE_CHECKING:
    from minicelery.worker.remote import Remote

log = logging.getLogger(__name__)

TEND = 1.0
PATIENCE = 10.0
"""Seconds the agent tries to settle what is left when it is told to stop."""


class Agent:
    """Looks after the consumers of one worker."""

    def __init__(
        self,
        broker: Broker,
        backend: Backend | None,
        executor: Executor,
        queues: Sequence[str],
        hostname: str,
        board: Board,
        orders: int,
        report: Callable[[str], None],
        lease: float = LEASE,
        tell_depth: bool = False,
    ) -> None:
        self.broker = broker
        self.backend = backend
        self.executor = executor
        self.queues = list(queues)
        self.hostname = hostname
        self.board = board
        self.orders = orders
        self.report = report  # a line to the parent
        self.tell_depth = tell_depth
        # What the worker gives it besides, where it is to have it:
        self.beat: Beat | None = None
        self.beat_watch: BeatWatch | None = None
        self.heart: Heart | None = None
        self.remote: Remote | None = None
        self.vitals: Vitals | None = None
        self.pauses = PauseWatch(broker, queues, hostname, board)
        self.served = self.queues  # those of `queues` that are still served; the others may be held
        self._move_to: list[str] | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self.terminations = Terminations(board, report)
        self.estates = Estates(
            broker, backend, executor, hostname, board, self.terminations, lambda index: report(str(index))
        )
        self.owed = OwedBodies(broker, backend, executor.never)
        self.every = min(TEND, lease / 4)
        self.stop_by: float | None = None
        self._heard = b""
        self._tended = 0.0
        self._shown = 0.0
        self._outage = 0
        self._retry_at = 0.0
        self._news: Callable[[str], dict[str, bytes]] = getattr(broker, "news", broker.recall)
        self._open_lookout = getattr(broker, "lookout", None)
        self.lookout = self._open_lookout(self.queues) if self._open_lookout is not None else None

    def run(self) -> int:
        """Until ordered to stop, or the parent is gone."""
        beating = self._start_beat()
        self._hear_first()
        while True:
            now = time.monotonic()
            done = not self.estates.pending and not self.estates.untold
            if self.stop_by is not None and (done or now > self.stop_by):
                break
            try:
                if now >= self._retry_at:
                    self._work(now)
                    self._send_heartbeat()
            except (OperationalError, BackendError) as error:
                if self._outage % 60 == 0:
                    log.warning("agent: %s", error)
                self._outage += 1
                self._retry_at = time.monotonic() + random.uniform(0.3, 0.8)
            except Exception:
                log.exception("agent")
                self._retry_at = time.monotonic() + 1.0
            self._show()
            self._wait()
        if self.vitals is not None:
            self.vitals.remove()
        if self.remote is not None:
            self.remote.stop()
        if self.lookout is not None:
            self.lookout.close()
        if self.heart is not None:
            self.heart.stop()
        if self.beat is not None and beating is not None:
            self.beat.stop()
            beating.join(PATIENCE)
        self.broker.close()
        write, self._wake_write = self._wake_write, -1
        for fd in (self._wake_read, write):
            os.close(fd)
        return 0

    def _show(self) -> None:
        """Leave word of how this worker is, about once a second."""
        now = time.monotonic()
        if self.vitals is None or now - self._shown < self.every:
            return
        self._shown = now
        entries = [entry for slot in self.board.slots if (entry := slot.read()).pid]
        self.vitals.write(
            agent=os.getpid(),
            reached=time.time() - (now - self._tended) if self._tended else None,
            stopping=self.stop_by is not None,
            queues=self.pauses.queues,
            paused=sorted(self.pauses.now.queues),
            children=[
                {"pid": one.pid, "busy": bool(one.began), "processed": one.processed} for one in entries
            ],
        )

    def _start_beat(self) -> threading.Thread | None:
        """Send periodic tasks in a thread: settling what a dead child held must not wait for it."""
        if self.beat is None:
            return None
        thread = threading.Thread(target=self.beat.run, name="minicelery-beat", daemon=True)
        thread.start()
        return thread

    def _work(self, now: float) -> None:
        if self._move_to is not None:
            self._move()
        self.estates.settle(self.queues)
        if self.stop_by is not None and self.estates.untold:
            self.estates.collect(self.queues)
        if now - self._tended >= self.every:
            self.pauses.look()
            self.queues = list(dict.fromkeys([*self.queues, *self.pauses.held]))
            ended = self.broker.tend(self.queues, self.estates.alive())
            self._tended, self._outage = now, 0
            for name in ended:
                log.warning("Consumer %s is gone: what it held is taken over", name)
                self.estates.take_over(name, self.queues)
            self.estates.settle(self.queues)
            self.terminations.look(self._news("terminate"))
            if self.tell_depth:
                self.report(f"depth {sum(map(self.broker.size, self.pauses.active))}")
            self.owed.send()
            if self.beat_watch is not None:
                self.beat_watch.look(now)

    def _send_heartbeat(self) -> None:
        heart = self.heart
        if heart is not None and heart.beat(time.monotonic()) and signals.heartbeat_sent.receivers:
            signals.heartbeat_sent.send(sender=self)

    def send_heartbeat(self) -> None:
        """Give a sign of life now, as somebody has asked for one; from any thread."""
        if self.heart is not None:
            self.heart.send("worker-heartbeat")

    def set_events(self, on: bool) -> None:
        """Tell of tasks that dead children have left from now on, or no more."""
        set_events(self.executor, self.board, on)

    # -- remote control --------------------------------------------------------------------

    def _hear_first(self) -> None:
        """Hear what has been changed before anybody asks; the parent says it at once."""
        poll = select.poll()
        poll.register(self.orders, select.POLLIN)
        if self.remote is not None and poll.poll(1000):
            self._hear()

    def serve(self, queues: Sequence[str]) -> None:
        """Look after these queues from now on.  From any thread, as the next two."""
        self._move_to = list(queues)
        self.wake()

    def end_runs(self, is_meant: Callable[[Run], bool], name: str) -> None:
        """Have those runs of this worker ended that are meant, by a signal's name."""
        self.terminations.want(is_meant, name)
        self._tended = 0.0
        self.wake()

    def wake(self) -> None:
        """End the wait for the next thing to do."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"w")

    def _move(self) -> None:
        self.served, self._move_to = self._move_to or [], None
        self.pauses.queues = self.served
        self.queues += [queue for queue in self.served if queue not in self.queues]
        if self.lookout is not None:
            self.lookout.close()
            self.lookout = None
        if self._open_lookout is not None and self.served:
            self.lookout = self._open_lookout(self.served)

    # -- waiting ---------------------------------------------------------------------------

    def _wait(self) -> None:
        now = time.monotonic()
        timeout = max(0.0, self._tended + self.every - now)
        if self._retry_at > now:
            timeout = min(max(timeout, 0.05), self._retry_at - now)
        elif self.estates.pending:
            timeout = 0.0
        elif self.heart is not None:
            timeout = max(0.0, min(timeout, self.heart.due - now))
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self.orders >= 0:
            poll.register(self.orders, select.POLLIN)
        if self.lookout is not None:
            try:
                timeout = min(timeout, self.lookout.prepare(bool(self.pauses.active) and self.board.idle()))
                for fd in self.lookout.filenos():
                    poll.register(fd, select.POLLIN)
            except OperationalError:
                timeout = min(timeout, 0.5)
        ready = {fd for fd, _ in poll.poll(timeout * 1000)}
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self.orders in ready:
            self._hear()
        if self.lookout is not None:
            with contextlib.suppress(OperationalError):
                self.lookout.look(ready)

    def _hear(self) -> None:
        data = os.read(self.orders, 4096)
        if not data:
            self.orders = -1  # the parent is gone; its children stop by themselves
            self.stop_by = time.monotonic() + PATIENCE
            return
        self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "lost":
                index, _, reason = rest.partition(" ")
                self.estates.lost[int(index)] = reason
                self._retry_at = 0.0
            elif word == "change":
                if self.remote is not None:
                    self.remote.station.obey(rest)
            elif word == "listen":
                if self.remote is not None:
                    self.remote.start()
            elif word == "stop":
                self.stop_by = time.monotonic() + PATIENCE
