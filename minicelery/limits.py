"""Limits that hold across workers: what a task asks for, and the names it is kept under.

A limit is a *gate*.  ``rate.<task>[:key]`` lets one run begin in each interval,
``room.<task>[:key]`` has room for so many runs at a time.  Who can't pass waits in the gate's
line, in the broker.  ``unique.<task>:<key>`` is held by the one call that is there.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from minicelery.exceptions import EncodeError, InvalidTaskError
from minicelery.serialization import encode_json

RATE, ROOM, UNIQUE = "rate.", "room.", "unique."
ONCE = f"{UNIQUE}:once:"
"""Begins a unique key under which one message is sent, not even the same one again."""
LEAD = f"{UNIQUE}:lead:"
"""Begins the key of a lease: who holds it leads."""
HELD = "sent already"
"""Who holds a key that begins with ONCE, as far as anybody is told."""
LEASE = 60.0
"""Seconds that a place in a room is kept for a run that nobody speaks for any more."""
LONGEST_UNIQUE = 86400.0
"""Seconds that ``unique=True`` lasts, should the call never come to an end."""
_LONGEST_KEY = 100
_PER = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATES = "a number of runs per second, or text such as '10/m', '3/s' or '100/h'; 0 or None for no limit"
_KEYS = "the name of a parameter, a sequence of names, or a function of the call's arguments"


@dataclass(slots=True)
class Ask:
    """What one delivery needs to begin."""

    id: str  # of its message: who holds the place
    turn: float | None = None  # it has waited since then
    room: str = ""  # the gate's name; empty: none
    size: int = 0
    lease: float = LEASE
    rate: str = ""
    interval: float = 0.0  # seconds between two runs


@dataclass(slots=True)
class Wait:
    """Why a delivery can't begin yet."""

    gate: str
    turn: float  # its place in the gate's line: unix seconds by the store's clock
    seconds: float = 0.0  # when to ask again, where the store keeps no messages


class TaskLimits:
    """The limits of one task."""

    __slots__ = ("interval", "name", "rate_key", "room_key", "size", "unique_key_of", "until_done", "window")

    def __init__(
        self, name: str, interval: float, rate_key: Key, size: int, room_key: Key, window: float, unique_key: Key,
        until_done: bool,
    ) -> None:  # fmt: skip
        self.name = name
        self.interval = interval  # seconds between two runs; 0: any
        self.rate_key = rate_key
        self.size = size  # runs at a time; 0: any number
        self.room_key = room_key
        self.window = window  # seconds a call is the only one of its key; 0: it need not be
        self.unique_key_of = unique_key
        self.until_done = until_done  # the key is free again when the call has come to its end

    def ask(self, id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ask | None:
        """What the call needs to begin; None: nothing, or its arguments don't fit, which it will say itself.

        Raises InvalidTaskError where a key function fails.
        """
        if not (self.interval or self.size):
            return None
        ask = Ask(id)
        try:
            if self.size:
                ask.room, ask.size = self._gate(ROOM, self.room_key, args, kwargs), self.size
            if self.interval:
                ask.rate, ask.interval = self._gate(RATE, self.rate_key, args, kwargs), self.interval
        except ValueError as error:
            raise InvalidTaskError(str(error)) from error
        except Unfit:
            return None
        return ask

    def unique(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, float] | None:
        """The name under which the call must be the only one, and for how many seconds.

        Raises ValueError where the key function fails.
        """
        if not self.window:
            return None
        try:
            key = self.unique_key_of(args, kwargs)
        except Unfit:
            key = digest((args, kwargs))
        return f"{UNIQUE}{self.name}:{key}", self.window

    def _gate(self, kind: str, key: Key, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        found = key(args, kwargs)
        return f"{kind}{self.name}:{found}" if found else kind + self.name


class Unfit(Exception):
    """The arguments don't fit the function, or have no value of the name."""


Key = Callable[[Sequence[Any], Mapping[str, Any]], str]


def of_task(task: Any, conf: Any) -> TaskLimits | None:
    """The limits that a task's options and the settings give it; None: it has none.

    Without `conf` the task's own options are checked, and nothing else.  Raises ValueError
    naming the task, the option and its value.
    """
    rate, size, unique = (getattr(task, name, None) for name in ("rate_limit", "concurrency_limit", "unique"))
    if rate is None and conf is not None:
        rate = conf.task_default_rate_limit
    if rate is None and size is None and unique is None and not _has_keys(task):
        return None
    name = task.name
    _refuse_lonely_keys(task, size, unique)
    if conf is not None and rate is None and getattr(task, "rate_limit_key", None) is not None:
        raise _lonely(task, "rate_limit_key", "rate_limit= beside it, or the setting task_default_rate_limit")
    interval = interval_of(rate, f"rate_limit={rate!r:.80} of {name}")
    if conf is not None and conf.worker_disable_rate_limits:
        interval = 0.0
    limits = TaskLimits(
        name,
        interval,
        _key(task, "rate_limit_key", _whole),
        _size(size, name),
        _key(task, "concurrency_limit_key", _whole),
        _window(unique, name),
        _key(task, "unique_key", _all_arguments(task)),
        until_done=unique is True,
    )
    return limits if limits.interval or limits.size or limits.window else None


def interval_of(rate: Any, what: str) -> float:
    """Seconds between two runs at a rate as Celery writes it; 0.0 for no limit.  Raises ValueError."""
    if rate is None:
        return 0.0
    number, unit = rate, "s"
    if isinstance(rate, str):
        text, slash, unit = rate.strip().partition("/")
        unit = unit.strip() if slash else "s"
        try:
            number = float(text)
        except ValueError:
            number = None
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not (number == 0 or 1e-6 <= number < 1e9)
        or unit not in _PER
    ):
        raise ValueError(f"{what}: expected {_RATES}")
    return _PER[unit] / number if number else 0.0


def _size(size: Any, name: str) -> int:
    if size is None:
        return 0
    if type(size) is not int or not 0 < size < 1 << 31:
        raise ValueError(
            f"concurrency_limit={size!r:.80} of {name}: expected a whole number of runs greater than 0, or None"
        )
    return size


def _window(unique: Any, name: str) -> float:
    if unique is None or unique is False:
        return 0.0
    if unique is True:
        return LONGEST_UNIQUE
    seconds = unique.total_seconds() if isinstance(unique, timedelta) else unique
    if not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        raise ValueError(
            f"unique={unique!r:.80} of {name}: expected True, seconds greater than 0, a timedelta, or None"
        )
    return float(seconds)


# -- keys ----------------------------------------------------------------------------------


def _has_keys(task: Any) -> bool:
    return any(
        getattr(task, option, None) is not None
        for option in ("rate_limit_key", "concurrency_limit_key", "unique_key")
    )


def _refuse_lonely_keys(task: Any, size: Any, unique: Any) -> None:
    for option, of, value in (
        ("concurrency_limit_key", "concurrency_limit", size),
        ("unique_key", "unique", unique),
    ):
        key = getattr(task, option, None)
        if key is not None and value in (None, False):
            raise _lonely(task, option, f"{of}= beside it")


def _lonely(task: Any, option: str, needed: str) -> ValueError:
    return ValueError(f"{option}={getattr(task, option)!r:.80} of {task.name} needs {needed}")


def _whole(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """One limit for the whole task."""
    return ""


def _key(task: Any, option: str, otherwise: Key) -> Key:
    given = getattr(task, option, None)
    if given is None:
        return otherwise
    if callable(given):
        return _called(task.name, option, _as_given(task, given))
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, (tuple, list)) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{option}={given!r:.80} of {task.name}: expected {_KEYS}")
    parameters = task.__signature__.parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in names:
        if name not in parameters and not takes_any:
            raise ValueError(
                f"{option}={given!r:.80} of {task.name}: it has no parameter {name!r}; "
                f"its parameters are {', '.join(parameters) or 'none'}"
            )
    return _named(task, tuple(names))


def _as_given(task: Any, found: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is an option takes the call's arguments; a method of a class, its `self` too."""
    plain = getattr(found, "__func__", None)
    if plain is None or getattr(found, "__self__", None) is not task:
        return found
    return found if next(iter(inspect.signature(plain).parameters), "") == "self" else plain


def _named(task: Any, names: tuple[str, ...]) -> Key:
    def key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        values = _bound(task, args, kwargs)
        try:
            found = [values[name] for name in names]
        except KeyError as error:
            raise Unfit from error
        return _short(found[0] if len(found) == 1 else found)

    return key


def _called(name: str, option: str, function: Callable[..., Any]) -> Key:
    def key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        try:
            found = function(*args, **kwargs)
        except Exception as error:  # a user's function
            raise ValueError(f"{option} of {name} raised {type(error).__name__}: {error}") from error
        if not isinstance(found, str):
            raise ValueError(f"{option} of {name} must return text, got {found!r:.80}")
        return _short(found)

    return key


def _all_arguments(task: Any) -> Key:
    def key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        return digest(_bound(task, args, kwargs))

    return key


def _bound(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the names of their parameters, defaults too.  Raises Unfit."""
    signature = task.__signature__
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise Unfit from error
    bound.apply_defaults()
    values = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            values |= values.pop(parameter.name, {})
    return values


def _short(value: Any) -> str:
    """A key as it stands in a name: itself while it is short and plain."""
    text = value if isinstance(value, str) else _canonical(value)
    return text if len(text) <= _LONGEST_KEY and text.isascii() and text.isprintable() else digest(text)


def digest(value: Any) -> str:
    """The same 32 digits for equal values."""
    return hashlib.blake2b(_canonical(value).encode(), digest_size=16).hexdigest()


def _canonical(value: Any) -> str:
    try:
        return json.dumps(json.loads(encode_json(value)), sort_keys=True, separators=(",", ":"))
    except EncodeError:
        return repr(value)  # of a serializer that carries more than JSON does
