"""Signatures as messages: what a composition sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.canvas import Signature
from minicelery.canvas.each import EACH
from minicelery.message import OWN_HEADERS, PART_HEADER, Message
from minicelery.options import check_call, check_text
from minicelery.unique import mark

if TYPE_CHECKING:
    from minicelery.sending import Defaults, Sender

_OF_A_MEMBER = frozenset({"task_id", "group_id", "group_index", "headers"})


def message_of(
    sender: Sender, call: Signature[Any], links: Sequence[Mapping[str, Any]] | None,
    origin: Mapping[str, Any] | None, check: bool,
) -> Message:  # fmt: skip
    """A signature that has an id as a message.

    `links` are the rest of its chain, the next one last; `origin` options that it has where it
    has no own.  With `check`, which a worker's follow-up is without, its arguments must fit, and
    it is not sent where it is unique and there already.
    """
    task = sender.app.tasks.get(call.task)
    args: Sequence[Any] = tuple(call.args)
    kwargs: Mapping[str, Any] = call.kwargs
    if check and task is not None and task.typing:
        task.check_arguments(args, kwargs)
    defaults = sender.defaults(task)
    options: Mapping[str, Any] = call.options
    if task is not None and task._prepares:
        args, kwargs, options = task._prepared(args, kwargs, options)
    if links is None and not origin and call.task not in EACH and _OF_A_MEMBER.issuperset(options):
        message = _of_a_member(sender, call.task, args, kwargs, options, defaults)
    else:
        options = check_call(call.task, {**(origin or {}), **options}, sender.app.conf)
        if links is not None:
            options = {**options, "chain": links}
        if call.task in EACH:
            options = _routed_as_its_task(sender, kwargs, options)
        message = sender.message(call.task, args, kwargs, options, defaults, options["task_id"])
    if check and defaults.unique is not None and links is None and PART_HEADER not in message.headers:
        mark(message, defaults.unique, args, kwargs)  # nothing waits for this very call
    return message


def _of_a_member(
    sender: Sender, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any],
    defaults: Defaults,
) -> Message:  # fmt: skip
    """A plain call in a group: as one by itself, and half as dear as one with options."""
    id = check_text(options["task_id"], "task_id", name)
    own = options.get("headers") or {}
    if not id or not OWN_HEADERS.issuperset(own):
        return sender.message(name, args, kwargs, options, defaults, options["task_id"])
    message = sender.message(name, args, kwargs, {}, defaults, id)
    message.headers |= {"group": options.get("group_id"), "group_index": options.get("group_index"), **own}
    message.headers_text = ""
    return message


def _routed_as_its_task(
    sender: Sender, kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The options of a call that makes calls of another task: it goes where they would."""
    inner = kwargs.get("task")
    name = inner.get("task") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        return options
    task = sender.app.tasks.get(name)
    route, options = sender.routed(name, (), {}, options, sender.defaults(task))
    return {"queue": route.queue, **options}
