"""One peer's turn: a clean broker, a fresh counter, and the processes that are measured.

Every wait is bounded.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.peers import Peer
from benchmarks.processes import BenchError, Tree
from benchmarks.rabbit import RabbitMQServer
from benchmarks.server import RedisServer

HERE = Path(__file__).resolve().parent
SLOTS = 1024
LONGEST_WAIT = 120.0
REDIS, RPC, NONE = "redis", "rpc", "none"
"""Where a session's results go: stored in Redis, sent to the caller by the broker, or nowhere."""

Plan = list[tuple[str, list[Any], int]]
"""What to queue, in order: task, arguments, how many."""


@dataclass(frozen=True)
class Servers:
    """What all turns of a run share; on Redis the broker stores the results too."""

    broker: RedisServer | RabbitMQServer
    results: RedisServer

    def clear(self) -> None:
        self.broker.clear()
        self.results.clear()


class Turn:
    """What a session needs to measure one peer."""

    def __init__(self, peer: Peer, bin_folder: Path, servers: Servers, folder: Path) -> None:
        self.peer, self.bin_folder, self.servers, self.folder = peer, bin_folder, servers, folder
        self.log = folder / "log"
        counts = folder / "counts"
        counts.write_bytes(bytes(SLOTS * 8))
        with counts.open("r+b") as file:
            self.slots = memoryview(mmap.mmap(file.fileno(), SLOTS * 8)).cast("q")

    def finished(self) -> int:
        """Tasks that have finished since the turn began."""
        return sum(self.slots[1 : 1 + self.slots[0]])

    def unsettled(self) -> int:
        """Tasks in a queue or held by a worker."""
        return self.peer.unsettled(self.servers.broker.ask)

    def stored(self) -> int:
        """Results in Redis."""
        return self.peer.stored(self.servers.results.ask)

    def wait_finished(self, count: int, tree: Tree, *, timeout: float = LONGEST_WAIT) -> float:
        """Wait until `count` tasks have finished; the moment it was seen."""

        def enough() -> bool:
            return self.finished() >= count

        return self.wait(enough, tree, f"{count} finished tasks", timeout=timeout)

    def wait(
        self, condition: Callable[[], bool], tree: Tree, what: str, *, timeout: float = LONGEST_WAIT
    ) -> float:
        """Wait for `condition`, looking every millisecond; the moment it was seen."""
        deadline = time.perf_counter() + timeout
        while not condition():
            if (now := time.perf_counter()) > deadline:
                raise BenchError(
                    f"no {what} within {timeout:g} s ({self.finished()} finished): {tree.log_end()}"
                )
            if now % 1 < 0.01:
                tree.check_alive()
            time.sleep(0.001)
        return time.perf_counter()

    @contextmanager
    def worker(self, *, results: str = REDIS, prompt: bool = False) -> Iterator[Tree]:
        program, *arguments = self.peer.worker.split()
        command = [str(self.bin_folder / program), *arguments]
        with self._tree(command, results, prompt, None, pipes=False) as tree:
            yield tree

    @contextmanager
    def beat(self, entries: int, *, every: float) -> Iterator[Tree]:
        """The peer's scheduler of periodic tasks, with so many entries, each due every so many seconds."""
        program, *arguments = self.peer.beat.split()
        command = [str(self.bin_folder / program), *arguments]
        more = {"BENCH_ENTRIES": str(entries), "BENCH_EVERY": str(every), "BENCH_FOLDER": str(self.folder)}
        with self._tree(command, NONE, False, None, pipes=False, more=more) as tree:
            yield tree

    @contextmanager
    def driver(
        self, *, results: str = REDIS, prompt: bool = False, confirm: bool | None = None
    ) -> Iterator[Driver]:
        """The peer's producer; `confirm` as the library does it (None), or always or never."""
        command = [str(self.bin_folder / "python"), str(HERE / "inside" / "driver.py")]
        with self._tree(command, results, prompt, confirm, pipes=True) as tree:
            yield Driver(tree)

    def fill(self, plan: Plan, *, results: str = REDIS) -> int:
        """Queue tasks from a process that is gone when the worker starts; how many."""
        with self.driver(results=results) as driver:
            sent = int(driver.ask("fill", plan=plan)["sent"])
            self.wait_arrived(sent, driver.tree)
        return sent

    def wait_arrived(self, count: int, tree: Tree) -> float:
        """Wait until RabbitMQ has `count` tasks, durably; the moment it was seen.

        0 on Redis, where every sending call has waited for the server already.
        """
        if isinstance(self.servers.broker, RedisServer):
            return 0.0
        moment = self.wait(lambda: self.unsettled() >= count, tree, f"{count} queued tasks", timeout=30)
        self.servers.broker.check_durable(count)
        return moment

    @contextmanager
    def _tree(
        self, command: list[str], results: str, prompt: bool, confirm: bool | None, *, pipes: bool,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[Tree]:  # fmt: skip
        cwd = HERE / "peers" / self.peer.home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env = kept | self.peer.env
        env |= {
            "PATH": f"{self.bin_folder}{os.pathsep}{kept.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join((str(cwd), str(HERE / "inside"))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_BROKER_URL": self.servers.broker.url,
            "BENCH_RESULTS_URL": {REDIS: self.servers.results.url, RPC: "rpc://", NONE: ""}[results],
            "BENCH_COUNTS": str(self.folder / "counts"),
            "BENCH_PROMPT": str(int(prompt)),
            "BENCH_CONFIRM": "" if confirm is None else str(int(confirm)),
        }
        env |= more
        tree = Tree(command, cwd=cwd, env=env, log=self.log, pipes=pipes)
        try:
            yield tree
        finally:
            tree.kill()


class Driver:
    """The peer's producer, in its own process."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def ask(self, command: str, *, timeout: float = LONGEST_WAIT, **arguments: Any) -> dict[str, Any]:
        """Send one command; its answer.  Raises BenchError."""
        self.tell(command, **arguments)
        return self.answer(command, timeout=timeout)

    def tell(self, command: str, **arguments: Any) -> None:
        """Send one command, whose `answer` is to be asked for."""
        process = self.tree.process
        assert process.stdin is not None
        process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        process.stdin.flush()

    def answer(self, command: str, *, timeout: float = LONGEST_WAIT) -> dict[str, Any]:
        """What the driver answers to `command`.  Raises BenchError."""
        process = self.tree.process
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], timeout)[0]:
            raise BenchError(f"the driver did not answer {command!r} within {timeout:g} s")
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the driver ended during {command!r}: {self.tree.log_end()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{command}: {answer['error'].strip()[-600:]}")
        return answer


@contextmanager
def open_turn(peer: Peer, bin_folder: Path, servers: Servers) -> Iterator[Turn]:
    """A turn on emptied servers."""
    servers.clear()
    folder = Path(tempfile.mkdtemp(prefix="turn-", dir=servers.results.folder.name))
    try:
        yield Turn(peer, bin_folder, servers, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
