"""What `app.control`, `app.control.inspect()` and `app.events` have in Celery, of a real worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery.events import Event
from tests.compat.shop import Shop, begun, revoked
from tests.compat.stage import each
from tests.waiting import wait_until

NODE = "steered@compat"


class Steered(Shop):
    """One worker with two children, and what asks it."""

    def ask(self, command: str, *args: Any, **options: Any) -> Any:
        """The worker's answer to one command of `inspect`."""
        found = getattr(self.app.control.inspect([NODE], timeout=10), command)(*args, **options)
        assert list(found) == [NODE]
        return found[NODE]

    def order(self, command: str, *args: Any, **options: Any) -> Any:
        """The worker's answer to one command of `control`."""
        method = getattr(self.app.control, command)
        (found,) = method(*args, destination=[NODE], reply=True, timeout=10, **options)
        return found[NODE]


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    found = Steered(tmp_path_factory.mktemp("steered"))
    found.start("-c", "2", "-n", NODE, "-l", "INFO")
    wait_until(lambda: found.app.control.inspect([NODE], timeout=1).ping(), 30)
    yield found
    found.stop()
    found.app.close()


def rows(found: Any, *keys: str) -> bool:
    """Whether it is a list of dicts that have these keys."""
    return isinstance(found, list) and all(set(keys) <= set(row) for row in found)


# -- inspect ---------------------------------------------------------------------------------------------


def of_a_run(steered: Steered, check: Callable[[Any], bool]) -> bool:
    """Whether it is so while a task runs."""
    call = steered.call("nap", 60)
    try:
        wait_until(lambda: [task["id"] for task in steered.ask("active")] == [call.id], 15)
        return check(call)
    finally:
        call.revoke(terminate=True)
        assert revoked(call)


def an_active_task(steered: Steered) -> bool:
    keys = (
        "id",
        "name",
        "args",
        "kwargs",
        "hostname",
        "time_start",
        "acknowledged",
        "delivery_info",
        "worker_pid",
    )
    return of_a_run(steered, lambda call: rows(steered.ask("active"), *keys))


def a_queried_task(steered: Steered) -> bool:
    def check(call: Any) -> bool:
        found = steered.ask("query_task", call.id, "unknown")
        return list(found) == [call.id] and found[call.id][0] == "active"

    return of_a_run(steered, check)


def a_revoked_id(steered: Steered) -> bool:
    steered.app.control.revoke("never-sent")
    wait_until(lambda: "never-sent" in steered.ask("revoked"), 10)
    return True


@each({
    "ping": lambda it: it.ask("ping") == {"ok": "pong"},
    "active": an_active_task,
    "query_task": a_queried_task,
    "registered": lambda it: {"nap", "where"} <= set(it.ask("registered")),
    "registered(attributes)": lambda it: "nap [max_retries=3]" in it.ask("registered", "max_retries"),
    "stats": lambda it: {"total", "pid", "clock", "uptime", "pool", "broker", "rusage"} <= set(it.ask("stats")),
    "active_queues": lambda it: rows(it.ask("active_queues"), "name", "exchange", "routing_key", "durable"),
    "conf": lambda it: it.ask("conf")["broker_url"] == it.url,
    "revoked": a_revoked_id,
    "report": lambda it: "software -> minicelery" in it.ask("report")["ok"],
    "clock": lambda it: it.ask("clock")["clock"] > 0,
    "memsample": lambda it: it.ask("memsample").endswith("MB"),
    "hello": lambda it: set(it.ask("hello", "other@compat")) == {"revoked", "clock"},
})  # fmt: skip
def test_a_worker_tells_who_inspects_it(steered: Steered, case: Any) -> None:
    assert case(steered)


@each({"reserved": "reserved", "scheduled": "scheduled"})
def test_what_waits_is_in_the_broker_and_not_in_a_worker(steered: Steered, case: str) -> None:
    waiting = steered.call("where", countdown=60)
    assert steered.ask(case) == []
    waiting.revoke()


@each({
    "limit": {"limit": 1}, "pattern": {"pattern": "steered@*", "matcher": "glob"},
    "matcher": {"pattern": "steered@c[o]mpat", "matcher": "pcre"},
})  # fmt: skip
def test_who_is_asked_can_be_chosen(steered: Steered, case: Any) -> None:
    assert steered.app.control.inspect(timeout=10, **{"limit": 1, **case}).ping() == {NODE: {"ok": "pong"}}


def test_a_callback_gets_each_reply(steered: Steered) -> None:
    found: list[Any] = []
    steered.app.control.inspect([NODE], callback=found.append, timeout=10).ping()
    assert found == [{NODE: {"ok": "pong"}}]


def test_nobody_answering_is_none(steered: Steered) -> None:
    assert steered.app.control.inspect(["nobody@compat"], timeout=0.2).ping() is None


@each({"memdump": "memdump", "objgraph": "objgraph"})
def test_what_looks_into_a_workers_memory_is_refused(steered: Steered, case: str) -> None:
    with pytest.raises(AttributeError, match=case):
        getattr(steered.app.control.inspect([NODE]), case)()


def test_nobody_is_elected(steered: Steered) -> None:
    with pytest.raises(NotImplementedError, match="elect"):
        steered.app.control.election("id", "topic", "action")


# -- control ---------------------------------------------------------------------------------------------


def events_on_and_off(steered: Steered) -> bool:
    on = [steered.order("enable_events"), steered.order("enable_events")]
    off = [steered.order("disable_events"), steered.order("disable_events")]
    return on == [{"ok": "task events enabled"}, {"ok": "task events already enabled"}] and off == [
        {"ok": "task events disabled"}, {"ok": "task events already disabled"},
    ]  # fmt: skip


def queues_come_and_go(steered: Steered) -> bool:
    def names() -> list[str]:
        return [queue["name"] for queue in steered.ask("active_queues")]

    steered.order("add_consumer", "mail")
    wait_until(lambda: names() == ["celery", "mail"], 10)
    call = steered.call("where", queue="mail")
    wait_until(call.ready, 15)
    steered.order("cancel_consumer", "mail")
    wait_until(lambda: names() == ["celery"], 10)
    return True


def children_come_and_go(steered: Steered) -> bool:
    def count() -> int:
        return len(steered.ask("stats")["pool"]["processes"])

    assert steered.order("pool_grow", 1) == {"ok": "pool will grow"}
    wait_until(lambda: count() == 3, 15)
    assert steered.order("pool_shrink", 1) == {"ok": "pool will shrink"}
    wait_until(lambda: count() == 2, 15)
    return True


def a_new_limit(steered: Steered) -> bool:
    assert steered.order("time_limit", "clean", soft=1.0) == {"ok": "time limits set successfully"}
    return steered.get("clean", 30) == "cleaned up"


def an_end(steered: Steered) -> bool:
    call = steered.call("nap", 60)
    begun(call)
    steered.app.control.terminate(call.id)
    return revoked(call)


@each({
    "add_consumer, cancel_consumer": queues_come_and_go,
    "pool_grow, pool_shrink": children_come_and_go,
    "enable_events, disable_events": events_on_and_off,
    "rate_limit": lambda it: it.order("rate_limit", "where", "100/s") == {"ok": "new rate limit set successfully"},
    "time_limit": a_new_limit,
    "terminate": an_end,
    "autoscale": lambda it: "Autoscale not enabled" in it.order("autoscale", 4, 1)["error"],
    "pool_restart": lambda it: "Pool restarts not enabled" in it.order("pool_restart")["error"],
})  # fmt: skip
def test_a_worker_obeys_who_controls_it(steered: Steered, case: Any) -> None:
    assert case(steered)


def test_what_is_unknown_to_a_worker_is_an_error_in_its_reply(steered: Steered) -> None:
    assert steered.order("rate_limit", "nothing", "1/s") == {"error": "unknown task"}
    (found,) = steered.app.control.broadcast("fly", destination=[NODE], reply=True, timeout=10)
    assert "fly" in found[NODE]["error"]


def test_shutdown_stops_a_worker(shop: Shop) -> None:
    worker = shop.start("-c", "1", "-n", "brief@compat")
    wait_until(lambda: shop.app.control.inspect(["brief@compat"], timeout=1).ping(), 30)
    shop.app.control.shutdown(destination=["brief@compat"])
    assert worker.wait(30) == 0


def test_running_tasks_are_revoked_by_their_stamps(steered: Steered) -> None:
    call = steered.app.signature("nap", (60,)).apply_async(
        headers={"customer": "x", "stamps": {"customer": "x"}, "stamped_headers": ["customer"]}
    )
    begun(call)
    steered.app.control.revoke_by_stamped_headers({"customer": "x"}, terminate=True)
    assert revoked(call)


# -- events ----------------------------------------------------------------------------------------------


def test_a_receiver_hears_of_a_task_from_end_to_end(steered: Steered) -> None:
    state = steered.app.events.State()
    receiver = steered.app.events.Receiver(None, handlers={"*": state.event}, app=steered.app)
    thread = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=30), daemon=True)
    thread.start()
    wait_until(lambda: any(worker.alive for worker in list(state.workers.values())), 15)
    steered.order("enable_events")
    try:
        call = steered.call("where")
        wait_until(lambda: call.id in state.tasks and state.tasks[call.id].state == "SUCCESS", 15)
    finally:
        steered.order("disable_events")
        receiver.should_stop = True
        thread.join(15)
    task = state.tasks[call.id]
    assert (task.name, task.worker.hostname, task.args) == ("where", NODE, "()")
    assert task.received <= task.started <= task.succeeded <= time.time() and task.runtime >= 0


def test_a_dispatcher_sends_events_of_ones_own(steered: Steered) -> None:
    found: list[Any] = []
    receiver = steered.app.events.Receiver(None, handlers={"shop-opened": found.append}, app=steered.app)
    captured = receiver.itercapture(limit=None, timeout=30)
    next(captured, None)
    with steered.app.events.default_dispatcher(hostname="till@compat") as dispatcher:
        dispatcher.send("shop-opened", door=3)
    wait_until(lambda: next(captured, None) is None or found, 10)
    assert [(one["door"], one["hostname"]) for one in found] == [(3, "till@compat")]


def test_an_event_has_a_type_and_a_time() -> None:
    found = Event("shop-opened", door=3)
    assert found["type"] == "shop-opened" and found["door"] == 3 and found["timestamp"] <= time.time()
