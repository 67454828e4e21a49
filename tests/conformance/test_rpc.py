"""Results that go straight to who asked for them, through RabbitMQ."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from minicelery import Celery
from minicelery.exceptions import BackendUnavailable, ImproperlyConfigured, TimeoutError
from minicelery.message import Origin, Record
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


def reply(id: str, state: str = "SUCCESS", result: object = 4) -> Record:
    found = record(id, state, result)
    found.reply_to = Origin.client_id
    return found


def test_each_state_comes_to_the_sender(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop")
    seen: list[str] = []
    timer = threading.Timer(0.2, worker.backend.store, ([reply(result.id)],))
    worker.backend.store([reply(result.id, "STARTED"), reply(result.id, "RETRY")])
    timer.start()
    assert result.get(timeout=10, on_message=lambda meta: seen.append(meta["status"])) == 4
    assert seen[-1] == "SUCCESS"
    timer.join()


def test_an_answer_that_comes_before_anybody_waits_is_kept(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop")
    worker.backend.store([reply(result.id)])
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
        worker.backend.store([reply(result.id, result=number)])
    for thread in threads:
        thread.join(15)
    assert got == {number: number for number in range(8)}


def test_waiting_ends_with_its_time(client: Celery) -> None:
    result = client.send_task("noop")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.3)
    assert 0.25 < time.monotonic() - began < 2


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
                worker.backend.store([reply(mine.id, result="child's")])
                code = 0 if mine.get(timeout=5) == "child's" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    worker.backend.store([reply(result.id, result="parent's")])
    assert result.get(timeout=5) == "parent's"


def test_a_large_answer_arrives_whole(client: Celery, worker: Celery) -> None:
    result = client.send_task("noop")
    worker.backend.store([reply(result.id, result="ü" * 1_000_000)])
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
            worker.backend.store([reply(result.id)])
            assert result.get(timeout=10) == 4


def test_rpc_needs_rabbitmq_as_broker(sqlite_url: str) -> None:
    with (
        Celery("wrong", broker=sqlite_url, backend="rpc://", set_as_current=False) as app,
        pytest.raises(ImproperlyConfigured, match=r"needs RabbitMQ as broker"),
    ):
        app.send_task("noop").get(timeout=1)
