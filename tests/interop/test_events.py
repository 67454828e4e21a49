"""Events between the libraries: each hears the other's workers, and both see the same fleet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.interop.pair import close_connections
from tests.interop.scripts.telling import make_app
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(240)  # the first of them starts workers and waits for what they tell

ROOT = Path(__file__).parents[2]
LIBRARIES = ("celery", "minicelery")
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "add": ((2, 3), {}),
    "fail": ((), {}),
    "again": ((), {}),
    "refuse": ((), {}),
    "nobody": ((), {}),
    "part": ((4, 5), {"root_id": "the-root", "parent_id": "the-parent", "shadow": "shown so"}),
    "too late": ((1, 1), {"expires": 0.001, "countdown": 0.3}),
}
LAST = {"succeeded", "failed", "revoked", "rejected"}
CHANGING = {
    "timestamp",
    "local_received",
    "clock",
    "uuid",
    "pid",
    "hostname",
    "runtime",
    "traceback",
    "root_id",
}


@dataclass
class Hall:
    """A worker of each library on one broker, and what each library has heard of them."""

    apps: dict[str, Any]
    heard: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in LIBRARIES})
    states: dict[str, Any] = field(default_factory=dict)
    ids: dict[tuple[str, str], str] = field(default_factory=dict)  # worker, call -> task

    def events(self, listener: str, worker: str, call: str) -> list[dict[str, Any]]:
        """What `listener` has heard of a call, from the worker."""
        id = self.ids[worker, call]
        return [
            event
            for event in self.heard[listener]
            if event.get("uuid") == id and event["type"] != "task-sent"
        ]

    def types(self, listener: str, worker: str, call: str) -> list[str]:
        return [event["type"].partition("-")[2] for event in self.events(listener, worker, call)]


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def hall(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    folder = tmp_path_factory.mktemp("hall")
    if request.param == "redis":
        broker = request.getfixturevalue("own_redis").url(db=7)
    else:
        server = request.getfixturevalue("rabbit_server")
        server.add_vhost("telling")
        broker = server.url("telling")
    apps = {name: make_app(name, broker, f"telling.{name}") for name in LIBRARIES}
    hall = Hall(apps)
    workers = [_worker(name, broker, folder) for name in LIBRARIES]
    listening = []
    try:
        for name, app in apps.items():
            hall.states[name] = app.events.State()
            listening.append(_listen(hall, name, app))
        online = {f"{name}@telling" for name in LIBRARIES}
        wait_until(
            lambda: all(online <= {event["hostname"] for event in hall.heard[name]} for name in LIBRARIES), 90
        )
        # The first event of all makes a connection, for which it may not wait long.
        for worker in apps:
            wait_until(lambda worker=worker: _is_told_of(hall, worker), 60)
        for worker, app in apps.items():
            for call, (args, options) in CALLS.items():
                if (
                    call == "too late"
                ):  # the server drops what Celery has sent, unless the worker takes it at once
                    wait_until(lambda: _all_have_ended(hall), 60)
                task = "telling.add" if call in ("part", "too late") else f"telling.{call}"
                hall.ids[worker, call] = app.send_task(task, args, queue=f"telling.{worker}", **options).id
        wait_until(lambda: _all_have_ended(hall), 60)
        for worker in apps:  # and with that of all that was told before
            wait_until(lambda worker=worker: _is_told_of(hall, worker), 60)
        wait_until(lambda: all(_beats(hall, name) >= 4 for name in LIBRARIES), 30)
        yield hall
    finally:
        for receiver, _ in listening:
            receiver.should_stop = True
        for process in workers:
            process.send_signal(signal.SIGQUIT)
        for process in workers:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        for receiver, thread in listening:
            thread.join(5)
            receiver.connection_given.release()
        for app in apps.values():
            app.close()
        close_connections(apps["celery"])
        if request.param == "rabbitmq":
            server.delete_vhost("telling")


def _worker(library: str, broker: str, folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["-P", "solo", "-E", "--heartbeat-interval", "1", "-n", f"{library}@telling", "-l", "INFO"]
    if library == "celery":
        arguments += ["--without-gossip", "--without-mingle"]
    environment = {**os.environ, "LIBRARY": library, "BROKER": broker, "QUEUE": f"telling.{library}"}
    with open(folder / f"{library}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", library, "-A", "tests.interop.scripts.telling", "worker", *arguments],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _listen(hall: Hall, name: str, app: Any) -> tuple[Any, threading.Thread]:
    def hear(event: dict[str, Any]) -> None:
        hall.heard[name].append(dict(event))
        hall.states[name].event(event)

    connection = app.connection()
    receiver = app.events.Receiver(connection, handlers={"*": hear})

    def capture() -> None:
        with suppress(Exception):  # Celery's, whose connection is closed under it at the end
            receiver.capture(limit=None, timeout=None, wakeup=False)

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    receiver.connection_given = connection
    return receiver, thread


def _all_have_ended(hall: Hall) -> bool:
    """Whether everybody has heard of the end of each call."""
    return all(LAST & set(hall.types(name, *key)) for name in LIBRARIES for key in hall.ids)


def _is_told_of(hall: Hall, worker: str) -> bool:
    """Send the worker a call; whether everybody hears of its end within some seconds."""
    hall.ids[worker, "in between"] = (
        hall.apps[worker].send_task("telling.add", (0, 0), queue=f"telling.{worker}").id
    )
    try:
        wait_until(
            lambda: all("succeeded" in hall.types(name, worker, "in between") for name in LIBRARIES), 5
        )
    except AssertionError:
        return False
    finally:
        del hall.ids[worker, "in between"]
    return True


def _beats(hall: Hall, name: str) -> int:
    return sum(event["type"] == "worker-heartbeat" for event in hall.heard[name])


@pytest.mark.parametrize("call", CALLS)
def test_both_workers_tell_the_same_of_a_call(hall: Hall, call: str) -> None:
    ours, theirs = (hall.events("celery", worker, call) for worker in ("minicelery", "celery"))
    if call in ("again", "too late"):  # Celery's workers fetch what is delayed, and tell so before its time
        kinds = [event["type"] for event in ours]
        if call == "again":
            assert sorted(kinds) == sorted(event["type"] for event in theirs)
        else:
            assert kinds == ["task-revoked"]
        theirs = [event for event in theirs if event["type"] in kinds]
        ours, theirs = (sorted(events, key=lambda event: event["type"]) for events in (ours, theirs))
    assert [event["type"] for event in ours] == [event["type"] for event in theirs]
    changing = CHANGING | {"again": {"exception", "eta", "parent_id"}, "refuse": {"exception"}}.get(
        call, set()
    )
    if call == "part":
        changing -= {"root_id"}
        assert (ours[0]["name"], ours[0]["root_id"], ours[0]["parent_id"]) == (
            "shown so",
            "the-root",
            "the-parent",
        )
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other)
        assert {name: mine[name] for name in mine if name not in changing} == {
            name: other[name] for name in other if name not in changing
        }


@pytest.mark.parametrize("worker", LIBRARIES)
def test_both_libraries_hear_the_same(hall: Hall, worker: str) -> None:
    for call in CALLS:
        told = [
            [{name: event[name] for name in event if name != "local_received"} for event in events]
            for events in (hall.events(listener, worker, call) for listener in LIBRARIES)
        ]
        assert told[0] == told[1]


def test_the_workers_look_alive_to_both(hall: Hall) -> None:
    expected = {f"{name}@telling": (1.0, 0, True) for name in LIBRARIES}
    for state in hall.states.values():
        # A worker that has not been heard for two seconds is not alive: until it is heard again.
        wait_until(
            lambda state=state: {
                worker.hostname: (worker.freq, worker.active, worker.processed > 0)
                for worker in state.alive_workers()
            } == expected,
            30,
        )  # fmt: skip
    beats = {
        event["hostname"]: [name for name in event if name != "local_received"]
        for event in hall.heard["celery"]
        if event["type"] == "worker-heartbeat"
    }
    assert beats["minicelery@telling"] == beats["celery@telling"]


@pytest.mark.parametrize("worker", LIBRARIES)
def test_the_tasks_look_the_same_to_both(hall: Hall, worker: str) -> None:
    expected = {
        "add": "SUCCESS", "fail": "FAILURE", "again": "SUCCESS", "refuse": "FAILURE", "nobody": "FAILURE",
        "part": "SUCCESS", "too late": "REVOKED",
    }  # fmt: skip
    for call, state in expected.items():
        found = [seen.tasks[hall.ids[worker, call]] for seen in hall.states.values()]
        assert [task.state for task in found] == [state, state], call
        names = "name args kwargs retries result exception runtime worker client routing_key".split()
        one, other = ([getattr(task, name) for name in names if name != "worker"] for task in found)
        assert one == other


@pytest.mark.parametrize("worker", LIBRARIES)
def test_both_clients_tell_of_what_they_send(hall: Hall, worker: str) -> None:
    id = hall.ids[worker, "add"]
    for listener in LIBRARIES:
        (event,) = [
            event for event in hall.heard[listener] if event["type"] == "task-sent" and event["uuid"] == id
        ]
        assert (event["name"], event["args"], event["queue"]) == (
            "telling.add",
            "(2, 3)",
            f"telling.{worker}",
        )
        assert event["hostname"].startswith("gen")
