"""Groups of results that a store keeps by their id: `GroupResult.save` and `restore`.

The document is Celery's, ``{"result": [["<id>", parent], [members]]}``, under
``celery-taskset-meta-<id>`` on Redis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minicelery import record, serialization
from minicelery.exceptions import (
    BackendGetMetaError,
    ContentDisallowed,
    DecodeError,
    ImproperlyConfigured,
    SecurityError,
)

if TYPE_CHECKING:
    from minicelery.settings import Settings


def keeper_of(backend: Any) -> Any:
    """`backend`, if it can keep groups.  Raises ImproperlyConfigured where not."""
    if not hasattr(backend, "save_group"):
        if backend.url == "disabled://":
            backend.load(())  # says what to set
        raise ImproperlyConfigured(
            f"the results of a group can't be kept by {backend.url}: set result_backend to a redis://, "
            "sqlite:/// or memory:// URL, where any process can restore them"
        )
    return backend


def encode(group: Any, conf: Settings) -> bytes:
    """The document of a group's results."""
    document, _, _ = serialization.dumps({"result": group.as_tuple()}, conf.result_serializer)
    if conf.result_compression:
        return record._compressed(document, conf.result_compression)
    return document


def decode(document: bytes, conf: Settings) -> Any:
    """The tuple of the results.  Raises BackendGetMetaError where it is not such a document."""
    names = conf.accept_content if conf.result_accept_content is None else conf.result_accept_content
    content_type = serialization.CONTENT_TYPES.get(conf.result_serializer, conf.result_serializer)
    try:
        if document.startswith(record._COMPRESSED):
            compression, _, packed = document[len(record._COMPRESSED) :].partition(b"\x00")
            document = serialization.decompress(packed, compression.decode(errors="replace"))
        found = serialization.loads(document, content_type, "utf-8", serialization.accepted(names))
        (id, _), members = found["result"]
        if not isinstance(id, str) or not isinstance(members, (list, tuple)):
            raise TypeError("neither an id nor members")
    except ContentDisallowed:
        raise
    except (DecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error.__cause__, SecurityError):
            raise error.__cause__ from None
        raise BackendGetMetaError(
            f"a saved group can't be read: {document[:80]!r} is not {conf.result_serializer} of results; "
            "result_serializer must be the same where it was saved"
        ) from error
    return found["result"]
