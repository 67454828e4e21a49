"""Results that go straight to who asked for them, through RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pika
import pika.exceptions
import pytest

from minicelery import Celery
from minicelery.exceptions import BackendUnavailable, ImproperlyConfigured, TimeoutError
from minicelery.message import Record
from minicelery.result import AsyncResult
from tests.conformance.messages import record
from tests.proxy import Proxy
from tests.waiting import wait_until


@pytest.fixture
def client(rabbit_url: str) -> Iterator[Celery]:
    """The app that asks."""
    with Celery("asks", broker=rabbit_url, backend="rpc://", set_as_current=False) as app:
        yield app


@pytest.fixture
def worker(rabbit_url: str) -> Iterator[Celery]:
    """Another client, which answers."""
    with Celery("answers", broker=rabbit_url, backend="rpc://", set_as_current=False) as app:
        yield app


def reply(asked: AsyncResult[Any], state: str = "SUCCESS", result: object = 4) -> Record:
    """What a worker sends to who asked."""
    found = record(asked.id, state, result)
    found.reply_to = asked.backend.queue
    return found


def test_each_state_comes_to_the_sender(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop")
    seen: list[str] = []
    timer = threading.Timer(0.2, worker.backend.store, ([reply(result)],))
    worker.backend.store([reply(result, "STARTED"), reply(result, "RETRY")])
    timer.start()
    assert result.get(timeout=10, on_message=lambda meta: seen.append(meta["status"])) == 4
    assert seen[-1] == "SUCCESS"
    timer.join()


def test_an_answer_that_comes_before_anybody_waits_is_kept(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop")
    worker.backend.store([reply(result)])
    wait_until(result.ready)
    worker.close()
    assert (result.state, result.get(timeout=1)) == ("SUCCESS", 4)


def test_many_threads_wait_for_their_own(client: Celery, worker: Celery) -> None:
    results = [client.send_task("noop") for _ in range(8)]
    got: dict[int, object] = {}

    def wait(number: int) -> None:
        got[number] = results[number].get(timeout=10)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for number, result in reversed(list(enumerate(results))):
        worker.backend.store([reply(result, result=number)])
    for thread in threads:
        thread.join(15)
    assert got == {number: number for number in range(8)}


def test_waiting_ends_with_its_time(client: Celery) -> None:
    result = client.send_task("noop")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.3)
    assert 0.25 < time.monotonic() - began < 5


def test_a_result_that_another_process_asked_for_is_refused_in_words(client: Celery) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"not asked for by this process.*redis://"):
        client.AsyncResult("somebody-elses").get(timeout=1)


def test_a_forked_child_is_another_client(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            try:
                result.get(timeout=1)
            except ImproperlyConfigured:
                mine = client.send_task("noop")
                worker.backend.store([reply(mine, result="child's")])
                code = 0 if mine.get(timeout=20) == "child's" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    worker.backend.store([reply(result, result="parent's")])
    assert result.get(timeout=20) == "parent's"


def test_a_large_answer_arrives_whole(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop")
    worker.backend.store([reply(result, result="ü" * 1_000_000)])
    assert result.get(timeout=10) == "ü" * 1_000_000


def test_an_answer_that_nobody_waits_for_harms_nobody(worker: Celery) -> None:
    lost = record("1")
    worker.backend.store([lost])
    lost.reply_to = "no-such-queue"
    worker.backend.store([lost])
    worker.backend.store([lost])


def test_calls_whose_results_are_ignored_need_no_queue(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop", ignore_result=True)
    assert result.get(timeout=1) is None


def test_after_a_lost_connection_new_answers_arrive(rabbit_url: str, worker: Celery) -> None:
    port = int(rabbit_url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy:
        url = rabbit_url.replace(str(port), str(proxy.port))
        with Celery("cut", broker=url, backend="rpc://", set_as_current=False) as app:
            app.send_task("noop")
            proxy.cut()
            result = app.send_task("noop")
            try:
                result.ready()
            except BackendUnavailable:
                pass  # the old connection was found to be dead here
            result = app.send_task("noop")
            worker.backend.store([reply(result)])
            assert result.get(timeout=30) == 4


def test_two_apps_of_one_process_get_their_own_answers(
    rabbit_url: str, client: Celery, worker: Celery
) -> None:
    with Celery("second", broker=rabbit_url, backend="rpc://", set_as_current=False) as second:
        results = [app.send_task("noop") for app in (client, second) * 4]
        for number, result in enumerate(results):
            worker.backend.store([reply(result, result=number)])
        assert [result.get(timeout=20) for result in results] == list(range(8))


@pytest.mark.parametrize(("expires", "kept"), [(None, 600_000), (30, 30_000), (86_400, 600_000)])
def test_the_queue_of_answers_outlives_its_connection_and_goes_with_its_app(
    rabbit_url: str, expires: float | None, kept: int
) -> None:
    with (
        pika.BlockingConnection(pika.URLParameters(rabbit_url)) as connection,
        Celery("asks", broker=rabbit_url, backend="rpc://", set_as_current=False) as app,
        Celery("second", broker=rabbit_url, backend="rpc://", set_as_current=False) as second,
    ):
        app.conf.result_expires = expires
        app.send_task("noop")
        queue = app.backend.queue
        channel = connection.channel()
        # Refused where it has been declared otherwise.
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-expires": kept})
        assert queue != second.backend.queue
        app.close()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no queue"):
            channel.queue_declare(queue, passive=True)


def test_a_call_does_not_wait_for_another_threads_get(client: Celery, worker: Celery) -> None:
    waiting = client.send_task("noop")
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(waiting.get(timeout=30)))
    thread.start()
    wait_until(lambda: client.backend._lock.locked())
    client.send_task("noop")
    assert got == [] and thread.is_alive()
    worker.backend.store([reply(waiting)])
    thread.join()
    assert got == [4]


def test_what_was_answered_while_the_connection_was_lost_is_there_afterwards(
    rabbit_url: str, worker: Celery
) -> None:
    port = int(rabbit_url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy:
        url = rabbit_url.replace(str(port), str(proxy.port))
        with Celery("cut", broker=url, backend="rpc://", set_as_current=False) as app:
            result = app.send_task("noop")
            proxy.cut()
            worker.backend.store([reply(result)])
            assert result.get(timeout=30) == 4


def test_the_state_of_an_ignored_result_is_unknown(client: Celery) -> None:
    assert client.send_task("noop", ignore_result=True).state == "PENDING"


def test_rpc_needs_rabbitmq_as_broker(sqlite_url: str) -> None:
    with (
        Celery("wrong", broker=sqlite_url, backend="rpc://", set_as_current=False) as app,
        pytest.raises(ImproperlyConfigured, match=r"needs RabbitMQ as broker"),
    ):
        app.send_task("noop").get(timeout=1)


def test_to_await_what_another_process_asked_for_is_refused_and_harms_nobody(
    client: Celery, worker: Celery
) -> None:
    async def main() -> object:
        mine = await client.asend_task("noop")
        asked = asyncio.ensure_future(mine.aget(timeout=10))
        await asyncio.sleep(0.1)
        with pytest.raises(ImproperlyConfigured, match=r"not asked for by this process.*redis://"):
            await client.AsyncResult("somebody-elses").aget(timeout=5)
        await asyncio.to_thread(worker.backend.store, [reply(mine)])
        return await asked

    assert asyncio.run(main()) == 4


def test_what_is_awaited_is_answered_after_a_lost_connection(rabbit_url: str, worker: Celery) -> None:
    port = int(rabbit_url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy:
        url = rabbit_url.replace(str(port), str(proxy.port))
        with Celery("cut", broker=url, backend="rpc://", set_as_current=False) as app:

            async def main() -> list[object]:
                results = [await app.asend_task("noop") for _ in range(2)]
                asked = [asyncio.ensure_future(result.aget(timeout=20)) for result in results]
                await asyncio.sleep(0.1)
                await asyncio.to_thread(proxy.cut)
                await asyncio.to_thread(worker.backend.store, [reply(result) for result in results])
                return await asyncio.gather(*asked)

            assert asyncio.run(main()) == [4, 4]


def test_what_is_awaited_and_what_get_waits_for_come_by_one_connection(
    client: Celery, worker: Celery
) -> None:
    results = [client.send_task("noop") for _ in range(20)]
    got: list[object] = []

    def wait() -> None:
        got.extend(result.get(timeout=10) for result in results[::2])

    async def main() -> list[object]:
        thread = threading.Thread(target=wait)
        thread.start()
        asked = [asyncio.ensure_future(result.aget(timeout=10)) for result in results[1::2]]
        for number, result in reversed(list(enumerate(results))):
            await asyncio.to_thread(worker.backend.store, [reply(result, result=number)])
        awaited = await asyncio.gather(*asked)
        await asyncio.to_thread(thread.join, 10)
        return list(awaited)

    assert asyncio.run(main()) == list(range(1, 20, 2))
    assert got == list(range(0, 20, 2))
