"""Real Celery on the other side of one Redis: its calls run here, ours run there."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.interop.tasks import TYPES, OrderError, make_app
from tests.servers import RedisServer
from tests.waiting import wait_until

celery = pytest.importorskip("celery", reason="real Celery is the other side")

# Celery's results unsubscribe when they are dropped, which may be after Redis has gone.
del pytest.importorskip("celery.result").AsyncResult.__del__

ROOT = Path(__file__).parents[2]
TIMEOUT = 20


@dataclass
class Pair:
    """A client of one library, whose calls go to a worker of the other."""

    library: str
    app: Any
    queue: str
    redis: Any

    def send(self, name: str, *args: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        task = self.app.tasks[f"interop.{name}"]
        return task.apply_async(args, kwargs or {}, **{"queue": self.queue, **options})

    def sig(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.tasks[f"interop.{name}"].signature(args).set(queue=self.queue, **options)

    def errors(self, name: str) -> type[Exception]:
        """The client library's own exception of that name."""
        module = __import__(f"{self.library}.exceptions", fromlist=[name])
        found: type[Exception] = getattr(module, name)
        return found

    def notes(self, key: str) -> list[str]:
        return [note.decode() for note in self.redis.lrange(f"note.{key}", 0, -1)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis with a worker of each library: minicelery's on `mini`, Celery's on `original`."""
    if not RedisServer.available():
        pytest.skip("redis-server is not installed")
    server = RedisServer().start()
    commands = {
        "minicelery": ["worker", "-Q", "mini", "-c", "1", "-l", "INFO"],
        "celery": ["worker", "-Q", "original", "-c", "1", "-P", "solo", "-l", "INFO",
                   "--without-gossip", "--without-mingle"],
    }  # fmt: skip
    with open(tmp_path_factory.mktemp("interop") / "workers.log", "wb") as log:
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", library, "-A", "tests.interop.tasks", *arguments],
                cwd=ROOT,
                env={**os.environ, "INTEROP_LIBRARY": library, "INTEROP_URL": server.url()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            for library, arguments in commands.items()
        ]
    try:
        yield server.url()
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait(5)
        server.stop()


@pytest.fixture(scope="module", params=["celery to minicelery", "minicelery to celery"])
def pair(request: pytest.FixtureRequest, url: str) -> Iterator[Pair]:
    library, queue = {
        "celery to minicelery": ("celery", "mini"),
        "minicelery to celery": ("minicelery", "original"),
    }[request.param]
    app = make_app(library, url)
    client = redis.Redis.from_url(url)
    pair = Pair(library, app, queue, client)
    assert pair.send("add", 1, 1).get(timeout=30) == 2  # the worker is there
    yield pair
    client.close()
    app.close()


def fresh() -> str:
    return str(uuid.uuid4())


# -- calls and values ------------------------------------------------------------------------


def test_a_call_returns_its_value(pair: Pair) -> None:
    found = pair.send("add", 2, 3)
    assert found.get(timeout=TIMEOUT) == 5
    assert (found.state, found.successful(), found.children) == ("SUCCESS", True, [])


def test_keyword_arguments_arrive(pair: Pair) -> None:
    found = pair.send("echo", 1, kwargs={"b": [2, {"c": None}], "é": "☃"})
    assert found.get(timeout=TIMEOUT) == {"args": [1], "kwargs": {"b": [2, {"c": None}], "é": "☃"}}


def test_the_types_beyond_json_go_there_and_back(pair: Pair) -> None:
    assert pair.send("check_types", kwargs=TYPES).get(timeout=TIMEOUT) == TYPES


def test_a_msgpack_body_is_read(pair: Pair) -> None:
    found = pair.send("echo", "té", 2**40, None, kwargs={"a": [1.5, True]}, serializer="msgpack")
    assert found.get(timeout=TIMEOUT) == {"args": ["té", 2**40, None], "kwargs": {"a": [1.5, True]}}


@pytest.mark.parametrize("compression", ["zlib", "gzip", "bzip2"])
def test_a_compressed_body_is_read(pair: Pair, compression: str) -> None:
    text = "long " * 1000
    found = pair.send("echo", text, compression=compression)
    assert found.get(timeout=TIMEOUT)["args"] == [text]


def test_headers_and_options_arrive(pair: Pair) -> None:
    found = pair.send(
        "about", headers={"x-my": [1, {"a": None}]}, shadow="shown", time_limit=60, soft_time_limit=50,
        root_id="root", parent_id="parent", task_id=(id := fresh()),
    )  # fmt: skip
    about = found.get(timeout=TIMEOUT)
    assert about["headers"]["x-my"] == [1, {"a": None}]
    assert (about["shadow"], about["timelimit"]) == ("shown", [60, 50])
    assert (about["root_id"], about["parent_id"], about["correlation_id"]) == ("root", "parent", id)
    assert (about["retries"], about["routing_key"], about["priority"]) == (0, pair.queue, 0)


def test_the_most_urgent_call_is_run_first(pair: Pair) -> None:
    key, go_on = fresh(), fresh()
    busy = pair.send("progress", go_on)
    wait_until(lambda: busy.state == "PROGRESS")
    found = [pair.send("note", key, priority, priority=priority) for priority in (9, 3, 0)]
    pair.redis.rpush(f"note.{go_on}", "go on")
    for one in [busy, *found]:
        one.get(timeout=TIMEOUT)
    assert pair.notes(key) == ["0", "3", "9"]


# -- failures and retries --------------------------------------------------------------------


def test_a_failure_is_raised_as_the_same_exception(pair: Pair) -> None:
    found = pair.send("fail", "builtin")
    with pytest.raises(ValueError) as caught:
        found.get(timeout=TIMEOUT)
    assert caught.value.args == ("bad value", 42)
    assert (found.state, found.failed()) == ("FAILURE", True)
    assert "ValueError: ('bad value', 42)" in found.traceback


def test_an_exception_class_of_the_users_is_raised_as_itself(pair: Pair) -> None:
    with pytest.raises(OrderError) as caught:
        pair.send("fail", "own").get(timeout=TIMEOUT)
    assert (caught.value.number, caught.value.args[1]) == (7, {"why": "x"})


def test_arguments_that_do_not_fit_fail_the_task(pair: Pair) -> None:
    with pytest.raises(TypeError, match="add"):
        pair.app.send_task("interop.add", (1,), queue=pair.queue).get(timeout=TIMEOUT)


def test_an_unknown_task_is_not_registered_over_there(pair: Pair) -> None:
    with pytest.raises(pair.errors("NotRegistered"), match=r"interop\.nobody"):
        pair.app.send_task("interop.nobody", queue=pair.queue).get(timeout=TIMEOUT)


def test_a_retry_keeps_the_id_and_ends_in_the_value(pair: Pair) -> None:
    found = pair.send("flaky", 2)
    assert found.get(timeout=TIMEOUT) == [2, found.id, found.id]
    assert pair.notes(found.id) == ["0", "1", "2"]


def test_retries_end_in_the_exception(pair: Pair) -> None:
    found = pair.send("flaky", 99)
    with pytest.raises(OrderError) as caught:
        found.get(timeout=TIMEOUT)
    assert caught.value.number == 3
    assert pair.notes(found.id) == ["0", "1", "2", "3"]


def test_a_swallowed_retry_is_made_all_the_same(pair: Pair) -> None:
    found = pair.send("swallow")
    assert found.get(timeout=TIMEOUT) == "swallowed"
    wait_until(lambda: pair.notes(found.id) == ["0", "1"])


# -- times -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["countdown", "eta, aware", "eta, another zone"])
def test_a_delayed_call_is_not_run_before_its_time(pair: Pair, how: str) -> None:
    moment = datetime.now(timezone.utc) + timedelta(seconds=0.8)
    if how == "countdown":
        found = pair.send("add", 1, 2, countdown=0.8)
    elif how == "eta, aware":
        found = pair.send("add", 1, 2, eta=moment)
    else:
        found = pair.send("add", 1, 2, eta=moment.astimezone(timezone(timedelta(hours=5, minutes=30))))
    assert found.get(timeout=TIMEOUT) == 3
    done = found.date_done
    done = datetime.fromisoformat(done) if isinstance(done, str) else done
    if done.tzinfo is None:
        done = done.replace(tzinfo=timezone.utc)
    assert moment - timedelta(seconds=0.05) <= done <= moment + timedelta(seconds=5)


def test_an_expired_call_is_revoked(pair: Pair) -> None:
    busy = pair.send("nap", 0.6)
    found = pair.send("add", 1, 2, expires=0.2)
    with pytest.raises(pair.errors("TaskRevokedError"), match="expired"):
        found.get(timeout=TIMEOUT)
    assert found.state == "REVOKED"
    busy.get(timeout=TIMEOUT)


def test_a_call_that_expires_later_is_run(pair: Pair) -> None:
    moment = datetime.now(timezone.utc) + timedelta(minutes=5)
    assert pair.send("add", 1, 2, expires=moment).get(timeout=TIMEOUT) == 3


# -- links, children, states -----------------------------------------------------------------


def test_callbacks_get_the_value(pair: Pair) -> None:
    first, second = fresh(), fresh()
    links = [pair.sig("note_result", first), pair.sig("note", second, "set").set(immutable=True)]
    found = pair.send("add", 2, 3, link=links)
    wait_until(lambda: pair.notes(first) == ["5"] and pair.notes(second) == ["set"])
    assert len(found.children) in (1, 2)  # Celery counts two callbacks as one group


def test_one_callback_is_the_calls_child(pair: Pair) -> None:
    found = pair.send("add", 2, 3, link=pair.sig("add", 10))
    assert found.get(timeout=TIMEOUT) == 5
    (child,) = found.children
    assert child.get(timeout=TIMEOUT) == 15


def test_an_errback_is_sent_the_failed_id(pair: Pair) -> None:
    found = pair.send("fail", "builtin", link_error=pair.sig("errback"))
    wait_until(lambda: pair.notes(found.id) == [f"errback {found.id}"])


def test_an_errback_of_three_arguments_gets_the_exception(pair: Pair) -> None:
    found = pair.send("fail", "builtin", link_error=pair.sig("errback_of_three"))
    wait_until(lambda: pair.notes(found.id))
    assert pair.notes(found.id) == ["ValueError ('bad value', 42) ValueError: ('bad value', 42)"]


def test_an_ignored_result_is_not_stored(pair: Pair) -> None:
    for send in (
        lambda key: pair.send("ignored", key),
        lambda key: pair.send("note", key, "ran", ignore_result=True),
        lambda key: pair.app.send_task("interop.ignored", (key,), queue=pair.queue),
    ):
        key = fresh()
        found = send(key)
        wait_until(lambda key=key: pair.notes(key) == ["ran"])
        pair.send("add", 1, 1).get(timeout=TIMEOUT)  # the one before it is settled
        assert not pair.redis.exists(f"celery-task-meta-{found.id}")


def test_a_state_of_the_tasks_own_is_read(pair: Pair) -> None:
    key = fresh()
    found = pair.send("progress", key)
    wait_until(lambda: found.state == "PROGRESS")
    assert found.info == {"done": 1, "total": 2}
    pair.redis.rpush(f"note.{key}", "go on")
    assert found.get(timeout=TIMEOUT) == "finished"


def test_what_a_task_sends_is_its_child(pair: Pair) -> None:
    found = pair.send("spawn")
    id = found.get(timeout=TIMEOUT)
    (child,) = found.children
    assert child.id == id and child.get(timeout=TIMEOUT) == 3


def test_a_result_is_forgotten(pair: Pair) -> None:
    found = pair.send("add", 1, 2)
    found.get(timeout=TIMEOUT)
    found.forget()
    assert not pair.redis.exists(f"celery-task-meta-{found.id}")


# -- Celery's canvas, run here ---------------------------------------------------------------


@pytest.fixture
def mini(url: str) -> Iterator[Callable[..., Any]]:
    """Signatures of a Celery client for the minicelery worker."""
    app = make_app("celery", url)
    yield lambda name, *args: app.tasks[f"interop.{name}"].s(*args).set(queue="mini")
    app.close()


def test_a_chain_of_celerys_runs_to_its_end_here(mini: Callable[..., Any]) -> None:
    found = celery.chain(mini("add", 1, 2), mini("add", 3), mini("add", 4)).apply_async()
    assert found.get(timeout=TIMEOUT) == 10
    assert (found.parent.get(timeout=TIMEOUT), found.parent.parent.get(timeout=TIMEOUT)) == (6, 3)


def test_a_chain_of_celerys_goes_to_and_fro_between_the_libraries(mini: Callable[..., Any]) -> None:
    found = celery.chain(
        mini("add", 1, 2), mini("add", 3).set(queue="original"), mini("add", 4)
    ).apply_async()
    assert found.get(timeout=TIMEOUT) == 10


def test_a_group_of_celerys_is_gathered(mini: Callable[..., Any]) -> None:
    found = celery.group(mini("add", n, n) for n in range(10)).apply_async()
    assert found.get(timeout=TIMEOUT) == [2 * n for n in range(10)]


def test_a_failed_chain_of_celerys_raises_in_the_client(mini: Callable[..., Any]) -> None:
    found = celery.chain(mini("fail", "own"), mini("add", 4)).apply_async()
    with pytest.raises(OrderError):
        found.get(timeout=TIMEOUT)
