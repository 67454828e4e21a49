"""The tasks on huey."""

from __future__ import annotations

from typing import Any

import client
import work
from huey import RedisHuey

huey = RedisHuey(
    "bench", url=client.BROKER_URL, results=bool(client.RESULTS_URL), notify_result=client.PROMPT
)
tasks = {function.__name__: huey.task()(function) for function in (work.noop, work.spin, work.nap, work.late)}


class Client(client.Client):
    def send(self, task: str, *args: Any) -> Any:
        return tasks[task](*args)

    def send_later(self, delay: float, task: str, *args: Any) -> Any:
        return tasks[task].schedule(args=args, delay=delay)

    def get(self, handle: Any, timeout: float) -> Any:
        return handle.get(blocking=True, timeout=timeout)
