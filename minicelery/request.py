"""What a task can know of the attempt that runs it: `self.request`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from minicelery.message import Message

# Headers that protocol 2 defines; all others are the caller's own.
_PROTOCOL_HEADERS = frozenset(
    "lang task id shadow eta expires group group_index retries timelimit root_id parent_id argsrepr "
    "kwargsrepr origin ignore_result replaced_task_nesting stamped_headers stamps compression "
    "redelivered x-delivery-count".split()
)


class Request:
    """One attempt at one task call.

    Reads the message's headers when asked, so that an attempt that looks at none pays for
    none.  Attributes may be set freely; they last as long as the attempt.
    """

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    id: str | None = None
    retries: int = 0
    called_directly: bool = True
    is_eager: bool = False
    hostname: str | None = None
    task_object: Any = None  # the Task this attempt is of
    message: Message | None = None
    entering = False  # the worker is about to call: Task.__call__ must not open a request of its own
    redelivered = False
    reported = False  # the task has stored a state of its own: STARTED must not follow it

    def __init__(self, task: Any = None, **values: Any) -> None:
        self.task_object = task
        self.children: list[Any] = []
        self.state_lock = threading.Lock()  # held while a state of this attempt is stored
        self.outbox: list[Message] = []  # leaves with this attempt's outcome: its retry
        if values:
            self.__dict__.update(values)

    @property
    def headers(self) -> dict[str, Any] | None:
        """The caller's own headers; None outside of a worker."""
        if self.message is None:
            return None
        return {k: v for k, v in self.message.headers.items() if k not in _PROTOCOL_HEADERS}

    def _header(self, name: str, default: Any = None) -> Any:
        return default if self.message is None else self.message.headers.get(name, default)

    def _text(self, name: str) -> str | None:
        value = self._header(name)
        return value if isinstance(value, str) else None

    @property
    def task(self) -> str | None:
        if self.task_object is not None:
            return str(self.task_object.name)
        return self._text("task")

    @property
    def root_id(self) -> str | None:
        return self._text("root_id") or self.id

    @property
    def parent_id(self) -> str | None:
        return self._text("parent_id")

    @property
    def group(self) -> str | None:
        return self._text("group")

    @property
    def group_index(self) -> int | None:
        index: int | None = self._header("group_index")
        return index

    @property
    def shadow(self) -> str | None:
        return self._text("shadow")

    @property
    def eta(self) -> str | None:
        return self._text("eta")

    @property
    def expires(self) -> str | None:
        return self._text("expires")

    @property
    def origin(self) -> str | None:
        return self._text("origin")

    @property
    def timelimit(self) -> list[float | None]:
        """`[hard, soft]` in seconds, as the message carries them."""
        limits: list[float | None] = self._header("timelimit") or [None, None]
        return limits

    @property
    def time_limit(self) -> float | None:
        return self.timelimit[0]

    @property
    def soft_time_limit(self) -> float | None:
        return self.timelimit[1]

    @property
    def ignore_result(self) -> bool:
        return bool(self._header("ignore_result", False))

    @property
    def replaced_task_nesting(self) -> int:
        nesting: int = self._header("replaced_task_nesting") or 0
        return nesting

    @property
    def stamped_headers(self) -> list[str] | None:
        names: list[str] | None = self._header("stamped_headers")
        return names

    @property
    def stamps(self) -> dict[str, Any]:
        stamps: dict[str, Any] = self._header("stamps") or {}
        return stamps

    @property
    def properties(self) -> dict[str, Any] | None:
        return None if self.message is None else self.message.properties

    @property
    def correlation_id(self) -> str | None:
        return None if self.message is None else self.message.properties.get("correlation_id", self.id)

    @property
    def reply_to(self) -> str | None:
        return None if self.message is None else self.message.properties.get("reply_to")

    @property
    def delivery_info(self) -> dict[str, Any] | None:
        """`exchange`, `routing_key`, `priority`, `redelivered`; None outside of a worker."""
        if self.message is None:
            return None
        message = self.message
        return {
            "exchange": message.exchange,
            "routing_key": message.routing_key or message.queue,
            "priority": message.priority,
            "redelivered": self.redelivered,
        }

    links: Mapping[str, Any] = {}  # callbacks, errbacks, chain, chord as the body holds them
    utc = True
    loglevel: int | None = None
    logfile: str | None = None

    @property
    def callbacks(self) -> Any:
        return self.links.get("callbacks")

    @property
    def errbacks(self) -> Any:
        return self.links.get("errbacks")

    @property
    def chain(self) -> Any:
        return self.links.get("chain")

    @property
    def chord(self) -> Any:
        return self.links.get("chord")

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute `name`, or `default`: requests read like mappings too."""
        return getattr(self, name, default)

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)

    def update(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set several attributes."""
        self.__dict__.update(values or {}, **more)

    def __repr__(self) -> str:
        return f"<Request: {self.task}[{self.id}] retries={self.retries}>"
