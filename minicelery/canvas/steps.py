"""The one form that every composition has: steps, one after the other.

A step is a call, or a `Fork`: lists of steps side by side.  What follows a fork is the call
that gets the list of their results.  Nested groups are one fork, as in Celery; where a list of
results is wanted and no task follows to take it, `ACCUMULATE` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from minicelery.canvas.compound import TOO_DEEP, Compound, chain, chord, group
from minicelery.canvas.joining import OF_THE_END
from minicelery.canvas.signatures import Signature, as_list, signature
from minicelery.exceptions import ImproperlyConfigured
from minicelery.message import new_id

ACCUMULATE = "celery.accumulate"
"""The built-in task that returns what it is called with."""
_OF_THE_BEGINNING = ("countdown", "eta")


@dataclass(slots=True, eq=False)
class Fork:
    """Steps side by side."""

    parts: list[list[Step]]
    id: str = field(default_factory=new_id)


Step: TypeAlias = "Signature[Any] | Fork"


def steps_of(whole: Signature[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
             **options: Any) -> list[Step]:  # fmt: skip
    """The steps of a signature that is called with these; copies, each call with an id of its own.

    Raises ImproperlyConfigured for one that contains itself.
    """
    try:
        steps = _steps(whole)
    except RecursionError:
        raise ImproperlyConfigured(f"a {whole.task} contains itself, or {TOO_DEEP}") from None
    _end_of(steps)
    begin_with(steps, args, kwargs or {})
    set_options(steps, options)
    return steps


def ids_in(whole: Signature[Any]) -> set[str]:
    """The ids that a signature and its parts have been given."""
    found = {whole.id} if whole.id else set()
    for part in whole.parts() if isinstance(whole, Compound) else ():
        found |= ids_in(part)
    return found


def _steps(one: Signature[Any]) -> list[Step]:
    if not isinstance(one, Compound):
        return [_call(one)]
    found: list[Step]
    own = one.options
    if isinstance(one, chain):
        found = []
        for task in one.tasks:
            join(found, _steps(task))
        if one.immutable:
            _close(found)
    elif isinstance(one, group):
        found = [_fork(one)]
    else:
        assert isinstance(one, chord)
        header = one.header
        found = _steps(header)
        for part in (part for fork in found if isinstance(fork, Fork) for part in fork.parts):
            if not isinstance(end := part[-1], Fork):
                end["options"].pop("chord", None)  # where Celery has frozen the header, it is the body
        join(found, _steps(one.body))
        if own.get("task_id") and own["task_id"] == header.id:  # frozen: the body has an id of its own
            own = {name: value for name, value in own.items() if name != "task_id"}
    if one.args:
        begin_with(found, one.args, {})
    if own:
        set_options(found, own)
    return found


def _call(one: Signature[Any]) -> Signature[Any]:
    copy = one.clone()
    options = copy["options"]
    if not options.get("task_id"):
        options["task_id"] = new_id()
    return copy


def _close(steps: Sequence[Step]) -> None:
    """Have what begins leave out the arguments of a call; in place."""
    for first in steps[:1]:
        if isinstance(first, Fork):
            for part in first.parts:
                _close(part)
        else:
            first.set_immutable(True)


def _fork(members: group) -> Fork:
    parts: list[list[Step]] = []
    for member in members.tasks:
        if not isinstance(member, Compound):
            parts.append([_call(member)])
            continue
        steps = _steps(member)
        _end_of(steps)
        if len(steps) == 1 and isinstance(steps[0], Fork):
            parts += steps[0].parts
        elif steps:
            parts.append(steps)
    return Fork(parts)


def _end_of(steps: list[Step]) -> None:
    """Where nothing is to be called with the last result, that is the result."""
    if len(steps) > 1 and _is_nothing(steps[-1]):
        steps.pop()


def join(first: list[Step], then: list[Step]) -> None:
    """Have `then` follow `first`."""
    if first and then and _is_nothing(first[-1]) and _is_nothing(then[0]):
        then = then[1:]
    if first and then and isinstance(first[-1], Fork) and isinstance(then[0], Fork):
        first.append(accumulate(first[-1]))
    first += then


def _is_nothing(step: Step) -> bool:
    return isinstance(step, Fork) and not step.parts


def accumulate(fork: Fork) -> Signature[Any]:
    """A call that returns the list it gets; with an id that is the same whenever it is made."""
    return Signature(ACCUMULATE, (), {"index": 0}, {"task_id": f"{fork.id}.values"})


def begin_with(steps: Sequence[Step], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Have what begins be called with these, in front of its own; in place."""
    if not steps or not (args or kwargs):
        return
    first = steps[0]
    if isinstance(first, Fork):
        for part in first.parts:
            begin_with(part, args, kwargs)
    else:
        first["args"], first["kwargs"], _ = first.merged(args, kwargs)


def set_options(steps: Sequence[Step], options: Mapping[str, Any]) -> None:
    """Give the options to what they belong to; in place."""
    if not steps or not options:
        return
    own = {key: value for key, value in options.items() if value is not None}
    last = steps[-1]
    if task_id := own.pop("task_id", None):
        if isinstance(last, Fork):
            last.id = task_id
        else:
            last["options"]["task_id"] = task_id
    for name in OF_THE_END.intersection(own):
        value = own.pop(name)
        if not isinstance(last, Fork):
            last["options"][name] = value
    for callback in as_list(own.pop("link", None)):
        _link(last, callback)
    for errback in as_list(own.pop("link_error", None)):
        _link_error(steps, errback)
    if not own:
        return
    first = steps[0]
    if isinstance(first, Fork):
        for part in first.parts:
            set_options(part, own)
        if len(steps) > 1:
            body = steps[1]
            assert not isinstance(body, Fork)
            body["options"].update({k: v for k, v in own.items() if k not in _OF_THE_BEGINNING})
    else:
        first["options"].update(own)


def _link(step: Step, callback: Any) -> None:
    if isinstance(step, Fork):
        if step.parts:
            _link(step.parts[0][-1], signature(callback).clone().set(immutable=True))
    else:
        step.link(callback)


def _link_error(steps: Sequence[Step], errback: Any) -> None:
    for at, step in enumerate(steps):
        if not isinstance(step, Fork):
            step.link_error(errback)
        elif at == len(steps) - 1:  # else the body fails with them
            for part in step.parts:
                _link_error(part, errback)


# -- as messages carry them --------------------------------------------------------------------


def carried(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as links of a chain, in order, with their ids: Celery's form."""
    found: list[dict[str, Any]] = []
    at = 0
    while at < len(steps):
        step = steps[at]
        if not isinstance(step, Fork):
            found.append(dict(step))
        else:
            header = _form(group.NAME, group.KIND, {"tasks": [_one(part) for part in step.parts]}, step.id)
            if at + 1 == len(steps):
                found.append(header)
            else:
                at += 1
                body = steps[at]
                assert not isinstance(body, Fork)
                held = {"kwargs": {}, "header": header, "body": dict(body)}
                found.append(_form(chord.NAME, chord.KIND, held, body.id or ""))
        at += 1
    return found


def _one(steps: Sequence[Step]) -> dict[str, Any]:
    links = carried(steps)
    if len(links) == 1:
        return links[0]
    return _form(chain.NAME, chain.KIND, {"tasks": links}, links[-1]["options"]["task_id"])


def _form(name: str, kind: str, kwargs: dict[str, Any], id: str) -> dict[str, Any]:
    return {"task": name, "args": [], "kwargs": kwargs, "options": {"task_id": id}, "subtask_type": kind,
            "immutable": False}  # fmt: skip
