"""Remote control of real workers: every command, on every broker; answers while all children are busy.

Most tests share one worker for each broker, and leave it as they have found it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from minicelery.broker.post import Box, Letter
from minicelery.exceptions import OperationalError
from minicelery.remote.request import Request, encode_request, replies_box
from minicelery.remote.silence import no_answer
from tests.rabbit import RabbitServer
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.worker.conftest import _STAGE
from tests.worker.harness import Stage, WorkerProcess

NODE = "w0@test"
TIMEOUT = 20.0


class Remote:
    """A worker, and what asks it."""

    def __init__(self, stage: Stage, **options: Any) -> None:
        self.stage = stage
        self.node = options.setdefault("hostname", NODE)
        self.worker: WorkerProcess = stage.worker(**options)
        wait_until(lambda: self.ping(1.0), TIMEOUT)

    def ping(self, timeout: float = TIMEOUT) -> Any:
        """Its answer to `ping`; None where there is none, also as the broker is away."""
        with contextlib.suppress(OperationalError):
            return self.stage.app.control.inspect(destination=self.node, timeout=timeout).ping()

    def ask(self, command: str, **arguments: Any) -> Any:
        """The worker's answer."""
        inspect = self.stage.app.control.inspect(destination=self.node, timeout=TIMEOUT)
        return inspect._request(command, **arguments)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("stats")
        return found

    def queues(self) -> list[str]:
        return [queue["name"] for queue in self.ask("active_queues")]

    def running(self) -> list[str]:
        """The ids of the tasks that it tells to be running."""
        return [task["id"] for task in self.ask("active")]

    def kill_children(self) -> None:
        """SIGKILL them all, and wait for others."""
        before = self.worker.children()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(set(self.worker.children()) - set(before)) == len(before), TIMEOUT)


# -- workers that tests share --------------------------------------------------------------

Open = Callable[[str], Remote]
OPTIONS: dict[str, dict[str, Any]] = {
    "redis": {"conf": {"worker_pool_restarts": True}},
    "sqlite": {},
    "rabbit": {},
    "threads": {
        "pool": "threads",
        "hostname": "many@test",
        "queues": "many",
        "conf": {"worker_pool_restarts": True},
    },
    "scaled": {"concurrency": None, "autoscale": (2, 1), "hostname": "scaled@test"},
}


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Workers by the keys of OPTIONS; each is started when it is first asked for."""
    found: dict[str, Remote] = {}
    with contextlib.ExitStack() as ending:
        server = RedisServer().start()
        ending.callback(server.stop)

        def url_of(name: str, folder: Path) -> str:
            if name == "sqlite":
                return f"sqlite:///{folder}/queue.db"
            if name == "rabbit":
                rabbit: RabbitServer = request.getfixturevalue("rabbit_server")
                rabbit.add_vhost("remote")
                ending.callback(rabbit.delete_vhost, "remote")
                return rabbit.url("remote")
            return server.url(db=int(name != "redis"))

        def open_(name: str) -> Remote:
            if name not in found:
                folder = tmp_path_factory.mktemp(name)
                url = url_of(name, folder)
                stage = Stage(url, folder, server.url(db=2) if name == "rabbit" else "")
                ending.callback(stage.close)
                found[name] = Remote(stage, **OPTIONS[name])
            return found[name]

        yield open_


@pytest.fixture(params=["redis", "sqlite", "rabbit"])
def remote(opened: Open, request: pytest.FixtureRequest) -> Iterator[Remote]:
    """A worker of two children on each broker."""
    yield from _lent(opened(request.param), request)


@pytest.fixture
def redis_remote(opened: Open, request: pytest.FixtureRequest) -> Iterator[Remote]:
    """The same on Redis alone; `worker_pool_restarts` is on."""
    yield from _lent(opened("redis"), request)


def _lent(remote: Remote, request: pytest.FixtureRequest) -> Iterator[Remote]:
    request.node.stash[_STAGE] = remote.stage
    told = remote.stage.path.with_name("told")
    told.unlink(missing_ok=True)
    yield remote
    told.touch()
    for queue in remote.queues():
        if queue != "celery":
            remote.ask("cancel_consumer", queue=queue)
    assert remote.queues() == ["celery"]
    # Others take the places of those that the test has ended.
    wait_until(
        lambda: len(remote.stats()["pool"]["processes"]) == len(remote.worker.children()) == 2, TIMEOUT
    )


@contextlib.contextmanager
def busy(remote: Remote) -> Iterator[list[str]]:
    """Within this block all of its children run a task; their ids."""
    started = remote.stage.send_many("run_until_told", [()] * 2)
    wait_until(lambda: len(remote.running()) == 2, TIMEOUT)
    yield [result.id for result in started]
    remote.stage.tell()
    remote.stage.wait_for(started)


# -- every command -------------------------------------------------------------------------


def test_a_worker_tells_all_about_itself(remote: Remote) -> None:
    stage, ask = remote.stage, remote.ask
    before = ask("stats")["total"].get("run", 0)
    started = stage.send_many("run", [(30.0,)] * 2)
    wait_until(lambda: len(ask("active")) == 2, TIMEOUT)
    (first, second) = ask("active")
    assert {first["id"], second["id"]} == {result.id for result in started}
    assert {first["worker_pid"], second["worker_pid"]} == set(remote.worker.children())
    assert abs(first["time_start"] - time.time()) < 30
    fixed = {key: first[key] for key in ("name", "args", "kwargs", "type", "hostname", "acknowledged")}
    assert fixed == {
        "name": "run", "args": [30.0], "kwargs": {}, "type": "run", "hostname": NODE, "acknowledged": True,
    }  # fmt: skip
    assert first["delivery_info"]["routing_key"] == "celery"
    assert ask("active", safe=True)[0]["args"] == "(30.0,)"
    assert ask("query_task", ids=[first["id"], "unknown"]) == {first["id"]: ["active", first]}
    assert (ask("reserved"), ask("scheduled")) == ([], [])
    stats = ask("stats")
    assert (stats["pid"], stats["total"]["run"]) == (remote.worker.pid, before + 2)
    assert stats["pool"]["max-concurrency"] == 2
    assert set(stats["pool"]["processes"]) == set(remote.worker.children())
    assert 0 <= stats["uptime"] < 300
    assert stats["broker"]["transport"] == stage.url.partition(":")[0]
    assert int(stats["clock"]) > 0
    assert len(stats["rusage"]) == 16
    stage.app.control.terminate([result.id for result in started])
    assert stage.wait_for(started) == {"REVOKED": 2}
    assert {"run", "late_run"} <= set(ask("registered"))
    assert not [name for name in ask("registered") if name.startswith(("celery.", "minicelery."))]
    assert "run [max_retries=3 name=run]" in ask("registered", taskinfoitems=["max_retries", "name", "_x", 5])
    assert ask("conf")["broker_url"] == stage.app.broker.url
    assert len(ask("conf", with_defaults=True)) > 100
    assert ask("report")["ok"].startswith("software -> minicelery:")
    assert ask("clock")["clock"] > 0
    assert ask("memsample").endswith("MB")
    assert "one" in ask("hello", from_node="other@test", revoked=["one", 5])["revoked"]
    assert ask("hello", from_node=NODE) is None
    wait_until(lambda: "one" in ask("revoked"))


def test_a_worker_whose_children_are_all_busy_answers(remote: Remote) -> None:
    with busy(remote):
        for command in ("ping", "active", "stats", "active_queues", "clock", "conf", "registered", "report"):
            assert remote.ask(command)
        assert remote.ask("add_consumer", queue="more")["ok"]
        assert remote.ask("cancel_consumer", queue="more")["ok"]
        assert len(remote.running()) == 2  # nobody has been waited for


def test_a_solo_worker_answers_while_it_runs_a_task(leased_stage: Stage) -> None:
    stage, remote = leased_stage, Remote(leased_stage, pool="solo")
    result = stage.send("run_until_told")
    wait_until(lambda: remote.running() == [result.id])
    assert remote.stats()["pid"] == remote.worker.pid
    assert remote.ask("add_consumer", queue="more") == {"ok": "add consumer more"}
    stage.tell()
    later = stage.send("run", 0.0, queue="more")
    assert stage.wait_for([result, later]) == {"SUCCESS": 2}
    assert "the solo pool can't grow" in remote.ask("pool_grow")["error"]
    stage.app.control.shutdown(destination=[NODE])
    assert remote.worker.wait() == 0


def test_queues_are_added_and_cancelled_while_a_worker_runs(remote: Remote) -> None:
    stage, ask = remote.stage, remote.ask
    waiting = stage.send("run", 0.0, queue="more")
    assert ask("add_consumer", queue="more") == {"ok": "add consumer more"}
    assert stage.wait_for([waiting]) == {"SUCCESS": 1}
    assert remote.queues() == ["celery", "more"]
    assert ask("cancel_consumer", queue="celery") == {"ok": "no longer consuming from celery"}
    sent = []

    def nobody_serves_it() -> bool:
        sent.append(stage.send("run", 0.0))
        stage.wait_for(stage.send_many("run", [(0.0,)] * 10, queue="more"))
        return stage.states(sent[-1:]) == {"PENDING": 1}

    wait_until(nobody_serves_it, TIMEOUT)  # children hear of it a moment after the reply
    assert ask("cancel_consumer", queue="more") == {"ok": "no longer consuming from more"}
    assert remote.queues() == []
    remote.kill_children()
    assert stage.states(sent[-1:]) == {"PENDING": 1}
    ask("add_consumer", queue="celery")
    assert set(stage.wait_for(sent)) == {"SUCCESS"}


@pytest.mark.parametrize(("name", "queue"), [("redis", "a hash"), ("rabbit", "amq.reserved")])
def test_a_queue_that_the_broker_refuses_is_refused_and_the_others_are_served(
    opened: Open, name: str, queue: str
) -> None:
    remote = opened(name)
    if name == "redis":
        with redis.Redis.from_url(remote.stage.url) as client:
            client.hset(queue, "a", "b")
    assert "OperationalError" in remote.ask("add_consumer", queue=queue)["error"]
    assert remote.queues() == ["celery"]
    assert remote.stage.wait_for(remote.stage.send_many("run", [(0.0,)] * 4)) == {"SUCCESS": 4}
    assert "no longer" in remote.ask("cancel_consumer", queue=queue)["ok"]


def test_a_busy_child_obeys_once_it_is_free_and_what_it_runs_is_run_once(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote
    long = stage.send_many("late_run", [(1.0,)] * 2)
    wait_until(lambda: all(stage.runs()[one.id] for one in long))
    remote.ask("add_consumer", queue="more")
    other = stage.send("run", 0.0, queue="more")
    assert stage.wait_for([*long, other]) == {"SUCCESS": 3}
    assert {stage.runs()[one.id] for one in (*long, other)} == {1}
    remote.ask("cancel_consumer", queue="more")


def test_the_pool_grows_and_shrinks(redis_remote: Remote) -> None:
    remote = redis_remote
    assert remote.ask("pool_grow", n=2) == {"ok": "pool will grow"}
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 4, TIMEOUT)
    assert remote.stats()["pool"]["max-concurrency"] == 4
    assert remote.ask("pool_shrink", n=2) == {"ok": "pool will shrink"}
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 2, TIMEOUT)
    for refused in (
        remote.ask("pool_grow", n=1000),
        remote.ask("pool_shrink", n=2),
        remote.ask("pool_grow", n=0),
    ):
        assert "by" in refused["error"]
    assert "TypeError" in remote.ask("pool_grow", n="x")["error"]
    assert remote.ask("autoscale", max=3, min=1) == {"error": "ValueError('Autoscale not enabled')"}


def test_the_bounds_of_a_pool_that_follows_the_work_are_moved(opened: Open) -> None:
    remote = opened("scaled")
    assert remote.stats()["autoscaler"] == {"max": 2, "min": 1, "current": 1, "qty": 0}
    assert remote.ask("autoscale", max=4, min=3) == {"ok": "autoscale now max=4 min=3"}
    wait_until(lambda: len(remote.worker.children()) == 3, TIMEOUT)
    assert remote.ask("autoscale", max=1) == {"ok": "autoscale now max=1 min=1"}
    wait_until(lambda: len(remote.worker.children()) == 1, TIMEOUT)
    assert "autoscale" in remote.ask("pool_grow")["error"]
    assert "max=" in remote.ask("autoscale", max=1000)["error"]


def test_a_command_knows_what_the_one_before_it_has_changed(opened: Open) -> None:
    remote = opened("scaled")
    pid = remote.worker.pid

    def knows(least: int) -> bool:
        os.kill(pid, signal.SIGSTOP)
        goes_on = threading.Timer(0.2, os.kill, (pid, signal.SIGCONT))
        goes_on.start()
        remote.ask("autoscale", max=4, min=least)
        answer = remote.ask("autoscale", max=3)
        goes_on.join()
        return bool(answer == {"ok": f"autoscale now max=3 min={least}"})

    # It waits for half a second, in which the parent does not run if the whole machine stands still.
    assert any(knows(least) for least in (3, 2, 3))


def test_a_rate_limit_holds_for_children_that_are_there_and_for_those_to_come(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote
    assert remote.ask("rate_limit", task_name="run", rate_limit="4/s") == {
        "ok": "new rate limit set successfully"
    }

    def seconds() -> float:
        began = time.monotonic()
        stage.wait_for(stage.send_many("run", [(0.0,)] * 4))
        return time.monotonic() - began

    wait_until(lambda: seconds() > 0.7)  # children hear of it a moment after the reply
    remote.kill_children()
    assert seconds() > 0.7
    assert "run [rate_limit=4/s]" in remote.ask("registered", taskinfoitems=["rate_limit"])
    remote.ask("rate_limit", task_name="run", rate_limit="1/h")
    disabled = remote.ask("rate_limit", task_name="run", rate_limit=0)
    assert disabled == {"ok": "rate limit disabled successfully"}
    assert stage.wait_for(stage.send_many("run", [(0.0,)] * 4)) == {"SUCCESS": 4}
    assert remote.ask("rate_limit", task_name="nope", rate_limit="1/s") == {"error": "unknown task"}
    assert "expected" in remote.ask("rate_limit", task_name="run", rate_limit="x/q")["error"]


def test_a_rate_limit_that_the_broker_can_not_keep_is_refused(opened: Open) -> None:
    remote = opened("rabbit")
    assert "task_limits_url" in remote.ask("rate_limit", task_name="run", rate_limit="1/h")["error"]
    assert remote.stage.wait_for(remote.stage.send_many("run", [(0.0,)] * 3)) == {"SUCCESS": 3}


def test_time_limits_hold_for_children_that_are_there_and_for_those_to_come(remote: Remote) -> None:
    stage = remote.stage
    assert remote.ask("time_limit", task_name="run", soft=0.2, hard=30) == {
        "ok": "time limits set successfully"
    }
    # A child hears of it a moment after the reply.
    wait_until(lambda: stage.wait_for(stage.send_many("run", [(1.0,)] * 2)) == {"FAILURE": 2})
    remote.kill_children()
    limited = stage.send("run", 30.0)
    assert stage.wait_for([limited]) == {"FAILURE": 1}
    assert "SoftTimeLimitExceeded" in repr(limited.result)
    remote.ask("time_limit", task_name="run")
    wait_until(lambda: stage.wait_for(stage.send_many("run", [(0.4,)] * 2)) == {"SUCCESS": 2})
    assert remote.ask("time_limit", task_name="nope", soft=1) == {"error": "unknown task"}
    for wrong in ({"soft": -1}, {"hard": "x"}, {"soft": 5, "hard": 1}, {"hard": True}):
        assert "error" in remote.ask("time_limit", task_name="run", **wrong)


def test_limits_that_a_pool_can_not_enforce_are_refused(opened: Open) -> None:
    assert "threads" in opened("threads").ask("time_limit", task_name="run", soft=1)["error"]


def test_a_revoked_task_is_not_run_and_one_that_runs_is_ended(remote: Remote) -> None:
    stage = remote.stage
    running = stage.send_many("run", [(30.0,)] * 2)
    wait_until(lambda: len(remote.running()) == 2, TIMEOUT)
    waiting = stage.send("run", 0.0)
    # Without the mark of minicelery's own clients: as Celery's send it.
    assert remote.ask("revoke", task_id=waiting.id) == {"ok": f"tasks {{'{waiting.id}'}} flagged as revoked"}
    assert remote.ask("revoke", task_id=[running[0].id], terminate=1, signal="SIGTERM") == {
        "ok": f"terminate: {running[0].id}"
    }
    found = stage.app.control.terminate(running[1].id, reply=True, timeout=TIMEOUT, limit=1)
    assert found == [{NODE: {"ok": f"terminate: {running[1].id}"}}]
    assert stage.wait_for([*running, waiting]) == {"REVOKED": 3}
    assert stage.runs()[waiting.id] == 0
    assert remote.ask("terminate", task_id="x", signal="KILL") == {"ok": "terminate: tasks unknown"}
    assert "SIGWINCH" in remote.ask("revoke", task_id="x", signal="SIGWINCH")["error"]
    assert "TypeError" in remote.ask("revoke", task_id=5)["error"]


def test_calls_of_revoked_stamps_are_not_run_and_those_that_run_are_ended(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote

    def stamped(seconds: float, stamp: str) -> Any:
        return stage.app.tasks["run"].apply_async((seconds,), stamped_headers=["customer"], customer=stamp)

    running = [stamped(30.0, "a"), stamped(30.0, "a")]
    wait_until(lambda: len(remote.running()) == 2, TIMEOUT)
    waiting, other = stamped(0.0, "b"), stamped(0.0, "c")
    told = remote.ask("revoke_by_stamped_headers", headers={"customer": ["b", "x"]})
    assert told == {"ok": "headers {'customer': ['b', 'x']} flagged as revoked, but not terminated"}
    told = remote.ask("revoke_by_stamped_headers", headers={"customer": "a"}, terminate=True)
    assert told["ok"].endswith("revoked")
    assert stage.wait_for([*running, waiting, other]) == {"REVOKED": 3, "SUCCESS": 1}
    assert "TypeError" in remote.ask("revoke_by_stamped_headers", headers=5)["error"]


def test_events_are_switched_once(redis_remote: Remote) -> None:
    said = [
        redis_remote.ask(command)["ok"]
        for command in ("enable_events", "enable_events", "disable_events", "disable_events")
    ]
    assert said == [
        "task events enabled", "task events already enabled", "task events disabled", "task events already disabled",
    ]  # fmt: skip
    assert redis_remote.ask("heartbeat") is None


def test_events_are_on_in_children_that_are_there_and_in_those_to_come(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote
    with stage.app.broker.post.listen([Box("celeryev", "topic", "celeryev.test", "task.#")]) as listening:
        heard: list[tuple[str, str]] = []

        def ended(id: str) -> bool:
            for letter in listening.take(0.05):
                found = letter.content if isinstance(letter.content, list) else [letter.content]
                heard.extend((event["type"], event["uuid"]) for event in found)
            return ("task-succeeded", id) in heard

        def told_of() -> bool:
            one = stage.send("run", 0.0)
            stage.wait_for([one])
            end = time.monotonic() + 0.3
            while not ended(one.id) and time.monotonic() < end:
                pass
            return ("task-succeeded", one.id) in heard

        remote.ask("enable_events")
        wait_until(told_of, TIMEOUT)  # children hear of it a moment after the reply
        remote.kill_children()
        wait_until(told_of, TIMEOUT)
        remote.ask("disable_events")
        wait_until(lambda: not told_of(), TIMEOUT)


@pytest.mark.parametrize(("name", "queue"), [("redis", "celery"), ("threads", "many")])
def test_the_pool_is_restarted_where_the_settings_allow_it(opened: Open, name: str, queue: str) -> None:
    remote = opened(name)
    before = set(remote.worker.children())
    long = remote.stage.send("run", 1.0, queue=queue)
    wait_until(lambda: remote.stage.runs()[long.id])
    assert remote.ask("pool_restart") == {"ok": "reload started"}
    wait_until(
        lambda: not before & (now := set(remote.worker.children())) and len(now) == len(before), TIMEOUT
    )
    assert remote.stage.wait_for([long, remote.stage.send("run", 0.0, queue=queue)]) == {"SUCCESS": 2}
    assert remote.stage.runs()[long.id] == 1


def test_the_pool_is_not_restarted_where_nobody_has_allowed_it(opened: Open) -> None:
    assert opened("sqlite").ask("pool_restart") == {"error": "ValueError('Pool restarts not enabled')"}


def test_modules_are_imported_anew_for_children_and_agent(redis_remote: Remote) -> None:
    remote = redis_remote
    children, agent = set(remote.worker.children()), remote.worker.agent()
    assert remote.ask("pool_restart", modules=["colorsys"], reload=True) == {"ok": "reload started"}
    wait_until(lambda: not children & set(remote.worker.children()), TIMEOUT)
    wait_until(lambda: remote.worker.agent() != agent, TIMEOUT)
    wait_until(lambda: remote.ping(1.0), TIMEOUT)
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 2, TIMEOUT)
    remote.ask("pool_restart", modules=["tests.worker.apps.no_such_module"])
    assert wait_until(lambda: "no_such_module" in remote.worker.output())
    assert remote.ping()


def test_a_worker_is_stopped_after_what_it_runs(redis_stage: Stage) -> None:
    stage = redis_stage
    remote = Remote(stage)
    running = stage.send("run", 0.8)
    wait_until(lambda: stage.runs()[running.id])
    assert stage.app.control.shutdown(destination=[NODE], reply=True, timeout=0.2) == []
    assert remote.worker.wait() == 0
    assert stage.states([running]) == {"SUCCESS": 1}


def test_a_destination_and_a_pattern_choose_among_workers(opened: Open) -> None:
    first, second = opened("threads"), opened("scaled")
    assert first.stage.url == second.stage.url
    control, pong = first.stage.app.control, {"ok": "pong"}
    assert len(control.ping(timeout=TIMEOUT, limit=2)) == 2
    assert control.ping(destination=[first.node], timeout=TIMEOUT) == [{first.node: pong}]
    assert control.inspect(pattern="sc*", timeout=TIMEOUT, limit=1).ping() == {second.node: pong}
    assert control.inspect(pattern="(many|scaled)@.*", matcher="pcre", timeout=TIMEOUT, limit=2).ping() == {
        first.node: pong, second.node: pong,
    }  # fmt: skip
    assert control.inspect(first.node, timeout=TIMEOUT).ping() == pong


def test_a_worker_without_remote_control_says_nothing(redis_stage: Stage) -> None:
    redis_stage.worker(conf={"worker_enable_remote_control": False})
    # Redis tells that nobody listens.
    assert redis_stage.app.control.inspect(timeout=TIMEOUT).ping() is None


def test_silence_on_rabbitmq_is_explained_by_who_consumes(rabbit_stage: Stage) -> None:
    assert "no worker consumes from there" in no_answer(rabbit_stage.app)
    rabbit_stage.worker(concurrency=1, conf={"worker_enable_remote_control": False})
    wait_until(lambda: "1 consumer is there" in no_answer(rabbit_stage.app))


def test_what_was_changed_outlives_the_agent(redis_remote: Remote) -> None:
    remote = redis_remote
    remote.ask("add_consumer", queue="more")
    remote.ask("enable_events")
    os.kill(remote.worker.agent(), 9)
    wait_until(lambda: remote.ping(1.0), TIMEOUT)
    assert remote.queues() == ["celery", "more"]
    assert remote.ask("enable_events") == {"ok": "task events already enabled"}
    remote.ask("disable_events")
    remote.ask("cancel_consumer", queue="more")


# -- what nobody should send -------------------------------------------------------------


def _asked(**body: Any) -> bytes:
    return json.dumps({"method": "ping", "ticket": "t", **body}).encode()


def _answered_at(exchange: Any, key: Any) -> bytes:
    return _asked(reply_to={"exchange": exchange, "routing_key": key})


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "half of it": b"{",
    "null": b"null",
    "a list": b"[]",
    "a number": b"5",
    "text": b'"ping"',
    "no UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "deep arguments": b'{"method": "ping", "arguments": {"a": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}}",
    "huge": b'{"method": "' + b"x" * 5_000_000 + b'"}',
    "a method that is a number": _asked(method=5),
    "a method that is an attribute": _asked(method="__class__"),
    "a method of 200 kB": _asked(method="x" * 200_000),
    "a method that a terminal obeys": _asked(method="\x1b[2J\n\x07"),
    "arguments in a list": _asked(arguments=[1]),
    "an argument that is there twice": _asked(method="report", arguments={"state": 1}),
    "an argument that a terminal obeys": _asked(method="report", arguments={"\x1b[2J\n": 1}),
    "a destination that is text": _asked(destination="w"),
    "a pattern that takes for ever": _asked(pattern="(a+)+$", matcher="pcre"),
    "a matcher that is none": _asked(pattern="w", matcher="sql"),
    "a ticket of 1 MB": _asked(method="pool_grow", ticket="t" * 1_000_000, arguments={"n": "x"}),
    "NaN": b'{"method": "time_limit", "arguments": {"task_name": "run", "soft": NaN, "hard": Infinity}}',
    "a number beyond all floats": b'{"method": "pool_grow", "arguments": {"n": 1' + b"0" * 400 + b"}}",
    "a reply to text": _asked(reply_to="x"),
    "a reply to another exchange": _answered_at("celery", "celery"),
    "a reply to an exchange that is not there": _answered_at("reply.nobody's", "k"),
    "a reply to an exchange of another kind": _answered_at("celeryev", "worker.online"),
    "a reply to a name that is too long": _answered_at("reply." + "x" * 300, "k"),
    "a reply to half a character": _answered_at("", "\ud800"),
    "a queue of 100 kB": _asked(method="add_consumer", arguments={"queue": "q" * 100_000}),
    "a queue without a name": _asked(method="add_consumer", arguments={"queue": ""}),
    "stamps of 9 kB": _asked(
        method="revoke_by_stamped_headers", arguments={"headers": {"x": ["y" * 9000]}}
    ),
    "stamps without end": _asked(
        method="revoke_by_stamped_headers", arguments={"headers": {"x": list(range(5000))}}
    ),
    "ids that are none": _asked(method="revoke", arguments={"task_id": [1, None]}),
    "a signal that is none": _asked(method="terminate", arguments={"task_id": "x", "signal": 10**30}),
    "attributes that are none": _asked(method="registered", arguments={"taskinfoitems": ["__dict__", 5]}),
}  # fmt: skip


def test_requests_that_are_none_never_hurt(remote: Remote) -> None:
    agent, children, before = remote.worker.agent(), remote.worker.children(), len(remote.worker.output())
    post = remote.stage.app.broker.post
    for body in HOSTILE.values():
        post.send([Letter("celery.pidbox", "", body, {"clock": "soon", "expires": [], "ticket": {}})])
    assert remote.ask("no_such_command") == {"error": "KeyError('no_such_command')"}
    assert "TypeError" in remote.ask("report", foo=1)["error"]
    assert remote.ask("ping", foo=1) == {"ok": "pong"}
    # One request that can't be answered leaves the others' replies alone: they leave together.
    post.send([Letter("celery.pidbox", "", body, {}) for body in HOSTILE.values() if len(body) < 10_000])
    assert remote.ask("ping") == {"ok": "pong"}
    assert (remote.worker.agent(), remote.worker.children()) == (agent, children)
    assert remote.stage.wait_for([remote.stage.send("run", 0.0)]) == {"SUCCESS": 1}
    said = remote.worker.output()[before:]
    assert "Traceback" not in said
    assert not {"\x1b", "\x07"} & set(said)


def test_an_order_that_comes_again_is_answered_and_not_obeyed_again(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote
    box = replies_box("asker")
    request = Request("pool_grow", {"n": 1}, ticket="once", reply_to=(box.exchange, "asker"))
    with stage.app.broker.post.listen([box]) as listening:
        stage.app.broker.post.send([encode_request(request, 1, 1.0)] * 3)
        replies: list[Any] = []
        wait_until(lambda: replies.extend(listening.take(0.5)) or len(replies) == 3)
    assert [reply.content for reply in replies] == [{NODE: {"ok": "pool will grow"}}] * 3
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 3, TIMEOUT)
    assert remote.stats()["pool"]["max-concurrency"] == 3
    remote.ask("pool_shrink", n=1)
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 2, TIMEOUT)


def test_an_order_without_a_reply_is_not_obeyed_again_either(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote
    with stage.app.broker.post.listen([Box("celery.pidbox", "fanout", "spy.celery.pidbox")]) as spying:
        stage.app.control.broadcast("pool_grow", {"n": 1})
        stage.app.control.broadcast("note", {"what": "grown"})
        sent: list[Letter] = []
        wait_until(lambda: sent.extend(spying.take(0.5)) or len(sent) == 2)
    stage.app.broker.post.send([Letter(one.exchange, "", one.body, one.headers) for one in sent] * 2)
    wait_until(lambda: remote.stats()["pool"]["max-concurrency"] == 3)
    wait_until(lambda: stage.traces("note", "grown"))
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 3, TIMEOUT)
    assert len(stage.traces("note", "grown")) == 1
    remote.ask("pool_shrink", n=1)
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 2, TIMEOUT)


def test_a_flood_of_orders_does_not_stop_a_worker_whose_child_hears_nothing(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote
    held = stage.send("run_in_c", 2.0)
    wait_until(lambda: stage.runs()[held.id])
    letters = [
        encode_request(Request("add_consumer", {"queue": f"queue-{number % 50}-{'x' * 200}"}), 1, 1.0)
        if number % 2
        else encode_request(
            Request("cancel_consumer", {"queue": f"queue-{number % 50 + 1}-{'x' * 200}"}), 1, 1.0
        )
        for number in range(1000)
    ]
    for start in range(0, 1000, 100):
        stage.app.broker.post.send(letters[start : start + 100])
    assert remote.ask("ping") == {"ok": "pong"}
    remote.ask("pool_grow", n=1)  # the parent is not held up either
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 3, TIMEOUT)
    assert stage.wait_for([held, stage.send("run", 0.0)]) == {"SUCCESS": 2}
    remote.ask("pool_shrink", n=1)
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == 2, TIMEOUT)


# -- outages -------------------------------------------------------------------------------


def _comes_back(remote: Remote) -> None:
    """It answers again, and obeys an order once."""
    assert wait_until(lambda: remote.ping(1.0), TIMEOUT) == {"ok": "pong"}
    size = remote.stats()["pool"]["max-concurrency"]
    assert remote.ask("pool_grow", n=1) == {"ok": "pool will grow"}
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == size + 1, TIMEOUT)
    assert remote.stats()["pool"]["max-concurrency"] == size + 1
    remote.stage.wait_for([remote.stage.send("run", 0.0)])
    remote.ask("pool_shrink", n=1)
    wait_until(lambda: len(remote.stats()["pool"]["processes"]) == size, TIMEOUT)


def test_remote_control_comes_back_after_redis(outage_stage: Stage, server: RedisServer) -> None:
    remote = Remote(outage_stage, concurrency=1)
    server.kill()
    server.start()
    _comes_back(remote)


def test_remote_control_comes_back_where_rabbitmq_closes_connections(
    opened: Open, rabbit_server: RabbitServer
) -> None:
    remote = opened("rabbit")
    closed = rabbit_server.eval(
        'length([rabbit_networking:close_connection(Pid, "by the test")'
        ' || [{pid, Pid}, {vhost, <<"remote">>}] <- rabbit_networking:connection_info_all([pid, vhost])])'
    )
    assert int(closed) >= 3  # two children, and the one that hears requests
    _comes_back(remote)


def test_remote_control_comes_back_after_a_lock_on_the_file(opened: Open) -> None:
    remote = opened("sqlite")
    path = remote.stage.url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(1.0)
        connection.execute("ROLLBACK")
    _comes_back(remote)


# -- commands of the app's own -----------------------------------------------------------


def test_a_command_of_the_apps_own_is_asked_for_by_its_name_and_holds_nobody_up(redis_remote: Remote) -> None:
    stage, remote = redis_remote.stage, redis_remote
    inspect = stage.app.control.inspect(timeout=TIMEOUT, limit=1)
    assert inspect.greeting(name="you") == {NODE: {"hello": "you", "by": NODE, "queues": ["celery"]}}
    stage.app.control.broadcast("note", {"what": "told", "until_told": True})
    assert remote.ask("ping") == {"ok": "pong"}
    assert not stage.traces("note", "told")
    stage.tell()
    wait_until(lambda: stage.traces("note", "told"))
    assert "prefetch" in remote.ask("wants_more")["error"]
