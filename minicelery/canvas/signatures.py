"""Signatures: a task call as a value that can be passed, stored and sent.

A signature is a dict of six keys (`task`, `args`, `kwargs`, `options`, `subtask_type`,
`immutable`), so it survives JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from minicelery._state import get_current_app
from minicelery.awaiting import in_thread
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id
from minicelery.options import check_arguments_shape

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # stubs, known to every type checker

    from minicelery.app import Celery
    from minicelery.composing import Composing
    from minicelery.result import AsyncResult, EagerResult
    from minicelery.task import Task

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")


class Signature(dict[str, Any], Generic[R]):
    """One task call, not yet made: `add.s(2, 2)`."""

    app: Celery | None = None
    kinds: ClassVar[dict[str, type[Signature[Any]]]] = {}
    """The classes of compositions, by `subtask_type`."""

    def __init__(
        self,
        task: str | Composing[Any, Any] | Mapping[str, Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Celery | None = None,
        **more_options: Any,
    ) -> None:
        if isinstance(task, Mapping):
            super().__init__(task)
            self["args"] = list(task.get("args") or ())
            self["kwargs"] = dict(task.get("kwargs") or {})
            self["options"] = dict(task.get("options") or {})
            self.setdefault("subtask_type", None)
            self.setdefault("immutable", False)
        else:
            if isinstance(args, (str, bytes, Mapping)):
                check_arguments_shape(task if isinstance(task, str) else task.name, args, kwargs or {})
            super().__init__(
                task=task if isinstance(task, str) else task.name,
                args=list(args or ()),
                kwargs=dict(kwargs or {}),
                options={**(options or {}), **more_options},
                subtask_type=subtask_type,
                immutable=immutable,
            )
            if app is None and not isinstance(task, str):
                app = task.app
        self.app = app

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], app: Celery | None = None) -> Any:
        """The signature that has become a plain dict on its way."""
        return cls(given, app=app)

    @property
    def task(self) -> str:
        """The task's registered name."""
        name: str = self["task"]
        return name

    name = task

    @property
    def args(self) -> list[Any]:
        args: list[Any] = self["args"]
        return args

    @property
    def kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = self["kwargs"]
        return kwargs

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = self["options"]
        return options

    @property
    def immutable(self) -> bool:
        return bool(self.get("immutable"))

    @property
    def id(self) -> str | None:
        """The id fixed by `freeze` or `set(task_id=…)`; None until then."""
        id: str | None = self.options.get("task_id")
        return id

    @property
    def type(self) -> Task[..., R]:
        """The task object.  Raises NotRegistered."""
        return self._app.tasks[self.task]

    @property
    def _app(self) -> Celery:
        return self.app or get_current_app()

    def merged(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        """What a call with these would use: args put in front, kwargs and options merged.

        An immutable signature keeps its own arguments.
        """
        merged_options = {**self.options, **options}
        if self.immutable:
            return self.args, self.kwargs, merged_options
        return [*args, *self.args], {**self.kwargs, **(kwargs or {})}, merged_options

    def clone(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R]:
        """A copy, with `merged` applied."""
        new_args, new_kwargs, new_options = self.merged(args, kwargs, **options)
        return Signature(
            {**self, "args": new_args, "kwargs": new_kwargs, "options": new_options}, app=self.app
        )

    partial = clone

    def set(self, immutable: bool | None = None, **options: Any) -> Signature[R]:
        """Add options, in place; returns itself."""
        if immutable is not None:
            self["immutable"] = immutable
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Whether arguments of the call are left out."""
        self["immutable"] = immutable

    def link(self, callback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call `callback` with the result; returns `callback`."""
        return self._append("link", callback)

    def link_error(self, errback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call `errback` when the task has failed; returns `errback`."""
        return self._append("link_error", errback)

    def on_error(self, errback: Mapping[str, Any]) -> Signature[R]:
        """`link_error` that returns the signature itself."""
        self.link_error(errback)
        return self

    def _append(self, key: str, signature: Mapping[str, Any]) -> Mapping[str, Any]:
        links = as_list(self.options.get(key))
        if signature not in links:
            links.append(signature)
        self.options[key] = links
        return signature

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send it; see `Task.apply_async`."""
        new_args, new_kwargs, new_options = self.merged(args, kwargs, **options)
        app = self._app
        task = app.tasks.get(self.task)
        if task is None:
            return app.send_task(self.task, new_args, new_kwargs, **new_options)
        return task.apply_async(new_args, new_kwargs, **new_options)

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send it with these arguments in front."""
        return self.apply_async(args, kwargs)

    async def aapply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """`apply_async`, without blocking the event loop."""
        return await in_thread(self._app, partial(self.apply_async, args, kwargs, **options))

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """`delay`, without blocking the event loop."""
        return await in_thread(self._app, partial(self.delay, *args, **kwargs))

    def apply(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> EagerResult[R]:
        """Run it here and now."""
        new_args, new_kwargs, new_options = self.merged(args, kwargs, **options)
        return self.type.apply(new_args, new_kwargs, **new_options)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        new_args, new_kwargs, _ = self.merged(args, kwargs)
        return self.type(*new_args, **new_kwargs)

    def __invert__(self) -> R:
        return self.delay().get()

    if TYPE_CHECKING:  # a dict's `|` is another one

        def __or__(self, other: Signature[Any]) -> Signature[Any]: ...  # type: ignore[override]

    else:

        def __or__(self, other):
            """The two one after the other: see `chain`, and `chord`."""
            from minicelery.canvas.compound import joined

            return joined(self, other) if isinstance(other, Signature) else NotImplemented

        def __ior__(self, other):
            return self | other

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None,
        root_id: str | None = None, parent_id: str | None = None, group_index: int | None = None,
    ) -> AsyncResult[R]:  # fmt: skip
        """Fix the id of the call, in place; returns the result that it will have."""
        options = self.options
        if _id is not None:
            options["task_id"] = _id
        elif not options.get("task_id"):
            options["task_id"] = new_id()
        given = {"group_id": group_id, "chord": chord, "root_id": root_id, "parent_id": parent_id,
                 "group_index": group_index}  # fmt: skip
        options.update({name: value for name, value in given.items() if value is not None})
        return self._app.AsyncResult(options["task_id"])

    def flatten_links(self) -> list[Signature[Any]]:
        """This one and all its callbacks, and theirs."""
        links = [signature(link) for link in as_list(self.options.get("link"))]
        return [self, *(found for link in links for found in link.flatten_links())]

    def replace(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Signature[R]:  # fmt: skip
        """A copy in which these take the place of its own, where they are given."""
        copy = self.clone()
        for key, value in (("args", args), ("kwargs", kwargs), ("options", options)):
            if value is not None:
                copy[key] = list(value) if key == "args" else dict(value)
        return copy

    def __repr__(self) -> str:
        parts = [repr(arg) for arg in self.args] + [f"{key}={value!r}" for key, value in self.kwargs.items()]
        return f"{self.task}({', '.join(parts)})"

    def __reduce__(self) -> Any:
        return Signature, (dict(self),)


def signature(task: Any, *args: Any, **kwargs: Any) -> Signature:
    """A signature of a task name, a task, a dict, or a signature itself."""
    if isinstance(task, Signature):
        return task
    if isinstance(task, Mapping):
        kind = Signature.kinds.get(task.get("subtask_type") or "", Signature)
        found: Signature = kind.from_dict(task, app=kwargs.get("app"))
        return found
    return Signature(task, *args, **kwargs)


def maybe_signature(value: Any, app: Celery | None = None) -> Signature | None:
    """`signature`, but None stays None."""
    if value is None:
        return None
    found = signature(value)
    if app is not None:
        found.app = app
    return found


def as_list(value: Any) -> list[Any]:
    """None as [], one signature as [it], a list or tuple as a new list."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    return [value]


def links_for_body(value: Any, option: str, task: str) -> list[dict[str, Any]] | None:
    """`link`/`link_error` values as a message body carries them.  Raises ImproperlyConfigured."""
    if value is None:
        return None
    links = as_list(value)
    for link in links:
        if not isinstance(link, Mapping) or not isinstance(link.get("task"), str):
            raise ImproperlyConfigured(
                f"{option}= of {task} takes signatures such as notify.s(), got {type(link).__name__}"
            )
    return [dict(signature(link)) for link in links] or None


def call_of(request: Any) -> dict[str, Any]:
    """The options under which the call that `request` is an attempt at can be made again."""
    options = {**request.as_execution_options(), "ignore_result": request.ignore_result}
    info = request.delivery_info or {}
    options["priority"] = info.get("priority")
    if info.get("exchange"):
        options |= {"exchange": info["exchange"], "routing_key": info["routing_key"]}
    else:
        options["queue"] = info.get("routing_key")
    return options
