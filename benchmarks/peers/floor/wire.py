"""The floor's bytes: an envelope and a result document of Celery's shape, and a bare connection."""

from __future__ import annotations

import base64
import json
import socket
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import hiredis


def ready_envelope(task_id: str) -> dict[str, Any]:
    """A message as Celery's protocol 2 puts it on a Redis list."""
    embed = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
    headers = {"lang": "py", "task": "noop", "id": task_id, "root_id": task_id, "retries": 0}
    headers |= dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "parent_id"))
    headers |= {"timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}", "origin": "gen1234@host1"}
    headers |= {"ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {}}
    properties = {
        "correlation_id": task_id,
        "reply_to": "c3f0c3f0-0000-4000-8000-000000000000",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": task_id,
    }
    return {
        "body": base64.b64encode(json.dumps([[], {}, embed]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }


def result_document(task_id: str, result: Any) -> str:
    """A successful result as Celery stores it."""
    return json.dumps(
        {
            "status": "SUCCESS",
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": datetime.now(timezone.utc).isoformat(),
            "task_id": task_id,
        }
    )


class HandConnection:
    """A socket with commands packed and replies parsed by hiredis, nothing between."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = hiredis.Reader()

    def call(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send all commands at once; their replies in order."""
        self.socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        replies: list[Any] = []
        reader = self.reader
        while len(replies) < len(commands):
            reply = reader.gets()
            if reply is False:
                data = self.socket.recv(65536)
                if not data:
                    raise ConnectionError("Redis closed the connection")
                reader.feed(data)
                continue
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            replies.append(reply)
        return replies
