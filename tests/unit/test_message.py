"""Messages on the wire: ours beside those that Celery 5.7 wrote for the same calls."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from minicelery import Celery
from minicelery.broker.redis.envelope import decode, encode, step_of
from minicelery.exceptions import ContentDisallowed, DecodeError, InvalidTaskError
from minicelery.message import Message, decode_body, encode_body, new_id, new_ids, parse_time, short_repr
from minicelery.serialization import accepted
from tests import golden

UTC = timezone.utc
ACCEPT = accepted(("json", "msgpack"))
GOLDEN = golden.load("messages")
MOMENT = datetime(2030, 1, 2, 3, 4, 5)


def wire_app(url: str) -> Celery:
    """The application whose calls were captured."""
    app = Celery("wireapp", broker=url, backend=url, set_as_current=False)

    @app.task(name="wireapp.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="wireapp.echo")
    def echo(*args: Any, **kwargs: Any) -> None: ...

    @app.task(name="wireapp.noop")
    def noop() -> None: ...

    @app.task(name="wireapp.onerr")
    def onerr(task_id: str) -> None: ...

    @app.task(name="wireapp.no_result", ignore_result=True)
    def no_result() -> None: ...

    return app


def call(**options: Any) -> Callable[[Celery], Any]:
    return lambda app: app.tasks["wireapp.add"].apply_async((2, 3), **options)


def linked(option: str, *links: tuple[str, tuple[Any, ...], bool]) -> Callable[[Celery], Any]:
    def send(app: Celery) -> Any:
        signatures = [app.tasks[name].signature(args, immutable=immutable) for name, args, immutable in links]
        return call(**{option: signatures if len(signatures) > 1 else signatures[0]})(app)

    return send


JSON_TYPES = {
    "dt": datetime(2026, 1, 2, 3, 4, 5, 678901),
    "dtz": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "d": date(2026, 1, 2),
    "t": time(3, 4, 5, 6),
    "dec": Decimal("1.10"),
    "u": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "b": b"abc",
    "bb": b"\xff\x00",
    "tup": (1, 2),
    "ukey": "hé☃",
}

CALLS: dict[str, Callable[[Celery], Any]] = {
    "delay": lambda app: app.tasks["wireapp.add"].delay(2, 3),
    "delay_kwargs": lambda app: app.tasks["wireapp.add"].delay(x=2, y=3),
    "send_task_unregistered": lambda app: app.send_task("some.other.task", (1,), {"a": None}),
    "task_id": call(task_id="my-own-id"),
    "countdown": call(countdown=60),
    "eta_aware": call(eta=MOMENT.replace(tzinfo=UTC)),
    "eta_naive": call(eta=MOMENT),
    "expires_seconds": call(expires=30),
    "priority_0": call(priority=0),
    "priority_5": call(priority=5),
    "priority_9": call(priority=9),
    "queue_existing": call(queue="prioq", priority=4),
    "queue_unknown": call(queue="newq"),
    "routing_key_only": call(routing_key="rk1"),
    "link": linked("link", ("wireapp.add", (10,), False)),
    "link_two_immutable": linked("link", ("wireapp.add", (10,), False), ("wireapp.noop", (), True)),
    "link_error": linked("link_error", ("wireapp.onerr", (), False)),
    "headers": call(headers={"x-my": 1, "nested": {"a": [1, 2.5, None, True]}}),
    "time_limits": call(time_limit=60, soft_time_limit=50),
    "retries": call(retries=2),
    "shadow": call(shadow="display-name"),
    "ignore_result": call(ignore_result=True),
    "task_with_ignore_result": lambda app: app.tasks["wireapp.no_result"].delay(),
    "reply_to": call(reply_to="my-replies"),
    "root_parent": call(root_id="root-1", parent_id="parent-1"),
    "serializer_msgpack": call(serializer="msgpack"),
    "compression_zlib": call(compression="zlib"),
    "compression_gzip": call(compression="gzip"),
    "compression_bzip2": call(compression="bzip2"),
    "compression_zlib_msgpack": call(compression="zlib", serializer="msgpack"),
}


def sent(url: str, send: Callable[[Celery], Any]) -> tuple[str, str]:
    """The key and the text of the one envelope that `send` has put on Redis."""
    with redis.Redis.from_url(url) as client, wire_app(url) as app:
        client.flushall()
        send(app)
        lists = [
            key for key in client.scan_iter() if client.type(key) == b"list" and not key.endswith(b".bell")
        ]
        assert len(lists) == 1 and client.llen(lists[0]) == 1
        return lists[0].decode(), client.lindex(lists[0], 0).decode()


# -- ours beside Celery's ------------------------------------------------------------------


@pytest.mark.parametrize("case", CALLS)
def test_our_envelope_is_celerys_character_for_character(redis_url: str, case: str) -> None:
    key, raw = sent(redis_url, CALLS[case])
    theirs = GOLDEN[case][0]
    assert key == theirs["key"]
    assert golden.comparable(raw) == golden.comparable(theirs["raw"])


def test_an_expiry_at_a_date_is_sent_as_celery_sends_it(redis_url: str) -> None:
    _, raw = sent(redis_url, call(expires=MOMENT.replace(tzinfo=UTC)))
    (theirs,) = GOLDEN["expires_datetime"]

    def without_life(text: str) -> str:
        return re.sub(r'"expiration": "\d+"', '"expiration": ""', golden.comparable(text))

    assert without_life(raw) == without_life(theirs["raw"])


def test_the_types_json_has_no_word_for_are_sent_as_celery_sends_them(redis_url: str) -> None:
    _, raw = sent(redis_url, lambda app: app.tasks["wireapp.echo"].delay(**JSON_TYPES))
    (theirs,) = GOLDEN["json_types"]
    ours, celerys = json.loads(raw), json.loads(theirs["raw"])
    assert base64.b64decode(ours["body"]) == base64.b64decode(celerys["body"])
    # Celery shows binary data in hexadecimal there; every other part is the same.
    expected = celerys["headers"]["kwargsrepr"].replace("b'ff00'", repr(b"\xff\x00"))
    assert ours["headers"]["kwargsrepr"] == expected


def test_long_arguments_are_shown_cut_near_the_same_length(redis_url: str) -> None:
    _, raw = sent(redis_url, lambda app: app.tasks["wireapp.echo"].delay(list(range(400))))
    theirs = json.loads(GOLDEN["long_args"][0]["raw"])["headers"]["argsrepr"]
    ours = json.loads(raw)["headers"]["argsrepr"]
    assert ours[:900] == theirs[:900]
    assert "..." in ours[-12:]
    assert 900 < len(ours) <= 1050


def test_a_representation_of_the_callers_own_replaces_the_arguments(redis_url: str) -> None:
    _, raw = sent(redis_url, call(argsrepr="(secret)", kwargsrepr="{...}"))
    headers = json.loads(raw)["headers"]
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("(secret)", "{...}")
    assert headers == json.loads(GOLDEN["argsrepr"][0]["raw"])["headers"] | {
        name: headers[name] for name in ("id", "root_id", "origin")
    }


def test_times_carry_the_offset_of_the_apps_zone(redis_url: str) -> None:
    def send(app: Celery) -> None:
        app.conf.timezone = "Europe/Paris"
        call(countdown=60, expires=120)(app)

    headers = json.loads(sent(redis_url, send)[1])["headers"]
    for name in ("eta", "expires"):
        assert datetime.fromisoformat(headers[name]).utcoffset() in (timedelta(hours=1), timedelta(hours=2))


# -- Celery's read by us -------------------------------------------------------------------


@pytest.mark.parametrize(("case", "key", "raw"), golden.messages(), ids=lambda value: str(value)[:24])
def test_every_captured_message_is_read(case: str, key: str, raw: bytes) -> None:
    delivery = decode(raw, key.partition("\x06")[0], 7)
    envelope = json.loads(raw)
    data = base64.b64decode(envelope["body"])
    headers = envelope["headers"] or json.loads(data)
    message = delivery.message
    assert delivery.broken is None and delivery.receipt == 7
    assert (message.id, message.task) == (headers["id"], headers["task"])
    assert message.priority == envelope["properties"]["priority"]
    if "yaml" in case or "pickle" in case:
        with pytest.raises(ContentDisallowed):
            decode_body(message, ACCEPT)
        return
    args, kwargs, links = decode_body(message, ACCEPT)
    assert isinstance(args, list) and isinstance(kwargs, dict) and isinstance(links, dict)
    if message.content_type == "application/json" and "compression" not in headers and case != "json_types":
        body = json.loads(data)
        expected = [body["args"], body["kwargs"], body] if isinstance(body, dict) else body
        assert [args, kwargs, links] == expected


@pytest.mark.parametrize("case", ["serializer_msgpack", "compression_zlib_msgpack", "compression_zlib"])
def test_packed_bodies_hold_the_arguments(case: str) -> None:
    (element,) = GOLDEN[case]
    args, kwargs, links = decode_body(decode(element["raw"].encode(), "celery", 1).message, ACCEPT)
    assert args in ([2, 3], ["a" * 50, "b"]) or args
    assert kwargs == {}
    assert set(links) == {"callbacks", "errbacks", "chain", "chord"}


def test_the_types_json_has_no_word_for_come_back_as_they_were() -> None:
    (element,) = GOLDEN["json_types"]
    _, kwargs, _ = decode_body(decode(element["raw"].encode(), "celery", 1).message, ACCEPT)
    assert kwargs == {**JSON_TYPES, "tup": [1, 2]}
    assert {name: type(value) for name, value in kwargs.items()} == {
        name: type(value) for name, value in {**JSON_TYPES, "tup": [1, 2]}.items()
    }


def test_a_message_of_protocol_1_is_read_from_its_body() -> None:
    (element,) = GOLDEN["protocol_1"]
    delivery = decode(element["raw"].encode(), "celery", 1)
    args, kwargs, links = decode_body(delivery.message, ACCEPT)
    assert delivery.message.task == "wireapp.add"
    assert parse_time(delivery.message.headers["eta"], "eta") > 0
    assert (args, kwargs, links["callbacks"]) == ([2, 3], {}, None)


# -- envelopes that are no good --------------------------------------------------------------

GOOD = GOLDEN["delay"][0]["raw"]


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    envelope = json.loads(GOOD)
    change(envelope)
    return json.dumps(envelope).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        GOOD.encode()[:-5],
        b"[" * 100_000,
        b'{"a":' * 100_000,
        changed(lambda e: e.pop("body")),
        changed(lambda e: e.pop("headers")),
        changed(lambda e: e.pop("properties")),
        changed(lambda e: e.pop("content-type")),
        changed(lambda e: e.update(body="not base64!")),
        changed(lambda e: e.update(body=5)),
        changed(lambda e: e.update(headers=[])),
        changed(lambda e: e.update(headers={})),
        changed(lambda e: e["headers"].pop("id")),
        changed(lambda e: e["headers"].update(id=5)),
        changed(lambda e: e["headers"].update(id="")),
        changed(lambda e: e["headers"].update(task=["t"])),
    ],
)
def test_a_bad_envelope_is_marked_broken_with_a_reason(raw: bytes) -> None:
    delivery = decode(raw, "celery", 1)
    assert delivery.broken
    assert delivery.message.queue == "celery"
    assert isinstance(delivery.message.id, str) and isinstance(delivery.message.task, str)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_make_the_decoder_raise(raw: bytes) -> None:
    assert decode(raw, "celery", 1).broken


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(["body", "content-encoding", "content-type", "headers", "properties"]) | st.none(),
    st.sampled_from(sorted(json.loads(GOOD)["headers"])),
    st.sampled_from(sorted(json.loads(GOOD)["properties"])),
    _json,
)
def test_a_field_of_the_wrong_type_never_makes_the_decoder_raise(
    top: str | None, header: str, prop: str, value: Any
) -> None:
    def change(envelope: dict[str, Any]) -> None:
        envelope["headers"][header] = value
        envelope["properties"][prop] = value
        if top is not None:
            envelope[top] = value

    delivery = decode(changed(change), "celery", 1)
    assert delivery.broken or (delivery.message.id and delivery.message.task)


def test_a_message_survives_its_own_envelope() -> None:
    body, content_type, encoding = encode_body((1,), {"a": b"\xff"}, "json")
    headers = {"task": "t", "id": "i", "custom": {"a": ["é", None]}}
    properties = {"correlation_id": "i", "reply_to": "r", "x-own": [1]}
    message = Message("i", "t", body, headers, "q", 7, content_type, encoding, properties=properties)
    back = decode(encode(message).encode(), "q", 1).message
    assert (back.id, back.task, back.body, back.headers) == ("i", "t", body, headers)
    assert (back.priority, back.queue, back.content_type) == (7, "q", "application/json")
    assert back.properties["reply_to"] == "r" and back.properties["x-own"] == [1]


@pytest.mark.parametrize(
    ("priority", "step"),
    [
        (None, "0"),
        (0, "0"),
        (2, "0"),
        (3, "3"),
        (5, "3"),
        (6, "6"),
        (8, "6"),
        (9, "9"),
        (255, "9"),
        ("9", "0"),
    ],
)
def test_a_priority_goes_to_the_list_of_its_step(priority: Any, step: str) -> None:
    assert step_of(priority) == step


@pytest.mark.parametrize(
    "body",
    [
        b"[[], {}]",
        b"[[], {}, {}, {}]",
        b"[5, {}, {}]",
        b"[[], [], {}]",
        b"[[], {}, []]",
        b"{}",
        b"5",
        b"null",
    ],
)
def test_a_body_that_is_no_call_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidTaskError):
        decode_body(Message("i", "t", body, {}), ACCEPT)


def test_a_body_without_args_kwargs_or_links_has_none() -> None:
    assert decode_body(Message("i", "t", b"[null, null, null]", {}), ACCEPT) == ([], {}, {})


# -- times, ids, representations -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T00:01:00+00:00", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
        ("1970-01-01T00:01:00.500Z", 60.5),
        ("1970-01-01T00:01:00.500000", 60.5),
    ],
)
def test_times_are_read_with_and_without_an_offset(text: str, seconds: float) -> None:
    assert parse_time(text, "eta") == seconds


def test_a_naive_time_is_read_in_the_zone_given() -> None:
    assert parse_time("1970-01-01T01:00:00", "eta", timezone(timedelta(hours=1))) == 0.0


@pytest.mark.parametrize("value", [5, 5.0, None, "", "soon", "2026-13-01T00:00:00", ["x"], "Z", "9" * 5000])
def test_a_time_that_is_none_names_the_field(value: Any) -> None:
    with pytest.raises(InvalidTaskError, match="eta"):
        parse_time(value, "eta")


def test_ids_are_random_uuids_of_version_4() -> None:
    ids = [new_id() for _ in range(100)] + new_ids(100)
    assert len(set(ids)) == 200
    assert all(str(uuid.UUID(id)) == id and uuid.UUID(id).version == 4 for id in ids)
    assert {uuid.UUID(id).variant for id in ids} == {uuid.RFC_4122}


_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(st.lists(_values) | st.dictionaries(st.text(), _values))
def test_a_representation_is_repr_where_that_is_short_and_never_much_longer_than_its_limit(
    value: Any,
) -> None:
    text = short_repr(value, 100)
    assert len(text) <= 120
    flat = all(
        type(item) in (int, type(None)) for item in (value.values() if isinstance(value, dict) else value)
    )
    if flat and len(value) <= 16 and len(repr(value)) <= 100:
        assert text == repr(value)


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_an_object_whose_repr_raises_is_named_by_its_class() -> None:
    assert "Rude" in short_repr([Rude()])


def test_a_huge_argument_is_not_walked_to_be_shown() -> None:
    class Endless(list):  # type: ignore[type-arg]
        def __repr__(self) -> str:
            raise AssertionError("walked")

    assert len(short_repr(["x" * 10_000_000, list(range(1_000_000))])) <= 1050
    assert "Endless" in short_repr([Endless([1])])


def test_a_body_in_an_unknown_encoding_or_compression_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode_body(Message("i", "t", b"[[], {}, {}]", {}, content_encoding="klingon"), ACCEPT)
    with pytest.raises(DecodeError, match="brotli"):
        decode_body(Message("i", "t", b"x", {"compression": "application/x-brotli"}), ACCEPT)
