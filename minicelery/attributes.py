"""The attributes of a task: what their values must be, checked where the task is declared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from minicelery.modules import callers_level
from minicelery.options import (
    MOST_SECONDS,
    OF_A_TASK,
    check_dates,
    check_limits,
    check_priority,
    check_retry,
    check_retry_names,
    nearest,
)
from minicelery.settings import kinds
from minicelery.settings.kinds import Kind, optional
from minicelery.task import FromConfig, Task

DECORATOR = frozenset(
    "name base bind shared lazy filter typing pydantic pydantic_strict pydantic_context pydantic_dump_kwargs".split()
)
"""Options of `@app.task` that are no attributes of the task, or need not be."""
ADDRESS = ("queue", "exchange", "exchange_type", "routing_key", "delivery_mode", "priority")
"""Attributes that Celery 6 will not read any more; `task_routes` has them."""
FROM_CONFIG = tuple(name for name, value in vars(Task).items() if isinstance(value, FromConfig))
"""Attributes that are settings until the task has its own."""

_KNOWN = frozenset(
    {
        name
        for owner in Task.__mro__[:-1]
        for name in vars(owner)
        if not name.startswith("_") and name not in ("app", "request", "abstract")
    }
    | DECORATOR
    | OF_A_TASK
    | set(ADDRESS)
    | {"immediate", "mandatory"}
)
_FIXED = {
    "backend": "the results of all tasks of an app go to its result_backend",
    "Strategy": "minicelery's workers have no strategies; override before_start or __call__ instead",
    "Request": "override on_failure, or connect to task_failure; time limits arrive there too",
    "run": "the function is what runs",
    "app": "a task belongs to the app that declares it; of all apps: shared_task",
    "request": "it is the attempt that runs",
}


def _delay(value: Any) -> Any:
    found: Any = kinds.DURATION.convert(value)
    if found < MOST_SECONDS:
        return found
    raise ValueError(f"below {MOST_SECONDS:.0f} seconds")


def _pairs(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and [type(text) for text in pair] == [str, str] for pair in value
    ):
        return value
    raise ValueError


def _exceptions(value: Any) -> Any:
    found = (value,) if isinstance(value, type) else value
    if not isinstance(found, (list, tuple, set, frozenset)):
        raise ValueError
    for one in found:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise ValueError(f"{one!r:.80} is no exception class")
    return tuple(found)


def _priority(value: Any) -> Any:
    return check_priority(value)


def _expires(value: Any) -> Any:
    if isinstance(value, datetime):
        return value
    return _delay(value)


def _address(value: Any) -> Any:
    if (isinstance(value, str) and value) or isinstance(getattr(value, "name", None), str):
        return value
    raise ValueError


def _backoff(value: Any) -> Any:
    return value if isinstance(value, bool) else kinds.number(0).convert(value)


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    raise ValueError


_EXCEPTIONS = Kind("an exception class, or a tuple of them", _exceptions)
_ADDRESS = Kind("a name, or an object that has one", _address)
_DELAY = Kind("a number of seconds >= 0 or a timedelta", _delay)
_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(
        (
            "ignore_result", "store_errors_even_if_ignored", "track_started", "acks_late", "acks_on_failure",
            "acks_on_timeout", "acks_on_failure_or_timeout", "reject_on_worker_lost", "retry_on_worker_lost",
            "store_eager_result", "typing", "immediate", "mandatory",
        ),
        optional(kinds.BOOLEAN),
    ),
    **dict.fromkeys(("trail", "send_events", "retry_jitter"), kinds.BOOLEAN),
    **dict.fromkeys(("autoretry_for", "dont_autoretry_for", "throws"), _EXCEPTIONS),
    **dict.fromkeys(("queue", "exchange", "routing_key"), optional(_ADDRESS)),
    "max_retries": optional(kinds.COUNT),
    "default_retry_delay": _DELAY,
    "retry_kwargs": kinds.MAPPING,
    "retry_backoff": Kind("a boolean or a number of seconds >= 0", _backoff),
    "retry_backoff_max": kinds.SECONDS,
    "resultrepr_maxsize": kinds.COUNT,
    "expires": optional(Kind("a number of seconds >= 0, a timedelta or a datetime", _expires)),
    "priority": optional(Kind("a whole number from 0 to 9 (on RabbitMQ up to 255)", _priority)),
    "serializer": optional(kinds.SERIALIZER),
    "compression": optional(kinds.COMPRESSION),
    "delivery_mode": optional(kinds.DELIVERY_MODE),
    "exchange_type": optional(kinds.EXCHANGE_TYPE),
    "from_config": Kind("a tuple of pairs: an attribute's name and a setting's", _pairs),
}  # fmt: skip


def check_names(name: str, options: Mapping[str, Any], base: type) -> None:
    """Refuse options that can't be given, or are nearly known ones.  Raises TypeError.

    Any other attribute may be given, and those that a class of the user's has.
    """
    for option, value in options.items():
        if option in _FIXED:
            raise TypeError(f"{option}= is not an option of a task ({name}): {_FIXED[option]}")
        if option in _KNOWN:
            if callable(getattr(Task, option, None)) and not callable(value):
                raise TypeError(f"{option}= is not an option of a task ({name}): it would hide a method")
        elif not hasattr(base, option) and (near := nearest(option, _KNOWN)):
            raise TypeError(
                f"{option}={value!r:.80} of {name} is not an option of a task; did you mean {near}=?"
            )


def check_values(name: str, values: Mapping[str, Any]) -> None:
    """Refuse values of attributes that can't work.  Raises ValueError naming what is accepted."""
    for attribute, value in values.items():
        kind = _KINDS.get(attribute)
        if kind is None or (value is None and kind.takes_none) or _is_read(value):
            continue
        try:
            kind.convert(value)
        except ValueError as error:
            hint = f" ({error})" if str(error) else ""
            raise ValueError(f"{attribute}={value!r:.80} of {name}: expected {kind.expected}{hint}") from None
    if isinstance(values.get("retry_kwargs"), Mapping):
        _check_retry_kwargs(name, values["retry_kwargs"])
    soft, hard = values.get("soft_time_limit"), values.get("time_limit")
    if not any(_is_read(limit) for limit in (soft, hard)):
        check_limits(hard, soft, name)


def _is_read(value: Any) -> bool:
    """Whether it is a property or the like, whose value is known only when it is read."""
    return hasattr(type(value), "__get__") and not callable(value)


def _check_retry_kwargs(name: str, given: Mapping[str, Any]) -> None:
    check_retry_names(name, given)
    try:
        get = given.get
        check_retry(name, get("args"), get("kwargs"), get("exc"), get("max_retries"))
        check_dates(name, given, timezone.utc)
    except (TypeError, ValueError) as error:
        raise type(error)(f"retry_kwargs= of {name}: {error}") from None


def check_flags(name: str, **flags: Any) -> None:
    """Refuse flags of `@app.task` that are none.  Raises ValueError."""
    for option, value in flags.items():
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            raise ValueError(f"{option}={value!r:.80} of {name}: expected a boolean")


def own_values(kind: type) -> dict[str, Any]:
    """The attributes that the class and its bases have set, up to `Task` itself."""
    found: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        if owner is not Task and issubclass(owner, Task):
            found |= {name: value for name, value in vars(owner).items() if not name.startswith("__")}
    return found


def fill_from_settings(kind: type[Task[..., Any]]) -> None:
    """Have attributes that were set to None be the settings again, as Celery does."""
    for name in FROM_CONFIG:
        if kind.__dict__.get(name, kind) is None or _inherited(kind, name) is None:
            setattr(kind, name, vars(Task)[name])
    for name, setting in kind.from_config:
        if getattr(kind, name, None) is None:
            setattr(kind, name, FromConfig(setting))


def _inherited(kind: type, name: str) -> Any:
    return next(vars(owner)[name] for owner in kind.__mro__ if name in vars(owner))


def as_tuples(owner: Any) -> None:
    """Have single exception classes, and lists of them, be tuples: of a task, or of its class."""
    for name in ("autoretry_for", "dont_autoretry_for", "throws"):
        value = getattr(owner, name)
        if not isinstance(value, tuple):
            setattr(owner, name, _exceptions(value))


def warn_of_addresses(name: str, options: Mapping[str, Any]) -> None:
    """Celery's warning for attributes that say where calls go."""
    for option in ADDRESS:
        if option in options:
            warnings.warn(
                f"the task attribute {option}= of {name} is deprecated, and has no effect in Celery 6; use the "
                "task_routes setting, or give it with each call",
                DeprecationWarning,
                stacklevel=callers_level(),
            )
