"""The message of a retry: the same call once more, later."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from minicelery import announcing
from minicelery.message import COUNT_HEADER, PART_HEADER, TURN_HEADER, UNIQUE_HEADER, Message, iso
from minicelery.options import due_time
from minicelery.request import Request
from minicelery.routing.router import ADDRESS, Route

if TYPE_CHECKING:
    from minicelery.sending import Sender

_KEPT = (UNIQUE_HEADER, PART_HEADER)
_OF_THIS_ATTEMPT = frozenset({"redelivered", COUNT_HEADER, TURN_HEADER})


def retry_message(
    sender: Sender,
    request: Request,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    countdown: float | None,
    eta: datetime | None,
    options: Mapping[str, Any],
) -> Message:
    """The next attempt at `request`: same id, one retry more, everything else carried on."""
    old = request.message
    assert old is not None  # an attempt without a message is called directly
    task = request.task_object
    changed = args is not request.args or kwargs is not request.kwargs
    headers = {key: value for key, value in old.headers.items() if key not in _OF_THIS_ATTEMPT}
    headers["retries"] = request.retries + 1
    headers["parent_id"] = request.parent_id or request.id
    body, content_type, encoding = old.body, old.content_type, old.content_encoding
    properties = dict(old.properties)
    overrides: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    # Back to where it was delivered, past all exchanges: others that got it need no other try.
    route = Route(old.queue, "", old.queue, old.properties.get("delivery_mode", 2))
    if changed or overrides:
        if not ADDRESS.isdisjoint(overrides):
            address = {"queue": old.queue, **overrides}
            route = sender.router.route(task.name, args, kwargs, address, task)
        links = {
            "link": request.callbacks, "link_error": request.errbacks,
            "chain": request.chain, "chord": request.chord,
        }  # fmt: skip
        fresh = sender.message_with(
            task.name, args, kwargs,
            {
                "headers": request.headers, "shadow": request.shadow, "root_id": request.root_id,
                "group_id": request.group, "group_index": request.group_index,
                "time_limit": request.time_limit, "soft_time_limit": request.soft_time_limit,
                "priority": old.priority,
                "ignore_result": old.headers.get("ignore_result"),
                "retries": request.retries + 1, "parent_id": request.parent_id or request.id, "reply_to": request.reply_to,
                **links, **overrides, "task_id": request.id,
            },
            sender.defaults(task), str(request.id), None, route,
        )  # fmt: skip
        if "expires" not in overrides:
            fresh.headers["expires"], fresh.expires = old.headers.get("expires"), old.expires
        fresh.headers["origin"] = old.headers.get("origin")
        # Not that it is the body of a chord: the values are among its arguments now.
        fresh.headers.update((name, old.headers[name]) for name in _KEPT if name in old.headers)
        message = fresh
    else:
        message = Message(
            old.id, old.task, body, headers, old.queue, old.priority, content_type, encoding,
            "", old.queue, properties, None, old.expires,
        )  # fmt: skip
    now = time.time()
    zone = sender.app.conf.zone()
    message.due = due_time(task.name, countdown, eta, now, zone)
    message.headers["eta"] = iso(message.due, zone)
    announcing.both(sender.app, message)
    return message
