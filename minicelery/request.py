"""What a task can know of the attempt that runs it: `self.request`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from minicelery._state import request_var
from minicelery.message import OWN_HEADERS, Message

T = TypeVar("T")

# Headers that protocol 2 defines; all others are the caller's own.
_PROTOCOL_HEADERS = (
    frozenset(
        "lang task id shadow eta expires group group_index retries timelimit root_id parent_id argsrepr "
        "kwargsrepr origin ignore_result replaced_task_nesting stamped_headers stamps compression "
        "redelivered x-delivery-count".split()
    )
    | OWN_HEADERS
)


class Read(Generic[T]):
    """A property for as long as no attribute of that name is set on the object."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        self.find = find
        self.__doc__ = find.__doc__

    @overload
    def __get__(self, request: None, owner: type) -> Read[T]: ...
    @overload
    def __get__(self, request: Any, owner: type) -> T: ...
    def __get__(self, request: Any, owner: type) -> Any:
        return self if request is None else self.find(request)


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
    outer: Request | None = None  # the attempt inside of which this one was called
    cancelled = False  # its end is wanted, and the pool can only ask for it

    def __init__(self, task: Any = None, **values: Any) -> None:
        self.task_object = task
        self.children: list[Any] = []
        self.state_lock = threading.Lock()  # held while a state of this attempt is stored
        self.outbox: list[Message] = []  # leaves with this attempt's outcome: its retry
        if values:
            self.__dict__.update(values)

    @Read
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

    @Read
    def task(self) -> str | None:
        if self.task_object is not None:
            return str(self.task_object.name)
        return self._text("task")

    # What a worker's request has in signals such as task_received.
    task_name = name = task

    @Read
    def task_id(self) -> str | None:
        return self.id

    @Read
    def root_id(self) -> str | None:
        return self._text("root_id") or self.id

    @Read
    def parent_id(self) -> str | None:
        return self._text("parent_id")

    @Read
    def group(self) -> str | None:
        return self._text("group")

    @Read
    def group_index(self) -> int | None:
        index: int | None = self._header("group_index")
        return index

    @Read
    def shadow(self) -> str | None:
        return self._text("shadow")

    @Read
    def eta(self) -> str | None:
        return self._text("eta")

    @Read
    def expires(self) -> str | None:
        return self._text("expires")

    @Read
    def origin(self) -> str | None:
        return self._text("origin")

    @Read
    def timelimit(self) -> list[float | None]:
        """`[hard, soft]` in seconds, as the message carries them."""
        limits: list[float | None] = self._header("timelimit") or [None, None]
        return limits

    @Read
    def time_limit(self) -> float | None:
        return self.timelimit[0]

    @Read
    def soft_time_limit(self) -> float | None:
        return self.timelimit[1]

    @Read
    def ignore_result(self) -> bool:
        return bool(self._header("ignore_result", False))

    @Read
    def replaced_task_nesting(self) -> int:
        nesting: int = self._header("replaced_task_nesting") or 0
        return nesting

    @Read
    def stamped_headers(self) -> list[str] | None:
        names: list[str] | None = self._header("stamped_headers")
        return names

    @Read
    def stamps(self) -> dict[str, Any]:
        stamps: dict[str, Any] = self._header("stamps") or {}
        return stamps

    @Read
    def properties(self) -> dict[str, Any] | None:
        return None if self.message is None else self.message.properties

    @Read
    def correlation_id(self) -> str | None:
        return None if self.message is None else self.message.properties.get("correlation_id", self.id)

    @Read
    def reply_to(self) -> str | None:
        return None if self.message is None else self.message.properties.get("reply_to")

    @Read
    def delivery_info(self) -> dict[str, Any] | None:
        """`exchange`, `routing_key`, `priority`, `redelivered`, in `apply` also `is_eager`.

        None where the function was just called.
        """
        if self.message is None:
            return None
        message = self.message
        info = {
            "exchange": message.exchange,
            "routing_key": message.routing_key or message.queue,
            "priority": message.priority,
            "redelivered": self.redelivered,
        }
        return {**info, "is_eager": True} if self.is_eager else info

    links: Any = {}  # callbacks, errbacks, chain, chord as the body holds them
    utc = True
    loglevel: int | None = None
    logfile: str | None = None

    @Read
    def callbacks(self) -> Any:
        return self.links.get("callbacks")

    @Read
    def errbacks(self) -> Any:
        return self.links.get("errbacks")

    @Read
    def chain(self) -> Any:
        return self.links.get("chain")

    @Read
    def chord(self) -> Any:
        return self.links.get("chord")

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute `name`, or `default`: requests read like mappings too."""
        return getattr(self, name, default)

    if not TYPE_CHECKING:  # a name misspelt is an error to type checkers

        def __getattr__(self, name: str) -> Any:
            """A header of the caller's own, as in Celery."""
            message = self.message
            if message is not None and not name.startswith("__") and name in message.headers:
                return message.headers[name]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

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

    def clear(self) -> None:
        """Forget the attributes that were set on this attempt, as if its message had not been read."""
        kept = {name: self.__dict__[name] for name in ("task_object", "state_lock")}
        self.__dict__.clear()
        self.__dict__.update(kept, children=[], outbox=[])

    def as_execution_options(self) -> dict[str, Any]:
        """The options of a call that goes on where this one is: same id, place and followers."""
        hard, soft = self.timelimit
        stamps = self.stamps or {}
        return {
            "task_id": self.id, "root_id": self.root_id, "parent_id": self.parent_id, "group_id": self.group,
            "group_index": self.group_index, "shadow": self.shadow, "chord": self.chord, "chain": self.chain,
            "link": self.callbacks, "link_error": self.errbacks, "expires": self.expires,
            "soft_time_limit": soft, "time_limit": hard, "headers": self.headers, "retries": self.retries,
            "reply_to": self.reply_to, "replaced_task_nesting": self.replaced_task_nesting,
            **({"stamped_headers": self.stamped_headers, "stamps": stamps} if stamps else {}),
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<Request: {self.task}[{self.id}] retries={self.retries}>"


def push(task: Any, *values: Mapping[str, Any]) -> None:
    """Make a request of `task` with these values the current one, above the one that is."""
    outer = request_var.get()
    pushed = Request(task)
    if outer is not None and outer.task_object is task:
        pushed.update(vars(outer))
    for given in values:
        pushed.update(given)
    pushed.outer = outer
    request_var.set(pushed)


def pop(task: Any) -> None:
    """Undo the latest `push`.  Raises RuntimeError where the current request is not of `task`."""
    request = request_var.get()
    if request is None or request.task_object is not task:
        raise RuntimeError(f"pop_request of {task.name} without push_request")
    request_var.set(request.outer)


async def within(request: Request, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine with `request` as the current one."""
    outer = request_var.get()
    request_var.set(request)
    try:
        return await coroutine
    finally:
        request_var.set(outer)
