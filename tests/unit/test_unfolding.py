"""Compositions on their way: what is sent, what follows, what takes the place of what."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from minicelery import Celery, chain, chord, group, signals
from minicelery.exceptions import (
    BackendUnavailable,
    ChordError,
    EncodeError,
    Ignore,
    ImproperlyConfigured,
    OperationalError,
    Reject,
    TaskRevokedError,
)
from minicelery.message import BODY_HEADER, LASTS_HEADER, PART_HEADER, Delivery, Message, Outcome, new_id
from minicelery.result import AsyncResult
from minicelery.unfolding import GO_ON
from minicelery.worker.executor import Executor


class Work:
    """An app with some tasks, and a loop that does what a worker does."""

    def __init__(self, broker: str = "", backend: str = "") -> None:
        url = broker or f"memory://{new_id()}"
        self.app = app = Celery("work", broker=url, backend=backend or url, set_as_current=False)
        self.seen: list[Message] = []
        self.wait = 0.0
        self.add = app.task(lambda x, y=0: x + y, name="add")
        self.total = app.task(lambda xs: sum(xs), name="total")
        self.say = app.task(lambda *args: list(args), name="say")

        @app.task(name="fail")
        def fail(*args: Any) -> None:
            raise ValueError("no")

        self.fail = fail
        self.told: list[str] = []
        self.tell = app.task(lambda id: self.told.append(id), name="tell")

    def run(self, most: int = 500) -> None:
        """Do all there is to do."""
        consumer = self.app.broker.consumer(["celery"], new_id(), self.app.backend)
        executor = Executor(self.app)
        done: list[Outcome] = []
        for _ in range(most):
            fresh = consumer.swap(done, 1, self.wait)
            if not fresh:
                break
            self.seen.append(fresh[0].message)
            done = [executor.run(fresh[0])]
        else:
            raise AssertionError(f"more than {most} deliveries")
        consumer.close()

    def value(self, sig: Any, **options: Any) -> Any:
        result = sig.apply_async(**options)
        self.run()
        return result.get(timeout=1)


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.app.close()


def test_a_chord_calls_its_body_with_the_results_in_order(work: Work) -> None:
    assert work.value(chord([work.add.s(n, n) for n in range(5)], work.say.s("end"))) == [
        [0, 2, 4, 6, 8],
        "end",
    ]


def test_the_body_carries_no_values_and_the_parts_no_body(work: Work) -> None:
    chord([work.say.s("x" * 1000), work.say.s("y" * 1000)], work.say.s("the body"))()
    work.run()
    first, second, body = work.seen
    assert first.headers[PART_HEADER] == second.headers[PART_HEADER] == body.headers[BODY_HEADER]
    assert b"the body" not in first.body + second.body and len(body.body) < 200


def test_six_nested_chords_of_ten_cost_less_than_twice_their_leaves(work: Work) -> None:
    def nested(depth: int) -> Any:
        leaves = [work.add.s(n, n) for n in range(9)]
        return chord([*leaves, nested(depth - 1) if depth > 1 else work.add.s(1)], work.total.s())

    def in_bodies(depth: int) -> Any:
        header = group(one.s(n) for n in range(10))
        return header | in_bodies(depth - 1) if depth > 1 else chord(header, work.total.s())

    one = work.app.task(lambda *args: 1, name="one")

    for whole in (nested(6), in_bodies(6)):
        work.seen.clear()
        work.value(whole)
        leaves = [len(m.body) + len(json.dumps(m.headers)) for m in work.seen if PART_HEADER in m.headers]
        rest = [len(m.body) + len(json.dumps(m.headers)) for m in work.seen if PART_HEADER not in m.headers]
        assert len(leaves) >= 55
        assert sum(leaves) + sum(rest) <= 2 * sum(leaves)


def test_a_chain_goes_on_through_chords_and_groups(work: Work) -> None:
    whole = chain(
        work.add.s(1, 1), group(work.add.s(1), work.add.s(2)), work.total.s(),
        group(work.add.s(1), work.add.s(2)), work.say.s(), work.say.s(),
    )  # fmt: skip
    assert work.value(whole) == [[[8, 9]]]
    assert GO_ON in [message.task for message in work.seen]


def test_a_chord_may_follow_as_a_callback_or_an_errback(work: Work) -> None:
    work.add.s(1, 2).on_error(work.tell.s())
    result = work.add.apply_async((1, 2), link=chord([work.add.s(1), work.add.s(2)], work.total.s()))
    work.run()
    (child,) = result.children or []
    assert child.get(timeout=1) == 9
    failed = work.fail.apply_async(link_error=chord([work.say.s("a"), work.say.s("b")], work.say.s()))
    work.run()
    bodies = [m for m in work.seen if BODY_HEADER in m.headers]
    assert work.app.AsyncResult(bodies[-1].id).get(timeout=1) == [[[failed.id, "a"], [failed.id, "b"]]]


def test_a_part_that_fails_fails_the_body_and_all_that_follows(work: Work) -> None:
    whole = chord([work.add.s(1), work.fail.s(), work.add.s(2)], work.say.s()) | work.say.s() | work.say.s()
    result = whole.on_error(work.tell.s()).apply_async()
    work.run()
    with pytest.raises(ValueError, match="no"):  # the first cause, as in Celery
        result.get(timeout=1)
    ids = [result.id, result.parent.id, result.parent.parent.id]
    for id in ids:
        found = work.app.AsyncResult(id)
        assert found.state == "FAILURE"
        failed = result.parent.parent.parent.results[1].id
        with pytest.raises(ChordError, match=rf"Dependency {failed} raised ValueError\('no'\)"):
            found.get(timeout=1)
    assert work.told == [ids[-1]]  # of the body, once


def test_a_chain_that_fails_within_a_header_fails_the_body(work: Work) -> None:
    result = chord([work.fail.s() | work.say.s() | work.say.s(), work.add.s(1)], work.say.s())()
    work.run()
    assert result.state == "FAILURE"
    with pytest.raises(ChordError, match="raised ValueError"):
        result.get(timeout=1, follow_parents=False)


def test_what_never_runs_counts_as_failed(work: Work) -> None:
    app = work.app

    @app.task(name="late", bind=True)
    def late(self: Any, x: int) -> None:
        raise AssertionError("it has expired")

    def expire(sender: str, headers: dict[str, Any], **_: Any) -> None:
        if sender == "late":
            headers["expires"] = "2020-01-01T00:00:00+00:00"

    reject = app.task(lambda: (_ for _ in ()).throw(Reject("no good")), name="reject")
    parts = {
        "expired": (late.s(1), "TaskRevokedError"),
        "rejected": (reject.s(), "reject"),
        "unknown": (app.signature("unknown"), "NotRegistered"),
        "expired in a chain": (late.s(1) | work.say.s(), "TaskRevokedError"),
        "unknown in a chain": (app.signature("unknown") | work.say.s(), "NotRegistered"),
        "rejected in a chain": (reject.s() | work.say.s(), "reject"),
    }
    for name, (bad, kind) in parts.items():
        with signals_of(expire):
            result = chord([work.add.s(1), bad], work.say.s())()
        work.run()
        assert result.state == "FAILURE", name
        assert isinstance(result.result, ChordError) and kind in str(result.result), name


def test_a_revoked_part_counts_as_failed(work: Work) -> None:
    result = chord([work.add.s(1), work.add.s(2)], work.say.s())()
    result.parent.results[1].revoke()
    work.run()
    assert isinstance(result.result, ChordError) and "TaskRevokedError" in str(result.result)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=1)


def test_a_retried_part_counts_when_it_has_ended(work: Work) -> None:
    @work.app.task(bind=True, name="again", max_retries=5)
    def again(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0, args=() if self.request.retries else None)
        return int(self.request.retries)

    assert work.value(chord([again.s(), work.add.s(1)], work.say.s())) == [[2, 1]]


def test_a_retried_body_has_its_values_again(work: Work) -> None:
    @work.app.task(bind=True, name="again", max_retries=5)
    def again(self: Any, values: list[int], more: int = 0) -> list[int]:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        if self.request.retries == 1:
            raise self.retry(countdown=0, kwargs={"more": 5})
        return [*values, more]

    assert work.value(chord([work.add.s(1), work.add.s(2)], again.s())) == [1, 2, 5]


def test_a_part_that_is_ignored_is_none(work: Work) -> None:
    @work.app.task(name="ignored")
    def ignored() -> None:
        raise Ignore

    assert work.value(chord([ignored.s(), work.add.s(2)], work.say.s())) == [[None, 2]]


def test_parts_whose_results_are_ignored_have_them_for_the_body(work: Work) -> None:
    quiet = work.app.task(lambda x: x, name="quiet", ignore_result=True)
    assert work.value(chord([quiet.s(1), quiet.s(2)], work.say.s())) == [[1, 2]]


def test_an_immutable_body_waits_and_gets_nothing(work: Work) -> None:
    assert work.value(chord([work.add.s(1), work.add.s(2)], work.say.si("alone"))) == ["alone"]


def test_empty_headers_and_empty_parts(work: Work) -> None:
    assert work.value(chord([], work.say.s(), app=work.app)) == [[]]
    assert work.value(chain(work.add.s(1), group([]), work.say.s())) in ([[]], [1])
    assert work.value(chord([work.add.s(1), group([])], work.say.s())) == [[1]]


def test_a_body_that_is_not_registered_fails(work: Work) -> None:
    result = chord([work.add.s(1)], work.app.signature("unknown"))()
    work.run()
    assert result.state == "FAILURE" and "unknown" in str(result.result)


def test_a_store_that_can_not_count_is_refused_in_words() -> None:
    with Celery("none", broker=f"memory://{new_id()}", set_as_current=False) as app:
        say = app.task(lambda *args: args, name="say")
        with pytest.raises(ImproperlyConfigured, match=r"chord needs a result backend .*no result_backend"):
            chord([say.s(1), say.s(2)], say.s())()
        assert app.broker.size("celery") == 0


def test_the_size_of_a_group_is_its_trips(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    trips: list[int] = []
    publish = work.app.broker.publish

    def counted(messages: Any, **options: Any) -> Any:
        trips.append(len(messages))
        return publish(messages, **options)

    monkeypatch.setattr(work.app.broker, "publish", counted)
    group(work.add.s(n) for n in range(100))()
    chord([work.add.s(n) for n in range(100)], work.total.s())()
    assert trips == [100, 100]


# -- replace -----------------------------------------------------------------------------------


def replacer(work: Work, make: Any, **options: Any) -> Any:
    @work.app.task(bind=True, name=new_id(), **options)
    def replaced(self: Any, *args: Any) -> Any:
        return self.replace(make(*args))

    return replaced


def test_a_replacement_has_the_id_and_the_followers(work: Work) -> None:
    swap = replacer(work, lambda x: work.add.s(x, 10))
    result = (swap.s(1) | work.say.s("then")).apply_async(link=work.tell.s())
    first = result.parent
    work.run()
    assert result.get(timeout=1) == [11, "then"] and work.told == [[11, "then"]]
    assert work.app.AsyncResult(first.id).get(timeout=1) == 11
    assert [m.headers["replaced_task_nesting"] for m in work.seen] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda w: w.add.s(1, 2), 3),
        (lambda w: w.add.s(1, 2) | w.add.s(3), 6),
        (lambda w: group(w.add.s(1), w.add.s(2)), [1, 2]),
        (lambda w: group(w.add.s(1)), [1]),
        (lambda w: chord([w.add.s(1), w.add.s(2)], w.total.s()), 3),
        (lambda w: w.add.s(1) | group(w.add.s(1), w.add.s(2)), [2, 3]),
    ],
)
def test_a_replaced_part_of_a_chord_counts_with_its_replacement(work: Work, make: Any, value: Any) -> None:
    swap = replacer(work, lambda: make(work))
    assert work.value(chord([swap.s(), work.add.s(7)], work.say.s())) == [[value, 7]]
    assert work.value(swap.s()) == value
    assert work.value(swap.s() | work.say.s()) == [value]
    assert swap.apply().get() == value


def test_a_replacement_that_fails_calls_the_errbacks_once(work: Work) -> None:
    swap = replacer(work, lambda: work.add.s(1) | work.fail.s())
    result = swap.apply_async(link_error=work.tell.s())
    work.run()
    assert result.state == "FAILURE" and len(work.told) == 1


def test_nothing_and_parts_of_chords_replace_no_task(work: Work) -> None:
    for make, error in (
        (lambda: chain(), "nothing in it"),
        (lambda: work.add.s(1).set(chord=work.say.s()), "part of a chord"),
    ):
        swap = replacer(work, make)
        result = swap.delay()
        work.run()
        assert result.state == "FAILURE" and error in str(result.result)
        assert type(result.result).__name__ == "ImproperlyConfigured"


def test_a_task_that_is_called_by_hand_can_not_be_replaced(work: Work) -> None:
    swap = replacer(work, lambda: work.add.s(1))
    with pytest.raises(RuntimeError, match="attempt to replace"):
        swap()


# -- add_to_chord ------------------------------------------------------------------------------


def test_a_part_adds_another_one(work: Work) -> None:
    @work.app.task(bind=True, name="grow")
    def grow(self: Any, depth: int) -> int:
        if depth:
            self.add_to_chord(grow.s(depth - 1))
        return depth

    assert work.value(chord([grow.s(3), work.add.s(9)], work.say.s())) == [[3, 9, 2, 1, 0]]


def test_a_part_that_runs_again_adds_the_same_one(work: Work) -> None:
    @work.app.task(bind=True, name="grow")
    def grow(self: Any) -> int:
        self.add_to_chord(work.add.s(3))
        return 1

    result = chord([grow.s()], work.say.s())()
    consumer = work.app.broker.consumer(["celery"], new_id(), work.app.backend)
    (delivery,) = consumer.swap([], 1, 0.0)
    Executor(work.app).run(delivery)  # whoever ran it died with the outcome
    consumer.close()
    work.run()
    assert result.get(timeout=1) == [[1, 3]]


def test_only_a_part_adds_to_its_chord(work: Work) -> None:
    @work.app.task(bind=True, name="grow")
    def grow(self: Any) -> None:
        self.add_to_chord(work.add.s(1))

    result = grow.delay()
    work.run()
    assert isinstance(result.result, ValueError) and "not a part" in str(result.result)


# -- inside of tasks ---------------------------------------------------------------------------


def test_a_composition_sent_by_a_task_is_among_its_children(work: Work) -> None:
    @work.app.task(name="parent")
    def parent() -> None:
        chord([work.add.s(1), work.add.s(2)], work.total.s())()

    result = parent.delay()
    work.run()
    (child,) = result.children or []
    assert isinstance(child, AsyncResult) and child.get(timeout=1) == 3
    assert {m.headers["root_id"] for m in work.seen} == {result.id}
    assert {m.headers["parent_id"] for m in work.seen[1:]} == {result.id}


def test_a_callback_that_is_a_chord_is_run_eagerly_too(work: Work) -> None:
    work.app.conf.task_always_eager = True
    seen: list[Any] = []
    keep = work.app.task(lambda value: seen.append(value), name="keep")
    work.add.apply_async((1, 2), link=chord([work.add.s(1), work.add.s(2)], keep.s()))
    assert seen == [[4, 5]]


def test_signals_tell_of_every_message_of_a_composition(work: Work) -> None:
    told: list[str] = []

    def before(sender: str, **_: Any) -> None:
        told.append(sender)

    with signals_of(before):
        work.value(chain(work.add.s(1), group(work.add.s(1), work.add.s(2)), work.total.s()))
    assert sorted(set(told)) == ["add", GO_ON, "total"]
    assert told.count("add") == 3


def signals_of(receiver: Any) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def connected() -> Iterator[None]:
        signals.before_task_publish.connect(receiver, weak=False)
        try:
            yield
        finally:
            signals.before_task_publish.disconnect(receiver)

    return connected()


def test_forged_headers_hurt_nobody(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    executor = Executor(work.app)
    for headers in (
        {PART_HEADER: 5}, {PART_HEADER: "unknown"}, {PART_HEADER: ["x"]}, {BODY_HEADER: "unknown"},
        {BODY_HEADER: {"a": 1}}, {BODY_HEADER: None, PART_HEADER: None},
    ):  # fmt: skip
        result = work.add.apply_async((1, 2), headers=headers)
        consumer = work.app.broker.consumer(["celery"], new_id(), work.app.backend)
        (delivery,) = consumer.swap([], 1, 0.0)
        outcome = executor.run(Delivery(delivery.message, delivery.receipt))
        consumer.swap([outcome], 0, 0.0)
        consumer.close()
        assert work.app.AsyncResult(result.id).state == ("FAILURE" if BODY_HEADER in headers else "SUCCESS")


def test_a_body_expires_some_time_after_it_was_sent(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    result = chord([work.add.s(1)], work.say.s().set(expires=60))()
    again = chord([work.add.s(1)], work.say.s().set(expires=60))()
    backend = work.app.backend
    load = backend.load_group

    def late(id: str) -> Any:
        found = load(id)
        return (
            replace(found, sent=found.sent - 61) if found.members == [again.parent.results[0].id] else found
        )

    monkeypatch.setattr(backend, "load_group", late)
    work.run()
    assert (result.state, again.state) == ("SUCCESS", "REVOKED")


def test_what_would_follow_an_ignored_task_is_ignored_too(work: Work) -> None:
    @work.app.task(name="ignored")
    def ignored(*args: Any) -> None:
        raise Ignore

    assert work.value(chord([ignored.s() | work.say.s(), work.add.s(2)], work.say.s())) == [[None, 2]]
    result = (work.add.s(1) | ignored.s() | work.say.s()).apply_async()
    work.run()
    assert result.state == "IGNORED" and result.ready() and result.get(timeout=1) is None


def test_an_empty_group_at_the_end_changes_nothing_wherever_it_is(work: Work) -> None:
    a, b = work.add.s(1, 1), work.add.s(2, 2)
    nothing = group([])
    assert work.value(chord([a | nothing, b], work.say.s())) == [[2, 4]]
    assert work.value(chord([chord([a], nothing), b], work.say.s())) == [[[2], 4]]
    assert work.value(group([a | nothing, b])) == [2, 4]
    assert work.value(chain([a, nothing, nothing], app=work.app)) == 2


def test_an_attempt_that_runs_again_is_replaced_by_the_same(work: Work) -> None:
    made = lambda: chord([work.add.s(1), group(work.add.s(2), work.add.s(3)) | work.say.s()], work.say.s())  # noqa: E731
    swap = replacer(work, made)
    result = swap.delay()
    consumer = work.app.broker.consumer(["celery"], new_id(), work.app.backend)
    (delivery,) = consumer.swap([], 1, 0.0)
    first = Executor(work.app).run(delivery)  # whoever ran it died with the outcome
    consumer.close()
    work.run()
    assert result.get(timeout=1) == [[1, [[2, 3]]]]
    assert {m.id for m in first.publish} <= {m.id for m in work.seen}
    assert work.app.backend.owed_groups(time.time() + 1e6, work.app.broker.place) == []


def test_a_chord_that_could_not_be_sent_leaves_nothing(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(work.app.broker, "publish", away)
    with pytest.raises(OperationalError, match="away"):
        chord([work.add.s(1)], work.say.s())()
    assert work.app.backend.owed_groups(time.time() + 1e6, work.app.broker.place) == []


class Away:
    """A result store that can't be reached so many times, when groups are opened or joined."""

    def __init__(self, work: Work, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        monkeypatch.setattr("minicelery.insisting.STEP", 0.001)
        for name in ("open_groups", "add_member"):
            monkeypatch.setattr(work.app.backend, name, self._until_back(getattr(work.app.backend, name)))

    def _until_back(self, act: Any) -> Any:
        def ask(*args: Any) -> Any:
            if self.left:
                self.left -= 1
                raise BackendUnavailable("away")
            return act(*args)

        return ask


def test_a_chord_is_sent_though_the_store_was_away_for_as_many_tries_as_a_publish_has(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = chord([work.add.s(1)], work.say.s())
    away = Away(work, monkeypatch, 3)
    result = whole()
    work.run()
    assert (result.get(timeout=1), away.left) == ([[1]], 0)

    away.left = 4
    with pytest.raises(BackendUnavailable, match="away"):
        whole()
    away.left = 1
    with pytest.raises(BackendUnavailable, match="away"):
        whole.apply_async(retry=False)
    assert away.left == 0


def test_an_attempt_outlasts_a_store_that_is_away_while_it_is_replaced_or_adds_to_its_chord(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(work, monkeypatch, 0)

    @work.app.task(name="adds", bind=True)
    def adds(self: Any) -> int:
        away.left = 20
        self.add_to_chord(work.add.s(2))
        return 1

    def spread(times: int) -> Any:
        away.left = times
        return group(work.add.s(1), work.add.s(2))

    spreads = replacer(work, spread)
    result = chord([spreads.s(20), adds.s()], work.say.s())()
    work.run()
    assert result.get(timeout=1) == [[[1, 2], 1, 2]]

    work.app.conf.task_publish_deadline = 0.01
    lost = spreads.delay(1_000_000)
    work.run()
    assert (lost.state, str(lost.result)) == ("FAILURE", "away")


def test_a_hop_that_fails_calls_the_errbacks_of_the_body(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(groups: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(work.app.backend, "open_groups", refuse)
    whole = work.add.s(1) | chord([work.add.s(1)], work.say.s().on_error(work.tell.s()))
    result = whole.apply_async()
    work.run()
    assert result.state == "FAILURE" and len(work.told) == 1


def test_a_body_expires_by_its_tasks_own_expiry_once_it_was_sent(work: Work) -> None:
    brief = work.app.task(lambda values: values, name="brief", expires=60)
    chord([work.add.s(1)], brief.s())()
    work.run()
    body = work.seen[-1]
    assert (body.headers["expires"], body.headers[LASTS_HEADER]) == (None, 60)


def test_receivers_see_the_body_and_what_they_change_stays(work: Work) -> None:
    def before(sender: str, headers: dict[str, Any], **_: Any) -> None:
        headers["tenant"] = sender

    with signals_of(before):
        chord([work.add.s(1)], work.say.s())()
    work.run()
    assert [m.headers["tenant"] for m in work.seen] == ["add", "say"]


def test_a_member_that_can_not_be_sent_is_not_waited_for(work: Work) -> None:
    @work.app.task(bind=True, name="grow")
    def grow(self: Any) -> int:
        with pytest.raises(EncodeError):
            self.add_to_chord(work.add.s(object()))
        return 1

    assert work.value(chord([grow.s()], work.say.s())) == [[1]]


def test_a_chord_of_thousands_follows_a_task(work: Work) -> None:
    count = 1200
    whole = work.add.s(1) | chord([work.add.si(n) for n in range(count)], work.total.s())
    result = whole.apply_async()
    work.run(2000)
    assert result.get(timeout=1) == sum(range(count))


def test_what_was_frozen_may_be_sent_again(work: Work) -> None:
    header = group(work.add.s(1), work.add.s(2))
    header.freeze()
    assert [work.value(chord(header, work.total.s())) for _ in range(3)] == [3, 3, 3]
    one = work.add.s(5).set(task_id="the-same")
    assert work.value(chord([one, one], work.say.s())) == [[5, 5]]


def test_what_replaces_itself_again_and_again_ends(work: Work) -> None:
    @work.app.task(bind=True, name="rounds")
    def rounds(self: Any, values: list[int], left: int) -> Any:
        if left:
            self.replace(chord([work.add.s(value, 1) for value in values], rounds.s(left - 1)))
        return values

    assert work.value(rounds.s([1, 2], 4)) == [5, 6]


def test_another_run_may_replace_itself_by_something_else(work: Work) -> None:
    counts = [5, 2]

    @work.app.task(bind=True, name="files")
    def files(self: Any) -> Any:
        self.replace(chord([work.add.s(n) for n in range(counts.pop(0))], work.total.s()))

    result = files.delay()
    consumer = work.app.broker.consumer(["celery"], new_id(), work.app.backend)
    (delivery,) = consumer.swap([], 1, 0.0)
    Executor(work.app).run(delivery)  # whoever ran it died with the outcome
    consumer.close()
    work.run()
    assert result.get(timeout=1) == 1


def test_results_that_nobody_keeps_are_not_waited_for(work: Work) -> None:
    quiet = work.app.task(lambda *args: None, name="quiet", ignore_result=True)
    assert (work.add.s(1) | quiet.s()).apply_async().get(timeout=1) is None
    assert group(quiet.s(), quiet.s()).apply_async().get(timeout=1) == [None, None]
    assert work.value(chord([quiet.s()], work.say.s())) == [[None]]


def test_a_chord_that_comes_later_in_a_chain_is_refused_at_the_call() -> None:
    with Celery("none", broker=f"memory://{new_id()}", set_as_current=False) as app:
        say = app.task(lambda *args: args, name="say")
        for whole in (
            say.s() | group(say.s(), say.s()) | say.s(),
            group(say.s() | chord([say.s()], say.s())),
        ):
            with pytest.raises(ImproperlyConfigured, match="chord needs a result backend"):
                whole.apply_async()
        assert app.broker.size("celery") == 0


def test_every_result_of_a_composition_comes_back_by_rpc(rabbit_url: str) -> None:
    work = Work(rabbit_url, "rpc://")
    work.wait = 0.5
    result = (work.add.s(1, 2) | work.add.s(3) | group(work.add.s(1), work.add.s(2))).apply_async()
    work.run()
    assert result.get(timeout=5) == [7, 8]
    assert result.parent.get(timeout=5) == 6 and result.parent.parent.get(timeout=5) == 3
    with pytest.raises(ImproperlyConfigured, match="rpc:// can't"):
        chord([work.add.s(1)], work.say.s())()
    work.app.close()
