"""The registry: task names, and how a function becomes a task under one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from minicelery import _state
from minicelery._state import Proxy
from minicelery.exceptions import DuplicateTaskNameWarning, NotRegistered
from minicelery.settings import UnservedSetting
from minicelery.task import Task

if TYPE_CHECKING:
    from minicelery.app import Celery

P = ParamSpec("P")
R = TypeVar("R")


class TaskRegistry(dict[str, Task[..., Any]]):
    """Task name -> task; a missing name is answered with the nearest ones."""

    def __missing__(self, name: str) -> Task[..., Any]:
        raise NotRegistered(unknown_task(name, self))

    def register(self, task: Task[..., Any]) -> None:
        """Add `task` under its name."""
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
    filter: Callable[..., Any] | None = None,
    pydantic: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Task[..., Any]:
    """The task that `fun` and the options of `@app.task` make, registered with `app`."""
    if pydantic:
        raise TypeError(f"pydantic=True is not served by this version ({fun.__qualname__})")
    name = name or app.gen_task_name(fun.__name__, fun.__module__)
    known = app._registry.get(name)
    if known is not None:
        if not quiet and getattr(known, "__wrapped__", None) is not fun and not _same_source(known, fun):
            warnings.warn(
                f"a task named {name!r} is registered already, so {_place(fun)} was not registered; "
                "give one of them a name=",
                DuplicateTaskNameWarning,
                stacklevel=4,
            )
        return known
    task: Task[..., Any] = object.__new__(base or app.Task)
    called = filter(fun) if filter else fun
    functools.update_wrapper(task, fun)
    vars(task).update({"name": name, "app": app, "bound": bind, "typing": app.strict_typing})
    task.run = functools.partial(called, task) if bind else called
    for option, value in options.items():
        if option in ("run", "app") or (callable(getattr(Task, option, None)) and not callable(value)):
            raise TypeError(f"{option}= is not an option of a task ({_place(fun)})")
        setattr(task, option, value)
    if options.get("rate_limit") is not None:
        warnings.warn(
            f"rate_limit={options['rate_limit']!r} of {name} is not served by this version; it has no effect",
            UnservedSetting,
            stacklevel=4,
        )
    for option in ("autoretry_for", "dont_autoretry_for", "throws"):
        if isinstance(one := getattr(task, option), type):
            setattr(task, option, (one,))
        elif not isinstance(one, tuple):
            setattr(task, option, tuple(one))
    soft, hard = vars(task).get("soft_time_limit"), vars(task).get("time_limit")
    if soft is not None and hard is not None and soft > hard:
        raise ValueError(f"{name}: soft_time_limit={soft:g} must not be greater than time_limit={hard:g}")
    app._registry[name] = task
    if base is None and not app.finalized:
        app._pending.append(task)
    return task


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
def shared_task(fun: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(
    *, bind: Literal[True], **options: Any
) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
@overload
def shared_task(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def shared_task(*args: Any, **options: Any) -> Any:
    """A task of every app, those still to come too; calls go to the current app.

    For modules that must not import the app, such as a Django or Flask application's.
    """

    def declare(fun: Callable[..., Any]) -> Any:
        name = options.get("name")
        share(lambda app: task_from_function(app, fun, **options))

        def find() -> Task[..., Any]:
            app = _state.get_current_app()
            return app.tasks[name or app.gen_task_name(fun.__name__, fun.__module__)]

        return Proxy(find)

    if len(args) == 1 and callable(args[0]):
        return declare(args[0])
    if args:
        raise TypeError("@shared_task takes a function, or options by keyword")
    return declare
