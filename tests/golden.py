"""What Celery 5.7 wrote on Redis, captured once: the data that our own bytes are compared with."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_ORIGIN = re.compile(r'"gen\d+@[^"]+"')
_MOMENT = re.compile(r'"(eta|expires|date_done)": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}')
_BODY = re.compile(r'^\{"body": "([^"]*)"')


def load(name: str) -> Any:
    """The captured cases of `name`: messages, results or worker_messages."""
    return json.loads((DATA / f"celery_{name}_redis.json").read_text())


def messages() -> list[tuple[str, str, bytes]]:
    """Every captured message as `(case, key of the list, envelope)`."""
    return [
        (case, element["key"], element["raw"].encode())
        for case, elements in load("messages").items()
        for element in elements
    ]


def comparable(raw: str) -> str:
    """An envelope or result document with what differs each time made alike.

    Ids become U1, U2… in the order they appear, so equal ids stay equal; process names and
    the current time become constants; everything else, spaces and order too, stays.
    """
    if (found := _BODY.match(raw)) is not None:
        raw = f"{base64.b64decode(found[1])!r}\n{raw[found.end() :]}"
    seen: dict[str, str] = {}
    raw = _UUID.sub(lambda match: seen.setdefault(match[0], f"U{len(seen) + 1}"), raw)
    return _MOMENT.sub(r'"\1": "NOW', _ORIGIN.sub('"ORIGIN"', raw))
