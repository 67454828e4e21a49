"""Compositions: `chain`, `group` and `chord`, and what `|` makes of two signatures.

Each is a signature whose `kwargs` hold others, in the form in which Celery's messages carry them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from minicelery.awaiting import in_thread
from minicelery.canvas.signatures import Signature, signature
from minicelery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from minicelery.app import Celery


class Compound(Signature[Any]):
    """What `chain`, `group` and `chord` have in common."""

    NAME: ClassVar[str]
    KIND: ClassVar[str]

    def __init__(self, kwargs: Mapping[str, Any], app: Celery | None, options: Mapping[str, Any]) -> None:
        super().__init__(self.NAME, (), kwargs, options, subtask_type=self.KIND, app=app)

    def __init_subclass__(cls) -> None:
        Signature.kinds[cls.KIND] = cls

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], app: Celery | None = None) -> Any:
        """See `Signature.from_dict`: with its parts as they are, nothing joined anew."""
        made = cls.__new__(cls)
        dict.__init__(made, given)
        made["args"] = list(given.get("args") or ())
        made["options"] = dict(given.get("options") or {})
        made["kwargs"] = cls.read_parts(given["kwargs"])
        made.app = app
        return made

    @staticmethod
    def read_parts(kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """`kwargs` with signatures for dicts."""
        return {**kwargs, "tasks": [signature(task) for task in kwargs.get("tasks") or ()]}

    def parts(self) -> Sequence[Signature[Any]]:
        """The signatures that this one is made of, in order."""
        raise NotImplementedError

    def last(self) -> Signature[Any] | None:
        """The part that its callbacks belong to; None where it is empty."""
        raise NotImplementedError

    @property
    def _app(self) -> Celery:
        if self.app is None:
            for part in self.parts():
                if part.app is not None or isinstance(part, Compound):
                    return part._app
        return super()._app

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """A copy, with copies of its parts; the arguments are those of what begins."""
        copy = self.from_dict(self, self.app)
        copy.copy_parts()
        if args or kwargs:
            copy.begin_with(args, kwargs or {})
        copy["options"] = {**self.options, **options}
        return copy

    partial = clone

    def set_immutable(self, immutable: bool) -> None:
        """Whether its parts leave out the arguments of a call."""
        for part in self.parts():
            part.set_immutable(immutable)

    # -- links -----------------------------------------------------------------------------

    def link(self, callback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call `callback` with what it ends with; returns `callback`."""
        if (last := self.last()) is not None:
            last.link(callback)
        return callback

    def link_error(self, errback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call `errback` when a part of it has failed; returns `errback`."""
        for part in self.parts():
            part.link_error(errback)
        return errback

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

    def apply(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Run it here and now, one task after the other."""
        return self._app._canvas.run(self, args or (), kwargs or {}, options)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """`apply_async`, without blocking the event loop."""
        return await in_thread(self._app, partial(self.apply_async, args, kwargs, **options))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send it with these arguments."""
        return self.apply_async(args, kwargs)


class chain(Compound):  # noqa: N801 - Celery's name
    """Calls one after the other, each with the result of the one before: ``chain(a, b)``, ``a | b``.

    A group that something follows becomes a chord, and a group of one its only member.
    """

    NAME, KIND = "celery.chain", "chain"

    def __init__(self, *tasks: Any, app: Celery | None = None, **options: Any) -> None:
        links: list[Signature[Any]] = []
        for task in _listed(tasks, "chain"):
            append_link(links, task, unroll=True)
        super().__init__({"tasks": links}, app, options)

    @property
    def tasks(self) -> list[Signature[Any]]:
        """Its links, in order."""
        found: list[Signature[Any]] = self["kwargs"]["tasks"]
        return found

    def parts(self) -> Sequence[Signature[Any]]:
        return self.tasks

    def last(self) -> Signature[Any] | None:
        return self.tasks[-1] if self.tasks else None

    def copy_parts(self) -> None:
        self["kwargs"]["tasks"] = [task.clone() for task in self.tasks]

    def begin_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if self.tasks:
            self.tasks[0] = self.tasks[0].clone(args, kwargs)

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks)) or "chain()"


class group(Compound):  # noqa: N801 - Celery's name
    """Calls side by side; its result is the list of theirs, in order."""

    NAME, KIND = "celery.group", "group"

    def __init__(self, *tasks: Any, app: Celery | None = None, **options: Any) -> None:
        super().__init__({"tasks": _listed(tasks, "group")}, app, options)

    @property
    def tasks(self) -> list[Signature[Any]]:
        """Its members, in order."""
        found: list[Signature[Any]] = self["kwargs"]["tasks"]
        return found

    def parts(self) -> Sequence[Signature[Any]]:
        return self.tasks

    def last(self) -> Signature[Any] | None:
        """The first: a callback of a group is called once, as in Celery."""
        return self.tasks[0] if self.tasks else None

    def link(self, callback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call `callback`, without arguments, when the first member has ended; see `chord` for all."""
        if self.tasks:
            self.tasks[0].link(signature(callback).clone().set(immutable=True))
        return callback

    def copy_parts(self) -> None:
        self["kwargs"]["tasks"] = [task.clone() for task in self.tasks]

    def begin_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self["kwargs"]["tasks"] = [task.clone(args, kwargs) for task in self.tasks]

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group:
        """Give the members countdowns from `start`, each `step` seconds more, until `stop`; itself."""
        for at, task in enumerate(self.tasks):
            seconds = start + at * step
            task.set(countdown=seconds if stop is None else min(seconds, stop))
        return self

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"group({', '.join(map(repr, self.tasks))})"


class chord(Compound):  # noqa: N801 - Celery's name
    """A group, and a body that is called with the list of its results: ``chord(header)(body)``."""

    NAME, KIND = "celery.chord", "chord"

    def __init__(
        self, header: Any, body: Any = None, task: str = "celery.chord", args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None, app: Celery | None = None, **options: Any,
    ) -> None:  # fmt: skip
        tasks = header if isinstance(header, group) else group(header)
        held = {
            "kwargs": dict(kwargs or {}),
            "header": tasks,
            "body": None if body is None else signature(body),
        }
        super().__init__(held, app, options)
        self["args"] = list(args)

    @staticmethod
    def read_parts(kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """See `Compound`: Celery has the header as a list, until it is frozen."""
        header, body = kwargs.get("header") or [], kwargs.get("body")
        tasks = signature(header) if isinstance(header, Mapping) else group(header)
        return {"kwargs": {}, **kwargs, "header": tasks, "body": None if body is None else signature(body)}

    @property
    def header(self) -> group:
        """The group."""
        found: group = self["kwargs"]["header"]
        return found

    @property
    def tasks(self) -> list[Signature[Any]]:
        """The header's members."""
        return self.header.tasks

    @property
    def body(self) -> Signature[Any]:
        """What is called with their results.  Raises ImproperlyConfigured where it has none yet."""
        found: Signature[Any] | None = self["kwargs"]["body"]
        if found is None:
            raise ImproperlyConfigured("this chord has no body: chord(header)(body), or chord(header, body)")
        return found

    @body.setter
    def body(self, body: Any) -> None:
        self["kwargs"]["body"] = signature(body)

    def parts(self) -> Sequence[Signature[Any]]:
        body = self["kwargs"]["body"]
        return [self.header] if body is None else [self.header, body]

    def last(self) -> Signature[Any] | None:
        return self.body

    def link_error(self, errback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call `errback` when the body fails, as it does when a part of the header has failed.

        With `task_allow_error_cb_on_chord_header` also for each part of the header.
        """
        if self._app.conf.task_allow_error_cb_on_chord_header:
            self.header.link_error(errback)
        self.body.link_error(errback)
        return errback

    def copy_parts(self) -> None:
        self["kwargs"]["header"] = self.header.clone()
        if (body := self["kwargs"]["body"]) is not None:
            self["kwargs"]["body"] = body.clone()

    def begin_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self["kwargs"]["header"] = self.header.clone(args, kwargs)

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Send it, with the body that it does not have yet."""
        whole = self
        if body is not None:
            whole = self.clone()
            whole.body = body
        return whole.apply_async(**options)

    def __length_hint__(self) -> int:
        return len(self.header)

    def __repr__(self) -> str:
        return f"chord({list(self.tasks)!r}, {self['kwargs']['body']!r})"


# -- putting together ------------------------------------------------------------------------------


def joined(first: Signature[Any], then: Signature[Any]) -> Signature[Any]:
    """``first | then``: a chain, or a chord where a group is followed."""
    links = list(first.tasks) if isinstance(first, chain) else [first]
    append_link(links, then)
    if len(links) == 1:
        return links[0]
    found = chain(app=first.app)
    found["kwargs"]["tasks"] = links
    if isinstance(first, chain):
        found["options"] = dict(first.options)
    return found


def append_link(links: list[Signature[Any]], then: Signature[Any], unroll: bool = False) -> None:
    """Have `then` follow the last of `links`; `unroll` also a group of one at the beginning."""
    if isinstance(then, chain):
        for task in then.tasks:
            append_link(links, task, unroll)
        return
    if isinstance(then, group) and len(then) == 1 and (links or unroll):
        append_link(links, then.tasks[0], unroll)
        return
    last = links[-1] if links else None
    if isinstance(last, group):
        links[-1] = chord(last, then, app=last.app)
    elif isinstance(last, chord) and last["kwargs"]["body"] is not None and not isinstance(then, group):
        links[-1] = extended = last.clone()
        extended.body = joined(last.body, then)
    else:
        links.append(then)


def _listed(tasks: Sequence[Any], what: str) -> list[Signature[Any]]:
    """The signatures that a constructor was given: several, a list, a generator, a group."""
    given: Any = tasks
    if len(tasks) == 1:
        only = tasks[0]
        if isinstance(only, group) and what == "group":
            given = only.tasks
        elif isinstance(only, Iterable) and not isinstance(only, (Mapping, str, bytes)):
            given = only
    return [_checked(task, what) for task in given]


def _checked(task: Any, what: str) -> Signature[Any]:
    if isinstance(task, Mapping) and isinstance(task.get("task"), str):
        return signature(task)
    raise ImproperlyConfigured(f"{what}() takes signatures such as add.s(2, 2), got {task!r:.80}")
