"""Result documents: what a backend keeps of a task, byte for byte as Celery keeps it.

::

    {"status": "SUCCESS", "result": 5, "traceback": null, "children": [],
     "date_done": "2026-11-21T02:31:24.412344+00:00", "task_id": "…"}

An exception is an object of `exc_type`, `exc_message` (its arguments) and `exc_module`.  It
is rebuilt only from modules that are imported already; nothing is imported for it.  pickle
carries the exception itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone, tzinfo
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Any

from minicelery import exceptions, serialization, states
from minicelery.exceptions import (
    BackendGetMetaError,
    ContentDisallowed,
    DecodeError,
    EncodeError,
    SecurityError,
)
from minicelery.message import Record
from minicelery.serialization.pickle import CarriedException

if TYPE_CHECKING:
    from minicelery.settings import Settings

_HEAD = b'{"status": "SUCCESS", "result": '
_MIDDLE = b', "traceback": null, "children": [], "date_done": "'
# Without a quote inside of a text: so `_MIDDLE` is in none of them.
_TAIL = re.compile(rb'[^"]*"(?:, "(?:group|parent)_id": "[^"]*")*, "task_id": "[^"]*"\}').fullmatch
_COMPRESSED = b"\x00celery-compressed\x00"
"""What a compressed document begins with; its compression and another NUL follow."""
_TOO_MUCH = (SystemExit, KeyboardInterrupt, GeneratorExit)
"""Raised in a reader these would end its process, not its call."""


def encode(
    id: str,
    state: str,
    result: Any,
    *,
    serializer: str = "json",
    ttl: float | None = 86400.0,
    zone: tzinfo = timezone.utc,
    traceback: str | None = None,
    children: Sequence[Any] | None = (),
    group_id: str | None = None,
    parent_id: str | None = None,
    extra: Mapping[str, Any] | None = None,
    compression: str | None = None,
) -> Record:
    """The record of one state.  Raises EncodeError where `result` can't be carried.

    `children` are result tuples, `[[id, parent], children]`; `extra` what `result_extended` adds.
    """
    done = datetime.now(zone).isoformat() if state in states.READY_STATES else None
    if serializer == "json":
        listed = "null" if children is None else serialization.encode_json(children) if children else "[]"
        # A third of the cost of building the dict and encoding it whole.
        text = (
            f'{{"status": {quote(state)}, "result": {serialization.encode_json(result)}, '
            f'"traceback": {"null" if traceback is None else quote(traceback)}, '
            f'"children": {listed}, "date_done": {"null" if done is None else quote(done)}'
        )
        if group_id is not None:
            text += f', "group_id": {quote(group_id)}'
        if parent_id is not None:
            text += f', "parent_id": {quote(parent_id)}'
        if extra:
            text += ", " + serialization.encode_json(extra)[1:-1]
        data = f'{text}, "task_id": {quote(id)}}}'.encode()
        return Record(id, data if compression is None else _compressed(data, compression), state, ttl)
    if isinstance(result, ExceptionDocument):
        result = result.fit_for(serializer)
    document: dict[str, Any] = {"status": state, "result": result, "traceback": traceback}
    document |= {"children": children if children is None else list(children), "date_done": done}
    if group_id is not None:
        document["group_id"] = group_id
    if parent_id is not None:
        document["parent_id"] = parent_id
    document |= {**(extra or {}), "task_id": id}
    data = serialization.dumps(document, serializer)[0]
    return Record(id, data if compression is None else _compressed(data, compression), state, ttl)


def _compressed(document: bytes, compression: str) -> bytes:
    packed, content_type = serialization.compress(document, compression)
    return b"".join((_COMPRESSED, content_type.encode(), b"\x00", packed))


def read(document: bytes, conf: Settings) -> dict[str, Any]:
    """`decode` as the settings say: `result_serializer`, if `result_accept_content` lists it.

    Raises ContentDisallowed where it does not, before it looks at the document.
    """
    return decode(document, conf.result_serializer, _accepted(conf))


def _accepted(conf: Any) -> frozenset[str]:
    """The content types that results are read in.  Raises ContentDisallowed without that of their own."""
    serializer = conf.result_serializer
    names = conf.accept_content if conf.result_accept_content is None else conf.result_accept_content
    accept = serialization.accepted(names)
    if serialization.CONTENT_TYPES.get(serializer, serializer) not in accept:
        setting = "accept_content" if conf.result_accept_content is None else "result_accept_content"
        raise ContentDisallowed(
            f"results are written in {serializer!r} (result_serializer), which {setting}={list(names)!r} "
            f"does not list; set result_accept_content=[{serializer!r}] to read them"
        )
    return accept


def decode(
    document: bytes, serializer: str = "json", accept: frozenset[str] = serialization.SAFE
) -> dict[str, Any]:
    """The document as a dict with at least `status`, `result`, `task_id`; exceptions rebuilt.

    Raises BackendGetMetaError where it is not a result document, SecurityError where it is
    not signed by anybody trusted.
    """
    return _checked(plain(document, serializer, accept), document)


def plain(
    document: bytes, serializer: str = "json", accept: frozenset[str] = serialization.SAFE
) -> dict[str, Any]:
    """The document as it was written, an exception still as what describes it.  Raises as `decode`."""
    content_type = serialization.CONTENT_TYPES.get(serializer, serializer)
    try:
        if document.startswith(_COMPRESSED):
            compression, _, packed = document[len(_COMPRESSED) :].partition(b"\x00")
            document = serialization.decompress(packed, compression.decode(errors="replace"))
        meta: dict[str, Any] = serialization.loads(document, content_type, "utf-8", accept)
    except DecodeError as error:
        if isinstance(error.__cause__, SecurityError):
            raise error.__cause__ from None
        raise BackendGetMetaError(
            f"a stored result is not {serializer}: {error}; "
            f"result_serializer must be the same in workers and clients"
        ) from error
    return meta


def read_all(documents: Sequence[bytes], conf: Any) -> list[dict[str, Any]]:
    """`read` of each; as one document, in a third of the time, where they are JSON."""
    if conf.result_serializer == "json" and not any(map(_is_compressed, documents)):
        try:
            whole = b"[" + b",".join(documents) + b"]"
            metas = serialization.loads(whole, "application/json", "utf-8", _accepted(conf))
            if len(metas) == len(documents):
                return [_checked(meta, document) for meta, document in zip(metas, documents, strict=True)]
        except DecodeError:
            pass  # one by one it is seen which
    return [read(document, conf) for document in documents]


def returned(documents: Sequence[bytes], conf: Any) -> list[Any] | None:
    """The values of plain documents of calls that have returned; None where one is anything else.

    Of a document as `encode` writes it nothing but the value is decoded, and all values at once:
    in a third of the time that `read_all` takes.
    """
    if conf.result_serializer != "json":
        return None
    begin, middle = len(_HEAD), len(_MIDDLE)
    found = []
    for document in documents:
        end = document.rfind(_MIDDLE)
        if end < 0 or not document.startswith(_HEAD) or not _TAIL(document, end + middle):
            return None
        found.append(document[begin:end])
    whole = b"[" + b",".join(found) + b"]"
    try:
        values: list[Any] = serialization.loads(whole, "application/json", "utf-8", _accepted(conf))
    except DecodeError:
        return None
    return values if len(values) == len(documents) else None


def _is_compressed(document: bytes) -> bool:
    return document.startswith(_COMPRESSED)


def _checked(meta: Any, document: bytes) -> dict[str, Any]:
    if not isinstance(meta, dict) or not isinstance(meta.get("status"), str):
        raise BackendGetMetaError(f"a stored result has no status: {document[:80]!r}")
    result = meta.setdefault("result", None)
    if result is not None and meta["status"] in states.EXCEPTION_STATES:
        meta["result"] = rebuild_exception(result)
    return meta


class ExceptionDocument(dict[str, Any]):
    """What a document holds of `error`, fit for JSON."""

    error: BaseException

    def fit_for(self, serializer: str) -> Any:
        """What a document in `serializer` holds of it."""
        if serializer == "pickle" and (found := _picklable(self.error)) is not None:
            return found
        return {**self, "exc_message": [_carried(arg, serializer) for arg in self.error.args]}


def exception_document(error: BaseException) -> dict[str, Any]:
    """What a document holds of `error`; arguments that can't be carried become their repr."""
    kind = type(error)
    name = kind.__qualname__.rpartition("<locals>.")[2]
    module = kind.__module__
    if module == "minicelery.exceptions":
        module = exceptions.WIRE_MODULES.get(name, module)
    document = ExceptionDocument(
        exc_type=name, exc_message=[_carried(arg) for arg in error.args], exc_module=module
    )
    document.error = error
    return document


def _picklable(error: BaseException) -> BaseException | None:
    """`error`, if a reader can have it: of a module, and surviving to be pickled and read."""
    if type(error).__module__ == "__main__" or type(error).__module__.startswith("minicelery."):
        return None  # the reader's own __main__ is another one, and Celery does not know our modules
    try:
        back = serialization.pickle.decode(serialization.pickle.encode(error))
    except (DecodeError, EncodeError):
        return None
    return error if type(back) is type(error) else None


def _carried(value: Any, serializer: str = "json") -> Any:
    try:
        serialization.dumps(value, serializer)
    except EncodeError:
        try:
            return repr(value)[:1024]
        except Exception as error:  # a user's __repr__
            return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return value


def rebuild_exception(document: Any) -> BaseException:
    """The exception that `document` describes.

    A class of an imported module if it is an exception class; else a new class of that
    name; where its constructor refuses the arguments, an Exception that quotes them.
    Raises SecurityError where the name is of something that is not an exception.
    """
    if isinstance(document, CarriedException):
        module, name, arguments = document.args[:3]
        document = {"exc_type": name, "exc_message": list(arguments), "exc_module": module}
    if isinstance(document, BaseException):
        if isinstance(document, _TOO_MUCH):
            return _stand_in(type(document).__name__, type(document).__module__)(*document.args)
        return document
    if not isinstance(document, dict) or not isinstance(document.get("exc_type"), str):
        return Exception(document)
    name, module = document["exc_type"], document.get("exc_module")
    arguments = document.get("exc_message", "")
    if isinstance(arguments, (list, tuple)):
        arguments = tuple(arguments)
    else:
        arguments = (arguments,)
    kind = _exception_class(name, module if isinstance(module, str) else None)
    try:
        return kind(*arguments)
    except Exception:  # its own __init__ wants something else
        return Exception(f"{kind}({list(arguments)!r})")


_OURS = frozenset({"celery.exceptions", "billiard.exceptions", "kombu.exceptions", "minicelery.exceptions"})


def _exception_class(name: str, module: str | None) -> type[BaseException]:
    if module in _OURS and isinstance(ours := getattr(exceptions, name, None), type):
        found: Any = ours
    else:
        found = sys.modules.get(module or "builtins")
        for part in name.split("."):
            # Not getattr: a module's own __getattr__ may import what it is asked for.
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if found is None:
        return _stand_in(name, module)
    if not isinstance(found, type) or not issubclass(found, BaseException):
        raise SecurityError(
            f"a result names {module}.{name} as its exception, which is not an exception class"
        )
    if issubclass(found, _TOO_MUCH):
        return _stand_in(name, module)
    return found


def _stand_in(name: str, module: str | None) -> type[Exception]:
    # Python takes neither NUL nor lone surrogates in the name of a class.
    name = name.encode(errors="replace").decode().replace("\0", "?")
    return type(name, (Exception,), {"__module__": module or "celery.exceptions"})
