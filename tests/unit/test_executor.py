"""The executor by itself: deliveries in, outcomes out, no broker."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minicelery import Celery, signals
from minicelery.broker.redis.envelope import decode, encode
from minicelery.exceptions import (
    EncodeError,
    Ignore,
    Reject,
    SoftTimeLimitExceeded,
)
from minicelery.message import Delivery, Message, Outcome, Verdict, new_id
from minicelery.worker.executor import Executor
from tests import golden
from tests.deliveries import body_of, delivery_of, document, error_of, message_of, never, run

# -- plain ends ------------------------------------------------------------------------------


def test_a_value_is_acknowledged_and_recorded(app: Celery) -> None:
    add = app.task(lambda x, y: x + y, name="add")
    outcome = run(add, 2, 3, task_id="an-id")
    assert (outcome.verdict, outcome.publish) == (Verdict.ACK, ())
    found = document(outcome)
    assert (found["status"], found["result"], found["task_id"]) == ("SUCCESS", 5, "an-id")
    assert (found["traceback"], found["children"]) == (None, [])
    assert outcome.record is not None and outcome.record.ttl == 86400


def test_an_error_is_recorded_with_a_traceback_that_begins_in_the_users_code(app: Celery) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("bad", 42)

    outcome = run(fail)
    assert outcome.verdict is Verdict.ACK
    assert document(outcome)["result"] == {
        "exc_type": "ValueError", "exc_message": ["bad", 42], "exc_module": "builtins"
    }  # fmt: skip
    traceback = document(outcome)["traceback"]
    assert "in fail" in traceback and traceback.endswith("ValueError: ('bad', 42)\n")
    assert "minicelery/worker" not in traceback


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), SoftTimeLimitExceeded()]
)
def test_an_exception_that_would_end_the_process_ends_the_task(app: Celery, error: BaseException) -> None:
    @app.task
    def leave() -> None:
        raise error

    outcome = run(leave)
    assert document(outcome)["status"] == "FAILURE"
    assert document(outcome)["result"]["exc_type"] == type(error).__name__


@pytest.mark.parametrize(
    ("of_task", "of_call", "kept"),
    [(False, None, True), (True, None, False), (True, False, True), (False, True, False)],
)
def test_the_calls_ignore_result_beats_the_tasks(
    app: Celery, of_task: bool, of_call: bool | None, kept: bool
) -> None:
    task = app.task(lambda: 1, name="t", ignore_result=of_task)
    options = {} if of_call is None else {"ignore_result": of_call}
    assert (run(task, **options).record is not None) == kept


def test_a_call_sent_by_name_leaves_ignoring_to_the_worker(app: Celery) -> None:
    task = app.task(lambda: 1, name="t", ignore_result=True)
    sender = app._sender
    message = sender.message("t", (), {}, {}, sender.defaults(None), new_id())
    assert message.headers["ignore_result"] is None
    assert Executor(app).run(Delivery(message, 1)).record is None
    assert task.ignore_result


def test_errors_are_kept_of_ignored_tasks_where_asked(app: Celery) -> None:
    def fail() -> None:
        raise KeyError("x")

    silent = app.task(fail, name="silent", ignore_result=True)
    loud = app.task(fail, name="loud", ignore_result=True, store_errors_even_if_ignored=True)
    assert run(silent).record is None
    assert document(run(loud))["status"] == "FAILURE"


def test_nothing_is_recorded_without_a_backend() -> None:
    with Celery("bare", broker="memory://executor", set_as_current=False) as app:
        assert run(app.task(lambda: 1, name="t")).record is None


def test_a_failure_lives_as_long_as_its_own_setting_says(app: Celery) -> None:
    app.conf.result_expires, app.conf.result_failure_expires = timedelta(hours=1), 60
    good = run(app.task(lambda: 1, name="good")).record
    bad = run(app.task(lambda: 1 / 0, name="bad")).record
    assert good is not None and bad is not None
    assert (good.ttl, bad.ttl) == (3600, 60)


def test_a_result_that_cannot_be_carried_is_an_encode_error_and_not_retried(app: Celery) -> None:
    calls = []

    @app.task(autoretry_for=(Exception,))
    def sets() -> set[int]:
        calls.append(1)
        return {1}

    outcome = run(sets)
    assert isinstance(error_of(outcome), EncodeError)
    assert document(outcome)["result"]["exc_module"] == "kombu.exceptions"
    assert len(calls) == 1 and not outcome.publish


def test_extended_results_name_the_call(app: Celery) -> None:
    app.conf.result_extended = True
    found = document(run(app.task(lambda *a, **k: 1, name="t"), 1, kwargs={"b": [2]}, queue="mail"))
    assert {name: found[name] for name in ("name", "args", "kwargs", "worker", "retries", "queue")} == {
        "name": "t", "args": [1], "kwargs": {"b": [2]}, "worker": "w1@host", "retries": 0, "queue": "mail"
    }  # fmt: skip


def test_what_a_task_sends_is_recorded_as_its_children(app: Celery) -> None:
    child = app.task(lambda n: n, name="child")
    quiet = app.task(lambda: child.delay(3), name="quiet", trail=False)

    @app.task(ignore_result=False)
    def parent() -> None:
        child.delay(1)
        child.apply_async((2,), add_to_parent=False)

    assert len(document(run(parent))["children"]) == 1
    assert quiet.trail is False


# -- links -----------------------------------------------------------------------------------


def test_callbacks_get_the_value_in_front_unless_immutable(app: Celery) -> None:
    add = app.task(lambda *a: sum(a), name="add")
    outcome = run(add, 2, 3, link=[add.s(10), add.si(7)], task_id="first", root_id="root")
    first, second = outcome.publish
    assert (body_of(first)[0], body_of(second)[0]) == ([5, 10], [7])
    for message in outcome.publish:
        assert (message.headers["parent_id"], message.headers["root_id"]) == ("first", "root")
    assert [child[0][0] for child in document(outcome)["children"]] == [first.id, second.id]


def test_the_next_step_of_a_chain_carries_the_rest(app: Celery) -> None:
    add = app.task(lambda *a: sum(a), name="add")
    steps = [dict(add.s(4).set(task_id="last")), dict(add.s(3).set(task_id="next", reply_to="client"))]
    outcome = run(add, 1, 2, task_id="first", chain=steps)
    (message,) = outcome.publish
    assert message.id == "next" and message.properties["reply_to"] == "client"
    assert (message.headers["root_id"], message.headers["parent_id"]) == ("first", "first")
    args, _, links = body_of(message)
    assert args == [3, 3]
    assert links["chain"] == [json.loads(json.dumps(add.s(4).set(task_id="last")))]
    assert document(outcome)["children"] == [[["next", None], None]]

    (last,) = Executor(app).run(Delivery(message, 2)).publish
    assert (last.id, last.headers["root_id"], last.headers["parent_id"]) == ("last", "first", "next")
    assert body_of(last)[0] == [6, 4] and body_of(last)[2]["chain"] == []
    assert not Executor(app).run(Delivery(last, 3)).publish


def test_our_next_step_is_celerys(app: Celery) -> None:
    add = app.task(lambda x, y: x + y, name="wireapp.add")
    second, third = (element["message"] for element in golden.load("worker_messages")["chain second step"])
    headers = second["headers"]
    steps = [
        {**second["body"][2]["chain"][0]},
        {**second["body"][2]["chain"][0], "args": [3], "options": {
            "task_id": headers["id"], "reply_to": second["properties"]["reply_to"]}},
    ]  # fmt: skip
    outcome = run(add, 1, 2, task_id=headers["parent_id"], chain=steps)
    for theirs in (second, third):
        (message,) = outcome.publish
        ours = json.loads(encode(message))
        assert ours["headers"] == theirs["headers"] | {"origin": ours["headers"]["origin"]}
        assert list(ours["headers"]) == list(theirs["headers"])
        assert list(body_of(message)) == theirs["body"]
        tag = ours["properties"]["delivery_tag"]
        assert ours["properties"] == theirs["properties"] | {"delivery_tag": tag}
        outcome = Executor(app).run(Delivery(message, 1))


def test_links_are_not_followed_after_a_failure(app: Celery) -> None:
    fail = app.task(lambda: 1 / 0, name="fail")
    add = app.task(lambda x: x, name="add")
    assert not run(fail, link=add.s(), chain=[dict(add.s())]).publish


def test_an_errback_with_one_argument_is_sent_the_failed_tasks_id(app: Celery) -> None:
    fail = app.task(lambda: 1 / 0, name="fail")
    one = app.task(lambda task_id: None, name="one")
    bound = app.task(lambda self, a, b, c: None, name="bound", bind=True)
    extra = app.task(lambda task_id, where: None, name="extra")
    outcome = run(
        fail, link_error=[one.s(), bound.s(1), extra.s("here"), extra.s(where="x")], task_id="failed"
    )
    assert [(m.task, body_of(m)[0]) for m in outcome.publish] == [
        ("one", ["failed"]), ("bound", ["failed", 1]), ("extra", ["failed", "here"]), ("extra", ["failed"]),
    ]  # fmt: skip
    assert {m.headers["parent_id"] for m in outcome.publish} == {"failed"}


def test_an_errback_nobody_knows_here_is_sent_on(app: Celery) -> None:
    fail = app.task(lambda: 1 / 0, name="fail")
    (message,) = run(fail, link_error=app.signature("elsewhere"), task_id="failed").publish
    assert (message.task, body_of(message)[0]) == ("elsewhere", ["failed"])


def test_an_errback_with_more_arguments_is_called_with_the_exception(app: Celery) -> None:
    seen: list[Any] = []
    fail = app.task(lambda: 1 / 0, name="fail")
    three = app.task(lambda request, exc, traceback: seen.append((request, exc, traceback)), name="three")
    all_of_them = app.task(lambda *args, **kwargs: seen.append((args, kwargs)), name="all")
    outcome = run(fail, link_error=[three.s(), all_of_them.s("stored", flag=True)], task_id="failed")
    assert not outcome.publish
    request, error, traceback = seen[0]
    assert request.id == "failed" and isinstance(error, ZeroDivisionError)
    assert isinstance(traceback, str) and traceback.endswith("ZeroDivisionError: division by zero\n")
    assert seen[1][0][3:] == ("stored",) and seen[1][1] == {"flag": True}


def test_a_failing_errback_changes_nothing_and_keeps_the_others(app: Celery, caplog: Any) -> None:
    fail = app.task(lambda: 1 / 0, name="fail")
    rude = app.task(lambda request, exc, traceback: 1 / 0, name="rude")
    one = app.task(lambda task_id: None, name="one")
    outcome = run(fail, link_error=[rude.s(), one.s()])
    assert [message.task for message in outcome.publish] == ["one"]
    assert document(outcome)["status"] == "FAILURE"
    assert "errback" in caplog.text


@pytest.mark.parametrize(
    "links",
    [
        {"callbacks": 5},
        {"callbacks": [None]},
        {"callbacks": [{}]},
        {"callbacks": [{"task": 5}]},
        {"callbacks": [{"task": "t", "args": 5}]},
        {"callbacks": [{"task": "t", "kwargs": [1]}]},
        {"callbacks": [{"task": "t", "options": 5}]},
        {"callbacks": [{"task": "t", "options": {"countdown": "soon"}}]},
        {"callbacks": [{"task": "t", "options": {"queue": 5}}]},
        {"callbacks": [{"task": "t", "subtask_type": "group"}]},
        {"callbacks": [{"task": "celery.chord"}]},
        {"chain": 5},
        {"chain": "text"},
        {"chain": {"a": 1}},
        {"chain": [5]},
        {"chord": 5},
    ],
    ids=str,
)
def test_links_that_cannot_be_followed_fail_the_task(app: Celery, links: dict[str, Any]) -> None:
    task = app.task(lambda: 1, name="t")
    delivery = delivery_of(task)
    delivery.message.body = json.dumps([[], {}, links]).encode()
    outcome = Executor(app).run(delivery)
    assert document(outcome)["status"] == "FAILURE"
    assert (outcome.publish, document(outcome)["children"]) == ([], [])
    delivery.message.body = json.dumps([[1], {}, {"errbacks": links.get("callbacks")}]).encode()
    assert document(Executor(app).run(delivery))["result"]["exc_type"] == "TypeError"


# -- ends of the task's own ------------------------------------------------------------------


def test_ignore_acknowledges_and_records_nothing(app: Celery) -> None:
    @app.task
    def task() -> None:
        raise Ignore

    outcome = run(task, link_error=task.s(), link=task.s())
    assert (outcome.verdict, outcome.record, outcome.publish) == (Verdict.ACK, None, ())


def test_reject_sends_the_message_to_the_dead_letters_as_a_failure(app: Celery) -> None:
    @app.task
    def task() -> None:
        raise Reject("no thanks", requeue=False)

    outcome = run(task)
    assert outcome.verdict is Verdict.REJECT and "no thanks" in str(outcome.reason)
    assert document(outcome)["result"] == {
        "exc_type": "Reject", "exc_message": ["no thanks", False], "exc_module": "celery.exceptions"
    }  # fmt: skip


def test_reject_with_requeue_puts_the_message_at_the_end_of_its_queue(app: Celery) -> None:
    @app.task
    def task() -> None:
        raise Reject("later", requeue=True)

    outcome = run(task, task_id="an-id", queue="mail")
    assert (outcome.verdict, outcome.record) == (Verdict.ACK, None)
    (message,) = outcome.publish
    assert (message.id, message.queue, message.due) == ("an-id", "mail", None)
    assert message.headers["redelivered"] is True and message.headers["retries"] == 0


# -- ends without a run ----------------------------------------------------------------------


def test_an_expired_call_is_revoked(app: Celery) -> None:
    heard: list[Any] = []
    signals.task_revoked.connect(lambda **found: heard.append(found), weak=False, dispatch_uid="expired")
    try:
        with pytest.warns(UserWarning, match="expired"):
            delivery = delivery_of(never(app), expires=-5)
        outcome = Executor(app).run(delivery)
    finally:
        signals.task_revoked.disconnect(dispatch_uid="expired")
    assert (document(outcome)["status"], outcome.verdict) == ("REVOKED", Verdict.ACK)
    assert document(outcome)["result"]["exc_message"] == ["expired"]
    assert (heard[0]["expired"], heard[0]["terminated"], heard[0]["signum"]) == (True, False, None)


def test_a_revoked_call_is_not_run(app: Celery) -> None:
    delivery = delivery_of(never(app))
    delivery.revoked = True
    outcome = Executor(app).run(delivery)
    assert document(outcome)["result"]["exc_message"] == ["revoked"]
    assert outcome.verdict is Verdict.ACK


def test_a_call_that_is_early_goes_to_the_brokers_delay(app: Celery) -> None:
    outcome = Executor(app).run(delivery_of(never(app), countdown=60))
    (message,) = outcome.publish
    assert message.due == pytest.approx(time.time() + 60, abs=5)
    assert (outcome.verdict, outcome.record) == (Verdict.ACK, None)


def test_a_naive_eta_is_read_in_the_workers_zone(app: Celery) -> None:
    app.conf.timezone = "Asia/Tokyo"
    outcome = Executor(app).run(delivery_of(never(app), eta=datetime(2126, 1, 1, 9)))
    assert outcome.publish[0].due == datetime(2126, 1, 1, tzinfo=timezone.utc).timestamp()


def test_an_eta_that_has_passed_runs(app: Celery) -> None:
    assert document(run(app.task(lambda: 1, name="t"), countdown=-1))["result"] == 1


@pytest.mark.parametrize(
    ("setting", "verdict", "state"),
    [
        ("discard", Verdict.ACK, "FAILURE"),
        ("dead-letter", Verdict.REJECT, "FAILURE"),
        ("requeue", Verdict.ACK, None),
    ],
)
def test_an_unknown_task_is_dealt_with_as_set(
    app: Celery, setting: str, verdict: Verdict, state: str | None
) -> None:
    app.conf.worker_unregistered_task = setting
    app.task(lambda: 1, name="app.send_mail")
    delivery = Delivery(Message("an-id", "app.send_mial", b"[[], {}, {}]", {}), 1)
    outcome = Executor(app).run(delivery)
    assert outcome.verdict is verdict
    assert (outcome.record and outcome.record.state) == state
    if state:
        assert document(outcome)["result"] == {
            "exc_type": "NotRegistered", "exc_message": ["app.send_mial"], "exc_module": "celery.exceptions"
        }  # fmt: skip
        assert "did you mean 'app.send_mail'" in str(outcome.reason)
    else:
        (message,) = outcome.publish
        assert message.due == pytest.approx(time.time() + 5, abs=3)


def test_an_unknown_task_is_not_requeued_for_ever(app: Celery) -> None:
    app.conf.worker_unregistered_task = "requeue"
    message = Message("an-id", "gone", b"[[], {}, {}]", {"task": "gone", "id": "an-id"})
    for attempt in range(1, 1000):
        outcome = Executor(app).run(decode(encode(message).encode(), "celery", attempt))
        if outcome.verdict is Verdict.REJECT:
            break
        (message,) = outcome.publish
        message.due = None
    assert outcome.verdict is Verdict.REJECT and attempt <= 100


BAD = [
    (b"[[], {}]", {}, "three items"),
    (b"[5, {}, {}]", {}, "args"),
    (b"[[], [], {}]", {}, "kwargs"),
    (b"[[], {}, []]", {}, "links"),
    (b"not json", {}, "JSON"),
    (b"[" * 100_000, {}, "nested"),
    (b'[[{"__type__": "x", "__value__": 1}], {}, {}]', {}, "__type__"),
    (b"[[], {}, {}]", {"timelimit": "soon"}, "timelimit"),
    (b"[[], {}, {}]", {"timelimit": [1]}, "timelimit"),
    (b"[[], {}, {}]", {"timelimit": ["1", None]}, "timelimit"),
    (b"[[], {}, {}]", {"timelimit": [-1, None]}, "timelimit"),
    (b"[[], {}, {}]", {"timelimit": [float("inf"), None]}, "timelimit"),
    (b"[[], {}, {}]", {"retries": "1"}, "retries"),
    (b"[[], {}, {}]", {"retries": True}, "retries"),
    (b"[[], {}, {}]", {"eta": "soon"}, "eta"),
    (b"[[], {}, {}]", {"eta": 5}, "eta"),
    (b"[[], {}, {}]", {"expires": "never"}, "expires"),
    (b"[[], {}, {}]", {"expires": [5]}, "expires"),
    (b"[[], {}, {}]", {"compression": "application/x-lzma"}, "compression"),
    (b"[[], {}, {}]", {"compression": 5}, "compression"),
    (b"[[], {}, {}]", {"compression": "application/x-gzip"}, "data"),
]


@pytest.mark.parametrize(("body", "headers", "reason"), BAD)
def test_a_bad_message_goes_to_the_dead_letters_with_the_reason(
    app: Celery, body: bytes, headers: dict[str, Any], reason: str
) -> None:
    delivery = delivery_of(never(app), task_id="an-id")
    delivery.message.body = body
    delivery.message.headers |= headers
    outcome = Executor(app).run(delivery)
    assert outcome.verdict is Verdict.REJECT
    assert reason in str(outcome.reason)
    assert document(outcome)["task_id"] == "an-id" and document(outcome)["status"] == "FAILURE"


def test_a_message_that_is_broken_goes_to_the_dead_letters(app: Celery) -> None:
    outcome = Executor(app).run(decode(b"what is this", "celery", 1))
    assert outcome.verdict is Verdict.REJECT and outcome.record is None and outcome.reason


def test_null_arguments_are_no_arguments(app: Celery) -> None:
    task = app.task(lambda *a, **k: [list(a), k], name="t")
    delivery = delivery_of(task)
    delivery.message.body = b"[null, null, null]"
    assert document(Executor(app).run(delivery))["result"] == [[], {}]


def test_arguments_that_do_not_fit_are_the_tasks_failure(app: Celery) -> None:
    task = app.task(lambda x: x, name="t")
    assert document(run(task, 1, 2))["result"]["exc_type"] == "TypeError"


def test_a_message_of_protocol_1_runs_with_its_links(app: Celery) -> None:
    app.task(lambda x, y: x + y, name="wireapp.add")
    (element,) = golden.load("messages")["protocol_1"]
    delivery = decode(element["raw"].encode(), "celery", 1)
    delivery.message.headers["eta"] = None
    assert document(Executor(app).run(delivery))["result"] == 5


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_SENT = json.loads(golden.load("messages")["delay"][0]["raw"])["headers"]
_HEADERS = [*_SENT, "compression", "redelivered"]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(_HEADERS), _json, max_size=2),
    st.dictionaries(st.sampled_from(["content-type", "content-encoding"]), _json, max_size=1),
    st.dictionaries(
        st.sampled_from(["priority", "reply_to", "correlation_id", "delivery_info"]), _json, max_size=1
    ),
    st.one_of(
        st.none(),
        _json,
        st.tuples(
            _json,
            _json,
            st.dictionaries(st.sampled_from(["callbacks", "errbacks", "chain", "chord"]), _json, max_size=2),
        ),
        st.tuples(
            st.just([]),
            st.just({}),
            st.dictionaries(
                st.sampled_from(["callbacks", "errbacks", "chain"]),
                st.lists(
                    st.fixed_dictionaries(
                        {"task": st.sampled_from(["t", "x"])},
                        optional={"args": _json, "kwargs": _json, "options": _json, "immutable": _json},
                    )
                ),
                min_size=1,
                max_size=2,
            ),
        ),
    ),
    st.booleans(),
)
@example({}, {}, {}, ([], {}, {"errbacks": [{"task": "t", "options": [[None, None]]}]}), True)
@example({}, {}, {}, ([], {}, {"callbacks": [{"task": "t", "options": [[None, None]]}]}), False)
def test_no_message_makes_the_executor_raise(
    headers: Any, top: Any, properties: Any, body: Any, fails: bool
) -> None:
    app = Celery("fuzz", backend="memory://fuzz", set_as_current=False)

    @app.task(name="t", bind=True)
    def t(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in dir(type(self.request)):
            if not name.startswith("_"):
                getattr(self.request, name)
        if fails:
            raise self.retry(args=[1])
        return 1

    envelope = json.loads(encode(message_of(t)))
    envelope["headers"] |= headers
    envelope["properties"] |= properties
    envelope |= top
    if body is not None:
        envelope["body"] = json.dumps(body)
        del envelope["properties"]["body_encoding"]
    logging.disable(logging.CRITICAL)
    try:
        outcome = Executor(app, "w").run(decode(json.dumps(envelope).encode(), "celery", 1))
        for message in outcome.publish:
            encode(message)
    finally:
        logging.disable(logging.NOTSET)
    assert isinstance(outcome, Outcome)
