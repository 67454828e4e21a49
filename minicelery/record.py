"""Result documents: what a backend keeps of a task, byte for byte as Celery keeps it.

::

    {"status": "SUCCESS", "result": 5, "traceback": null, "children": [],
     "date_done": "2026-11-21T02:31:24.412344+00:00", "task_id": "…"}

An exception is an object of `exc_type`, `exc_message` (its arguments) and `exc_module`.  It
is rebuilt only from modules that are imported already; nothing is imported for it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone, tzinfo
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from minicelery import exceptions, serialization, states
from minicelery.exceptions import (
    BackendGetMetaError,
    DecodeError,
    EncodeError,
    SecurityError,
)
from minicelery.message import Record

_ANY_SERVED = frozenset(serialization.CONTENT_TYPES[name] for name in serialization.SERVED)


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
        return Record(id, f'{text}, "task_id": {quote(id)}}}'.encode(), state, ttl)
    document: dict[str, Any] = {"status": state, "result": result, "traceback": traceback}
    document |= {"children": children if children is None else list(children), "date_done": done}
    if group_id is not None:
        document["group_id"] = group_id
    if parent_id is not None:
        document["parent_id"] = parent_id
    document |= {**(extra or {}), "task_id": id}
    return Record(id, serialization.dumps(document, serializer)[0], state, ttl)


def decode(document: bytes, serializer: str = "json") -> dict[str, Any]:
    """The document as a dict with at least `status`, `result`, `task_id`; exceptions rebuilt.

    Raises BackendGetMetaError where it is not a result document.
    """
    content_type = serialization.CONTENT_TYPES.get(serializer, serializer)
    try:
        meta = serialization.loads(document, content_type, "utf-8", _ANY_SERVED)
    except DecodeError as error:
        raise BackendGetMetaError(
            f"a stored result is not {serializer}: {error}; "
            f"result_serializer must be the same in workers and clients"
        ) from error
    if not isinstance(meta, dict) or not isinstance(meta.get("status"), str):
        raise BackendGetMetaError(f"a stored result has no status: {document[:80]!r}")
    result = meta.setdefault("result", None)
    if result is not None and meta["status"] in states.EXCEPTION_STATES:
        meta["result"] = rebuild_exception(result)
    return meta


def exception_document(error: BaseException) -> dict[str, Any]:
    """What a document holds of `error`; arguments JSON can't carry become their repr."""
    kind = type(error)
    name = kind.__qualname__.rpartition("<locals>.")[2]
    module = kind.__module__
    if module == "minicelery.exceptions":
        module = exceptions.WIRE_MODULES.get(name, module)
    return {"exc_type": name, "exc_message": [_carried(arg) for arg in error.args], "exc_module": module}


def _carried(value: Any) -> Any:
    try:
        serialization.encode_json(value)
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
    if isinstance(document, BaseException):
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
    if issubclass(found, (SystemExit, KeyboardInterrupt, GeneratorExit)):
        return _stand_in(name, module)  # it would end the reader's process, not its call
    return found


def _stand_in(name: str, module: str | None) -> type[Exception]:
    # Python takes neither NUL nor lone surrogates in the name of a class.
    name = name.encode(errors="replace").decode().replace("\0", "?")
    return type(name, (Exception,), {"__module__": module or "celery.exceptions"})
