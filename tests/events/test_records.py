"""The fields of events, held against what Celery 5.7 wrote; and events as workers write them."""

from __future__ import annotations

import json
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from minicelery.clock import LATEST, Clock
from minicelery.events import records
from minicelery.events.emitter import LETTER, LONGEST, Emitter
from minicelery.exceptions import EncodeError
from minicelery.message import Message
from minicelery.worker.board import Board

DATA = Path(__file__).parents[1] / "data" / "celery_events_redis.json"
CASES: dict[str, list[dict[str, Any]]] = json.loads(DATA.read_text())
EVENTS = [
    event
    for letters in CASES.values()
    for letter in letters
    for event in (letter["body"] if isinstance(letter["body"], list) else [letter["body"]])
]
CHANGING = {"clock", "timestamp", "runtime", "result"}


def of_type(type: str, case: str = "prefork: success") -> dict[str, Any]:
    return next(
        event
        for letter in CASES[case]
        for event in (letter["body"] if isinstance(letter["body"], list) else [letter["body"]])
        if event["type"] == type
    )


def emitter(hostname: str = "w1@host1", pid: int = 25300) -> Emitter:
    return Emitter(hostname, pid, Clock())


def taken(emitter: Emitter) -> list[dict[str, Any]]:
    return [event for letter in emitter.take() for event in json.loads(letter.body)]


def call(received: dict[str, Any], **headers: Any) -> Message:
    """The message of a task that Celery has told of so."""
    names = ("root_id", "parent_id", "retries", "eta", "expires")
    found = {name: received[name] for name in names}
    found |= {"argsrepr": received["args"], "kwargsrepr": received["kwargs"], "shadow": None}
    return Message(received["uuid"], received["name"], b"", found | headers)


@pytest.mark.parametrize("type", sorted({event["type"] for event in EVENTS}))
def test_celery_writes_the_fields_that_we_know_in_that_order(type: str) -> None:
    fields = ["hostname", "utcoffset", "pid", "clock", *records.FIELDS[type], "timestamp", "type"]
    for event in EVENTS:
        if event["type"] == type:
            assert list(event) == fields


def test_an_event_has_its_fields_in_celerys_order() -> None:
    event = records.event("task-started", {"uuid": "an-id"}, hostname="w1", pid=7, clock=3)
    assert list(event) == ["hostname", "utcoffset", "pid", "clock", "uuid", "timestamp", "type"]
    assert abs(event["timestamp"] - time.time()) < 5


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.startswith("prefork") and "start" not in case[9:14]]
)
def test_what_a_worker_writes_of_a_task_is_what_celery_wrote(case: str) -> None:
    theirs = [
        event
        for letter in CASES[case]
        for event in (letter["body"] if isinstance(letter["body"], list) else [])
        if event["type"] not in ("task-started", "worker-heartbeat")
    ]
    telling = emitter()
    expected = []
    for event in theirs:
        id, expected = event["uuid"], [*expected, event]
        match event["type"]:
            case "task-received":
                telling.begun(call(event), (), {})
                expected.append({"uuid": id, "type": "task-started"})
            case "task-succeeded":
                telling.note((time.time_ns(), id, event["result"], event["runtime"]))
            case "task-failed":
                telling.failed(id, event["exception"], event["traceback"])
            case "task-retried":
                telling.retried(id, event["exception"], event["traceback"])
            case "task-revoked":
                telling.revoked(id, event["signum"], event["expired"])
            case "task-rejected":
                telling.rejected(id, event["requeue"])
    ours = taken(telling)
    assert len(ours) == len(expected)
    for mine, theirs_ in zip(ours, expected, strict=True):
        if theirs_["type"] == "task-started":
            assert list(mine) == ["hostname", "utcoffset", "pid", "clock", "uuid", "timestamp", "type"]
            continue
        assert list(mine) == list(theirs_)
        same = set(mine) - CHANGING
        assert {name: mine[name] for name in same} == {name: theirs_[name] for name in same}
        assert mine.get("result") == theirs_.get("result")
    clocks = [event["clock"] for event in ours]
    assert clocks == sorted(set(clocks))


def test_a_letter_says_who_has_written_it_and_to_whom() -> None:
    telling = emitter()
    telling.failed("an-id", "KeyError('x')", None)
    (letter,) = telling.take()
    assert (letter.exchange, letter.routing_key, letter.headers) == (
        "celeryev",
        "task.multi",
        {"hostname": "w1@host1"},
    )
    assert not letter.persistent
    assert not telling


def test_a_failure_without_a_traceback_has_no_such_field() -> None:
    telling = emitter()
    telling.failed("an-id", "NotRegistered('x')", None)
    assert list(taken(telling)[0])[4:] == ["uuid", "exception", "timestamp", "type"]


def test_the_name_is_the_one_that_the_caller_wants_shown() -> None:
    telling = emitter()
    telling.begun(call(of_type("task-received"), shadow="display"), (), {})
    assert taken(telling)[0]["name"] == "display"


@pytest.mark.parametrize(
    "headers",
    [
        {"argsrepr": None, "kwargsrepr": 5},
        {"root_id": ["x"], "parent_id": {"a": 1}},
        {"eta": 17.0, "expires": b"\xff"},
        {"shadow": ["a", "list"]},
        {"argsrepr": '\ud800 \x00 " ] }, {', "kwargsrepr": "ü"},
    ],
    ids=str,
)
def test_headers_that_nobody_should_send_leave_the_letter_readable(headers: dict[str, Any]) -> None:
    telling = emitter()
    telling.begun(call(of_type("task-received"), **headers), (1,), {})
    received, started = taken(telling)
    assert (received["type"], started["type"]) == ("task-received", "task-started")
    assert isinstance(received["args"], str)
    assert isinstance(received["name"], str)


def test_a_message_that_only_has_what_it_must_have_shows_its_arguments() -> None:
    telling = emitter()
    telling.begun(Message("an-id", "add", b"", {}), [1, 2], {"x": 3})
    received = taken(telling)[0]
    assert (received["args"], received["kwargs"], received["retries"]) == ("(1, 2)", "{'x': 3}", 0)


def test_many_events_make_several_letters_and_a_long_traceback_is_cut() -> None:
    telling = emitter()
    for number in range(20):
        telling.failed(f"id-{number}", "E", "x" * 100_000)
    letters = telling.take()
    assert len(letters) > 5
    assert all(len(letter.body) <= LETTER + LONGEST for letter in letters)
    events = [event for letter in letters for event in json.loads(letter.body)]
    assert [event["uuid"] for event in events] == [f"id-{number}" for number in range(20)]
    assert {len(event["traceback"]) for event in events} == {LONGEST}


def test_what_threads_tell_at_once_is_sent_once_each() -> None:
    telling, found = emitter(), []
    done = threading.Event()

    def tell(thread: int) -> None:
        for number in range(500):
            telling.rejected(f"{thread}-{number}", False)

    def take() -> None:
        while not done.is_set():
            found.extend(taken(telling))

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(4)]
    takers = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads + takers:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in takers:
        thread.join()
    found.extend(taken(telling))
    assert sorted(event["uuid"] for event in found) == sorted(
        f"{a}-{b}" for a in range(4) for b in range(500)
    )


def test_what_json_cant_carry_is_named() -> None:
    with pytest.raises(EncodeError, match="of type object"):
        records.encoded({"type": "custom-one", "what": object()})
    assert json.loads(records.encoded({"day": date(2026, 1, 2)})) == {"day": "2026-01-02"}


# -- the clock ------------------------------------------------------------------------------


def test_a_clock_is_later_than_what_it_hears() -> None:
    clock = Clock()
    assert (clock.forward(), clock.adjust(10), clock.forward(3)) == (1, 11, 14)
    assert clock.adjust(5) == 15


@pytest.mark.parametrize("number", [None, "7", 7.5, True, LATEST + 1, 10**30, -5])
def test_a_clock_does_not_follow_what_is_no_number_of_a_clock(number: Any) -> None:
    clock = Clock()
    assert clock.adjust(number) == 1


def test_the_processes_of_a_worker_go_by_one_clock() -> None:
    board = Board(1)
    one, other = Clock(), Clock()
    one.share(board.clock)
    other.share(board.clock)
    assert [one.forward(), other.forward(), one.forward(2), other.adjust(10), one.forward()] == [
        1,
        2,
        4,
        11,
        12,
    ]
