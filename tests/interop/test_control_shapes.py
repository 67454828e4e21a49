"""Each remote command's reply, of Celery's worker and of minicelery's, compared in its keys and types.

Asked by clients of both libraries, and by both command lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click
import pytest

from minicelery.cli import main
from minicelery.remote import Panel
from tests.interop.pair import LIBRARIES, ROOT, TIMEOUT, Pair, Site, case, fresh
from tests.interop.tasks import QUEUES, environment
from tests.waiting import wait_until

THEIRS: Any = pytest.importorskip("celery.worker.control", reason="real Celery is the other side").Panel

pytestmark = pytest.mark.timeout(180)  # the first of them may start servers and workers

NOT_SERVED = {"memdump", "objgraph", "election"}


class Row(NamedTuple):
    """A command as both workers answer it."""

    command: str
    arguments: dict[str, Any] = {}
    same: bool = True  # keys and types; else only the kind of the whole is compared


ROWS = {
    "ping": Row("ping"),
    "ping with an argument there is not": Row("ping", {"no": 1}),
    "active": Row("active"),
    "active, safe": Row("active", {"safe": True}),
    "dump_active": Row("dump_active"),
    "reserved": Row("reserved"),
    "dump_reserved": Row("dump_reserved"),
    "scheduled": Row("scheduled"),
    "dump_schedule": Row("dump_schedule"),
    "query_task": Row("query_task", {"ids": ["RUNNING", "unknown"]}),
    "query_task of one": Row("query_task", {"ids": "RUNNING"}),
    "registered": Row("registered"),
    "registered with attributes": Row("registered", {"taskinfoitems": ["max_retries", "no"]}),
    "registered with builtins": Row("registered", {"builtins": True}),
    "dump_tasks": Row("dump_tasks"),
    "stats": Row("stats"),
    "active_queues": Row("active_queues"),
    "revoked": Row("revoked"),
    "dump_revoked": Row("dump_revoked"),
    "conf": Row("conf", same=False),  # of each library's own settings
    "conf with defaults": Row("conf", {"with_defaults": True}, same=False),
    "dump_conf": Row("dump_conf", same=False),
    "report": Row("report"),
    "report with an argument there is not": Row("report", {"no": 1}),
    "clock": Row("clock"),
    "hello": Row("hello", {"from_node": "other@host", "revoked": {"told-by-another": 1.0}}),
    "memsample": Row("memsample"),
    "revoke": Row("revoke", {"task_id": "no-such-id"}),
    "revoke several": Row("revoke", {"task_id": ["no-such-id", "nor-this"]}),
    "revoke none": Row("revoke", {"task_id": []}),
    "revoke without": Row("revoke"),
    "revoke and terminate": Row("revoke", {"task_id": "no-such-id", "terminate": True, "signal": "KILL"}),
    "terminate": Row("terminate", {"signal": "KILL", "task_id": ["no-such-id"]}),
    "revoke_by_stamped_headers": Row("revoke_by_stamped_headers", {"headers": {"nobody": ["a", "b"]}}),
    "revoke_by_stamped_headers as typed": Row("revoke_by_stamped_headers", {"headers": ["nobody=a"]}),
    "revoke_by_stamped_headers and terminate": Row(
        "revoke_by_stamped_headers", {"headers": {"nobody": "a"}, "terminate": True}
    ),
    "rate_limit that is none": Row("rate_limit", {"task_name": "interop.add", "rate_limit": "x/q"}),
    "rate_limit of nothing": Row("rate_limit", {"task_name": "no.such", "rate_limit": "1/s"}),
    "rate_limit taken away": Row("rate_limit", {"task_name": "interop.add", "rate_limit": 0}),
    "time_limit": Row("time_limit", {"task_name": "interop.add", "soft": 50, "hard": 60}),
    "time_limit taken away": Row("time_limit", {"task_name": "interop.add"}),
    "time_limit of nothing": Row("time_limit"),
    "add_consumer": Row(
        "add_consumer",
        {"queue": "QUEUE", "exchange": "QUEUE.x", "exchange_type": "topic", "routing_key": "a.#"},
    ),
    "add_consumer without": Row("add_consumer"),
    "cancel_consumer": Row("cancel_consumer", {"queue": "QUEUE"}),
    "pool_shrink to nothing": Row("pool_shrink", {"n": 1}),
    "pool_grow by what is none": Row("pool_grow", {"n": "x"}),
    "autoscale without": Row("autoscale", {"max": 3, "min": 1}),
    "pool_restart without": Row("pool_restart"),
    "heartbeat": Row("heartbeat"),
    "an unknown command": Row("no_such_command"),
}  # fmt: skip
IN_OTHER_WORDS = ("report", "revoke several")  # the second tells of a set


def shape(value: Any) -> Any:
    """A value's keys and types; numbers are of one kind, and None is like anything."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        found: list[Any] = []
        for inner in map(shape, value):
            if inner not in found:
                found.append(inner)
        return found
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return None if value is None else type(value).__name__


def alike(one: Any, other: Any) -> bool:
    """Whether two shapes are; of lists one may be empty."""
    if one is None or other is None or one == other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return all(alike(a, b) for a, b in zip(one, other, strict=False))
    return False


@contextlib.contextmanager
def napping(clients: dict[str, Any], nodes: dict[str, str]) -> Iterator[dict[str, str]]:
    """Within this block each worker runs one task; their ids."""
    running = {
        library: app.tasks["interop.nap"].apply_async((170,), queue=QUEUES[library])
        for library, app in clients.items()
    }
    try:
        yield {library: result.id for library, result in running.items()}
    finally:
        for library, result in running.items():
            clients[library].control.terminate(
                result.id, destination=[nodes[library]], reply=True, timeout=TIMEOUT
            )
        for result in running.values():
            wait_until(lambda result=result: result.state == "REVOKED", TIMEOUT)  # type: ignore[misc]


@case(workers=("celery",))
def test_both_workers_answer_each_command_in_the_same_shape(pair: Pair) -> None:
    for library in LIBRARIES:
        pair.site.await_worker(library)
    clients = {library: pair.site.client(pair.producer, library) for library in LIBRARIES}
    nodes = {library: pair.node.replace(pair.worker, library, 1) for library in LIBRARIES}
    queue = f"more-{fresh()}"

    def asked(library: str, row: Row) -> Any:
        meant = json.loads(json.dumps(row.arguments).replace("RUNNING", ids[library]).replace("QUEUE", queue))
        (reply,) = clients[library].control.broadcast(
            row.command, meant, [nodes[library]], reply=True, timeout=TIMEOUT
        )
        found = reply[nodes[library]]
        if row.command == "stats":  # its keys are what has run so far
            found["total"] = list(found["total"].values())
        said = json.dumps(found)
        return json.loads(said.replace(nodes[library], "NODE").replace(ids[library], "RUNNING"))

    with napping(clients, nodes) as ids:
        for library in LIBRARIES:
            wait_until(lambda library=library: asked(library, ROWS["active"]), TIMEOUT)  # type: ignore[misc]
        for name, row in ROWS.items():
            theirs, ours = asked("celery", row), asked("minicelery", row)
            if row.same:
                assert alike(shape(theirs), shape(ours)), (name, theirs, ours)
            else:
                assert type(theirs) is type(ours), name
            if isinstance(theirs, dict) and list(theirs) == ["ok"] and name not in IN_OTHER_WORDS:
                assert theirs == ours, name
    served = set(THEIRS.meta) - NOT_SERVED
    apart = {"shutdown", "enable_events", "disable_events"}  # see below
    assert {row.command for row in ROWS.values()} >= served - apart


# -- what a worker started like most cannot show -------------------------------------------


class Spare(NamedTuple):
    """A further worker that follows the work, can tell of it, and is stopped at the end."""

    pair: Pair
    node: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def spare(pair: Pair) -> Iterator[Spare]:
    site: Site = pair.site
    name = f"spare-{pair.worker}"
    environ = {**os.environ, **environment(pair.worker, site.place)}
    log = open(site.folder / f"{name}.log", "wb")  # noqa: SIM115
    process = subprocess.Popen(
        [
            sys.executable, "-m", pair.worker, "-A", "tests.interop.tasks", "worker", "-Q", f"spare-{fresh()}",
            "--autoscale=3,1", "-n", f"{name}@%h", "-l", "INFO",
        ],
        cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip
    log.close()
    node = pair.node.replace(pair.worker, name, 1)
    try:
        yield Spare(pair, node, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
        process.wait(20)


# Each is asked by both, and stopped by the other one.
@case(producers=("celery",))
def test_a_pool_that_follows_the_work_and_tells_of_it_is_steered_alike(spare: Spare) -> None:
    site, node, worker = spare.pair.site, spare.node, spare.pair.worker
    clients = {library: site.client(library, worker) for library in LIBRARIES}
    wait_until(lambda: clients["minicelery"].control.ping([node], timeout=1.0), 90)
    for client in clients.values():

        def told(command: str, client: Any = client, **arguments: Any) -> Any:
            (found,) = client.control.broadcast(command, arguments, [node], reply=True, timeout=TIMEOUT)
            return found[node]

        assert set(told("stats")["autoscaler"]) == {"max", "min", "current", "qty"}
        assert told("autoscale", max=2, min=1) == {"ok": "autoscale now max=2 min=1"}

        def bounds(told: Callable[..., Any] = told) -> tuple[int, int]:
            scaler = told("stats")["autoscaler"]
            return scaler["max"], scaler["min"]

        wait_until(lambda bounds=bounds: bounds() == (2, 1), TIMEOUT)  # type: ignore[misc]
        for command in ("enable_events", "disable_events"):
            word = command.partition("_")[0] + "d"
            assert told(command) == {"ok": f"task events {word}"}
            assert told(command) == {"ok": f"task events already {word}"}
    (other,) = (library for library in LIBRARIES if library != worker)
    assert clients[other].control.broadcast(
        "shutdown", destination=[node], reply=True, timeout=0.5
    ) == []  # fmt: skip
    assert spare.process.wait(TIMEOUT) == 0


# -- command lines ---------------------------------------------------------------------------

TYPED: dict[str, list[tuple[str, ...]]] = {
    "inspect": [
        ("active",), ("active_queues",), ("clock",), ("conf",), ("conf", "true"), ("memsample",), ("ping",),
        ("query_task", "unknown"), ("registered",), ("registered", "max_retries"), ("report",), ("reserved",),
        ("revoked",), ("scheduled",), ("stats",),
    ],
    "control": [
        ("add_consumer", "QUEUE"), ("cancel_consumer", "QUEUE"), ("autoscale", "3", "1"), ("heartbeat",),
        ("pool_grow",), ("pool_shrink", "1"), ("rate_limit", "no.such", "1/s"), ("revoke", "no-such-id"),
        ("revoke_by_stamped_headers", "nobody=a"), ("terminate", "KILL", "no-such-id"),
        ("time_limit", "no.such", "1", "2"),
    ],
}  # fmt: skip


class Lines:
    """Both command lines, on the apps of one worker."""

    def __init__(self, pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
        self.pair = pair
        self._capfd = capfd

    def run(self, library: str, *words: str) -> tuple[int, str]:
        """The exit code and what is printed."""
        app = self.pair.site.client(library, self.pair.worker)
        self._capfd.readouterr()
        code = main(words, app=app) if library == "minicelery" else self._celery(app, words)
        return code, self._capfd.readouterr().out

    def _celery(self, app: Any, words: tuple[str, ...]) -> int:
        try:
            app.start(argv=["--no-color", *words])
        except click.ClickException as error:
            return error.exit_code
        return 0


@case(producers=("celery",))
def test_the_command_lines_of_both_are_answered_alike(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    lines, queue = Lines(pair, capfd), f"more-{fresh()}"
    to = ("-d", pair.node, "-t", str(TIMEOUT), "-j")
    processes = 1

    def run(library: str, kind: str, words: tuple[str, ...]) -> tuple[int, str]:
        nonlocal processes
        found = lines.run(library, kind, *to, *words)
        if (change := {"pool_grow": 1, "pool_shrink": -1}.get(words[0])) is not None:
            processes += change
            pair.await_processes(processes)
        return found

    for kind, typed in TYPED.items():
        for words in typed:
            words = tuple(word.replace("QUEUE", queue) for word in words)
            (their_code, theirs), (our_code, ours) = (run(library, kind, words) for library in LIBRARIES)
            their_replies, our_replies = json.loads(theirs), json.loads(ours)
            if kind == "control":
                (their_replies,) = their_replies
            assert list(our_replies) == list(their_replies) == [pair.node], words
            for replies in (our_replies, their_replies):
                if words == ("stats",):
                    replies[pair.node]["total"] = []  # its keys are what has run so far
            assert alike(shape(our_replies), shape(their_replies)), words
            refused = "error" in (our_replies[pair.node] or ()) and kind == "control"
            assert (their_code, our_code) == (0, int(refused)), words
    for library in LIBRARIES:
        code, out = lines.run(library, "status", "-d", pair.node, "-t", str(TIMEOUT))
        assert code == 0
        assert f"{pair.node}: OK" in out
        assert "1 node online." in out
        assert lines.run(library, "inspect", "-d", "nobody@nowhere", "-t", "0.2", "ping")[0] == 69
        assert lines.run(library, "status", "-d", "nobody@nowhere", "-t", "0.2")[0] == 69


def test_the_command_lines_know_the_same_commands() -> None:
    for kind in ("inspect", "control"):
        theirs = {name for name, info in THEIRS.meta.items() if info.type == kind}
        ours = {name for name, info in Panel.meta.items() if info.type == kind and Panel.is_builtin(name)}
        assert theirs - NOT_SERVED == ours
