"""Letters on the wire: against what Celery has sent, and against what nobody should send."""

from __future__ import annotations

import base64
import json
import re
import threading
from typing import Any

import pytest
from pika import spec

from minicelery.broker import open_broker
from minicelery.broker.amqp import codec
from minicelery.broker.amqp import post as amqp
from minicelery.broker.post import WAITING, Box, Letter, Outbox, kind_of, topic_matches
from minicelery.broker.redis.letters import Places, decode, encode
from tests import golden

CAPTURED = json.loads((golden.DATA / "celery_letters.json").read_text())
ON_REDIS = CAPTURED["redis"]
PUBLISHED = CAPTURED["rabbitmq"]["published"]
DECLARED = CAPTURED["rabbitmq"]["declared"]
TAG = re.compile(r'"delivery_tag": "[0-9a-f-]{36}"')


def places(url: str = "redis://localhost", **options: Any) -> Places:
    """Those of a broker that connects to nothing."""
    found = open_broker(url, options=options).post.places  # type: ignore[attr-defined]  # of Redis only
    assert isinstance(found, Places)
    return found


def captured_text(message: dict[str, Any]) -> str:
    """The envelope as Celery wrote it, of the capture in which its body is decoded."""
    body = base64.b64encode(json.dumps(message["body"]).encode()).decode()
    return json.dumps(message | {"body": body})


@pytest.mark.parametrize("element", ON_REDIS, ids=lambda element: element.get("channel") or "reply")
def test_our_envelope_is_celerys(element: dict[str, Any]) -> None:
    raw = captured_text(element["message"])
    info = element["message"]["properties"]["delivery_info"]
    letter = decode(raw.encode(), info["exchange"], info["routing_key"])
    assert TAG.sub("TAG", encode(letter)) == TAG.sub("TAG", raw)
    how, *where, text = map(str, places().command(letter))
    assert TAG.sub("TAG", text) == TAG.sub("TAG", raw)
    if "channel" in element:
        assert (how, where) == ("PUBLISH", [element["channel"]])
    else:
        exchange, key = where[-2:]
        assert (how, f"{key}.{exchange}") == ("EVAL", element["key"])


@pytest.mark.parametrize("frame", PUBLISHED, ids=lambda frame: frame["exchange"])
def test_our_properties_in_rabbitmq_are_celerys(frame: dict[str, Any]) -> None:
    theirs = dict(frame["properties"])
    types = theirs.pop("headers_types")
    letter = Letter(
        frame["exchange"], frame["routing_key"], frame["body"].encode(), theirs["headers"],
        theirs["delivery_mode"] == 2,
    )  # fmt: skip
    ours = amqp.properties(letter)
    assert list(ours.items()) == list(theirs.items())
    table = codec.encode_table(ours["headers"])
    assert {name: chr(table[table.index(name.encode()) + len(name)]) for name in ours["headers"]} == types


def test_our_queues_and_exchanges_in_rabbitmq_are_celerys() -> None:
    for queue in (frame for frame in DECLARED if frame["method"] == "queue.declare"):
        bind = next(f for f in DECLARED if f["method"] == "queue.bind" and f["queue"] == queue["queue"])
        kind = kind_of(bind["exchange"])
        box = Box(bind["exchange"], kind, queue["queue"], bind["routing_key"])
        exchange, declared, bound = amqp.queue_methods(box)
        assert isinstance(exchange, spec.Exchange.Declare)
        theirs = {"method": "exchange.declare", "exchange": exchange.exchange, "type": exchange.type}
        assert theirs | ({"durable": True} if exchange.durable else {}) in DECLARED
        assert not exchange.auto_delete
        assert (declared.queue, declared.exclusive, declared.auto_delete, declared.durable) == (
            queue["queue"], queue["exclusive"], queue["auto_delete"], queue.get("durable", False),
        )  # fmt: skip
        assert declared.arguments == queue["arguments"]
        assert (bound.queue, bound.exchange, bound.routing_key) == (box.name, box.exchange, box.routing_key)


def test_a_box_may_keep_its_letters_for_another_time() -> None:
    box = Box("celeryev", "topic", "celeryev.x", "#", ttl=1.5, expires=0)
    assert amqp.queue_methods(box)[1].arguments == {"x-expires": 1, "x-message-ttl": 1500}


@pytest.mark.parametrize(
    ("url", "options", "channel"),
    [
        ("redis://localhost/3", {}, "/3.celeryev/task.multi"),
        ("redis://localhost", {"global_keyprefix": "my:"}, "my:/0.celeryev/task.multi"),
        ("redis://localhost", {"fanout_prefix": "x{db}."}, "x0.celeryev/task.multi"),
        ("redis://localhost", {"fanout_prefix": False}, "celeryev/task.multi"),
        ("redis://localhost", {"fanout_patterns": False}, "/0.celeryev"),
    ],
)
def test_channels_are_named_as_the_transport_options_say(
    url: str, options: dict[str, Any], channel: str
) -> None:
    assert places(url, **options).command(Letter("celeryev", "task.multi", b""))[1] == channel


GOOD = json.loads(encode(Letter("celeryev", "task.multi", b"[1]", {"a": 1})))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b"[" * 100_000,
        *(json.dumps({k: v for k, v in GOOD.items() if k != gone}).encode() for gone in
          ("body", "properties", "content-type")),
        *(json.dumps(GOOD | change).encode() for change in (
            {"body": 1}, {"body": "!"}, {"body": "ä"}, {"headers": []}, {"headers": "x"}, {"properties": 1},
            {"properties": []}, {"content-type": "application/x-python-serialize"}, {"content-type": None},
            {"content-type": {}},
        )),
    ],
    ids=lambda raw: str(raw[:30]),
)  # fmt: skip
def test_what_is_no_envelope_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode(raw, "celeryev", "task.multi")


def test_a_plain_body_and_missing_headers_are_read() -> None:
    plain = GOOD | {"body": '{"a": "é"}', "properties": {}, "headers": None}
    assert decode(json.dumps(plain).encode(), "celeryev", "k") == Letter(
        "celeryev", "k", '{"a": "é"}'.encode()
    )


def test_an_outbox_keeps_the_latest_and_counts_the_rest() -> None:
    outbox = Outbox()
    letters = [Letter("celeryev", str(n), b"") for n in range(WAITING + 3)]
    threads = [threading.Thread(target=outbox.add, args=([letter],)) for letter in letters[:8]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.add(letters[8:])
    assert outbox.dropped == 3
    assert [letter.routing_key for letter in outbox.take()][-5:] == [
        str(n) for n in range(WAITING - 2, WAITING + 3)
    ]
    assert outbox.take() == []


@pytest.mark.parametrize(
    ("pattern", "key", "passes"),
    [
        ("#", "", True),
        ("task.#", "task", True),
        ("task.#", "task.a.b", True),
        ("task.#", "tasks.a", False),
        ("*.x", "a.b.x", False),
        ("a.#.b", "a.b", True),
        ("a.#.b", "ab", False),
        ("#.b", "xb", False),
        ("a#.*", "a#.b", True),
    ],
)
def test_a_topic_passes_words(pattern: str, key: str, passes: bool) -> None:
    assert topic_matches(pattern, key) is passes
