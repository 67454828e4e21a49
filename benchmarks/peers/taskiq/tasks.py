"""The tasks on taskiq: those that only compute are coroutines, its best way; `nap` blocks a thread."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import client
import work
from taskiq import AsyncBroker
from taskiq_redis import RedisAsyncResultBackend


def open_broker() -> AsyncBroker:
    if client.ON_RABBITMQ:
        from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

        return AioPikaBroker(
            client.BROKER_URL,
            task_queues=[Queue(type=QueueType.CLASSIC)],
            dead_letter_queue=Queue(name="taskiq.dead_letter", type=QueueType.CLASSIC),
            delay_queue=Queue(name="taskiq.delay", type=QueueType.CLASSIC),
        )
    from taskiq_redis import RedisStreamBroker

    # "0": also what was sent before the first worker started.
    return RedisStreamBroker(client.BROKER_URL, consumer_id="0")


broker = open_broker()
if client.RESULTS_URL:
    broker = broker.with_result_backend(RedisAsyncResultBackend(client.RESULTS_URL, result_ex_time=86400))


async def noop() -> int:
    return work.noop()


async def spin(seconds: float) -> int:
    return work.spin(seconds)


tasks = {function.__name__: broker.task(function) for function in (noop, spin, work.nap)}


class Client(client.Client):
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(broker.startup())

    def send(self, task: str, *args: Any) -> Any:
        return self.loop.run_until_complete(tasks[task].kiq(*args))

    def send_later(self, delay: float, task: str, *args: Any) -> Any:
        return self.loop.run_until_complete(tasks[task].kicker().with_labels(delay=delay).kiq(*args))

    def get(self, handle: Any, timeout: float) -> Any:
        result = self.loop.run_until_complete(handle.wait_result(check_interval=0.001, timeout=timeout))
        return result.return_value

    def send_batch(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.loop.run_until_complete(self._send_batch(calls))

    def send_for(self, seconds: float, batch: bool) -> tuple[int, float]:
        return self.loop.run_until_complete(self._send_for(seconds, batch))

    def round_trips(self, count: int) -> list[float]:
        return self.loop.run_until_complete(self._round_trips(count))

    async def _send_batch(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        for start in range(0, len(calls), 100):
            await asyncio.gather(*(tasks[task].kiq(*args) for task, args in calls[start : start + 100]))

    async def _send_for(self, seconds: float, batch: bool) -> tuple[int, float]:
        sent = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if batch:
                await self._send_batch([("noop", ())] * 100)
            else:
                for _ in range(100):
                    await tasks["noop"].kiq()
            sent += 100
        return sent, elapsed

    async def _round_trips(self, count: int) -> list[float]:
        trips = []
        for _ in range(count):
            start = time.perf_counter()
            handle = await tasks["noop"].kiq()
            await handle.wait_result(check_interval=0.001, timeout=60)
            trips.append(time.perf_counter() - start)
        return trips
