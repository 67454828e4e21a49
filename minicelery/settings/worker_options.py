"""What may be given to a `Worker`: its options' values, checked before anything is made of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from minicelery.exceptions import ImproperlyConfigured
from minicelery.settings import kinds
from minicelery.settings.kinds import Kind, whole


def check_worker_options(options: Mapping[str, Any]) -> None:
    """Raises ImproperlyConfigured naming the option, its value and what is accepted; None is, everywhere."""
    for option, value in options.items():
        kind = _KINDS.get(option)
        if kind is None or value is None:
            continue
        try:
            kind.convert(value)
        except (ValueError, TypeError):
            raise ImproperlyConfigured(
                f"{option}={value!r:.80} of the worker: expected {kind.expected}, or None for the setting"
            ) from None


def _names(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, set, frozenset)) and all(isinstance(name, str) for name in value):
        return value
    raise ValueError


def _limit(value: Any) -> Any:
    if isinstance(value, (bool, timedelta)) or not isinstance(value, (int, float)):
        raise ValueError
    if not (0 < value < 1e9 and math.isfinite(value)):
        raise ValueError
    return value


def _range(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(number) is int for number in value):
        most, least = value
        if 1 <= least <= most:
            return value
    raise ValueError


def _count_or_auto(value: Any) -> Any:
    return value if value == "auto" else _CHILDREN.convert(int(value) if isinstance(value, str) else value)


def _path(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return value
    raise ValueError


_CHILDREN = whole(1, 100_000)
_QUEUES = Kind("names of queues, in a list or separated by commas", _names)
_LIMIT = Kind("seconds greater than 0", _limit)
_KINDS: Mapping[str, Kind] = {
    "hostname": Kind("text", kinds.TEXT.convert),
    "concurrency": Kind("a whole number from 1 to 100000, or 'auto'", _count_or_auto),
    "pool": Kind("the name of a pool", kinds.TEXT.convert),
    "queues": _QUEUES,
    "exclude_queues": _QUEUES,
    "loglevel": kinds.LOG_LEVEL,
    "logfile": Kind("a path", _path),
    "log_format": kinds.choice("text", "json"),
    "max_tasks_per_child": whole(1),
    "max_memory_per_child": whole(1),
    "prefetch_multiplier": kinds.COUNT,
    "time_limit": _LIMIT,
    "soft_time_limit": _LIMIT,
    "processes": _CHILDREN,
    "pool_start_method": kinds.choice("fork", "spawn"),
    "task_events": kinds.BOOLEAN,
    "without_heartbeat": kinds.BOOLEAN,
    "heartbeat_interval": _LIMIT,
    "autoscale": Kind("the most and the least number of children, such as (10, 2)", _range),
}
