"""The registry: task names, and how a function or a class becomes a task under one."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from minicelery import _state
from minicelery._state import Proxy
from minicelery.attributes import (
    as_tuples,
    check_flags,
    check_names,
    check_values,
    fill_from_settings,
    own_values,
    warn_of_addresses,
)
from minicelery.exceptions import DuplicateTaskNameWarning, NotRegistered
from minicelery.limits import of_task
from minicelery.modules import callers_level
from minicelery.options import check_priority, most_priority
from minicelery.task import Task

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.task import CoroutineTask

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=Task[..., Any])


class TaskDecorator(Protocol):
    """What `@app.task(…)` is: a function becomes a task of the same parameters and result."""

    @overload
    def __call__(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[P, R], /) -> Task[P, R]: ...


class BoundDecorator(Protocol):
    """What `@app.task(bind=True, …)` is: callers don't give the first parameter."""

    @overload
    def __call__(
        self, fun: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


OWN_TASKS = ("celery.", "minicelery.")
"""How the names of the tasks begin that every app has."""


class TaskRegistry(dict[str, Task[..., Any]]):
    """Task name -> task; a missing name is answered with the nearest ones."""

    def __missing__(self, name: str) -> Task[..., Any]:
        raise NotRegistered(unknown_task(name, self))

    def register(self, task: Task[..., Any] | type[Task[..., Any]]) -> None:
        """Add `task` under its name; one that has no app becomes a task of the current one."""
        if isinstance(task, type) or task.app is None:
            task = _state.get_current_app().register_task(task)
        self[task.name] = task

    def unregister(self, task: str | Task[..., Any]) -> None:
        """Remove a task, or the task of that name.  Raises NotRegistered."""
        name = task if isinstance(task, str) else task.name
        if name not in self:
            raise NotRegistered(unknown_task(name, self))
        del self[name]


def unknown_task(name: str, known: Mapping[str, Any]) -> str:
    """One line about a task name that is not registered, with the nearest ones that are."""
    import difflib

    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?"
        if near
        else ("import its module in the worker (include=, imports, --include or autodiscover_tasks)")
    )
    return f"no task named {name!r} is registered; {hint}"


def task_from_function(
    app: Celery,
    fun: Callable[..., Any],
    *,
    name: str | None = None,
    base: type[Task[..., Any]] | None = None,
    bind: bool = False,
    lazy: bool = True,
    pydantic: bool = False,
    pydantic_strict: bool = False,
    pydantic_context: Mapping[str, Any] | None = None,
    pydantic_dump_kwargs: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **options: Any,
) -> Task[..., Any]:
    """The task that `fun` and the options of `@app.task` make, registered with `app`.

    Raises TypeError for an option that there is not, ValueError for a value that can't be.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name={name!r:.80} of @app.task: expected text")
    if not name and not hasattr(fun, "__name__"):
        raise TypeError(f"{fun!r:.80} has no __name__ to name a task by: @app.task(name=…)")
    name = name or app.gen_task_name(fun.__name__, fun.__module__)
    known = app._registry.get(name)
    if known is not None:
        if not quiet and getattr(known, "__wrapped__", None) is not fun and not _same_source(known, fun):
            warnings.warn(
                f"a task named {name!r} is registered already, so {_place(fun)} was not registered; "
                "give one of them a name=",
                DuplicateTaskNameWarning,
                stacklevel=callers_level(),
            )
        return known
    parent = app.Task if base is None else base
    check_declared(name, options, base=parent)
    check_flags(name, bind=bind, lazy=lazy, pydantic=pydantic, pydantic_strict=pydantic_strict)
    called, dump = fun, None
    if pydantic:
        from minicelery.validation import Validation

        validation = Validation(
            app, fun, name, bound=bind, strict=pydantic_strict, context=pydantic_context, dump_kwargs=pydantic_dump_kwargs
        )  # fmt: skip
        called, dump = validation.function(), staticmethod(validation.dump)
    kind = type(
        getattr(fun, "__name__", name.rpartition(".")[2]),
        (parent,),
        {
            "app": app, "name": name, "abstract": False, "bound": bind, "run": _method(called, bind),
            "__module__": fun.__module__, "__doc__": fun.__doc__, "_follows_app": base is None,
            "_dump_arguments": dump, **options,
        },
    )  # fmt: skip
    task: Task[..., Any] = object.__new__(kind)
    functools.update_wrapper(task, fun, updated=())
    as_tuples(kind)
    of_task(task, None)
    app._registry[name] = task
    if lazy and not app.finalized:
        app._unsettled.append(task)
    else:
        settle(app, task)
    return task


def _method(fun: Callable[..., Any], bind: bool) -> Any:
    """What has to stand in a class for `fun` to be called with the task itself (`bind`), or without."""
    if not bind:
        return staticmethod(fun)
    if hasattr(type(fun), "__get__"):
        return fun
    return lambda self, *args, **kwargs: fun(self, *args, **kwargs)


def check_declared(name: str, options: Mapping[str, Any], *, base: Any = None) -> None:
    """Refuse a base or options that can't make a task.  Raises TypeError or ValueError."""
    if base is not None and not (isinstance(base, type) and issubclass(base, Task)):
        raise TypeError(f"base={base!r:.80} of {name}: expected a subclass of minicelery.Task")
    parent = Task if base is None else base
    check_names(name, options, parent)
    check_values(name, {**own_values(parent), **options})


def task_from_class(
    app: Celery, given: Task[..., Any] | type[Task[..., Any]], options: Mapping[str, Any]
) -> Task[..., Any]:
    """The task that a class or an instance of it makes, registered with `app`."""
    parent = given if isinstance(given, type) else type(given)
    if not issubclass(parent, Task):
        raise TypeError(
            f"register_task takes a subclass of minicelery.Task or an object of one, got {given!r:.80}"
        )
    if not callable(getattr(parent, "run", None)):
        raise TypeError(f"{parent.__name__} has no run method")
    name = given.name or app.gen_task_name(parent.__name__, parent.__module__)
    known = app._registry.get(name)
    if known is not None and known is given:
        return known
    check_declared(name, options, base=parent)
    kind: Any = type(
        parent.__name__,
        (parent,),
        {
            "app": app, "name": name, "abstract": False, "__module__": parent.__module__,
            "__doc__": parent.__doc__, "_made": True, **options,
        },
    )  # fmt: skip
    if isinstance(given, type):
        task: Task[..., Any] = kind()
    else:
        task = given
        task.__class__ = kind
        vars(task).update(name=name, _settled=False)
    of_task(task, None)
    if known is not None:
        warnings.warn(
            f"a task named {name!r} is registered already, and {parent.__module__}.{parent.__qualname__} takes "
            "its place; give one of them a name=",
            DuplicateTaskNameWarning,
            stacklevel=callers_level(),
        )
    warn_of_addresses(name, {**vars(parent), **options})
    app._registry[name] = task
    if app.finalized:
        settle(app, task)
    else:
        app._unsettled.append(task)
    return task


def settle(app: Celery, task: Task[..., Any]) -> None:
    """Finish a task: its base as `app.Task` is now, its `__init__`, annotations and hooks.  Once."""
    with app._lock:
        own = vars(task)
        if task._settled or "_settling" in own:
            return
        own["_settling"] = True
        try:
            _settle(app, task, type(task))
            own["_settled"] = True
        finally:
            del own["_settling"]


def _settle(app: Celery, task: Task[..., Any], kind: Any) -> None:
    base = app.Task
    if kind.__dict__.get("_follows_app") and kind.__bases__ != (base,):
        kind.__bases__ = (base,)
    if kind.typing is None:
        kind.typing = app.strict_typing
    if not kind.__dict__.get("_made"):
        task.__init__()  # type: ignore[misc]  # its class is known now, and it was made without
    fill_from_settings(kind)
    kind.annotate()
    check_values(
        task.name, {**own_values(kind), **{key: value for key, value in vars(task).items() if key != "name"}}
    )
    as_tuples(task)
    for name in ("__signature__", "_positional_range", "_send_defaults"):
        vars(task).pop(name, None)
    of_task(task, None)
    if (priority := task.priority) is not None:
        check_priority(priority, name=task.name, most=most_priority(app.conf))
    kind._prepares = kind._dump_arguments is not None or kind.shadow_name is not Task.shadow_name
    kind.on_bound(app)


def _same_source(known: Task[..., Any], fun: Callable[..., Any]) -> bool:
    """Whether both come from one definition, e.g. a module that was imported twice."""
    code = getattr(getattr(known, "__wrapped__", None), "__code__", None)
    other = getattr(fun, "__code__", None)
    return (
        code is not None
        and other is not None
        and (code.co_filename, code.co_firstlineno) == (other.co_filename, other.co_firstlineno)
    )


def _place(fun: Callable[..., Any]) -> str:
    code = getattr(fun, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"{fun.__module__}.{getattr(fun, '__qualname__', fun)}{where}"


def share(register: Callable[[Celery], Any]) -> None:
    """Have `register` called with every app: those that are finalized now, others when they are."""
    _state.shared.append(register)
    for reference in list(_state.finalized):
        app = reference()
        if app is None:
            _state.finalized.remove(reference)
        elif app.finalized:
            register(app)


@overload
def shared_task(fun: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
@overload
def shared_task(fun: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(*, base: type[T], **options: Any) -> Callable[[Callable[..., Any]], T]: ...
@overload
def shared_task(*, bind: Literal[True], base: None = None, **options: Any) -> BoundDecorator: ...
@overload
def shared_task(*, base: None = None, **options: Any) -> TaskDecorator: ...
def shared_task(*args: Any, **options: Any) -> Any:
    """A task of every app, those still to come too; calls go to the current app.

    For modules that must not import the app, such as a Django or Flask application's.
    """

    def declare(fun: Callable[..., Any]) -> Any:
        name = options.get("name")
        attributes = {key: value for key, value in options.items() if key not in _PARAMETERS}
        shown = name or f"{fun.__module__}.{fun.__name__}"
        check_declared(shown, attributes, base=options.get("base"))
        warn_of_addresses(shown, options)
        share(lambda app: task_from_function(app, fun, **options))

        def find() -> Task[..., Any]:
            app = _state.get_current_app()
            return app.tasks[name or app.gen_task_name(fun.__name__, fun.__module__)]

        return Proxy(find)

    if len(args) == 1 and callable(args[0]):
        return declare(args[0])
    if args:
        raise TypeError("@shared_task takes a function, or options by keyword")
    options.pop("shared", None)
    return declare


_PARAMETERS = frozenset(inspect.signature(task_from_function).parameters)
