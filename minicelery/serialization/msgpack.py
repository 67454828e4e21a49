"""msgpack, with JSON's way of carrying dates and the like."""

from __future__ import annotations

from typing import Any

from minicelery.exceptions import DecodeError
from minicelery.serialization.json import plain, revive


def encode(value: Any) -> bytes:
    """`value` packed."""
    import msgpack

    packed: bytes = msgpack.packb(value, use_bin_type=True, default=plain)
    return packed


def decode(data: bytes) -> Any:
    """The value that is packed in `data`.  Raises DecodeError."""
    import msgpack

    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, object_hook=revive)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"not msgpack: {type(error).__name__} {error}") from error
