"""Tasks: what `@app.task` makes of a function."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from minicelery import states
from minicelery._state import get_current_app, request_var
from minicelery.awaiting import in_thread
from minicelery.composing import Composing
from minicelery.exceptions import BrokerUnavailable, MaxRetriesExceededError, OperationalError, Retry
from minicelery.hooks import Hooks
from minicelery.options import RETRY_NAMES, check_arguments_shape, check_call, check_dates, check_retry
from minicelery.request import Request, pop, push, within
from minicelery.retrying import raise_current, retry_arguments
from minicelery.retrying import retry_delay as retry_delay

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar  # stubs, known to every type checker

    from minicelery.app import Celery
    from minicelery.result import AsyncResult, EagerResult

    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any)
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


class FromConfig:
    """A task attribute that is the app's setting until the task has its own."""

    def __init__(self, setting: str) -> None:
        self.setting = setting

    def __get__(self, task: Task[Any, Any] | None, owner: type) -> Any:
        if task is None or task.app is None:
            return None
        return getattr(task.app.conf, self.setting)


class Task(Composing[P, R], Hooks, Generic[P, R]):
    """A function that a worker can be asked to run.

    Attributes set on a subclass, or given to `@app.task(…)`, are this task's options.
    One object serves every attempt: what belongs to one attempt is in `self.request`.
    Each task has a class of its own, below the one that `base=` or `app.Task` names.
    """

    name: str = ""
    app: Celery = None  # type: ignore[assignment]  # set when the task is registered
    abstract: ClassVar[bool] = True
    typing: bool | None = None  # check arguments when the task is called; None: as the app's strict_typing
    max_retries: int | None = 3  # None: for ever
    default_retry_delay: float | timedelta = 180
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600
    retry_jitter: bool = True
    throws: tuple[type[BaseException], ...] = ()  # expected: logged at INFO, without traceback
    expires: float | timedelta | datetime | None = None
    queue: Any = None
    exchange: Any = None
    exchange_type: str | None = None
    routing_key: str | None = None
    delivery_mode: int | str | None = None
    immediate: bool | None = None
    mandatory: bool | None = None
    trail: bool = True  # remember in `request.children` what this task sends
    send_events: bool = True
    resultrepr_maxsize: int = 1024
    rate_limit: str | float | None = None
    rate_limit_key: Any = None
    concurrency_limit: int | None = None
    concurrency_limit_key: Any = None
    unique: bool | float | timedelta | None = None
    unique_key: Any = None
    serializer: Any = FromConfig("task_serializer")
    compression: Any = FromConfig("task_compression")
    priority: Any = FromConfig("task_default_priority")
    ignore_result: Any = FromConfig("task_ignore_result")
    store_errors_even_if_ignored: Any = FromConfig("task_store_errors_even_if_ignored")
    track_started: Any = FromConfig("task_track_started")
    acks_late: Any = FromConfig("task_acks_late")
    acks_on_failure: Any = FromConfig("task_acks_on_failure")
    acks_on_timeout: Any = FromConfig("task_acks_on_timeout")
    acks_on_failure_or_timeout: Any = FromConfig("task_acks_on_failure_or_timeout")
    reject_on_worker_lost: Any = FromConfig("task_reject_on_worker_lost")
    retry_on_worker_lost: Any = FromConfig("task_retry_on_worker_lost")
    time_limit: Any = FromConfig("task_time_limit")
    soft_time_limit: Any = FromConfig("task_soft_time_limit")
    store_eager_result: Any = FromConfig("task_store_eager_result")

    from_config: ClassVar[tuple[tuple[str, str], ...]] = ()
    """More attributes that are a setting until the task has its own: pairs of their names."""
    Strategy: ClassVar[str] = "celery.worker.strategy:default"
    MaxRetriesExceededError = MaxRetriesExceededError
    OperationalError = OperationalError

    run: Callable[..., Any]

    _settled = False  # its base, `__init__`, annotations and hooks are in place; done at the first use
    _prepares = False  # its calls have their arguments dumped, or a shadow name
    _dump_arguments: Callable[[Any, Any], tuple[Any, Any]] | None = None  # of pydantic=True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, as an ordinary call; of `async def` tasks it gives the coroutine."""
        outer = request_var.get()
        if outer is not None and outer.entering and outer.task_object is self:
            outer.entering = False  # the worker's own call: its request is the one
            result: R = self.run(*args, **kwargs)
            return result
        if not self._settled and self.app is not None:
            self._settle()
        request = Request(self, args=args, kwargs=kwargs, outer=outer)
        token = request_var.set(request)
        try:
            result = self.run(*args, **kwargs)
        finally:
            request_var.reset(token)
        if type(result) is types.CoroutineType:
            coroutine: Any = result
            coroutine = within(request, coroutine)
            return coroutine  # type: ignore[no-any-return]  # which gives R when it is awaited
        return result

    @property
    def request(self) -> Request:
        """The attempt that runs in this thread; an empty one outside of the task."""
        request = request_var.get()
        if request is None or request.task_object is not self:
            return Request(self)
        return request

    def push_request(self, *args: Any, **values: Any) -> None:
        """Have `self.request` be one with these values until `pop_request`: for tests."""
        push(self, *args, values)

    def pop_request(self) -> None:
        """Undo the latest `push_request`.  Raises RuntimeError where there was none."""
        pop(self)

    @property
    def backend(self) -> Any:
        """Where results are stored: the app's backend."""
        return self.app.backend

    # -- calling -----------------------------------------------------------------------

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call with these arguments; see `apply_async` for options."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send a call to a worker.

        Options: `countdown` (seconds), `eta` (datetime), `expires` (seconds or datetime),
        `task_id`, `queue`, `exchange`, `routing_key`, `priority` (0–9), `serializer`,
        `compression`, `link`, `link_error`, `headers`, `shadow`, `ignore_result`,
        `time_limit` and `soft_time_limit` (seconds), `retry`, `retry_policy`,
        `add_to_parent`, `root_id`, `parent_id`, `group_id`, `group_index`, `reply_to`,
        `argsrepr`, `kwargsrepr`, `stamped_headers`.  Any other option becomes a property of
        the message, unless it is nearly one of these.

        Raises TypeError where the arguments don't fit the function or an option is misspelt,
        ValueError for an option's value, EncodeError where an argument can't be carried,
        OperationalError where the broker can't be reached in time.
        """
        if not self._settled:
            self._settle()
        if args is None:
            args = ()
        if kwargs is None:
            kwargs = {}
        if type(args) is not tuple or type(kwargs) is not dict:
            check_arguments_shape(self.name, args, kwargs)
        if self.typing:
            least, most = self._positional_range
            if kwargs or not least <= len(args) <= most:
                self.check_arguments(args, kwargs)
        app = self.app
        conf = app._settings
        if conf is None:
            conf = app.conf
        if conf.task_always_eager:
            return self.apply(args, kwargs, **options)
        given: Mapping[str, Any] = options
        if options:
            given = check_call(self.name, options, conf)
        if self._prepares:
            args, kwargs, given = self._prepared(args, kwargs, given)
        return app._sender.send(self.name, args, kwargs, given, self)

    def apply_many(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]], **options: Any
    ) -> list[AsyncResult[R]]:
        """Send many calls in as few trips as the broker can; results in the order of `calls`.

        Each call is a sequence of positional arguments, or a mapping of keyword arguments.
        The options are those of `apply_async` except `task_id`, and hold for every call.
        """
        if not self._settled:
            self._settle()
        if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Iterable):
            raise TypeError(
                f"calls={calls!r:.80} of {self.name}: expected a list of arguments, one for each call"
            )
        if options.get("task_id") is not None:
            raise TypeError(
                f"task_id={options['task_id']!r:.80} of {self.name}: expected none, each call has its own"
            )
        pairs: list[tuple[Sequence[Any], Mapping[str, Any]]] = [
            ((), call) if isinstance(call, Mapping) else (call, {}) for call in calls
        ]
        for args, kwargs in pairs:
            if type(args) is not tuple:
                check_arguments_shape(self.name, args, kwargs)
        if self.typing:
            least, most = self._positional_range
            for args, kwargs in pairs:
                if kwargs or not least <= len(args) <= most:
                    self.check_arguments(args, kwargs)
        if self.app.conf.task_always_eager:
            return [self.apply(args, kwargs, **options) for args, kwargs in pairs]
        given: Mapping[str, Any] = options
        if options:
            given = check_call(self.name, options, self.app.conf)
        if self._prepares:
            prepared = [self._prepared(*pair, given) for pair in pairs]
            if any(own is not given for _, _, own in prepared):  # each with a shadow name of its own
                return [self.app._sender.send(self.name, *call, self) for call in prepared]
            pairs = [(args, kwargs) for args, kwargs, _ in prepared]
        return self.app._sender.send_many(self.name, pairs, given, self)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """`delay`, without blocking the event loop."""
        return await in_thread(self.app, functools.partial(self.delay, *args, **kwargs), BrokerUnavailable)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """`apply_async`, without blocking the event loop."""
        return await in_thread(
            self.app, functools.partial(self.apply_async, args, kwargs, **options), BrokerUnavailable
        )

    async def aapply_many(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]], **options: Any
    ) -> list[AsyncResult[R]]:
        """`apply_many`, without blocking the event loop."""
        return await in_thread(
            self.app, functools.partial(self.apply_many, calls, **options), BrokerUnavailable
        )

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult[R]:
        """Run the task here and now, as a worker would, and return its result.

        Retries run at once, without their delay.  `throw=True` raises what the task raised.
        Arguments and result go through the serializer, so that they are what a worker and
        its caller would see.
        """
        if not self._settled:
            self._settle()
        args, kwargs = () if args is None else args, {} if kwargs is None else kwargs
        check_arguments_shape(self.name, args, kwargs)
        conf = self.app.conf
        given = check_call(self.name, options, conf)
        check_dates(self.name, given, conf.zone())
        if self._prepares:
            args, kwargs, given = self._prepared(args, kwargs, given)
        return self.app._run_eagerly(self, args, kwargs, given)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult[R]:  # noqa: N802 - Celery's name
        """The result of one of this task's calls."""
        return self.app.AsyncResult(task_id, **kwargs)

    # -- inside an attempt ---------------------------------------------------------------

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | str | None = None,
        throw: bool = True,
        eta: datetime | str | None = None,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """End this attempt and have another one made; write ``raise self.retry(…)``.

        The new attempt leaves with this one's outcome, in one step.  It starts `countdown`
        seconds from now (default: `default_retry_delay`) or at `eta`.  Raises `exc`, or
        MaxRetriesExceededError, when `max_retries` have been made.  New `args`, or new
        `kwargs`, replace the old arguments of the same names; both together replace all.
        """
        request = self.request
        check_retry(self.name, args, kwargs, exc, max_retries)
        if request.called_directly:
            raise_current(exc if exc and not isinstance(exc, str) else Retry("Task can be retried", None))
        given: Mapping[str, Any] = options
        if options:
            given = check_call(self.name, options, self.app.conf, names=RETRY_NAMES)
        if self._dump_arguments is not None:
            dumped = self._dump_arguments(args or (), kwargs or {})
            args, kwargs = (args and dumped[0]), (kwargs and dumped[1])
        new_args, new_kwargs = retry_arguments(self.__signature__, request, args, kwargs)
        limit = self.max_retries if max_retries is None else max_retries
        if limit is not None and request.retries + 1 > limit:
            if exc is not None and not isinstance(exc, str):
                raise_current(exc)
            raise MaxRetriesExceededError(
                f"Can't retry {self.name}[{request.id}] args:{tuple(new_args)} kwargs:{new_kwargs}",
                task_args=new_args,
                task_kwargs=new_kwargs,
            )
        if eta is None and countdown is None:
            countdown = self.default_retry_delay
        if isinstance(countdown, timedelta):
            countdown = countdown.total_seconds()
        when: Any = countdown if countdown is not None else eta
        if request.message is None:  # of `push_request`: there is no outcome to leave with
            given = {**given, "countdown": countdown, "eta": eta, "retries": request.retries + 1}
            self.signature_from_request(request, new_args, new_kwargs, **given).apply_async()
        else:
            message = self.app._retry_message(request, new_args, new_kwargs, countdown, eta, given)
            request.outbox.append(message)
        retry = Retry(exc=exc, when=when, is_eager=request.is_eager)
        if throw:
            raise retry from None if isinstance(exc, str) else exc
        return retry

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **_: Any
    ) -> None:
        """Store `state` and `meta` as this task's result so far: one trip to the backend."""
        if state is not None and not isinstance(state, str):
            raise ValueError(f"state={state!r:.80} of {self.name}: expected text, such as 'PROGRESS'")
        request = self.request
        id = task_id or request.id
        if id is None:
            raise ValueError(f"update_state of {self.name} outside of a task needs task_id=")
        self.app._store_state(id, state or states.STARTED, meta, request)

    def send_event(self, type_: str, **fields: Any) -> None:
        """Send an event of your own about the running task, such as ``task-progress``.

        Raises EncodeError where JSON can't carry a field, OperationalError where the broker can't be reached.
        """
        fields.pop("retry", None)
        fields.pop("retry_policy", None)
        request = self.request
        with self.app.events.default_dispatcher(request.hostname) as dispatcher:
            dispatcher.send(type_, uuid=request.id, **fields)

    def add_trail(self, result: Any) -> Any:
        """Remember a result among `request.children`, unless `trail` is off; returns it."""
        if self.trail:
            self.request.children.append(result)
        return result

    # -- arguments -------------------------------------------------------------------------

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.run)

    @functools.cached_property
    def _positional_range(self) -> tuple[int, int]:
        """How many positional arguments fit by themselves; (1, 0) where only `bind` can tell."""
        least = most = 0
        for parameter in self.__signature__.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                most = sys.maxsize
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                least += parameter.default is parameter.empty
                most += most < sys.maxsize
            elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                return 1, 0
        return least, most

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError unless the function takes these arguments."""
        if not kwargs:
            least, most = self._positional_range
            if least <= len(args) <= most:
                return
        try:
            self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.__signature__}: {error}") from None

    def _settle(self) -> None:
        if self.app is None:
            raise RuntimeError(
                f"{type(self).__name__} is not a task of any app yet: app.register_task({type(self).__name__})"
            )
        self.app._settle(self)

    def _prepared(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        """A call as it is sent: with its shadow name, and with pydantic's models as plain data."""
        if not options.get("shadow") and (shadow := self.shadow_name(args, kwargs, options)):
            options = {**options, "shadow": shadow}
        if self._dump_arguments is not None and (options.get("serializer") or self.serializer) != "pickle":
            args, kwargs = self._dump_arguments(args, kwargs)
        return args, kwargs, options

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__.pop("_send_defaults", None)  # made from the attributes as they were

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {self.app.main if self.app else None}>"

    def __reduce__(self) -> Any:
        return _find_task, (self.name, type(self).__module__)

    if not TYPE_CHECKING:
        Request = "celery.worker.request:Request"

        def __class_getitem__(cls, parameters):
            try:
                return super().__class_getitem__(parameters)
            except TypeError:  # Celery takes any parameters
                return types.GenericAlias(cls, parameters)

        def __getattr__(self, name):
            if self.app is not None and not self._settled and not name.startswith("__"):
                self._settle()  # its base or its `__init__` may have it
                return getattr(self, name)
            raise AttributeError(f"task {self.name or type(self).__name__} has no attribute {name!r}")


if TYPE_CHECKING:

    class CoroutineTask(Task[P, R]):
        """A task made of an `async def` function, for type checkers: a call gives its coroutine."""

        def __call__(  # type: ignore[override]  # its result is that of the coroutine
            self, *args: P.args, **kwargs: P.kwargs
        ) -> Coroutine[Any, Any, R]: ...


def _find_task(name: str, module: str | None = None) -> Task[..., Any]:
    tasks = get_current_app().tasks
    if name not in tasks and module is not None:
        importlib.import_module(module)
    return tasks[name]
