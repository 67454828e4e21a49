"""Chords that Celery's producers send: whoever runs their parts, the body is called once."""

from __future__ import annotations

import contextlib
import importlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.pair import TIMEOUT, Pair, case, fresh
from tests.interop.tasks import QUEUES
from tests.waiting import wait_until

celery: Any = pytest.importorskip("celery", reason="real Celery is the other side")

pytestmark = pytest.mark.timeout(180)  # the first of them starts servers and workers

to_minicelery = case("redis", producers=("celery",), workers=("minicelery",))
to_both = case("redis", producers=("celery",))
"""With a worker of either library: what is true of Celery's own chords as well."""


def noted(pair: Pair, key: str) -> list[str]:
    """What bodies have noted under `key`, once there is nothing left to run."""
    wait_until(lambda: pair.notes(key), timeout=TIMEOUT)
    pair.settled()
    return pair.notes(key)


def keys_of(pair: Pair, group: str) -> set[str]:
    """The keys that the group has in the result store, without their beginning."""
    start = f"celery-taskset-meta-{group}"
    found = {key.decode()[len(start) :] for key in pair.redis.scan_iter(f"{start}*")}
    return {key.partition(":")[0] for key in found}


def failure_of(result: Any) -> str:
    """The text of the ChordError that the result is."""
    with pytest.raises(celery.exceptions.ChordError) as caught:
        result.get(timeout=TIMEOUT, propagate=True, follow_parents=False, disable_sync_subtasks=False)
    return str(caught.value)


@contextlib.contextmanager
def celery_beside(pair: Pair) -> Iterator[None]:
    """Have Celery's worker serve the queue of minicelery's as well."""
    pair.site.await_worker("celery")
    control = pair.app.control
    celery_only: Any = {
        "reply": True, "destination": [f"celery@{socket.gethostname()}"], "timeout": TIMEOUT,
    }  # fmt: skip
    assert control.add_consumer(pair.queue, **celery_only)
    try:
        yield
    finally:
        assert control.cancel_consumer(pair.queue, **celery_only)


# -- who runs what ---------------------------------------------------------------------------------


@to_both
def test_the_body_is_called_with_the_results_in_order(pair: Pair) -> None:
    header = [pair.sig("add", number, number) for number in range(5)]
    result = celery.chord(header, pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT) == {"args": [[0, 2, 4, 6, 8]], "kwargs": {}}
    group = result.parent.id
    wait_until(lambda: keys_of(pair, group) <= {".c", ".taken"}, timeout=TIMEOUT)
    assert pair.redis.get(f"celery-taskset-meta-{group}.c") == b"done"


@to_both
def test_one_part_is_a_chord_too(pair: Pair) -> None:
    result = celery.chord([pair.sig("add", 1, 1)], pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [[2]]


@to_both
def test_a_group_and_what_follows_it_are_a_chord(pair: Pair) -> None:
    result = (celery.group(pair.sig("add", 1, 1), pair.sig("add", 2, 2)) | pair.sig("echo")).apply_async()
    assert result.get(timeout=TIMEOUT)["args"] == [[2, 4]]


@to_minicelery
@pytest.mark.parametrize("last", ["celery", "minicelery"])
def test_parts_of_both_libraries_count_together(pair: Pair, last: str) -> None:
    pair.site.await_worker("celery")
    key, count = fresh(), 8
    header = [
        pair.sig("add", n, 0).set(queue=QUEUES["celery" if n % 2 else "minicelery"]) for n in range(count)
    ]
    holding = fresh()
    header.append(pair.sig("hold", holding).set(queue=QUEUES[last]))
    result = celery.chord(header, pair.sig("note_result", key))()
    group = result.parent.id
    wait_until(lambda: pair.redis.zcard(f"celery-taskset-meta-{group}.j") == count, timeout=TIMEOUT)
    pair.release(holding)
    assert noted(pair, key) == [str([*range(count), "released"])]


@to_minicelery
def test_celerys_parts_have_a_body_of_minicelerys(pair: Pair) -> None:
    pair.site.await_worker("celery")
    header = [pair.sig("add", number, 0).set(queue=QUEUES["celery"]) for number in range(3)]
    result = celery.chord(header, pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [[0, 1, 2]]


@to_minicelery
def test_minicelerys_parts_have_a_body_of_celerys(pair: Pair) -> None:
    pair.site.await_worker("celery")
    key = fresh()
    header = [pair.sig("add", number, 0) for number in range(3)]
    celery.chord(header, pair.sig("note_result", key).set(queue=QUEUES["celery"]))()
    assert noted(pair, key) == [str([0, 1, 2])]


@to_minicelery
def test_workers_of_both_libraries_may_serve_one_queue(pair: Pair) -> None:
    keys = [fresh() for _ in range(5)]
    with celery_beside(pair):
        results = [
            celery.chord([pair.sig("add", n, 0) for n in range(6)], pair.sig("note_result", key))()
            for key in keys
        ]
        for result in results:
            result.get(timeout=TIMEOUT)
        assert [noted(pair, key) for key in keys] == [[str([*range(6)])]] * len(keys)


@case("rabbitmq", producers=("celery",), workers=("minicelery",))
def test_parts_may_come_by_rabbitmq(pair: Pair) -> None:
    pair.site.await_worker("celery")
    original = QUEUES["celery"]
    header = [pair.sig("add", n, 0).set(queue=original if n % 2 else pair.queue) for n in range(4)]
    result = celery.chord(header, pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [[0, 1, 2, 3]]
    bad = celery.chord([*header, pair.sig("fail", "plain")], pair.sig("echo"))()
    assert "raised ValueError" in failure_of(bad)


# -- nested ----------------------------------------------------------------------------------------


@to_both
def test_a_chord_in_the_header_of_a_chord_counts_with_its_body(pair: Pair) -> None:
    inner = celery.chord([pair.sig("add", 1, 1), pair.sig("add", 2, 2)], pair.sig("echo"))
    result = celery.chord([inner, pair.sig("add", 3, 3)], pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [[{"args": [[2, 4]], "kwargs": {}}, 6]]


@to_both
def test_a_chain_in_the_header_counts_with_its_last_call(pair: Pair) -> None:
    header = [
        celery.chain(pair.sig("add", 1, 1), pair.sig("add", 2), pair.sig("add", 3)),
        pair.sig("add", 3, 3),
    ]
    result = celery.chord(header, pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [[7, 6]]


@to_both
def test_a_header_that_unfolds_to_groups_keeps_its_shape(pair: Pair) -> None:
    fork = celery.chain(pair.sig("add", 1, 1), celery.group(pair.sig("add", 1), pair.sig("add", 2)))
    result = celery.chord([fork, pair.sig("add", 3, 3)], pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [[[3, 4], 6]]


@to_minicelery
def test_a_header_that_celery_unfolds_and_minicelery_counts_keeps_its_shape(pair: Pair) -> None:
    """Celery 5.7 takes the size of the inner group for that of the chord."""
    pair.site.await_worker("celery")
    key = fresh()
    slow = pair.sig("nap", 0.2)
    slow.set_immutable(True)
    fork = celery.chain(
        pair.sig("add", 1, 1).set(queue=QUEUES["celery"]),
        celery.group(pair.sig("add", 1), celery.chain(slow, pair.sig("add", 2))),
    )
    celery.chord([fork, pair.sig("add", 3, 3)], pair.sig("note_result", key))()
    assert noted(pair, key) == ["[[3, 2.2], 6]"]


@to_both
def test_the_body_may_be_a_chain(pair: Pair) -> None:
    key = fresh()
    body = celery.chain(pair.sig("echo"), pair.sig("note_result", key))
    celery.chord([pair.sig("add", 1, 1), pair.sig("add", 2, 2)], body)()
    assert noted(pair, key) == [str({"args": [[2, 4]], "kwargs": {}})]


@to_both
def test_the_body_may_be_a_group(pair: Pair) -> None:
    keys = [fresh(), fresh()]
    body = celery.group(pair.sig("note_result", key) for key in keys)
    celery.chord([pair.sig("add", 1, 1), pair.sig("add", 2, 2)], body)()
    assert [noted(pair, key) for key in keys] == [["[2, 4]"]] * 2


@to_both
def test_a_chord_may_be_a_link_of_a_chain(pair: Pair) -> None:
    middle = celery.chord([pair.sig("add", 1), pair.sig("add", 2)], pair.sig("echo"))
    result = celery.chain(pair.sig("add", 1, 1), middle, pair.sig("echo")).apply_async()
    assert result.get(timeout=TIMEOUT)["args"] == [{"args": [[3, 4]], "kwargs": {}}]


@to_minicelery
def test_the_parts_of_a_chord_in_a_chain_may_be_celerys(pair: Pair) -> None:
    pair.site.await_worker("celery")
    original = QUEUES["celery"]
    inner = celery.chord([pair.sig("add", 4).set(queue=original), pair.sig("add", 5)], pair.sig("echo"))
    middle = celery.chord(
        [pair.sig("add", 1), pair.sig("add", 2).set(queue=original), inner],
        pair.sig("echo").set(queue=original),
    )
    result = celery.chain(pair.sig("add", 1, 1), middle, pair.sig("echo")).apply_async()
    values = [3, 4, {"args": [[6, 7]], "kwargs": {}}]
    assert result.get(timeout=TIMEOUT)["args"] == [{"args": [values], "kwargs": {}}]


@to_minicelery
def test_a_chord_in_a_chain_ends_where_both_libraries_serve_its_queue(pair: Pair) -> None:
    with celery_beside(pair):
        chains = [
            celery.chain(
                pair.sig("add", n, 1), celery.group(pair.sig("add", m) for m in range(4)), pair.sig("echo")
            ).apply_async()
            for n in range(8)
        ]
        for n, result in enumerate(chains):
            assert result.get(timeout=TIMEOUT)["args"] == [[n + 1 + m for m in range(4)]]


# -- parts that fail -------------------------------------------------------------------------------


@to_both
def test_a_failed_part_fails_the_body_which_names_it(pair: Pair) -> None:
    key = fresh()
    bad = pair.sig("fail", "plain")
    body = pair.sig("note_result", key).on_error(pair.sig("errback"))
    result = celery.chord([pair.sig("add", 1, 1), bad], body)()
    _, part = result.parent.results
    assert failure_of(result) == f"Dependency {part.id} raised ValueError('bad value', 42)"
    assert noted(pair, result.id) == [f"errback {result.id}"]
    assert pair.notes(key) == []


@to_minicelery
@pytest.mark.parametrize("fails", ["celery", "minicelery"])
def test_a_part_fails_the_body_in_either_library(pair: Pair, fails: str) -> None:
    pair.site.await_worker("celery")
    other = next(library for library in QUEUES if library != fails)
    header = [
        pair.sig("fail", "plain").set(queue=QUEUES[fails]),
        celery.chain(pair.sig("nap", 0.2), pair.sig("add", 1)).set(queue=QUEUES[other]),
    ]
    result = celery.chord(header, pair.sig("echo"))()
    part, _ = result.parent.results
    assert failure_of(result) == f"Dependency {part.id} raised ValueError('bad value', 42)"


@to_both
def test_the_first_call_of_a_chain_in_the_header_fails_the_body(pair: Pair) -> None:
    header = [celery.chain(pair.sig("fail", "plain"), pair.sig("add", 2)), pair.sig("add", 3, 3)]
    result = celery.chord(header, pair.sig("echo"))()
    part, _ = result.parent.results
    assert failure_of(result) == f"Dependency {part.id} raised ValueError('bad value', 42)"


@to_minicelery
def test_errbacks_that_want_the_exception_get_it(pair: Pair) -> None:
    """With a traceback, where Celery 5.7 has None."""
    body = pair.sig("echo").on_error(pair.sig("errback_of_three"))
    result = celery.chord([pair.sig("fail", "plain"), pair.sig("add", 1, 1)], body)()
    (note,) = noted(pair, result.id)
    assert note.startswith("ChordError (") and note.endswith("raised ValueError('bad value', 42)")


@to_minicelery
def test_a_failed_chord_in_the_header_fails_the_outer_body(pair: Pair) -> None:
    """With Celery 5.7 the outer one waits for ever."""
    inner = celery.chord([pair.sig("add", 1, 1), pair.sig("fail", "plain")], pair.sig("echo"))
    result = celery.chord([inner, pair.sig("add", 3, 3)], pair.sig("echo"))()
    part, _ = result.parent.results
    text = failure_of(result)
    assert text.startswith(f"Dependency {part.id} raised ChordError(")
    assert "ValueError('bad value', 42)" in text


@to_minicelery
def test_every_call_of_a_body_fails_with_its_parts(pair: Pair) -> None:
    parts = [pair.sig("fail", "plain"), pair.sig("add", 1, 1)]
    chain = celery.chord(parts, celery.chain(pair.sig("echo"), pair.sig("echo")))()
    group = celery.chord(parts, celery.group(pair.sig("echo"), pair.sig("echo")))()
    for result in (chain, *group.results):
        assert "raised ValueError" in failure_of(result)


@to_minicelery
def test_a_part_for_a_task_that_nobody_knows_fails_the_body(pair: Pair) -> None:
    unknown = celery.signature("interop.unknown", app=pair.app).set(queue=pair.queue)
    result = celery.chord([unknown, pair.sig("add", 1, 1)], pair.sig("echo"))()
    assert "NotRegistered" in failure_of(result)


@to_minicelery
def test_expired_and_rejected_parts_fail_the_body(pair: Pair) -> None:
    for part in (pair.sig("add", 1, 1, expires=0.001), pair.sig("reject", fresh(), False)):
        with pair.busy():
            result = celery.chord([pair.sig("add", 1, 1), part], pair.sig("echo"))()
        assert "raised" in failure_of(result)


@to_minicelery
def test_of_an_ignored_part_the_body_gets_none(pair: Pair) -> None:
    """With Celery 5.7 the body waits for ever."""
    result = celery.chord([pair.sig("ignore", fresh(), None), pair.sig("add", 1, 1)], pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [[None, 2]]


# -- once ------------------------------------------------------------------------------------------


@to_both
def test_a_part_that_retries_counts_once(pair: Pair) -> None:
    key = fresh()
    header = [pair.sig("flaky", 2), pair.sig("add", 1, 1), pair.sig("flaky", 1)]
    celery.chord(header, pair.sig("note_result", key))()
    (note,) = noted(pair, key)
    assert note.startswith("[[2, '")


@to_minicelery
def test_a_part_that_is_there_twice_counts_once(pair: Pair) -> None:
    key = fresh()
    with pair.busy():
        celery.chord([pair.sig("add", n, 0) for n in range(3)], pair.sig("note_result", key))()
        parts = pair.redis.lrange(pair.queue, 0, -1)
        assert len(parts) == 3
        for part in parts:
            pair.redis.lpush(pair.queue, part)
    assert noted(pair, key) == ["[0, 1, 2]"]
    for part in parts:  # and long after
        pair.redis.lpush(pair.queue, part)
    pair.settled()
    assert noted(pair, key) == ["[0, 1, 2]"]


@to_both
def test_parts_whose_results_nobody_wants_have_results_for_the_body(pair: Pair) -> None:
    result = celery.chord([pair.sig("ignored", fresh()), pair.sig("add", 1, 1)], pair.sig("echo"))()
    assert result.get(timeout=TIMEOUT)["args"] == [["nobody asks", 2]]


@to_both
def test_what_a_chord_keeps_expires(pair: Pair) -> None:
    header = [pair.sig("add", 1, 1), pair.sig("add", 1, 1).set(queue=fresh())]  # which nobody serves
    result = celery.chord(header, pair.sig("echo"))()
    start = f"celery-taskset-meta-{result.parent.id}"
    wait_until(lambda: all(pair.redis.ttl(f"{start}.{suffix}") > 0 for suffix in "jsd"), timeout=TIMEOUT)
    for suffix in "jsd":
        assert 86_000 < pair.redis.ttl(f"{start}.{suffix}") <= 86_400


@to_minicelery
def test_the_same_chord_may_be_sent_again(pair: Pair) -> None:
    key = fresh()
    chord = celery.chord([pair.sig("add", 1, 1), pair.sig("add", 2, 2)], pair.sig("note_result", key))
    chord.freeze()
    for times in (1, 2):
        with pair.busy():  # Celery says that it begins anew when it has sent all parts but one
            chord.apply_async()
        wait_until(lambda times=times: len(pair.notes(key)) == times, timeout=TIMEOUT)
    assert noted(pair, key) == ["[2, 4]"] * 2


# -- counted by a message --------------------------------------------------------------------------


@to_minicelery
def test_where_celerys_store_does_not_count_its_message_asks_for_the_body(pair: Pair, tmp_path: Any) -> None:
    app = importlib.import_module("tests.interop.tasks").make_app("celery", pair.site.place, pair.queue)
    app.conf.update(result_backend=f"file://{tmp_path}", result_chord_retry_interval=0.1)
    key = fresh()

    def sig(name: str, *args: Any) -> Any:
        return app.tasks[f"interop.{name}"].signature(args).set(queue=pair.queue)

    with app:
        fork = celery.chain(sig("add", 1, 1), celery.group(sig("add", 1), sig("add", 2)))
        celery.chord([fork, sig("add", 3, 3)], sig("note_result", key))()
        failing = celery.chord([sig("fail", "plain"), sig("add", 1, 1)], sig("echo"))()
    assert noted(pair, key) == ["[[3, 4], 6]"]
    ended = pair.app.AsyncResult(failing.id)
    assert "raised ValueError" in failure_of(ended)
