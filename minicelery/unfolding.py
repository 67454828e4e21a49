"""Compositions on their way: from steps to messages, and to the results they will have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery._state import request_var
from minicelery.canvas import Signature, signature
from minicelery.canvas.steps import Fork, Step, begin_with, carried, join, steps_of
from minicelery.exceptions import ImproperlyConfigured
from minicelery.groups import EagerGroupResult, GroupResult
from minicelery.message import Message
from minicelery.options import check_call
from minicelery.result import AsyncResult

if TYPE_CHECKING:
    from minicelery.app import Celery


class Canvas:
    """Sends the compositions of one app."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def send(
        self,
        whole: Signature[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Publish what begins, all of it in as few trips as the broker can; the result of what ends."""
        given = check_call(repr(whole)[:80], options, self.app.conf) if options else options
        add_to_parent = given.get("add_to_parent", True)
        steps = steps_of(whole, args, kwargs, **given)
        if not steps:
            return None
        messages: list[Message] = []
        self._unfold(steps, messages, check=True)
        if messages:
            self.app._sender.publish(messages, given)
        result = self.result_of(steps)
        request = request_var.get()
        if add_to_parent and request is not None and request.id and request.task_object.trail:
            request.children.append(result)
        return result

    def run(
        self,
        whole: Signature[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Run it here and now, one task after the other; the result of what ends, None of nothing.

        Raises what a step has failed with that others wait for.
        """
        given = check_call(repr(whole)[:80], options, self.app.conf) if options else options
        return self._run(steps_of(whole, args, kwargs, **given))

    def _run(self, steps: Sequence[Step]) -> Any:
        result: Any = None
        for at, step in enumerate(steps):
            if at:
                begin_with([step], (result.get(),), {})
            parent = result
            if isinstance(step, Fork):
                members = [self._run(part) for part in step.parts]
                result = EagerGroupResult(step.id, members, app=self.app)
            else:
                result = step.type.apply(step.args, step.kwargs, **step.options)
            result.parent = parent
        return result

    def follow(
        self, links: Sequence[Mapping[str, Any]], args: Sequence[Any], origin: Mapping[str, Any]
    ) -> tuple[list[Message], Any]:
        """The messages with which a chain goes on, and the result of its next link.

        `links` are those left, the next one last; `args` go to it, and `origin` are options that
        its messages have where they have no own.
        """
        steps = steps_of(signature(links[-1]), args)
        left = list(links[:-1])
        if left and isinstance(steps[-1], Fork):  # no sender of today leaves that to us
            for link in reversed(left):
                join(steps, steps_of(signature(link)))
            left.clear()
        messages: list[Message] = []
        self._unfold(steps, messages, left=left, origin=origin)
        return messages, self.result_of(steps)

    def _unfold(
        self, steps: Sequence[Step], into: list[Message], *, left: list[Mapping[str, Any]] | None = None,
        origin: Mapping[str, Any] | None = None, check: bool = False,
    ) -> None:  # fmt: skip
        """Add the messages of what begins; `left` are links that follow all of it, the next one last."""
        first, rest = steps[0], steps[1:]
        if isinstance(first, Fork):
            if rest:
                raise ImproperlyConfigured("chords are not part of this version")
            for index, part in enumerate(first.parts):
                last = part[-1]
                if not isinstance(last, Fork):
                    last.options.update(group_id=first.id, group_index=index)
                self._unfold(part, into, origin=origin, check=check)
            return
        links = [*(left or ()), *reversed(carried(rest))] if rest or left is not None else None
        into.append(self.app._sender.message_of(first, links, origin, check))

    def result_of(self, steps: Sequence[Step], parent: Any = None) -> Any:
        """The result that the last of the steps will have; the others are its parents."""
        for step in steps:
            if isinstance(step, Fork):
                members = [self.result_of(part) for part in step.parts]
                parent = GroupResult(step.id, members, parent=parent, app=self.app)
            else:
                parent = AsyncResult(step.options["task_id"], None, step.task, self.app, parent)
        return parent
