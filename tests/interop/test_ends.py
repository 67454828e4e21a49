"""How calls end between a client of either library and a worker of either, and what follows them.

What Celery's client and Celery's worker do between them is what the other pairs are held to;
where minicelery differs on purpose, the case says so and why.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.interop.pair import EVERYWHERE, TIMEOUT, Pair, case, done, fresh
from tests.interop.tasks import QUEUES, OrderError
from tests.waiting import wait_until

celery = pytest.importorskip("celery", reason="real Celery is the other side")

pytestmark = pytest.mark.timeout(180)  # the first of them starts servers and workers


# -- failures and retries ---------------------------------------------------------------------


@case(*EVERYWHERE)
def test_a_failure_is_raised_as_the_same_exception(pair: Pair) -> None:
    found = pair.send("fail", "builtin")
    with pytest.raises(ValueError) as caught:
        found.get(timeout=TIMEOUT)
    assert caught.value.args == ("bad value", 42)
    assert (found.state, found.failed()) == ("FAILURE", True)
    assert "ValueError: ('bad value', 42)" in found.traceback


@case()
def test_an_exception_class_of_the_users_is_raised_as_itself(pair: Pair) -> None:
    with pytest.raises(OrderError) as caught:
        pair.send("fail", "own").get(timeout=TIMEOUT)
    assert (caught.value.number, caught.value.args[1]) == (7, {"why": "x"})


@case(*EVERYWHERE)
def test_an_exception_class_that_the_client_does_not_know_keeps_its_name(pair: Pair) -> None:
    found = pair.send("fail", "unheard")
    error = found.get(timeout=TIMEOUT, propagate=False)
    assert (type(error).__name__, error.args) == ("Unheard", ("why", 1))


@case()
def test_arguments_that_do_not_fit_fail_the_task(pair: Pair) -> None:
    with pytest.raises(TypeError, match="add"):
        pair.app.send_task("interop.add", (1,), queue=pair.queue).get(timeout=TIMEOUT)


@case(*EVERYWHERE)
def test_an_unknown_task_is_not_registered_over_there(pair: Pair) -> None:
    with pytest.raises(pair.errors("NotRegistered"), match=r"interop\.nobody"):
        pair.app.send_task("interop.nobody", queue=pair.queue).get(timeout=TIMEOUT)


@case(*EVERYWHERE)
def test_a_retry_keeps_the_id_and_ends_in_the_value(pair: Pair) -> None:
    found = pair.send("flaky", 2)
    assert found.get(timeout=TIMEOUT) == [2, found.id, found.id]
    assert pair.notes(found.id) == ["0", "1", "2"]


@case()
def test_a_retry_that_waits_is_seen(pair: Pair) -> None:
    for countdown in (0.5, 5.0, 15.0):  # the last for a machine that takes seconds to look
        began = time.time()
        found = pair.send("flaky", 1, countdown)
        seen = wait_until(lambda found=found: waiting(found) or found.ready(), timeout=TIMEOUT)  # type: ignore[misc]
        assert found.get(timeout=TIMEOUT)[0] == 1
        assert time.time() - began >= countdown
        if seen is not True:
            break
    info, traceback = seen
    assert (type(info), info.args) == (OrderError, (0, None))
    assert f"Retry in {countdown}s: OrderError(0, None)" in traceback


def waiting(result: Any) -> tuple[Any, str] | None:
    """What is told of a call that waits to be retried, while it does: each attribute is read anew."""
    before, info, traceback, after = result.state, result.info, result.traceback, result.state
    return (info, traceback) if before == after == "RETRY" else None


@case(*EVERYWHERE)
def test_retries_end_in_the_exception(pair: Pair) -> None:
    found = pair.send("flaky", 99)
    with pytest.raises(OrderError) as caught:
        found.get(timeout=TIMEOUT)
    assert caught.value.number == 3
    assert pair.notes(found.id) == ["0", "1", "2", "3"]


@case()
def test_retries_without_an_exception_end_in_their_own(pair: Pair) -> None:
    found = pair.send("hopeless")
    with pytest.raises(pair.errors("MaxRetriesExceededError"), match=rf"interop\.hopeless\[{found.id}\]"):
        found.get(timeout=TIMEOUT)


@case()
def test_a_swallowed_retry_is_made_all_the_same(pair: Pair) -> None:
    found = pair.send("swallow")
    assert found.get(timeout=TIMEOUT) == "swallowed"
    wait_until(lambda: pair.notes(found.id) == ["0", "1"], timeout=TIMEOUT)


# -- links, chains and groups -----------------------------------------------------------------


@case(*EVERYWHERE)
def test_callbacks_get_the_value(pair: Pair) -> None:
    first, second = fresh(), fresh()
    links = [pair.sig("note_result", first), pair.sig("note", second, "set").set(immutable=True)]
    found = pair.send("add", 2, 3, link=links)
    assert found.get(timeout=TIMEOUT) == 5
    wait_until(lambda: pair.notes(first) == ["5"] and pair.notes(second) == ["set"], timeout=TIMEOUT)
    assert len(found.children) in (1, 2)  # Celery counts two callbacks as one group


@case()
def test_one_callback_is_the_calls_child(pair: Pair) -> None:
    found = pair.send("add", 2, 3, link=pair.sig("add", 10))
    assert found.get(timeout=TIMEOUT) == 5
    (child,) = found.children
    assert child.get(timeout=TIMEOUT) == 15


@case(*EVERYWHERE)
def test_an_errback_is_sent_the_failed_id(pair: Pair) -> None:
    found = pair.send("fail", "builtin", link_error=pair.sig("errback"))
    wait_until(lambda: pair.notes(found.id) == [f"errback {found.id}"], timeout=TIMEOUT)


@case()
def test_an_errback_of_three_arguments_gets_the_exception(pair: Pair) -> None:
    found = pair.send("fail", "builtin", link_error=pair.sig("errback_of_three"))
    wait_until(lambda: pair.notes(found.id), timeout=TIMEOUT)
    assert pair.notes(found.id) == ["ValueError ('bad value', 42) ValueError: ('bad value', 42)"]


@case()
def test_each_step_of_a_chain_gets_the_value_before_it(pair: Pair) -> None:
    results = pair.chain(pair.sig("add", 1, 2), pair.sig("add", 3), pair.sig("about"))
    about = results[2].get(timeout=TIMEOUT)
    assert [result.get(timeout=TIMEOUT) for result in results[:2]] == [3, 6]
    first, second, third = (result.id for result in results)
    assert (about["id"], about["args"]) == (third, [6])
    assert (about["root_id"], about["parent_id"]) == (first, second)
    assert [child.id for child in results[0].children] == [second]


@case()
def test_a_chain_goes_to_and_fro_between_the_libraries(pair: Pair) -> None:
    other = "celery" if pair.worker == "minicelery" else "minicelery"
    pair.site.await_worker(other)
    steps = [pair.sig("add", 1, 2), pair.sig("add", 3).set(queue=QUEUES[other]), pair.sig("add", 4)]
    results = pair.chain(*steps)
    assert [result.get(timeout=TIMEOUT) for result in results] == [3, 6, 10]


@case()
def test_a_chain_ends_with_the_step_that_fails(pair: Pair) -> None:
    key = fresh()
    results = pair.chain(pair.sig("fail", "own"), pair.sig("note_result", key))
    for result in results:
        with pytest.raises(OrderError):
            result.get(timeout=TIMEOUT)
    pair.settled()
    assert pair.notes(key) == []
    assert results[1].state == "FAILURE"


@case(producers=("celery",))
def test_a_client_of_celerys_hears_of_the_failed_step_when_it_waits_for_the_last(pair: Pair) -> None:
    found = celery.chain(pair.sig("flaky", 99), pair.sig("add", 4)).apply_async()
    with pytest.raises(OrderError):
        found.get(timeout=TIMEOUT)


@case(*EVERYWHERE)
def test_the_parts_of_a_group_know_it_and_are_joined_one_by_one(pair: Pair) -> None:
    parts = pair.group(*(pair.sig("about", n) for n in range(5)))
    found = [part.get(timeout=TIMEOUT) for part in parts]
    assert [about["args"] for about in found] == [[n] for n in range(5)]
    assert [about["group_index"] for about in found] == [0, 1, 2, 3, 4]
    assert len({about["group"] for about in found} - {None}) == 1


@case(producers=("celery",))
def test_a_group_of_celerys_is_gathered(pair: Pair) -> None:
    found = celery.group(pair.sig("add", n, n) for n in range(10)).apply_async()
    assert found.get(timeout=TIMEOUT) == [2 * n for n in range(10)]


@case()
def test_what_a_task_sends_is_its_child_and_knows_it(pair: Pair) -> None:
    found = pair.send("spawn", root_id="root")
    id = found.get(timeout=TIMEOUT)
    (child,) = found.children
    about = child.get(timeout=TIMEOUT)
    assert (child.id, about["id"]) == (id, id)
    assert (about["root_id"], about["parent_id"]) == ("root", found.id)


# -- states -----------------------------------------------------------------------------------


@case()
def test_an_ignored_result_is_not_stored(pair: Pair) -> None:
    for send in (
        lambda key: pair.send("ignored", key),
        lambda key: pair.send("note", key, "ran", ignore_result=True),
        lambda key: pair.app.send_task("interop.ignored", (key,), queue=pair.queue),
    ):
        key = fresh()
        found = send(key)
        wait_until(lambda key=key: pair.notes(key) == ["ran"], timeout=TIMEOUT)
        pair.settled()
        assert not pair.stored(found.id)


@case()
def test_a_state_of_the_tasks_own_is_read(pair: Pair) -> None:
    key = fresh()
    found = pair.send("progress", key)
    wait_until(lambda: found.state == "PROGRESS", timeout=TIMEOUT)
    assert found.info == {"done": 1, "total": 2}
    pair.release(key)
    assert found.get(timeout=TIMEOUT) == "finished"


@case()
def test_a_tracked_run_is_seen_to_have_started(pair: Pair) -> None:
    with pair.busy() as found:
        assert found.info.keys() == {"pid", "hostname"}


@case()
@pytest.mark.parametrize("state", [None, "DECLINED"])
def test_a_task_that_ignores_its_end_leaves_what_it_has_stored(pair: Pair, state: str | None) -> None:
    key = fresh()
    found = pair.send("ignore", key, state)
    wait_until(lambda: pair.notes(key) == ["ran"], timeout=TIMEOUT)
    pair.settled()
    assert (found.state, found.info) == (("PENDING", None) if state is None else (state, {"by": "itself"}))


@case()
def test_a_rejected_call_is_not_run_again(pair: Pair) -> None:
    key = fresh()
    found = pair.send("reject", key, False)
    wait_until(lambda: pair.notes(key) == ["ran"], timeout=TIMEOUT)
    pair.settled()
    assert (found.state, pair.notes(key)) == ("FAILURE", ["ran"])
    assert type(found.result) is pair.errors("Reject")
    assert found.result.args == ("not like this", False)
    if pair.worker == "minicelery":  # keeps the message where it can be looked at
        pair.await_dead(found.id)


@case()
def test_a_call_rejected_to_be_queued_again_is(pair: Pair) -> None:
    key = fresh()
    assert pair.send("reject", key, True).get(timeout=TIMEOUT) == "taken at last"
    assert pair.notes(key) == ["ran", "ran"]


@case()
def test_a_late_acknowledged_message_is_held_while_it_runs(pair: Pair) -> None:
    with pair.busy():
        wait_until(lambda: pair.held() == 1, timeout=TIMEOUT)
    wait_until(lambda: pair.held() == 0, timeout=TIMEOUT)


# -- results ----------------------------------------------------------------------------------

ENDS = {
    "success": lambda pair: pair.send("echo", 1, kwargs={"a": "é"}),
    "failure": lambda pair: pair.send("fail", "own"),
    "ignored by itself": lambda pair: pair.send("ignore", fresh(), "DECLINED"),
    "child": lambda pair: pair.send("spawn"),
    "member": lambda pair: pair.send("add", 1, 2, group_id=fresh(), parent_id=fresh()),
}


@case()
@pytest.mark.parametrize("end", ENDS)
def test_both_libraries_read_the_same_of_a_result(pair: Pair, end: str) -> None:
    found = ENDS[end](pair)
    wait_until(lambda: found.state not in ("PENDING", "STARTED"), timeout=TIMEOUT)
    by_celery, by_minicelery = map(_read, pair.readers(found.id))
    assert by_celery == by_minicelery


@case()
def test_extended_results_tell_of_the_call(pair: Pair) -> None:
    found = pair.send("echo", 1, kwargs={"a": "é"})
    found.get(timeout=TIMEOUT)
    for read in pair.readers(found.id):
        told = (read.name, read.args, read.kwargs, read.retries, read.queue)
        if pair.on_redis:  # where `result_extended` is off
            assert told == (None,) * 5 and read.worker is None
        else:
            assert told == ("interop.echo", [1], {"a": "é"}, 0, pair.queue) and "@" in read.worker


@case()
def test_a_result_is_forgotten(pair: Pair) -> None:
    found = pair.send("add", 1, 2)
    found.get(timeout=TIMEOUT)
    assert pair.stored(found.id)
    found.forget()
    assert not pair.stored(found.id)


def _read(result: Any) -> dict[str, Any]:
    value = result.result
    names = ("state", "traceback", "name", "args", "kwargs", "worker", "retries", "queue")
    return {
        **{name: getattr(result, name) for name in names},
        "result": (type(value), value.args) if isinstance(value, BaseException) else value,
        "children": [child.id for child in result.children or ()],
        "date_done": result.date_done and done(result),
    }
