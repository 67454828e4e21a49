"""One peer's turn: start what it needs, measure, end it.

A session measures the rows that one worker can serve in sequence.  Every wait is bounded.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer
from benchmarks.processes import BenchError, Tree, cpu_seconds
from benchmarks.server import RedisServer

HERE = Path(__file__).resolve().parent
SLOTS = 1024
LONGEST_WAIT = 120.0

Values = dict[str, float]
"""Row name to what was measured in this turn."""


@dataclass(frozen=True)
class Sizes:
    """How much work a turn does."""

    enqueue_seconds: float = 1.0
    drain_share: float = 1.0  # of `Peer.drain_tasks`
    round_trips: int = 500
    idle_seconds: float = 5.0
    delayed_tasks: int = 20_000
    due_tasks: int = 500
    spins: int = 1_000


QUICK = Sizes(0.4, 0.4, 200, 2.0, 4_000, 200, 400)


class Turn:
    """A clean Redis, a fresh counter, and the processes of one peer."""

    def __init__(self, peer: Peer, bin_folder: Path, server: RedisServer, folder: Path) -> None:
        self.peer, self.bin_folder, self.server, self.folder = peer, bin_folder, server, folder
        self.redis = server.redis
        self.log = folder / "log"
        counts = folder / "counts"
        counts.write_bytes(bytes(SLOTS * 8))
        with counts.open("r+b") as file:
            self.slots = memoryview(mmap.mmap(file.fileno(), SLOTS * 8)).cast("q")

    def finished(self) -> int:
        """Tasks that have finished since the turn began."""
        return sum(self.slots[1 : 1 + self.slots[0]])

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
    def worker(self, *, results: bool = True, prompt: bool = False) -> Iterator[Tree]:
        program, *arguments = self.peer.worker.split()
        command = [str(self.bin_folder / program), *arguments]
        with self._tree(command, results, prompt, pipes=False) as tree:
            yield tree

    @contextmanager
    def driver(self, *, results: bool = True, prompt: bool = False) -> Iterator[Driver]:
        command = [str(self.bin_folder / "python"), str(HERE / "inside" / "driver.py")]
        with self._tree(command, results, prompt, pipes=True) as tree:
            yield Driver(tree)

    def fill(self, plan: list[tuple[str, list[Any], int]], *, results: bool = True) -> int:
        """Queue tasks from a process that is gone when the worker starts; how many."""
        with self.driver(results=results) as driver:
            return int(driver.ask("fill", plan=plan)["sent"])

    @contextmanager
    def _tree(self, command: list[str], results: bool, prompt: bool, *, pipes: bool) -> Iterator[Tree]:
        cwd = HERE / "peers" / self.peer.home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env = kept | self.peer.env
        env |= {
            "PATH": f"{self.bin_folder}{os.pathsep}{kept.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join((str(cwd), str(HERE / "inside"))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_REDIS_URL": self.server.url,
            "BENCH_COUNTS": str(self.folder / "counts"),
            "BENCH_RESULTS": str(int(results)),
            "BENCH_PROMPT": str(int(prompt)),
        }
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
        process = self.tree.process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        process.stdin.flush()
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
def open_turn(peer: Peer, bin_folder: Path, server: RedisServer) -> Iterator[Turn]:
    """A turn on an emptied Redis."""
    server.redis("FLUSHALL")
    folder = Path(tempfile.mkdtemp(prefix="turn-", dir=server.folder.name))
    try:
        yield Turn(peer, bin_folder, server, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def enqueue(turn: Turn, sizes: Sizes) -> Values:
    """No-ops sent per second, one by one and in the library's way for many; no worker runs."""
    values = {}
    for row, batch in (("enqueue-single", False), ("enqueue-batch", True)):
        turn.redis("FLUSHALL")
        with turn.driver() as driver:
            answer = driver.ask("enqueue", seconds=sizes.enqueue_seconds, batch=batch)
        values[row] = answer["sent"] / answer["seconds"]
    return values


def drain(turn: Turn, sizes: Sizes) -> Values:
    """No-ops run and settled per second, results stored."""
    count = int(turn.peer.drain_tasks * sizes.drain_share)
    done, seconds = _drain_seconds(turn, [("noop", [], count)], results=True)
    return {"drain": done / seconds}


def drain_no_results(turn: Turn, sizes: Sizes) -> Values:
    """The same with results ignored."""
    count = int(turn.peer.drain_tasks * sizes.drain_share)
    done, seconds = _drain_seconds(turn, [("noop", [], count)], results=False)
    return {"drain-no-results": done / seconds}


def cpu(turn: Turn, sizes: Sizes) -> Values:
    """Share of two cores that 2 ms tasks get for themselves, in percent."""
    done, seconds = _drain_seconds(turn, [("spin", [0.002], sizes.spins)], results=True)
    return {"cpu": 100 * done * 0.002 / (2 * seconds)}


def naps(turn: Turn, sizes: Sizes) -> Values:
    """Seconds until 8 naps of 1.5 s among 400 no-ops are done."""
    plan: list[tuple[str, list[Any], int]] = [("noop", [], 25)]
    for _ in range(8):
        plan += [("nap", [1.5], 1), ("noop", [], 50)]
    plan[-1] = ("noop", [], 25)
    return {"naps": _drain_seconds(turn, plan, results=True)[1]}


def _drain_seconds(turn: Turn, plan: list[tuple[str, list[Any], int]], *, results: bool) -> tuple[int, float]:
    """Queue first, then start the worker; tasks and seconds from the first finish seen to the last.

    The last is when nothing is queued or held any more and every result is stored.
    """
    total = turn.fill(plan, results=results)
    peer, redis = turn.peer, turn.redis
    with turn.worker(results=results) as worker:
        start = turn.wait_finished(1, worker)
        before = turn.finished()
        turn.wait_finished(total, worker)
        end = turn.wait(lambda: peer.unsettled(redis) == 0, worker, "empty queue")
        if results:
            end = turn.wait(lambda: peer.stored(redis) >= total, worker, f"{total} results")
    return total - before, end - start


def calm(turn: Turn, sizes: Sizes) -> Values:
    """Start, memory, round trip and idle CPU of one worker."""
    turn.fill([("noop", [], 1)])
    started = time.perf_counter()
    with turn.worker(prompt=True) as worker, turn.driver(prompt=True) as driver:
        values = {"start": turn.wait_finished(1, worker) - started}
        driver.ask("round_trips", count=100)
        values["memory"] = worker.pss_bytes() / 2**20
        trips = driver.ask("round_trips", count=sizes.round_trips)["seconds"]
        values |= {"latency-p50": _percentile(trips, 50), "latency-p99": _percentile(trips, 99)}
        time.sleep(1)
        spent, redis_spent = worker.cpu_seconds(), cpu_seconds(turn.server.process.pid)
        begin = time.perf_counter()
        time.sleep(sizes.idle_seconds)
        elapsed = time.perf_counter() - begin
        values["idle"] = 100 * (worker.cpu_seconds() - spent) / elapsed
        values["idle-redis"] = 100 * (cpu_seconds(turn.server.process.pid) - redis_spent) / elapsed
        worker.check_alive()
    return values


def delayed(turn: Turn, sizes: Sizes) -> Values:
    """What tasks delayed by an hour cost: memory, and the wait of a normal task sent after them."""
    with turn.worker(prompt=True) as worker, turn.driver(prompt=True) as driver:
        driver.ask("round_trips", count=100)
        before = worker.pss_bytes()
        driver.ask("later", count=sizes.delayed_tasks, delay=3600)
        latency = driver.ask("round_trips", count=1)["seconds"][0]
        idle = _settled_cpu(worker)
        added = (worker.pss_bytes() - before) / 2**20
        return {"delayed-memory": added, "delayed-idle": idle, "delayed-latency": latency}


def _settled_cpu(worker: Tree) -> float:
    """CPU in percent of a core, once the worker has taken what it takes ahead, or 20 s later."""
    deadline = time.monotonic() + 20
    while True:
        spent = worker.cpu_seconds()
        time.sleep(1)
        percent = 100 * (worker.cpu_seconds() - spent)
        if percent < 5 or time.monotonic() > deadline:
            return percent


def late(turn: Turn, sizes: Sizes) -> Values:
    """How late tasks due in 1 to 4 s begin."""
    with turn.worker(prompt=True) as worker, turn.driver(prompt=True) as driver:
        driver.ask("round_trips", count=100)
        lateness = driver.ask("due", count=sizes.due_tasks, first=1.0, last=4.0)["lateness"]
        worker.check_alive()
    return {"lateness-p50": _percentile(lateness, 50), "lateness-p99": _percentile(lateness, 99)}


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
