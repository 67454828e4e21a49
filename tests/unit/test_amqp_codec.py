"""Frames packed and unpacked by hand: against pika's and py-amqp's, and against what nobody should send."""

from __future__ import annotations

import json
import math
import struct
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pika import frame, spec
from pika.data import encode_table as pika_table

from minicelery.broker.amqp import codec, envelope
from minicelery.broker.amqp.link import Content
from minicelery.message import Delivery, Message, decode_body
from minicelery.serialization import accepted
from tests import golden
from tests.unit.test_call_budget import calls_of

FRAME_MAX = 131072
CAPTURED = {
    f"{case} {number}": published
    for case, sent in {**golden.amqp_messages(), **golden.amqp_worker_messages()}.items()
    for number, published in enumerate(sent.published)
}
GOLDEN = [pytest.param(published, id=name) for name, published in CAPTURED.items()]
TYPED = [
    pytest.param(published, id=name) for name, published in CAPTURED.items() if published.types is not None
]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
SCALARS = st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)  # fmt: skip
TABLES = st.dictionaries(TEXT, VALUES, max_size=8)


def content_of(properties: bytes, body: bytes = b"{}") -> Content:
    """A message with these packed properties (flags first), as a consumer gets it."""
    content = Content(1, codec.DELIVER, b"")
    content.header = struct.pack(">HHQ", 60, 0, len(body)) + properties
    content.body = body
    return content


def content_with(table: bytes, body: bytes = b"{}") -> Content:
    """A JSON message with this packed table of headers."""
    return content_of(struct.pack(">H", 0xA000) + b"\x10application/json" + table, body)


def delivered(content: Content, redelivered: bool = False) -> Delivery:
    return envelope.decode(content, redelivered, "", "celery", "celery", 7)


def raw_table(*entries: bytes) -> bytes:
    """A table of entries that are packed already."""
    data = b"".join(entries)
    return struct.pack(">I", len(data)) + data


def entry(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + value


def nested(kind: bytes, depth: int) -> bytes:
    """A header with lists (A) or tables (F) nested so deep."""
    value = b"V"
    for _ in range(depth):
        inside = value if kind == b"A" else b"\x01k" + value
        value = kind + struct.pack(">I", len(inside)) + inside
    return raw_table(entry(b"deep", value))


def frames_of(data: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, channel and payload of each frame."""
    found, at = [], 0
    while at < len(data):
        kind, channel, size = struct.unpack_from(">BHI", data, at)
        assert data[at + 7 + size] == 0xCE
        found.append((kind, channel, data[at + 7 : at + 7 + size]))
        at += 8 + size
    return found


def by_pika(
    exchange: str, key: str, properties: dict[str, Any], body: bytes, mandatory: bool = False
) -> bytes:
    frames: list[Any] = [
        frame.Method(1, spec.Basic.Publish(0, exchange, key, mandatory)),
        frame.Header(1, len(body), spec.BasicProperties(**properties)),
    ]
    if body:
        frames.append(frame.Body(1, body))
    return b"".join(each.marshal() for each in frames)


# -- what we send ------------------------------------------------------------------------------


@pytest.mark.parametrize("published", GOLDEN)
def test_a_golden_message_is_packed_byte_for_byte_as_pika_packs_it(published: golden.Published) -> None:
    if any(isinstance(value, float) for value in flat(published.headers)):
        return  # pika packs no floats; py-amqp does, see the next test
    properties = {**published.properties, "headers": published.headers}
    ours = codec.publish_frames(
        1, published.exchange, published.routing_key, properties, published.body, FRAME_MAX, mandatory=True
    )
    assert ours == by_pika(published.exchange, published.routing_key, properties, published.body, True)


@pytest.mark.parametrize("published", GOLDEN)
def test_a_golden_message_has_the_content_header_that_py_amqp_writes(published: golden.Published) -> None:
    amqp = pytest.importorskip("amqp")
    message = amqp.Message(published.body, **published.properties, application_headers=published.headers)
    properties = {**published.properties, "headers": published.headers}
    data = codec.publish_frames(1, "", "q", properties, published.body, FRAME_MAX)
    assert frames_of(data)[1][2][12:] == message._serialize_properties()


@pytest.mark.parametrize("published", TYPED)
def test_a_golden_message_keeps_the_types_of_its_headers(published: golden.Published) -> None:
    table = codec.encode_table(published.headers)
    assert types_of(table, 0)[0] == published.types
    assert codec.decode_table(table) == (published.headers, len(table))


@pytest.mark.parametrize("published", GOLDEN)
def test_a_golden_message_is_delivered_with_all_that_it_had(published: golden.Published) -> None:
    properties = {**published.properties, "headers": published.headers}
    frames = frames_of(codec.publish_frames(1, "", "celery", properties, published.body, FRAME_MAX))
    content = content_of(frames[1][2][12:], published.body)
    delivery = delivered(content)
    message = delivery.message
    assert delivery.broken is None
    # Protocol 1 has all of this in its body.
    named = published.headers if "task" in published.headers else json.loads(published.body)
    assert (message.id, message.task, message.body) == (named["id"], named["task"], published.body)
    assert message.priority == published.properties.get("priority")
    assert message.properties["correlation_id"] == message.id
    assert {**published.headers, **message.headers} == message.headers


def types_of(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    """The type letters in a table, nested as the golden data notes them."""
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    at += 4
    found: dict[str, Any] = {}
    while at < end:
        start = at + 1 + data[at]
        name = data[at + 1 : start].decode()
        found[name], at = type_of(data, start)
    return found, end


def type_of(data: bytes, at: int) -> tuple[Any, int]:
    letter = chr(data[at])
    at += 1
    if letter == "F":
        inner, at = types_of(data, at)
        return {"F": inner}, at
    if letter in "SA":
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if letter == "S":
            return "S", end
        at += 4
        items = []
        while at < end:
            item, at = type_of(data, at)
            items.append(item)
        return {"A": items}, end
    return letter, at + {"V": 0, "t": 1, "I": 4, "l": 8, "d": 8}[letter]


def test_names_of_headers_are_packed_once_however_many_others_there_have_been() -> None:
    codec.encode_table({f"x-{number}": 1 for number in range(1500)})
    codec.encode_table({"a-late-one": "add"})
    assert not calls_of(lambda: codec.encode_table({"a-late-one": "add"}))["codec._short"]


def test_each_type_of_header_is_written_as_py_amqp_writes_it() -> None:
    for value, letter in (
        ("text", b"S"), (7, b"I"), (-7, b"I"), (True, b"t"), (None, b"V"), (1.5, b"d"), ([1], b"A"), ((1,), b"A"),
        ({"a": 1}, b"F"), (1 << 31, b"l"), (-(1 << 31), b"I"), (b"\xff", b"x"), (Decimal("1.25"), b"D"),
        (1 << 63, b"S"), (Decimal("1e99"), b"S"), (Decimal("NaN"), b"S"),
    ):  # fmt: skip
        assert codec.encode_table({"k": value})[6:7] == letter, value


@given(TABLES)
def test_a_table_comes_back_as_it_was(table: dict[str, Any]) -> None:
    data = codec.encode_table(table)
    assert codec.decode_table(b"before" + data, 6) == (table, 6 + len(data))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-2000000, max_value=2000000))
def test_a_decimal_that_fits_comes_back_as_it_was(value: Decimal) -> None:
    assert codec.decode_table(codec.encode_table({"k": value}))[0] == {"k": value}


@given(st.binary(max_size=50))
def test_bytes_come_back_as_bytes_or_as_the_text_they_are(value: bytes) -> None:
    found = codec.decode_table(codec.encode_table({"k": value}))[0]["k"]
    assert (found.encode() if isinstance(found, str) else found) == value


@given(TABLES, TEXT, st.binary(max_size=100))
def test_a_message_of_any_headers_is_packed_as_pika_packs_it(
    table: dict[str, Any], key: str, body: bytes
) -> None:
    if any(isinstance(value, float) for value in flat(table)):
        return  # pika packs no floats
    properties = {"content_type": "application/json", "headers": table, "priority": 9, "type": key}
    assert codec.publish_frames(1, "", key, properties, body, FRAME_MAX) == by_pika("", key, properties, body)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


def test_all_fourteen_properties_are_packed_as_pika_packs_them() -> None:
    texts = "content_type content_encoding correlation_id reply_to expiration message_id type user_id app_id cluster_id"
    properties = {name: f"the {name}" for name in texts.split()}
    properties |= {"headers": {"a": 1}, "delivery_mode": 2, "priority": 255, "timestamp": 1 << 40}
    data = codec.publish_frames(1, "exchange", "key", properties, b"body", FRAME_MAX)
    assert data == by_pika("exchange", "key", properties, b"body")
    assert codec.decode_properties(frames_of(data)[1][2]) == properties


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 8176, 8177, 20_000])
def test_a_body_is_split_so_that_no_frame_is_larger_than_agreed(size: int) -> None:
    body = bytes(range(256)) * 80
    _, header, *bodies = frames_of(codec.publish_frames(3, "", "q", {"headers": {}}, body[:size], 4096))
    assert struct.unpack_from(">HHQ", header[2]) == (60, 0, size)
    assert [kind for kind, _, _ in bodies] == [codec.BODY] * math.ceil(size / 4088)
    assert {channel for _, channel, _ in [header, *bodies]} == {3}
    assert all(len(payload) <= 4088 for _, _, payload in bodies)
    assert b"".join(payload for _, _, payload in bodies) == body[:size]


@pytest.mark.parametrize("multiple", [False, True])
def test_acknowledgements_are_packed_as_pika_packs_them(multiple: bool) -> None:
    tag = (1 << 40) + 5
    ours, theirs = codec.ack_frame(2, tag, multiple), frame.Method(2, spec.Basic.Ack(tag, multiple))
    assert ours == theirs.marshal()
    for requeue in (False, True):
        nack = codec.nack_frame(2, tag, requeue=requeue, multiple=multiple)
        assert nack == frame.Method(2, spec.Basic.Nack(tag, multiple, requeue)).marshal()


@pytest.mark.parametrize(
    ("key", "properties", "words"),
    [
        ("k" * 256, {}, "256 bytes"),
        ("é" * 128, {}, "256 bytes"),
        ("k", {"type": "t" * 256}, "256 bytes"),
        ("k", {"type": 5}, "property type can't be a int"),
        ("k", {"priority": 256}, "range"),
        ("k", {"priority": "high"}, "property priority"),
        ("k", {"timestamp": 1.5}, "property timestamp"),
        ("k", {"timestamp": datetime.now(timezone.utc)}, "property timestamp"),
        ("k", {"headers": {"k" * 256: 1}}, "256 bytes"),
        ("k", {"headers": {1: 1}}, "property headers"),
        ("k", {"headers": {"k": {1, 2}}}, "a set is no value"),
        ("k", {"headers": {"k": [object()]}}, "a object is no value"),
        ("k", {"headers": {"k": "\ud800"}}, "surrogates"),
        ("\ud800", {}, "surrogates"),
        ("k", {"headers": {"k": "x" * FRAME_MAX}}, "a frame has room for 131050"),
    ],
)
def test_what_amqp_cannot_carry_is_refused_in_words(key: str, properties: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        codec.publish_frames(1, "", key, properties, b"", FRAME_MAX)


def test_headers_that_just_fit_into_a_frame_are_sent() -> None:
    for spare, fits in ((0, True), (1, False)):
        headers = {"k": "x" * (4096 - 22 - 11 + spare)}
        if not fits:
            with pytest.raises(ValueError, match="a frame has room"):
                codec.publish_frames(1, "", "q", {"headers": headers}, b"", 4096)
            continue
        frames = frames_of(codec.publish_frames(1, "", "q", {"headers": headers}, b"", 4096))
        assert len(frames[1][2]) == 4096 - 8


# -- what others send --------------------------------------------------------------------------


@given(TABLES)
def test_a_table_that_pika_has_packed_is_read(table: dict[str, Any]) -> None:
    if any(isinstance(value, float) for value in flat(table)):
        return  # pika packs no floats
    pieces: list[bytes] = []
    pika_table(pieces, table)
    data = b"".join(pieces)
    assert codec.decode_table(data) == (table, len(data))


@given(TABLES)
def test_a_table_that_py_amqp_has_packed_is_read(table: dict[str, Any]) -> None:
    serialization = pytest.importorskip("amqp.serialization")
    data = serialization.dumps("F", [table])
    assert codec.decode_table(data) == (table, len(data))
    assert serialization.loads("F", codec.encode_table(table), 0)[0] == [table]


def test_types_that_only_others_write_are_read() -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    serialization = pytest.importorskip("amqp.serialization")
    table = {"moment": moment, "price": Decimal("12.50"), "bytes": b"\xff\x00", "text": b"text"}
    found = codec.decode_table(serialization.dumps("F", [table]))[0]
    assert found == {
        "moment": int(moment.timestamp()), "price": Decimal("12.50"), "bytes": b"\xff\x00", "text": "text",
    }  # fmt: skip
    # What came can be sent on, as a dead letter is.
    assert codec.decode_table(codec.encode_table(found))[0] == found


@pytest.mark.parametrize(
    ("letter", "layout", "value"),
    [
        ("t", ">?", True), ("b", ">b", -1), ("B", ">B", 255), ("s", ">h", -300), ("U", ">h", -300),
        ("u", ">H", 65535), ("I", ">i", -(1 << 31)), ("i", ">I", (1 << 32) - 1), ("l", ">q", -(1 << 63)),
        ("L", ">q", (1 << 63) - 1), ("f", ">f", 0.5), ("d", ">d", 1e300), ("T", ">Q", (1 << 64) - 1),
    ],
)  # fmt: skip
def test_every_number_of_a_fixed_size_is_read(letter: str, layout: str, value: Any) -> None:
    packed = letter.encode() + struct.pack(layout, value)
    table = raw_table(entry(b"a", packed), entry(b"z", b"V"), entry(b"l", b"A" + raw_table(packed, packed)))
    assert codec.decode_table(table) == ({"a": value, "z": None, "l": [value, value]}, len(table))
    for cut in range(len(packed)):
        with pytest.raises((ValueError, IndexError)):
            codec.decode_table(raw_table(entry(b"a", packed[:cut])))


def test_text_that_is_no_utf8_stays_bytes_and_leaves_the_other_headers_alone() -> None:
    bad = b"S\x00\x00\x00\x02\xff\xfe"
    table = raw_table(
        entry(b"bad", bad), entry(b"ok", b"t\x01"), entry(b"in", b"F" + raw_table(entry(b"b", bad)))
    )
    assert codec.decode_table(table)[0] == {"bad": b"\xff\xfe", "ok": True, "in": {"b": b"\xff\xfe"}}


# -- what nobody should send -------------------------------------------------------------------


HEADERS = {
    "id": "1", "task": "t", "n": 1, "big": 1 << 40, "f": 0.5, "b": True, "none": None, "list": [1, "a", [2.5, {}]],
    "table": {"inner": {"x": "y"}},
}  # fmt: skip
WHOLE = codec.publish_frames(
    1, "", "q", {"content_type": "application/json", "headers": HEADERS, "priority": 3, "correlation_id": "1"}, b"",
    FRAME_MAX,
)  # fmt: skip
HEADER = frames_of(WHOLE)[1][2]


@pytest.mark.parametrize("length", range(14, len(HEADER)))
def test_properties_cut_off_anywhere_are_refused_and_delivered_as_broken(length: int) -> None:
    with pytest.raises((ValueError, IndexError)):
        codec.decode_properties(HEADER[:length])
    assert delivered(content_of(HEADER[12:length])).broken is not None


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xff" * 300)
def test_no_garbage_in_place_of_the_properties_raises_more_than_it_may(data: bytes) -> None:
    with_flags = content_of(data)
    try:
        codec.decode_properties(with_flags.header)
    except (ValueError, IndexError):
        pass
    delivery = delivered(with_flags, True)
    assert delivery.broken is not None
    assert delivery.raw is with_flags
    envelope.dead_letter_properties(delivery, delivery.broken)


@given(st.data())
@settings(max_examples=300)
def test_no_changed_byte_makes_a_message_raise(data: st.DataObject) -> None:
    changed = bytearray(HEADER[12:])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    content = content_of(bytes(changed))
    delivery = delivered(content)
    again = envelope.dead_letter_properties(delivery, "it was changed")
    frames = frames_of(codec.publish_frames(1, "", "q.dead", again, b"{}", FRAME_MAX))
    assert codec.decode_properties(frames[1][2])["headers"]["x-rejected-reason"] == "it was changed"


def lie(table: bytes, at: int, length: int) -> bytes:
    return table[:at] + struct.pack(">I", length) + table[at + 4 :]


@pytest.mark.parametrize("length", [0, 1, 13, 15, 16, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("kind", [b"S", b"x", b"A", b"F"])
def test_a_length_that_lies_is_refused(kind: bytes, length: int) -> None:
    inside = b"\xff" * 14 if kind == b"F" else b"t" * 14
    table = raw_table(entry(b"k", kind + struct.pack(">I", len(inside)) + inside), entry(b"n", b"V"))
    with pytest.raises((ValueError, IndexError)):
        codec.decode_table(lie(table, 7, length))
    assert delivered(content_with(lie(table, 7, length))).broken is not None


@pytest.mark.parametrize("length", [1, 3, 5, 1 << 31, (1 << 32) - 1])
def test_a_table_whose_own_length_lies_is_refused(length: int) -> None:
    with pytest.raises((ValueError, IndexError)):
        codec.decode_table(lie(raw_table(entry(b"k", b"t\x01")), 0, length))


@pytest.mark.parametrize(
    "letter", [chr(code) for code in range(256) if chr(code) not in "SxAFVDtbBsUuIilLfdT"]
)
def test_an_unknown_type_is_refused(letter: str) -> None:
    table = raw_table(entry(b"k", letter.encode("latin-1") + b"\0" * 12))
    with pytest.raises(ValueError, match="unknown type"):
        codec.decode_table(table)
    assert delivered(content_with(table)).broken is not None


@pytest.mark.parametrize("depth", [1, 20, 60, 900, 12_000])
@pytest.mark.parametrize("kind", [b"A", b"F"])
def test_headers_nested_too_deeply_are_refused_and_never_end_the_process(kind: bytes, depth: int) -> None:
    table = nested(kind, depth)
    if depth <= 20:
        codec.decode_table(table)
    else:
        with pytest.raises(ValueError, match="nested too deeply"):
            codec.decode_table(table)
    delivery = delivered(content_with(table))
    assert delivery.broken is not None
    envelope.dead_letter_properties(delivery, "deep")


def test_keys_that_are_no_utf8_are_refused() -> None:
    table = raw_table(entry(b"\xff", b"V"))
    with pytest.raises(ValueError, match="utf-8"):
        codec.decode_table(table)
    assert delivered(content_with(table)).broken is not None


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({}, b"{}", "neither the headers nor the body name a task"),
        ({}, b"", "not a message"),
        ({}, b"\xff\xfe", "not a message"),
        ({}, b"[" * 100_000, "nested too deeply"),
        ({}, b'{"task": 5, "id": "1"}', "must be text"),
        ({"task": "t"}, b"[]", "must be text"),
        ({"task": "t", "id": None}, b"[]", "must be text"),
        ({"task": "t", "id": ""}, b"[]", "must be text"),
        ({"task": "t", "id": 7}, b"[]", "must be text"),
        ({"task": {"a": 1}, "id": "1"}, b"[]", "must be text"),
        ({"task": "t", "id": ["x"] * 1000}, b"[]", "must be text"),
        ({"task": "t", "id": b"\xff"}, b"[]", "must be text"),
    ],
)
def test_what_is_no_call_is_delivered_as_broken_with_the_reason(
    headers: dict[str, Any], body: bytes, words: str
) -> None:
    delivery = delivered(content_with(codec.encode_table(headers), body))
    assert delivery.broken is not None
    assert words in delivery.broken
    assert len(delivery.broken) < 1000
    assert delivery.message.body == body
    assert envelope.dead_letter_properties(delivery, delivery.broken)["headers"]["x-rejected-reason"]


def test_a_message_without_content_type_is_delivered_as_broken_with_its_name() -> None:
    table = codec.encode_table({"task": "t", "id": "1"})
    delivery = delivered(content_of(struct.pack(">H", 0x2000) + table))
    assert delivery.broken == "not a message: there is no content_type"
    assert (delivery.message.id, delivery.message.task) == ("1", "t")


def test_an_old_message_without_headers_is_read_from_its_body() -> None:
    call = {"task": "t", "id": "1", "args": [1], "kwargs": {"a": 2}, "retries": 3, "expires": None}
    properties = struct.pack(">H", 0x8000) + b"\x10application/json"
    message = delivered(content_of(properties, json.dumps(call).encode())).message
    assert (message.id, message.task, message.headers["retries"]) == ("1", "t", 3)
    assert decode_body(message, accepted(("json",)))[:2] == ([1], {"a": 2})


@pytest.mark.parametrize("deaths", [None, -3, 1.5, "2", [1], {"a": 1}, True, 1 << 62, b"\xff"])
def test_a_count_of_deaths_that_is_none_does_no_harm(deaths: Any) -> None:
    table = codec.encode_table({"task": "t", "id": "1", envelope.DEATHS: deaths, "x-delivery-count": deaths})
    delivery = delivered(content_with(table))
    assert delivery.broken is None
    assert delivery.deliveries == (deaths if type(deaths) is int and deaths > 0 else 0)
    assert "x-delivery-count" not in delivery.message.headers


def test_a_huge_id_is_delivered_and_its_dead_letter_fits_into_a_frame() -> None:
    for id in ("i" * 10_000, "é" * 5000):
        delivery = delivered(content_with(codec.encode_table({"task": "t", "id": id})))
        assert (delivery.broken, delivery.message.id) == (None, id)
        properties = envelope.dead_letter_properties(delivery, "r" * 10_000)
        assert properties["headers"]["x-rejected-id"] == id
        codec.publish_frames(1, "", "q.dead", properties, b"", FRAME_MAX)


@pytest.mark.parametrize(
    "headers",
    [
        {"task": "t", "id": "i" * 60_000, "root_id": "i" * 60_000},
        {"task": "t" * 100_000, "id": 5},
        {"task": "t", "id": "é" * 60_000},
        {"task": "t", "id": "1", "long": "x" * 130_000},
        {"task": "t", "id": "1", "price": Decimal("1.5"), "deep": [[[{"a": b"\xff"}]]]},
        {"task": "t", "id": "1", **{f"header {number}": "x" * 90 for number in range(1100)}},
    ],
    ids=["long id", "long name", "long id of two bytes each", "full", "odd types", "many"],
)
def test_the_dead_letter_of_whatever_came_can_be_sent(headers: dict[str, Any]) -> None:
    table = codec.encode_table(headers)
    assert len(table) < FRAME_MAX - 60
    properties = envelope.dead_letter_properties(delivered(content_with(table)), "é" * 5000)
    assert codec.publish_frames(1, "", "q.dead", properties, b"body", FRAME_MAX)


def test_what_is_left_out_of_a_dead_letter_is_the_largest_header_only() -> None:
    table = codec.encode_table({"task": "t", "id": "1", "long": "x" * 130_000, "short": "y"})
    found = envelope.dead_letter_properties(delivered(content_with(table)), "rejected")["headers"]
    assert {name: value for name, value in found.items() if not name.startswith("x-rejected")} == {
        "task": "t", "id": "1", "short": "y",
    }  # fmt: skip


@pytest.mark.parametrize("id", ["i" * 255, "i" * 256, "é" * 127, "é" * 128, "é" * 255])
def test_an_id_too_long_for_the_correlation_id_is_sent_without_it(id: str) -> None:
    message = Message(id, "t", b"[]", {"task": "t", "id": id})
    properties = envelope.properties(message, 0.0)
    assert ("correlation_id" in properties) is (len(id.encode()) <= 255)
    frames = frames_of(codec.publish_frames(1, "", "q", properties, b"[]", FRAME_MAX))
    assert delivered(content_of(frames[1][2][12:])).message.id == id


@given(st.binary(max_size=80))
def test_a_delivery_method_of_garbage_raises_value_or_index_errors_only(data: bytes) -> None:
    try:
        codec.decode_deliver(b"\x00\x3c\x00\x3c" + data)
    except (ValueError, IndexError):
        pass
