"""The app: settings, the registry of tasks, and the broker and backend they use."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, overload

from minicelery import _state, awaiting, foreign_chords, record, signals, states
from minicelery.annotations import annotate
from minicelery.attributes import warn_of_addresses
from minicelery.canvas.each import BUILT_IN
from minicelery.forking import call_in_forked_children
from minicelery.groups import GroupResult, ResultSet
from minicelery.message import Message, Origin
from minicelery.modules import calling_directory, django_fixup, django_packages, import_related
from minicelery.options import check_arguments_shape, check_call
from minicelery.periodic import Periodic
from minicelery.registry import TaskRegistry, settle, share, task_from_class, task_from_function
from minicelery.remote import Control
from minicelery.resending import retry_message
from minicelery.result import AsyncResult, EagerResult
from minicelery.sending import Sender
from minicelery.servers import Servers
from minicelery.settings import Settings, read_config, read_envvar
from minicelery.task import Task as PlainTask
from minicelery.unfolding import GO_ON, UNTIL_DONE, Canvas, go_on

if TYPE_CHECKING:
    from typing import Literal, ParamSpec

    from minicelery.canvas import Signature
    from minicelery.registry import BoundDecorator, TaskDecorator
    from minicelery.request import Request
    from minicelery.task import CoroutineTask

    P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=PlainTask[..., Any])

_LATER = frozenset(
    "amqp log steps user_options Worker chunks xmap xstarmap config_from_cmdline select_queues".split()
)


class Celery(Servers, Periodic):
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
        self._base: type[PlainTask[..., Any]] | None = None
        self._settings: Settings | None = None  # read directly where a call more would show
        self._strict = strict_config
        self._sources: list[tuple[Any, str | None, bool]] = []
        if config_source is not None:
            self._sources.append((config_source, namespace, False))
        self._given: dict[str, Any] = {**(changes or {}), **conf}
        for key, value in (("broker_url", broker), ("result_backend", backend), ("include", include)):
            if value is not None:
                self._given[key] = (value,) if key == "include" and isinstance(value, str) else value
        self._defaults: list[Any] = []
        self._autodiscover: list[tuple[Any, str | None]] = []
        self._unsettled: list[PlainTask[..., Any]] = []  # see `registry.settle`
        self._lock = threading.RLock()
        self._sender = Sender(self)
        self._canvas = Canvas(self)
        self._executor: Any = None
        self._home = calling_directory()
        self.on_configure = signals.Signal("app.on_configure")
        self.on_after_configure = signals.Signal("app.on_after_configure")
        self.on_after_fork = signals.Signal("app.on_after_fork")
        self.on_after_finalize = signals.Signal("app.on_after_finalize")
        if set_as_current:
            self.set_current()
        _state.finalized.append(weakref.ref(self))
        call_in_forked_children(self._begin_anew)
        self._fixup: Any = django_fixup(self) if os.environ.get("DJANGO_SETTINGS_MODULE") else None

    def _begin_anew(self) -> None:
        # In a forked child: a thread of the parent may have held the lock meanwhile.
        self._lock = threading.RLock()
        if self.on_after_fork.receivers:
            self.on_after_fork.send(sender=self)

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
            self.on_configure.send(sender=self)
            settings = Settings(strict=self._strict)
            settings.load_environment(os.environ)
            found = [read_config(source, space, silent) for source, space, silent in self._sources]
            self._settings = settings
            for values in found:
                settings.update(values)
            settings.update(self._given)
            for defaults in self._defaults:
                settings.add_defaults(defaults() if callable(defaults) else defaults)
            settings.beat_schedule.update(self._periodic)
        self._tell_configured()

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

    def add_defaults(self, values: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Set what is not set otherwise; a function is called when the settings are first used."""
        self._defaults.append(values)
        if self._settings is not None:
            self._settings.add_defaults(values() if callable(values) else values)

    # -- tasks -----------------------------------------------------------------------------

    @property
    def Task(self) -> type[PlainTask[..., Any]]:  # noqa: N802 - Celery's name
        """The base of this app's tasks; assign a subclass of it to change all of them."""
        if self._base is None:
            base = self._task_class
            if isinstance(base, str):
                module, _, name = base.replace(":", ".").rpartition(".")
                base = getattr(importlib.import_module(module), name)
            self._base = type(
                base.__name__, (base,), {"app": self, "__module__": base.__module__, "abstract": True}
            )
        return self._base

    @Task.setter
    def Task(self, base: type[PlainTask[..., Any]]) -> None:  # noqa: N802
        if not (isinstance(base, type) and issubclass(base, PlainTask)):
            raise TypeError(f"app.Task = {base!r:.80}: expected a subclass of app.Task")
        self._base = base

    @overload
    def task(self, fun: Callable[P, Coroutine[Any, Any, R]], /, **options: Any) -> CoroutineTask[P, R]: ...
    @overload
    def task(self, fun: Callable[P, R], /, **options: Any) -> PlainTask[P, R]: ...
    @overload
    def task(self, /, *, base: type[T], **options: Any) -> Callable[[Callable[..., Any]], T]: ...
    @overload
    def task(self, /, *, bind: Literal[True], base: None = None, **options: Any) -> BoundDecorator: ...
    @overload
    def task(self, /, *, base: None = None, **options: Any) -> TaskDecorator: ...
    def task(self, fun: Any = None, /, **options: Any) -> Any:
        """Make a function a task of this app: `@app.task` or `@app.task(name=…, bind=True, …)`.

        `bind=True` passes the task as first argument; `base=` is its class; any attribute
        of `Task` is an option.
        """
        if fun is None:
            return functools.partial(self.task, **options)
        if not callable(fun):
            raise TypeError(f"@app.task takes a function, got {type(fun).__name__}; options go by keyword")
        shared, filter = options.pop("shared", True), options.pop("filter", None)
        if filter is not None and not callable(filter):
            raise TypeError(f"filter={filter!r:.80} of @app.task: expected a function of the task, or None")
        task = task_from_function(self, fun, **options)
        warn_of_addresses(task.name, options)
        if shared:
            share(lambda app: app if app is self else task_from_function(app, fun, quiet=True, **options))
        return task if filter is None else filter(task)

    def register_task(self, task: T | type[T], **options: Any) -> T:
        """Register a class-based task: an instance, or the class itself; `options` are attributes."""
        found: T = task_from_class(self, task, options)  # type: ignore[assignment]  # of that class
        return found

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
            if auto and not self.autofinalize:
                raise RuntimeError(f"{self!r} was made with autofinalize=False: call app.finalize() first")
            self.finalized = True
            try:
                for name, function in BUILT_IN.items():
                    task_from_function(self, function, name=name, quiet=True)
                task_from_function(self, go_on, name=GO_ON, bind=True, quiet=True, **UNTIL_DONE)
                for name, function in foreign_chords.BUILT_IN.items():
                    task_from_function(self, function, name=name, bind=True, quiet=True, **UNTIL_DONE)
                for register in list(_state.shared):
                    register(self)
                for task in self._unsettled:
                    settle(self, task)
            except BaseException:
                self.finalized = False  # so that whoever asks next is told too
                raise
            self._unsettled.clear()
        self._tell_configured()
        self.on_after_finalize.send(sender=self)

    def _settle(self, task: PlainTask[..., Any]) -> None:
        settle(self, task)

    def _annotate(self, kind: type[PlainTask[..., Any]]) -> None:
        if self.conf.task_annotations is not None:
            annotate(self.conf.task_annotations, kind)

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
        if self._fixup is not None:
            self._fixup.before_tasks()
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
        args, kwargs = args or (), kwargs or {}
        check_arguments_shape(name, args, kwargs)
        given: Mapping[str, Any] = check_call(name, options, self.conf) if options else options
        return self._sender.send(name, args, kwargs, given, self.tasks.get(name))

    asend_task = awaiting.send_task

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

    @functools.cached_property
    def ResultSet(self) -> type[ResultSet]:  # noqa: N802
        """Results of several calls of this app: a class."""
        return type("ResultSet", (ResultSet,), {"_app": self})

    @functools.cached_property
    def GroupResult(self) -> type[GroupResult]:  # noqa: N802
        """Results of a group of this app: a class; `app.GroupResult.restore(id)` has what was saved."""
        return type("GroupResult", (GroupResult,), {"_app": self})

    def signature(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature bound to this app."""
        from minicelery.canvas import signature

        return signature(*args, **kwargs, app=self)

    def _store_state(self, id: str, state: str, meta: Any, request: Request) -> None:
        conf = self.conf
        value = record.exception_document(meta) if isinstance(meta, BaseException) else meta
        compressed = state == states.SUCCESS and not getattr(self.backend, "direct", False)
        stored = record.encode(
            id, state, value, serializer=conf.result_serializer, ttl=conf.result_expires, zone=conf.zone(),
            group_id=request.group, parent_id=request.parent_id,
            compression=conf.result_compression if compressed else None,
        )  # fmt: skip
        with request.state_lock:
            request.reported = True
            stored.reply_to = request.reply_to or ""
            self.backend.store([stored])

    @functools.cached_property
    def control(self) -> Control:
        """Orders to running workers."""
        return Control(self)

    def _revoke(self, id: str, *, terminate: bool = False, signal: str = "SIGTERM") -> None:
        self.control.revoke(id, terminate=terminate, signal=signal)

    def setup_security(
        self, allowed_serializers: Iterable[str] | None = None, key: Any = None, key_password: Any = None,
        cert: Any = None, store: Any = None, digest: str | None = None, serializer: str = "json",
    ) -> None:  # fmt: skip
        """Sign what is sent, and read only what is signed, in all apps of this process."""
        from minicelery.security import setup_security

        setup_security(self.conf, allowed_serializers, key, key_password, cert, store, digest, serializer)

    # -- this app and others ---------------------------------------------------------------

    def close(self) -> None:
        """Close every connection; the app may be used again and then reconnects."""
        with self._lock:
            for server in (self._broker, self._backend):
                if server is not None:
                    server.close()
            self._broker = self._backend = None
        self._sender.close()
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
    def current_worker_task(self) -> PlainTask[..., Any] | None:
        """The task that a worker runs in this thread, whatever it calls directly or eagerly."""
        request = _state.request_var.get()
        while request is not None and (request.called_directly or request.is_eager):
            request = request.outer
        return None if request is None else request.task_object

    @property
    def timezone(self) -> Any:
        """The zone that `timezone` names."""
        return self.conf.zone()

    def now(self) -> datetime:
        """The time in the app's zone; aware."""
        return datetime.now(self.conf.zone())

    @property
    def oid(self) -> str:
        """An id of this process among those that send: results sent by `rpc://` come back to it."""
        if not Origin.client_id:
            Origin.refresh()
        return Origin.client_id

    thread_oid = oid

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
            why = "; was this started by `celery`? Start it by `minicelery`" if name == "user_options" else ""
            raise AttributeError(f"app.{name} is not part of this version of minicelery{why}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Celery {self.main or '__main__'}>"

    def __reduce__(self) -> Any:
        conf = self._settings
        given = self._given if conf is None else {name: conf[name] for name in conf._explicit}
        return _find_app, (type(self), self.main, given)


def _find_app(kind: type[Celery], main: str | None, settings: Mapping[str, Any]) -> Celery:
    """The app of that name in this process, or else one made anew: what a pickled app becomes."""
    apps = [_state.get_current_app(), *(reference() for reference in _state.finalized)]
    for app in apps:
        if type(app) is kind and app.main == main:
            return app
    return kind(main, changes=settings, set_as_current=False)


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
