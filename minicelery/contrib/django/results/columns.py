"""A result's document as the columns of a row, and back, byte for byte."""

from __future__ import annotations

import hashlib
from typing import Any

from minicelery import states
from minicelery.contrib.django.models.results import LONGEST, TaskResult
from minicelery.contrib.django.times import aware
from minicelery.exceptions import DecodeError
from minicelery.message import Record
from minicelery.serialization import decode_json, encode_json

JSON = ("application/json", "utf-8")
BINARY = ("application/octet-stream", "binary")

_WIDTHS = {
    field.attname: field.max_length
    for field in TaskResult._meta.concrete_fields
    if field.max_length is not None
}
_APART = {"name": "task_name", "args": "task_args", "kwargs": "task_kwargs", "worker": "worker"}
"""Keys of a document that have a column of their own; the others are in `meta`."""


def key_of(id: str) -> str:
    """What a column has in place of an id: itself, or a digest where databases would refuse it."""
    if len(id) <= LONGEST and _storable(id) == id:
        return id
    return f"sha256:{hashlib.sha256(id.encode('utf-8', 'surrogatepass')).hexdigest()}"


def columns_of(record: Record) -> dict[str, Any]:
    """The columns of a record's row, apart from its times."""
    row: dict[str, Any] = dict.fromkeys(
        ("task_name", "task_args", "task_kwargs", "worker", "result", "traceback", "meta")
    )
    row |= {
        "status": record.state or states.PENDING,
        "content_type": BINARY[0],
        "content_encoding": BINARY[1],
    }
    row["document"] = record.document
    row["status"] = _storable(row["status"], _WIDTHS["status"])
    try:
        document = decode_json(record.document)
    except (DecodeError, ValueError):  # in another serializer, or compressed
        return row
    if not isinstance(document, dict):
        return row
    row["content_type"], row["content_encoding"] = JSON
    row["result"] = encode_json(document.get("result"))
    traceback = document.get("traceback")
    row["traceback"] = traceback if isinstance(traceback, str) else None
    for key, column in _APART.items():
        if (value := document.get(key)) is not None:
            row[column] = encode_json(value) if key.endswith("args") else str(value)
    if isinstance(periodic := document.get("periodic_task_name"), str):
        row["periodic_task_name"] = periodic
    left = {"status", "result", "traceback", "task_id", *_APART}
    row["meta"] = encode_json({key: value for key, value in document.items() if key not in left})
    row = {name: _storable(value, _WIDTHS.get(name)) for name, value in row.items()}
    if _whole(record.id, row) == record.document and key_of(record.id) == record.id:
        row["document"] = None
    return row


def _storable(value: Any, width: int | None = None) -> Any:
    """A text without what a database refuses: NUL, halves of surrogate pairs, and what is too long."""
    if not isinstance(value, str):
        return value
    text = value if value.isascii() else value.encode("utf-8", "replace").decode()
    return text.replace("\0", "\\0")[:width]


def document_of(row: Any) -> bytes:
    """The document of a `TaskResult`; also of one that django-celery-results has written."""
    if row.document is not None:
        return bytes(row.document)
    columns = {
        name: getattr(row, name) for name in (*_APART.values(), "status", "result", "traceback", "meta")
    }
    if columns["meta"] is None or '"date_done"' not in columns["meta"]:
        meta = decode_json(columns["meta"] or "{}")
        ended = row.status in states.READY_STATES and row.date_done is not None
        done = aware(row.date_done).isoformat() if ended else None
        columns["meta"] = encode_json({"children": meta.get("children") or [], "date_done": done, **meta})
    return _whole(row.task_id, columns)


def _whole(id: str, columns: dict[str, Any]) -> bytes:
    """Put together in the order in which `minicelery.record` writes."""
    parts = [
        f'"status": {encode_json(columns["status"])}, "result": {columns["result"] or "null"}',
        f'"traceback": {encode_json(columns["traceback"])}',
    ]
    meta = decode_json(columns["meta"])
    first = {key: meta.pop(key) for key in ("children", "date_done", "group_id", "parent_id") if key in meta}
    if first:
        parts.append(encode_json(first)[1:-1])
    for key, column in _APART.items():
        if (value := columns[column]) is not None:
            parts.append(f'"{key}": {value if key.endswith("args") else encode_json(value)}')
    if meta:
        parts.append(encode_json(meta)[1:-1])
    parts.append(f'"task_id": {encode_json(id)}')
    return f"{{{', '.join(parts)}}}".encode()
