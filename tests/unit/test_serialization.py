"""Values to bytes and back, and what hostile bytes are worth."""

from __future__ import annotations

import base64
import bz2
import json
import pickle
import sys
import uuid
import zlib
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicelery import serialization
from minicelery.exceptions import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from minicelery.serialization import accepted, compress, decode_json, decompress, dumps, encode_json, loads

EVERYTHING = frozenset(serialization.CONTENT_TYPES.values())

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes()
    | st.datetimes(timezones=st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(lambda d: timezone(timedelta(minutes=d // timedelta(minutes=1)))))
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids()
)  # fmt: skip
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: not (isinstance(value, dict) and set(value) == {"__type__", "__value__"}))


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@given(value=_values)
def test_what_is_carried_comes_back_equal_and_of_the_same_type(serializer: str, value: Any) -> None:
    data, content_type, encoding = dumps(value, serializer)
    back = loads(data, content_type, encoding, EVERYTHING)
    assert back == value
    assert type(back) is type(value)


@given(_values)
def test_kombu_reads_our_json_and_we_read_kombus(value: Any) -> None:
    kombu = pytest.importorskip("kombu.utils.json")
    assert kombu.loads(encode_json(value)) == value
    assert decode_json(kombu.dumps(value)) == value


@given(_values)
def test_our_json_is_kombus_character_for_character(value: Any) -> None:
    kombu = pytest.importorskip("kombu.utils.json")
    assert encode_json(value) == kombu.dumps(value)


class Colour(str, Enum):
    RED = "red"


class Point:
    def __json__(self) -> Any:
        return {"x": 1}


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((1, (2,)), [1, [2]]),
        ({2: "a", None: 2, True: 3}, {"2": "a", "null": 2, "true": 3}),
        (Colour.RED, "red"),
        (Point(), {"x": 1}),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"\xff"), b"\xff"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)),
        (date(2026, 1, 2), date(2026, 1, 2)),
        (time(3, 4, 5, 6), time(3, 4, 5, 6)),
        (Decimal("1.10"), Decimal("1.10")),
        (uuid.UUID(int=7), uuid.UUID(int=7)),
        ({"__type__": "x"}, {"__type__": "x"}),
        ({"__type__": "x", "__value__": 1, "more": 2}, {"__type__": "x", "__value__": 1, "more": 2}),
        (2**200, 2**200),
    ],
)
def test_json_carries(value: Any, back: Any) -> None:
    assert decode_json(encode_json(value)) == back


def test_not_a_number_passes_as_in_celery() -> None:
    assert encode_json([float("nan"), float("inf")]) == "[NaN, Infinity]"
    nan, inf = decode_json("[NaN, Infinity]")
    assert nan != nan and inf == float("inf")


class Plain(Enum):
    A = 1


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize(
    "value", [{1, 2}, timedelta(1), 1j, object(), Plain.A, lambda: 1, [b"x", {"a": {1}}]]
)
def test_what_cannot_be_carried_is_an_encode_error_that_names_its_type(serializer: str, value: Any) -> None:
    with pytest.raises(EncodeError, match="serializ"):
        dumps(value, serializer)


def test_an_encode_error_is_a_type_error_too() -> None:
    with pytest.raises(TypeError):
        encode_json({1})


def _contains_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("value", [_contains_itself(), _nested(50_000)])
def test_a_value_without_end_is_an_encode_error(serializer: str, value: Any) -> None:
    with pytest.raises(EncodeError):
        dumps(value, serializer)
    while isinstance(value, list) and value and value[0] is not value:
        value = value[0]  # taken apart by hand: freeing it nested is the interpreter's recursion


def test_text_with_lone_surrogates_is_carried_escaped() -> None:
    assert decode_json(encode_json("\ud800")) == "\ud800"


def test_a_serializer_that_is_not_served_says_which_are() -> None:
    with pytest.raises(ImproperlyConfigured, match="json or msgpack"):
        dumps(1, "yaml")
    with pytest.raises(ImproperlyConfigured, match="no serializer is named 'jsno'"):
        dumps(1, "jsno")


# -- hostile bytes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"[" * 100_000, "application/json"),
        (b"[" * 100_000 + b"]" * 100_000, "application/json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "application/json"),
        (b'{"__type__": "uuid", "a": ' * 50_000 + b"1" + b"}" * 50_000, "application/json"),
        (b"\x91" * 100_000 + b"\x01", "application/x-msgpack"),
        (b"\x81\xa1a" * 100_000 + b"\x01", "application/x-msgpack"),
        (b"", "application/json"),
        (b"\xff", "application/json"),
        (b"{'a': 1}", "application/json"),
        (b"1" * 5000, "application/json"),
        (b"", "application/x-msgpack"),
        (b"\xc1", "application/x-msgpack"),
        (b"\x01\x02", "application/x-msgpack"),
        (b"\xdd\xff\xff\xff\xff", "application/x-msgpack"),
        (b"\xc6\xff\xff\xff\xff", "application/x-msgpack"),
        (b"\xc7\x01\x05\x00\x00", "application/x-msgpack"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else value,
)
def test_hostile_bytes_are_a_decode_error(data: bytes, content_type: str) -> None:
    if data == b"1" * 5000 and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads numbers of any length")
    with pytest.raises(DecodeError):
        loads(data, content_type, "utf-8", EVERYTHING)


@pytest.mark.parametrize(
    "found",
    [
        {"__type__": "object", "__value__": "os.system"},
        {"__type__": ["x"], "__value__": 1},
        {"__type__": {}, "__value__": 1},
        {"__type__": None, "__value__": 1},
        {"__type__": "datetime", "__value__": "yesterday"},
        {"__type__": "datetime", "__value__": 5},
        {"__type__": "date", "__value__": None},
        {"__type__": "time", "__value__": "25:00"},
        {"__type__": "decimal", "__value__": "one"},
        {"__type__": "decimal", "__value__": [1]},
        {"__type__": "decimal", "__value__": {"a": 1}},
        {"__type__": "uuid", "__value__": "no"},
        {"__type__": "uuid", "__value__": {"hex": 5}},
        {"__type__": "uuid", "__value__": {"hex": "zz"}},
        {"__type__": "bytes", "__value__": 5},
        {"__type__": "base64", "__value__": "***"},
        {"__type__": "base64", "__value__": 5},
    ],
    ids=lambda found: f"{found['__type__']}-{found['__value__']}"[:30],
)
def test_a_marked_object_that_is_not_what_it_says_is_a_decode_error(found: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode_json(json.dumps({"inside": [found]}))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_decode_error(data: bytes) -> None:
    for content_type in ("application/json", "application/x-msgpack"):
        try:
            loads(data, content_type, "utf-8", EVERYTHING)
        except DecodeError:
            pass


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    "content_type", ["application/x-python-serialize", "application/json", "application/x-msgpack"]
)
@pytest.mark.parametrize("accept", [accepted(("json",)), EVERYTHING])
def test_a_pickle_is_never_loaded(tmp_path: Path, content_type: str, accept: frozenset[str]) -> None:
    trap = tmp_path / "was-here"
    data = pickle.dumps(Bomb(str(trap)))
    for encoding in ("utf-8", "binary"):
        with pytest.raises((ContentDisallowed, DecodeError)):
            loads(data, content_type, encoding, accept)
    with pytest.raises(DecodeError):
        decode_json(json.dumps({"__type__": "pickle", "__value__": base64.b64encode(data).decode()}))
    assert not trap.exists()
    pickle.loads(data).close()
    assert trap.exists(), "the trap would have worked"


def test_bytes_of_a_type_outside_accept_content_are_not_looked_at() -> None:
    with pytest.raises(ContentDisallowed, match=r"application/x-msgpack.*application/json"):
        loads(b"\xc1 not even msgpack", "application/x-msgpack", "binary", accepted(["json"]))


def test_the_content_type_must_match_to_the_letter() -> None:
    with pytest.raises(ContentDisallowed):
        loads(b"1", "application/json; charset=utf-8", "utf-8", accepted(["json"]))


def test_accept_content_takes_names_and_content_types() -> None:
    assert accepted(["json", "application/x-msgpack"]) == {"application/json", "application/x-msgpack"}


# -- compression ---------------------------------------------------------------------------


ALL_COMPRESSIONS = [
    "zlib", "gzip", "bzip2", "bzip", "zstd", "zstandard", "application/x-gzip", "application/x-bz2", "application/zstd",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL_COMPRESSIONS)
@given(data=st.binary())
def test_compressed_bytes_come_back(name: str, data: bytes) -> None:
    packed, header = compress(data, name)
    assert header == serialization.COMPRESSIONS.get(name, name)
    assert decompress(packed, header) == data


@pytest.mark.parametrize("name", ["gzip", "bzip2", "zstd"])
def test_compression_is_kombus(name: str) -> None:
    kombu = pytest.importorskip("kombu.compression")
    data = b"some text " * 50
    assert compress(data, name) == kombu.compress(data, name)


@pytest.mark.parametrize(
    ("packed", "header"),
    [
        (zlib.compress(bytes(100_000)), "application/x-gzip"),
        (bz2.compress(bytes(100_000)), "application/x-bz2"),
        (compress(bytes(100_000), "zstd")[0], "application/zstd"),
    ],
)
def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, packed: bytes, header: str) -> None:
    assert len(decompress(packed, header)) == 100_000
    monkeypatch.setattr(serialization, "LARGEST_BODY", 99_999)
    with pytest.raises(DecodeError, match="99999"):
        decompress(packed, header)


@pytest.mark.parametrize(
    ("packed", "header"),
    [
        (b"", "application/x-gzip"),
        (b"junk", "application/x-gzip"),
        (zlib.compress(b"text" * 100)[:-6], "application/x-gzip"),
        (b"junk", "application/x-bz2"),
        (bz2.compress(b"text" * 100)[:-6], "application/x-bz2"),
        (compress(b"text" * 100, "zstd")[0][:-6], "application/zstd"),
        (b"x", "application/x-brotli"),
        (b"x", None),
        (b"x", 5),
        (b"x", ["zlib"]),
    ],
)
def test_bytes_that_are_not_compressed_so_are_a_decode_error(packed: bytes, header: Any) -> None:
    with pytest.raises(DecodeError):
        decompress(packed, header)


def test_a_misspelt_compression_says_which_there_are() -> None:
    with pytest.raises(ImproperlyConfigured, match="zlib"):
        compress(b"", "zilb")
