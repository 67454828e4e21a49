"""What is measured: a session fills the rows that one worker can serve in sequence."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from benchmarks.processes import Tree, cpu_seconds
from benchmarks.turn import NONE, REDIS, RPC, Plan, Turn

Values = dict[str, float]
"""Row name to what was measured in this turn."""

LONGEST_TRIP = 30.0
"""Seconds after which the wait for a task sent behind many delayed ones is given up."""


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
    parts: int = 10_000
    entries: int = 10_000


QUICK = Sizes(0.4, 0.4, 200, 2.0, 4_000, 200, 400, 1_000, 2_000)


def enqueue(turn: Turn, sizes: Sizes) -> Values:
    """No-ops sent per second, one by one and in the library's way for many; no worker runs."""
    return {
        "enqueue-single": _send_rate(turn, sizes, batch=False),
        "enqueue-batch": _send_rate(turn, sizes, batch=True),
    }


def confirmed(turn: Turn, sizes: Sizes) -> Values:
    """Sending on RabbitMQ where a call returns, and a batch ends, when the server has confirmed all of it."""
    return {
        "enqueue-confirmed": _send_rate(turn, sizes, batch=False, confirm=True),
        "enqueue-batch": _send_rate(turn, sizes, batch=True, confirm=True),
        "latency-confirmed-p50": _trip(turn, sizes, confirm=True),
    }


def unconfirmed(turn: Turn, sizes: Sizes) -> Values:
    """The same where calls don't wait for the server."""
    return {
        "enqueue-unconfirmed": _send_rate(turn, sizes, batch=False, confirm=False),
        "latency-unconfirmed-p50": _trip(turn, sizes, confirm=False),
    }


def _send_rate(turn: Turn, sizes: Sizes, *, batch: bool, confirm: bool | None = None) -> float:
    """Tasks a second, until the server has all of them; a client may still be writing them."""
    turn.servers.clear()
    with turn.driver(confirm=confirm) as driver:
        warm = int(driver.ask("enqueue", seconds=0.1, batch=batch)["sent"])
        turn.wait_arrived(warm, driver.tree)
        answer = driver.ask("enqueue", seconds=sizes.enqueue_seconds, batch=batch)
        arrived = turn.wait_arrived(warm + answer["sent"], driver.tree)
    behind = max(0.0, arrived - answer["ended"])
    return float(answer["sent"] / (answer["seconds"] + behind))


def _trip(turn: Turn, sizes: Sizes, *, confirm: bool) -> float:
    turn.servers.clear()
    with turn.worker(prompt=True), turn.driver(prompt=True, confirm=confirm) as driver:
        driver.ask("round_trips", count=100)
        return _percentile(driver.ask("round_trips", count=sizes.round_trips)["seconds"], 50)


def drain(turn: Turn, sizes: Sizes) -> Values:
    """No-ops run and settled per second, results stored."""
    count = int(turn.peer.drain_tasks * sizes.drain_share)
    done, seconds = _drain_seconds(turn, [("noop", [], count)], results=REDIS)
    return {"drain": done / seconds}


def drain_no_results(turn: Turn, sizes: Sizes) -> Values:
    """The same with results ignored."""
    count = int(turn.peer.drain_tasks * sizes.drain_share)
    done, seconds = _drain_seconds(turn, [("noop", [], count)], results=NONE)
    return {"drain-no-results": done / seconds}


def drain_rpc(turn: Turn, sizes: Sizes) -> Values:
    """The same with results sent back to the process that has sent the tasks, and waits for all of them."""
    count = int(turn.peer.drain_tasks * sizes.drain_share)
    with turn.driver(results=RPC) as driver:
        driver.ask("keep", count=count)
        turn.wait_arrived(count, driver.tree)
        driver.tell("collect")
        with turn.worker(results=RPC) as worker:
            start = turn.wait_finished(1, worker)
            before = turn.finished()
            turn.wait_finished(count, worker)
            settled = turn.wait(lambda: turn.unsettled() == 0, worker, "empty queue")
            end = max(settled, driver.answer("collect")["ended"])
            trips = driver.ask("round_trips", count=sizes.round_trips)["seconds"]
    return {"drain-rpc": (count - before) / (end - start), "latency-rpc-p50": _percentile(trips, 50)}


def cpu(turn: Turn, sizes: Sizes) -> Values:
    """Share of two cores that 2 ms tasks get for themselves, in percent."""
    done, seconds = _drain_seconds(turn, [("spin", [0.002], sizes.spins)], results=REDIS)
    return {"cpu": 100 * done * 0.002 / (2 * seconds)}


def canvas(turn: Turn, sizes: Sizes) -> Values:
    """A group sent; and a chord: how soon after its last part the body begins, and when all is done."""
    turn.servers.clear()
    with turn.driver() as driver:
        driver.ask("group", count=100)
        values = {"group": float(driver.ask("group", count=sizes.parts)["seconds"])}
    turn.servers.clear()
    with turn.worker(prompt=True) as worker, turn.driver(prompt=True) as driver:
        driver.ask("round_trips", count=100)
        values |= {name: float(value) for name, value in driver.ask("chord", count=sizes.parts).items()}
        worker.check_alive()
    return values


def beat(turn: Turn, sizes: Sizes) -> Values:
    """What many entries cost while none is due, and how many runs a second are sent where all are."""
    with turn.beat(sizes.entries, every=86_400.0) as tree:
        idle = _settled_cpu(tree)
        values = {"beat-memory": tree.pss_bytes() / 2**20, "beat-idle": idle}
        tree.check_alive()
    turn.servers.clear()
    with turn.beat(sizes.entries, every=1.0) as tree:
        start = turn.wait(lambda: turn.unsettled() > 0, tree, "first run")
        first = turn.unsettled()
        time.sleep(sizes.idle_seconds)
        sent, end = turn.unsettled() - first, time.perf_counter()
        tree.check_alive()
    return values | {"beat-rate": sent / (end - start)}


def naps(turn: Turn, sizes: Sizes) -> Values:
    """Seconds until 8 naps of 1.5 s among 400 no-ops are done."""
    plan: Plan = [("noop", [], 25)]
    for _ in range(8):
        plan += [("nap", [1.5], 1), ("noop", [], 50)]
    plan[-1] = ("noop", [], 25)
    return {"naps": _drain_seconds(turn, plan, results=REDIS)[1]}


def _drain_seconds(turn: Turn, plan: Plan, *, results: str) -> tuple[int, float]:
    """Queue first, then start the worker; tasks and seconds from the first finish seen to the last.

    The last is when nothing is queued or held any more and every result is stored.
    """
    total = turn.fill(plan, results=results)
    with turn.worker(results=results) as worker:
        start = turn.wait_finished(1, worker)
        before = turn.finished()
        turn.wait_finished(total, worker)
        end = turn.wait(lambda: turn.unsettled() == 0, worker, "empty queue")
        if results == REDIS:
            end = turn.wait(lambda: turn.stored() >= total, worker, f"{total} results")
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
        broker = turn.servers.broker
        spent, broker_spent = worker.cpu_seconds(), cpu_seconds(broker.pid)
        begin = time.perf_counter()
        time.sleep(sizes.idle_seconds)
        elapsed = time.perf_counter() - begin
        values["idle"] = 100 * (worker.cpu_seconds() - spent) / elapsed
        values[f"idle-{broker.name}"] = 100 * (cpu_seconds(broker.pid) - broker_spent) / elapsed
        worker.check_alive()
    return values


def delayed(turn: Turn, sizes: Sizes) -> Values:
    """What tasks delayed by an hour cost: memory, and the wait of a normal task sent after them."""
    with turn.worker(prompt=True) as worker, turn.driver(prompt=True) as driver:
        driver.ask("round_trips", count=100)
        before = worker.pss_bytes()
        driver.ask("later", count=sizes.delayed_tasks, delay=3600)
        latency = driver.ask("one_trip", longest=LONGEST_TRIP)["seconds"]
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
