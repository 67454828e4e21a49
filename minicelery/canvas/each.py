"""One task for many arguments: `xmap`, `xstarmap` and `chunks`; what `task.map`, … make."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from minicelery.canvas.compound import group
from minicelery.canvas.signatures import Signature, signature
from minicelery.message import short_repr

if TYPE_CHECKING:
    from minicelery.app import Celery


class _Each(Signature[Any]):
    """A call of a built-in task that makes the calls itself, one after the other."""

    NAME = ""
    SHOWN = ""

    def __init__(self, task: Any, it: Iterable[Any], app: Celery | None = None, **options: Any) -> None:
        given = task if isinstance(task, Signature) else task.s() if hasattr(task, "s") else signature(task)
        items = items_of(it, given.task, spread=self.NAME != "celery.map")
        super().__init__(
            self.NAME, (), {"task": given, "it": items}, options, immutable=True, app=app or given.bound
        )

    @property
    def app(self) -> Any:
        """Its own, or that of the task, or the current one."""
        return self.bound or signature(self["kwargs"]["task"]).app

    @app.setter
    def app(self, app: Celery | None) -> None:
        self.bound = app

    def __repr__(self) -> str:
        items = short_repr(self["kwargs"]["it"], 100)
        return f"[{self['kwargs']['task']['task']}({self.SHOWN}) for x in {items}]"


def items_of(it: Any, name: str, spread: bool) -> list[Any]:
    """The arguments of the calls; with `spread` each of them is several.  Raises TypeError."""
    if not isinstance(it, Iterable):
        raise TypeError(
            f"{it!r:.80} for calls of {name}: expected a list of their arguments, or another iterable"
        )
    items = list(it)
    if spread and (wrong := [item for item in items if not isinstance(item, Iterable)]):
        raise TypeError(f"{wrong[0]!r:.80} for a call of {name}: expected a tuple of its arguments")
    return items


class xmap(_Each):  # noqa: N801 - Celery's name
    """`[task(item) for item in it]`, as one call."""

    NAME = "celery.map"
    SHOWN = "x"


class xstarmap(_Each):  # noqa: N801 - Celery's name
    """`[task(*item) for item in it]`, as one call."""

    NAME = "celery.starmap"
    SHOWN = "*x"


class chunks(_Each):  # noqa: N801 - Celery's name
    """Calls of `task` with the arguments in `it`, `n` of them to a message."""

    NAME = "celery.chunks"
    SHOWN = "*x"

    def __init__(
        self, task: Any, it: Iterable[Any], n: int, app: Celery | None = None, **options: Any
    ) -> None:
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"chunks: n={n!r:.80}: expected a whole number of at least 1")
        super().__init__(task, it, app, **options)
        self["kwargs"]["n"] = n

    def group(self) -> group:
        """A group of one `xstarmap` for each chunk."""
        task, items, n = (self["kwargs"][key] for key in ("task", "it", "n"))
        return group(
            [xstarmap(task, items[at : at + n], app=self.bound) for at in range(0, len(items), n)],
            app=self.bound,
        )

    def __call__(self, **options: Any) -> Any:
        """Send the group."""
        return self.apply_async(**options)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send the group."""
        return self.group().apply_async(args, kwargs, **{**self.options, **options})

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run it here and now."""
        return self.group().apply(args, kwargs, **{**self.options, **options})


# -- the built-in tasks that carry them out --------------------------------------------------------


def run_map(task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    call = signature(task)
    return [call(item) for item in it]


def run_starmap(task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    call = signature(task)
    return [call(*item) for item in it]


def run_chunks(task: Mapping[str, Any], it: Iterable[Any], n: int) -> Any:
    return list(itertools.chain.from_iterable(run_starmap(task, [item]) for item in it))


def accumulate(*args: Any, index: int | None = None, **_: Any) -> Any:
    return args if index is None else args[index]


def backend_cleanup() -> None:
    from minicelery._state import get_current_app

    # Of stores that were written for Celery: minicelery's own drop what has expired by themselves.
    if (cleanup := getattr(get_current_app().backend, "cleanup", None)) is not None:
        cleanup()


BUILT_IN: dict[str, Callable[..., Any]] = {
    "celery.accumulate": accumulate,
    "celery.backend_cleanup": backend_cleanup,
    "celery.map": run_map,
    "celery.starmap": run_starmap,
    "celery.chunks": run_chunks,
}
"""Functions of tasks that every app has, by the tasks' names."""

EACH = frozenset({"celery.map", "celery.starmap", "celery.chunks"})
"""Those that make calls of another task, and run where that would."""
