"""Counting the parts of Celery's chords: beside Celery's own code, and where workers die."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from minicelery import Celery
from minicelery.broker.redis.envelope import decode, encode
from minicelery.foreign_chords import COUNT_PART
from minicelery.message import Message, Outcome
from minicelery.worker import foreign_chords
from minicelery.worker.executor import Executor

celery: Any = pytest.importorskip("celery", reason="real Celery is the other side")
import kombu.pools  # noqa: E402
from celery.app.task import Context  # noqa: E402
from celery.result import AsyncResult  # noqa: E402


class Sides:
    """A chord's parts as Celery has sent them, and both libraries to end them."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self.url = url
        self.store = redis.Redis.from_url(url)
        self.theirs = celery.Celery("sides", broker=url, backend=url, set_as_current=False)
        self.ours = Celery("sides", broker=url, backend=url, set_as_current=False)
        for app in (self.theirs, self.ours):
            app.conf.update(accept_content=["json", "msgpack"], **settings)
            app.task(_add, name="add", shared=False)
            app.task(_fail, name="fail", shared=False)
            app.task(_collect, name="collect", shared=False)
        self.executor = Executor(self.ours)

    def chord(self, *names: str, body: Any = None) -> list[bytes]:
        """Send a chord; its parts' envelopes, in order."""
        tasks = self.theirs.tasks
        header = [tasks[name].s(n) for n, name in enumerate(names or ("add", "add", "add"))]
        self.result = celery.chord(header, body or tasks["collect"].s())()
        self.group = self.result.parent.id
        return self.taken()

    def taken(self) -> list[bytes]:
        """What is in the queue, oldest first; it is then empty."""
        found = self.store.lrange("celery", 0, -1)[::-1]
        self.store.delete("celery")
        return found

    def run(self, envelope: bytes, *, redelivered: bool = False) -> Outcome:
        """Run a message as our worker does, up to its outcome."""
        delivery = decode(envelope, "celery", 1)
        if redelivered:
            delivery.message.headers["redelivered"] = True
        return self.executor.run(delivery)

    def count(self, envelope: bytes) -> None:
        """Run a part as Celery's worker does, up to what follows from its end."""
        message = decode(envelope, "celery", 1).message
        args, _, links = json.loads(message.body)
        headers = message.headers
        request = Context(
            id=message.id, group=headers["group"], group_index=headers["group_index"], chord=links["chord"]
        )
        self.theirs.backend.on_chord_part_return(request, "SUCCESS", args[0])

    def key(self, suffix: str = "") -> str:
        prefix = self.ours.conf.result_backend_transport_options.get("global_keyprefix")
        return f"{prefix}_" * bool(prefix) + f"celery-taskset-meta-{self.group}{suffix}"

    def close(self) -> None:
        self.theirs.pool.force_close_all()
        kombu.pools.reset()
        self.theirs.backend.client.connection_pool.disconnect()
        self.theirs.close()
        self.ours.close()
        self.store.close()


def _add(number: int) -> int:
    return number


def _fail(number: int) -> None:
    raise ValueError("bad value", number)


def _collect(values: list[Any]) -> list[Any]:
    return values


@pytest.fixture
def make_sides(redis_url: str) -> Iterator[Callable[..., Sides]]:
    if "__del__" in vars(AsyncResult):  # it would unsubscribe when the server has gone
        del AsyncResult.__del__
    made: list[Sides] = []

    def make(**settings: Any) -> Sides:
        made.append(Sides(redis_url, settings))
        return made[-1]

    yield make
    for sides in made:
        sides.close()


@pytest.fixture
def sides(make_sides: Callable[..., Sides]) -> Sides:
    return make_sides()


def called(message: Message) -> tuple[str, Any]:
    """Id and first argument of a call."""
    return message.id, json.loads(message.body)[0][0]


# -- beside Celery's own code ----------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {},
    {"result_backend_transport_options": {"result_chord_ordered": False}},
    {"result_serializer": "msgpack"},
    {"result_compression": "gzip"},
    {"result_backend_transport_options": {"global_keyprefix": "prefix"}, "result_chord_expires": 100},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_both_count_in_the_same_keys(
    make_sides: Callable[..., Sides], settings: dict[str, Any], last: str
) -> None:
    sides = make_sides(**settings)
    first, second, third = sides.chord()
    if last == "ours":
        sides.count(first)
        assert sides.run(third).publish == []
        assert sides.store.ttl(sides.key(".j")) == settings.get("result_chord_expires", 86400)
        outcome = sides.run(second)
        (body,) = outcome.publish
    else:
        assert sides.run(first).publish == []
        assert sides.run(third).publish == []
        sides.count(second)
        (envelope,) = sides.taken()
        body = decode(envelope, "celery", 1).message
    id, values = called(body)
    unordered = settings.get("result_backend_transport_options", {}).get("result_chord_ordered") is False
    assert (id, values) == (sides.result.id, [0, 2, 1] if unordered else [0, 1, 2])
    assert body.headers["group"] == sides.group
    assert sides.store.get(sides.key(".c")) == b"done"
    assert not sides.store.exists(*(sides.key(f".{suffix}") for suffix in "jtsd"))


def test_a_chord_that_celery_settles_is_left_alone(sides: Sides) -> None:
    parts = sides.chord()
    sides.store.set(sides.key(".c"), "a claim of Celery's")
    assert [sides.run(part).publish for part in parts] == [[], [], []]
    sides.store.delete(sides.key(".c"))  # it died, and its claim has expired
    (body,) = sides.run(parts[0], redelivered=True).publish
    assert called(body) == (sides.result.id, [0, 1, 2])


def test_late_parts_of_a_chord_that_celery_has_settled_change_nothing(sides: Sides) -> None:
    parts = sides.chord()
    for part in parts:
        sides.count(part)
    assert len(sides.taken()) == 1
    assert [sides.run(part, redelivered=True).publish for part in parts] == [[], [], []]
    assert not sides.store.exists(sides.key(".j"))


def test_celery_passes_over_what_is_settled_here(sides: Sides) -> None:
    parts = sides.chord()
    for part in parts:
        outcome = sides.run(part)
    assert len(outcome.publish) == 1
    for part in parts:
        sides.count(part)
    assert sides.taken() == []


def test_parts_that_have_joined_are_waited_for(sides: Sides) -> None:
    parts = sides.chord()
    sides.theirs.backend.add_to_chord(sides.group, None)
    assert [sides.run(part).publish for part in parts] == [[], [], []]
    extra = json.loads(parts[0])
    extra["headers"] |= {"id": "one-more", "group_index": 3}
    (body,) = sides.run(json.dumps(extra).encode()).publish
    assert called(body) == (sides.result.id, [0, 1, 2, 0])


# -- deaths ----------------------------------------------------------------------------------------


def test_a_part_that_comes_back_has_the_body_called_if_its_outcome_was_lost(sides: Sides) -> None:
    *parts, last = sides.chord()
    for part in parts:
        sides.run(part)
    first = sides.run(last)
    sides.executor = Executor(sides.ours)  # the worker died before it could hand in the first outcome
    again = sides.run(last)
    assert called(first.publish[0]) == called(again.publish[0]) == (sides.result.id, [0, 1, 2])


def test_a_copy_of_a_part_whose_outcome_is_applied_does_nothing(sides: Sides) -> None:
    *parts, last = sides.chord()
    for part in parts:
        sides.run(part)
    outcome = sides.run(last)
    assert outcome.record is not None
    sides.ours.backend.store([outcome.record])
    sides.executor = Executor(sides.ours)
    assert [sides.run(part).publish for part in (*parts, last)] == [[], [], []]


def test_a_copy_of_a_part_whose_outcome_is_still_in_hand_does_nothing(sides: Sides) -> None:
    parts = sides.chord()
    outcomes = [sides.run(part) for part in (*parts, *parts)]
    assert [len(outcome.publish) for outcome in outcomes] == [0, 0, 1, 0, 0, 0]


def test_a_part_that_counts_and_dies_counts_once(sides: Sides) -> None:
    first, second, third = sides.chord()
    for part in (first, first, second, first, second):
        assert sides.run(part, redelivered=True).publish == []
    (body,) = sides.run(third).publish
    assert called(body) == (sides.result.id, [0, 1, 2])


def test_a_body_that_fails_does_so_again_for_a_part_that_comes_back(sides: Sides) -> None:
    *parts, last = sides.chord("add", "fail", "add")
    for part in parts:
        sides.run(part)
    for _ in range(2):
        (failure,) = sides.run(last, redelivered=True).more
        assert (failure.id, failure.state) == (sides.result.id, "FAILURE")
        assert b"raised ValueError('bad value', 1)" in failure.document


def test_what_was_kept_for_a_part_is_dropped_with_a_later_chord(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_chords, "_SETTLED", 0.0)
    for part in sides.chord("add"):
        sides.run(part)
    (kept,) = sides.store.keys(sides.key(".taken:*"))
    assert 0 < sides.store.ttl(kept) <= 3600
    for part in sides.chord("add"):
        sides.run(part)
    assert not sides.store.exists(kept)


# -- where it can't be counted ---------------------------------------------------------------------


def test_while_the_store_is_away_a_message_counts_later(sides: Sides) -> None:
    *parts, last = sides.chord()
    for part in parts:
        sides.run(part)
    away = Celery("away", broker=sides.url, backend="redis://127.0.0.1:1", set_as_current=False)
    with away:
        away.task(_add, name="add", shared=False)
        (hop,) = Executor(away).run(decode(last, "celery", 1)).publish
    assert (hop.task, hop.queue) == (COUNT_PART, "celery")
    envelope = encode(hop).encode()
    for _ in range(2):  # it may die as well
        outcome = sides.run(envelope)
        assert [called(body) for body in outcome.publish] == [(sides.result.id, [0, 1, 2])]


def test_another_result_store_leaves_the_chord_to_celerys_own_message(
    sides: Sides, caplog: pytest.LogCaptureFixture
) -> None:
    parts = sides.chord()
    with Celery("elsewhere", broker=sides.url, backend="memory://chords", set_as_current=False) as app:
        app.task(_add, name="add", shared=False)
        executor = Executor(app)
        with caplog.at_level(logging.WARNING):
            outcomes = [executor.run(decode(part, "celery", 1)) for part in parts]
    assert [(outcome.publish, outcome.record.state) for outcome in outcomes if outcome.record] == [
        ([], "SUCCESS")
    ] * 3
    assert caplog.text.count("celery.chord_unlock") == 1


def test_a_body_that_makes_no_sense_fails(sides: Sides) -> None:
    body = sides.theirs.tasks["collect"].s().set(priority="high")
    outcomes = [sides.run(part) for part in sides.chord(body=body)]
    (failure,) = outcomes[-1].more
    assert (failure.id, failure.state) == (sides.result.id, "FAILURE")
    assert b"Callback error" in failure.document


def test_asking_for_a_body_ends_with_its_patience(sides: Sides) -> None:
    (envelope,) = sides.chord("add")
    message = decode(envelope, "celery", 1).message
    body = json.loads(message.body)[2]["chord"]
    tuples = [[["never-sent", None], None]]
    kwargs = {"interval": 0.1, "max_retries": 1, "result": tuples}
    ask = sides.ours.tasks["celery.chord_unlock"]
    ask.apply_async((sides.group, body), kwargs)
    (envelope,) = sides.taken()
    outcome = sides.run(envelope)
    (again,) = outcome.publish
    assert (again.task, again.headers["retries"]) == ("celery.chord_unlock", 1)
    again.due = again.headers["eta"] = None
    sides.run(encode(again).encode())
    found = sides.ours.AsyncResult(sides.result.id)
    assert found.state == "FAILURE"
    assert "never-sent has not ended" in str(found.result)


def test_a_chord_in_a_chain_is_counted_by_both_where_it_can_be(sides: Sides) -> None:
    tasks = sides.theirs.tasks
    middle = celery.chord([tasks["add"].s(), tasks["add"].s()], tasks["collect"].s())
    celery.chain(tasks["add"].s(5), middle, tasks["collect"].s()).apply_async()
    (first,) = sides.taken()
    parts = sides.run(first).publish
    assert [part.task for part in parts] == ["add", "add"]
    sides.group = parts[0].headers["group"]
    assert sides.store.get(sides.key(".s")) == b"2"
    assert 86_000 < sides.store.ttl(sides.key(".s")) <= 86_400
    sides.count(encode(parts[1]).encode())
    (body,) = sides.run(encode(parts[0]).encode()).publish
    assert called(body)[1] == [5, 5]
    assert [link["task"] for link in json.loads(body.body)[2]["chain"]] == ["collect"]


def test_while_the_store_is_away_a_chord_in_a_chain_is_begun_later(sides: Sides) -> None:
    tasks = sides.theirs.tasks
    middle = celery.chord([tasks["add"].s(), tasks["add"].s()], tasks["collect"].s())
    celery.chain(tasks["add"].s(5), middle).apply_async()
    (first,) = sides.taken()
    with Celery("away", broker=sides.url, backend="redis://127.0.0.1:1", set_as_current=False) as away:
        away.task(_add, name="add", shared=False)
        (hop,) = Executor(away).run(decode(first, "celery", 1)).publish
    assert hop.task == "minicelery.go_on"
    assert b"chord" not in json.dumps(json.loads(hop.body)[2]["chain"][0]["kwargs"]["header"]).encode()
