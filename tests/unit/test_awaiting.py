"""Calls and results awaited in an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from minicelery import Celery, hearing, states
from minicelery.awaiting import THREADS, in_thread
from minicelery.exceptions import (
    BackendUnavailable,
    BrokerUnavailable,
    ImproperlyConfigured,
    OperationalError,
    TaskRevokedError,
    TimeoutError,
)
from minicelery.message import Record, new_id
from minicelery.result import AsyncResult, EagerResult, StateChange, allow_join_result
from minicelery.worker.executor import Executor
from tests.conformance.messages import record
from tests.proxy import Proxy
from tests.servers import RedisServer
from tests.waiting import wait_until

Answer = Callable[..., None]


@pytest.fixture(params=["memory", "sqlite", "redis", "rpc"])
def places(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A broker and a result store of this test's own."""
    if request.param == "rpc":
        return request.getfixturevalue("rabbit_url"), "rpc://"
    url = f"memory://{new_id()}" if request.param == "memory" else f"{request.param}_url"
    if not url.startswith("memory"):
        url = request.getfixturevalue(url)
    return url, url


@pytest.fixture
def client(places: tuple[str, str]) -> Iterator[Celery]:
    """The app that asks."""
    broker, backend = places
    with Celery("asks", broker=broker, backend=backend, set_as_current=False) as app:
        yield app


@pytest.fixture
def answer(places: tuple[str, str], client: Celery) -> Iterator[Answer]:
    """Stores a state of results, as a worker in another process would."""
    broker, backend = places
    with Celery("answers", broker=broker, backend=backend, set_as_current=False) as app:

        def store(results: Any, state: str = "SUCCESS", value: object = 4) -> None:
            results = results if isinstance(results, list) else [results]
            app.backend.store([reply(result, state, value) for result in results])

        yield store


def reply(result: AsyncResult[Any], state: str, value: object) -> Record:
    found = record(result.id, state, value)
    found.reply_to = getattr(result.backend, "queue", "")
    return found


def listening() -> list[threading.Thread]:
    """The threads that wait for results."""
    return [thread for thread in threading.enumerate() if thread.name == "minicelery-results"]


def soon(act: Callable[[], None], delay: float = 0.1) -> threading.Timer:
    timer = threading.Timer(delay, act)
    timer.start()
    return timer


def run(coroutine: Coroutine[Any, Any, Any], timeout: float = 45.0) -> Any:
    """What it returns; its event loop complains where it is held up."""

    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, timeout)

    return asyncio.run(bounded())


class Pulse:
    """Measures the longest time that the event loop did not turn."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> Pulse:
        self._began = time.monotonic()
        self._task = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._note()  # also what has held up the loop to the end
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            self._note()
            self._began = time.monotonic()
            await asyncio.sleep(0.01)

    def _note(self) -> None:
        self.longest = max(self.longest, time.monotonic() - self._began - 0.01)


# -- results -------------------------------------------------------------------------------


def test_a_result_is_awaited(client: Celery, answer: Answer) -> None:
    async def main() -> object:
        result = await client.asend_task("noop")
        soon(lambda: answer(result, value=[1, "two"]))
        return await result

    assert run(main()) == [1, "two"]


def test_a_result_that_is_there_already_is_awaited_at_once(client: Celery, answer: Answer) -> None:
    async def main() -> None:
        results = [await client.asend_task("noop") for _ in range(20)]
        waiting = asyncio.ensure_future((await client.asend_task("noop")).aget(timeout=40))
        await asyncio.sleep(0.1)  # so that the thread is in the middle of a long wait
        answer(results)
        await asyncio.sleep(0.2)
        began = time.monotonic()
        for result in results:
            assert await result == 4
        assert time.monotonic() - began < 15
        waiting.cancel()

    run(main())


def test_what_is_awaited_while_others_are_is_noticed_at_once(client: Celery, answer: Answer) -> None:
    async def main() -> float:
        first = await client.asend_task("noop")
        waiting = asyncio.ensure_future(first.aget(timeout=40))
        await asyncio.sleep(0.2)
        took = []
        for _ in range(5):
            result = await client.asend_task("noop")
            asked = asyncio.ensure_future(result.aget(timeout=20))
            await asyncio.sleep(0.02)
            await in_thread(client, lambda result=result: answer(result))  # type: ignore[misc]
            began = time.monotonic()
            await asked
            took.append(time.monotonic() - began)
        waiting.cancel()
        return sorted(took)[2]

    # SQLite is looked at every 5 ms and more; a machine that is busy with other things may take longer.
    assert any(run(main()) < 0.06 for _ in range(5))


def test_a_failure_is_raised_as_by_get(client: Celery, answer: Answer) -> None:
    failure = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}

    async def main() -> None:
        result = await client.asend_task("noop")
        soon(lambda: answer(result, "FAILURE", failure))
        with pytest.raises(ValueError, match="no"):
            await result
        with pytest.raises(ValueError, match="no"):
            await result.aget()
        assert repr(await result.aget(propagate=False)) == "ValueError('no')"

    run(main())


@pytest.mark.timeout(150)
def test_one_thread_waits_for_a_thousand_results(client: Celery, answer: Answer) -> None:
    async def main() -> list[int]:
        results = [client.send_task("noop") for _ in range(1000)]
        asked = [asyncio.ensure_future(result.aget(timeout=110)) for result in results]
        await asyncio.sleep(0.2)
        threads.append(len(listening()))

        def store() -> None:
            for start in range(0, 1000, 50):
                for number in range(start, start + 50):
                    answer(results[number], value=number)

        storing = threading.Thread(target=store)
        storing.start()
        got = await asyncio.gather(*asked)
        storing.join()
        return got

    threads: list[int] = []
    before = len(listening())
    assert run(main(), 120) == list(range(1000))
    assert threads[0] - before <= 1


def test_a_timeout_raises_timeout_error(client: Celery) -> None:
    async def main() -> None:
        result = await client.asend_task("noop")
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"task {result.id} was not done within 0.2 s"):
            await result.aget(timeout=0.2)
        assert 0.15 < time.monotonic() - began < 20

    run(main())


def test_without_time_to_wait_what_is_there_is_returned(client: Celery, answer: Answer) -> None:
    async def main() -> None:
        result = await client.asend_task("noop")
        with pytest.raises(TimeoutError):
            await result.aget(timeout=0)
        answer(result)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                assert await result.aget(timeout=0) == 4
                return
            except TimeoutError:
                await asyncio.sleep(0.01)
        raise AssertionError("not there within 20 s")

    run(main())


def test_a_cancelled_wait_ends_and_leaves_the_others(client: Celery, answer: Answer) -> None:
    async def main() -> None:
        first, second = [await client.asend_task("noop") for _ in range(2)]
        waits = [asyncio.ensure_future(result.aget()) for result in (first, first, second)]
        await asyncio.sleep(0.1)
        waits[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits[0]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(second.aget(), 0.1)
        answer([first, second])
        assert await asyncio.gather(*waits[1:]) == [4, 4]

    run(main())


def test_several_event_loops_wait_at_once(client: Celery, answer: Answer) -> None:
    results = [client.send_task("noop") for _ in range(4)]
    shared = client.send_task("noop")
    got: list[object] = []

    def loop(result: AsyncResult[Any]) -> None:
        async def main() -> list[object]:
            return await asyncio.gather(
                result.aget(timeout=30), client.AsyncResult(shared.id).aget(timeout=30)
            )

        got.extend(run(main()))

    threads = [threading.Thread(target=loop, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    wait_until(listening)
    time.sleep(0.05)
    assert len(listening()) <= 1 + len(other_listeners)
    answer([*results, shared])
    for thread in threads:
        thread.join(40)
    assert got == [4] * 8


other_listeners: list[threading.Thread] = []


@pytest.fixture(autouse=True)
def _note_other_listeners() -> None:
    other_listeners[:] = listening()


def test_a_closed_event_loop_keeps_nobody_from_hearing(client: Celery, answer: Answer) -> None:
    result, other = client.send_task("noop"), client.send_task("noop")
    loop = asyncio.new_event_loop()
    forsaken = result.aget()
    task = loop.create_task(forsaken)
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()

    async def main() -> list[object]:
        soon(lambda: answer([result, other]))
        return await asyncio.gather(other.aget(timeout=30), client.AsyncResult(result.id).aget(timeout=30))

    assert run(main()) == [4, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        forsaken.close()


def test_the_thread_ends_when_nothing_is_awaited(client: Celery, answer: Answer) -> None:
    async def main() -> None:
        result = await client.asend_task("noop")
        soon(lambda: answer(result), 0.0)
        await result

    run(main())
    wait_until(lambda: not set(listening()) - set(other_listeners))
    run(main())  # and begins anew
    wait_until(lambda: not set(listening()) - set(other_listeners))
    assert not [watcher for watcher in hearing._watchers.values() if watcher.backend is client.backend]


def test_callbacks_are_called_as_by_get(client: Celery, answer: Answer) -> None:
    called: list[object] = []

    async def main() -> None:
        result = await client.asend_task("noop")
        loop = asyncio.get_running_loop()

        def tick() -> None:
            called.append("interval")
            if len(called) == 3:
                answer(result, value="done")

        await result.aget(
            timeout=30,
            interval=0.1,
            callback=lambda id, value: called.append(
                (id == result.id, value, loop is asyncio.get_running_loop())
            ),
            on_message=lambda meta: called.append(meta["status"]),
            on_interval=tick,
        )

    run(main())
    assert called[:3] == ["interval"] * 3
    assert called[-2:] == ["SUCCESS", (True, "done", True)]


# -- states --------------------------------------------------------------------------------


def test_states_come_one_by_one_up_to_the_final_one(client: Celery, answer: Answer) -> None:
    async def main() -> list[StateChange]:
        result = await client.asend_task("noop")
        seen: list[StateChange] = []

        def store(state: str, value: object) -> None:
            soon(lambda: answer(result, state, value), 0.05)

        store("PROGRESS", {"done": 0})
        async for change in result.aiter_states(timeout=30):
            seen.append(change)
            done = change.info["done"] if change.state == "PROGRESS" else 3
            if done < 2:
                store("PROGRESS", {"done": done + 1})
            elif done == 2:
                store("SUCCESS", "all")
        return seen

    assert run(main()) == [
        ("PROGRESS", {"done": 0}),
        ("PROGRESS", {"done": 1}),
        ("PROGRESS", {"done": 2}),
        ("SUCCESS", "all"),
    ]


def test_who_comes_later_begins_with_the_state_there_is(client: Celery, answer: Answer) -> None:
    async def note_states(result: AsyncResult[Any], seen: list[str]) -> None:
        async for state, _ in result.aiter_states(timeout=30):
            seen.append(state)

    async def main() -> list[list[str]]:
        result = await client.asend_task("noop")
        answer(result, "PROGRESS")
        seen: list[list[str]] = [[], []]
        noting = []
        for one, noted in zip((result, client.AsyncResult(result.id)), seen, strict=True):
            noting.append(asyncio.ensure_future(note_states(one, noted)))
            while not noted:
                await asyncio.sleep(0.01)
        answer(result)
        await asyncio.gather(*noting)
        return seen

    assert run(main()) == [["PROGRESS", "SUCCESS"]] * 2


def test_the_final_state_comes_also_where_the_result_was_awaited_before(
    client: Celery, answer: Answer
) -> None:
    async def main() -> list[str]:
        result = await client.asend_task("noop")
        answer(result, "PROGRESS")
        seen = []
        async for change in result.aiter_states(timeout=30):
            seen.append(change.state)
            if change.state == "PROGRESS":
                answer(result)
                assert await result.aget(timeout=30) == 4
        return seen

    assert run(main()) == ["PROGRESS", "SUCCESS"]


def test_a_failure_is_a_state_and_a_timeout_an_error(client: Celery, answer: Answer) -> None:
    failure = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}

    async def main() -> None:
        result = await client.asend_task("noop")
        with pytest.raises(TimeoutError):
            async for _ in result.aiter_states(timeout=0.1):
                raise AssertionError("there is no state yet")
        answer(result, "FAILURE", failure)
        changes = [change async for change in result.aiter_states(timeout=30)]
        assert [(change.state, str(change.info)) for change in changes] == [("FAILURE", "no")]
        assert [state async for state, _ in result.aiter_states()] == ["FAILURE"]

    run(main())


# -- acting --------------------------------------------------------------------------------


def test_results_are_forgotten_and_tasks_revoked(app: Celery) -> None:
    app.task(lambda: None, name="noop")

    async def main() -> None:
        result = await app.asend_task("noop")
        await result.arevoke()
        assert result.id in app.broker.recall("revoked")
        consumer = app.broker.consumer(["celery"], "w1", app.backend)
        executor = Executor(app)
        consumer.swap([executor.run(delivery) for delivery in consumer.swap([], 1, 0)], 0, 0)
        consumer.close()
        with pytest.raises(TaskRevokedError):
            await result
        await result.aforget()
        assert app.backend.load([result.id]) == [None]

    run(main())


# -- calls ---------------------------------------------------------------------------------


def test_every_way_to_call_has_one_to_await(app: Celery) -> None:
    add = app.task(lambda x, y: x + y, name="add")

    async def main() -> list[AsyncResult[Any]]:
        return [
            await add.adelay(1, y=2),
            await add.aapply_async((1, 2), countdown=60, task_id="mine"),
            *await add.aapply_many([(1, 2), {"x": 1, "y": 2}], queue="other"),
            await add.s(2).adelay(1),
            await add.s(2).aapply_async((1,), task_id="signed"),
            await app.asend_task("elsewhere.add", (1, 2), task_id="sent"),
        ]

    results = run(main())
    assert [type(result) for result in results] == [AsyncResult] * 7
    assert [results[place].id for place in (1, 5, 6)] == ["mine", "signed", "sent"]
    assert (app.broker.size("celery"), app.broker.size("other"), app.broker.delayed("celery")) == (4, 2, 1)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda add: add.adelay(1), TypeError, "missing a required argument: 'y'"),
        (lambda add: add.adelay(1, object()), TypeError, "object"),
        (lambda add: add.aapply_async((1, 2), priority=10), ValueError, "priority"),
        (lambda add: add.aapply_many([(1,)]), TypeError, "missing a required argument: 'y'"),
        (lambda add: add.app.asend_task(""), TypeError, "takes a task's name"),
    ],
)
def test_what_is_wrong_with_a_call_is_said_as_by_delay(
    app: Celery, call: Callable[[Any], Awaitable[Any]], error: type[Exception], said: str
) -> None:
    add = app.task(lambda x, y: x + y, name="add")

    async def main() -> None:
        with pytest.raises(error, match=said):
            await call(add)

    run(main())


def test_a_broker_that_cannot_be_reached_blocks_nobody() -> None:
    async def main() -> bool:
        with Celery("lost", broker="redis://127.0.0.1:1", set_as_current=False) as app:
            app.conf.task_publish_deadline = 0.5
            began = time.monotonic()
            async with Pulse() as pulse:
                with pytest.raises(OperationalError, match="cannot reach Redis"):
                    await app.asend_task("noop")
            return pulse.longest < (time.monotonic() - began) / 2

    assert any(run(main()) for _ in range(5))


def test_a_call_inside_of_a_task_has_it_as_its_parent(app: Celery) -> None:
    inner = app.task(lambda: None, name="inner")

    @app.task(name="outer", bind=True)
    def outer(self: Any) -> list[object]:
        result = asyncio.run(inner.adelay())
        return [self.request.id, [child.id for child in self.request.children] == [result.id]]

    outer.delay()
    consumer = app.broker.consumer(["celery"], "w1", app.backend)
    (delivery,) = consumer.swap([], 1, 0)
    outcome = Executor(app, "w1@host").run(delivery)
    (follower,) = consumer.swap([outcome], 1, 0)
    consumer.close()
    assert follower.message.headers["parent_id"] == delivery.message.id
    assert app.AsyncResult(delivery.message.id).get(timeout=5) == [delivery.message.id, True]


def test_waiting_inside_of_a_task_is_refused_as_by_get(app: Celery) -> None:
    done = app.AsyncResult("done")
    app.backend.store([record("done")])

    @app.task(name="outer")
    def outer() -> list[object]:
        async def states_of() -> list[str]:
            return [state async for state, _ in app.AsyncResult("done").aiter_states()]

        async def allowed() -> list[object]:
            with allow_join_result():
                return [await app.AsyncResult("done"), *await states_of()]

        refused = 0
        for wait in (done.aget, states_of):
            try:
                asyncio.run(wait())
            except RuntimeError as error:
                refused += "Never call result.get() within a task" in str(error)
        return [refused, asyncio.run(done.aget(disable_sync_subtasks=False)), *asyncio.run(allowed())]

    result = outer.delay()
    consumer = app.broker.consumer(["celery"], "w1", app.backend)
    consumer.swap([Executor(app, "w1@host").run(consumer.swap([], 1, 0)[0])], 0, 0)
    consumer.close()
    assert result.get(timeout=5) == [2, 4, 4, "SUCCESS"]


def test_a_call_has_the_callers_context_and_current_app(app: Celery) -> None:
    from minicelery import current_app

    note: contextvars.ContextVar[str] = contextvars.ContextVar("note")

    async def main() -> tuple[str, bool, bool]:
        note.set("mine")
        return await in_thread(
            app, lambda: (note.get(), current_app.main == app.main, threading.current_thread().daemon)
        )

    app.set_current()
    assert run(main()) == ("mine", True, False)


def test_few_threads_make_many_calls(app: Celery) -> None:
    busy: list[int] = []
    most = threading.Semaphore(THREADS)

    def work() -> None:
        assert most.acquire(blocking=False)
        time.sleep(0.002)
        busy.append(threading.get_ident())
        most.release()

    async def main() -> None:
        await asyncio.gather(*(in_thread(app, work) for _ in range(200)))

    run(main())
    assert len(busy) == 200
    assert len(set(busy)) <= THREADS


def test_calls_that_wait_for_their_turn_hear_that_the_server_is_away(app: Celery) -> None:
    begun: list[int] = []
    found_out = threading.Event()

    def send() -> None:
        begun.append(1)
        found_out.wait(20)
        raise BrokerUnavailable("no answer in time")

    async def main() -> list[Any]:
        calls = [asyncio.ensure_future(in_thread(app, send, BrokerUnavailable)) for _ in range(5 * THREADS)]
        while len(begun) < THREADS:
            await asyncio.sleep(0.001)
        assert await in_thread(app, lambda: "read", BackendUnavailable) == "read"  # which is another server
        found_out.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert await in_thread(app, lambda: "back", BrokerUnavailable) == "back"
        return outcomes

    assert [repr(outcome) for outcome in run(main())] == [
        "BrokerUnavailable('no answer in time')"
    ] * 5 * THREADS
    assert len(begun) == THREADS


def test_a_cancelled_call_that_has_not_begun_is_not_made(app: Celery) -> None:
    held = threading.Event()
    made: list[int] = []

    async def main() -> None:
        holding = [asyncio.ensure_future(in_thread(app, lambda: held.wait(10))) for _ in range(THREADS)]
        call = asyncio.ensure_future(in_thread(app, lambda: made.append(1)))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        held.set()
        await asyncio.gather(*holding)
        await in_thread(app, lambda: made.append(2))

    run(main())
    assert made == [2]


def test_a_forked_child_awaits_on_its_own(redis_url: str) -> None:
    with Celery("forks", broker=redis_url, backend=redis_url, set_as_current=False) as app:

        async def roundtrip() -> object:
            result = await app.asend_task("noop")
            timer = soon(lambda: app.backend.store([record(result.id)]), 0.05)
            value = await result.aget(timeout=20)
            timer.join()
            return value

        assert run(roundtrip()) == 4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if run(roundtrip()) == 4 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert run(roundtrip()) == 4


def test_awaiting_survives_an_outage_of_the_store(private_redis: RedisServer) -> None:
    url = private_redis.url()
    with Celery("outage", broker="memory://outage", backend=url, set_as_current=False) as app:

        async def main() -> float:
            result = await app.asend_task("noop")
            async with Pulse() as pulse:
                asked = asyncio.ensure_future(result.aget(timeout=40))
                await asyncio.sleep(0.2)
                await asyncio.to_thread(private_redis.kill)
                late = asyncio.ensure_future((await app.asend_task("noop")).aget(timeout=0.5))
                with pytest.raises(TimeoutError):
                    await late
                await asyncio.to_thread(private_redis.restart)
                await asyncio.to_thread(app.backend.store, [record(result.id)])
                assert await asked == 4
            return pulse.longest

        assert any(run(main()) < 0.3 for _ in range(4))


def test_all_that_is_awaited_is_one_subscription(private_redis: RedisServer) -> None:
    def clients() -> str:
        return private_redis.command("CLIENT", "LIST", "TYPE", "pubsub").decode()

    def channels() -> bytes:
        return private_redis.command("PUBSUB", "CHANNELS", "celery-task-meta-*")[:5]

    with Celery("many", broker="memory://many", backend=private_redis.url(), set_as_current=False) as app:

        async def main() -> None:
            results = [app.send_task("noop") for _ in range(1000)]
            asked = [asyncio.ensure_future(result.aget(timeout=20)) for result in results]
            await asyncio.to_thread(wait_until, lambda: " sub=1000 " in clients())
            assert clients().count(" sub=") == 1
            for start in range(0, 1000, 100):
                found = [record(result.id) for result in results[start : start + 100]]
                await asyncio.to_thread(app.backend.store, found)
            assert await asyncio.gather(*asked) == [4] * 1000

        run(main())
        wait_until(lambda: channels() == b"*0\r\n")


def test_a_lost_subscription_is_made_anew(redis_server: RedisServer, redis_url: str) -> None:
    with Celery("cut", broker="memory://cut", backend=redis_url, set_as_current=False) as app:

        async def main() -> list[object]:
            results = [app.send_task("noop") for _ in range(2)]
            asked = [asyncio.ensure_future(result.aget(timeout=20)) for result in results]
            await asyncio.sleep(0.1)
            redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
            app.backend.store([record(results[0].id)])
            await asked[0]
            app.backend.store([record(results[1].id)])
            return await asyncio.gather(*asked)

        def seconds() -> float:
            began = time.monotonic()
            assert run(main()) == [4, 4]
            return time.monotonic() - began

        assert any(seconds() < 2 for _ in range(5))


def test_a_document_that_is_too_big_for_a_listener_arrives(private_redis: RedisServer) -> None:
    private_redis.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 100000 0 0")
    with Celery("big", broker="memory://big", backend=private_redis.url(), set_as_current=False) as app:

        async def main() -> object:
            result = app.send_task("noop")
            asked = asyncio.ensure_future(result.aget(timeout=20))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(app.backend.store, [record(result.id, result="x" * 5_000_000)])
            return await asked

        assert run(main()) == "x" * 5_000_000


def test_a_lost_notice_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer, redis_url: str
) -> None:
    monkeypatch.setattr("minicelery.broker.redis.listening._AGAIN", 0.3)
    with Celery("quiet", broker="memory://quiet", backend=redis_url, set_as_current=False) as app:

        async def main() -> object:
            result = app.send_task("noop")
            asked = asyncio.ensure_future(result.aget(timeout=20))
            await asyncio.sleep(0.1)
            document = record(result.id).document.decode()
            redis_server.command("SET", f"celery-task-meta-{result.id}", document)
            return await asked

        assert run(main()) == 4


def test_a_connection_that_has_silently_gone_is_noticed(
    monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer, redis_url: str
) -> None:
    monkeypatch.setattr("minicelery.broker.redis.listening._AGAIN", 0.3)
    with Proxy(redis_server.port) as proxy:
        url = redis_url.replace(str(redis_server.port), str(proxy.port))
        with Celery("stalled", broker="memory://stalled", backend=url, set_as_current=False) as app:
            app.conf.result_backend_transport_options = {"socket_timeout": 1.0}

            async def main() -> object:
                result = app.send_task("noop")
                asked = asyncio.ensure_future(result.aget(timeout=20))
                await asyncio.sleep(0.2)
                proxy.lose_replies()
                redis_server.command(
                    "SET", f"celery-task-meta-{result.id}", record(result.id).document.decode()
                )
                await asyncio.sleep(1.8)
                proxy.flow()
                return await asked

            assert run(main()) == 4


def test_an_outage_without_end_is_told(monkeypatch: pytest.MonkeyPatch, private_redis: RedisServer) -> None:
    monkeypatch.setattr(hearing, "OUTAGE", 0.5)
    with Celery("down", broker="memory://down", backend=private_redis.url(), set_as_current=False) as app:

        async def main() -> None:
            result = await app.asend_task("noop")
            asked = asyncio.ensure_future(result.aget())
            await asyncio.sleep(0.1)
            await asyncio.to_thread(private_redis.kill)
            with pytest.raises(BackendUnavailable, match="cannot reach Redis"):
                await asked

        run(main())


def test_a_result_that_cannot_be_read_is_its_readers_affair_only(app: Celery) -> None:
    async def main() -> None:
        broken, sound = await app.asend_task("noop"), await app.asend_task("noop")
        asked = [asyncio.ensure_future(result.aget(timeout=30)) for result in (broken, sound)]
        await asyncio.sleep(0.05)
        app.backend.store([Record(broken.id, b"{"), record(sound.id)])
        with pytest.raises(Exception, match="stored result"):
            await asked[0]
        assert await asked[1] == 4

    run(main())


def test_without_a_result_store_awaiting_says_so() -> None:
    async def main() -> None:
        with Celery("none", broker="memory://none", set_as_current=False) as app:
            result = await app.asend_task("noop")
            with pytest.raises(ImproperlyConfigured, match="no result backend is configured"):
                await result
            with pytest.raises(ImproperlyConfigured, match="no result backend is configured"):
                async for _ in result.aiter_states():
                    pass

    run(main())


def test_an_ignored_result_is_none_at_once(app: Celery) -> None:
    async def main() -> None:
        result = await app.asend_task("noop", ignore_result=True)
        assert await result is None
        assert [change async for change in result.aiter_states()] == []

    run(main())


# -- eager ---------------------------------------------------------------------------------


def test_eager_tasks_run_under_an_event_loop_without_holding_it_up(app: Celery) -> None:
    app.conf.task_always_eager = True

    @app.task(name="nap")
    def nap(seconds: float) -> int:
        time.sleep(seconds)
        return threading.get_ident()

    async def main() -> float:
        async with Pulse() as pulse:
            result: Any = await nap.adelay(0.3)
            assert isinstance(result, EagerResult)
            assert await result != threading.get_ident()
        return pulse.longest

    assert any(run(main()) < 0.2 for _ in range(5))


def test_eager_coroutine_tasks_run_however_deep(app: Celery) -> None:
    app.conf.task_always_eager = True

    @app.task(name="deeper")
    async def deeper(depth: int) -> int:
        await asyncio.sleep(0)
        return depth if depth == 0 else 1 + await (await deeper.adelay(depth - 1))

    async def main() -> int:
        awaited: int = await (await deeper.adelay(2 * THREADS))
        with_delay: int = await deeper.delay(1)  # type: ignore[assignment]
        return awaited + with_delay

    assert run(main()) == 2 * THREADS + 1


def test_an_eager_result_has_the_methods_to_await(app: Celery) -> None:
    def fail() -> None:
        raise ValueError("no")

    failed = app.task(fail, name="fail").apply()
    passed: Any = app.task(lambda: 5, name="five").apply()

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await failed
        assert isinstance(await failed.aget(propagate=False), ValueError)
        assert await passed == await passed.aget(timeout=1) == 5
        assert [change async for change in passed.aiter_states()] == [("SUCCESS", 5)]
        await passed.aforget()
        await passed.arevoke()
        assert passed.state == states.REVOKED

    run(main())


# -- get and revoke ------------------------------------------------------------------------


def test_a_failed_earlier_task_of_the_chain_is_raised_while_the_later_one_is_waited_for(app: Celery) -> None:
    first = app.AsyncResult("first")
    second = app.AsyncResult("second", parent=first)
    third = app.AsyncResult("third", parent=second)
    failure = {"exc_type": "ValueError", "exc_message": ["first"], "exc_module": "builtins"}
    app.backend.store([record("first", "FAILURE", failure)])
    for wait in (lambda: third.get(timeout=1), lambda: run(third.aget(timeout=1))):
        with pytest.raises(ValueError, match="first"):
            wait()
    for wait in (
        lambda: third.get(timeout=0.1, follow_parents=False),
        lambda: run(third.aget(timeout=0.1, follow_parents=False)),
        lambda: third.get(timeout=0.1, propagate=False),
    ):
        with pytest.raises(TimeoutError):
            wait()


def test_the_callback_hears_of_the_task_itself_and_not_of_its_parents(app: Celery) -> None:
    app.backend.store([record("first", result=1), record("second", result=2)])
    second = app.AsyncResult("second", parent=app.AsyncResult("first"))
    called: list[object] = []
    assert second.get(timeout=1, callback=lambda *call: called.append(call)) == 2
    assert called == [("second", 2)]


@pytest.mark.parametrize(
    ("signal", "name"),
    [(None, b"SIGTERM"), ("SIGTERM", b"SIGTERM"), ("term", b"SIGTERM"), ("KILL", b"SIGKILL"), (2, b"SIGINT")],
)
def test_a_task_is_revoked_with_any_signal_that_ends_a_process(app: Celery, signal: Any, name: bytes) -> None:
    result = app.send_task("noop")
    result.revoke(terminate=True, signal=signal)
    assert result.id in app.broker.recall("revoked")
    assert app.broker.recall("terminate")[result.id] == name
    other = app.send_task("noop")
    other.revoke(signal=signal)
    assert other.id not in app.broker.recall("terminate")


@pytest.mark.parametrize("signal", ["SIGNONE", "", "SIGSTOP", 0, 99, True, 1.5])
def test_a_signal_that_ends_nothing_is_refused(app: Celery, signal: Any) -> None:
    result = app.send_task("noop")
    with pytest.raises(ValueError, match=r"can't end a task; accepted are SIGTERM, SIGKILL"):
        result.revoke(terminate=True, signal=signal)
    with pytest.raises(ValueError, match=r"can't end a task"):
        run(result.arevoke(terminate=True, signal=signal))
    assert app.broker.recall("revoked") == {}


# -- the process ---------------------------------------------------------------------------


def played(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_what_is_awaited_does_not_keep_the_process_alive() -> None:
    began = time.monotonic()
    done = played("""
        import asyncio
        from minicelery import Celery
        app = Celery("x", broker="memory://", backend="memory://")

        async def main():
            asked = [asyncio.ensure_future((await app.asend_task("noop")).aget()) for _ in range(10)]
            await asyncio.sleep(0.1)
            print("asked")

        asyncio.run(main())
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "asked\n", "")
    assert time.monotonic() - began < 20


def test_a_process_without_event_loop_does_not_import_one() -> None:
    done = played("""
        import sys
        from minicelery import Celery
        app = Celery("x", broker="memory://", backend="memory://")
        app.send_task("noop").state
        print("asyncio" in sys.modules)
    """)
    assert (done.stdout, done.stderr) == ("False\n", "")
