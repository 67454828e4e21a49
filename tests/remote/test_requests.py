"""Requests, replies and commands as values: against what Celery has sent, and what nobody should."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import DuplicateNodenameWarning, OperationalError
from minicelery.message import new_id
from minicelery.remote import Control, control_command, flatten_reply, inspect_command
from minicelery.remote.registry import Commands
from minicelery.remote.request import (
    LONGEST_PATTERN,
    Malformed,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    matches,
    requests_box,
)
from minicelery.remote.silence import no_answer

CAPTURED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "celery_control.json").read_text()
)
ANSWERED = {name: case for name, case in CAPTURED.items() if case["request"].get("reply_to")}


@pytest.fixture
def app() -> Any:
    with Celery("remote", broker=f"memory://{new_id()}", set_as_current=False) as app:
        yield app


def sent_by(app: Celery, act: Any) -> dict[str, Any]:
    """The body of the one request that `act` sends."""
    with app.broker.post.listen([requests_box("w1@host1")]) as listening:
        act(app.control)
        (letter,) = listening.take(1.0)
    found: dict[str, Any] = letter.content
    return found


# -- as Celery has it --------------------------------------------------------------------


@pytest.mark.parametrize("name", CAPTURED)
def test_a_request_is_written_as_celery_writes_it(name: str) -> None:
    captured = CAPTURED[name]
    request = decode_request(captured["request"])
    before = time.time()
    letter = encode_request(request, captured["headers"]["clock"], 1.0)
    assert json.loads(letter.body) == captured["request"]
    assert (letter.exchange, letter.routing_key, letter.persistent) == ("celery.pidbox", "", True)
    assert letter.headers["clock"] == captured["headers"]["clock"]
    assert before <= letter.headers["expires"] - 1.0 <= time.time()


@pytest.mark.parametrize("name", ANSWERED)
def test_a_reply_is_written_as_celery_writes_it(name: str) -> None:
    captured = ANSWERED[name]
    request = decode_request(captured["request"])
    for reply in captured["replies"]:
        ((node, value),) = reply["body"].items()
        letter = encode_reply(node, value, request, reply["headers"]["clock"])
        assert json.loads(letter.body) == reply["body"]
        assert letter.headers == reply["headers"]
        assert (letter.exchange, letter.routing_key) == request.reply_to
        letter.content = json.loads(letter.body)
        assert decode_reply(letter, request.ticket or "") == reply["body"]


CALLS = {
    "revoke no reply": lambda control, id: control.revoke(id),
    "ping no reply wanted": lambda control, id: control.broadcast("ping"),
    "revoke_by_stamped_headers": lambda control, id: control.revoke_by_stamped_headers(
        {"mtask_id": ["a", "b"]}, destination=["w1@host1"]
    ),
    "rate_limit": lambda control, id: control.rate_limit("wireapp.add", "10/m", destination=["w1@host1"]),
    "time_limit": lambda control, id: control.time_limit(
        "wireapp.add", soft=5, hard=10, destination=["w1@host1"]
    ),
    "add_consumer": lambda control, id: control.add_consumer("extraq", destination=["w1@host1"]),
    "add_consumer with exchange": lambda control, id: control.add_consumer(
        "extraq2", exchange="ex2", exchange_type="topic", routing_key="a.#", destination=["w1@host1"]
    ),
    "cancel_consumer": lambda control, id: control.cancel_consumer("extraq", destination=["w1@host1"]),
    "pool_grow": lambda control, id: control.pool_grow(1, destination=["w1@host1"]),
    "pool_shrink": lambda control, id: control.pool_shrink(1, destination=["w1@host1"]),
    "autoscale without autoscaler": lambda control, id: control.autoscale(4, 1, destination=["w1@host1"]),
    "pool_restart disabled": lambda control, id: control.pool_restart(destination=["w1@host1"]),
    "enable_events": lambda control, id: control.enable_events(destination=["w1@host1"]),
    "disable_events": lambda control, id: control.disable_events(destination=["w1@host1"]),
    "heartbeat": lambda control, id: control.heartbeat(destination=["w1@host1"]),
    "shutdown": lambda control, id: control.shutdown(destination=["w1@host1"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_method_of_control_sends_what_celerys_sends(name: str, app: Celery) -> None:
    captured = dict(CAPTURED[name]["request"])
    captured.pop("ticket", None)
    captured.pop("reply_to", None)
    found = sent_by(app, lambda control: CALLS[name](control, captured["arguments"].get("task_id")))
    found.pop("kept", None)
    assert found.pop("ticket")  # Celery's sends one only where it wants a reply
    assert found == captured


def test_a_revoked_id_is_put_down_in_the_broker_and_its_request_says_so(app: Celery) -> None:
    found = sent_by(app, lambda control: control.revoke("some-id", terminate=True, signal="KILL"))
    assert found["kept"] is True
    assert "some-id" in app.broker.recall("revoked")
    assert app.broker.recall("terminate") == {"some-id": b"SIGKILL"}


def test_very_many_ids_go_in_several_requests(app: Celery) -> None:
    ids = [f"id-{number}" for number in range(25_000)]
    with app.broker.post.listen([requests_box("w1@host1")]) as listening:
        app.control.revoke(ids)
        letters = listening.take(1.0)
    assert [id for letter in letters for id in letter.content["arguments"]["task_id"]] == ids
    assert len(letters) == 3
    assert set(app.broker.recall("revoked")) == set(ids)


# -- what nobody should send -------------------------------------------------------------

MALFORMED = {
    "no object": [1, 2],
    "text": "ping",
    "nothing": None,
    "no method": {"arguments": {}},
    "a method that is no text": {"method": ["ping"]},
    "arguments in a list": {"method": "ping", "arguments": [1]},
    "a destination that is text": {"method": "ping", "destination": "w1"},
    "a destination of numbers": {"method": "ping", "destination": [1]},
    "a reply_to that is text": {"method": "ping", "reply_to": "oid"},
    "a reply_to without a key": {"method": "ping", "reply_to": {"exchange": "x"}},
    "a reply_to of numbers": {"method": "ping", "reply_to": {"exchange": 1, "routing_key": 2}},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request_is_refused(name: str) -> None:
    with pytest.raises(Malformed):
        decode_request(MALFORMED[name])


def test_what_only_others_use_in_a_request_is_passed_over() -> None:
    given = {"method": "ping", "further": [1], "ticket": 5, "pattern": 7, "matcher": {}, "arguments": None}
    assert decode_request(given) == Request("ping")


@pytest.mark.parametrize(
    ("pattern", "matcher", "expected"),
    [
        ("w1@*", "glob", True),
        ("w2*", "glob", False),
        ("*" * 150, "glob", True),
        ("w[12]@.*", "pcre", True),
        ("(w1|w2)@host\\d?", "pcre", True),
        ("w1", "pcre", True),  # as Celery: from the beginning
        ("W1@.*", "pcre", False),
    ],
)
def test_patterns_match_as_celerys_do(pattern: str, matcher: str, expected: bool) -> None:
    assert matches("w1@host1", pattern, matcher) is expected
    assert Request("ping", pattern=pattern, matcher=matcher).is_for("w1@host1") is expected


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "(.*)*x", "a?" * 30 + "a" * 30, "(ab|b)" * 30, ".*.*.*.*x", "(", r"(a)\1", "[", "x" * 300]
)  # fmt: skip
def test_a_pattern_that_could_hold_a_worker_up_is_refused_at_once(pattern: str) -> None:
    def span() -> float:
        began = time.thread_time()
        with pytest.raises(ValueError, match="pattern="):
            matches("a" * LONGEST_PATTERN, pattern, "pcre")
        return time.thread_time() - began

    assert any(span() < 0.2 for _ in range(3))


def test_the_slowest_pattern_that_is_accepted_is_quick_enough() -> None:
    def span() -> float:
        began = time.thread_time()
        matches("a" * 100, ".*a.*a.*x", "pcre")
        return time.thread_time() - began

    assert any(span() < 1.0 for _ in range(3))


def test_a_reply_that_json_cannot_carry_is_sent_as_text() -> None:
    request = Request("mine", ticket="t", reply_to=("x", "k"))
    deep: Any = []
    for _ in range(3000):
        deep = [deep]

    class Odd:
        def __repr__(self) -> str:
            raise ValueError("no")

    for value in (object(), {1, 2}, {"a": {1: b"x"}}, deep, Odd(), float("nan")):
        assert json.loads(encode_reply("w@h", value, request, 1).body)["w@h"] is not None


# -- clients -----------------------------------------------------------------------------

WRONG: dict[str, Any] = {
    "a destination that is a number": lambda c: c.ping(destination=5),
    "an empty destination's name": lambda c: c.ping(destination=[""]),
    "a timeout in text": lambda c: c.ping(timeout="soon"),
    "a negative timeout": lambda c: c.ping(timeout=-1),
    "a limit in text": lambda c: c.ping(limit="two"),
    "a matcher there is not": lambda c: c.ping(pattern="w*", matcher="sql"),
    "a pattern that is none": lambda c: c.ping(pattern="(", matcher="pcre"),
    "a command that is a number": lambda c: c.broadcast(5),
    "arguments in a list": lambda c: c.broadcast("ping", [1]),
    "arguments that JSON can't carry": lambda c: c.broadcast("ping", {"x": object()}),
    "a misspelt option": lambda c: c.broadcast("ping", timout=1),
    "a queue that is a number": lambda c: c.add_consumer(5),
    "a task that is none": lambda c: c.rate_limit(None, "1/m"),
    "stamps that are text": lambda c: c.revoke_by_stamped_headers("x=y"),
    "a signal that ends nothing": lambda c: c.revoke_by_stamped_headers({"x": "y"}, signal="SIGWINCH"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_meant_is_refused_at_the_call(name: str, app: Celery) -> None:
    with pytest.raises((TypeError, ValueError)):
        WRONG[name](app.control)


def test_nobody_answering_is_none_for_inspect_and_no_replies_for_control(app: Celery) -> None:
    assert app.control.inspect(timeout=0.05).ping() is None
    assert app.control.inspect("w1@h", timeout=0.05).stats() is None
    assert app.control.ping(timeout=0.05) == []
    assert app.control.broadcast("ping") is None


def test_where_the_broker_tells_that_nobody_listens_nobody_waits(app: Celery) -> None:
    began = time.monotonic()
    assert app.control.ping(timeout=60) == []
    assert time.monotonic() - began < 30


def test_a_reply_that_has_come_counts_however_late_its_asker_looks(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = app.broker.post
    with post.listen([requests_box("w1@host1")]) as listening:

        def send_and_answer(letters: Any, send: Any = post.send) -> Any:
            heard = send(letters)
            requests = [decode_request(letter.content) for letter in listening.take(0.0)]
            send([encode_reply("w1@host1", {"ok": "pong"}, request, 1) for request in requests])
            return heard

        monkeypatch.setattr(post, "send", send_and_answer)
        assert app.control.ping(timeout=0) == [{"w1@host1": {"ok": "pong"}}]


def test_two_workers_of_one_name_are_told_of() -> None:
    with pytest.warns(DuplicateNodenameWarning, match="w1@h"):
        assert flatten_reply([{"w1@h": 1}, {"w1@h": 2}, {"w2@h": 3}]) == {"w1@h": 2, "w2@h": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flatten_reply([{"w1@h": 1}, {"w2@h": 3}]) == {"w1@h": 1, "w2@h": 3}


def test_silence_is_explained_by_what_was_checked(app: Celery) -> None:
    app.send_task("nobodys.task")
    text = no_answer(app)
    assert "1 wait in 'celery'" in text
    assert "minicelery worker" in text


def test_a_broker_that_is_away_is_named(tmp_path: Path) -> None:
    with Celery("away", broker="redis://127.0.0.1:1/0", set_as_current=False) as app:
        assert "127.0.0.1:1" in no_answer(app)
        with pytest.raises(OperationalError):
            app.control.inspect(timeout=0.1).ping()


def test_purge_deletes_what_waits_in_the_apps_queues(app: Celery) -> None:
    for _ in range(3):
        app.send_task("nobodys.task")
    assert app.control.purge() == 3
    assert app.control.discard_all() == 0


def test_elections_are_refused(app: Celery) -> None:
    with pytest.raises(NotImplementedError, match="elect"):
        app.control.election("id", "topic")


# -- commands ----------------------------------------------------------------------------


def test_a_command_is_registered_with_what_celery_keeps_of_one() -> None:
    panel = Commands()

    @panel.register(type="inspect", alias="old", args=[("n", int)], signature="[N=1]", visible=False)
    def mine(state: Any, n: int = 1) -> int:
        """First line.

        More.
        """
        return n

    assert panel["mine"] is panel["old"] is mine
    info = panel.meta["mine"]
    assert (info.type, info.help, info.signature, info.visible) == ("inspect", "First line.", "[N=1]", False)
    assert panel.of_type("inspect") == {}


def test_what_is_no_command_is_refused() -> None:
    with pytest.raises(TypeError):
        control_command()(5)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="a name"):
        inspect_command(name="a name")(lambda state: None)
    with pytest.raises(ValueError, match="type="):
        Commands().register(type="ask")


def test_celerys_place_for_commands_has_them_all() -> None:
    from minicelery.worker.control import Panel

    celery = pytest.importorskip("celery.worker.control")
    missing = {name for name in celery.Panel.meta if name not in Panel.meta}
    assert missing == {"memdump", "objgraph", "election"}
    for name, info in Panel.meta.items():
        theirs = celery.Panel.meta.get(name)
        if theirs is not None:
            assert (info.type, info.alias, info.visible, info.variadic, info.signature) == (
                theirs.type, theirs.alias, theirs.visible, theirs.variadic, theirs.signature,
            ), name  # fmt: skip


def test_the_client_has_every_method_of_celerys() -> None:
    celery = pytest.importorskip("celery.app.control")
    from minicelery.remote import Inspect

    for ours, theirs in ((Control, celery.Control), (Inspect, celery.Inspect)):
        missing = {name for name in dir(theirs) if not name.startswith("_")} - set(dir(ours))
        assert missing <= {"Mailbox", "app", "mailbox", "memdump", "objgraph"}, missing
