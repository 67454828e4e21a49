"""The options of a call: which there are, and what their values must be."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import EncodeError
from minicelery.message import Message, iso

if TYPE_CHECKING:
    from minicelery.settings import Settings

PLACED = frozenset(
    "task_id countdown eta expires queue priority serializer compression link link_error headers shadow "
    "ignore_result time_limit soft_time_limit retry retry_policy add_to_parent root_id parent_id group_id "
    "group_index chord chain retries reply_to argsrepr kwargsrepr exchange routing_key exchange_type "
    "delivery_mode declare connection producer router publisher timeout confirm_timeout mandatory immediate "
    "stamped_headers stamps replaced_task_nesting throw task_type".split()
)
"""Options that have a place of their own in a message, or none at all; any other is a property."""


def publish_attempts(conf: Settings, options: Mapping[str, Any]) -> int | None:
    """How often a publish may be tried by `retry` and `retry_policy`; None: until the deadline."""
    retry = options.get("retry")
    if not (conf.task_publish_retry if retry is None else retry):
        return 1
    policy = {**conf.task_publish_retry_policy, **(options.get("retry_policy") or {})}
    most = policy.get("max_retries", 3)
    return None if most is None else int(most) + 1


def check_priority(priority: Any) -> int:
    """`priority` itself.  Raises ValueError."""
    if type(priority) is int and 0 <= priority <= 255:
        return priority
    raise ValueError(f"priority={priority!r}: expected a whole number from 0 to 9")


def check_text(value: Any, option: str, name: str) -> str | None:
    """`value` itself, which is text or None.  Raises ValueError."""
    if value is None or (isinstance(value, str) and value):
        return value
    raise ValueError(f"{option}={value!r} of {name}: expected text that is not empty")


def check_limits(hard: Any, soft: Any, name: str) -> None:
    """Raises ValueError unless these are time limits that go together."""
    for option, limit in (("time_limit", hard), ("soft_time_limit", soft)):
        if limit is not None and (not isinstance(limit, (int, float)) or limit <= 0):
            raise ValueError(f"{option}={limit!r} of {name}: expected seconds greater than 0")
    if hard is not None and soft is not None and soft > hard:
        raise ValueError(f"{name}: soft_time_limit={soft:g} must not be greater than time_limit={hard:g}")


def check_carried(name: str, what: str, values: Mapping[str, Any]) -> None:
    """Raises EncodeError for a value that a message header can't carry."""
    for key, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise EncodeError(
                f"{what} {key!r} of {name} is a {type(value).__name__}, which a message header cannot carry"
            ) from None


def due_time(name: str, countdown: Any, eta: Any, now: float, zone: tzinfo) -> float:
    """When the call is due, in unix seconds; a naive `eta` is read in `zone`.  Raises ValueError."""
    if countdown is not None:
        if isinstance(countdown, timedelta):
            return now + countdown.total_seconds()
        if isinstance(countdown, (int, float)) and countdown == countdown and abs(countdown) < 1e10:
            return now + countdown
        raise ValueError(f"countdown={countdown!r} of {name}: expected seconds")
    if not isinstance(eta, datetime):
        raise ValueError(f"eta={eta!r} of {name}: expected a datetime")
    return eta.timestamp() if eta.tzinfo else eta.replace(tzinfo=zone).timestamp()


def set_expiry(message: Message, expires: Any, now: float, zone: tzinfo) -> None:
    """Have the message expire; a naive datetime is read in `zone`.  Raises ValueError."""
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if isinstance(expires, datetime):
        aware = expires if expires.tzinfo else expires.replace(tzinfo=zone)
        message.expires = aware.timestamp()
        message.headers["expires"] = expires.isoformat()
    elif isinstance(expires, (int, float)) and expires == expires and abs(expires) < 1e10:
        message.expires = now + expires
        message.headers["expires"] = iso(message.expires, zone)
    else:
        raise ValueError(f"expires={expires!r} of {message.task}: expected seconds or a datetime")
    message.headers_text = ""
    left = message.expires - now
    if left <= 0:
        warnings.warn(
            f"{message.task}[{message.id}] expired {-left:.0f} s before it was sent: it will be revoked",
            stacklevel=3,
        )
    message.properties["expiration"] = str(max(0, round(left * 1000)))
