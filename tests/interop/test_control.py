"""Remote control between the libraries: each command, from each client to each worker, answered alike."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from tests.interop.pair import TIMEOUT, Pair, Way, case, fresh
from tests.waiting import wait_until

celery: Any = pytest.importorskip("celery", reason="real Celery is the other side")

pytestmark = pytest.mark.timeout(180)  # the first of them may start servers and workers

TASK = {
    "id", "name", "args", "kwargs", "type", "hostname", "time_start", "acknowledged", "delivery_info", "worker_pid",
}  # fmt: skip
QUEUE = {
    "name", "exchange", "routing_key", "queue_arguments", "binding_arguments", "consumer_arguments", "durable",
    "exclusive", "auto_delete", "no_ack", "alias", "bindings", "no_declare", "expires", "message_ttl", "max_length",
    "max_length_bytes", "max_priority",
}  # fmt: skip
STATS = {"total", "pid", "clock", "uptime", "pool", "broker", "prefetch_count", "rusage"}
POOL = {
    "implementation", "max-concurrency", "processes", "max-tasks-per-child", "put-guarded-by-semaphore", "timeouts",
    "writes",
}  # fmt: skip
BROKER = {
    "hostname", "userid", "virtual_host", "port", "insist", "ssl", "transport", "connect_timeout",
    "transport_options", "login_method", "uri_prefix", "heartbeat", "failover_strategy", "alternates",
    "credential_provider",
}  # fmt: skip

across = pytest.mark.parametrize(
    "pair",
    [
        Way(place, producer, worker)
        for place in ("redis", "rabbitmq")
        for producer, worker in (
            ("minicelery", "celery"),
            ("celery", "minicelery"),
            ("minicelery", "minicelery"),
        )
    ],
    ids=str,
    indirect=True,
)
"""Every pair with minicelery on a side: Celery's workers take their time."""


class Asked:
    """One client, asking one worker."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.control = pair.app.control
        self.inspect = self.control.inspect(destination=[pair.node], timeout=TIMEOUT)

    def told(self, command: str, *args: Any, **kwargs: Any) -> Any:
        """The worker's reply to a method of `app.control`."""
        sending: dict[str, Any] = {"destination": [self.pair.node], "reply": True, "timeout": TIMEOUT}
        (found,) = getattr(self.control, command)(*args, **kwargs, **sending)
        return found[self.pair.node]

    def asked(self, command: str, *args: Any, **kwargs: Any) -> Any:
        """The worker's reply to a method of `app.control.inspect()`."""
        found = getattr(self.inspect, command)(*args, **kwargs)
        assert list(found) == [self.pair.node]
        return found[self.pair.node]


@case()
def test_each_inspect_command_is_answered_in_celerys_shape(pair: Pair) -> None:
    asked = Asked(pair).asked
    with _napping(pair) as running:
        wait_until(lambda: [task["id"] for task in asked("active")] == [running.id], timeout=TIMEOUT)
        (task,) = asked("active")
        assert set(task) == TASK
        assert (task["name"], task["args"], task["kwargs"]) == ("interop.nap", [60], {})
        assert task["hostname"] == pair.node
        assert set(task["delivery_info"]) == {"exchange", "routing_key", "priority", "redelivered"}
        assert task["delivery_info"]["routing_key"] == pair.queue
        assert type(task["worker_pid"]) is int
        assert (asked("active", safe=True)[0]["args"], asked("active", safe=True)[0]["kwargs"]) == (
            "(60,)",
            "{}",
        )
        assert asked("query_task", running.id, "unknown") == {running.id: ["active", task]}
        stats = asked("stats")
        assert set(stats) == STATS
        assert set(stats["pool"]) == POOL
        assert set(stats["broker"]) == BROKER
        assert stats["pool"]["max-concurrency"] == 1
        assert stats["pool"]["processes"] == [task["worker_pid"]]
        assert stats["total"]["interop.nap"] >= 1
        assert {type(stats[key]) for key in ("pid", "uptime", "prefetch_count")} == {int}
        assert int(stats["clock"]) > 0
        assert len(stats["rusage"]) == 16
        theirs = pair.site.client("celery", "celery").connection_for_write().info()
        assert stats["broker"]["port"] == theirs["port"]
        assert stats["broker"]["virtual_host"] == theirs["virtual_host"]
    # Celery's tells of a task that was ended until its child has gone.
    wait_until(lambda: (asked("reserved"), asked("scheduled")) == ([], []), timeout=TIMEOUT)
    queues = asked("active_queues")
    assert pair.queue in [queue["name"] for queue in queues]
    assert {frozenset(queue) for queue in queues} == {frozenset(QUEUE)}
    found = next(queue for queue in queues if queue["name"] == pair.queue)
    assert (found["routing_key"], found["exchange"]["name"], found["exchange"]["type"]) == (
        pair.queue, pair.queue, "direct",
    )  # fmt: skip
    names = asked("registered")
    assert {"interop.add", "interop.echo"} <= {
        name.partition(" ")[0] for name in names
    }  # one may have a limit
    assert names == sorted(names)
    assert "interop.echo [max_retries=3]" in asked("registered", "max_retries")
    assert type(asked("revoked")) is list
    assert asked("conf")["task_default_queue"] == pair.queue
    assert asked("conf", with_defaults=True)["task_acks_late"] is False
    assert "software -> " in asked("report")["ok"]
    assert asked("clock")["clock"] > 0
    hello = asked("hello", "other@host", {"told-by-another": 1.0})
    assert set(hello) == {"revoked", "clock"}
    assert "told-by-another" in hello["revoked"]
    memory = asked("memsample")
    assert memory is None or memory.endswith("MB")
    assert asked("ping") == {"ok": "pong"}


@across
def test_each_control_command_is_answered_in_celerys_words(pair: Pair) -> None:
    client = Asked(pair)
    told, asked = client.told, client.asked
    id = fresh()
    assert told("revoke", id) == {"ok": f"tasks {{'{id}'}} flagged as revoked"}
    assert id in asked("revoked")
    assert told("terminate", fresh()) == {"ok": "terminate: tasks unknown"}
    stamps = {"nobody": ["a", "b"]}
    assert told("revoke_by_stamped_headers", stamps) == {
        "ok": f"headers {stamps} flagged as revoked, but not terminated"
    }
    rate = told("rate_limit", "interop.add", "1000/s")
    if pair.worker == "minicelery" and not pair.on_redis:
        assert "task_limits_url" in rate["error"]  # nowhere to keep it
    else:
        assert rate == {"ok": "new rate limit set successfully"}
        assert told("rate_limit", "interop.add", 0) == {"ok": "rate limit disabled successfully"}
    assert "error" in told("rate_limit", "interop.add", "x/q")
    assert told("rate_limit", "no.such.task", "1/s") == {"error": "unknown task"}
    assert told("time_limit", "interop.add", soft=50, hard=60) == {"ok": "time limits set successfully"}
    assert told("time_limit", "interop.add") == {"ok": "time limits set successfully"}
    assert told("time_limit", "no.such.task", soft=5, hard=10) == {"error": "unknown task"}
    more = f"more-{fresh()}"
    assert told("add_consumer", more) == {"ok": f"add consumer {more}"}
    wait_until(lambda: more in [queue["name"] for queue in asked("active_queues")], timeout=TIMEOUT)
    assert pair.send("add", 1, 2, queue=more).get(timeout=TIMEOUT) == 3
    assert told("cancel_consumer", more) == {"ok": f"no longer consuming from {more}"}
    wait_until(lambda: more not in [queue["name"] for queue in asked("active_queues")], timeout=TIMEOUT)
    assert told("pool_grow", 1) == {"ok": "pool will grow"}
    pair.await_processes(2)
    assert told("pool_shrink", 1) == {"ok": "pool will shrink"}
    pair.await_processes(1)
    assert told("autoscale", 4, 1) == {"error": "ValueError('Autoscale not enabled')"}
    assert told("pool_restart") == {"error": "ValueError('Pool restarts not enabled')"}
    if pair.worker == "minicelery":  # Celery's has been started without anything that tells
        assert told("enable_events") == {"ok": "task events enabled"}
        assert told("enable_events") == {"ok": "task events already enabled"}
        assert told("disable_events") == {"ok": "task events disabled"}
    assert told("heartbeat") is None
    assert told("broadcast", "no_such_command") == {"error": "KeyError('no_such_command')"}
    assert "TypeError" in told("broadcast", "pool_grow", {"n": "x"})["error"]
    assert pair.send("add", 1, 2).get(timeout=TIMEOUT) == 3


@across
def test_a_running_task_is_ended_and_one_that_waits_is_not_run(pair: Pair) -> None:
    client = Asked(pair)
    with _napping(pair) as running:
        wait_until(lambda: client.asked("active"), timeout=TIMEOUT)
        waiting = pair.send("add", 1, 1)
        client.told("revoke", waiting.id)
        assert client.told("terminate", running.id) == {"ok": f"terminate: {running.id}"}
        for result in (running, waiting):
            wait_until(lambda found=result: found.state == "REVOKED", timeout=TIMEOUT)  # type: ignore[misc]
    pair.settled()


@case(workers=("celery", "minicelery"))
def test_all_workers_answer_who_are_asked_by_no_name(pair: Pair) -> None:
    for library in ("celery", "minicelery"):
        pair.site.await_worker(library)
    names = {
        pair.node,
        pair.node.replace(pair.worker, {"celery": "minicelery"}.get(pair.worker, "celery"), 1),
    }
    found = pair.app.control.ping(timeout=TIMEOUT, limit=2)
    assert {node for reply in found for node in reply} == names
    matching = pair.app.control.broadcast(
        "ping", reply=True, pattern="mini*", matcher="glob", timeout=TIMEOUT, limit=1
    )
    assert [next(iter(reply)).partition("@")[0] for reply in matching] == ["minicelery"]
    assert pair.app.control.inspect(timeout=TIMEOUT, limit=2).ping().keys() == names


@contextlib.contextmanager
def _napping(pair: Pair) -> Any:
    """Within this block the worker runs one task; afterwards it has ended."""
    found = pair.send("nap", 60)
    try:
        yield found
    finally:
        pair.app.control.terminate(found.id, destination=[pair.node], reply=True, timeout=TIMEOUT)
        wait_until(lambda: found.state == "REVOKED", timeout=TIMEOUT)
