"""Signatures: a task call as a value that can be passed, stored and sent.

A signature is a dict of six keys (`task`, `args`, `kwargs`, `options`, `subtask_type`,
`immutable`), so it survives JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, overload

from minicelery._state import get_current_app
from minicelery.awaiting import in_thread
from minicelery.canvas import stamping
from minicelery.canvas.given import arguments, check_link, checked, meant, reaches
from minicelery.canvas.given import as_list as as_list
from minicelery.exceptions import BrokerUnavailable, ImproperlyConfigured
from minicelery.message import new_id

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # stubs, known to every type checker

    from minicelery.app import Celery
    from minicelery.canvas.stamping import StampingVisitor
    from minicelery.composing import Composing
    from minicelery.drawing import Graph
    from minicelery.result import AsyncResult as Result
    from minicelery.result import EagerResult
    from minicelery.task import Task

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

V = TypeVar("V")
L = TypeVar("L", bound=Mapping[str, Any])
_KEPT = ("group_id", "stamped_headers")
"""Options that, once given, a call does not replace; nor does it what `stamped_headers` name."""


class Key(Generic[V]):
    """A key of a signature, or of a dict in it, as an attribute."""

    def __init__(self, name: str, *, of: str = "") -> None:
        self.name, self.of = name, of

    @overload
    def __get__(self, holder: None, owner: Any) -> Key[V]: ...
    @overload
    def __get__(self, holder: Signature[Any], owner: Any) -> V: ...
    def __get__(self, holder: Signature[Any] | None, owner: Any) -> Any:
        if holder is None:
            return self
        return holder[self.of].get(self.name) if self.of else holder.get(self.name)

    def __set__(self, holder: Signature[Any], value: V) -> None:
        (holder[self.of] if self.of else holder)[self.name] = value


class Signature(dict[str, Any], Generic[R]):
    """One task call, not yet made: `add.s(2, 2)`."""

    kinds: ClassVar[dict[str, type[Signature[Any]]]] = {}
    """The classes of compositions, by `subtask_type`."""
    bound: Celery | None = None
    """The app it was given; None: that of its parts, or the current one."""

    task: Key[str] = Key("task")
    name: Key[str] = Key("task")
    args: Key[tuple[Any, ...]] = Key("args")
    kwargs: Key[dict[str, Any]] = Key("kwargs")
    options: Key[dict[str, Any]] = Key("options")
    subtask_type: Key[str | None] = Key("subtask_type")
    immutable: Key[bool] = Key("immutable")
    # Those that `freeze` fixes; None until then.
    id: Key[str | None] = Key("task_id", of="options")
    parent_id: Key[str | None] = Key("parent_id", of="options")
    root_id: Key[str | None] = Key("root_id", of="options")

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
            super().__init__(checked(task))
            self["args"] = tuple(task.get("args") or ())
            self["kwargs"] = dict(task.get("kwargs") or {})
            self["options"] = dict(task.get("options") or {})
            self.setdefault("subtask_type", None)
            self.setdefault("immutable", False)
        else:
            name = task if isinstance(task, str) else getattr(task, "name", None)
            if not isinstance(name, str):
                raise TypeError(f"signature() takes a task, its name or a signature, got {task!r:.80}")
            if kwargs or type(args) is not tuple:
                args = arguments(name, args, kwargs)
            super().__init__(
                task=name,
                args=args,
                kwargs=dict(kwargs) if kwargs else {},
                options={**(options or {}), **more_options},
                subtask_type=subtask_type,
                immutable=immutable,
            )
            if app is None and not isinstance(task, str):
                app = task.app
        if app is not None:
            self.bound = app

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], app: Celery | None = None) -> Any:
        """The signature that has become a plain dict on its way.  Raises ImproperlyConfigured."""
        if cls is Signature and (kind := checked(given).get("subtask_type")):
            found = Signature.kinds.get(kind) if isinstance(kind, str) else None
            if found is None:
                known = ", ".join(Signature.kinds)
                raise ImproperlyConfigured(f"a signature of subtask_type {kind!r:.80}; there are {known}")
            return found.from_dict(given, app)
        return Signature(given, app=app)

    @property
    def app(self) -> Celery:
        """The app that it is sent with: its own, or else the current one."""
        return self.bound or get_current_app()

    @app.setter
    def app(self, app: Celery | None) -> None:
        self.bound = app

    @property
    def _app(self) -> Celery:
        return self.app

    @property
    def type(self) -> Task[..., R]:
        """The task object.  Raises NotRegistered."""
        return self._app.tasks[self["task"]]

    @property
    def AsyncResult(self) -> Any:  # noqa: N802 - Celery's name
        """The class of its results."""
        return self._app.AsyncResult

    # -- copies ----------------------------------------------------------------------------

    def merged(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """What a call with these would use: args put in front, kwargs and options merged.

        An immutable signature keeps its own arguments.
        """
        if (args and type(args) is not tuple) or kwargs:
            args = arguments(self["task"], args, kwargs)
        own: dict[str, Any] = self["options"]
        if options:
            kept = {*_KEPT, *(own.get("stamped_headers") or ())} if any(key in own for key in _KEPT) else ()
            own = {**own, **{key: options[key] for key in options if key not in kept or key not in own}}
        if self["immutable"] or not (args or kwargs):
            return self["args"], self["kwargs"], own
        return (
            (*args, *self["args"]) if args else self["args"],
            {**self["kwargs"], **(kwargs or {})},
            own,
        )

    def clone(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R]:
        """A copy, with `merged` applied."""
        copy: Signature[R] = self.__class__.__new__(self.__class__)
        dict.update(copy, self)
        if args or kwargs or options:
            copy["args"], copy["kwargs"], own = self.merged(args, kwargs, **options)
        else:
            own = self["options"]
        copy["kwargs"] = dict(copy["kwargs"])
        copy["options"] = copied(own, self["task"]) if own else {}
        if self.bound is not None:
            copy.bound = self.bound
        return copy

    partial = clone

    def replace(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Signature[R]:  # fmt: skip
        """A copy in which these take the place of its own, where they are given."""
        copy = self.clone()
        if args is not None:
            copy["args"] = arguments(self["task"], args, None)
        if kwargs is not None:
            arguments(self["task"], None, kwargs)
            copy["kwargs"] = dict(kwargs)
        if options is not None:
            copy["options"] = dict(options)
        return copy

    # -- changes in place ------------------------------------------------------------------

    def set(self, immutable: bool | None = None, **options: Any) -> Signature[R]:
        """Add options, in place; returns itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        for option in ("link", "link_error"):
            for link in as_list(options.get(option)):
                self._check_cycle(link, option)
        self["options"].update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Whether arguments of the call are left out."""
        self["immutable"] = immutable

    def link(self, callback: L) -> L:
        """Call `callback` with the result; returns `callback`."""
        return self._append("link", callback)

    def link_error(self, errback: Mapping[str, Any]) -> Any:
        """Call `errback` when the task has failed; returns `errback`."""
        return self._append("link_error", errback)

    def on_error(self, errback: Mapping[str, Any]) -> Signature[R]:
        """`link_error` that returns the signature itself."""
        self.link_error(errback)
        return self

    def _append(self, option: str, link: L) -> L:
        check_link(link, option, self["task"])
        self._check_cycle(link, option)
        links = as_list(self["options"].get(option))
        if link not in links:
            links.append(link)
        self["options"][option] = links
        return link

    def append_to_list_option(self, key: str, value: L) -> L:
        """Add a signature to the list that the option `key` is; returns it."""
        return self._append(key, value)

    def extend_list_option(self, key: str, value: Any) -> None:
        """Add one or several signatures to the list that the option `key` is."""
        self["options"][key] = as_list(self["options"].get(key)) + as_list(value)

    def _check_cycle(self, link: Any, option: str) -> None:
        if isinstance(link, Mapping) and reaches(link, self):
            raise ValueError(
                f"{option}= of {self['task']}: {link.get('task')} leads back to it; link a copy, made by clone()"
            )

    def graph(self) -> Graph:
        """A picture of it: `str()` is Mermaid, `.svg()` an image, `.save(path)` either."""
        from minicelery.drawing import graph_of

        return graph_of(self)

    def flatten_links(self) -> list[Signature[Any]]:
        """This one and all its callbacks, and theirs."""
        found: list[Signature[Any]] = []
        left: list[Mapping[str, Any]] = [self]
        while left:
            one = left.pop()
            found.append(one if isinstance(one, Signature) else signature(one))
            left += reversed(as_list(found[-1]["options"].get("link")))
        return found

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None,
        root_id: str | None = None, parent_id: str | None = None, group_index: int | None = None,
    ) -> Result[R]:  # fmt: skip
        """Fix the id of the call, in place, where it has none; returns the result that it will have."""
        options = self["options"]
        if not options.get("task_id"):
            options["task_id"] = _id or new_id()
        given = {"chord": chord, "root_id": root_id, "parent_id": parent_id, "group_index": group_index}
        options.update({name: value for name, value in given.items() if value is not None})
        if group_id:
            options.setdefault("group_id", group_id)
        return self._app.AsyncResult(options["task_id"])

    def stamp(
        self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any
    ) -> Signature[R]:
        """Put stamps on it, in place: `headers`, and what `visitor` returns; returns itself.

        They reach its callbacks and errbacks too, and go with its message as headers.  A stamp
        that it has already stays, in a list with the new one, if `append_stamps`.
        """
        stamping.stamp_call(self, visitor, append_stamps, headers)
        return self

    def stamp_links(
        self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any
    ) -> None:
        """`stamp`, for its callbacks and errbacks only."""
        stamping.stamp_links(self, visitor, append_stamps, headers)

    # -- calling ---------------------------------------------------------------------------

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Result[R]:
        """Send it; see `Task.apply_async`."""
        new_args, new_kwargs, new_options = self.merged(args, kwargs, **_given(options))
        app = self._app
        task = app.tasks.get(self["task"])
        if task is None:
            return app.send_task(self["task"], new_args, new_kwargs, **new_options)
        return task.apply_async(new_args, new_kwargs, **new_options)

    def delay(self, *args: Any, **kwargs: Any) -> Result[R]:
        """Send it with these arguments in front."""
        return self.apply_async(args, kwargs)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Result[R]:
        """`apply_async`, without blocking the event loop."""
        return await in_thread(
            self._app, partial(self.apply_async, args, kwargs, **options), BrokerUnavailable
        )

    async def adelay(self, *args: Any, **kwargs: Any) -> Result[R]:
        """`delay`, without blocking the event loop."""
        return await in_thread(self._app, partial(self.delay, *args, **kwargs), BrokerUnavailable)

    def apply(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> EagerResult[R]:
        """Run it here and now."""
        new_args, new_kwargs, new_options = self.merged(args, kwargs, **_given(options))
        return self.type.apply(new_args, new_kwargs, **new_options)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        new_args, new_kwargs, _ = self.merged(args, kwargs)
        return self.type(*new_args, **new_kwargs)

    def __invert__(self) -> R:
        return self.apply_async().get()

    if TYPE_CHECKING:  # a dict's `|` is another one

        def __or__(self, other: Signature[Any]) -> Signature[Any]: ...  # type: ignore[override]

    else:

        def __or__(self, other):
            """The two one after the other: see `chain`, and `chord`."""
            from minicelery.canvas.joining import joined

            return joined(self, _operand(other, f"{self['task']} | "))

        def __ror__(self, other):
            from minicelery.canvas.joining import joined

            return joined(_operand(other, f"... | {self['task']}: "), self)

        __ior__ = __or__

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """Its text, as if it were called with these."""
        parts = [repr(arg) for arg in (*args, *self["args"])]
        parts += [f"{key}={value!r}" for key, value in {**self["kwargs"], **kwargs}.items()]
        return f"{self['task']}({', '.join(parts)})"

    def __repr__(self) -> str:
        return self.reprcall()

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __deepcopy__(self, memo: Any) -> Signature[R]:
        return self.clone()


def signature(task: Any, *args: Any, **kwargs: Any) -> Signature:
    """A signature of a task name, a task, or a dict; of a signature, a copy."""
    if isinstance(task, Signature):
        return task.clone()
    if isinstance(task, Mapping):
        found: Signature = Signature.from_dict(task, app=kwargs.get("app"))
        return found
    return Signature(task, *args, **kwargs)


def maybe_signature(value: Any, app: Celery | None = None, clone: bool = False) -> Signature | None:
    """The signature itself, or that of a dict; None stays None."""
    if value is None:
        return None
    found = value if isinstance(value, Signature) and not clone else signature(value, app=app)
    if app is not None:
        found.bound = app
    return found


def _operand(other: Any, place: str) -> Signature:
    if isinstance(other, Signature):
        return other
    if isinstance(other, Mapping) and isinstance(other.get("task"), str):
        return signature(other)
    raise TypeError(f"{place}{other!r:.80}: expected a signature such as add.s(){meant(other)}")


def copied(options: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A copy of options, with the lists, dicts and signatures in them.  Raises ValueError."""
    try:
        return {key: _own(value) for key, value in options.items()}
    except RecursionError:
        raise ValueError(
            f"the options of {task} contain themselves, or links of links beyond all bounds"
        ) from None


def _own(value: Any) -> Any:
    if isinstance(value, Signature):
        return value.clone()
    if type(value) is list:
        return [_own(one) for one in value]
    if type(value) is dict:
        return {key: _own(one) for key, one in value.items()}
    return value


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None} if options else options


def links_for_body(value: Any, option: str, task: str) -> list[dict[str, Any]] | None:
    """`link`/`link_error` values as a message body carries them.  Raises ImproperlyConfigured."""
    if value is None:
        return None
    links = as_list(value)
    for link in links:
        check_link(link, option, task)
    return [dict(link if isinstance(link, Signature) else signature(link)) for link in links] or None


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
