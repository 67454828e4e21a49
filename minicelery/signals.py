"""Signals: what a program can listen to, and `Signal`, which calls the listeners.

>>> from minicelery.signals import task_failure
>>> @task_failure.connect
... def tell_someone(sender, task_id, exception, **kwargs):
...     print(sender.name, task_id, exception)

A receiver is called with keywords: ``signal=``, ``sender=`` and those listed below.  It takes
``**kwargs``, so that a later version can add some.  *Executor* and *agent* have `app` and
`hostname`; docs/signals.md says in which process each is sent.

==============================  ==========  ==========================================================
signal                          sender      keywords
==============================  ==========  ==========================================================
before_task_publish             task name   body, exchange, routing_key, headers, properties,
                                            declare, retry_policy
after_task_publish              task name   body, headers, exchange, routing_key
task_sent                       task name   task_id, task, args, kwargs, eta, taskset
task_received                   executor    request
task_prerun                     the task    task_id, task, args, kwargs
task_postrun                    the task    task_id, task, args, kwargs, retval, state
task_success                    the task    result, runtime (seconds)
task_retry                      the task    request, reason, einfo
task_failure                    the task    task_id, exception, args, kwargs, traceback, einfo
task_internal_error             the task    task_id, args, kwargs, request, exception, traceback,
                                            einfo
task_revoked                    the task    request, terminated, signum, expired
task_rejected                   executor    message, exc
task_unknown                    executor    message, exc, name, id
import_modules                  the app
celeryd_init                    node name   instance, conf, options
worker_init                     the worker
setup_logging                   None        loglevel, logfile, format, colorize; whoever listens
                                            sets logging up, minicelery then does not
after_setup_logger              None        logger, loglevel, logfile, format, colorize
after_setup_task_logger         None        logger, loglevel, logfile, format, colorize
celeryd_after_setup             node name   instance, conf
worker_before_create_process    supervisor
worker_process_init             node name
worker_ready                    the worker
heartbeat_sent                  the agent
worker_shutting_down            node name   sig, how, exitcode
worker_process_shutdown         node name   pid, exitcode
worker_shutdown                 the worker
user_preload_options            command     app, options
beat_init                       beat
beat_embedded_init              beat
eventlet_pool_started           the pool    never sent: there is no eventlet pool
eventlet_pool_preshutdown       the pool    never sent
eventlet_pool_postshutdown      the pool    never sent
eventlet_pool_apply             the pool    target, args, kwargs; never sent
==============================  ==========  ==========================================================

An app has signals of its own: ``on_configure``, ``on_after_configure`` (source),
``on_after_finalize`` and ``on_after_fork``.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

__all__ = [
    "Signal",
    "after_setup_logger",
    "after_setup_task_logger",
    "after_task_publish",
    "beat_embedded_init",
    "beat_init",
    "before_task_publish",
    "celeryd_after_setup",
    "celeryd_init",
    "eventlet_pool_apply",
    "eventlet_pool_postshutdown",
    "eventlet_pool_preshutdown",
    "eventlet_pool_started",
    "heartbeat_sent",
    "import_modules",
    "setup_logging",
    "task_failure",
    "task_internal_error",
    "task_postrun",
    "task_prerun",
    "task_received",
    "task_rejected",
    "task_retry",
    "task_revoked",
    "task_sent",
    "task_success",
    "task_unknown",
    "user_preload_options",
    "worker_before_create_process",
    "worker_init",
    "worker_process_init",
    "worker_process_shutdown",
    "worker_ready",
    "worker_shutdown",
    "worker_shutting_down",
]

logger = logging.getLogger(__name__)

RETRY_WAITS = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
"""Seconds before each further call of a receiver connected with `retry=True`."""

Receiver = Callable[..., Any]
R = TypeVar("R", bound=Receiver)


class Signal:
    """Something that happens, and who wants to be told.

    `receivers` is empty while nobody listens, so a hot path asks `if task_prerun.receivers:`
    before it gathers the keywords.  All methods can be called from any thread.
    """

    def __init__(self, name: str = "", providing_args: Iterable[str] = ()) -> None:
        self.name = name
        self.providing_args = frozenset(providing_args)
        # Replaced, never changed: `send` walks it without a lock.
        self.receivers: Sequence[_Listener] = ()
        self._told: set[_Listener] = set()  # by `send_once`
        # Re-entrant, as a receiver can be collected, hence dropped, while it is held.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Signal: {self.name}>"

    @overload
    def connect(
        self,
        receiver: R,
        sender: Any = ...,
        weak: bool = ...,
        dispatch_uid: Hashable = ...,
        retry: bool = ...,
    ) -> R: ...
    @overload
    def connect(
        self,
        receiver: None = None,
        sender: Any = ...,
        weak: bool = ...,
        dispatch_uid: Hashable = ...,
        retry: bool = ...,
    ) -> Callable[[R], R]: ...
    def connect(
        self,
        receiver: R | None = None,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Hashable = None,
        retry: bool = False,
    ) -> R | Callable[[R], R]:
        """Call `receiver` whenever the signal is sent; usable as a decorator, bare or with options.

        `sender` narrows it to one sender: the object, or a task's name.  `weak` forgets a
        receiver that nothing else refers to, as a lambda or an inner function; False keeps it.
        A second receiver with the same `dispatch_uid` and sender is not added.  `retry` calls
        one that raises again, after each of RETRY_WAITS, and keeps it whatever `weak` says.
        Raises ValueError for one that does not take ``**kwargs``.
        """
        if receiver is None:

            def decorate(function: R) -> R:
                return self.connect(function, sender, weak, dispatch_uid, retry)

            return decorate
        _check(receiver)
        reference = self._refer_weakly(receiver) if weak and not retry else _Always(receiver)
        fresh = _Listener(reference, sender, dispatch_uid, retry)
        with self._lock:
            # A sender may be a proxy of a task not made yet: asking it for more than its
            # identity would finalize the app while its modules are being imported.
            if not any(one.sender is sender and one.is_of(receiver, dispatch_uid) for one in self.receivers):
                self.receivers = (*self.receivers, fresh)
        return receiver

    def disconnect(
        self, receiver: Receiver | None = None, sender: Any = None, dispatch_uid: Hashable = None
    ) -> bool:
        """Stop calling the receiver connected with these values; True if there was one."""
        with self._lock:
            for one in self.receivers:
                if one.is_of(receiver, dispatch_uid) and _is_same(one.sender, sender):
                    self.receivers = tuple(other for other in self.receivers if other is not one)
                    return True
        return False

    def send(self, sender: Any = None, **named: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers in the order they connected; returns each with its response.

        An exception is logged and is that receiver's response; only what is no `Exception`,
        as `SystemExit`, comes through.
        """
        return self._tell(self.receivers, sender, named)

    def send_once(self, sender: Any = None, **named: Any) -> list[tuple[Receiver, Any]]:
        """The same, to those who have not been told by it before."""
        with self._lock:
            fresh = [one for one in self.receivers if one not in self._told]
            self._told.update(fresh)
        return self._tell(fresh, sender, named)

    def _tell(
        self, listeners: Iterable[_Listener], sender: Any, named: Mapping[str, Any]
    ) -> list[tuple[Receiver, Any]]:
        responses: list[tuple[Receiver, Any]] = []
        for listener in listeners:
            receiver = listener.reference()
            if receiver is None or not listener.hears(sender):
                continue
            call = _call_until_it_returns if listener.retry else _call
            try:
                response = call(receiver, {"signal": self, "sender": sender, **named})
            except Exception as error:
                logger.exception("receiver %r of signal %s raised %r", receiver, self.name, error)
                response = error
            responses.append((receiver, response))
        return responses

    send_robust = send

    def has_listeners(self, sender: Any = None) -> bool:
        """Whether a signal from `sender` would reach anyone."""
        return any(one.reference() is not None and one.hears(sender) for one in self.receivers)

    def _refer_weakly(self, receiver: Receiver) -> Callable[[], Receiver | None]:
        if inspect.ismethod(receiver):
            return weakref.WeakMethod(receiver, self._drop)
        return weakref.ref(receiver, self._drop)

    def _drop(self, reference: Any) -> None:
        with self._lock:
            self.receivers = tuple(one for one in self.receivers if one.reference is not reference)


@dataclass(slots=True, eq=False)
class _Listener:
    """One connection: how to get at the receiver, and what it was connected with."""

    reference: Callable[[], Receiver | None]
    sender: Any
    uid: Hashable
    retry: bool

    def hears(self, sender: Any) -> bool:
        return self.sender is None or _is_same(self.sender, sender)

    def is_of(self, receiver: Receiver | None, uid: Hashable) -> bool:
        if uid is not None or self.uid is not None:
            return self.uid == uid
        return self.reference() == receiver


class _Always:
    """A reference that keeps what it refers to."""

    __slots__ = ("receiver",)

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def __call__(self) -> Receiver:
        return self.receiver


def _check(receiver: Any) -> None:
    if not callable(receiver):
        raise TypeError(f"a signal's receiver is called, so {receiver!r} can't be one")
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):  # in C, without a signature
        return
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        raise ValueError(f"a signal's receiver must take any keyword: add **kwargs to {receiver!r}")


def _is_same(one: Any, other: Any) -> bool:
    """Whether both are one sender; a task and its name are."""
    if one is other:
        return True
    if isinstance(one, str) and not isinstance(other, str):
        return bool(one == getattr(other, "name", None))
    if isinstance(other, str) and not isinstance(one, str):
        return bool(other == getattr(one, "name", None))
    return bool(one == other)


def _call(receiver: Receiver, named: dict[str, Any]) -> Any:
    return receiver(**named)


def _call_until_it_returns(receiver: Receiver, named: dict[str, Any]) -> Any:
    for wait in RETRY_WAITS:
        try:
            return receiver(**named)
        except Exception as error:
            logger.warning(
                "receiver %r of signal %s raised %r; calling it again in %g s",
                receiver, named["signal"].name, error, wait,
            )  # fmt: skip
            time.sleep(wait)
    return receiver(**named)


before_task_publish = Signal(
    "before_task_publish",
    ("body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"),
)
after_task_publish = Signal("after_task_publish", ("body", "headers", "exchange", "routing_key"))
task_received = Signal("task_received", ("request",))
task_prerun = Signal("task_prerun", ("task_id", "task", "args", "kwargs"))
task_postrun = Signal("task_postrun", ("task_id", "task", "args", "kwargs", "retval", "state"))
task_success = Signal("task_success", ("result", "runtime"))
task_retry = Signal("task_retry", ("request", "reason", "einfo"))
task_failure = Signal("task_failure", ("task_id", "exception", "args", "kwargs", "traceback", "einfo"))
task_internal_error = Signal(
    "task_internal_error", ("task_id", "args", "kwargs", "request", "exception", "traceback", "einfo")
)
task_revoked = Signal("task_revoked", ("request", "terminated", "signum", "expired"))
task_rejected = Signal("task_rejected", ("message", "exc"))
task_unknown = Signal("task_unknown", ("message", "exc", "name", "id"))
task_sent = Signal("task_sent", ("task_id", "task", "args", "kwargs", "eta", "taskset"))

celeryd_init = Signal("celeryd_init", ("instance", "conf", "options"))
celeryd_after_setup = Signal("celeryd_after_setup", ("instance", "conf"))
import_modules = Signal("import_modules")
worker_init = Signal("worker_init")
worker_before_create_process = Signal("worker_before_create_process")
worker_process_init = Signal("worker_process_init")
worker_process_shutdown = Signal("worker_process_shutdown", ("pid", "exitcode"))
worker_ready = Signal("worker_ready")
worker_shutting_down = Signal("worker_shutting_down", ("sig", "how", "exitcode"))
worker_shutdown = Signal("worker_shutdown")
heartbeat_sent = Signal("heartbeat_sent")

setup_logging = Signal("setup_logging", ("loglevel", "logfile", "format", "colorize"))
after_setup_logger = Signal("after_setup_logger", ("logger", "loglevel", "logfile", "format", "colorize"))
after_setup_task_logger = Signal(
    "after_setup_task_logger", ("logger", "loglevel", "logfile", "format", "colorize")
)

beat_init = Signal("beat_init")
beat_embedded_init = Signal("beat_embedded_init")
user_preload_options = Signal("user_preload_options", ("app", "options"))

eventlet_pool_started = Signal("eventlet_pool_started")
eventlet_pool_preshutdown = Signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = Signal("eventlet_pool_postshutdown")
eventlet_pool_apply = Signal("eventlet_pool_apply", ("target", "args", "kwargs"))
