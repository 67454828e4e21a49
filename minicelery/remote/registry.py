"""The commands that workers know: the built-in ones, and those of the app's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

TYPES = ("inspect", "control")
_NAME = re.compile(r"[A-Za-z_]\w*\Z")


class CommandInfo(NamedTuple):
    """What is known of a command beside its function; Celery's names."""

    alias: str | None
    type: str
    visible: bool
    default_timeout: float
    help: str
    signature: str | None
    args: Sequence[tuple[str, Callable[[str], Any] | None]] | None
    variadic: str | None


class Commands(MutableMapping[str, Callable[..., Any]]):
    """Functions by name and alias, and their types; `meta` has what else is known, by name alone."""

    def __init__(self) -> None:
        self.data: dict[str, Callable[..., Any]] = {}
        self.types: dict[str, str] = {}
        self.meta: dict[str, CommandInfo] = {}

    def register(
        self,
        fun: Any = None,
        *,
        name: str | None = None,
        alias: str | None = None,
        type: str = "control",
        visible: bool = True,
        default_timeout: float = 1.0,
        help: str | None = None,
        signature: str | None = None,
        args: Sequence[tuple[str, Callable[[str], Any] | None]] | None = None,
        variadic: str | None = None,
    ) -> Any:
        """Make a function a command; a decorator.  It is called with the worker's state, and the arguments.

        `args` are `(name, type)` of the words that the command line takes, `variadic` the name
        under which it hands over the others.  Raises TypeError or ValueError.
        """
        if type not in TYPES:
            raise ValueError(f"type={type!r:.80} of a command: expected 'inspect' or 'control'")

        def decorate(function: F) -> F:
            if not callable(function):
                raise TypeError(f"a command is a function, got {function!r:.80}")
            called = name or function.__name__
            for given in filter(None, (called, alias)):
                if not _NAME.match(given):
                    raise ValueError(
                        f"{given!r:.80} is no name for a command: expected letters, digits and _"
                    )
            if called in self.data and _is_own(function):
                return function  # the app has one of that name, whichever is imported first
            text = help or (function.__doc__ or "").strip().partition("\n")[0]
            self.meta[called] = CommandInfo(
                alias, type, visible, default_timeout, text, signature, args, variadic
            )
            for one in filter(None, (called, alias)):
                self.data[one], self.types[one] = function, type
            return function

        return decorate if fun is None else decorate(fun)

    def is_builtin(self, name: str) -> bool:
        """Whether the command of that name is one of minicelery's own, which all answer at once."""
        return _is_own(self.data[name])

    def of_type(self, type: str) -> Mapping[str, CommandInfo]:
        """The commands to be shown to people, by name."""
        return {name: info for name, info in sorted(self.meta.items()) if info.type == type and info.visible}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.data[name]

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        self.data[name] = function

    def __delitem__(self, name: str) -> None:
        del self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def _is_own(function: Callable[..., Any]) -> bool:
    return str(getattr(function, "__module__", "")).startswith("minicelery.remote.")


Panel = Commands()
"""All commands of this process."""


def control_command(**options: Any) -> Callable[[F], F]:
    """Make a function a command that changes something; for the options see `Commands.register`."""
    decorator: Callable[[F], F] = Panel.register(type="control", **options)
    return decorator


def inspect_command(**options: Any) -> Callable[[F], F]:
    """Make a function a command that tells something; for the options see `Commands.register`."""
    decorator: Callable[[F], F] = Panel.register(type="inspect", **options)
    return decorator
