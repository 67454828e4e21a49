"""Tasks: what `@app.task` makes of a function."""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, ParamSpec, TypeVar

from minicelery import states
from minicelery._state import get_current_app, request_var
from minicelery.canvas import Signature
from minicelery.exceptions import MaxRetriesExceededError, Retry
from minicelery.request import Request

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.result import AsyncResult, EagerResult

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


class Task(Generic[P, R]):
    """A function that a worker can be asked to run.

    Attributes set on a subclass, or given to `@app.task(…)`, are this task's options.
    One object serves every attempt: what belongs to one attempt is in `self.request`.
    """

    name: str = ""
    app: Celery = None  # type: ignore[assignment]  # set when the task is registered
    abstract: ClassVar[bool] = True
    typing: bool = True  # check arguments against the signature when the task is called
    max_retries: int | None = 3  # None: for ever
    default_retry_delay: float = 180
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600
    retry_jitter: bool = True
    throws: tuple[type[BaseException], ...] = ()  # expected: logged at INFO, without traceback
    expires: float | timedelta | datetime | None = None
    queue: str | None = None
    trail: bool = True  # remember in `request.children` what this task sends
    resultrepr_maxsize: int = 1024
    rate_limit: str | float | None = None
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

    MaxRetriesExceededError = MaxRetriesExceededError

    run: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, as an ordinary call."""
        request = request_var.get()
        if request is not None and request.entering and request.task_object is self:
            request.entering = False  # the worker's own call: its request is the one
            result: R = self.run(*args, **kwargs)
            return result
        token = request_var.set(Request(self, args=args, kwargs=kwargs))
        try:
            result = self.run(*args, **kwargs)
            return result
        finally:
            request_var.reset(token)

    @property
    def request(self) -> Request:
        """The attempt that runs in this thread; an empty one outside of the task."""
        request = request_var.get()
        if request is None or request.task_object is not self:
            return Request(self)
        return request

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
        `task_id`, `queue`, `priority` (0–9), `serializer`, `compression`, `link`,
        `link_error`, `headers`, `shadow`, `ignore_result`, `time_limit` and
        `soft_time_limit` (seconds), `retry`, `retry_policy`, `add_to_parent`, `root_id`,
        `parent_id`, `group_id`, `group_index`, `reply_to`, `argsrepr`, `kwargsrepr`.  Any
        other option becomes a property of the message.

        Raises TypeError where the arguments don't fit the function, EncodeError where one
        can't be carried, OperationalError where the broker can't be reached in time.
        """
        if args is None:
            args = ()
        if kwargs is None:
            kwargs = {}
        if self.typing:
            least, most = self._positional_range
            if kwargs or not least <= len(args) <= most:
                self.check_arguments(args, kwargs)
        app = self.app
        conf = app._settings
        if (app.conf if conf is None else conf).task_always_eager:
            return self.apply(args, kwargs, **options)
        return app._sender.send(self.name, args, kwargs, options, self)

    def apply_many(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]], **options: Any
    ) -> list[AsyncResult[R]]:
        """Send many calls in as few trips as the broker can; results in the order of `calls`.

        Each call is a sequence of positional arguments, or a mapping of keyword arguments.
        The options are those of `apply_async` except `task_id`, and hold for every call.
        """
        pairs: list[tuple[Sequence[Any], Mapping[str, Any]]] = [
            ((), call) if isinstance(call, Mapping) else (call, {}) for call in calls
        ]
        if self.typing:
            least, most = self._positional_range
            for args, kwargs in pairs:
                if kwargs or not least <= len(args) <= most:
                    self.check_arguments(args, kwargs)
        if self.app.conf.task_always_eager:
            return [self.apply(args, kwargs, **options) for args, kwargs in pairs]
        return self.app._sender.send_many(self.name, pairs, options, self)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult[R]:
        """Run the task here and now, as a worker would, and return its result.

        Retries run at once, without their delay.  `throw=True` raises what the task raised.
        """
        return self.app._run_eagerly(self, args or (), kwargs or {}, options)

    def signature(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature:
        """This task with arguments and options, not yet sent."""
        return Signature(self, args, kwargs, **options)

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature with these arguments."""
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature that takes these arguments only, never a previous result."""
        return Signature(self, args, kwargs, immutable=True)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult[R]:  # noqa: N802 - Celery's name
        """The result of one of this task's calls."""
        return self.app.AsyncResult(task_id, **kwargs)

    # -- inside an attempt ---------------------------------------------------------------

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
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
        if request.called_directly:
            _raise_current(exc or Retry("Task can be retried", None))
        new_args, new_kwargs = self._retry_arguments(request, args, kwargs)
        limit = self.max_retries if max_retries is None else max_retries
        if limit is not None and request.retries + 1 > limit:
            if exc is not None:
                _raise_current(exc)
            raise MaxRetriesExceededError(
                f"Can't retry {self.name}[{request.id}] args:{tuple(new_args)} kwargs:{new_kwargs}",
                task_args=new_args,
                task_kwargs=new_kwargs,
            )
        if eta is None and countdown is None:
            countdown = self.default_retry_delay
        when = countdown if countdown is not None else eta
        message = self.app._retry_message(request, new_args, new_kwargs, countdown, eta, options)
        request.outbox.append(message)
        retry = Retry(exc=exc, when=when, is_eager=request.is_eager)
        if throw:
            raise retry from exc
        return retry

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **_: Any
    ) -> None:
        """Store `state` and `meta` as this task's result so far: one trip to the backend."""
        request = self.request
        id = task_id or request.id
        if id is None:
            raise ValueError(f"update_state of {self.name} outside of a task needs task_id=")
        self.app._store_state(id, state or states.STARTED, meta, request)

    def send_event(self, type_: str, **fields: Any) -> None:
        """Send a custom event; nothing listens until events are served."""

    # -- handlers: override these ----------------------------------------------------------

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before each attempt."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called after an attempt that returned."""

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called after an attempt that asked for another."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task has failed for good."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called after each attempt, however it ended."""

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
        try:
            self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.__signature__}: {error}") from None

    def _retry_arguments(
        self, request: Request, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """What a retry is called with: the old arguments where new ones don't replace them by name."""
        if args is None and kwargs is None:
            return request.args, request.kwargs
        if args is not None and kwargs is not None:
            return tuple(args), kwargs
        parameters = self.__signature__.parameters
        names = [name for name, found in parameters.items() if found.kind is found.POSITIONAL_OR_KEYWORD]
        if args is not None:
            taken = set(list(parameters)[: len(args)]).intersection(names)
            return tuple(args), {name: value for name, value in request.kwargs.items() if name not in taken}
        assert kwargs is not None
        try:
            bound = self.__signature__.bind_partial(*request.args)
        except TypeError:
            return request.args, kwargs
        replaced = {name: kwargs[name] for name in bound.arguments if name in kwargs and name in names}
        bound.arguments.update(replaced)
        return bound.args, {name: value for name, value in kwargs.items() if name not in replaced}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__.pop("_send_defaults", None)  # made from the attributes as they were

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {self.app.main if self.app else None}>"

    def __reduce__(self) -> Any:
        return _find_task, (self.name,)


def _find_task(name: str) -> Task[..., Any]:
    return get_current_app().tasks[name]


def _raise_current(error: BaseException) -> NoReturn:
    """Raise `error` with the exception being handled as its cause, or that one itself."""
    current = sys.exc_info()[1]
    if current is error or current is None:
        raise error
    raise error from current


def retry_delay(retries: int, factor: float, longest: float, jitter: bool, rng: random.Random) -> int:
    """Whole seconds before the attempt after number `retries` (0 = the first one).

    Celery's rule: ``min(longest, max(1, int(factor)) * 2**retries)``; with `jitter` a random
    number from 0 to that ("full jitter").
    """
    ceiling = int(min(longest, int(max(1.0, factor)) * 2.0 ** min(retries, 1000)))
    return rng.randrange(ceiling + 1) if jitter else max(0, ceiling)
