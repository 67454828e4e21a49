"""The app: settings, the registry of tasks, and the broker and backend they use."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from minicelery import _state, record, signals, states
from minicelery.broker import Backend, Broker, open_backend, open_broker, open_replies
from minicelery.exceptions import TaskRevokedError
from minicelery.message import Message
from minicelery.modules import calling_directory, django_packages, import_related
from minicelery.registry import TaskRegistry, share, task_from_function
from minicelery.resending import retry_message
from minicelery.result import AsyncResult, DisabledBackend, EagerResult
from minicelery.sending import Sender
from minicelery.settings import Settings, read_config, read_envvar
from minicelery.task import Task as PlainTask

if TYPE_CHECKING:
    from typing import Concatenate, Literal, ParamSpec

    from minicelery.canvas import Signature
    from minicelery.request import Request

    P = ParamSpec("P")
R = TypeVar("R")

REVOKED_FOR = 30 * 86400.0
"""Seconds for which the order not to run a task is kept; it must outlast the task's delay."""
DEFAULT_BROKER = "amqp://"
_LATER = frozenset(
    "control events amqp log Beat GroupResult ResultSet chain group chord chunks add_periodic_task setup_security".split()
)


class Celery:
    """An application: its settings, its tasks, and how they are sent.

    Opening one connects to nothing; the broker is reached when something is sent.
    Thread-safe, and safe to use in a process that forks afterwards.
    """

    def __init__(
        self,
        main: str | None = None,
        loader: Any = None,
        backend: str | None = None,
        *,
        broker: str | None = None,
        include: str | Sequence[str] | None = None,
        changes: Mapping[str, Any] | None = None,
        config_source: Any = None,
        namespace: str | None = None,
        set_as_current: bool = True,
        task_cls: type[PlainTask[..., Any]] | str | None = None,
        autofinalize: bool = True,
        strict_typing: bool = True,
        strict_config: bool = False,
        tasks: TaskRegistry | None = None,
        **conf: Any,
    ) -> None:
        self.main = main
        self.finalized = False
        self.autofinalize = autofinalize
        self.strict_typing = strict_typing
        self._registry = tasks if tasks is not None else TaskRegistry()
        self._task_class: Any = task_cls or PlainTask
        self._settings: Settings | None = None  # read directly where a call more would show
        self._strict = strict_config
        self._sources: list[tuple[Any, str | None, bool]] = []
        if config_source is not None:
            self._sources.append((config_source, namespace, False))
        self._given: dict[str, Any] = {**(changes or {}), **conf}
        for key, value in (("broker_url", broker), ("result_backend", backend), ("include", include)):
            if value is not None:
                self._given[key] = (value,) if key == "include" and isinstance(value, str) else value
        self._autodiscover: list[tuple[Any, str | None]] = []
        self._pending: list[PlainTask[..., Any]] = []  # declared without a base: they follow `app.Task`
        self._lock = threading.RLock()
        self._broker: Broker | None = None
        self._backend: Backend | DisabledBackend | None = None
        self._sender = Sender(self)
        self._executor: Any = None
        self._home = calling_directory()
        self.on_configure = signals.Signal("app.on_configure")
        self.on_after_configure = signals.Signal("app.on_after_configure")
        self.on_after_fork = signals.Signal("app.on_after_fork")
        self.on_after_finalize = signals.Signal("app.on_after_finalize")
        if set_as_current:
            self.set_current()
        reference = weakref.ref(self)
        _state.finalized.append(reference)

        def renew_lock() -> None:
            # A thread of the parent may have held it while another forked.
            if (app := reference()) is not None:
                app._lock = threading.RLock()
                if app.on_after_fork.receivers:
                    app.on_after_fork.send(sender=app)

        os.register_at_fork(after_in_child=renew_lock)

    # -- settings --------------------------------------------------------------------------

    @property
    def conf(self) -> Settings:
        """The settings; sources given by name are imported on first use."""
        if self._settings is None:
            self._configure()
        assert self._settings is not None
        return self._settings

    @conf.setter
    def conf(self, values: Mapping[str, Any]) -> None:
        self.conf.update(values)

    def _configure(self) -> None:
        with self._lock:
            if self._settings is not None:
                return
            settings = Settings(strict=self._strict)
            settings.load_environment(os.environ)
            found = [read_config(source, space, silent) for source, space, silent in self._sources]
            self._settings = settings
            for values in found:
                settings.update(values)
            settings.update(self._given)
        self.on_after_configure.send(sender=self, source=settings)

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from an object, a dict, or a module by name; later ones win.

        A name is imported on first use, or now with `force`.  With `namespace="CELERY"` only
        ``CELERY_…`` keys are read.
        """
        self._sources.append((obj, namespace, silent))
        if self._settings is not None:
            self._settings.update(read_config(obj, namespace, silent))
            self._settings.update(self._given)
        elif force:
            self._configure()

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> None:
        """Take settings from the module that an environment variable names."""
        if silent and not os.environ.get(variable_name):
            return
        module = read_envvar(variable_name)
        self.config_from_object(module, silent=silent, force=force)

    def add_defaults(self, values: Mapping[str, Any]) -> None:
        """Set what is not set yet."""
        self.conf.add_defaults(values)

    # -- tasks -----------------------------------------------------------------------------

    @property
    def Task(self) -> type[PlainTask[..., Any]]:  # noqa: N802 - Celery's name
        """The base of this app's tasks; assign a subclass of it to change all of them."""
        base = self._task_class
        if isinstance(base, str):
            module, _, name = base.replace(":", ".").rpartition(".")
            base = getattr(importlib.import_module(module), name)
        if base.__dict__.get("app") is not self:
            base = type(
                base.__name__, (base,), {"app": self, "__module__": base.__module__, "abstract": True}
            )
        self._task_class = base
        found: type[PlainTask[..., Any]] = base
        return found

    @Task.setter
    def Task(self, base: type[PlainTask[..., Any]]) -> None:  # noqa: N802
        self._task_class = base

    @overload
    def task(self, fun: Callable[P, R], /, **options: Any) -> PlainTask[P, R]: ...
    @overload
    def task(
        self, /, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], PlainTask[P, R]]: ...
    @overload
    def task(self, /, **options: Any) -> Callable[[Callable[P, R]], PlainTask[P, R]]: ...
    def task(self, fun: Any = None, /, **options: Any) -> Any:
        """Make a function a task of this app: `@app.task` or `@app.task(name=…, bind=True, …)`.

        `bind=True` passes the task as first argument; `base=` is its class; any attribute
        of `Task` is an option.
        """
        if fun is None:
            return functools.partial(self.task, **options)
        if not callable(fun):
            raise TypeError(f"@app.task takes a function, got {type(fun).__name__}; options go by keyword")
        shared = options.pop("shared", True)
        task = task_from_function(self, fun, **options)
        if shared:
            share(lambda app: app if app is self else task_from_function(app, fun, quiet=True, **options))
        return task

    def register_task(
        self, task: PlainTask[..., Any] | type[PlainTask[..., Any]], **options: Any
    ) -> PlainTask[..., Any]:
        """Register a class-based task: an instance, or the class itself."""
        instance = task() if isinstance(task, type) else task
        kind = type(instance)
        if not instance.name:
            instance.name = self.gen_task_name(kind.__name__, kind.__module__)
        vars(instance).update(options, app=self, abstract=False)
        if not callable(getattr(instance, "run", None)):
            raise TypeError(f"{kind.__name__} has no run method")
        self._registry[instance.name] = instance
        return instance

    def gen_task_name(self, name: str, module: str) -> str:
        """``module.name``; for a script's own ``__main__`` the app's name stands for the module."""
        if module == "__main__" and self.main:
            module = self.main
        return f"{module}.{name}"

    @property
    def tasks(self) -> TaskRegistry:
        """Every task of this app, by name."""
        if not self.finalized and self.autofinalize:
            self.finalize()
        return self._registry

    def finalize(self, auto: bool = False) -> None:
        """Settle the registry: shared tasks join, and `app.Task` as it is now becomes the base."""
        with self._lock:
            if self.finalized:
                return
            self.finalized = True
            for register in list(_state.shared):
                register(self)
            for task in self._pending:
                if type(task) is not self.Task:
                    task.__class__ = self.Task
            self._pending.clear()
        self.on_after_finalize.send(sender=self)

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,
    ) -> None:
        """Import ``<package>.<related_name>`` of each package when the worker starts, or now (`force`)."""
        self._autodiscover.append((packages, related_name))
        if force:
            self._discover(packages, related_name)

    def _discover(self, packages: Any, related_name: str | None) -> None:
        if packages is None:
            packages = django_packages()
        for package in packages() if callable(packages) else packages:
            import_related(package, related_name)

    def import_task_modules(self) -> None:
        """Import what `imports`, `include` and `autodiscover_tasks` name, then finalize."""
        signals.import_modules.send(sender=self)
        for module in (*self.conf.imports, *self.conf.include):
            importlib.import_module(module)
        for packages, related_name in self._autodiscover:
            self._discover(packages, related_name)
        self.finalize()

    # -- sending ---------------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a call by name; the task need not be known here.  Options as `Task.apply_async`."""
        if not isinstance(name, str) or not name:
            raise TypeError(f"send_task takes a task's name, got {name!r}")
        return self._sender.send(name, args or (), kwargs or {}, options, self.tasks.get(name))

    def _retry_message(self, *details: Any) -> Message:
        return retry_message(self._sender, *details)

    def _run_eagerly(
        self, task: PlainTask[Any, Any], args: Any, kwargs: Any, options: Any
    ) -> EagerResult[Any]:
        from minicelery.worker.eager import run_eagerly

        return run_eagerly(self, task, args, kwargs, options)

    def AsyncResult(self, id: str, **kwargs: Any) -> AsyncResult[Any]:  # noqa: N802 - Celery's name
        """The result of the task call with that id."""
        return AsyncResult(id, app=self, **kwargs)

    def signature(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature bound to this app."""
        from minicelery.canvas import Signature

        return Signature(*args, **kwargs, app=self)

    def _store_state(self, id: str, state: str, meta: Any, request: Request) -> None:
        conf = self.conf
        value = record.exception_document(meta) if isinstance(meta, BaseException) else meta
        stored = record.encode(
            id, state, value, serializer=conf.result_serializer, ttl=conf.result_expires, zone=conf.zone(),
            group_id=request.group, parent_id=request.parent_id,
        )  # fmt: skip
        with request.state_lock:
            request.reported = True
            stored.reply_to = request.reply_to or ""
            self.backend.store([stored])

    def _revoke(self, id: str) -> None:
        self.broker.remember("revoked", id, REVOKED_FOR)
        if isinstance(self.backend, DisabledBackend) or getattr(self.backend, "direct", False):
            return
        found = self.backend.load([id])[0]
        if found is None or record.decode(found.document, self.conf.result_serializer)["status"] in (
            states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED
        ):  # fmt: skip
            error = record.exception_document(TaskRevokedError("revoked"))
            conf = self.conf
            self.backend.store([
                record.encode(
                    id, states.REVOKED, error, serializer=conf.result_serializer, ttl=conf.result_expires,
                    zone=conf.zone(), children=None,
                )
            ])  # fmt: skip

    # -- servers ---------------------------------------------------------------------------

    @property
    def broker(self) -> Broker:
        """The broker that `broker_url` names; connects when it is used."""
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    conf = self.conf
                    url = self._placed(conf.broker_url or DEFAULT_BROKER)
                    options = {
                        "connection_timeout": conf.broker_connection_timeout,
                        "pool_limit": conf.broker_pool_limit,
                        "use_ssl": conf.broker_use_ssl,
                        "lease": conf.worker_lease,
                        "heartbeat": conf.broker_heartbeat or 0,
                        "login_method": conf.broker_login_method,
                        "failover_strategy": conf.broker_failover_strategy,
                        "delay_queue_type": conf.broker_native_delayed_delivery_queue_type,
                        "delays": conf.broker_delays,
                        "spec_of": lambda name: self._sender.router.spec(name),
                        "bound_to": lambda name: self._sender.router.bound_to(name),
                        "exchange_of": lambda name: self._sender.router.exchange(name),
                        **conf.broker_transport_options,
                    }
                    self._broker = open_broker(url, options=options)
        return self._broker

    @property
    def backend(self) -> Backend | DisabledBackend:
        """The result store that `result_backend` names; a DisabledBackend where none is set."""
        if self._backend is None:
            with self._lock:
                if self._backend is None:
                    conf = self.conf
                    if not conf.result_backend or conf.result_backend in ("disabled", "disabled://"):
                        self._backend = DisabledBackend()
                    else:
                        self._backend = self._open_backend(conf)
        return self._backend

    def _open_backend(self, conf: Settings) -> Backend:
        url = self._placed(conf.result_backend)
        if url.partition(":")[0] == "rpc":
            return open_replies(self.broker, expires=conf.result_expires, persistent=conf.result_persistent)
        return open_backend(url, options=_backend_options(conf))

    def _placed(self, url: str) -> str:
        """A relative SQLite path is one of the app's directory: worker and client share a file."""
        if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
            return f"sqlite:///{self._home / url[len('sqlite:///') :]}"
        return url

    def close(self) -> None:
        """Close every connection; the app may be used again and then reconnects."""
        with self._lock:
            for server in (self._broker, self._backend):
                if server is not None:
                    server.close()
            self._broker = self._backend = None
        _state.unset(self)

    def __enter__(self) -> Celery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_current(self) -> None:
        """Make this the current app of this thread."""
        _state.set_current(self)

    def set_default(self) -> None:
        """Make this the app of threads that have none of their own."""
        _state.set_default(self)

    @property
    def current_task(self) -> PlainTask[..., Any] | None:
        """The task that runs in this thread."""
        request = _state.request_var.get()
        return None if request is None else request.task_object

    @property
    def timezone(self) -> Any:
        """The zone that `timezone` names."""
        return self.conf.zone()

    # -- programs --------------------------------------------------------------------------

    def worker_main(self, argv: Sequence[str] | None = None) -> int:
        """Run ``minicelery worker`` with these arguments for this app; returns its exit code."""
        arguments = list(argv if argv is not None else sys.argv)
        if "worker" not in arguments:
            raise ValueError(
                "the worker sub-command must be among the arguments: app.worker_main(['worker', …])"
            )
        return self.start(arguments[arguments.index("worker") :])

    def start(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line for this app; returns its exit code."""
        from minicelery._programs import run_command

        return run_command(self, list(argv if argv is not None else sys.argv[1:]))

    def bugreport(self) -> str:
        """Versions and settings, secrets masked."""
        return bugreport(self)

    def __getattr__(self, name: str) -> Any:
        if name in _LATER:
            raise AttributeError(f"app.{name} is not part of this version of minicelery")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Celery {self.main or '__main__'}>"

    def __reduce__(self) -> Any:
        return _state.get_current_app, ()


def _backend_options(conf: Settings) -> dict[str, Any]:
    given = {
        name: conf[f"redis_{name}"]
        for name in ("socket_timeout", "socket_connect_timeout", "username", "password", "client_name")
        if conf.value_set_for(f"redis_{name}")
    }
    return {
        "connection_timeout": conf.broker_connection_timeout,
        "use_ssl": conf.redis_backend_use_ssl,
        "pool_limit": conf.redis_max_connections,
        **given,
        **conf.result_backend_transport_options,
    }


def bugreport(app: Celery | None = None) -> str:
    """Versions and settings of `app`, secrets masked: what a bug report needs."""
    import platform

    import minicelery

    app = app or _state.get_current_app()
    return (
        f"software -> minicelery:{minicelery.__version__} py:{platform.python_version()}\n"
        f"platform -> system:{platform.system()} arch:{platform.machine()}\n"
        f"settings -> {app.conf.humanize()}"
    )
