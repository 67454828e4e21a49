"""How a pool follows its work: the decision by itself, then real workers."""

from __future__ import annotations

import pytest

from minicelery.exceptions import ImproperlyConfigured
from minicelery.worker.autoscale import KEEPALIVE, Autoscaler, keepalive_of
from tests.waiting import wait_until
from tests.worker.harness import Stage


def sizes(scaler: Autoscaler, size: int, looks: list[tuple[float, int, int]]) -> list[int]:
    """The size after each look: when, how many are idle, how many messages wait."""
    found = []
    for now, idle, depth in looks:
        size = scaler.decide(now, size, idle, depth)
        found.append(size)
    return found


def test_a_pool_without_an_idle_child_doubles_while_messages_wait() -> None:
    looks = [(float(second), 0, 1000) for second in range(1, 6)]
    assert sizes(Autoscaler(1, 10), 1, looks) == [2, 4, 8, 10, 10]


def test_a_pool_grows_by_no_more_than_there_are_messages() -> None:
    assert sizes(Autoscaler(1, 100), 8, [(1.0, 0, 3)]) == [11]


@pytest.mark.parametrize(("idle", "depth"), [(1, 50), (0, 0), (4, 0)])
def test_a_pool_does_not_grow_while_a_child_is_idle_or_nothing_waits(idle: int, depth: int) -> None:
    assert sizes(Autoscaler(1, 10), 4, [(1.0, idle, depth)]) == [4]


def test_a_pool_shrinks_one_by_one_once_children_were_idle_for_long() -> None:
    looks = [(100.0 + second, 3, 0) for second in range(0, 31)]
    scaler = Autoscaler(1, 10, keepalive=30.0)
    assert sizes(scaler, 4, looks)[29:] == [4, 3]
    assert sizes(scaler, 3, [(131.0, 2, 0), (132.0, 1, 0), (133.0, 0, 0), (134.0, 1, 0)]) == [2, 1, 1, 1]


def test_a_pool_shrinks_by_no_more_than_were_idle_all_the_time() -> None:
    looks = [(100.0 + second, 3 if second % 2 else 1, 0) for second in range(0, 35)]
    assert sizes(Autoscaler(1, 10, keepalive=30.0), 4, looks)[29:] == [4, 3, 3, 3, 3, 3]


def test_a_pool_keeps_its_minimum() -> None:
    looks = [(float(second), 2, 0) for second in range(1, 100)]
    assert set(sizes(Autoscaler(2, 10, keepalive=3.0), 2, looks)) == {2}


def test_a_moment_without_an_idle_child_begins_the_waiting_anew() -> None:
    scaler = Autoscaler(1, 10, keepalive=5.0)
    looks = [
        (1.0, 1, 0),
        (2.0, 1, 0),
        (3.0, 0, 0),
        (4.0, 1, 0),
        (5.0, 1, 0),
        (6.0, 1, 0),
        (7.0, 1, 0),
        (8.0, 1, 0),
    ]
    assert set(sizes(scaler, 2, looks)) == {2}
    assert scaler.decide(8.1, 2, 1, 0) == 1


def test_a_pool_that_has_just_grown_does_not_shrink_at_once() -> None:
    scaler = Autoscaler(1, 10, keepalive=5.0)
    assert sizes(scaler, 1, [(float(second), 1, 0) for second in range(1, 20)])[-1] == 1
    assert scaler.decide(20.0, 1, 0, 5) == 2
    assert sizes(scaler, 2, [(21.0, 1, 0), (25.9, 1, 0)]) == [2, 2]
    assert scaler.decide(26.1, 2, 1, 0) == 1


def test_a_target_above_the_maximum_is_not_shrunk_by_growing() -> None:
    assert Autoscaler(1, 4).decide(1.0, 6, 0, 10) == 6


def test_the_keepalive_comes_from_the_environment() -> None:
    assert keepalive_of({}) == KEEPALIVE
    assert keepalive_of({"AUTOSCALE_KEEPALIVE": "2.5"}) == 2.5
    for text in ("0", "-1", "soon", "nan", "inf"):
        with pytest.raises(ImproperlyConfigured, match="AUTOSCALE_KEEPALIVE"):
            keepalive_of({"AUTOSCALE_KEEPALIVE": text})


# -- real workers ----------------------------------------------------------------------------


def test_a_pool_grows_under_load_and_shrinks_to_its_minimum(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "1.5")
    worker = stage.worker(autoscale=(4, 1))
    wait_until(lambda: len(worker.children()) == 1)
    results = stage.send_many("run", [(0.15,)] * 80)
    wait_until(lambda: len(stage.traces("child")) == 4)
    assert stage.wait_for(results) == {"SUCCESS": 80}
    wait_until(lambda: len(worker.children()) == 1, timeout=15)
    assert max(stage.runs().values()) == 1
    assert len(stage.traces("child")) == 4  # grown once, shrunk once: no child came and went in between
    assert "messages wait and none of 1 children is idle: 1 more" in worker.output()
    assert "have been idle: 1 less" in worker.output()


def test_a_busy_child_is_not_interrupted_while_the_pool_shrinks(
    redis_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = redis_stage
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "0.5")
    worker = stage.worker(autoscale=(3, 1))
    long = stage.send_many("run_until_told", [()] * 2)
    short = stage.send_many("run", [(0.05,)] * 10)
    wait_until(lambda: len(stage.traces("child")) == 3)
    assert stage.wait_for(short) == {"SUCCESS": 10}
    wait_until(lambda: len(worker.children()) == 2)
    assert stage.states(long) == {"PENDING": 2}
    stage.tell()
    assert stage.wait_for(long) == {"SUCCESS": 2}
    assert set(stage.runs().values()) == {1}
    assert "lost" not in worker.output()
