"""What the driver asks of a peer; a peer's `tasks.py` holds a subclass named `Client`."""

from __future__ import annotations

import os
import time
from typing import Any

BROKER_URL = os.environ["BENCH_BROKER_URL"]
ON_RABBITMQ = BROKER_URL.startswith("amqp")
RESULTS_URL = os.environ["BENCH_RESULTS_URL"]
"""Where the results of this session's tasks go: a Redis URL, `rpc://`, or empty where they are ignored."""
CONFIRM = {"": None, "0": False, "1": True}[os.environ["BENCH_CONFIRM"]]
"""Whether RabbitMQ confirms what is sent before the call returns; None: as the library does by default."""
PROMPT = os.environ["BENCH_PROMPT"] == "1"
"""Whether this session waits for single results, so a peer may take its quickest way to tell."""
ENTRIES, EVERY = int(os.environ.get("BENCH_ENTRIES", "0")), float(os.environ.get("BENCH_EVERY", "0"))
"""How many entries a beat has, and every how many seconds each is due."""
FOLDER = os.environ.get("BENCH_FOLDER", "")
"""Where it may keep files."""


class Client:
    """The defaults suit a library whose sending call blocks."""

    chunk = 1000

    def send(self, task: str, *args: Any) -> Any:
        """Send one task now; return what `get` takes."""
        raise NotImplementedError

    def send_batch(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        """Send many tasks by the library's best way for many."""
        for task, args in calls:
            self.send(task, *args)

    def send_and_keep(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Send many tasks; what `get` takes for each."""
        return [self.send(task, *args) for task, args in calls]

    def send_group(self, count: int) -> Any:
        """Send a group of so many no-ops."""
        raise NotImplementedError

    def chord(self, count: int) -> Any:
        """Send a chord of so many moments, whose body is `since_last`; return what `get` takes."""
        raise NotImplementedError

    def send_later(self, delay: float, task: str, *args: Any) -> Any:
        """Send one task to run in `delay` seconds."""
        raise NotImplementedError

    def get(self, handle: Any, timeout: float) -> Any:
        """Wait for a task's result."""
        raise NotImplementedError

    def get_all(self, handles: list[Any], timeout: float) -> list[Any]:
        """Wait for the results of many tasks."""
        return [self.get(handle, timeout) for handle in handles]

    def send_for(self, seconds: float, batch: bool) -> tuple[int, float]:
        """Send no-ops for about `seconds`; return how many, and the seconds it took."""
        calls: list[tuple[str, tuple[Any, ...]]] = [("noop", ())] * self.chunk
        send, sent = self.send, 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if batch:
                self.send_batch(calls)
                sent += len(calls)
            else:
                for _ in range(100):
                    send("noop")
                sent += 100
        return sent, elapsed

    def round_trips(self, count: int) -> list[float]:
        """Send a no-op and wait for its result, `count` times; the seconds of each."""
        trips = []
        for _ in range(count):
            start = time.perf_counter()
            self.get(self.send("noop"), 60)
            trips.append(time.perf_counter() - start)
        return trips
