"""Queues and exchanges as users declare them, with kombu's names, and what is to be made of them.

kombu's own objects of the same kinds are read like these: by their attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from minicelery.broker.topology import BindingSpec, ExchangeSpec, QueueSpec
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id
from minicelery.settings.kinds import DELIVERY_MODE, QUEUE_OPTIONS, exchange_type

DIRECT_EXCHANGE = "C.dq2"
"""Feeds the queue that each worker has to itself; by its node name."""

_DIRECT_SUFFIX = ".dq2"
_UUID = re.compile(r"\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


class _Declared:
    """What it says of itself in `_shown` makes it equal to another, and is shown."""

    name: str
    _shown: tuple[str, ...] = ()

    def as_dict(self, recurse: bool = False) -> dict[str, Any]:
        """Its attributes; with `recurse` those of its exchange and bindings as dicts too."""

        def plain(value: Any) -> Any:
            if isinstance(value, _Declared):
                return value.as_dict(recurse=True)
            return [plain(item) for item in value] if isinstance(value, list) else value

        values = {name: value for name, value in vars(self).items() if name != "on_declared"}
        return {name: plain(value) for name, value in values.items()} if recurse else values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)) and not isinstance(self, type(other)):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._shown)

    def __hash__(self) -> int:
        return hash((type(self).__name__[0], self.name))


class Exchange(_Declared):
    """A distributor of messages.

    `type` is direct (the routing key equals the binding's), topic (`*` in the binding's
    key stands for a word, `#` for any number of them), fanout (every bound queue) or headers.
    """

    _shown = ("name", "type", "arguments", "durable", "auto_delete", "delivery_mode")

    def __init__(
        self,
        name: str | None = "",
        type: str | None = "",
        channel: object = None,
        *,
        durable: bool | None = True,
        auto_delete: bool | None = False,
        passive: bool | None = False,
        arguments: Mapping[str, Any] | None = None,
        delivery_mode: int | str | None = None,
        no_declare: bool | None = False,
    ) -> None:
        self.name = _text(name, "Exchange", "name")
        self.type = _checked(f"Exchange {self.name!r}", "type", exchange_type, type or "direct")
        self.durable = durable is None or bool(durable)
        self.auto_delete = bool(auto_delete)
        self.passive = bool(passive)
        self.arguments = arguments
        self.delivery_mode = (
            None
            if not delivery_mode
            else _checked(f"Exchange {self.name!r}", "delivery_mode", DELIVERY_MODE.convert, delivery_mode)
        )
        self.no_declare = bool(no_declare)

    def binding(self, routing_key: str = "", arguments: Mapping[str, Any] | None = None) -> binding:
        """A binding of this exchange, for `Queue(bindings=[…])`."""
        return binding(self, routing_key, arguments)

    def __repr__(self) -> str:
        return f"<Exchange {self.name!r} ({self.type})>"


class binding(_Declared):  # noqa: N801 - kombu's name
    """An exchange that feeds a queue, and for which routing keys."""

    _shown = ("exchange", "routing_key", "arguments")

    def __init__(
        self,
        exchange: Exchange | str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        unbind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.exchange = Exchange(exchange) if isinstance(exchange, str) else exchange
        self.routing_key = _text(routing_key, "binding", "routing_key")
        self.arguments = arguments
        self.unbind_arguments = unbind_arguments

    def __hash__(self) -> int:
        return hash((self.exchange, self.routing_key))

    def __repr__(self) -> str:
        return f"<binding {self.exchange!r} -> {self.routing_key!r}>"


class Queue(_Declared):
    """A queue: its name, the exchange and routing key that feed it, and how it is declared.

    Times are in seconds.  What goes beyond a name has an effect on RabbitMQ only; `bindings`
    may stand in place of `exchange`.  `on_declared` is called with name, messages, consumers.
    """

    _shown = (
        "name", "exchange", "routing_key", "queue_arguments", "binding_arguments", "consumer_arguments",
        "durable", "exclusive", "auto_delete",
    )  # fmt: skip

    def __init__(
        self,
        name: str = "",
        exchange: Exchange | str | Iterable[binding] | None = None,
        routing_key: str | None = "",
        channel: object = None,
        bindings: Iterable[binding] | None = None,
        on_declared: Callable[[str, int, int], object] | None = None,
        *,
        durable: bool | None = True,
        exclusive: bool | None = False,
        auto_delete: bool | None = False,
        no_ack: bool | None = False,
        queue_arguments: Mapping[str, Any] | None = None,
        binding_arguments: Mapping[str, Any] | None = None,
        consumer_arguments: Mapping[str, Any] | None = None,
        expires: float | None = None,
        message_ttl: float | None = None,
        max_length: int | None = None,
        max_length_bytes: int | None = None,
        max_priority: int | None = None,
        alias: str | None = None,
        no_declare: bool | None = False,
    ) -> None:
        self.name = _text(name, type(self).__name__, "name")
        self.bindings = list(bindings or ())
        if isinstance(exchange, (list, tuple, set)):
            self.bindings += exchange
            exchange = None
        self.exchange: Any = Exchange(exchange) if isinstance(exchange, str) else exchange
        if self.bindings:
            self.exchange = None
        elif self.exchange is None:
            self.exchange = Exchange()
        self.routing_key = _text(routing_key, f"Queue {self.name!r}", "routing_key")
        self.on_declared = on_declared
        self.durable = durable is None or bool(durable)
        self.exclusive = bool(exclusive)
        self.auto_delete = bool(auto_delete) or self.exclusive
        self.no_ack = bool(no_ack)
        self.queue_arguments = queue_arguments
        self.binding_arguments = binding_arguments
        self.consumer_arguments = consumer_arguments
        self.expires = expires
        self.message_ttl = message_ttl
        self.max_length = max_length
        self.max_length_bytes = max_length_bytes
        self.max_priority = max_priority
        self.alias = alias
        self.no_declare = bool(no_declare)

    @classmethod
    def from_dict(cls, queue: str, **options: Any) -> Queue:
        """The queue of that name with options as `task_queues` takes them in a dict."""
        get = options.get

        def either(name: str) -> Any:
            return (
                get("durable" if name.endswith("durable") else "auto_delete")
                if get(name) is None
                else get(name)
            )

        exchange = get("exchange")
        if exchange is None or isinstance(exchange, str):
            exchange = Exchange(
                exchange, get("exchange_type"), delivery_mode=get("delivery_mode"),
                durable=either("exchange_durable"), auto_delete=either("exchange_auto_delete"),
                arguments=get("exchange_arguments"),
            )  # fmt: skip
        own = {name: options[name] for name in QUEUE_OPTIONS if name in options}
        return Queue(
            queue, exchange, get("binding_key") or get("routing_key"),
            durable=either("queue_durable"), auto_delete=either("queue_auto_delete"), **own,
        )  # fmt: skip

    def __repr__(self) -> str:
        feeds = ", ".join(map(repr, self.bindings)) or f"{self.exchange!r} -> {self.routing_key!r}"
        return f"<{type(self).__name__} {self.name!r} <- {feeds}>"


class Broadcast(Queue):
    """A queue that each worker has a copy of: every worker gets every message.

    `name` is that of the fanout exchange, by which the queue is also called.  The copy is
    named `queue`, or else anew in each process that declares it; a worker's children share it.
    """

    def __init__(
        self,
        name: str | None = None,
        queue: str | None = None,
        unique: bool = False,
        auto_delete: bool = True,
        exchange: Exchange | str | None = None,
        alias: str | None = None,
        **options: Any,
    ) -> None:
        if unique or not queue:
            queue = f"{queue or 'bcast'}.{new_id()}"
        self.queue = queue
        super().__init__(
            queue, Exchange(name, "fanout") if exchange is None else exchange,
            auto_delete=auto_delete, alias=alias or name, **options,
        )  # fmt: skip


def worker_direct(hostname: str | Queue) -> Queue:
    """The queue that the worker of that node name has to itself, where `worker_direct` is set."""
    if not isinstance(hostname, str):
        return hostname
    return Queue(f"{hostname}{_DIRECT_SUFFIX}", Exchange(DIRECT_EXCHANGE), hostname)


def direct_to(name: str) -> Queue | None:
    """The queue `name` if it is one that a worker has to itself."""
    node = name.removesuffix(_DIRECT_SUFFIX)
    return worker_direct(node) if node != name and "@" in node else None


# -- what is to be made --------------------------------------------------------------------


class Target(NamedTuple):
    """A declared queue, and how a message is addressed to it."""

    spec: QueueSpec
    exchange: ExchangeSpec | None  # None: by its name alone
    key: str
    delivery_mode: int | None
    alias: str | None
    queue: Any  # as it was declared

    @property
    def is_copy(self) -> bool:
        """Whether each worker has its own: nobody else declares it."""
        return any(kind.__name__ == "Broadcast" for kind in type(self.queue).__mro__)

    @property
    def is_anonymous(self) -> bool:
        """Whether other processes have another name for it."""
        return self.is_copy and _UUID.search(self.spec.name) is not None


def target_of(
    queue: Any, *, exchange: ExchangeSpec | None = None, key: str = "", max_priority: int | None = None
) -> Target:
    """What `queue` declares; `exchange` and `key` are those of queues that name none."""
    own = queue.exchange
    fed = exchange_spec(own) if own is not None else None
    if (fed is None or not fed.name) and exchange is not None:
        fed = exchange
    key = queue.routing_key or key
    mode = getattr(own, "delivery_mode", None)
    bindings = [BindingSpec(fed, key, queue.binding_arguments or {})] if fed is not None and fed.name else []
    bindings += [
        BindingSpec(exchange_spec(bound.exchange), bound.routing_key or "", bound.arguments or {})
        for bound in _ordered(queue.bindings)
    ]
    spec = QueueSpec(
        queue.name, tuple(bindings), queue.durable, queue.exclusive, queue.auto_delete or queue.exclusive,
        _arguments(queue, max_priority), queue.consumer_arguments or {},
        not getattr(queue, "no_declare", False), bool(queue.no_ack), getattr(queue, "on_declared", None),
    )  # fmt: skip
    return Target(spec, fed, key, None if not mode else DELIVERY_MODE.convert(mode), queue.alias, queue)


def queue_of(spec: QueueSpec) -> Queue:
    """The declaration of which `spec` would be made, with the exchange that feeds it."""
    bound = [
        Exchange(
            one.exchange.name, one.exchange.type, durable=one.exchange.durable,
            auto_delete=one.exchange.auto_delete, arguments=one.exchange.arguments,
        ).binding(one.key, one.arguments)
        for one in spec.bindings
    ]  # fmt: skip
    queue = Queue(
        spec.name, durable=spec.durable, exclusive=spec.exclusive, auto_delete=spec.auto_delete,
        queue_arguments=spec.arguments, no_ack=spec.no_ack, no_declare=not spec.declare,
    )  # fmt: skip
    if bound:
        queue.exchange, queue.routing_key, queue.bindings = bound[0].exchange, bound[0].routing_key, bound[1:]
    return queue


def exchange_spec(exchange: Any) -> ExchangeSpec:
    """What `exchange`, an object or a name, declares."""
    if isinstance(exchange, str):
        return ExchangeSpec(exchange)
    name = exchange.name or ""
    kind = _checked(f"exchange {name!r}", "type", exchange_type, exchange.type or "direct")
    declare = not (getattr(exchange, "no_declare", False) or getattr(exchange, "passive", False))
    return ExchangeSpec(
        name, kind, exchange.durable, exchange.auto_delete, exchange.arguments or {},
        bool(declare and name and not name.startswith("amq.")),
    )  # fmt: skip


def _ordered(bindings: Iterable[Any]) -> list[Any]:
    """kombu keeps a set, whose order differs from process to process."""
    if isinstance(bindings, list):
        return bindings
    return sorted(bindings or (), key=lambda bound: (exchange_spec(bound.exchange).name, bound.routing_key))


def _arguments(queue: Any, max_priority: int | None) -> dict[str, Any]:
    arguments = dict(queue.queue_arguments or {})
    if max_priority is not None:
        arguments.setdefault("x-max-priority", max_priority)
    for name, of_second in (
        ("expires", 1000), ("message_ttl", 1000), ("max_length", 1), ("max_length_bytes", 1), ("max_priority", 1),
    ):  # fmt: skip
        value = getattr(queue, name, None)
        if value is not None:
            arguments[f"x-{name.replace('_', '-')}"] = int(float(value) * of_second)
    return arguments


def _text(value: Any, owner: str, name: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise ImproperlyConfigured(f"{owner}: {name} must be text, got {value!r:.80}")


def _checked(owner: str, name: str, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{owner}: {name}={value!r:.80}; {error or 'not known'}") from None
