"""YAML, its safe part: plain data, dates and bytes.

Aliases are read, since every dumper writes them where one list is in two places; but what
they add up to is bounded, and merge keys, which no dumper writes, are refused.
"""

from __future__ import annotations

import functools
from itertools import chain
from typing import Any

from minicelery.exceptions import DecodeError, EncodeError, ImproperlyConfigured

LARGEST = 50_000_000
"""What a document may grow to where its aliases are written out, in values."""


def library() -> Any:
    """PyYAML.  Raises ImproperlyConfigured where it is not installed."""
    try:
        import yaml
    except ImportError:
        raise ImproperlyConfigured(
            "the serializer 'yaml' needs PyYAML: pip install minicelery[yaml]"
        ) from None
    return yaml


def encode(value: Any) -> bytes:
    """`value` as YAML text.  Raises EncodeError."""
    yaml = library()
    try:
        data: bytes = yaml.dump(value, Dumper=_dumper(), encoding="utf-8")
    except yaml.YAMLError as error:
        raise EncodeError(f"{type(error).__name__}({_words(error)!r})") from error
    if b"&id" in data:
        try:
            _check_growth(value)
        except (DecodeError, RecursionError) as error:
            raise EncodeError(f"the value is nested too deeply, or contains itself: {error}") from error
    return data


def decode(data: bytes) -> Any:
    """The value of YAML text.  Raises DecodeError; builds plain data only."""
    yaml = library()
    try:
        value = yaml.load(data, Loader=_loader())
    except yaml.YAMLError as error:
        raise DecodeError(f"not yaml: {_words(error)}") from error
    if b"&" in data:
        _check_growth(value)
    return value


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@functools.cache
def _dumper() -> Any:
    yaml = library()

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # known at run time only
        """Carries subclasses of plain types as JSON does: signatures are dicts."""

    for kind, write in (
        (dict, lambda dumper, value: dumper.represent_dict(dict(value))),
        (list, lambda dumper, value: dumper.represent_list(list(value))),
        (tuple, lambda dumper, value: dumper.represent_list(list(value))),
        (str, lambda dumper, value: dumper.represent_str(str.__str__(value))),
        (int, lambda dumper, value: dumper.represent_int(int(value))),
        (float, lambda dumper, value: dumper.represent_float(float(value))),
    ):
        Dumper.add_multi_representer(kind, write)
    return Dumper


@functools.cache
def _loader() -> Any:
    yaml = library()

    # Not CSafeLoader: 100 000 open brackets overrun the stack of the C code, and kill the process.
    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]  # known at run time only
        def flatten_mapping(self, node: Any) -> None:
            # A dozen of them, each of the last one twice, fill the memory.
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise DecodeError("not yaml: merge keys (<<) are not read")
                if key.tag == "tag:yaml.org,2002:value":
                    key.tag = "tag:yaml.org,2002:str"

    return Loader


def _check_growth(value: Any) -> None:
    """Raise DecodeError where parts that are shared add up to too much, or contain themselves."""
    sizes: dict[int, int] = {}

    def size(part: Any) -> int:
        if isinstance(part, (str, bytes)):
            return 1 + len(part) // 16
        if not isinstance(part, (dict, list, tuple, set)):
            return 1
        known = sizes.get(id(part))
        if known == 0:
            raise DecodeError("a yaml value contains itself")
        if known is not None:
            return known
        sizes[id(part)] = 0
        inner = chain(part.keys(), part.values()) if isinstance(part, dict) else part
        total = sizes[id(part)] = 1 + sum(map(size, inner))
        if total > LARGEST:
            raise DecodeError(f"the aliases of a yaml value add up to more than {LARGEST} values")
        return total

    size(value)
