"""`State` fed with what Celery's own is fed with: both must see the same fleet."""

from __future__ import annotations

import copy
import random
import time
from typing import Any

import click
import pytest
from celery.events.state import State as CelerysState
from hypothesis import given, settings
from hypothesis import strategies as some

from minicelery import Celery
from minicelery.cli.events import Names, as_celery_line, as_json, as_line
from minicelery.cli.fleet import Fleet
from minicelery.cli.top import frame
from minicelery.events.state import State, heartbeat_expires
from tests.events.test_records import EVENTS

FIELDS = (
    "uuid name state received sent started rejected succeeded failed retried revoked args kwargs eta expires "
    "retries result exception timestamp runtime traceback exchange routing_key clock client root_id parent_id"
).split()
IDS = ("one", "two", "three")
TYPES = ("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "progress")


def fed(events: list[dict[str, Any]]) -> tuple[State, Any]:
    """Our state and Celery's, fed with the same events."""
    ours, theirs = State(), CelerysState()
    for event in events:
        ours.event(copy.deepcopy(event))
        theirs.event(copy.deepcopy(event))
    return ours, theirs


def seen(state: Any) -> dict[str, Any]:
    """What a state says, in plain data."""
    return {
        "tasks": {id: {name: getattr(task, name) for name in FIELDS} for id, task in state.tasks.items()},
        "workers": {id: task.worker and task.worker.hostname for id, task in state.tasks.items()},
        "ready": {id for id, task in state.tasks.items() if task.ready},
        "origins": {id: task.origin for id, task in state.tasks.items()},
        "info": {id: task.info() for id, task in state.tasks.items()},
        "children": {id: sorted(child.id for child in task.children) for id, task in state.tasks.items()},
        "roots": {id: task.root and task.root.id for id, task in state.tasks.items()},
        "parents": {id: task.parent and task.parent.id for id, task in state.tasks.items()},
        "names": sorted(worker.hostname for worker in state.workers.values()),
        "alive": sorted(worker.hostname for worker in state.alive_workers()),
        "counts": (state.event_count, state.task_count),
        "types": state.task_types(),
        "by time": [id for id, _ in state.tasks_by_time()],
        "by time, the first first": [id for id, _ in state.tasks_by_time(reverse=False)],
        "of a type": {name: sorted(task.id for task in tasks) for name, tasks in state.tasks_by_type.items()},
        "of a worker": {
            name: sorted(task.id for task in tasks) for name, tasks in state.tasks_by_worker.items()
        },
    }


@some.composite
def histories(draw: Any) -> list[dict[str, Any]]:
    """Events of a few tasks, in any order, late ones among them."""
    events = []
    for _ in range(draw(some.integers(1, 25))):
        what, id = draw(some.sampled_from(TYPES)), draw(some.sampled_from(IDS))
        moment = 1000.0 + draw(some.integers(0, 5))
        event: dict[str, Any] = {
            "type": f"task-{what}", "uuid": id, "hostname": draw(some.sampled_from(["a@x", "b@x"])),
            "timestamp": moment, "local_received": moment, "clock": draw(some.integers(1, 1000)), "pid": 7,
        }  # fmt: skip
        if what in ("received", "sent"):
            event |= {
                "name": f"task_{id}", "args": "()", "kwargs": "{}", "retries": draw(some.integers(0, 2)),
                "root_id": "one", "parent_id": draw(some.sampled_from([None, "one", "two", "gone"])),
            }  # fmt: skip
        if what == "succeeded":
            event |= {"result": "5", "runtime": 0.25}
        if what in ("failed", "retried"):
            event |= {"exception": "E()", "traceback": "…"}
        events.append(event)
    return events


def test_the_events_of_a_celery_worker_look_the_same_to_both() -> None:
    now = time.time() + 3600  # so that the worker is alive for both, however long this takes
    ours, theirs = fed([event | {"local_received": now, "timestamp": now} for event in EVENTS])
    assert seen(ours) == seen(theirs)
    (worker,) = ours.workers.values()
    (same,) = theirs.workers.values()
    names = "hostname pid freq clock active processed loadavg sw_ident sw_ver sw_sys id".split()
    assert [getattr(worker, name) for name in names] == [getattr(same, name) for name in names]


@settings(max_examples=60, deadline=None)
@given(histories())
def test_events_in_any_order_look_the_same_to_both(events: list[dict[str, Any]]) -> None:
    ours, theirs = fed(events)
    assert seen(ours) == seen(theirs)


def test_a_worker_is_alive_until_two_heartbeats_are_missed() -> None:
    state, now = State(), time.time()
    for late in (50, 500):
        state.event(beat(f"{late}@host", now, now - late, freq=200.0))
    assert [worker.hostname for worker in state.alive_workers()] == ["50@host"]
    assert heartbeat_expires(100.0, 2.0) == 104.0
    assert state.workers["500@host"].status_string == "OFFLINE"


def beat(
    hostname: str, timestamp: float, received: float, kind: str = "heartbeat", **more: Any
) -> dict[str, Any]:
    return {
        "type": f"worker-{kind}", "hostname": hostname, "timestamp": timestamp, "local_received": received, "pid": 1,
        "clock": 1, "freq": 200.0, **more,
    }  # fmt: skip


def test_a_worker_that_says_goodbye_is_offline_at_once() -> None:
    told: list[tuple[str, str]] = []
    state = State(
        on_node_join=lambda worker: told.append(("join", worker.hostname)),
        on_node_leave=lambda worker: told.append(("leave", worker.hostname)),
    )
    now = time.time()
    state.event(beat("w@host", now, now, "online"))
    state.event(beat("w@host", now, now))
    assert [worker.hostname for worker in state.alive_workers()] == ["w@host"]
    state.event(beat("w@host", now, now, "offline"))
    assert list(state.alive_workers()) == []
    assert told == [("join", "w@host"), ("leave", "w@host")]


def test_it_forgets_the_tasks_that_nobody_looked_at_longest() -> None:
    state = State(max_tasks_in_memory=10)
    for number in range(1000):
        state.event(started(f"id-{number}", number + 1))
    assert list(state.tasks) == [f"id-{number}" for number in range(990, 1000)]
    assert len(list(state.tasks_by_time())) == 10
    assert len(state._moments) <= 10 * state.heap_multiplier


def started(id: str, clock: int = 1) -> dict[str, Any]:
    return {
        "type": "task-started", "uuid": id, "hostname": "w@host", "timestamp": 1000.0 + clock, "clock": clock,
        "local_received": time.time(),
    }  # fmt: skip


def test_it_can_forget_what_has_ended() -> None:
    state = State()
    state.event(started("running"))
    state.event(started("done", 2))
    state.event(started("done", 3) | {"type": "task-succeeded", "result": "1", "runtime": 0.1})
    state.clear_tasks()
    assert list(state.tasks) == ["running"]
    assert state.freeze_while(lambda: list(state.tasks), clear_after=True) == ["running"]
    state.clear(ready=False)
    assert (list(state.tasks), list(state.workers), state.event_count) == ([], [], 0)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "task-started"},
        {"type": "task-started", "uuid": ["x"], "hostname": "w", "timestamp": 1.0},
        {"type": "worker-heartbeat", "hostname": {"a": 1}, "timestamp": 1.0},
        {"type": "worker-heartbeat", "hostname": "w", "timestamp": "now"},
        {"type": "something", "hostname": "w", "timestamp": 1.0},
    ],
    ids=str,
)
def test_events_that_say_too_little_are_passed_over(event: dict[str, Any]) -> None:
    state = State()
    assert state.event(event) is None
    assert (len(state.tasks), len(state.workers)) == (0, 0)


def test_no_field_of_an_event_replaces_what_a_state_is_made_of() -> None:
    state = State()
    bad = dict.fromkeys(
        ("event", "update", "alive", "heartbeats", "children", "cluster_state", "info", "ready"), 5
    )
    now = time.time()
    state.event(beat("w@host", now, now, **bad))
    state.event(beat("w@host", now, now, freq="often"))
    state.event(started("an-id") | bad)
    state.event(started("an-id", 5) | bad)
    assert [worker.hostname for worker in state.alive_workers()] == ["w@host"]
    assert state.tasks["an-id"].as_dict()["children"] == []
    assert state.tasks["an-id"].state == "STARTED"


def test_one_thread_may_feed_it_while_others_look() -> None:
    import threading

    state, failures, done = State(max_tasks_in_memory=50), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                list(state.tasks_by_time())
                list(state.tasks_by_type("x"))
                [worker.alive for worker in state.workers.values()]
                list(state.itertasks(5))
                list(state.tasks)
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    rng = random.Random(5)
    for number in range(1500):
        state.event(started(f"id-{rng.randrange(200)}", number) | {"hostname": f"w{rng.randrange(5)}@h"})
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_handlers_of_other_groups_and_the_callback_are_told() -> None:
    told: list[Any] = []
    state = State(callback=lambda state, event: told.append(event["type"]))
    state.handlers["custom"] = lambda subject, event: (subject, event["x"])
    assert state.event({"type": "custom-thing-two", "x": 5}) == (("thing-two", 5), "thing-two")
    assert told == ["custom-thing-two"]


# -- what nobody should send ------------------------------------------------------------------

ANYTHING = some.recursive(
    some.none()
    | some.booleans()
    | some.floats()
    | some.integers()
    | some.text(max_size=5)
    | some.just(10**400),
    lambda inner: some.lists(inner, max_size=2) | some.dictionaries(some.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
WORDS = ("hostname", "uuid", "timestamp", "clock", "name", "root_id", "parent_id", "freq", "active", "processed",
         "loadavg", "runtime", "result", "args", "pid", "retries", "state", "exception")  # fmt: skip


@some.composite
def hostile(draw: Any) -> dict[str, Any]:
    """An event with anything in some of its fields."""
    what = draw(some.sampled_from([f"task-{one}" for one in TYPES] + ["worker-heartbeat", "worker-offline"]))
    event: dict[str, Any] = {
        "type": what,
        "hostname": "w@h",
        "uuid": "one",
        "timestamp": 1000.0,
        "name": "add",
    }
    event["local_received"] = 1000.0
    return event | draw(some.dictionaries(some.sampled_from(WORDS), ANYTHING, max_size=4))


@settings(max_examples=150, deadline=None)
@given(some.lists(hostile(), max_size=8))
def test_whatever_an_event_says_a_state_a_screen_and_lines_can_be_made_of_it(
    events: list[dict[str, Any]],
) -> None:
    with Celery("hostile", broker="memory://hostile-state", set_as_current=False) as app:
        fleet = Fleet(app, ["celery"])
        names = Names()
        for event in events:
            fleet.hear(event)
            assert click.unstyle(as_line(event, names)).isprintable()
            assert as_celery_line(event, names).isprintable()
            as_json(event, names)
        for line in frame(fleet.view(), 100, 40, 1000.0):
            assert click.unstyle(line).isprintable()
        fleet.view().as_dict()
        for _, task in fleet.state.tasks_by_time():
            task.as_dict(), task.info(), task.root, repr(task)
        list(fleet.state.alive_workers()), fleet.state.task_types()


def test_names_that_are_new_each_time_are_not_kept_for_ever() -> None:
    state = State(max_workers_in_memory=20, max_tasks_in_memory=20)
    for number in range(500):
        event = started(f"id-{number}", number + 1)
        event |= {
            "type": "task-received",
            "name": f"task-{number}",
            "hostname": f"w{number}@h",
            "parent_id": "x",
        }
        state.event(event)
    assert len(state.tasks) == len(state.workers) == 20
    assert max(map(len, (state.task_types(), state.tasks_by_type, state.tasks_by_worker))) <= 41
    assert "task-499" in state.task_types()
    assert len(state._orphans) <= 20
