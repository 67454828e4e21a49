"""The tasks on minicelery."""

from __future__ import annotations

import itertools
from typing import Any

import client
import work

from minicelery import Celery, chord, group

app = Celery("tasks", broker=client.BROKER_URL, backend=client.RESULTS_URL or None)
if client.CONFIRM is not None:
    app.conf.broker_transport_options = {"confirm_publish": client.CONFIRM}
tasks = {
    function.__name__: app.task(function, name=function.__name__, ignore_result=not client.RESULTS_URL)
    for function in (work.noop, work.spin, work.nap, work.late, work.moment, work.since_last)
}
if client.ENTRIES:
    app.conf.beat_schedule = {
        f"entry {number}": {"task": "noop", "schedule": client.EVERY} for number in range(client.ENTRIES)
    }


class Client(client.Client):
    def send(self, task: str, *args: Any) -> Any:
        return tasks[task].delay(*args)

    def send_batch(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        for task, same in itertools.groupby(calls, key=lambda call: call[0]):
            tasks[task].apply_many([args for _, args in same])

    def send_and_keep(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        return [
            handle
            for task, same in itertools.groupby(calls, key=lambda call: call[0])
            for handle in tasks[task].apply_many([args for _, args in same])
        ]

    def send_later(self, delay: float, task: str, *args: Any) -> Any:
        return tasks[task].apply_async(args, countdown=delay)

    def send_group(self, count: int) -> Any:
        return group(tasks["noop"].s() for _ in range(count)).apply_async()

    def chord(self, count: int) -> Any:
        return chord([tasks["moment"].s() for _ in range(count)], tasks["since_last"].s()).apply_async()

    def get(self, handle: Any, timeout: float) -> Any:
        return handle.get(timeout=timeout)
