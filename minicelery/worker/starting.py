"""How the processes of a worker come to be, and what each of them does first and last.

`Fork` copies the parent, `spawn.Spawn` starts a fresh interpreter.  The Supervisor, and
whoever looks after what has been started, does not care which.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn, Protocol

from minicelery import signals
from minicelery.worker.board import Board, Slot
from minicelery.worker.orders import CHANGE

log = logging.getLogger(__name__)

GO = b"g"
"""The order that opens the gate."""
PARENTS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""What a terminal or a service manager sends to the whole group, and only the parent obeys."""
FAILED = 70

importing_app = False
"""Whether this process is a spawned one that is just importing its app."""

ChildMain = Callable[[Slot, int, int, str, Board], int]
AgentMain = Callable[[int, int, Board], int]


@dataclass(frozen=True, slots=True)
class Post:
    """Where a process is put: its two pipes, and its place on the board."""

    board: Board
    orders: int  # the read end
    reports: int  # the write end; all processes share it
    slot: int | None = None  # its index; None: the agent
    name: str = ""  # of the consumer


class Starter(Protocol):
    """Starts the processes of a worker."""

    shared: bool
    """Whether the board must have a file descriptor."""

    def start(self, post: Post, foreign: Iterable[int]) -> int:
        """The pid of a new process at `post`; `foreign`: the parent's descriptors that it must not keep."""
        ...


class Fork:
    """Starts copies of this process."""

    shared = False

    def __init__(self, hostname: str, child_main: ChildMain, agent_main: AgentMain) -> None:
        self.hostname = hostname
        self.child_main = child_main
        self.agent_main = agent_main

    def start(self, post: Post, foreign: Iterable[int]) -> int:
        pid = os.fork()
        if pid == 0:
            live(post, self.hostname, self.child_main, self.agent_main, foreign)
        return pid


def live(
    post: Post, hostname: str, child_main: ChildMain, agent_main: AgentMain, foreign: Iterable[int] = ()
) -> NoReturn:
    """In a new process: drop what is the parent's, run the main that belongs to the post, and end."""
    code = FAILED
    try:
        signal.set_wakeup_fd(-1)
        # No-op handlers, not SIG_IGN, which the task's own subprocesses would inherit.
        for number in PARENTS_SIGNALS:
            signal.signal(number, _heard)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # The siblings must see their pipes close when the parent dies.
        for fd in foreign:
            with contextlib.suppress(OSError):
                os.close(fd)
        random.seed()
        code = _run(post, hostname, child_main, agent_main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        log.exception("a child failed")
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(post: Post, hostname: str, child_main: ChildMain, agent_main: AgentMain) -> int:
    if post.slot is None:
        return agent_main(post.orders, post.reports, post.board)
    slot = post.board.slots[post.slot]
    code = child_main(slot, post.orders, post.reports, post.name, post.board)
    if signals.worker_process_shutdown.receivers:
        signals.worker_process_shutdown.send(sender=hostname, pid=os.getpid(), exitcode=code)
    return code


def await_gate(
    index: int, orders: int, reports: int, obey: Callable[[bytes], object] = lambda line: None
) -> bool:
    """Say that the child of slot `index` can begin, and wait until it may; False: it is to leave.

    What was changed before it was started is told to `obey` meanwhile.

    A child that replaces another is made ready while that one still runs its last tasks, and
    must not fetch before that one has gone: else more tasks would run at once than were asked for.
    """
    with contextlib.suppress(OSError):
        os.write(reports, b"ready %d\n" % index)
    while (letter := os.read(orders, 1)) == CHANGE:
        line = b""
        while (more := os.read(orders, 1)) not in (b"\n", b""):
            line += more
        try:
            obey(line)
        except Exception:
            log.exception("a change is not obeyed: %.200r", line)
    return letter == GO


def report_worn(index: int, reports: int, size: int = 0, at_birth: int = 0, limit: int = 0) -> None:
    """Say that the child of slot `index` should be replaced.

    With a size, it is over its memory limit (all three in KiB), and goes on until it is ordered to
    stop; without, it is at the last of its tasks, and leaves by itself.  One of many places says so
    again when it has begun all of them.
    """
    line = f"worn {index} {size} {at_birth} {limit}\n" if size else f"worn {index}\n"
    with contextlib.suppress(OSError):
        os.write(reports, line.encode())


def _heard(*_: object) -> None:
    """A signal that is meant for the parent."""
