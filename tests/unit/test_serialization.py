"""Values to bytes and back, and what hostile bytes are worth."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import pickle
import subprocess
import sys
import uuid
import zlib
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicelery import Celery, serialization
from minicelery.canvas import Signature
from minicelery.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
)
from minicelery.serialization import (
    SAFE,
    accepted,
    check_readable,
    check_writable,
    compress,
    compression,
    decode_json,
    decompress,
    dumps,
    encode_json,
    loads,
    register,
    unregister,
    yaml,
)

EVERYTHING = frozenset(serialization.CONTENT_TYPES.values())
BUILT_IN = ("json", "msgpack", "yaml", "pickle")

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


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle"])
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


_yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary() | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(_yaml_values)
def test_kombu_reads_our_yaml_and_we_read_kombus(value: Any) -> None:
    kombu = pytest.importorskip("kombu.serialization")
    data, content_type, encoding = dumps(value, "yaml")
    theirs_type, theirs_encoding, theirs = kombu.dumps(value, "yaml")
    assert (content_type, encoding) == (theirs_type, theirs_encoding)
    assert loads(data, content_type, encoding, EVERYTHING) == value
    assert loads(theirs.encode(), theirs_type, theirs_encoding, EVERYTHING) == value
    assert kombu.loads(data, content_type, encoding, accept={content_type}) == value


def test_yaml_carries_what_json_does_of_subclasses_of_plain_types() -> None:
    pair = namedtuple("pair", "a b")(1, {"x"})
    value = [OrderedDict(b=1), (1, (2,)), Colour.RED, Number.ONE, pair, Signature("t", (1,))]
    plain = {"task": "t", "args": [1], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
    back = loads(*dumps(value, "yaml"), EVERYTHING)
    assert back == [{"b": 1}, [1, [2]], "red", 1, [1, {"x"}], plain]


@pytest.mark.parametrize(
    "value", [Decimal(1), uuid.UUID(int=1), time(1), 1j, object()], ids=lambda value: type(value).__name__
)
def test_yaml_refuses_what_celerys_refuses(value: Any) -> None:
    kombu = pytest.importorskip("kombu.serialization")
    with pytest.raises(kombu.EncodeError):
        kombu.dumps(value, "yaml")
    with pytest.raises(EncodeError, match="RepresenterError"):
        dumps(value, "yaml")


def test_one_list_in_two_places_is_carried_by_yaml() -> None:
    shared = [1, {"a": None}]
    assert loads(*dumps([shared, {"again": shared}], "yaml"), EVERYTHING) == [shared, {"again": shared}]


def test_pickle_is_kombus_protocol_and_content_type() -> None:
    kombu = pytest.importorskip("kombu.serialization")
    value = [(1, {2}), timedelta(1), 1j]
    content_type, encoding, theirs = kombu.dumps(value, "pickle")
    assert dumps(value, "pickle") == (theirs, content_type, encoding)
    assert loads(theirs, content_type, encoding, EVERYTHING) == value


def test_a_pickled_signature_is_a_dict_for_both_libraries() -> None:
    canvas = pytest.importorskip("celery.canvas")
    ours = Signature("t", (1,), {"a": 2}, {"queue": "q"})
    data, *_ = dumps({"link": ours}, "pickle")
    assert b"minicelery" not in data
    assert pickle.loads(data) == {"link": dict(ours)}
    theirs = pickle.dumps(canvas.Signature("t", (1,), {"a": 2}))
    found = loads(theirs, serialization.PICKLE, "binary", EVERYTHING)
    assert type(found) is dict and found["task"] == "t" and found["args"] == (1,)


class Colour(str, Enum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


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


@pytest.mark.parametrize(
    ("serializer", "value"),
    [
        *((name, _contains_itself()) for name in ("json", "msgpack", "yaml")),  # pickle carries it
        *((name, _nested(50_000)) for name in BUILT_IN),
    ],
    ids=lambda value: value if isinstance(value, str) else "value",
)
def test_a_value_without_end_is_an_encode_error(serializer: str, value: Any) -> None:
    with pytest.raises(EncodeError):
        dumps(value, serializer)
    while isinstance(value, list) and value and value[0] is not value:
        value = value[0]  # taken apart by hand: freeing it nested is the interpreter's recursion


def test_text_with_lone_surrogates_is_carried_escaped() -> None:
    assert decode_json(encode_json("\ud800")) == "\ud800"


def test_a_serializer_that_is_not_served_says_which_are() -> None:
    with pytest.raises(
        ImproperlyConfigured, match="no serializer is named 'jsno'; there are json, msgpack, yaml"
    ):
        dumps(1, "jsno")
    with pytest.raises(ImproperlyConfigured, match=r"no serializer is named \['json'\]"):
        dumps(1, ["json"])  # type: ignore[arg-type]


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
        (b"[" * 100_000, "application/x-yaml"),
        (b"- " * 50_000, "application/x-yaml"),
        (b"{a: " * 50_000, "application/x-yaml"),
        (b"a: b: c", "application/x-yaml"),
        (b"\xff\xfe\xfd", "application/x-yaml"),
        (b"2026-99-99", "application/x-yaml"),
        (b"--- 1\n--- 2\n", "application/x-yaml"),
        (b"*nowhere", "application/x-yaml"),
        (b"&a [*a]", "application/x-yaml"),
        (b"&a {b: [*a]}", "application/x-yaml"),
        (b"{<<: {a: 1}, b: 2}", "application/x-yaml"),
        (b"!!python/object/apply:os.getcwd []", "application/x-yaml"),
        (b"!!python/name:os.getcwd", "application/x-yaml"),
        (b"!!python/module:os", "application/x-yaml"),
        (b"!own {}", "application/x-yaml"),
        (b"", "application/x-python-serialize"),
        (b"junk", "application/x-python-serialize"),
        (b"cnowhere\nnothing\n.", "application/x-python-serialize"),
        (b"\x80\x04]" + b"]" * 10, "application/x-python-serialize"),
        (b"anything", "application/data"),
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


def _laughs(depth: int) -> bytes:
    """Each line holds the one before it nine times."""
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines).encode()


def test_a_yaml_whose_aliases_add_up_beyond_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "LARGEST", 10_000)
    assert loads(_laughs(3), "application/x-yaml", "utf-8", SAFE)["a2"][8][8] == ["lol", "lol"]
    with pytest.raises(DecodeError, match="add up to more than 10000"):
        loads(_laughs(30), "application/x-yaml", "utf-8", SAFE)
    many = b"- &a " + b"x" * 2000 + b"\n" + b"- *a\n" * 1000
    with pytest.raises(DecodeError, match="add up"):
        loads(many, "application/x-yaml", "utf-8", SAFE)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_decode_error(data: bytes) -> None:
    for content_type in SAFE:
        try:
            loads(data, content_type, "utf-8", EVERYTHING)
        except DecodeError:
            pass


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.parametrize("content_type", sorted(EVERYTHING))
@pytest.mark.parametrize(
    "accept", [*({one} for one in sorted(SAFE)), SAFE, {"python/pickle"}, {"*/*"}, {""}],
    ids=lambda accept: " ".join(sorted(accept)),
)  # fmt: skip
def test_a_pickle_is_never_loaded(tmp_path: Path, content_type: str, accept: set[str]) -> None:
    trap = tmp_path / "was-here"
    data = pickle.dumps(Bomb(str(trap)))
    for encoding in ("utf-8", "binary", "pickle", "application/x-python-serialize"):
        for form in (data, base64.b64encode(data), zlib.compress(data), pickle.dumps(Bomb(str(trap)), 0)):
            try:
                found = loads(form, content_type, encoding, frozenset(accept))
            except (ContentDisallowed, DecodeError):
                continue
            assert type(found) is str, "base64 is a text, and YAML's texts need no quotes"
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


ALL_COMPRESSIONS = [*serialization.COMPRESSIONS, *sorted(set(serialization.COMPRESSIONS.values()))]


@pytest.mark.parametrize("name", ALL_COMPRESSIONS)
@given(data=st.binary())
def test_compressed_bytes_come_back(name: str, data: bytes) -> None:
    packed, header = compress(data, name)
    assert header == serialization.COMPRESSIONS.get(name, name)
    assert decompress(packed, header) == data


@pytest.mark.parametrize("name", serialization.COMPRESSIONS)
def test_compression_is_kombus(name: str) -> None:
    kombu = pytest.importorskip("kombu.compression")
    data = b"some text " * 50
    assert compress(data, name) == kombu.compress(data, name)


def test_there_is_no_compression_of_kombus_that_we_have_not() -> None:
    kombu = pytest.importorskip("kombu.compression")
    assert set(kombu.encoders()) <= set(serialization.COMPRESSIONS.values())
    for name, content_type in serialization.COMPRESSIONS.items():
        assert kombu.get_encoder(name)[1] == content_type


@pytest.mark.parametrize(
    ("packed", "header"),
    [
        (zlib.compress(bytes(100_000)), "application/x-gzip"),
        (bz2.compress(bytes(100_000)), "application/x-bz2"),
        (lzma.compress(bytes(100_000)), "application/x-lzma"),
        (compress(bytes(100_000), "brotli")[0], "application/x-brotli"),
        (compress(bytes(100_000), "zstd")[0], "application/zstd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "packed",
)
def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, packed: bytes, header: str) -> None:
    assert len(decompress(packed, header)) == 100_000
    monkeypatch.setattr(compression, "LARGEST_BODY", 99_999)
    with pytest.raises(DecodeError, match="99999"):
        decompress(packed, header)


def test_an_xz_that_wants_much_memory_is_refused() -> None:
    wide = [
        {"id": lzma.FILTER_LZMA2, "dict_size": 512 * 1024 * 1024, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}
    ]
    # Written as a header would say it, without the memory to write it with.
    plain = lzma.compress(b"text", filters=[{**wide[0], "dict_size": 4096}])
    assert decompress(plain, "xz") == b"text"
    with pytest.raises(DecodeError, match=r"[Mm]emory"):
        decompress(_widened(plain), "xz")


def _widened(data: bytes) -> bytes:
    """An .xz whose block says that it needs a dictionary of 3 GiB."""
    block = bytearray(data[12:24])
    assert block[2] == 0x21, "the id of LZMA2, before its one byte of properties"
    block[4] = 39
    block[8:12] = zlib.crc32(bytes(block[:8])).to_bytes(4, "little")
    return data[:12] + bytes(block) + data[24:]


@pytest.mark.parametrize(
    ("packed", "header"),
    [
        (b"", "application/x-gzip"),
        (b"junk", "application/x-gzip"),
        (zlib.compress(b"text" * 100)[:-6], "application/x-gzip"),
        (b"junk", "application/x-bz2"),
        (bz2.compress(b"text" * 100)[:-6], "application/x-bz2"),
        (compress(b"text" * 100, "zstd")[0][:-6], "application/zstd"),
        (b"", "application/x-lzma"),
        (b"junk", "xz"),
        (lzma.compress(b"text" * 100)[:-6], "application/x-lzma"),
        (b"junk", "application/x-brotli"),
        (compress(b"text" * 100, "brotli")[0][:-2], "application/x-brotli"),
        (b"x", "application/x-python-serialize"),
        (b"x", None),
        (b"x", 5),
        (b"x", ["zlib"]),
    ],
)
def test_bytes_that_are_not_compressed_so_are_a_decode_error(packed: bytes, header: Any) -> None:
    with pytest.raises(DecodeError):
        decompress(packed, header)


def test_a_misspelt_compression_says_which_there_are() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"compression='zilb'.*zlib, gzip, bzip2"):
        compress(b"", "zilb")
    with pytest.raises(ImproperlyConfigured, match=r"compression=\['zlib'\]"):
        compress(b"", ["zlib"])  # type: ignore[arg-type]


# -- extras that are not installed -----------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "statement", "words"),
    [
        ("yaml", "dumps(1, 'yaml')", "ImproperlyConfigured: .*pip install minicelery[yaml]"),
        (
            "yaml",
            "loads(b'1', 'application/x-yaml', '', SAFE)",
            "DecodeError: .*pip install minicelery[yaml]",
        ),
        ("yaml", "check_readable(['yaml'], 'accept_content')", "ImproperlyConfigured: .*minicelery[yaml]"),
        ("brotli", "compress(b'', 'brotli')", "ImproperlyConfigured: .*pip install minicelery[brotli]"),
        ("brotli", "decompress(b'', 'brotli')", "DecodeError: .*pip install minicelery[brotli]"),
    ],
)
def test_a_missing_extra_says_what_to_install(missing: str, statement: str, words: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from minicelery.serialization import *; {statement}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    kind, _, text = words.partition(": .*")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"minicelery.exceptions.{kind}: ") and text in last, done.stderr


def test_nothing_is_imported_for_a_serializer_before_it_is_used() -> None:
    heavy = "{'yaml', 'pickle', 'msgpack', 'brotli', 'lzma', 'bz2', 'cryptography'}"
    script = f"import sys, minicelery.serialization, minicelery.record; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "set()", done.stderr


# -- serializers of the user's own -----------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[str]:
    """A serializer of text in lines."""
    register("lines", "\n".join, lambda data: data.decode().split("\n"), "text/x-lines")
    yield "lines"
    if "lines" in serialization.CONTENT_TYPES:
        unregister("lines")


def test_a_registered_serializer_is_used_by_its_name(lines: str) -> None:
    data, content_type, encoding = dumps(["a", "é"], lines)
    assert (data, content_type, encoding) == ("a\né".encode(), "text/x-lines", "utf-8")
    assert loads(data, content_type, encoding, accepted([lines])) == ["a", "é"]
    with pytest.raises(ContentDisallowed):
        loads(data, content_type, encoding, SAFE)
    check_readable([lines, "text/x-lines"], "accept_content")


def test_a_registered_serializer_may_stand_in_every_setting_and_option(lines: str) -> None:
    app = Celery(set_as_current=False, broker="memory://")
    app.conf.update(
        task_serializer=lines,
        result_serializer=lines,
        accept_content=["json", lines],
        result_accept_content=[lines],
    )
    assert app.conf.task_serializer == "lines"
    unregister(lines)
    with pytest.raises(ImproperlyConfigured, match=r"'lines'.*serialization.register, before"):
        app.conf.task_serializer = "lines"
    with pytest.raises(ImproperlyConfigured, match=r"'lines'.*serialization.register, before"):
        app.conf.accept_content = ["lines"]


def test_what_an_own_serializer_raises_is_an_encode_or_decode_error(lines: str) -> None:
    with pytest.raises(EncodeError, match="TypeError"):
        dumps([1], lines)
    with pytest.raises(DecodeError, match="not lines: UnicodeDecodeError"):
        loads(b"\xff", "text/x-lines", "utf-8", accepted([lines]))


def test_a_serializer_may_go_one_way_only() -> None:
    register("out", repr, None, "text/x-out", "ascii")
    register("in", None, bytes.decode, "text/x-in")
    try:
        assert dumps(1, "out") == (b"1", "text/x-out", "ascii")
        with pytest.raises(ContentDisallowed, match="no serializer reads"):
            loads(b"1", "text/x-out", "ascii", accepted(["out"]))
        with pytest.raises(ImproperlyConfigured, match="'in' only reads"):
            dumps(1, "in")
        with pytest.raises(
            ImproperlyConfigured, match="accept_content lists 'out', which no serializer reads"
        ):
            check_readable(["in", "out"], "accept_content")
    finally:
        unregister("out")
        unregister("in")


def test_what_an_encoder_returns_must_be_bytes_or_text() -> None:
    register("odd", lambda value: value, None, "text/x-odd")
    try:
        assert dumps(bytearray(b"a"), "odd")[0] == b"a"
        with pytest.raises(EncodeError, match="encoder of 'odd' returned int"):
            dumps(1, "odd")
    finally:
        unregister("odd")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a/b", repr, None, "text/x-own"), "without a slash"),
        ((None, repr, None, "text/x-own"), "without a slash"),
        (("own", repr, None, "own"), "content_type of the serializer 'own'"),
        (("own", repr, None, None), "content_type of the serializer 'own'"),
        (("own", None, None, "text/x-own"), "needs an encoder or a decoder"),
        (("own", "repr", None, "text/x-own"), "encoder of the serializer 'own' must be a function"),
        (("own", repr, 5, "text/x-own"), "decoder of the serializer 'own' must be a function"),
        (("own", repr, None, "text/x-own", "utf-9"), "content_encoding of the serializer 'own'"),
        (("own", repr, None, "text/x-own", None), "content_encoding of the serializer 'own'"),
        (("json", repr, None, "text/x-own"), "would replace 'json'"),
        (("auth", repr, None, "application/data"), "would replace 'auth'"),
        (("own", repr, None, "application/json"), "would replace 'json'"),
        (("own", repr, None, "application/x-yaml"), "would replace 'yaml'"),
    ],
)
def test_what_cannot_be_registered_says_why(arguments: tuple[Any, ...], words: str) -> None:
    before = dict(serialization.CONTENT_TYPES)
    with pytest.raises(ImproperlyConfigured, match=words):
        register(*arguments)
    assert before == serialization.CONTENT_TYPES


@pytest.mark.parametrize("name", ["json", "auth", "nothing"])
def test_what_cannot_be_unregistered_says_why(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"{name!r} can't be unregistered"):
        unregister(name)


def test_pickle_can_be_replaced_and_taken_out() -> None:
    own = serialization._by_name["pickle"]
    try:
        register("pickle", None, lambda data: "mine", serialization.PICKLE, "binary")
        assert loads(b"x", serialization.PICKLE, "binary", EVERYTHING) == "mine"
        unregister("pickle")
        with pytest.raises(ContentDisallowed):
            loads(pickle.dumps(1), serialization.PICKLE, "binary", EVERYTHING)
    finally:
        serialization._put(own)


@pytest.mark.parametrize("serializer", BUILT_IN)
@pytest.mark.parametrize("accept", [True, False])
def test_an_eager_call_goes_through_the_serializers(serializer: str, accept: bool) -> None:
    app = Celery(broker="memory://", set_as_current=False, task_always_eager=True)
    app.conf.update(task_serializer=serializer, result_serializer=serializer)
    app.conf.accept_content = ["json", serializer] if accept else ["json"]
    task = app.task(lambda pair: [pair, type(pair).__name__], name="look", shared=False)
    found = task.delay((1, 2))
    # As in Celery: what comes from this process is read, whatever workers accept.
    if serializer == "pickle":
        assert found.result == [(1, 2), "tuple"]
    else:
        assert found.result == [[1, 2], "list"]


def test_auth_says_that_it_is_not_set_up() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"app\.setup_security\(\)"):
        dumps(1, "auth")
    with pytest.raises(DecodeError, match=r"app\.setup_security\(\)"):
        loads(b"1", "application/data", "utf-8", SAFE)
    with pytest.raises(ImproperlyConfigured, match=r"accept_content names 'auth': call app\.setup_security"):
        check_readable(["auth"], "accept_content")
    with pytest.raises(ImproperlyConfigured, match=r"task_serializer names 'auth': call app\.setup_security"):
        check_writable("auth", "task_serializer")


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_built_in_can_be_written_and_read(name: str) -> None:
    check_writable(name, "task_serializer")
    check_readable([name], "accept_content")
    with pytest.raises(ImproperlyConfigured, match="result_serializer: no serializer is named 'jsno'"):
        check_writable("jsno", "result_serializer")
