"""Stored entries as JSON documents, and back; what is no good is named and left out.

::

    {"task": "shop.tidy", "schedule": {"type": "interval", "seconds": 1800.0, "relative": false},
     "args": [], "kwargs": {}, "options": {}, "catch_up": "once", "enabled": true, "since": 1800000000.0}

The schedule is written as by `schedules.to_form`.  A document without a task enables or disables
an entry of the program.  `since` is when it was stored, or enabled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from minicelery.beat.entries import BadEntry, Template, bad, is_text, read_entry
from minicelery.schedules import from_form, to_form

if TYPE_CHECKING:
    from minicelery.app import Celery

LARGEST = 100_000
"""Bytes of one document."""
LONGEST_NAME = 1000
_KEPT = ("task", "schedule", "args", "kwargs", "options", "catch_up")
_FLAGS = ("enabled", "since")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a document says."""

    entry: Template | None
    """None where the entry is the program's."""
    enabled: bool
    since: float


def read_document(app: Celery, name: str, text: bytes) -> Stored:
    """Read a document.  Raises BadEntry; nothing in it is imported or evaluated."""
    label = f"the stored entry {name!r:.200}"
    fields = _fields(label, text)
    enabled, since = fields.pop("enabled", True), fields.pop("since", 0.0)
    if not isinstance(enabled, bool):
        raise bad(label, f"enabled={enabled!r:.80}", "true or false")
    if isinstance(since, bool) or not isinstance(since, (int, float)) or not 0 <= since < 1e11:
        raise bad(label, f"since={since!r:.80}", "unix seconds")
    if not fields:
        return Stored(None, enabled, float(since))
    form = fields.get("schedule")
    if not isinstance(form, Mapping):
        raise bad(label, f"schedule={form!r:.80}", "an object such as {'type': 'interval', 'seconds': 60}")
    try:
        fields["schedule"] = from_form(form, app)
    except Exception as error:  # what stands there may be anything
        raise bad(label, f"schedule={form!r:.80}: {error}", "a schedule as to_form writes it") from error
    entry = read_entry(app, name, fields, label)
    template = Template(
        name, entry.task, entry.timing, entry.args, entry.kwargs, entry.options, entry.catch_up,
        enabled=enabled, since=float(since),
    )  # fmt: skip
    return Stored(template, enabled, template.since)


def write_document(app: Celery, name: str, given: Mapping[str, Any], enabled: bool, since: float) -> bytes:
    """The document of an entry with the fields `given`.  Raises BadEntry where it can't be sent or stored."""
    if not is_text(name) or len(name) > LONGEST_NAME:
        raise BadEntry(f"the name {name!r:.80} of an entry; accepted: text of 1 to {LONGEST_NAME} characters")
    label = f"entry {name!r}"
    entry = read_entry(app, name, dict(given), label)
    try:
        form = to_form(entry.timing)
    except TypeError as error:
        raise BadEntry(f"{label}: schedule: {error}") from error
    fields = {
        "task": entry.task, "schedule": form, "args": list(entry.args), "kwargs": dict(entry.kwargs),
        "options": {key: _in_seconds(value) for key, value in entry.options.items()},
        "catch_up": entry.catch_up, "enabled": enabled, "since": since,
    }  # fmt: skip
    for field in ("args", "kwargs", "options"):
        _check_json(label, field, fields[field])
    return _dumped(label, fields)


def with_flags(text: bytes | None, enabled: bool, since: float) -> bytes:
    """The document, otherwise unchanged; without one, that of an entry of the program."""
    fields = json.loads(text) if text else {}
    return _dumped("", {**fields, "enabled": enabled, "since": since})


def _fields(label: str, text: bytes) -> dict[str, Any]:
    wanted = f"a JSON object with {', '.join((*_KEPT, *_FLAGS))}"
    if len(text) > LARGEST:
        raise bad(label, f"has {len(text)} bytes", f"at most {LARGEST}")
    try:
        fields = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise bad(label, f"{text!r:.80} can't be read: {error!s:.80}", wanted) from error
    if not isinstance(fields, dict):
        raise bad(label, f"is {text!r:.80}", wanted)
    for key in fields:
        if key not in _KEPT and key not in _FLAGS:
            raise bad(label, f"{key!r:.80} is unknown", wanted)
    return fields


def _dumped(label: str, fields: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:  # a number of thousands of digits
        raise bad(label, f"can't be stored: {error}", "what JSON has") from error
    if len(text) > LARGEST:
        raise bad(label, f"has {len(text)} bytes as JSON", f"at most {LARGEST}")
    return text


def _in_seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _check_json(label: str, where: str, value: Any, depth: int = 0) -> None:
    """Raises BadEntry, naming the place, unless JSON gives back what it was given."""
    if depth > 50:
        raise bad(label, f"{where} is nested too deeply", "50 levels")
    if isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(key, str):
                raise bad(label, f"{where} has the key {key!r:.80}", "text")
            _check_json(label, f"{where}[{key!r:.80}]", one, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            _check_json(label, f"{where}[{index}]", one, depth + 1)
    elif value is not None and not isinstance(value, (str, int, float)):
        raise bad(
            label, f"{where}={value!r:.80} can't be stored, it is a {type(value).__name__}", "what JSON has"
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise bad(label, f"{where}={value!r} can't be stored", "finite numbers")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
