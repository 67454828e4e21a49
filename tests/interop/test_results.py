"""Results that belong together, read by the other library than the one that ran the tasks."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.interop.pair import TIMEOUT, Pair, case, fresh
from tests.waiting import wait_until

pytest.importorskip("celery", reason="real Celery is the other side")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning"),  # Celery's of redis
    pytest.mark.timeout(180),  # the first of them may start servers and workers
]


@case("redis")
def test_what_followed_from_a_task_is_collected_by_either(pair: Pair) -> None:
    links = [pair.sig("add", 10), pair.sig("add", 100)]
    found = pair.send("add", 1, 2, link=links)
    assert found.get(timeout=TIMEOUT) == 3
    for reader in pair.readers(found.id):
        wait_until(lambda reader=reader: reader.children, timeout=TIMEOUT)
        collected = [value for _, value in reader.collect(timeout=TIMEOUT)]
        assert collected[0] == 3
        assert {13, 103} <= set(flat(collected))
        assert list(reader.graph.edges())


@case("redis")
def test_the_last_of_a_chain_is_the_leaf(pair: Pair) -> None:
    results = pair.chain(pair.sig("add", 1, 2), pair.sig("add", 3), pair.sig("add", 4))
    assert results[2].get(timeout=TIMEOUT) == 10
    for reader in pair.readers(results[0].id):
        assert reader.get_leaf() == 10
        assert [str(node) for _, node in reader.iterdeps()] == [result.id for result in results]


@case("redis", workers=("celery",))
def test_a_group_that_one_side_has_saved_is_joined_by_the_other(pair: Pair) -> None:
    parts = pair.group(*(pair.sig("add", n, n) for n in range(4)))
    group = pair.app.GroupResult(fresh(), parts).save()
    for library in ("celery", "minicelery"):
        restored = pair.site.client(library, pair.worker).GroupResult.restore(group.id)
        assert restored.get(timeout=TIMEOUT) == [0, 2, 4, 6]
        assert (restored.completed_count(), restored.successful()) == (4, True)
        assert restored.id == group.id
    group.delete()


@case("redis", producers=("minicelery",))
def test_the_step_that_has_failed_is_raised_by_who_waits_for_the_last(pair: Pair) -> None:
    minicelery = importlib.import_module("minicelery")
    last = minicelery.chain(
        pair.sig("fail", "builtin"), pair.sig("add", 1), pair.sig("add", 2), app=pair.app
    ).apply_async()
    with pytest.raises(ValueError, match="bad value"):
        last.get(timeout=TIMEOUT)
    assert last.parent.parent.failed()


def flat(values: Any) -> list[Any]:
    return [one for value in values for one in (flat(value) if isinstance(value, list) else [value])]
