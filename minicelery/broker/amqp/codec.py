"""The frames that a task costs, packed and unpacked by hand: publish, deliver, ack.

Everything else goes through pika's own encoding, which takes twice as long for a message's
nineteen headers and makes an object of each frame.  Format: AMQP 0-9-1, section 4.2, with RabbitMQ's table types.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

FRAME_END = b"\xce"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
HEARTBEAT_FRAME = struct.pack(">BHI", HEARTBEAT, 0, 0) + FRAME_END

DELIVER, GET_OK, RETURN = 0x003C003C, 0x003C0047, 0x003C0032  # methods with content
ACK, NACK = 0x003C0050, 0x003C0078

_HEAD = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQH")  # class, weight, size of the body, which properties there are
_PUBLISH = struct.pack(">IH", 0x003C0028, 0)
_ACK_FRAME = struct.Struct(">BHIIQBB")
_NACK_FRAME = struct.Struct(">BHIIQBB")
_u32 = struct.Struct(">I").pack
_i32 = struct.Struct(">i").pack
_i64 = struct.Struct(">q").pack
_f64 = struct.Struct(">d").pack

# Properties by their flag, in the order they stand in a frame.
_FLAGS = (
    (0x8000, "content_type"),
    (0x4000, "content_encoding"),
    (0x2000, "headers"),
    (0x1000, "delivery_mode"),
    (0x0800, "priority"),
    (0x0400, "correlation_id"),
    (0x0200, "reply_to"),
    (0x0100, "expiration"),
    (0x0080, "message_id"),
    (0x0040, "timestamp"),
    (0x0020, "type"),
    (0x0010, "user_id"),
    (0x0008, "app_id"),
    (0x0004, "cluster_id"),
)
_NO_LIMITS = [None, None]  # a frequent value of the header `timelimit`
MOST_NAMES = 1000
_names: dict[str, bytes] = {}  # names of headers, packed


def ack_frame(channel: int, tag: int, multiple: bool = False) -> bytes:
    """basic.ack of `tag`, or of all up to it."""
    return _ACK_FRAME.pack(METHOD, channel, 13, ACK, tag, multiple, 0xCE)


def nack_frame(channel: int, tag: int, *, requeue: bool, multiple: bool = False) -> bytes:
    """basic.nack of `tag`, or of all up to it."""
    return _NACK_FRAME.pack(METHOD, channel, 13, NACK, tag, multiple | requeue << 1, 0xCE)


def publish_frames(
    channel: int,
    exchange: str,
    key: str,
    properties: Mapping[str, Any],
    body: bytes,
    frame_max: int,
    mandatory: bool = False,
) -> bytes:
    """basic.publish with its content.

    Raises ValueError for text too long for its place or a header that AMQP can't carry.
    """
    method = b"%b%b%b%b" % (
        _PUBLISH, _names.get(exchange) or _short(exchange), _names.get(key) or _short(key),
        b"\1" if mandatory else b"\0",
    )  # fmt: skip
    flags = 0
    parts = []
    try:
        for flag, name in _FLAGS:
            value = properties.get(name)
            if value is None:
                continue
            flags |= flag
            if name == "headers":
                parts.append(encode_table(value))
            elif name in ("delivery_mode", "priority"):
                parts.append(bytes((value,)))
            elif name == "timestamp":
                parts.append(_i64(value))
            else:
                parts.append(_short(value))
    except (AttributeError, TypeError, struct.error) as error:
        raise ValueError(f"the property {name} can't be a {type(value).__name__}: {error}") from error
    header = b"".join(parts)
    size = len(body)
    frames = [
        _HEAD.pack(METHOD, channel, len(method)),
        method,
        FRAME_END,
        _HEAD.pack(HEADER, channel, len(header) + 14),
        _CONTENT.pack(60, 0, size, flags),
        header,
        FRAME_END,
    ]
    most = frame_max - 8
    if size <= most:
        if size:
            frames += (_HEAD.pack(BODY, channel, size), body, FRAME_END)
    else:
        for start in range(0, size, most):
            part = body[start : start + most]
            frames += (_HEAD.pack(BODY, channel, len(part)), part, FRAME_END)
    if len(header) + 22 > frame_max:
        raise ValueError(f"the headers take {len(header)} bytes, and a frame has room for {frame_max - 22}")
    return b"".join(frames)


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"{text[:40]!r}… has {len(data)} bytes, and AMQP has room for 255")
    return bytes((len(data),)) + data


_COMMON = {
    text: _short(text) for text in ("", "application/json", "application/x-msgpack", "utf-8", "binary")
}
_names.update(_COMMON)


# -- tables ------------------------------------------------------------------------------------


def encode_table(table: Mapping[str, Any]) -> bytes:
    """A table of headers, its values typed as py-amqp types them.  Raises ValueError."""
    parts = []
    for key, value in table.items():
        name = _names.get(key)
        if name is None:
            name = _short(key)
            if len(_names) >= MOST_NAMES:
                _names.clear()  # those that are in use come back at once
                _names.update(_COMMON)
            _names[key] = name
        parts.append(name)
        kind = type(value)
        if kind is str:
            data = value.encode()
            parts.append(b"S" + _u32(len(data)) + data)
        elif value is None:
            parts.append(b"V")
        elif kind is int and -(1 << 31) <= value < 1 << 31:
            parts.append(b"I" + _i32(value))
        elif kind is bool:
            parts.append(b"t\1" if value else b"t\0")
        elif value == _NO_LIMITS:
            parts.append(b"A\0\0\0\2VV")
        elif kind is dict and not value:
            parts.append(b"F\0\0\0\0")
        else:
            parts.append(_encode_value(value))
    data = b"".join(parts)
    return _u32(len(data)) + data


def _encode_value(value: Any) -> bytes:
    if value is None:
        return b"V"
    if isinstance(value, str):
        data = value.encode()
        return b"S" + _u32(len(data)) + data
    if isinstance(value, bool):
        return b"t\1" if value else b"t\0"
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return b"I" + _i32(value)
        if -(1 << 63) <= value < 1 << 63:
            return b"l" + _i64(value)
        return _encode_value(str(value))
    if isinstance(value, float):
        return b"d" + _f64(value)
    if isinstance(value, Mapping):
        return b"F" + encode_table({str(key): item for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        data = b"".join(map(_encode_value, value))
        return b"A" + _u32(len(data)) + data
    if isinstance(value, bytes):
        return b"x" + _u32(len(value)) + value
    if isinstance(value, Decimal):
        return _encode_decimal(value)
    raise ValueError(f"a {type(value).__name__} is no value of an AMQP header")


def _encode_decimal(value: Decimal) -> bytes:
    """As it came, where it fits; else as text."""
    _, _, exponent = value.as_tuple()
    if isinstance(exponent, int) and -255 <= exponent <= 0:
        number = int(value.scaleb(-exponent))
        if -(1 << 31) <= number < 1 << 31:
            return struct.pack(">cBi", b"D", -exponent, number)
    return _encode_value(str(value))


def decode_table(data: bytes, at: int = 0, depth: int = 0) -> tuple[dict[str, Any], int]:
    """The table at `at`, and where it ends.  Raises ValueError or IndexError."""
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    at += 4
    if end > len(data):
        raise ValueError("a table is longer than its frame")
    table: dict[str, Any] = {}
    while at < end:
        length = data[at]
        key = data[at + 1 : at + 1 + length].decode()
        at += 1 + length
        kind = data[at]
        if kind == 0x53:  # S, the most frequent one
            start = at + 5
            at = start + int.from_bytes(data[at + 1 : start], "big")
            try:
                table[key] = data[start:at].decode()
            except UnicodeDecodeError:
                table[key] = data[start:at]
        elif kind == 0x56:  # V
            at += 1
            table[key] = None
        elif kind == 0x49:  # I
            table[key] = int.from_bytes(data[at + 1 : at + 5], "big", signed=True)
            at += 5
        elif kind == 0x74:  # t
            table[key] = bool(data[at + 1])
            at += 2
        elif data[at : at + 5] == b"F\0\0\0\0":
            table[key] = {}
            at += 5
        elif data[at : at + 7] == b"A\0\0\0\2VV":
            table[key] = [None, None]
            at += 7
        else:
            table[key], at = _decode_value(data, at, depth + 1)
    if at != end:
        raise ValueError("a value is longer than its table")
    return table, end


_FIXED = {
    0x74: struct.Struct(">?"), 0x62: struct.Struct(">b"), 0x42: struct.Struct(">B"),
    0x73: struct.Struct(">h"), 0x75: struct.Struct(">H"), 0x49: struct.Struct(">i"),
    0x69: struct.Struct(">I"), 0x6C: struct.Struct(">q"), 0x4C: struct.Struct(">q"),
    0x66: struct.Struct(">f"), 0x64: struct.Struct(">d"), 0x54: struct.Struct(">Q"),
    0x55: struct.Struct(">h"),
}  # fmt: skip


def _decode_value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > 50:
        raise ValueError("a header is nested too deeply")
    kind = data[at]
    at += 1
    try:
        if (fixed := _FIXED.get(kind)) is not None:
            return fixed.unpack_from(data, at)[0], at + fixed.size
        if kind == 0x56:
            return None, at
        if kind == 0x44:  # D: a decimal
            scale, number = struct.unpack_from(">Bi", data, at)
            return Decimal(number).scaleb(-scale), at + 5
    except struct.error:
        raise ValueError("a value is longer than its frame") from None
    length = int.from_bytes(data[at : at + 4], "big")
    if at + 4 + length > len(data):
        raise ValueError("a value is longer than its frame")
    if kind == 0x46:
        return decode_table(data, at, depth)
    at += 4
    end = at + length
    if kind == 0x41:
        items = []
        while at < end:
            item, at = _decode_value(data, at, depth + 1)
            items.append(item)
        if at != end:
            raise ValueError("a value is longer than its list")
        return items, end
    if kind == 0x53 or kind == 0x78:  # py-amqp's users send text as bytes too
        try:
            return data[at:end].decode(), end
        except UnicodeDecodeError:
            return data[at:end], end
    raise ValueError(f"a header of the unknown type {chr(kind)!r}")


# -- content -----------------------------------------------------------------------------------


def decode_deliver(payload: bytes) -> tuple[str, int, bool, str, str]:
    """Consumer tag, delivery tag, redelivered, exchange and routing key of a basic.deliver."""
    length = payload[4]
    at = 5 + length
    consumer = payload[5:at].decode()
    tag = int.from_bytes(payload[at : at + 8], "big")
    redelivered = bool(payload[at + 8])
    at += 9
    length = payload[at]
    exchange = payload[at + 1 : at + 1 + length].decode(errors="replace")
    at += 1 + length
    length = payload[at]
    return consumer, tag, redelivered, exchange, payload[at + 1 : at + 1 + length].decode(errors="replace")


def decode_get_ok(payload: bytes) -> tuple[int, bool, str, str]:
    """Delivery tag, redelivered, exchange and routing key of a basic.get-ok."""
    _, tag, redelivered, exchange, key = decode_deliver(payload[:4] + b"\0" + payload[4:])
    return tag, redelivered, exchange, key


def decode_properties(payload: bytes) -> dict[str, Any]:
    """The properties in a content header's payload, by name.  Raises ValueError or IndexError."""
    flags = int.from_bytes(payload[12:14], "big")
    at = 14
    found: dict[str, Any] = {}
    for flag, name in _FLAGS:
        if not flags & flag:
            continue
        if name == "headers":
            found[name], at = decode_table(payload, at)
        elif name in ("delivery_mode", "priority"):
            found[name] = payload[at]
            at += 1
        elif name == "timestamp":
            found[name] = int.from_bytes(payload[at : at + 8], "big")
            at += 8
        else:
            length = payload[at]
            found[name] = payload[at + 1 : at + 1 + length].decode()
            at += 1 + length
    if at > len(payload):
        raise ValueError("the properties are longer than their frame")
    return found
