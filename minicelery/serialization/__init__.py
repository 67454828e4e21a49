"""Serializers and compression: values to bytes and back, as kombu writes them.

Bytes are looked at only if their content type is accepted, and nothing read here is ever
executed, but for pickle: that is read only where a setting lists it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minicelery.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    MiniCeleryError,
)
from minicelery.serialization import msgpack, pickle, yaml
from minicelery.serialization.compression import COMPRESSIONS, compress, decompress
from minicelery.serialization.json import compiled_encoder, decode_json, encode_json, explain

__all__ = [
    "COMPRESSIONS", "CONTENT_TYPES", "PICKLE", "SAFE", "SERVED", "Serializer", "accepted", "check_readable",
    "check_writable", "compiled_encoder", "compress", "content_of", "decode_json", "decompress", "dumps",
    "encode_json", "loads", "register", "unknown_serializer", "unregister",
]  # fmt: skip

Encoder = Callable[[Any], "bytes | str"]
Decoder = Callable[[bytes], Any]

PICKLE = pickle.CONTENT_TYPE
AUTH = "application/data"


class Serializer(NamedTuple):
    """One way to write values."""

    name: str
    content_type: str
    content_encoding: str
    encode: Encoder | None
    decode: Decoder | None


def _not_set_up(value: Any) -> Any:
    raise ImproperlyConfigured(
        "the serializer 'auth' signs and verifies messages: call app.setup_security() where the app is made"
    )


_BUILT_IN = (
    Serializer("json", "application/json", "utf-8", encode_json, decode_json),
    Serializer("msgpack", "application/x-msgpack", "binary", msgpack.encode, msgpack.decode),
    Serializer("yaml", "application/x-yaml", "utf-8", yaml.encode, yaml.decode),
    Serializer("pickle", PICKLE, "binary", pickle.encode, pickle.decode),
    Serializer("auth", AUTH, "utf-8", _not_set_up, _not_set_up),
)
_by_name = {one.name: one for one in _BUILT_IN}
_by_type = {one.content_type: one for one in _BUILT_IN}

CONTENT_TYPES = {one.name: one.content_type for one in _BUILT_IN}
"""Name -> content type; registered ones are in it too."""
SERVED = CONTENT_TYPES.keys()
SAFE = frozenset(one.content_type for one in _BUILT_IN if one.content_type != PICKLE)
"""Content types of which nothing is executed, whoever has written them."""


def accepted(names: Iterable[str]) -> frozenset[str]:
    """The content types that `names` (serializers or content types) stand for."""
    return frozenset(CONTENT_TYPES.get(name, name) for name in names)


def dumps(value: Any, serializer: str) -> tuple[bytes, str, str]:
    """`value` as `(bytes, content type, content encoding)`.

    Raises EncodeError; ImproperlyConfigured where the serializer is unknown, or its extra missing.
    """
    if serializer == "json":
        return encode_json(value).encode(), "application/json", "utf-8"
    found = _by_name.get(serializer) if isinstance(serializer, str) else None
    if found is None or found.encode is None:
        raise ImproperlyConfigured(f"serializer={serializer!r:.80}: {unknown_serializer(serializer)}")
    try:
        data = found.encode(value)
    except MiniCeleryError:
        raise
    except Exception as error:  # a registered encoder may raise anything
        raise explain(error) from error
    if isinstance(data, str):
        data = data.encode("utf-8" if found.content_encoding == "binary" else found.content_encoding)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise EncodeError(
            f"the encoder of {serializer!r} returned {type(data).__name__}, expected bytes or str"
        )
    return bytes(data), found.content_type, found.content_encoding


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
    found = _by_type.get(content_type)
    if found is None or found.decode is None:
        raise ContentDisallowed(f"content type {content_type!r:.80} is accepted, but no serializer reads it")
    try:
        return found.decode(data)
    except DecodeError:
        raise
    except MiniCeleryError as error:  # a missing extra, a wrong signature
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    except RecursionError:
        raise DecodeError(f"{found.name} nested too deeply") from None
    except Exception as error:  # a registered decoder may raise anything, and so does a pickle
        raise DecodeError(f"not {found.name}: {type(error).__name__} {error}") from error


def content_of(serializer: str) -> tuple[str, str]:
    """The content type and the content encoding of what `serializer` writes."""
    found = _by_name.get(serializer)
    if found is None:
        raise unknown_serializer(serializer)
    return found.content_type, found.content_encoding


def check_readable(names: Iterable[str], setting: str) -> None:
    """Raise ImproperlyConfigured unless all of `names` can be read here; at a worker's start."""
    for name in names:
        found = _by_type.get(CONTENT_TYPES.get(name, name))
        if found is None or found.decode is None:
            raise ImproperlyConfigured(
                f"{setting} lists {name!r}, which no serializer reads; there are {_listed()}"
            )
        _check_installed(found, found.decode, setting)


def check_writable(name: str, setting: str) -> None:
    """Raise ImproperlyConfigured unless `name` can be written here; at a worker's start."""
    found = _by_name.get(name)
    if found is None or found.encode is None:
        raise ImproperlyConfigured(f"{setting}: {unknown_serializer(name)}")
    _check_installed(found, found.encode, setting)


def _check_installed(one: Serializer, function: Any, setting: str) -> None:
    if function in (yaml.encode, yaml.decode):
        yaml.library()
    if function is _not_set_up:
        raise ImproperlyConfigured(
            f"{setting} names {one.name!r}: call app.setup_security() where the app is made"
        )


# -- serializers of the user's own -----------------------------------------------------------


def register(
    name: str,
    encoder: Encoder | None,
    decoder: Decoder | None,
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Add a serializer, to be named in settings and options; before the settings are read.

    `encoder` takes a value and returns bytes or text, `decoder` takes bytes; None: only the
    other way.  One of the same name is replaced, but for `json` and `auth`.
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ImproperlyConfigured(f"a serializer's name must be text without a slash, got {name!r:.80}")
    if not isinstance(content_type, str) or "/" not in content_type:
        raise ImproperlyConfigured(
            f"content_type of the serializer {name!r} must be such as 'application/x-own', got {content_type!r:.80}"
        )
    for role, function in (("encoder", encoder), ("decoder", decoder)):
        if function is not None and not callable(function):
            raise ImproperlyConfigured(
                f"{role} of the serializer {name!r} must be a function or None, got {function!r:.80}"
            )
    if encoder is None and decoder is None:
        raise ImproperlyConfigured(f"the serializer {name!r} needs an encoder or a decoder")
    holder = _by_type.get(content_type)
    if name in ("json", "auth") or (holder is not None and holder.name != name):
        taken = name if holder is None else holder.name
        raise ImproperlyConfigured(
            f"the serializer {name!r} with content type {content_type!r} would replace {taken!r}; "
            "register it under a name and a content type of its own"
        )
    _check_encoding(name, content_encoding)
    _put(Serializer(name, content_type, content_encoding, encoder, decoder))


def unregister(name: str) -> None:
    """Forget a serializer; what is written so is refused from then on."""
    if name not in _by_name or name in ("json", "auth"):
        raise ImproperlyConfigured(f"the serializer {name!r} can't be unregistered; there are {_listed()}")
    _drop(name)


def set_signer(encode: Encoder | None, decode: Decoder | None) -> None:
    """What `auth` signs and verifies with, in this process; None: nothing any more."""
    _put(Serializer("auth", AUTH, "utf-8", encode or _not_set_up, decode or _not_set_up))


def _put(one: Serializer) -> None:
    if one.name in _by_name:
        _drop(one.name)
    _by_name[one.name] = _by_type[one.content_type] = one
    CONTENT_TYPES[one.name] = one.content_type


def _drop(name: str) -> None:
    del _by_type[_by_name.pop(name).content_type]
    del CONTENT_TYPES[name]


def _check_encoding(name: str, encoding: Any) -> None:
    if encoding == "binary":
        return
    try:
        "".encode(encoding)
    except (LookupError, TypeError):
        raise ImproperlyConfigured(
            f"content_encoding of the serializer {name!r} must be 'binary' or the name of an encoding of text, "
            f"got {encoding!r:.80}"
        ) from None


def unknown_serializer(name: object) -> ImproperlyConfigured:
    """The error for a serializer that is misspelt, or only reads."""
    if isinstance(name, str) and name in _by_name:
        return ImproperlyConfigured(f"{name!r} only reads: it was registered without an encoder")
    return ImproperlyConfigured(f"no serializer is named {name!r:.80}; there are {_listed()}")


def _listed() -> str:
    return ", ".join(CONTENT_TYPES)
