"""Serializers and compression: values to bytes and back, as kombu writes them.

JSON carries datetime, date, time, Decimal, UUID and bytes as an object of exactly two
keys, ``{"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}``.  Nothing read
here is ever executed: only the types of this list are built.
"""

from __future__ import annotations

import base64
import importlib
import json
import uuid
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from minicelery.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
)

CONTENT_TYPES = {
    "json": "application/json",
    "msgpack": "application/x-msgpack",
    "yaml": "application/x-yaml",
    "pickle": "application/x-python-serialize",
    "auth": "application/data",
}
SERVED = ("json", "msgpack")


def accepted(names: Iterable[str]) -> frozenset[str]:
    """The content types that `names` (serializers or content types) stand for."""
    return frozenset(CONTENT_TYPES.get(name, name) for name in names)


def dumps(value: Any, serializer: str) -> tuple[bytes, str, str]:
    """`value` as `(bytes, content type, content encoding)`.  Raises EncodeError."""
    if serializer == "json":
        try:
            return _json_encode(value).encode(), "application/json", "utf-8"
        except _UNFIT as error:
            raise _explain(error) from error
    if serializer == "msgpack":
        return _dump_msgpack(value), "application/x-msgpack", "binary"
    raise unknown_serializer(serializer)


def unknown_serializer(name: str) -> ImproperlyConfigured:
    """The error for a serializer that is misspelt or not served."""
    if name in CONTENT_TYPES:
        return ImproperlyConfigured(f"the serializer {name!r} is not served yet; use {' or '.join(SERVED)}")
    return ImproperlyConfigured(f"no serializer is named {name!r}; there are {' and '.join(SERVED)}")


def loads(data: bytes, content_type: str, encoding: str, accept: frozenset[str]) -> Any:
    """The value in `data`, if `accept` lists its content type.

    Raises ContentDisallowed before it looks at `data`, DecodeError where it can't be read.
    """
    if not isinstance(content_type, str) or content_type not in accept:
        raise ContentDisallowed(
            f"content type {content_type!r:.80} is not accepted; "
            f"accept_content allows {', '.join(sorted(accept))}"
        )
    if content_type == "application/json":
        return decode_json(data, encoding)
    if content_type == "application/x-msgpack":
        return _load_msgpack(data)
    raise ContentDisallowed(f"content type {content_type!r} is accepted by configuration but not served yet")


# -- JSON ------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """What JSON has no word for: called by the encoder for each such object."""
    if (method := getattr(value, "__json__", None)) is not None:
        return method()
    for kind, name, render in _RENDERERS:
        if isinstance(value, kind):
            return {"__type__": name, "__value__": render(value)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        try:
            return {"__type__": "bytes", "__value__": data.decode()}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": base64.b64encode(data).decode()}
    if type(value).__module__.startswith("django.utils.functional"):
        return str(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_RENDERERS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (Decimal, "decimal", str),
    (uuid.UUID, "uuid", lambda value: {"hex": value.hex}),
)


def compiled_encoder(default: Callable[[Any], Any] | None = None) -> Callable[[Any], str]:
    """`json.dumps` with its C encoder made once: `JSONEncoder.encode` makes one for each value."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return json.JSONEncoder(default=default).encode

    def refuse(value: Any) -> Any:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")

    # No marker dict: what contains itself ends as RecursionError.
    chunks = make(
        None, default or refuse, json.encoder.encode_basestring_ascii, None, ": ", ", ", False, False, True
    )
    return lambda value: "".join(chunks(value, 0))


_json_encode = compiled_encoder(_plain)
_json_decode = json.JSONDecoder().decode


_UNFIT = (TypeError, ValueError, OverflowError, RecursionError)


def _explain(error: BaseException) -> EncodeError:
    if isinstance(error, EncodeError):
        return error
    if isinstance(error, RecursionError):
        return EncodeError("the value is nested too deeply, or contains itself")
    # Celery stores the repr of the cause as the error's text.
    return EncodeError(f"{type(error).__name__}({str(error)!r})")


def encode_json(value: Any) -> str:
    """`value` as JSON text with kombu's type extensions.  Raises EncodeError."""
    try:
        return _json_encode(value)
    except _UNFIT as error:
        raise _explain(error) from error


def decode_json(data: bytes | str, encoding: str = "utf-8") -> Any:
    """The value of JSON text with kombu's type extensions.  Raises DecodeError."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8" if encoding == "binary" else encoding)
        # The hook costs a Python call per object: only where a marked object may be.
        if "__type__" in text:
            return json.loads(text, object_hook=_revive)
        return _json_decode(text)
    except DecodeError:
        raise
    except RecursionError:
        raise DecodeError("JSON nested too deeply") from None
    except (ValueError, LookupError, TypeError) as error:  # TypeError: of an encoding that is no text
        raise DecodeError(f"not JSON: {error}") from error


def _revive(found: dict[str, Any]) -> Any:
    if len(found) != 2 or "__type__" not in found or "__value__" not in found:
        return found
    name, value = found["__type__"], found["__value__"]
    try:
        revive = _REVIVERS[name]
    except (KeyError, TypeError):
        raise DecodeError(f"unsupported __type__ {name!r} in JSON; known: {', '.join(_REVIVERS)}") from None
    try:
        return revive(value)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise DecodeError(f"bad value for __type__ {name!r} in JSON: {error}") from error


_REVIVERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda value: uuid.UUID(hex=value["hex"]),
    "bytes": lambda value: value.encode(),
    "base64": lambda value: base64.b64decode(value, validate=True),
}


# -- msgpack ---------------------------------------------------------------------------


def _dump_msgpack(value: Any) -> bytes:
    import msgpack

    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True, default=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(f"{type(error).__name__}({str(error)!r})") from error
    return packed


def _load_msgpack(data: bytes) -> Any:
    import msgpack

    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, object_hook=_revive)
    except DecodeError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"not msgpack: {type(error).__name__} {error}") from error


# -- compression -----------------------------------------------------------------------

# kombu's names; its "gzip" is a zlib stream, not a gzip file.
COMPRESSIONS = {
    "zlib": "application/x-gzip",
    "gzip": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "zstd": "application/zstd",
    "zstandard": "application/zstd",
}
LARGEST_BODY = 512 * 1024 * 1024
"""Bytes that a compressed body may grow to; more is refused as a decompression bomb."""


def compress(data: bytes, name: str) -> tuple[bytes, str]:
    """`data` compressed, and the content type for the ``compression`` header."""
    content_type = COMPRESSIONS.get(name, name)
    if content_type == "application/x-gzip":
        import zlib

        return zlib.compress(data), content_type
    if content_type == "application/x-bz2":
        import bz2

        return bz2.compress(data), content_type
    if content_type == "application/zstd":
        packed: bytes = _zstd().compress(data)
        return packed, content_type
    raise ImproperlyConfigured(f"no compression is named {name!r}; there are {', '.join(COMPRESSIONS)}")


def _zstd() -> Any:
    """The zstd module: Python's own since 3.14, else of the package backports.zstd."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImproperlyConfigured(
        "compression 'zstd' needs the package backports.zstd: pip install minicelery[zstd]"
    )


def decompress(data: bytes, content_type: object) -> bytes:
    """The bytes before compression.  Raises DecodeError."""
    kind = COMPRESSIONS.get(content_type, content_type) if isinstance(content_type, str) else None
    unpacker: Any
    wrong: type[Exception]
    if kind == "application/x-gzip":
        import zlib

        unpacker, wrong = zlib.decompressobj(), zlib.error
    elif kind == "application/x-bz2":
        import bz2

        unpacker, wrong = bz2.BZ2Decompressor(), OSError
    elif kind == "application/zstd":
        try:
            module = _zstd()
        except ImproperlyConfigured as error:
            raise DecodeError(str(error)) from None
        unpacker, wrong = module.ZstdDecompressor(), module.ZstdError
    else:
        raise DecodeError(f"unknown compression {str(content_type)[:80]!r}; known: {', '.join(COMPRESSIONS)}")
    try:
        plain: bytes = unpacker.decompress(data, LARGEST_BODY)
    except (wrong, ValueError, EOFError) as error:
        raise DecodeError(f"not {content_type} data: {error}") from error
    if not unpacker.eof:
        raise DecodeError(f"{content_type} data is cut short, or grows beyond {LARGEST_BODY} bytes")
    return plain
