"""From a task's name and options to an exchange, a routing key and a queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from minicelery.broker.topology import ExchangeSpec, QueueSpec
from minicelery.exceptions import ImproperlyConfigured, QueueNotFound
from minicelery.message import Message
from minicelery.routing.matching import is_bound
from minicelery.routing.queues import (
    DIRECT_EXCHANGE,
    Exchange,
    Queue,
    Target,
    direct_to,
    exchange_spec,
    queue_of,
    target_of,
    worker_direct,
)
from minicelery.routing.routes import Routes
from minicelery.settings.kinds import DELIVERY_MODE, exchange_type

if TYPE_CHECKING:
    from minicelery.settings import Settings

ADDRESS = frozenset({"queue", "exchange", "routing_key", "exchange_type", "delivery_mode"})
"""The options of a call that say where it goes."""

# What a task gives to the options that routers see; `exchange_type` is not read from it, as in Celery.
_OF_A_TASK = (
    "queue", "routing_key", "exchange", "priority", "serializer", "delivery_mode", "compression",
    "immediate", "mandatory",
)  # fmt: skip
# What routers don't see: options that are the call's and not the message's.
_OF_A_CALL = frozenset(
    "task_id countdown eta expires link link_error shadow ignore_result time_limit soft_time_limit chord "
    "add_to_parent root_id parent_id group_id group_index chain retries reply_to connection producer router "
    "publisher task_type replaced_task_nesting route_name result_cls".split()
)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes."""

    queue: str  # which it is meant for; with an `exchange`, others may get it as well
    exchange: str = ""  # none: straight to `queue`
    routing_key: str = ""
    delivery_mode: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)  # of `task_routes`, not given by the call

    @property
    def plain(self) -> bool:
        """Whether it says no more than its exchange, key and queue."""
        return not self.options and self.delivery_mode == 2


class Router:
    """The queues and routes of an app's settings as they are now.  Thread-safe."""

    def __init__(self, conf: Settings) -> None:
        self.revision = conf.revision
        self._conf = conf
        default = conf.task_default_queue
        self._default_key: str = conf.task_default_routing_key or default
        exchange = conf.task_default_exchange or default
        self._default_exchange = (
            ExchangeSpec(exchange, conf.task_default_exchange_type)
            if isinstance(exchange, str)
            else exchange_spec(exchange)
        )
        self._routes = Routes(conf.task_routes)
        self._aliases: dict[str, str] = {}
        self._configured: dict[str, Target] = {}
        self._met: dict[str, Target] = {}  # in calls: made on first use, or given as objects
        for queue in _declared(conf) or [_default_queue(conf)]:
            self._configure(queue)

    @property
    def static(self) -> bool:
        """Whether a task's route depends on nothing but its name, while its calls give no address."""
        return self._routes.static

    @property
    def has_routes(self) -> bool:
        """Whether `task_routes` says anything."""
        return bool(self._routes)

    @property
    def queues(self) -> dict[str, QueueSpec]:
        """The queues of the settings, in their order."""
        return {name: target.spec for name, target in self._configured.items()}

    def spec(self, name: str) -> QueueSpec:
        """How the queue is declared, by its name or alias; also one that is not configured.

        Raises QueueNotFound where `task_create_missing_queues` is off.
        """
        return self._target(name).spec

    def declared(self, name: str) -> Target:
        """The queue as it was declared, by its name or alias.  Raises QueueNotFound."""
        return self._target(name)

    def to_declare(self, name: str) -> list[Queue]:
        """The queue of that name as receivers of `before_task_publish` get it; nothing where it is not known."""
        spec = self.queues.get(name)
        return [] if spec is None else [queue_of(spec)]

    def learn(self, queue: Any) -> None:
        """Know a queue that no setting names; one that is configured stays as it is."""
        if queue.name not in self._configured:
            self._met_target(queue)

    def bound_to(self, exchange: str) -> list[QueueSpec]:
        """The queues known here that the exchange feeds, without copies that workers make for themselves.

        To be declared before something is published there, or it would be lost.
        """
        return [target.spec for target in self._fed_by(exchange) if not target.is_copy]

    def exchange(self, name: str) -> ExchangeSpec | None:
        """How the exchange is declared; None where no queue known here is bound to it."""
        if name == DIRECT_EXCHANGE:
            return ExchangeSpec(name)
        return next((found for found in self._exchanges() if found.name == name), None)

    def select(
        self, include: Iterable[str], exclude: Iterable[str] = (), hostname: str | None = None
    ) -> list[str]:
        """The queues a worker serves: `include` or else all configured ones, without `exclude`.

        `hostname` is the worker's: its direct queue comes last.  Raises ImproperlyConfigured.
        """
        try:
            chosen = [self._target(name).spec.name for name in include] or list(self._configured)
        except QueueNotFound as error:
            raise ImproperlyConfigured(f"--queues: {error}") from error
        excluded = {self._aliases.get(name, name) for name in exclude}
        names = [name for name in dict.fromkeys(chosen) if name not in excluded]
        if hostname is not None and self._conf.worker_direct:
            names.append(worker_direct(hostname).name)
        return list(dict.fromkeys(names))

    # -- routing ---------------------------------------------------------------------------

    def route(
        self,
        name: str,
        args: Any = (),
        kwargs: Any = None,
        options: Mapping[str, Any] | None = None,
        task: Any = None,
    ) -> Route:
        """Where a call of the task `name` goes, in Celery's order of precedence.

        That is: what the call says, what the task's attributes say, `task_routes`, and the
        default queue.  Raises QueueNotFound, ValueError or ImproperlyConfigured.
        """
        given = {option: getattr(task, option, None) for option in _OF_A_TASK} if task is not None else {}
        given |= {key: value for key, value in (options or {}).items() if key not in _OF_A_CALL}
        target = self._take_queue(name, given)
        route: dict[str, Any] = {}
        if self._routes:
            seen = given if target is None else {**given, "queue": target.queue}
            route = self._routes.find(name, args, kwargs or {}, seen, task) or {}
        if route:
            routed = self._take_queue(name, route)
            target = routed if target is None else target
        elif target is None:
            target = self._default
        more = {key: value for key, value in route.items() if key not in ADDRESS and given.get(key) is None}
        merged = route | {key: value for key, value in given.items() if value is not None}
        return self._addressed(name, target, merged, more)

    @property
    def _default(self) -> Target:
        return self._target(self._conf.task_default_queue)

    def _take_queue(self, name: str, options: dict[str, Any]) -> Target | None:
        queue = options.pop("queue", None)
        if queue is None:
            return None
        if isinstance(queue, str) and queue:
            return self._target(queue)
        if isinstance(getattr(queue, "name", None), str) and queue.name:
            return self._met_target(queue)
        raise ValueError(f"queue={queue!r:.80} of {name}: expected a queue's name or a Queue")

    def _addressed(
        self, name: str, target: Target | None, given: Mapping[str, Any], more: Mapping[str, Any]
    ) -> Route:
        exchange = given.get("exchange")
        exchange = _text(
            name, "exchange", exchange if exchange is None else getattr(exchange, "name", exchange)
        )
        key = _text(name, "routing_key", given.get("routing_key"))
        if target is None and exchange is None:
            target = self._default
        own = target.exchange if target is not None else None
        kind = given.get("exchange_type")
        kind = (own.type if own is not None else "direct") if kind is None else _kind(name, kind)
        queue = target.spec.name if target is not None else self._conf.task_default_queue
        if kind == "direct" and not (exchange and key):
            if target is None:
                raise ImproperlyConfigured(
                    f"task_routes: the route of {name} leads to nothing: exchange={exchange!r} needs a "
                    "routing_key as well, or name the queue with queue="
                )
            exchange, key = "", queue
        elif exchange is None:
            assert target is not None
            exchange = own.name if own is not None and own.name else self._default_exchange.name
            key = key or target.key or self._default_key
        elif own is None or own.name != exchange:
            # Not that queue's exchange: one that it feeds, so that brokers which ask for its spec know it.
            queue = next((fed.spec.name for fed in self._fed_by(exchange)), queue)
        mode = given.get("delivery_mode") or (target and target.delivery_mode)
        mode = self._conf.task_default_delivery_mode if not mode else _mode(name, mode)
        return Route(queue, exchange or "", key or "", mode, more)

    # -- queues ----------------------------------------------------------------------------

    def _configure(self, queue: Any) -> None:
        target = target_of(
            queue,
            exchange=self._default_exchange,
            key=self._default_key,
            max_priority=self._conf.task_queue_max_priority,
        )
        self._configured[target.spec.name] = target
        if target.alias:
            self._aliases[target.alias] = target.spec.name

    def _known(self) -> Iterator[Target]:
        yield from self._configured.values()
        yield from list(self._met.values())

    def _exchanges(self) -> Iterator[ExchangeSpec]:
        return (binding.exchange for target in self._known() for binding in target.spec.bindings)

    def _fed_by(self, exchange: str) -> Iterator[Target]:
        for target in self._known():
            if any(binding.exchange.name == exchange for binding in target.spec.bindings):
                yield target

    def _target(self, name: str) -> Target:
        name = self._aliases.get(name, name)
        found = self._configured.get(name) or self._met.get(name)
        if found is None:
            found = self._met[name] = self._missing(name)
        return found

    def _met_target(self, queue: Any) -> Target:
        found = self._configured.get(queue.name)
        if found is None or found.queue is not queue:
            found = target_of(queue)
            if queue.name not in self._configured:
                self._met[queue.name] = found
        return found

    def _missing(self, name: str) -> Target:
        conf = self._conf
        queue = direct_to(name)
        if queue is None:
            if not conf.task_create_missing_queues:
                raise self._not_found(name)
            kind = conf.task_create_missing_queue_exchange_type or "direct"
            arguments = _arguments_of(conf.task_create_missing_queue_type)
            queue = Queue(name, Exchange(name, kind), name, queue_arguments=arguments)
        return target_of(queue, max_priority=conf.task_queue_max_priority)

    def _not_found(self, name: str) -> QueueNotFound:
        known = [*self._configured, *self._aliases]
        shown = ", ".join(map(repr, known[:12])) + (", …" if len(known) > 12 else "")
        return QueueNotFound(
            f"queue {name!r} is not in task_queues (there are {shown}), and task_create_missing_queues is off"
            f"{_near(name, known)}"
        )

    # -- without exchanges -----------------------------------------------------------------

    def expand(self, message: Message) -> list[Message]:
        """`message` for each queue that its exchange would bring it to, among those known here.

        What a server does that has exchanges.  Raises ImproperlyConfigured where no queue is bound.
        """
        if not message.exchange:
            return [message]
        names = self._reached(message)
        if not names:
            raise self._no_way(message)
        return [
            replace(
                message, queue=name, headers=dict(message.headers), properties=dict(message.properties),
                unique=message.unique and (f"{message.unique[0]}:{name}", message.unique[1]),
            )
            for name in names
        ]  # fmt: skip

    def _reached(self, message: Message) -> list[str]:
        exchange, key, headers = message.exchange, message.routing_key, message.headers
        if exchange == DIRECT_EXCHANGE:
            return [worker_direct(key).name]
        reached = self._bound(exchange, key, headers)
        if not reached and exchange == key and self._conf.task_create_missing_queues:
            missing = self._target(key)  # a queue and its exchange have one name, unless configured
            reached = [missing] if is_bound(missing.spec, exchange, key, headers) else []
        return [target.spec.name for target in reached if not target.is_anonymous]

    def _bound(self, exchange: str, key: str, headers: Mapping[str, Any]) -> list[Target]:
        return [target for target in self._known() if is_bound(target.spec, exchange, key, headers)]

    def _no_way(self, message: Message) -> ImproperlyConfigured:
        exchange, key = message.exchange, message.routing_key
        feeds = {found.name for found in self._exchanges()}
        if self._bound(exchange, key, message.headers):
            why = (
                "a Broadcast without queue= has another queue in each worker, which only a server with "
                "exchanges can find: use RabbitMQ, or name a queue for each worker and bind it with exchange="
            )
        elif exchange in feeds:
            why = f"none of its bindings has the routing key {key!r}; name the queue with queue="
        else:
            why = (
                f"none of task_queues is bound to it{_near(exchange, feeds)}; this broker has no exchanges of "
                "its own, so add the queue to task_queues, or name it with queue="
            )
        return ImproperlyConfigured(f"{message.task}: exchange {exchange!r} leads to no queue: {why}")


def _declared(conf: Settings) -> list[Any]:
    """The queues of `task_queues` as objects."""
    queues = conf.task_queues or ()
    if isinstance(queues, Mapping):
        return [
            options if hasattr(options, "name") else _from_dict(name, options or {})
            for name, options in queues.items()
        ]
    return [Queue(queue, Exchange(queue), queue) if isinstance(queue, str) else queue for queue in queues]


def _from_dict(name: str, options: Mapping[str, Any]) -> Queue:
    key = options.get("routing_key")
    if key is None:
        key = options.get("binding_key")
    return Queue.from_dict(name, **{**options, "routing_key": name if key is None else key})


def _default_queue(conf: Settings) -> Queue:
    return Queue(
        conf.task_default_queue,
        routing_key=conf.task_default_routing_key,
        queue_arguments=_arguments_of(conf.task_default_queue_type),
    )


def _arguments_of(queue_type: str) -> dict[str, Any] | None:
    return None if queue_type == "classic" else {"x-queue-type": queue_type}


def _text(name: str, option: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{option}={value!r:.80} of {name}: expected text")


def _kind(name: str, value: Any) -> str:
    try:
        return exchange_type(value)
    except ValueError as error:
        raise ValueError(f"exchange_type={value!r:.80} of {name}: {error}") from None


def _mode(name: str, value: Any) -> int:
    try:
        mode: int = DELIVERY_MODE.convert(value)
    except ValueError:
        raise ValueError(
            f"delivery_mode={value!r:.80} of {name}: expected {DELIVERY_MODE.expected}"
        ) from None
    return mode


def _near(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
