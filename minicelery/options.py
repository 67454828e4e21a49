"""The options of a call: which there are, and what their values must be."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import EncodeError
from minicelery.message import Message, iso
from minicelery.modules import callers_level

if TYPE_CHECKING:
    from minicelery.settings import Settings

PLACED = frozenset(
    "task_id countdown eta expires queue priority serializer compression link link_error headers shadow "
    "ignore_result time_limit soft_time_limit retry retry_policy add_to_parent root_id parent_id group_id "
    "group_index chord chain retries reply_to argsrepr kwargsrepr exchange routing_key exchange_type "
    "delivery_mode declare connection producer router publisher timeout confirm_timeout mandatory immediate "
    "stamped_headers stamps replaced_task_nesting throw task_type logfile loglevel".split()
)
"""Options that have a place of their own in a message, or none at all; any other is a property."""

OF_A_RETRY = frozenset({"args", "kwargs", "exc", "throw", "eta", "countdown", "max_retries"})
"""Parameters of `Task.retry`, beside the options of a call."""
_PROPERTIES = frozenset(
    "content_type content_encoding correlation_id expiration message_id timestamp type user_id app_id "
    "cluster_id origin".split()
)
_KNOWN = PLACED | _PROPERTIES
RETRY_NAMES = PLACED | OF_A_RETRY

OF_A_TASK = frozenset(
    "max_retries default_retry_delay autoretry_for dont_autoretry_for retry_kwargs retry_backoff "
    "retry_backoff_max retry_jitter throws track_started acks_late acks_on_failure acks_on_timeout "
    "acks_on_failure_or_timeout reject_on_worker_lost retry_on_worker_lost rate_limit rate_limit_key "
    "concurrency_limit concurrency_limit_key unique unique_key store_errors_even_if_ignored send_events "
    "resultrepr_maxsize store_eager_result trail typing bind name base pydantic".split()
)
"""Options that a task has and a single call has not."""

MOST_SECONDS = 1e10
"""The longest time that anything may be told to wait: 317 years."""
_RETRY_POLICY = (
    "max_retries", "interval_start", "interval_step", "interval_max", "errback", "on_revive", "retry_errors",
)  # fmt: skip
_AMQP = ("amqp", "amqps", "pyamqp", "librabbitmq")


def check_call(
    name: str, options: Mapping[str, Any], conf: Settings, *, names: frozenset[str] = PLACED
) -> Mapping[str, Any]:
    """`options` of a call of the task `name`, once checked: times given as text read, stamps gathered.

    `names` are those that may have been meant by an unknown one.
    Raises TypeError for an option that is nearly a known one, ValueError for a value that can't work.
    """
    if not _KNOWN.issuperset(options):
        _check_names(name, options, names)
    for option, value in options.items():
        check = _CHECKS.get(option)
        if check is not None and value is not None and not check[0](value):
            raise ValueError(f"{option}={value!r:.80} of {name}: expected {check[1]}")
    if (priority := options.get("priority")) is not None:
        check_priority(priority, name=name, most=most_priority(conf))
    if options.get("retry_policy"):
        _check_policy(name, options["retry_policy"])
    if "link" in options or "link_error" in options or "chain" in options:
        _check_followers(name, options, conf)
    if isinstance(options.get("eta"), str):
        options = {**options, "eta": _read_time(name, "eta", options["eta"])}
    if isinstance(options.get("expires"), str):
        options = {**options, "expires": _read_time(name, "expires", options["expires"])}
    if options.get("stamped_headers"):
        options = _stamped(name, options)
    return options


def check_retry_names(name: str, options: Mapping[str, Any]) -> None:
    """Raises TypeError for an option that is nearly one of a retry."""
    _check_names(name, {key: value for key, value in options.items() if key not in OF_A_RETRY}, RETRY_NAMES)


def check_arguments_shape(name: str, args: Any, kwargs: Any) -> None:
    """Raises TypeError unless these are positional arguments and keyword arguments."""
    if not isinstance(args, (list, tuple)):
        raise TypeError(f"args={args!r:.80} of {name}: expected a list or tuple")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise TypeError(f"kwargs={kwargs!r:.80} of {name}: expected a mapping with text keys")


def check_retry(
    name: str, args: Any, kwargs: Any, exc: BaseException | type[BaseException] | str | None, max_retries: Any
) -> None:
    """Raises TypeError or ValueError unless `Task.retry` can work with these."""
    check_arguments_shape(name, () if args is None else args, {} if kwargs is None else kwargs)
    kind = exc if isinstance(exc, type) else type(exc)
    if exc is not None and not issubclass(kind, (BaseException, str)):
        raise TypeError(f"exc={exc!r:.80} of a retry of {name}: expected an exception, its text, or None")
    if max_retries is not None and not (_is_number(max_retries) and max_retries >= 0):
        raise ValueError(
            f"max_retries={max_retries!r:.80} of a retry of {name}: expected a number >= 0, or None"
        )


def check_dates(name: str, options: Mapping[str, Any], zone: tzinfo) -> None:
    """Raises ValueError unless `countdown`, `eta` and `expires` could be sent."""
    if options.get("countdown") is not None or options.get("eta") is not None:
        due_time(name, options.get("countdown"), options.get("eta"), 0.0, zone)
    if options.get("expires") is not None:
        _expiry_time(name, options["expires"], 0.0, zone)


# -- names ---------------------------------------------------------------------------------


def _check_names(name: str, options: Mapping[str, Any], names: frozenset[str]) -> None:
    stamps = options.get("stamped_headers") or ()
    for option, value in options.items():
        if option in _KNOWN or option in stamps:
            continue
        if option in OF_A_TASK:
            warnings.warn(
                f"{option}={value!r:.80} has no effect on one call of {name}: it is an option of the task, "
                f"@app.task({option}=…)",
                stacklevel=callers_level(),
            )
        elif near := nearest(option, names):
            raise TypeError(
                f"{option}={value!r:.80} of {name} is not an option of a call; did you mean {near}=?"
            )


@lru_cache(maxsize=1000)
def nearest(word: str, known: frozenset[str]) -> str:
    """The one of `known` that `word` most likely misspells; empty where it looks like none of them."""
    if len(word) < 3 or word.startswith(("x-", "_")):
        return ""
    plain = word.replace("_", "").lower()
    for one in known:
        if one.replace("_", "") == plain:
            return one
    return next(iter(get_close_matches(word, sorted(known), 1, 0.8)), "")


# -- values --------------------------------------------------------------------------------


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, int)) and value in (0, 1)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _is_duration(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and (value.isascii() or _has_bytes(value))


def _has_bytes(text: str) -> bool:
    """Whether it can be written as UTF-8: halves of surrogate pairs can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_signature(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_name(value.get("task"))


def _is_mode(value: Any) -> bool:
    return value in ("transient", "persistent") or (type(value) is int and value in (1, 2))


def _has_place(value: Any) -> bool:
    """Whether it is a connection or producer to the app's own broker; see `minicelery.connections`."""
    return getattr(value, "leads_to_app", False) is True


_Check = tuple[Callable[[Any], bool], str]
_FLAG: _Check = (_is_flag, "True or False")
_TEXT: _Check = (_is_text, "text")
_COUNT: _Check = (_is_count, f"a whole number, 0 or greater and below {1 << 31}")
_PLACE: _Check = (
    _has_place,
    "a connection or producer of the app, e.g. of app.producer_or_acquire(); calls go to broker_url",
)
_CHECKS: Mapping[str, _Check] = {
    **dict.fromkeys(("ignore_result", "retry", "add_to_parent", "throw", "mandatory", "immediate"), _FLAG),
    **dict.fromkeys(("root_id", "parent_id", "group_id", "reply_to", "argsrepr", "kwargsrepr"), _TEXT),
    **dict.fromkeys({"shadow", *_PROPERTIES} - {"timestamp", "expiration"}, _TEXT),
    "timestamp": (lambda value: type(value) is int and 0 <= value < 1 << 63, "unix seconds, a whole number"),
    "expiration": (
        lambda value: _is_duration(value) or (_is_name(value) and value.isdecimal()),
        "a number >= 0, or its text; calls expire with expires=",
    ),
    "serializer": (_is_name, "the name of a serializer"),
    "compression": (_is_name, "the name of a compression, or None for the task's own"),
    "delivery_mode": (_is_mode, "1 or 2, or their names 'transient' and 'persistent'"),
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _COUNT),
    **dict.fromkeys(("timeout", "confirm_timeout"), (_is_duration, "seconds, 0 or greater")),
    **dict.fromkeys(("connection", "producer", "publisher"), _PLACE),
    "retry_policy": (lambda value: isinstance(value, Mapping), f"a mapping of {', '.join(_RETRY_POLICY)}"),
    "chain": (
        lambda value: isinstance(value, (list, tuple)) and all(map(_is_signature, value)),
        "a list of signatures",
    ),
    "chord": (_is_signature, "a signature"),
    "declare": (_is_list, "a list of queues and exchanges"),
    "stamped_headers": (_is_list, "a list of names"),
    "stamps": (lambda value: isinstance(value, Mapping), "a mapping"),
    "router": (lambda value: False, "None; put routers into task_routes"),
}


def _check_followers(name: str, options: Mapping[str, Any], conf: Settings) -> None:
    """Refuse here what the worker that sends the followers of a call would refuse."""
    for option in ("link", "link_error", "chain"):
        given = options.get(option)
        for follower in given if isinstance(given, (list, tuple)) else (given,):
            if _is_signature(follower):
                try:
                    _check_follower(follower, conf)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{option}= of {name}: {error}") from None
                except RecursionError:
                    pass  # it contains itself, which the serializer says better


def _check_follower(follower: Mapping[str, Any], conf: Settings) -> None:
    name, options = follower["task"], follower.get("options")
    check_arguments_shape(name, follower.get("args") or (), follower.get("kwargs") or {})
    if not options:
        return
    if not isinstance(options, Mapping):
        raise TypeError(f"options={options!r:.80} of {name}: expected a mapping")
    check_dates(name, check_call(name, options, conf), conf.zone())
    check_limits(options.get("time_limit"), options.get("soft_time_limit"), name)


def _check_policy(name: str, policy: Mapping[str, Any]) -> None:
    for key, value in policy.items():
        if key not in _RETRY_POLICY:
            near = nearest(str(key), frozenset(_RETRY_POLICY))
            hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(_RETRY_POLICY)}"
            raise ValueError(f"retry_policy= of {name} has no key {key!r}{hint}")
        if key == "max_retries" and value is not None and not _is_count(value):
            raise ValueError(
                f"retry_policy= of {name}: max_retries={value!r:.80}: expected {_COUNT[1]}, or None"
            )
        if key.startswith("interval_") and not _is_duration(value):
            raise ValueError(f"retry_policy= of {name}: {key}={value!r:.80}: expected seconds, 0 or greater")


def _stamped(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the values of all `stamped_headers` in `stamps`."""
    names = list(options["stamped_headers"])
    stamps = dict(options.get("stamps") or {})
    for stamp in names:
        if stamp in options:
            stamps[stamp] = options[stamp]
        elif stamp not in stamps:
            raise ValueError(f"stamped_headers= of {name} names {stamp!r}, and there is no option {stamp}=")
    left = {option: value for option, value in options.items() if option in _KNOWN or option not in names}
    return {**left, "stamped_headers": names, "stamps": stamps}


def publish_attempts(conf: Settings, options: Mapping[str, Any]) -> int | None:
    """How often a publish may be tried by `retry` and `retry_policy`; None: until the deadline."""
    retry = options.get("retry")
    if not (conf.task_publish_retry if retry is None else retry):
        return 1
    policy = {**conf.task_publish_retry_policy, **(options.get("retry_policy") or {})}
    most = policy.get("max_retries", 3)
    return None if most is None else int(most) + 1


def most_priority(conf: Settings) -> int:
    """The highest priority that the app's broker has: 255 on RabbitMQ, else 9."""
    url = conf.broker_url
    return 255 if not url or url.partition(":")[0].partition("+")[0] in _AMQP else 9


def check_priority(priority: Any, *, name: str = "", most: int = 255) -> int:
    """`priority` itself.  Raises ValueError."""
    if type(priority) is int and 0 <= priority <= most:
        return priority
    if isinstance(priority, int) and not isinstance(priority, bool) and 0 <= priority <= most:
        return int(priority)  # of an IntEnum
    of = f" of {name}" if name else ""
    beyond = " (on RabbitMQ up to 255)" if most == 9 else ", or up to 255 where its queue has so many"
    raise ValueError(f"priority={priority!r:.80}{of}: expected a whole number from 0 to 9{beyond}")


def check_text(value: Any, option: str, name: str) -> str | None:
    """`value` itself, which is text or None.  Raises ValueError."""
    if value is None or (isinstance(value, str) and value and (value.isascii() or _has_bytes(value))):
        return value
    raise ValueError(f"{option}={value!r:.80} of {name}: expected text that is not empty")


def check_limits(hard: Any, soft: Any, name: str) -> None:
    """Raises ValueError unless these are time limits that go together."""
    for option, limit in (("time_limit", hard), ("soft_time_limit", soft)):
        if limit is not None and not (_is_duration(limit) and 0 < limit < 1e9):
            raise ValueError(f"{option}={limit!r:.80} of {name}: expected seconds greater than 0")
    if hard is not None and soft is not None and soft > hard:
        raise ValueError(f"{name}: soft_time_limit={soft:g} must not be greater than time_limit={hard:g}")


_PLAIN = frozenset({str, int, float, bool, type(None)})


def check_carried(name: str, what: str, values: Mapping[str, Any]) -> None:
    """Raises EncodeError for a value that a message header can't carry."""
    for key, value in values.items():
        if type(key) is not str:
            raise EncodeError(f"{what} {key!r:.80} of {name} has a name that is no text")
        kind = type(value)
        if kind in _PLAIN or (kind is list and _PLAIN.issuperset(map(type, value))):
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise EncodeError(
                f"{what} {key!r} of {name} is a {type(value).__name__}, which a message header cannot carry"
            ) from None


# -- times ---------------------------------------------------------------------------------


def due_time(name: str, countdown: Any, eta: Any, now: float, zone: tzinfo) -> float:
    """When the call is due, in unix seconds; a naive `eta` is read in `zone`.  Raises ValueError."""
    if countdown is not None:
        seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else countdown
        if _is_number(seconds) and abs(seconds) < MOST_SECONDS:
            return now + float(seconds)
        raise ValueError(
            f"countdown={countdown!r:.80} of {name}: expected seconds or a timedelta{_too_long(seconds)}"
        )
    if isinstance(eta, str):
        eta = _read_time(name, "eta", eta)
    if not isinstance(eta, datetime):
        raise ValueError(f"eta={eta!r:.80} of {name}: expected a datetime, or its text in ISO 8601")
    return eta.timestamp() if eta.tzinfo else eta.replace(tzinfo=zone).timestamp()


def set_expiry(message: Message, expires: Any, now: float, zone: tzinfo) -> None:
    """Have the message expire; a naive datetime is read in `zone`.  Raises ValueError."""
    if isinstance(expires, str):
        expires = _read_time(message.task, "expires", expires)
    message.expires = _expiry_time(message.task, expires, now, zone)
    given = isinstance(expires, datetime)
    message.headers["expires"] = expires.isoformat() if given else iso(message.expires, zone)
    message.headers_text = ""
    left = message.expires - now
    if left <= 0:
        warnings.warn(
            f"{message.task}[{message.id}] expired {-left:.0f} s before it was sent: it will be revoked",
            stacklevel=callers_level(),
        )
    message.properties["expiration"] = str(max(0, round(left * 1000)))


def _expiry_time(name: str, expires: Any, now: float, zone: tzinfo) -> float:
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if isinstance(expires, datetime):
        aware = expires if expires.tzinfo else expires.replace(tzinfo=zone)
        return aware.timestamp()
    if _is_number(expires) and abs(expires) < MOST_SECONDS:
        return now + float(expires)
    raise ValueError(
        f"expires={expires!r:.80} of {name}: expected seconds, a timedelta or a datetime{_too_long(expires)}"
    )


def _too_long(value: Any) -> str:
    return f" below {MOST_SECONDS:.0f} seconds" if _is_number(value) and abs(value) >= MOST_SECONDS else ""


def _read_time(name: str, option: str, text: str) -> datetime:
    try:
        # Before Python 3.11 `fromisoformat` knows no Z.
        return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        raise ValueError(
            f"{option}={text!r:.80} of {name}: expected a datetime, or its text in ISO 8601 such as "
            f"{datetime(2030, 1, 31, 12, tzinfo=timezone.utc).isoformat()}"
        ) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
