"""From a call to a message on the broker: options checked, defaults merged, links attached."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import announcing, serialization, signals
from minicelery._state import request_var
from minicelery.canvas import links_for_body
from minicelery.exceptions import EncodeError, ImproperlyConfigured, QueueNotFound
from minicelery.limits import of_task
from minicelery.message import (
    HeadersTemplate,
    Message,
    Origin,
    encode_body,
    iso,
    new_id,
    new_ids,
    short_repr,
)
from minicelery.options import (
    PLACED,
    check_carried,
    check_limits,
    check_priority,
    check_text,
    due_time,
    publish_attempts,
    set_expiry,
)
from minicelery.request import Request
from minicelery.result import AsyncResult
from minicelery.routing.router import ADDRESS, Route, Router
from minicelery.unique import UniqueCalls, mark

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.task import Task


MOST_ROUTES = 1000
"""Queues named by calls of one task whose routes are kept."""

around_publish: Callable[[Celery, Sequence[Message], Callable[[], Any]], Any] | None = None
"""Called with the app, the messages and what publishes them, where another library is to see it."""


class Defaults:
    """What a task's own options and the settings give every message of it; made once."""

    __slots__ = (
        "_templates",
        "attempts", "deadline", "compression", "direct_results", "expires", "ignore_result", "priority", "revision", "route", "routes",
        "serializer", "soft_time_limit", "task", "tells", "time_limit", "tracks", "unique",
    )  # fmt: skip

    def __init__(self, app: Celery, task: Task[Any, Any] | None, router: Router) -> None:
        conf = app.conf
        self.task = task
        self.route = _plain_route(router, task)
        # By the queues that calls have named; None where the answer may depend on more than that.
        self.routes: dict[str, Route] | None = None if router.has_routes else {}
        self.revision = conf.revision
        self.attempts = publish_attempts(conf, {})
        self.tells: bool = conf.task_send_sent_event
        self.direct_results = (conf.result_backend or "").partition(":")[0] == "rpc"
        self.tracks = bool(conf.task_track_sent and conf.result_backend) and not self.direct_results
        self.deadline: float = conf.task_publish_deadline
        self.serializer = task.serializer if task else conf.task_serializer
        self.compression = task.compression if task else conf.task_compression
        self.priority = task.priority if task else conf.task_default_priority
        self.ignore_result = bool(task.ignore_result) if task else None  # None: the worker decides
        self.expires = task.expires if task else None
        # Limits of the settings are the worker's own affair; the message names the task's.
        own = vars(task) | {} if task else {}
        kind = type(task)
        self.time_limit = own.get("time_limit", _plain(kind, "time_limit"))
        self.soft_time_limit = own.get("soft_time_limit", _plain(kind, "soft_time_limit"))
        if self.priority is not None:
            check_priority(self.priority)
        limits = of_task(task, conf) if task else None
        self.unique = limits if limits is not None and limits.window else None
        self._templates: dict[tuple[str, str], HeadersTemplate] = {}

    def headers(self, name: str) -> HeadersTemplate:
        """The headers of a plain call of the task `name` by this process."""
        found = self._templates.get((name, Origin.name))
        if found is None:
            found = self._templates[name, Origin.name] = HeadersTemplate({
                "lang": "py", "task": name, "id": None, "shadow": None, "eta": None, "expires": None,
                "group": None, "group_index": None, "retries": 0,
                "timelimit": [self.time_limit, self.soft_time_limit], "root_id": None, "parent_id": None,
                "argsrepr": "", "kwargsrepr": "", "origin": Origin.name, "ignore_result": self.ignore_result,
                "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
            })  # fmt: skip
        return found


def _plain_route(router: Router, task: Task[Any, Any] | None) -> Route | None:
    """Where calls of `task` go that say nothing about it; None: to be asked for each call."""
    if router.has_routes if task is None else not router.static:
        return None
    try:
        route = router.route("", task=None) if task is None else router.route(task.name, task=task)
    except (ImproperlyConfigured, QueueNotFound, ValueError):
        return None  # the error is that of the call, which may name a queue of its own
    return route if route.plain else None


def _plain(kind: type, name: str) -> Any:
    for owner in kind.__mro__:
        if name in vars(owner):
            value = vars(owner)[name]
            return None if hasattr(value, "__get__") else value
    return None


class Sender:
    """Makes an app's messages and publishes them."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._nameless: Defaults | None = None  # for tasks this process does not know
        self._router: Router | None = None
        self._unique = UniqueCalls(app)

    @property
    def router(self) -> Router:
        """The queues and routes, made anew when a setting has changed since."""
        conf = self.app.conf
        found = self._router
        if found is None or found.revision != conf.revision:
            found = self._router = Router(conf)
        return found

    def defaults(self, task: Task[Any, Any] | None) -> Defaults:
        """The defaults of `task`, made anew when a setting has changed since."""
        found: Defaults | None = self._nameless if task is None else task.__dict__.get("_send_defaults")
        conf = self.app._settings
        if found is None or conf is None or found.revision != conf.revision:
            found = Defaults(self.app, task, self.router)
            if task is None:
                self._nameless = found
            else:
                task.__dict__["_send_defaults"] = found
        return found

    def send(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        task: Task[Any, Any] | None,
    ) -> AsyncResult[Any]:
        """Publish one call and return its result handle."""
        defaults = self.defaults(task)
        message = self.message(name, args, kwargs, options, defaults, new_id())
        if defaults.unique is not None:
            mark(message, defaults.unique, args, kwargs)
        there = self.publish([message], options, defaults)
        return self._result(message, name, options, defaults, there)

    def send_many(
        self,
        name: str,
        calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
        options: Mapping[str, Any],
        task: Task[Any, Any] | None,
    ) -> list[AsyncResult[Any]]:
        """Publish many calls of one task with the same options."""
        if "task_id" in options:
            raise TypeError("task_id= can't be given to apply_many: every call needs an id of its own")
        if not calls:
            return []
        defaults = self.defaults(task)
        messages = [
            self.message(name, args, kwargs, options, defaults, id)
            for (args, kwargs), id in zip(calls, new_ids(len(calls)), strict=True)
        ]
        if defaults.unique is not None:
            for message, (args, kwargs) in zip(messages, calls, strict=True):
                mark(message, defaults.unique, args, kwargs)
        there = self.publish(messages, options, defaults)
        if request_var.get() is None and not defaults.ignore_result and not options and not there:
            app = self.app
            return [AsyncResult(message.id, None, name, app) for message in messages]
        return [self._result(message, name, options, defaults, there) for message in messages]

    def _result(
        self,
        message: Message,
        name: str,
        options: Mapping[str, Any],
        defaults: Defaults,
        there: Mapping[str, str] | None,
    ) -> AsyncResult[Any]:
        id = there.get(message.id, message.id) if there else message.id
        result: AsyncResult[Any] = AsyncResult(id, None, name, self.app)
        result._ignored = bool(message.headers["ignore_result"])
        request = request_var.get()
        if (
            request is not None
            and request.id
            and request.task_object.trail
            and options.get("add_to_parent", True)
        ):
            request.children.append(result)
        return result

    # -- publishing ------------------------------------------------------------------------

    def publish(
        self,
        messages: list[Message],
        options: Mapping[str, Any] | None = None,
        defaults: Defaults | None = None,
        through: Callable[[list[Message], float | None], Mapping[str, str] | None] | None = None,
    ) -> Mapping[str, str] | None:
        """Hand the messages to the broker, within the publish deadline.  Raises OperationalError.

        Returns the ids of unique calls that are not sent, with that of the one that is there.
        `through` publishes in the broker's stead: messages, and seconds.
        """
        if signals.before_task_publish.receivers:
            for message in messages:
                announcing.before(self.app, message, options or {})
        defaults = defaults or self.defaults(None)
        attempts = defaults.attempts
        if options and ("retry" in options or "retry_policy" in options):
            attempts = publish_attempts(self.app.conf, options)
        if defaults.direct_results:
            self._ask_for_replies(messages)
        broker = self.app._broker or self.app.broker
        copies = messages
        for message in messages:
            if message.exchange:
                copies = self.expand(messages)
                break
        if defaults.tracks:
            announcing.note_sent(self.app, messages)
        if defaults.unique is not None:
            there = self._unique.publish(copies, defaults, attempts)
        elif through is not None:
            there = through(copies, defaults.deadline)
        elif around_publish is None:
            there = broker.publish(copies, deadline=defaults.deadline, attempts=attempts)
        else:
            publish = functools.partial(broker.publish, copies, deadline=defaults.deadline, attempts=attempts)
            there = around_publish(self.app, copies, publish)
        if there and defaults.direct_results:
            self.app.backend.forget(list(there))
        if defaults.tells:
            announcing.tell(self.app, [one for one in messages if not there or one.id not in there])
        if signals.after_task_publish.receivers or signals.task_sent.receivers:
            for message in messages:
                if not there or message.id not in there:
                    announcing.after(message)
        return there

    def close(self) -> None:
        """Close the connections that only senders have."""
        self._unique.close()

    def _ask_for_replies(self, messages: Sequence[Message]) -> None:
        """Have the results of the calls sent to this app: ``rpc://``."""
        replies: Any = self.app.backend
        wanted = [message for message in messages if not message.headers.get("ignore_result")]
        for message in wanted:
            if message.properties.get("reply_to") in (None, Origin.client_id):
                message.properties["reply_to"] = replies.queue
        if wanted:
            replies.expect([message.id for message in wanted])

    def expand(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the broker takes them: one for each queue where it has no exchanges."""
        broker = self.app._broker or self.app.broker
        if getattr(broker, "has_exchanges", False):
            return list(messages)
        return [copy for message in messages for copy in self.router.expand(message)]

    # -- building --------------------------------------------------------------------------

    def message(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        defaults: Defaults,
        id: str,
    ) -> Message:
        """One call as a message of protocol 2.

        Raises EncodeError naming the argument, ValueError or ImproperlyConfigured naming the option.
        """
        if not Origin.name:
            Origin.refresh()
        parent = request_var.get()
        inside = parent is not None and parent.id is not None
        route = defaults.route
        if options or route is None:
            return self.message_with(name, args, kwargs, options, defaults, id, parent if inside else None)
        try:
            body, content_type, encoding = encode_body(args, kwargs, defaults.serializer)
        except EncodeError as error:
            raise self._explain(error, name, args, kwargs, defaults.serializer) from error
        headers, text = defaults.headers(name).fill(
            id, short_repr(args), short_repr(kwargs) if kwargs else "{}"
        )
        message = Message(
            id, name, body, headers, route.queue, defaults.priority, content_type, encoding,
            route.exchange, route.routing_key, {"correlation_id": id, "reply_to": Origin.client_id}, None, None, text,
        )  # fmt: skip
        if inside:
            assert parent is not None
            headers |= {"root_id": parent.root_id, "parent_id": parent.id}
            message.headers_text = ""
            message.priority = self._priority(defaults.priority, parent)
        if defaults.expires is not None:
            set_expiry(message, defaults.expires, time.time(), self.app.conf.zone())
        if defaults.compression is not None:
            self.compress(message, defaults.compression)
        return message

    def message_with(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        defaults: Defaults,
        id: str,
        parent: Request | None,
        route: Route | None = None,
    ) -> Message:
        if route is None:
            route, options = self.routed(name, args, kwargs, options, defaults)
        get = options.get
        given = check_text(get("task_id"), "task_id", name)
        id = given or id
        serializer = get("serializer") or defaults.serializer
        links = (
            links_for_body(get("link"), "link", name),
            links_for_body(get("link_error"), "link_error", name),
            get("chain"),
            get("chord"),
        )
        try:
            body, content_type, encoding = encode_body(args, kwargs, serializer, links)
        except EncodeError as error:
            raise self._explain(error, name, args, kwargs, serializer) from error
        except ImproperlyConfigured as error:  # an unknown serializer, or one whose extra is missing
            raise ImproperlyConfigured(f"{name}: {error}") from error
        hard = defaults.time_limit if get("time_limit") is None else get("time_limit")
        soft = defaults.soft_time_limit if get("soft_time_limit") is None else get("soft_time_limit")
        check_limits(hard, soft, name)
        ignore = get("ignore_result")
        headers: dict[str, Any] = {
            "lang": "py", "task": name, "id": id, "shadow": get("shadow"), "eta": None, "expires": None,
            "group": get("group_id"), "group_index": get("group_index"), "retries": get("retries") or 0,
            "timelimit": [hard, soft],
            "root_id": get("root_id") or (parent.root_id if parent else id),
            "parent_id": get("parent_id") or (parent.id if parent else None),
            "argsrepr": get("argsrepr") or short_repr(args),
            "kwargsrepr": get("kwargsrepr") or short_repr(kwargs),
            "origin": Origin.name,
            "ignore_result": defaults.ignore_result if ignore is None else bool(ignore),
            "replaced_task_nesting": get("replaced_task_nesting") or 0,
            "stamped_headers": get("stamped_headers"), "stamps": get("stamps") or {},
        }  # fmt: skip
        if (own := get("headers")) is not None:
            if not isinstance(own, Mapping) or not all(isinstance(key, str) for key in own):
                raise ValueError(
                    f"headers= of {name} takes a dict with text keys, got {short_repr([own], 80)}"
                )
            headers.update(own)
        properties = {"correlation_id": id, "reply_to": get("reply_to") or Origin.client_id}
        properties.update((key, value) for key, value in options.items() if key not in PLACED)
        if route.delivery_mode != 2:
            properties["delivery_mode"] = route.delivery_mode
        check_carried(name, "headers", headers)
        check_carried(name, "option", properties)
        message = Message(
            id, name, body, headers, route.queue, self._priority(get("priority", defaults.priority), parent),
            content_type, encoding, route.exchange, route.routing_key, properties,
        )  # fmt: skip
        now = time.time()
        if (countdown := get("countdown")) is not None or get("eta") is not None:
            eta: Any = get("eta")
            zone = self.app.conf.zone()
            message.due = due_time(name, countdown, eta, now, zone)
            # A naive eta is sent naive, as Celery does; the worker reads it in its own zone.
            headers["eta"] = eta.isoformat() if countdown is None else iso(message.due, zone)
        if (expires := get("expires", defaults.expires)) is not None:
            set_expiry(message, expires, now, self.app.conf.zone())
        if compression := get("compression") or defaults.compression:
            self.compress(message, compression)
        return message

    def routed(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        defaults: Defaults,
    ) -> tuple[Route, Mapping[str, Any]]:
        """Where a call of the task goes, and its options with those that come from there."""
        address = ADDRESS.intersection(options)
        if not address and defaults.route is not None:
            return defaults.route, options
        routes, queue = defaults.routes, options.get("queue")
        named = queue if routes is not None and len(address) == 1 and type(queue) is str else None
        if named is not None and routes is not None and (found := routes.get(named)) is not None:
            return found, options
        route = self.router.route(name, args, kwargs, options, defaults.task)
        if named is not None and routes is not None and len(routes) < MOST_ROUTES:
            routes[named] = route
        return route, {**options, **route.options}

    def _priority(self, priority: Any, parent: Request | None) -> int | None:
        if priority is None and parent is not None and self.app.conf.task_inherit_parent_priority:
            info = parent.delivery_info
            priority = info and info["priority"]
        return None if priority is None else check_priority(priority)

    def compress(self, message: Message, name: str) -> None:
        """Compress the body.  Raises ImproperlyConfigured naming what is missing."""
        try:
            message.body, message.headers["compression"] = serialization.compress(message.body, name)
        except ImproperlyConfigured as error:
            raise ImproperlyConfigured(f"{message.task}: {error}") from error
        message.headers_text = ""

    def _explain(
        self, error: EncodeError, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], serializer: str
    ) -> EncodeError:
        """The same error with the argument's name and type in it."""
        task = self.app.tasks.get(name)
        named: dict[str, Any] = {f"number {place}": value for place, value in enumerate(args, 1)} | dict(
            kwargs
        )
        if task is not None:
            try:
                named = dict(task.__signature__.bind_partial(*args, **kwargs).arguments)
            except TypeError:
                pass  # keep the numbers
        for argument, value in named.items():
            try:
                serialization.dumps(value, serializer)
            except EncodeError:
                kind = type(value).__name__
                hint = (
                    f"pass {argument}.pk and load it in the task"
                    if hasattr(value, "pk")
                    else ("pass plain data: numbers, text, lists, dicts, dates")
                )
                return EncodeError(
                    f"argument {argument!r} of {name} is a {kind}, which the {serializer} serializer cannot carry "
                    f"({error}); {hint}"
                )
        return error
