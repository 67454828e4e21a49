"""JSON as kombu writes it.

It carries datetime, date, time, Decimal, UUID and bytes as an object of exactly two keys,
``{"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}``.  Only the types of this
list are built.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from minicelery.exceptions import DecodeError, EncodeError


def plain(value: Any) -> Any:
    """What JSON has no word for: called by the encoder for each such object."""
    if (method := getattr(value, "__json__", None)) is not None:
        return method()
    for kind, name, render in _RENDERERS:
        if isinstance(value, kind):
            rendered = render(value)
            return rendered if name is None else {"__type__": name, "__value__": rendered}
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        try:
            return {"__type__": "bytes", "__value__": data.decode()}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": base64.b64encode(data).decode()}
    if type(value).__module__.startswith("django.utils.functional"):
        return str(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_RENDERERS: tuple[tuple[type, str | None, Callable[[Any], Any]], ...] = (
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


_json_encode = compiled_encoder(plain)
_json_decode = json.JSONDecoder().decode


UNFIT = (TypeError, ValueError, OverflowError, RecursionError)


def explain(error: BaseException) -> EncodeError:
    """What an encoder has raised as an EncodeError."""
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
    except UNFIT as error:
        raise explain(error) from error


def decode_json(data: bytes | str, encoding: str = "utf-8") -> Any:
    """The value of JSON text with kombu's type extensions.  Raises DecodeError."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8" if encoding == "binary" else encoding)
        # The hook costs a Python call per object: only where a marked object may be.
        if "__type__" in text:
            return json.loads(text, object_hook=revive)
        return _json_decode(text)
    except DecodeError:
        raise
    except RecursionError:
        raise DecodeError("JSON nested too deeply") from None
    except (ValueError, LookupError, TypeError) as error:  # TypeError: of an encoding that is no text
        raise DecodeError(f"not JSON: {error}") from error


def revive(found: dict[str, Any]) -> Any:
    """What a marked object stands for; any other stays as it is.  Raises DecodeError."""
    if len(found) != 2 or "__type__" not in found or "__value__" not in found:
        return found
    name, value = found["__type__"], found["__value__"]
    try:
        make = _REVIVERS[name]
    except (KeyError, TypeError):
        raise DecodeError(
            f"unsupported __type__ {name!r:.80} in JSON; known: {', '.join(_REVIVERS)}"
        ) from None
    try:
        return make(value)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise DecodeError(f"bad value for __type__ {name!r} in JSON: {error!s:.200}") from error


_REVIVERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda value: uuid.UUID(hex=value["hex"]),
    "bytes": lambda value: value.encode(),
    "base64": lambda value: base64.b64decode(value, validate=True),
}


def register_type(
    t: type,
    marker: str | None,
    encoder: Callable[[Any], Any],
    decoder: Callable[[Any], Any] = lambda value: value,
) -> None:
    """Have JSON carry objects of a type: as what `encoder` makes of them, under the name `marker`.

    `decoder` makes them again, and is needed wherever they are read.  Without a marker they
    arrive as what the encoder has made.  Raises ValueError for a marker that is taken.
    """
    global _RENDERERS
    if marker is not None and marker in _REVIVERS and not any(row[:2] == (t, marker) for row in _RENDERERS):
        raise ValueError(f"register_type({t.__name__}): the marker {marker!r} is taken")
    _RENDERERS = (*(row for row in _RENDERERS if row[0] is not t), (t, marker, encoder))
    if marker is not None:
        _REVIVERS[marker] = decoder
