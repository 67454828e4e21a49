"""What Flower does with a `State`: it keeps it in a file, and looks for the oldest task whenever one comes."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable

from minicelery.events.state import Recent, State


class Counting(State):
    """What a program like Flower makes of it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.known = len(self.tasks)


def told() -> Counting:
    state = Counting(max_tasks_in_memory=70)
    state.event({"type": "worker-online", "hostname": "w@h", "timestamp": 1.0, "local_received": 1.0})
    for number, name, parent in ((1, "shop.order", None), (2, "shop.pay", "id1")):
        fields = {"uuid": f"id{number}", "hostname": "w@h", "timestamp": float(number), "clock": number}
        state.event({"type": "task-received", "name": name, "args": "(1,)", "parent_id": parent, **fields})
        state.event({"type": "task-succeeded", "result": "3", **fields, "timestamp": number + 0.5})
    return state


def test_a_state_comes_back_from_its_pickle_with_workers_tasks_and_indexes() -> None:
    before = told()
    state = pickle.loads(pickle.dumps(before))
    assert (type(state), state.known, state.max_tasks_in_memory, state.tasks.limit) == (Counting, 2, 70, 70)
    assert list(state.workers) == ["w@h"]
    assert state.task_types() == ["shop.order", "shop.pay"]
    assert [id for id, _ in state.tasks_by_time()] == ["id2", "id1"]
    assert [id for id, _ in state.tasks_by_type("shop.pay")] == ["id2"]
    assert [id for id, _ in state.tasks_by_worker("w@h")] == ["id2", "id1"]
    for id, task in state.tasks.items():
        assert task.as_dict() == {**before.tasks.data[id].as_dict(), "worker": task.worker}
        assert (task.state, task.worker.hostname) == ("SUCCESS", "w@h")


def test_a_state_that_has_come_back_relates_its_tasks_and_takes_events_in() -> None:
    state = pickle.loads(pickle.dumps(told()))
    parent, child = state.tasks["id1"], state.tasks["id2"]
    assert (child.parent, list(parent.children)) == (parent, [child])
    state.event(
        {
            "type": "task-failed",
            "uuid": "id3",
            "hostname": "w@h",
            "timestamp": 9.0,
            "exception": "KeyError('x')",
        }
    )
    assert state.tasks["id3"].worker is child.worker is state.workers["w@h"]


def test_the_oldest_task_is_found_without_a_copy_of_all_of_them() -> None:
    recent: Recent[str, int] = Recent()
    recent.update((f"id{number}", number) for number in range(50_000))

    def takes(action: Callable[[], object]) -> float:
        began = time.thread_time()
        action()
        return time.thread_time() - began

    def least(action: Callable[[], object]) -> float:
        return min(takes(action) for _ in range(20))

    assert next(iter(recent)) == "id0"
    assert least(lambda: next(iter(recent))) < least(lambda: list(recent.data)) / 5


def test_recent_entries_can_be_gone_through_while_they_change() -> None:
    recent: Recent[str, int] = Recent(3)
    assert list(recent) == []
    recent.update(a=1, b=2, c=3)
    seen = []
    for key in recent:
        seen.append(key)
        recent[f"new {key}"] = 0
    assert (seen[0], len(recent)) == ("a", 3)
    assert list(recent) == list(recent.data)
