"""The tasks on dramatiq."""

from __future__ import annotations

from typing import Any

import client
import dramatiq
import work
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(url=client.REDIS_URL)
if client.RESULTS:
    broker.add_middleware(Results(backend=RedisBackend(url=client.REDIS_URL), store_results=True))
dramatiq.set_broker(broker)
tasks = {
    function.__name__: dramatiq.actor(function) for function in (work.noop, work.spin, work.nap, work.late)
}


class Client(client.Client):
    def send(self, task: str, *args: Any) -> Any:
        return tasks[task].send(*args)

    def send_later(self, delay: float, task: str, *args: Any) -> Any:
        return tasks[task].send_with_options(args=args, delay=max(0, int(delay * 1000)))

    def get(self, handle: Any, timeout: float) -> Any:
        return handle.get_result(block=True, timeout=int(timeout * 1000))
