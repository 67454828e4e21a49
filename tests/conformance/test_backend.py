"""What every result store does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from minicelery.broker import Backend, open_backend
from minicelery.broker.listening import Listener, open_listener
from minicelery.message import Record
from tests.conformance.messages import record
from tests.waiting import wait_until


@pytest.fixture
def backend(store_url: str) -> Iterator[Backend]:
    backend = open_backend(store_url)
    yield backend
    backend.close()


def documents(found: list[Record | None]) -> list[bytes | None]:
    return [None if item is None else item.document for item in found]


def test_records_are_loaded_in_the_order_asked_for(backend: Backend) -> None:
    records = [record(str(n), result=n) for n in range(5)]
    backend.store(records)
    loaded = backend.load(["3", "missing", "0", "3"])
    assert documents(loaded) == [records[3].document, None, records[0].document, records[3].document]
    assert [item.id for item in loaded if item] == ["3", "0", "3"]


def test_nothing_is_stored_and_loaded_without_ids(backend: Backend) -> None:
    backend.store([])
    assert backend.load([]) == []
    backend.forget([])


@pytest.mark.parametrize("later", ["FAILURE", "STARTED", "RETRY", "REVOKED"])
def test_a_success_is_never_overwritten(backend: Backend, later: str) -> None:
    success = record("1", "SUCCESS")
    backend.store([success])
    backend.store([record("1", later, "other")])
    assert documents(backend.load(["1"])) == [success.document]


def test_any_other_state_is_overwritten(backend: Backend) -> None:
    for state in ("STARTED", "RETRY", "FAILURE", "STARTED", "SUCCESS"):
        latest = record("1", state)
        backend.store([latest])
        assert documents(backend.load(["1"])) == [latest.document]


def test_of_two_records_in_one_call_the_last_wins(backend: Backend) -> None:
    backend.store([record("1", "STARTED"), record("1", "SUCCESS", 5)])
    assert documents(backend.load(["1"])) == [record("1", "SUCCESS", 5).document]


def test_a_record_is_gone_after_its_time(backend: Backend) -> None:
    def is_seen() -> bool:
        backend.store([record("short", ttl=0.2), record("long", ttl=60), record("ever", ttl=None)])
        return None not in backend.load(["short", "long", "ever"])

    wait_until(is_seen)  # where the machine stops in between, it is gone
    wait_until(lambda: backend.load(["short"]) == [None])
    assert None not in backend.load(["long", "ever"])


def test_after_an_expired_success_anything_is_stored(backend: Backend) -> None:
    backend.store([record("1", "SUCCESS", ttl=0.1)])
    wait_until(lambda: backend.load(["1"]) == [None])
    backend.store([record("1", "FAILURE")])
    assert documents(backend.load(["1"])) == [record("1", "FAILURE").document]


def test_watch_returns_at_once_what_is_there(backend: Backend) -> None:
    backend.store([record("1")])
    began = time.monotonic()
    assert [item.id for item in backend.watch(["1", "2"], {}, 10)] == ["1"]
    assert time.monotonic() - began < 5


def test_watch_returns_only_what_differs_from_what_was_seen(backend: Backend) -> None:
    backend.store([record("1"), record("2")])
    seen = {"1": record("1").document, "2": b"older"}
    assert [item.id for item in backend.watch(["1", "2"], seen, 10)] == ["2"]


def test_watch_returns_nothing_when_its_time_is_over(backend: Backend) -> None:
    backend.store([record("1")])
    began = time.monotonic()
    assert backend.watch(["1", "2"], {"1": record("1").document}, 0.2) == []
    assert 0.15 < time.monotonic() - began < 5


@pytest.mark.parametrize("state", ["SUCCESS", "STARTED"])
def test_watch_wakes_when_another_thread_stores(backend: Backend, store_url: str, state: str) -> None:
    other = open_backend(store_url)
    timer = threading.Timer(0.2, other.store, ([record("unrelated"), record("2", state)],))
    timer.start()
    began = time.monotonic()
    found = backend.watch(["1", "2"], {}, 10)
    assert [(item.id, item.document) for item in found] == [("2", record("2", state).document)]
    assert time.monotonic() - began < 5
    timer.join()
    other.close()


def test_watch_does_not_wake_for_other_ids(backend: Backend) -> None:
    timer = threading.Timer(0.1, backend.store, ([record("other")],))
    timer.start()
    began = time.monotonic()
    assert backend.watch(["1"], {}, 0.4) == []
    assert time.monotonic() - began > 0.35
    timer.join()


def test_watch_sees_a_state_after_another(backend: Backend) -> None:
    seen: dict[str, bytes] = {}
    states = ["STARTED", "RETRY", "SUCCESS"]
    for state in states:
        timer = threading.Timer(0.05, backend.store, ([record("1", state)],))
        timer.start()
        (found,) = backend.watch(["1"], seen, 10)
        assert found.document == record("1", state).document
        seen["1"] = found.document
        timer.join()


def test_many_ids_are_watched_at_once(backend: Backend) -> None:
    names = [str(n) for n in range(2500)]
    seen: dict[str, bytes] = {}

    def store() -> None:
        for start in range(0, 2500, 500):
            backend.store([record(name) for name in names[start : start + 500]])

    thread = threading.Thread(target=store)
    thread.start()
    end = time.monotonic() + 20
    while len(seen) < 2500 and time.monotonic() < end:
        seen |= {item.id: item.document for item in backend.watch(names, seen, 5)}
    thread.join()
    assert sorted(seen) == sorted(names)
    assert None not in backend.load(names)


def test_forgotten_records_are_gone(backend: Backend) -> None:
    backend.store([record("1"), record("2")])
    backend.forget(["1", "never"])
    assert documents(backend.load(["1", "2"])) == [None, record("2").document]
    backend.store([record("1", "FAILURE")])
    assert documents(backend.load(["1"])) == [record("1", "FAILURE").document]


def test_large_documents_and_odd_ids(backend: Backend) -> None:
    for id in ("grün 🐇", 'it\'s "quoted" \\', "x" * 200):
        large = record(id, result="ü" * 1_000_000)
        backend.store([large])
        assert documents(backend.load([id])) == [large.document]


def test_threads_share_one_backend(backend: Backend) -> None:
    failures: list[object] = []

    def work(thread: int) -> None:
        try:
            for n in range(25):
                backend.store([record(f"{thread}-{n}", result=n)])
                assert documents(backend.load([f"{thread}-{n}"])) == [
                    record(f"{thread}-{n}", result=n).document
                ]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert None not in backend.load([f"{thread}-{n}" for thread in range(8) for n in range(25)])


def test_a_closed_backend_may_be_used_again(backend: Backend, store_url: str) -> None:
    backend.store([record("1")])
    backend.close()
    assert None not in backend.load(["1"])


@pytest.fixture
def listener(backend: Backend) -> Iterator[Listener]:
    listener = open_listener(backend)
    yield listener
    listener.close()


def heard(listener: Listener, seen: dict[str, bytes], timeout: float = 20.0, each: float = 0.5) -> list[str]:
    """The ids of the next news, by waits of `each` seconds."""
    end = time.monotonic() + timeout
    found: list[Record] = []
    while not found and time.monotonic() < end:
        found = [item for item in listener.wait(seen, each) if seen.get(item.id) != item.document]
    seen |= {item.id: item.document for item in found}
    return sorted({item.id for item in found})


def test_a_listener_hears_what_is_there_and_what_comes(backend: Backend, listener: Listener) -> None:
    seen: dict[str, bytes] = {}
    backend.store([record("1"), record("other")])
    listener.add("1")
    listener.add("2")
    assert heard(listener, seen) == ["1"]
    timer = threading.Timer(0.1, backend.store, ([record("2", "STARTED"), record("other")],))
    timer.start()
    assert heard(listener, seen) == ["2"]
    timer.join()
    backend.store([record("2")])
    assert heard(listener, seen) == ["2"]
    assert seen == {"1": record("1").document, "2": record("2").document}


def test_a_listener_hears_of_an_id_that_is_added_while_it_waits(backend: Backend, listener: Listener) -> None:
    listener.add("1")
    took: list[float] = []

    def add() -> None:
        time.sleep(0.2)
        listener.add("2")
        time.sleep(0.1)
        took.append(time.monotonic())
        backend.store([record("2")])

    thread = threading.Thread(target=add)
    thread.start()
    assert heard(listener, {}, each=5.0) == ["2"]
    assert time.monotonic() - took[0] < 4
    thread.join()


def test_a_listener_misses_nothing_that_was_stored_before_an_id_was_added(
    backend: Backend, listener: Listener
) -> None:
    backend.store([record("2")])
    listener.add("1")
    timer = threading.Timer(0.2, listener.add, ("2",))
    timer.start()
    began = time.monotonic()
    # Where it may overlook that, who adds loads it once; the next `wait` knows in any case.
    assert heard(listener, {}, each=0.5 if listener.overlooks else 5.0) == ["2"]
    assert time.monotonic() - began < 4
    timer.join()


def test_a_listener_does_not_hear_of_what_was_dropped(backend: Backend, listener: Listener) -> None:
    seen: dict[str, bytes] = {}
    for id in ("1", "2", "3"):
        listener.add(id)
    assert heard(listener, seen, 0.2) == []
    listener.drop("1")
    listener.drop("3")
    listener.add("3")
    listener.drop("never")
    assert heard(listener, seen, 0.2) == []
    backend.store([record("1")])
    backend.store([record("2"), record("3")])
    found: list[str] = []
    while len(found) < 2:
        news = heard(listener, seen)
        assert news != []
        found += news
    assert sorted(found) == ["2", "3"]


def test_a_listener_can_be_woken(backend: Backend, listener: Listener) -> None:
    listener.add("1")
    timer = threading.Timer(0.1, listener.wake)
    timer.start()
    began = time.monotonic()
    assert listener.wait({}, 10) == []
    assert time.monotonic() - began < 5
    timer.join()


def test_a_listener_hears_of_many(backend: Backend, listener: Listener) -> None:
    names = [str(n) for n in range(2500)]
    seen: dict[str, bytes] = {}
    for name in names:
        listener.add(name)
    backend.store([record(name) for name in names[:1000]])

    def store() -> None:
        for start in range(1000, 2500, 500):
            backend.store([record(name) for name in names[start : start + 500]])

    thread = threading.Thread(target=store)
    thread.start()
    while len(seen) < 2500:
        assert heard(listener, seen) != []
    thread.join()
    assert sorted(seen) == sorted(names)
