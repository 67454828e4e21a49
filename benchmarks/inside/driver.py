"""The producer's side of a peer: reads a JSON command a line, answers each with a JSON line.

Runs in the peer's own environment, with the peer's folder as working directory.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any

from tasks import Client

client = Client()
kept: list[Any] = []


def enqueue(seconds: float, batch: bool) -> dict[str, Any]:
    """Send no-ops; `ended` is the moment, on the clock that all processes share."""
    sent, elapsed = client.send_for(seconds, batch)
    return {"sent": sent, "seconds": elapsed, "ended": time.perf_counter()}


def fill(plan: list[tuple[str, list[Any], int]]) -> dict[str, Any]:
    """Send `[task, args, count]` in order, as batches."""
    calls = [(task, tuple(args)) for task, args, count in plan for _ in range(count)]
    for start in range(0, len(calls), client.chunk):
        client.send_batch(calls[start : start + client.chunk])
    return {"sent": len(calls)}


def keep(count: int) -> dict[str, Any]:
    """Send no-ops whose results `collect` will wait for."""
    kept.extend(client.send_and_keep([("noop", ())] * count))
    return {"sent": len(kept)}


def collect() -> dict[str, Any]:
    results = client.get_all(kept, 100)
    ended = time.perf_counter()
    if results != [1] * len(kept):
        raise ValueError(f"{len(kept)} no-ops were sent, {results.count(1)} have returned 1")
    return {"ended": ended}


def round_trips(count: int) -> dict[str, Any]:
    return {"seconds": client.round_trips(count)}


def one_trip(longest: float) -> dict[str, Any]:
    """The seconds of one round trip; `longest` where there is no result by then."""
    start = time.perf_counter()
    try:
        client.get(client.send("noop"), longest)
    except Exception:
        if time.perf_counter() - start < longest:
            raise
    return {"seconds": min(longest, time.perf_counter() - start)}


def later(count: int, delay: float) -> dict[str, Any]:
    for _ in range(count):
        client.send_later(delay, "noop")
    return {"sent": count}


def due(count: int, first: float, last: float) -> dict[str, Any]:
    """Send tasks due evenly over `first`..`last` seconds from now; how late each one began."""
    begin = time.time()
    handles = []
    for number in range(count):
        moment = begin + first + (last - first) * number / count
        handles.append(client.send_later(moment - time.time(), "late", moment))
    return {"lateness": [client.get(handle, 30) for handle in handles]}


def group(count: int) -> dict[str, Any]:
    start = time.perf_counter()
    client.send_group(count)
    return {"seconds": time.perf_counter() - start}


def chord(count: int) -> dict[str, Any]:
    """`chord`: seconds until the body has returned; `chord-gap`: from the last part to its begin."""
    start = time.perf_counter()
    gap = client.get(client.chord(count), 100)
    return {"chord": time.perf_counter() - start, "chord-gap": gap}


COMMANDS = {
    function.__name__: function
    for function in (enqueue, fill, keep, collect, round_trips, one_trip, later, due, group, chord)
}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # a library's prints must not mix with answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = COMMANDS[request.pop("command")](**request)
        except Exception:
            answer = {"error": traceback.format_exc(limit=-3)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
