"""Compositions: `chain`, `group` and `chord`.

Each is a signature whose `kwargs` hold others, in the form in which Celery's messages carry them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from minicelery.awaiting import in_thread
from minicelery.canvas import stamping
from minicelery.canvas.given import check_link, checked
from minicelery.canvas.parts import listed, read, read_body, texts, told_apart, without_repeats
from minicelery.canvas.signatures import L, Signature, signature
from minicelery.exceptions import BrokerUnavailable, ImproperlyConfigured
from minicelery.message import new_id

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.canvas.stamping import StampingVisitor
    from minicelery.groups import GroupResult

Tasks: TypeAlias = "Mapping[str, Any] | Iterable[Mapping[str, Any]]"
TOO_DEEP = "is nested deeper than Python can follow; build it from left to right, a | b | c"


class Compound(Signature[Any]):
    """What `chain`, `group` and `chord` have in common."""

    NAME: ClassVar[str]
    KIND: ClassVar[str]

    def __init__(self, kwargs: Mapping[str, Any], app: Celery | None, options: Mapping[str, Any]) -> None:
        immutable = bool(options.get("immutable"))
        own = {name: value for name, value in options.items() if name != "immutable"}
        super().__init__(self.NAME, (), kwargs, own, subtask_type=self.KIND, immutable=immutable, app=app)

    def __init_subclass__(cls) -> None:
        if "KIND" in vars(cls):
            Signature.kinds[cls.KIND] = cls

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], app: Celery | None = None) -> Any:
        """See `Signature.from_dict`: with its parts as they are, nothing joined anew."""
        made = dict.__new__(cls)
        Signature.__init__(made, {**checked(given), "subtask_type": cls.KIND}, app=app)
        try:
            made["kwargs"] = cls.read_parts(made["kwargs"], app)
        except RecursionError:
            raise ImproperlyConfigured(f"a signature of {cls.NAME} {TOO_DEEP}") from None
        return made

    @classmethod
    def read_parts(cls, kwargs: Mapping[str, Any], app: Celery | None) -> dict[str, Any]:
        """`kwargs` with signatures for dicts.  Raises ImproperlyConfigured."""
        return {**kwargs, "tasks": read(kwargs.get("tasks"), cls.NAME, "tasks", app)}

    def parts(self) -> Sequence[Signature[Any]]:
        """The signatures that this one is made of, in order."""
        raise NotImplementedError

    @property
    def app(self) -> Celery:
        """Its own, or that of its first part that has one, or the current one."""
        if self.bound is None:
            for part in self.parts():
                if part.bound is not None or isinstance(part, Compound):
                    return part.app
        return super().app

    @app.setter
    def app(self, app: Celery | None) -> None:
        self.bound = app

    def clone(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """A copy, with copies of its parts; the arguments are those of what begins."""
        copy: Any = super().clone(None, None, **options)
        try:
            copy.copy_parts()
        except RecursionError:
            raise ImproperlyConfigured(f"a {self.NAME} contains itself, or {TOO_DEEP}") from None
        if (args or kwargs) and not self["immutable"]:
            copy.begin_with(args or (), kwargs or {})
        return copy

    partial = clone

    def copy_parts(self) -> None:
        """Have copies of its parts for its parts."""
        raise NotImplementedError

    def begin_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Give these to what begins, in front of its own."""
        raise NotImplementedError

    # -- calling ---------------------------------------------------------------------------

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send it; its result.  Raises as `Task.apply_async` does.

        Arguments go to what begins, and so do the options; but `task_id` and `link` are of what
        ends, and `link_error` of every part.
        """
        app = self._app
        if app.conf.task_always_eager:
            return self.apply(args, kwargs, **options)
        return app._canvas.send(self, args or (), kwargs or {}, options)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send it with these arguments."""
        return self.apply_async(args, kwargs)

    def apply(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Run it here and now, one task after the other."""
        return self._app._canvas.run(self, args or (), kwargs or {}, options)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """`apply_async`, without blocking the event loop."""
        return await in_thread(
            self._app, partial(self.apply_async, args, kwargs, **options), BrokerUnavailable
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send it with these arguments."""
        return self.apply_async(args, kwargs)

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None,
        root_id: str | None = None, parent_id: str | None = None, group_index: int | None = None,
    ) -> Any:  # fmt: skip
        """Fix the ids of all its calls, in place, where they have none; returns the result it will have."""
        self.fix_ids({"_id": _id, "group_id": group_id, "chord": chord, "group_index": group_index},
                     {"root_id": root_id, "parent_id": parent_id})  # fmt: skip
        from minicelery.canvas.steps import steps_of

        return self._app._canvas.result_of(steps_of(self))

    def fix_ids(self, last: Mapping[str, Any], every: Mapping[str, Any]) -> None:
        """`freeze` its parts: `last` is for what ends, `every` for all."""
        raise NotImplementedError

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """Its text."""
        return repr(self)


class chain(Compound):  # noqa: N801 - Celery's name
    """Calls one after the other, each with the result of the one before: ``chain(a, b)``, ``a | b``.

    A group that something follows becomes a chord, and a group of one its only member.
    """

    NAME, KIND = "celery.chain", "chain"

    def __new__(cls, *tasks: Tasks, app: Celery | None = None, **options: Any) -> chain:
        """What ``a | b | …`` is, which may be a chord, unless options are given or one signature."""
        from minicelery.canvas.joining import folded

        given = listed(tasks, "chain")
        if app is not None or options or not tasks or (len(tasks) == 1 and isinstance(tasks[0], Mapping)):
            made = dict.__new__(cls)
            Compound.__init__(made, {"tasks": given}, app, options)
            return made
        found = folded(given)
        if type(found) is chain and cls is not chain:
            return cls.of(found.tasks)
        return found  # type: ignore[return-value]  # as in Celery

    def __init__(self, *tasks: Tasks, app: Celery | None = None, **options: Any) -> None:
        """`__new__` has done it."""

    @classmethod
    def of(cls, links: list[Signature[Any]], app: Celery | None = None) -> chain:
        """A chain of these links as they are."""
        made = dict.__new__(cls)
        Compound.__init__(made, {"tasks": links}, app, {})
        return made

    @property
    def tasks(self) -> list[Signature[Any]]:
        """Its links, in order."""
        found: list[Signature[Any]] = self["kwargs"]["tasks"]
        return found

    @tasks.setter
    def tasks(self, tasks: Iterable[Any]) -> None:
        self["kwargs"]["tasks"] = listed((tasks,), "chain")

    def parts(self) -> Sequence[Signature[Any]]:
        return self.tasks

    def copy_parts(self) -> None:
        self["kwargs"]["tasks"] = [task.clone() for task in self.tasks]

    def begin_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if self.tasks:
            self.tasks[0] = self.tasks[0].clone(args, kwargs)

    def fix_ids(self, last: Mapping[str, Any], every: Mapping[str, Any]) -> None:
        self["kwargs"]["tasks"] = links = told_apart(self.tasks)
        for link in links[:-1]:
            link.freeze(**every)
        for link in links[-1:]:
            link.freeze(**last, **every)

    def unchain_tasks(self) -> list[Signature[Any]]:
        """Copies of its links, with what is theirs of its own options."""
        from minicelery.canvas.joining import links_of

        return [link.clone() for link in links_of(self)]

    def stamp(
        self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any
    ) -> chain:
        """See `Signature.stamp`: every link."""
        stamping.stamp_chain(self, visitor, append_stamps, headers)
        return self

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return without_repeats(" | ".join(texts(self.tasks)), self.tasks) or "chain(<empty>)"


class group(Compound):  # noqa: N801 - Celery's name
    """Calls side by side; its result is the list of theirs, in order."""

    NAME, KIND = "celery.group", "group"

    def __init__(self, *tasks: Tasks, app: Celery | None = None, **options: Any) -> None:
        super().__init__({"tasks": listed(tasks, "group")}, app, options)

    @property
    def tasks(self) -> list[Signature[Any]]:
        """Its members, in order."""
        found: list[Signature[Any]] = self["kwargs"]["tasks"]
        return found

    @tasks.setter
    def tasks(self, tasks: Iterable[Any]) -> None:
        self["kwargs"]["tasks"] = listed((tasks,), "group")

    def parts(self) -> Sequence[Signature[Any]]:
        return self.tasks

    def set_immutable(self, immutable: bool) -> None:
        """Whether its members leave out the arguments of a call."""
        for task in self.tasks:
            task.set_immutable(immutable)

    def link(self, callback: Mapping[str, Any]) -> Any:
        """Call `callback`, without arguments, when the first member has ended; returns the copy it has.

        What is called with all their results is the body of a `chord`.
        """
        check_link(callback, "link", "a group")
        if not self.tasks:
            raise ImproperlyConfigured("link= of an empty group: it has no member that could be followed")
        return self.tasks[0].link(signature(callback).set(immutable=True))

    def link_error(self, errback: Mapping[str, Any]) -> tuple[Any, ...]:
        """Call `errback` for each member that fails; returns the copies that the members have."""
        check_link(errback, "link_error", "a group")
        return tuple(task.link_error(signature(errback)) for task in self.tasks)

    def apply_async(  # type: ignore[override]  # several results, not one
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> GroupResult:
        """Send its members; their results.  Options go to all of them."""
        for option, instead in (
            ("link", "use a chord"),
            ("link_error", "give it to the members, link_error()"),
        ):
            if options.get(option) is not None:
                raise TypeError(f"{option}= can't be given to a group: {instead}")
        found: GroupResult = super().apply_async(args, kwargs, **options)
        return found

    def delay(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]  # as above
        """Send its members with these arguments."""
        return self.apply_async(args, kwargs)

    def __call__(self, *args: Any, **options: Any) -> GroupResult:
        """Send its members with these arguments."""
        return self.apply_async(args, **options)

    def copy_parts(self) -> None:
        self["kwargs"]["tasks"] = [task.clone() for task in self.tasks]

    def begin_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self["kwargs"]["tasks"] = [task.clone(args, kwargs) for task in self.tasks]

    def fix_ids(self, last: Mapping[str, Any], every: Mapping[str, Any]) -> None:
        self["kwargs"]["tasks"] = members = told_apart(self.tasks)
        if not self["options"].get("task_id"):
            self["options"]["task_id"] = last["_id"] or new_id()
        for at, member in enumerate(members):
            member.freeze(group_id=self["options"]["task_id"], group_index=at, **every)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group:
        """Give the members countdowns from `start`, each `step` seconds more, until `stop`; itself."""
        for at, task in enumerate(self.tasks):
            seconds = start + at * step
            task.set(countdown=seconds if stop is None else min(seconds, stop))
        return self

    def stamp(
        self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any
    ) -> group:
        """See `Signature.stamp`: every member."""
        stamping.stamp_group(self, visitor, append_stamps, headers)
        return self

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        if not self.tasks:
            return "group(<empty>)"
        return without_repeats(f"group([{', '.join(texts(self.tasks))}])", self.tasks)


class chord(Compound):  # noqa: N801 - Celery's name
    """A group, and a body that is called with the list of its results: ``chord(header)(body)``."""

    NAME, KIND = "celery.chord", "chord"

    def __init__(
        self, header: Tasks, body: Mapping[str, Any] | None = None, task: str = "celery.chord", args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None, app: Celery | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if isinstance(header, group) and not (header["options"] or header["args"]):
            header = list(header.tasks)
        elif not isinstance(header, group):
            header = listed((header,), "chord")
        held = {**(kwargs or {"kwargs": {}}), "header": header, "body": read_body(body, app)}
        super().__init__(held, app, options)
        self["args"] = tuple(args or ())

    @classmethod
    def read_parts(cls, kwargs: Mapping[str, Any], app: Celery | None) -> dict[str, Any]:
        """See `Compound`: the header is a list, until it is frozen, or a group."""
        header: Any = kwargs.get("header")
        if isinstance(header, Mapping):
            found: Any = header if isinstance(header, group) else group.from_dict(header, app)
        else:
            found = read(header, cls.NAME, "header", app)
        return {"kwargs": {}, **kwargs, "header": found, "body": read_body(kwargs.get("body"), app)}

    @property
    def header(self) -> group:
        """Its parts as a group."""
        held = self["kwargs"]["header"]
        if isinstance(held, group):
            return held
        made = group(app=self.bound)
        made["kwargs"]["tasks"] = held
        return made

    @property
    def tasks(self) -> list[Signature[Any]]:
        """The header's members."""
        held = self["kwargs"]["header"]
        found: list[Signature[Any]] = held.tasks if isinstance(held, group) else held
        return found

    @tasks.setter
    def tasks(self, tasks: Any) -> None:
        self["kwargs"]["header"] = tasks if isinstance(tasks, group) else listed((tasks,), "chord")

    @property
    def body(self) -> Signature[Any]:
        """What is called with their results.  Raises ImproperlyConfigured where it has none yet."""
        found: Signature[Any] | None = self["kwargs"]["body"]
        if found is None:
            raise ImproperlyConfigured("this chord has no body: chord(header)(body), or chord(header, body)")
        return found

    @body.setter
    def body(self, body: Any) -> None:
        self["kwargs"]["body"] = read_body(body, self.bound)

    def with_body(self, body: Any) -> chord:
        """A chord with the same header and another body."""
        made = dict.__new__(type(self))
        dict.update(made, self)
        made["kwargs"] = {**self["kwargs"], "body": read_body(body, self.bound)}
        made["options"] = dict(self["options"])
        made.bound = self.bound
        return made

    def parts(self) -> Sequence[Signature[Any]]:
        body = self["kwargs"]["body"]
        return self.tasks[:1] if body is None else [*self.tasks[:1], body]

    def set_immutable(self, immutable: bool) -> None:
        """Whether the parts of its header leave out the arguments of a call."""
        for task in self.tasks:
            task.set_immutable(immutable)

    def link(self, callback: L) -> L:
        """Call `callback` with what the body returns; returns `callback`."""
        self.body.link(callback)
        return callback

    def link_error(self, errback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call `errback` when the body fails, as it does when a part of the header has failed.

        With `task_allow_error_cb_on_chord_header` also for each part of the header.
        """
        check_link(errback, "link_error", "a chord")
        if self._app.conf.task_allow_error_cb_on_chord_header:
            for task in self.tasks:
                task.link_error(signature(errback).set(immutable=True))
        for task in self.tasks:
            if isinstance(task, chord):
                task.link_error(errback)
        self.body.link_error(errback)
        return errback

    def copy_parts(self) -> None:
        held = self["kwargs"]["header"]
        copy = held.clone() if isinstance(held, group) else [task.clone() for task in held]
        self["kwargs"]["header"] = copy
        if (body := self["kwargs"]["body"]) is not None:
            self["kwargs"]["body"] = body.clone()

    def begin_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        held = self["kwargs"]["header"]
        if isinstance(held, group):
            held.begin_with(args, kwargs)
        else:
            self["kwargs"]["header"] = [task.clone(args, kwargs) for task in held]

    def fix_ids(self, last: Mapping[str, Any], every: Mapping[str, Any]) -> None:
        self["kwargs"]["header"] = header = self.header
        header.freeze(**every)
        self["options"]["task_id"] = header.id  # as in Celery; see `steps`
        self.body.freeze(**last, **every)

    def stamp(
        self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any
    ) -> chord:
        """See `Signature.stamp`: the header and the body."""
        stamping.stamp_chord(self, visitor, append_stamps, headers)
        return self

    def __call__(self, body: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Send it, with the body that it does not have yet."""
        whole = self if body is None else self.with_body(body)
        return whole.apply_async(**options)

    def __length_hint__(self) -> int:
        """How many calls have to end before the body is called."""
        return _ends(self.header)

    def __repr__(self) -> str:
        (body,) = texts([self["kwargs"]["body"]])
        return without_repeats(f"chord([{', '.join(texts(self.tasks))}], {body})", self.tasks)


def _ends(one: Signature[Any]) -> int:
    """How many calls end a signature: those of a group are counted each."""
    if isinstance(one, group):
        return sum(map(_ends, one.tasks))
    if isinstance(one, chain):
        return next((count for task in reversed(one.tasks) if (count := _ends(task))), 0)
    return _ends(one.body) if isinstance(one, chord) else 1
