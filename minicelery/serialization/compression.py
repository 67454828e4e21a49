"""Compression of bodies and results, by kombu's names."""

from __future__ import annotations

import importlib
from typing import Any

from minicelery.exceptions import DecodeError, ImproperlyConfigured

# Its "gzip" is a zlib stream, not a gzip file.
COMPRESSIONS = {
    "zlib": "application/x-gzip",
    "gzip": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "lzma": "application/x-lzma",
    "xz": "application/x-lzma",
    "brotli": "application/x-brotli",
    "zstd": "application/zstd",
    "zstandard": "application/zstd",
}
"""Name -> content type, which is what the ``compression`` header says."""
LARGEST_BODY = 512 * 1024 * 1024
"""Bytes that a compressed body may grow to; more is refused as a decompression bomb."""
_LARGEST_WINDOW = 128 * 1024 * 1024
"""Bytes that xz may ask for to unpack; its own presets need 65 MiB at most."""


def compress(data: bytes, name: str) -> tuple[bytes, str]:
    """`data` compressed, and the content type for the ``compression`` header.

    Raises ImproperlyConfigured where the name is unknown, or its extra missing.
    """
    content_type = COMPRESSIONS.get(name, name) if isinstance(name, str) else None
    packed: bytes
    if content_type == "application/x-gzip":
        import zlib

        packed = zlib.compress(data)
    elif content_type == "application/x-bz2":
        import bz2

        packed = bz2.compress(data)
    elif content_type == "application/x-lzma":
        import lzma

        packed = lzma.compress(data)
    elif content_type == "application/x-brotli":
        packed = _brotli().compress(data)
    elif content_type == "application/zstd":
        packed = _zstd().compress(data)
    else:
        raise ImproperlyConfigured(
            f"compression={name!r:.80}: there is no such compression; there are {', '.join(COMPRESSIONS)}"
        )
    assert content_type is not None
    return packed, content_type


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


def _brotli() -> Any:
    try:
        import brotli
    except ImportError:
        raise ImproperlyConfigured(
            "compression 'brotli' needs the package brotli: pip install minicelery[brotli]"
        ) from None
    if not hasattr(brotli.Decompressor, "can_accept_more_data"):
        # Older ones unpack without a bound.
        raise ImproperlyConfigured(
            "compression 'brotli' needs brotli 1.2 or later: pip install minicelery[brotli]"
        )
    return brotli


def decompress(data: bytes, content_type: object) -> bytes:
    """The bytes before compression.  Raises DecodeError."""
    kind = COMPRESSIONS.get(content_type, content_type) if isinstance(content_type, str) else None
    unpack = _UNPACKERS.get(kind) if kind is not None else None
    if unpack is None:
        raise DecodeError(f"unknown compression {str(content_type)[:80]!r}; known: {', '.join(COMPRESSIONS)}")
    try:
        plain, ended = unpack(data)
    except ImproperlyConfigured as error:
        raise DecodeError(str(error)) from None
    except Exception as error:  # each module has an error of its own
        raise DecodeError(f"compression {content_type}: the data is not of that kind: {error}") from error
    if not ended or len(plain) > LARGEST_BODY:
        raise DecodeError(
            f"compression {content_type}: the data is cut short, or grows beyond {LARGEST_BODY} bytes"
        )
    return plain


def _unzip(data: bytes) -> tuple[bytes, bool]:
    import zlib

    unpacker = zlib.decompressobj()
    return unpacker.decompress(data, LARGEST_BODY), unpacker.eof


def _unbzip(data: bytes) -> tuple[bytes, bool]:
    import bz2

    unpacker = bz2.BZ2Decompressor()
    return unpacker.decompress(data, LARGEST_BODY), unpacker.eof


def _unxz(data: bytes) -> tuple[bytes, bool]:
    import lzma

    unpacker = lzma.LZMADecompressor(memlimit=_LARGEST_WINDOW)
    return unpacker.decompress(data, LARGEST_BODY), unpacker.eof


def _unbrotli(data: bytes) -> tuple[bytes, bool]:
    unpacker = _brotli().Decompressor()
    # The limit is one for a block: it may return somewhat more than was asked for.
    plain: bytes = unpacker.process(data, output_buffer_limit=LARGEST_BODY)
    return plain, unpacker.is_finished()


def _unzstd(data: bytes) -> tuple[bytes, bool]:
    unpacker = _zstd().ZstdDecompressor()
    return unpacker.decompress(data, LARGEST_BODY), unpacker.eof


_UNPACKERS = {
    "application/x-gzip": _unzip,
    "application/x-bz2": _unbzip,
    "application/x-lzma": _unxz,
    "application/x-brotli": _unbrotli,
    "application/zstd": _unzstd,
}
