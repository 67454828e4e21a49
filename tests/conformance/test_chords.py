"""What every result store that counts does for chords, and every consumer with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from minicelery.broker import Backend, Broker, Consumer, open_backend
from minicelery.broker.chords import LOOK_AGAIN, RESEND
from minicelery.message import BODY_HEADER, COPY_HEADER, Delivery, Group, Message, Outcome, Record, Verdict
from tests.conformance.conftest import MakeConsumer
from tests.conformance.messages import acked, call, ids, record
from tests.waiting import wait_until


@pytest.fixture
def store(store_url: str) -> Iterator[Any]:
    store = open_backend(store_url)
    yield store
    store.close()


def body(group: str, name: str = "body", **fields: Any) -> Message:
    message = call(name, **fields)
    message.headers[BODY_HEADER] = group
    return message


def group(members: list[str], id: str = "g", **fields: Any) -> Group:
    return Group(id, members, fields.pop("body", None) or body(id), **{"place": "here", **fields})


def part(id: str, state: str = "SUCCESS", of: str = "g") -> Record:
    return replace(record(id, state), part_of=of)


def sent(bodies: list[Message]) -> list[str]:
    return [one.id for one in bodies]


# -- a store by itself -------------------------------------------------------------------------


def test_the_last_part_releases_the_body(store: Any) -> None:
    store.open_groups([group(["1", "2", "3"])])
    assert store.store([part("3"), part("1")]) == []
    (found,) = store.store([part("2")])
    assert (found.id, found.task, found.queue) == ("body", "tasks.add", "q")
    assert found.body == call("body").body and found.headers[BODY_HEADER] == "g"
    assert found.headers[COPY_HEADER] and (found.exchange, found.routing_key) == ("", "q")
    assert [one and one.document for one in store.load(["1", "2", "3"])] == [
        record(id).document for id in ("1", "2", "3")
    ]


def test_a_part_counts_once_however_often_it_ends(store: Any) -> None:
    store.open_groups([group(["1", "2"])])
    assert [store.store([part("1")]) for _ in range(5)] == [[]] * 5
    assert sent(store.store([part("2"), part("2")])) == ["body"]
    assert store.store([part("1"), part("2")]) == []


def test_a_part_that_has_ended_well_does_not_fail_any_more(store: Any) -> None:
    store.open_groups([group(["1", "2"])])
    assert store.store([part("1"), part("1", "FAILURE")]) == []
    assert sent(store.store([part("2")])) == ["body"]


def test_the_first_part_that_fails_releases_the_body(store: Any) -> None:
    for state in ("FAILURE", "REVOKED"):
        store.open_groups([group(["1", "2", "3"], state)])
        assert sent(store.store([part("2", state, of=state)])) == ["body"]
        assert store.store([part(id, of=state) for id in "123"]) == []


def test_an_ignored_part_counts_as_one_that_ended_well(store: Any) -> None:
    store.open_groups([group(["1", "2"])])
    assert store.store([part("1", "IGNORED")]) == []
    assert sent(store.store([part("2")])) == ["body"]


def test_a_part_of_a_group_that_is_not_there_is_just_stored(store: Any) -> None:
    assert store.store([part("1", of="unknown")]) == []
    assert store.load(["1"])[0].document == record("1").document


def test_many_groups_count_by_themselves(store: Any) -> None:
    store.open_groups([group([f"{n}a", f"{n}b"], f"g{n}", body=body(f"g{n}", f"body{n}")) for n in range(3)])
    assert store.store([part(f"{n}a", of=f"g{n}") for n in range(3)]) == []
    assert sorted(sent(store.store([part("2b", of="g2"), part("0b", of="g0")]))) == ["body0", "body2"]


def test_opening_a_group_again_changes_nothing(store: Any) -> None:
    store.open_groups([group(["1", "2"])])
    store.store([part("1")])
    store.open_groups([group(["1", "2"], body=body("g", "another"))])
    assert sent(store.store([part("2")])) == ["body"]
    store.open_groups([group(["1", "2"])])
    assert store.store([part("1"), part("2")]) == []


def test_a_group_is_loaded_as_it_was_opened(store: Any) -> None:
    names = ["b", "a", "ü \n\"'", "c"]
    store.open_groups([group(names, passes=False)])
    found = store.load_group("g")
    assert (found.id, found.members, found.passes) == ("g", names, False)
    assert store.load_group("unknown") is None


def test_a_member_that_is_there_twice_ends_once(store: Any) -> None:
    store.open_groups([group(["1", "2", "1"])])
    assert store.store([part("1")]) == []
    assert sent(store.store([part("2")])) == ["body"]
    assert store.load_group("g").members == ["1", "2", "1"]


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_groups_of_any_size(store: Any, count: int) -> None:
    names = [str(n) for n in range(count)] or ["only"]
    store.open_groups([group(names)])
    assert store.store([part(name) for name in names[:-1]]) == []
    assert sent(store.store([part(names[-1])])) == ["body"]
    assert store.load_group("g").members == names


def test_one_more_part_is_waited_for(store: Any) -> None:
    store.open_groups([group(["1"])])
    assert store.add_member("g", "2") and store.add_member("g", "2")
    assert store.store([part("1")]) == []
    assert sent(store.store([part("2")])) == ["body"]
    assert store.load_group("g").members == ["1", "2"]
    assert not store.add_member("g", "3") and not store.add_member("unknown", "3")


def test_a_body_that_waits_is_due_some_seconds_after_its_parts(store: Any) -> None:
    due = time.time() + 99
    store.open_groups([group(["1"], countdown=30.0), group(["2"], "h", body=body("h", due=due))])
    before = time.time()
    (first,) = store.store([part("1")])
    (second,) = store.store([part("2", of="h")])
    assert before + 29.9 < first.due < time.time() + 30.1
    assert second.due == pytest.approx(due, abs=0.1)


def test_a_body_is_owed_until_it_has_claimed_its_group(store: Any) -> None:
    store.open_groups([group(["1"])])
    before = time.time()
    (first,) = store.store([part("1")])
    now = time.time()
    assert store.owed_groups(before, "here") == []
    (second,) = store.owed_groups(now + RESEND + 1, "here")
    assert second.id == first.id and second.headers[COPY_HEADER] != first.headers[COPY_HEADER]
    assert store.owed_groups(now + RESEND + 2, "here") == []  # somebody is just sending it
    assert sent(store.owed_groups(now + 5 * RESEND, "here")) == ["body"]
    assert store.claim_group("g", second.headers[COPY_HEADER])
    assert store.owed_groups(now + 100_000, "here") == []


def test_a_body_that_is_said_to_be_sent_is_owed_again_if_it_does_not_begin(store: Any) -> None:
    store.open_groups([group(["1"])])
    store.store([part("1")])
    before = time.time()
    store.group_sent(["g", "unknown"])
    now = time.time()
    assert store.owed_groups(before + LOOK_AGAIN - 1, "here") == []
    assert sent(store.owed_groups(now + LOOK_AGAIN + 1, "here")) == ["body"]
    store.group_sent(["g"])
    assert store.owed_groups(now + LOOK_AGAIN + 2, "here") == []


def test_the_deadline_releases_the_body_once(store: Any) -> None:
    now = time.time()
    store.open_groups([group(["1", "2"], deadline=now + 50), group(["3"], "h")])
    store.store([part("1")])
    assert store.owed_groups(now + 49, "here") == []
    assert sent(store.owed_groups(now + 51, "here")) == ["body"]
    assert store.store([part("2")]) == []
    store.group_sent(["g"])
    assert store.owed_groups(now + 52, "here") == []


def test_a_deadline_after_the_end_means_nothing(store: Any) -> None:
    now = time.time()
    store.open_groups([group(["1"], deadline=now + 50)])
    assert sent(store.store([part("1")])) == ["body"]
    store.group_sent(["g"])
    assert store.owed_groups(now + 51, "here") == []


def test_only_bodies_for_the_asking_broker_are_owed_to_it(store: Any) -> None:
    now = time.time()
    store.open_groups([group(["1"], deadline=now), group(["2"], "h", place="there")])
    store.store([part("2", of="h")])
    assert len(store.owed_groups(now + 100, "here")) == len(store.owed_groups(now + 100, "there")) == 1
    assert store.owed_groups(now + 100, "elsewhere") == []


def test_a_dropped_group_is_as_if_it_never_was(store: Any) -> None:
    store.open_groups([group(["1", "2"], deadline=time.time())])
    store.store([part("1")])
    store.drop_groups(["g", "unknown"])
    assert store.load_group("g") is None and store.store([part("2")]) == []
    assert store.owed_groups(time.time() + 1000, "here") == []


def test_the_first_copy_of_a_body_claims_the_group(store: Any) -> None:
    store.open_groups([group(["1"])])
    (first,) = store.store([part("1")])
    (second,) = store.owed_groups(time.time() + RESEND + 1, "here")
    names = [one.headers[COPY_HEADER] for one in (second, first)]
    assert [store.claim_group("g", name) for name in (*names, names[0])] == [True, False, True]
    assert store.claim_group("unknown", "copy")
    assert store.owed_groups(time.time() + 10_000, "here") == []


def test_results_of_parts_stay_until_the_body_may_need_them(store: Any) -> None:
    long, ever = time.time() + 60, [replace(part(id), ttl=0.05) for id in ("4", "5")]
    store.open_groups(
        [group(["1", "2"], until=long), group(["4", "9"], "h"), group(["5", "9"], "i", until=1.0)]
    )
    store.store([replace(part("1"), ttl=0.05), replace(record("3"), ttl=0.05)])
    store.store([replace(ever[0], part_of="h"), replace(ever[1], part_of="i")])
    wait_until(lambda: store.load(["3", "5"]) == [None, None])
    assert None not in store.load(["1", "4"])


def test_a_group_is_gone_after_its_time(store: Any) -> None:
    def is_there() -> bool:
        store.open_groups([group(["1"], ttl=0.2)])
        return store.load_group("g") is not None

    wait_until(is_there)  # where the machine stops in between, it is gone

    def gone() -> bool:
        store.owed_groups(time.time(), "here")
        return store.load_group("g") is None

    wait_until(gone)
    assert store.store([part("1")]) == []


def test_one_of_many_who_end_parts_at_once_gets_the_body(store: Any, store_url: str) -> None:
    names = [str(n) for n in range(40)]
    store.open_groups([group(names)])
    stores: list[Any] = [open_backend(store_url) for _ in range(4)]
    found: list[Message] = []

    def end(at: int) -> None:
        for name in names[at::4]:
            found.extend(stores[at].store([part(name)]))

    threads = [threading.Thread(target=end, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for one in stores:
        one.close()
    assert sent(found) == ["body"]


def test_saved_groups_are_restored_until_they_are_deleted(store: Any) -> None:
    store.save_group("g", b'{"result": []}', 60.0)
    store.save_group("for ever", b"2", None)
    store.save_group("short", b"3", 0.05)
    assert (store.restore_group("g"), store.restore_group("for ever")) == (b'{"result": []}', b"2")
    wait_until(lambda: store.restore_group("short") is None)
    store.delete_group("g")
    store.delete_group("unknown")
    assert store.restore_group("g") is None


# -- with a broker -----------------------------------------------------------------------------


def end_of(delivery: Delivery, **fields: Any) -> Outcome:
    return Outcome(delivery, record=part(delivery.message.id), **fields)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_body_leaves_with_the_last_part(
    broker: Broker, make_consumer: MakeConsumer, backend: Any, other_backend: Any, elsewhere: bool
) -> None:
    store = other_backend if elsewhere else backend
    consumer = make_consumer(backend=store)
    store.open_groups([group(["1", "2"])])
    broker.publish([call("1"), call("2")])
    for delivery in consumer.swap([], 1, 10.0):
        (second,) = consumer.swap([end_of(delivery)], 1, 10.0)
    (fresh,) = consumer.swap([end_of(second)], 1, 10.0)
    assert (fresh.message.id, fresh.message.headers[BODY_HEADER]) == ("body", "g")
    consumer.swap([Outcome(fresh, record=record("body"))], 0, 0)
    assert store.owed_groups(time.time() + 100_000, "here") == []
    assert broker.size("q") == 0


def test_the_same_last_part_twice_releases_the_body_once(
    broker: Broker, consumer: Consumer, backend: Any
) -> None:
    backend.open_groups([group(["1"])])
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 10.0)
    done = [end_of(delivery)]
    consumer.swap(done, 0, 0)
    consumer.swap(done, 0, 0)
    assert broker.size("q") == 1


def test_what_is_not_held_any_more_does_not_count(
    broker: Broker, consumer: Consumer, make_consumer: MakeConsumer, backend: Any
) -> None:
    if not consumer.adopts:
        consumer.close()
        return  # such a broker gives back what a lost connection held; see test_consumer
    backend.open_groups([group(["1"])])
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 10.0)
    heir = make_consumer(backend=backend)
    heir.adopt(consumer.name)
    consumer.swap([end_of(delivery)], 0, 0)
    assert broker.size("q") == 0 and backend.load(["1"]) == [None]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_records_of_calls_that_will_not_be_made_are_stored_and_count(
    broker: Broker, make_consumer: MakeConsumer, backend: Any, other_backend: Any, elsewhere: bool
) -> None:
    store: Any = other_backend if elsewhere else backend
    consumer = make_consumer(backend=store)
    store.open_groups([group(["last"])])
    broker.publish([call("first")])
    (delivery,) = consumer.swap([], 1, 10.0)
    more = [record("middle", "FAILURE"), part("last", "FAILURE")]
    outcome = Outcome(delivery, record=record("first", "FAILURE"), more=more, publish=[call("errback")])
    fresh = consumer.swap([outcome], 2, 10.0)
    wait_until(lambda: len(fresh) == 2 or fresh.extend(consumer.swap([], 1, 0.5)))
    assert sorted(ids(fresh)) == ["body", "errback"]
    assert None not in store.load(["first", "middle", "last"])


def test_a_rejected_part_counts(broker: Broker, consumer: Consumer, backend: Any) -> None:
    backend.open_groups([group(["1", "2"])])
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 10.0)
    outcome = Outcome(delivery, Verdict.REJECT, part("1", "FAILURE"), reason="no good")
    assert ids(consumer.swap([outcome], 1, 10.0)) == ["body"]
    assert broker.dead("q") == 1


def test_a_released_body_keeps_its_place_and_priority(
    broker: Broker, make_consumer: MakeConsumer, backend: Any
) -> None:
    consumer = make_consumer("q", "parts", backend=backend)
    backend.open_groups([group(["1"], body=body("g", queue="parts", priority=5))])
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 10.0)
    (fresh,) = consumer.swap([end_of(delivery)], 1, 10.0)
    assert (fresh.message.id, fresh.message.queue, fresh.message.priority) == ("body", "parts", 5)
    consumer.swap(acked([fresh]), 0, 0)


def test_a_body_that_waits_is_delayed(broker: Broker, consumer: Consumer, backend: Backend) -> None:
    store: Any = backend
    broker.tend(["q"], [])
    store.open_groups([group(["1"], countdown=1.0)])
    broker.publish([call("1")])
    (delivery,) = consumer.swap([], 1, 10.0)
    began = time.monotonic()
    assert ids(consumer.swap([end_of(delivery)], 1, 20.0)) == ["body"]
    assert time.monotonic() - began >= 0.9
