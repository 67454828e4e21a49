"""Text of anything, without errors: kombu's `utils.encoding`; and its JSON, `utils.json`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from minicelery.exceptions import DecodeError
from minicelery.serialization.json import decode_json, encode_json, plain, revive


def safe_str(s: Any, errors: str = "replace") -> str:
    """`s` itself where it is text, bytes read as UTF-8, the repr of all else."""
    if isinstance(s, bytes):
        return s.decode("utf-8", errors)
    return s if isinstance(s, str) else safe_repr(s)


def safe_repr(o: Any, errors: str = "replace") -> str:
    """``repr(o)``, or its type where that fails."""
    try:
        return repr(o)
    except Exception as error:  # it is the object's own code
        return f"<Unrepresentable {type(o)!r}: {error!r}>"


def bytes_to_str(s: Any) -> Any:
    """Bytes as text, all else as it is."""
    return s.decode("utf-8", "replace") if isinstance(s, bytes) else s


def str_to_bytes(s: Any) -> Any:
    """Text as bytes, all else as it is."""
    return s.encode() if isinstance(s, str) else s


def b64encode(s: Any) -> str:
    """Bytes, or text as UTF-8, in base64."""
    return base64.b64encode(str_to_bytes(s)).decode()


def b64decode(s: Any) -> bytes:
    """What was put in base64."""
    return base64.b64decode(str_to_bytes(s))


def dumps(s: Any, cls: Any = None, default_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> str:
    """As JSON with kombu's types; `kwargs` are those of `json.dumps`."""
    options = {**(default_kwargs or {}), **kwargs}
    if cls is None and not options:
        return encode_json(s)
    return json.dumps(s, **({"default": plain} if cls is None else {"cls": cls}), **options)


def loads(s: Any, decode_bytes: bool = True, object_hook: Callable[[Any], Any] | None = revive) -> Any:
    """The value of JSON with kombu's types.  Raises ValueError, as what is written for kombu expects."""
    if isinstance(s, (bytearray, memoryview)):
        s = bytes(s)
    if object_hook is revive:
        try:
            return decode_json(s)
        except DecodeError as error:
            raise ValueError(str(error)) from error
    return json.loads(s.decode() if isinstance(s, bytes) else s, object_hook=object_hook)
