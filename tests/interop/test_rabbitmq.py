"""What is RabbitMQ's own between the libraries: exchanges, kinds of queues, what the server drops and holds."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.interop.pair import LIBRARIES, TIMEOUT, Pair, Site, case, fresh
from tests.interop.tasks import QUEUES, TOPICS
from tests.waiting import wait_until

pytest.importorskip("celery", reason="real Celery is the other side")

pytestmark = pytest.mark.timeout(180)  # the first of them starts servers and workers


# -- what is declared --------------------------------------------------------------------------


def declared(site: Site, queue: str) -> str:
    """Type and options of a queue, of its bindings and of the exchanges they are to, as Erlang writes them.

    Without the binding by which delayed messages come: it is made for the first one.
    """
    vhost = f'<<"interop-{site.place.name}">>'
    value: str = site.server.eval(
        f'begin Name = rabbit_misc:r({vhost}, queue, <<"{queue}">>), '
        "{ok, Queue} = rabbit_amqqueue:lookup(Name), "
        "Keys = [durable, auto_delete, exclusive, arguments], "
        "{[{Key, Value} || {Key, Value} <- rabbit_amqqueue:info(Queue, Keys)], "
        "lists:sort([{element(4, element(2, B)), element(3, B), element(5, B), "
        "case rabbit_exchange:lookup(element(2, B)) of {ok, X} -> "
        "rabbit_exchange:info(X, [type, durable, auto_delete, internal, arguments]) end} "
        "|| B <- rabbit_binding:list_for_destination(Name), "
        'element(4, element(2, B)) =/= <<"celery_delayed_delivery">>])} end'
    )
    # But the bindings for what was delayed: Celery's, ``#.<key>``, also catch what was not; ours don't.
    value = re.sub(r'{<<"[^"]*">>,<<"(#|[*]([.][*]){27})[.][^"]*">>,\[],\[({[^}]*},?)*]},?', "", value)
    return re.sub(rf'<<"{queue}">>', "QUEUE", value.replace(queue.partition(".")[0] + ".", "LIBRARY."))


@pytest.mark.parametrize("name", ["", ".urgent", *(f".{name}" for name in TOPICS)])
@case("rabbitmq", producers=("celery",), workers=("minicelery",))
def test_both_workers_declare_their_queues_alike(pair: Pair, name: str) -> None:
    for library in LIBRARIES:
        pair.site.await_worker(library)
    ours, theirs = (declared(pair.site, QUEUES[library] + name) for library in ("minicelery", "celery"))
    assert ours == theirs
    assert "{durable,true}" in theirs and "badmatch" not in theirs


@pytest.mark.parametrize("name", ["", ".later"])
@case("quorum", producers=("celery",), workers=("minicelery",))
def test_both_workers_declare_their_quorum_queues_alike(pair: Pair, name: str) -> None:
    for library in LIBRARIES:
        pair.site.await_worker(library)
    ours, theirs = (declared(pair.site, QUEUES[library] + name) for library in ("minicelery", "celery"))
    assert ours == theirs
    assert '{<<"x-queue-type">>,longstr,<<"quorum">>}' in theirs


@case("rabbitmq", producers=("celery",), workers=("celery",))
def test_both_clients_declare_a_queue_they_were_not_told_of_alike(pair: Pair) -> None:
    found = []
    for library in LIBRARIES:
        name = fresh()
        pair.site.client(library, pair.worker).send_task("interop.add", (1, 2), queue=name)
        wait_until(lambda name=name: pair.on_queue("messages_ready", name) == 1, timeout=TIMEOUT)
        found.append(declared(pair.site, name))
    assert found[0] == found[1]


# -- where messages go ------------------------------------------------------------------------


@case("rabbitmq")
def test_a_call_to_a_queue_of_a_topic_exchange_goes_by_its_binding_key(pair: Pair) -> None:
    about = pair.send("about", queue=f"{pair.queue}.mail").get(timeout=TIMEOUT)
    assert (about["exchange"], about["routing_key"]) == (f"{pair.queue}.topics", "mail.#")


@case("rabbitmq")
def test_a_call_to_a_queue_with_a_key_of_its_own_goes_by_that(pair: Pair) -> None:
    found = pair.send("about", queue=f"{pair.queue}.mail", routing_key="mail.x")
    about = found.get(timeout=TIMEOUT)
    assert (about["exchange"], about["routing_key"]) == (f"{pair.queue}.topics", "mail.x")


@case("rabbitmq")
def test_a_call_to_an_exchange_goes_to_every_queue_that_its_key_matches(pair: Pair) -> None:
    for key, runs in (("mail.eu.1", 1), ("mail.eu", 2), ("parcel.eu", 1)):
        mark = fresh()
        pair.app.send_task("interop.note", (mark, "ran"), exchange=f"{pair.queue}.topics", routing_key=key)
        wait_until(lambda mark=mark, runs=runs: len(pair.notes(mark)) == runs, timeout=TIMEOUT)
        pair.settled()
        assert len(pair.notes(mark)) == runs


@case("rabbitmq", producers=("celery",))
def test_a_call_with_a_key_that_nothing_is_bound_by_is_dropped_as_celery_sends_it(pair: Pair) -> None:
    mark = fresh()
    pair.app.send_task("interop.note", (mark, "ran"), exchange=f"{pair.queue}.topics", routing_key="a.b.eu")
    pair.settled()
    assert pair.notes(mark) == []


@case("rabbitmq", producers=("minicelery",))
def test_a_call_with_a_key_that_nothing_is_bound_by_is_refused_also_after_a_delayed_one(pair: Pair) -> None:
    delayed = pair.send("add", 1, 2, queue=f"{pair.queue}.eu", routing_key="x.eu", countdown=1.1)
    mark = fresh()
    with pytest.raises(pair.errors("OperationalError"), match=r"'a\.b\.eu'"):
        pair.app.send_task(
            "interop.note", (mark, "ran"), exchange=f"{pair.queue}.topics", routing_key="a.b.eu"
        )
    assert delayed.get(timeout=TIMEOUT) == 3
    assert pair.notes(mark) == []


@case("rabbitmq")
def test_a_retry_goes_back_to_where_the_call_came_from(pair: Pair) -> None:
    found = pair.send("flaky", 1, queue=f"{pair.queue}.mail", routing_key="mail.x")
    assert found.get(timeout=TIMEOUT) == [1, found.id, found.id]


@case("rabbitmq")
def test_the_most_urgent_call_of_a_priority_queue_is_run_first(pair: Pair) -> None:
    key, queue = fresh(), f"{pair.queue}.urgent"
    with pair.busy(queue):
        found = [pair.send("note", key, priority, priority=priority, queue=queue) for priority in (0, 9, 5)]
        found.append(pair.send("note", key, None, queue=queue))
    for one in found:
        one.get(timeout=TIMEOUT)
    ran = pair.notes(key)
    if pair.worker == "celery" and ran[0] == "0":
        # A Celery worker that has held a delayed task before may take one message more than it should.
        ran.insert(2, ran.pop(0))
    assert ran == ["9", "5", "0", "None"]


@case("rabbitmq")
def test_the_priority_of_a_call_is_told_to_the_task_on_any_queue(pair: Pair) -> None:
    assert pair.send("about", priority=7).get(timeout=TIMEOUT)["priority"] == 7


# -- times -------------------------------------------------------------------------------------


@case("rabbitmq", producers=("celery",), workers=("celery",))
def test_the_server_drops_what_celery_has_sent_and_has_expired(pair: Pair) -> None:
    queue = fresh()  # served by nobody

    def is_there(seconds: float) -> bool:
        end = time.time() + seconds
        while time.time() < end:
            if pair.on_queue("messages_ready", queue) == 1:
                return True
        return False

    for seconds in (0.3, 3.0, 9.0):  # the last for a machine that takes seconds to look
        found = pair.send("add", 1, 2, queue=queue, expires=seconds)
        if is_there(seconds):
            break
    else:
        raise AssertionError("it was not there before it had expired")
    wait_until(lambda: pair.on_queue("messages_ready", queue) == 0, timeout=TIMEOUT)
    assert found.state == "PENDING"  # no worker has heard of it


@case("rabbitmq", producers=("minicelery",))
def test_the_server_keeps_what_minicelery_has_sent_for_a_worker_to_say_revoked(pair: Pair) -> None:
    with pair.busy():
        found = pair.send("add", 1, 2, expires=0.1)
        # With the one that runs; a Celery worker that has held a delayed task may have taken this one too.
        wait_until(lambda: pair.on_queue("messages") == 2, timeout=TIMEOUT)
        limit = time.time() + 0.2
        wait_until(lambda: time.time() > limit)
        assert pair.on_queue("messages") == 2
    with pytest.raises(pair.errors("TaskRevokedError"), match="expired"):
        found.get(timeout=TIMEOUT)


@case("rabbitmq")
def test_a_delayed_call_waits_in_the_server_where_either_side_is_minicelery(pair: Pair) -> None:
    held = 1 if pair.producer == pair.worker == "celery" else 0
    for countdown in (1.6, 5.6, 15.6):  # the last for a machine that takes seconds to look
        due = time.time() + countdown
        found = pair.send("add", 1, 2, countdown=countdown)
        pair.settled()
        wait_until(
            lambda found=found: (
                (pair.held(), pair.on_queue("messages_ready")) == (held, 0) or found.ready()
            ),
            timeout=TIMEOUT,
        )  # fmt: skip
        early = not found.ready()
        assert found.get(timeout=TIMEOUT) == 3
        assert time.time() >= due
        if early:
            return
    raise AssertionError("it did not wait as it should")


@case("rabbitmq")
def test_a_delayed_call_is_told_of_its_queue_and_can_be_retried(pair: Pair) -> None:
    found = pair.send("about", countdown=1.9)  # of which the server waits for a second
    again = pair.send("flaky", 1, countdown=1.1)
    about = found.get(timeout=TIMEOUT)
    if pair.producer == "celery" or pair.worker == "minicelery":
        assert (about["exchange"], about["routing_key"]) == ("", pair.queue)
    else:  # it has waited in the server, and Celery does not know where it was to go
        assert about["exchange"].startswith("celery_delayed_")
        assert about["routing_key"].endswith(f".1.{pair.queue}")
    assert again.get(timeout=TIMEOUT) == [1, again.id, again.id]


@case("rabbitmq", workers=("minicelery",))
def test_a_call_that_waits_for_less_than_a_second_keeps_nothing_from_running(pair: Pair) -> None:
    found, overtaken = [], []
    for _ in range(5):
        found.append(pair.send("add", 1, 2, countdown=0.9))
        pair.settled()
        overtaken.append(not found[-1].ready())
    assert [one.get(timeout=TIMEOUT) for one in found] == [3] * 5
    assert overtaken.count(True) >= 3  # of the others the machine may have taken a second to send one


# -- quorum queues, and results by rpc -----------------------------------------------------------


@case("quorum")
def test_the_task_sees_a_call_that_came_over_a_quorum_queue(pair: Pair) -> None:
    about = pair.send("about", 1).get(timeout=TIMEOUT)
    assert (about["args"], about["retries"], about["redelivered"]) == ([1], 0, False)
    assert (about["routing_key"], bool(about["reply_to"])) == (pair.queue, True)


@case("quorum")
def test_a_call_that_celery_would_delay_in_the_server_is_delayed_there_by_either(pair: Pair) -> None:
    pair.site.await_worker("celery")  # which makes the exchange that Celery's senders expect
    queue = f"{pair.queue}.later"
    for countdown in (3.1, 3.1, 12.1):  # the last for a machine that takes seconds for what follows
        due = time.time() + countdown
        found = pair.app.send_task("interop.about", countdown=countdown)
        pair.settled()
        early = not found.ready()
        there = pair.on_queue("messages_unacknowledged", queue) + pair.on_queue("messages_ready", queue)
        assert found.get(timeout=TIMEOUT)["eta"]
        assert time.time() >= due
        if early and there == 0:
            return
    raise AssertionError("it waited on its queue, or did not wait")


@case("quorum")
def test_a_call_rejected_to_be_queued_again_by_a_quorum_queue_is(pair: Pair) -> None:
    key = fresh()
    assert pair.send("reject", key, True).get(timeout=TIMEOUT) == "taken at last"
    assert pair.notes(key) == ["ran", "ran"]


@case("quorum")
def test_every_state_is_sent_to_the_client(pair: Pair) -> None:
    key, seen = fresh(), []

    def on_message(meta: dict[str, Any]) -> None:
        seen.append((meta["status"], meta["result"]))
        if meta["status"] == "PROGRESS":
            pair.release(key)

    found = pair.send("progress", key)
    assert found.get(timeout=TIMEOUT, on_message=on_message) == "finished"
    assert seen == [("PROGRESS", {"done": 1, "total": 2}), ("SUCCESS", "finished")]


@case("quorum", producers=("celery",))
def test_the_steps_of_a_chain_send_their_results_to_who_has_sent_the_first(pair: Pair) -> None:
    results = pair.chain(pair.sig("add", 1, 2), pair.sig("add", 3), pair.sig("add", 4))
    assert [result.get(timeout=TIMEOUT) for result in results] == [3, 6, 10]


@case("quorum")
def test_results_reach_the_client_in_any_order_it_asks(pair: Pair) -> None:
    found = [pair.send("add", n, n) for n in range(20)]
    assert [one.get(timeout=TIMEOUT) for one in reversed(found)] == [2 * n for n in reversed(range(20))]


@case("quorum")
def test_an_ignored_result_is_not_sent_to_the_client(pair: Pair) -> None:
    key = fresh()
    found = pair.send("ignored", key)
    pair.settled()
    assert (pair.notes(key), found.state) == (["ran"], "PENDING")
