"""The tasks on dramatiq."""

from __future__ import annotations

from typing import Any

import client
import dramatiq
import work
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend


def open_broker() -> dramatiq.Broker:
    if client.ON_RABBITMQ:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=client.BROKER_URL, confirm_delivery=bool(client.CONFIRM))
    from dramatiq.brokers.redis import RedisBroker

    return RedisBroker(url=client.BROKER_URL)


broker = open_broker()
if client.RESULTS_URL:
    broker.add_middleware(Results(backend=RedisBackend(url=client.RESULTS_URL), store_results=True))
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
