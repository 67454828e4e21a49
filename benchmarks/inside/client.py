"""What the driver asks of a peer; a peer's `tasks.py` holds a subclass named `Client`."""

from __future__ import annotations

import os
import time
from typing import Any

REDIS_URL = os.environ["BENCH_REDIS_URL"]
RESULTS = os.environ["BENCH_RESULTS"] == "1"
"""Whether the tasks of this session store their results."""
PROMPT = os.environ["BENCH_PROMPT"] == "1"
"""Whether this session waits for single results, so a peer may take its quickest way to tell."""


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

    def send_later(self, delay: float, task: str, *args: Any) -> Any:
        """Send one task to run in `delay` seconds."""
        raise NotImplementedError

    def get(self, handle: Any, timeout: float) -> Any:
        """Wait for a task's result."""
        raise NotImplementedError

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
