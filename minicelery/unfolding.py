"""Compositions on their way: from steps to messages, and to the results they will have."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from minicelery import announcing, foreign_chords, signals, states
from minicelery._state import request_var
from minicelery.calls import message_of
from minicelery.canvas import Signature, as_list, chain, chord, group, signature
from minicelery.canvas.steps import (
    ACCUMULATE,
    Fork,
    Step,
    accumulate,
    begin_with,
    carried,
    ids_in,
    join,
    steps_of,
)
from minicelery.exceptions import (
    BackendError,
    BackendUnavailable,
    Ignore,
    ImproperlyConfigured,
    MiniCeleryError,
    OperationalError,
)
from minicelery.groups import EagerGroupResult, GroupResult
from minicelery.insisting import insist
from minicelery.lineage import calls_before, calls_of
from minicelery.message import BODY_HEADER, LASTS_HEADER, PART_HEADER, Group, Message, new_id
from minicelery.options import check_call, publish_attempts
from minicelery.result import AsyncResult, EagerResult

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.request import Request

GO_ON = "minicelery.go_on"
"""The built-in task that goes on with a chain whose next link is a chord."""
_WITHOUT_VALUE = frozenset({states.IGNORED, states.REJECTED})
_KINDS = frozenset(kind.NAME for kind in (chain, group, chord))
UNTIL_DONE: dict[str, Any] = {
    "acks_late": True, "reject_on_worker_lost": True, "ignore_result": True,
    "store_errors_even_if_ignored": True, "autoretry_for": (BackendError, BackendUnavailable, OperationalError),
    "max_retries": None, "retry_backoff": 1, "retry_backoff_max": 60,
}  # fmt: skip
"""Options of built-in tasks that others wait for: tried until they succeed, or expire with the chord."""
MANY = 1000
"""Messages that may leave with one outcome."""
LARGE = 4096
"""Bytes of arguments and links from which on it pays to compress them."""
DAY = 86400.0
"""Seconds that a group is kept after its body should have begun, for one that waits in a queue."""


@dataclass(slots=True)
class Unfolded:
    """What is to be sent, and the groups that are to be opened before."""

    messages: list[Message] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    run: str = ""  # of whose second run the groups must be the same; else each time others

    def group_of(self, fork: Fork) -> str:
        """The id under which the fork's parts count: what was frozen may be sent more than once."""
        return f"{fork.id}.{self.run}" if self.run else new_id()


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
        if _counts(steps):
            self._check_backend()
        work = Unfolded()
        self._unfold(steps, work, check=True)
        result = self.result_of(steps)
        self._open(work, publish_attempts(self.app.conf, given))
        if getattr(self.app.backend, "direct", False):  # results come only to who expects them
            replies: Any = self.app.backend
            replies.expect(
                [call.id for call in (*calls_before(result), *calls_of(result)) if not call._ignored]
            )
        try:
            there = self._publish(work.messages, given)
        except BaseException:
            self._drop(work)
            raise
        if there:
            for call in result.leaves():
                call.id = there.get(call.id, call.id)
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
            parent = result
            if isinstance(result, EagerResult) and result.state in _WITHOUT_VALUE:
                # Nothing follows it, and what would have done is as it is.
                id = step.id or ""
                result = EagerResult(id, None, result.state)
                result.parent = parent
                continue
            if at:
                begin_with([step], (result.get(),), {})
            if isinstance(step, Fork):
                members = [self._run(part) for part in step.parts]
                result = EagerGroupResult(step.id, members, app=self.app)
            else:
                result = step.type.apply(step.args, step.kwargs, **step.options)
            result.parent = parent
        return result

    # -- in a worker -----------------------------------------------------------------------

    def follow(
        self, link: Mapping[str, Any], left: Sequence[Mapping[str, Any]] | None, args: Sequence[Any],
        origin: Mapping[str, Any], queue: str,
    ) -> tuple[list[Message], Any]:  # fmt: skip
        """The messages with which `link` begins, and the result it will have.

        `args` go to it, and `origin` are options that its messages have where they have no own.
        `left` are the links after it, the next one last; None where it is in no chain.  Nothing is
        done yet: where a group has to be opened, the only message is that of a call which does it,
        in `queue`.
        """
        if link.get("task") in _KINDS and not link.get("subtask_type"):
            raise ImproperlyConfigured(f"{link['task']} is no task: {link!r:.100} has no subtask_type")
        steps, after = self._next(link, left, args)
        if not steps:
            return [], None
        _run_where(steps[0], queue)
        result = self.result_of(steps)
        if _opens(steps):
            if foreign_chords.is_foreign(link):
                messages = foreign_chords.unfold(self.app, steps, after or (), origin, queue)
                if messages is not None:
                    return messages, result
            body = next(step for step in steps if isinstance(step, Signature)) if len(steps) > 1 else None
            errbacks = as_list(body.options.get("link_error")) if body is not None else None
            options = {
                "task_id": new_id(), "queue": queue, "expires": self._chord_seconds(), "link_error": errbacks
            }  # fmt: skip
            hop = Signature(GO_ON, (), None, options)
            links = [*(after or ()), *reversed(carried(steps))]
            return [self._packed(message_of(self.app._sender, hop, links, origin, False))], result
        work = Unfolded()
        self._unfold(steps, work, left=after, origin=origin)
        return work.messages, result

    def go_on(self, request: Request) -> None:
        """Do, within an attempt at `GO_ON`, what `follow` has left to it: in its chain is the link itself."""
        *left, link = request.chain
        steps, after = self._next(link, left, ())
        if request.is_eager:
            for one in reversed(after or []):
                join(steps, steps_of(signature(one)))
            self._run(steps)
            return
        origin = {"root_id": request.root_id, "parent_id": request.parent_id, "reply_to": request.reply_to}
        work = Unfolded(run=request.id or "")
        self._unfold(steps, work, left=after, origin=origin)
        self._open(work, 1)  # this call is made again until it succeeds
        if len(work.messages) > MANY:  # in one step with the outcome they would keep everybody waiting
            self._publish(work.messages, {})
        else:
            self._leave(work, request)
        request.links.clear()  # that was its chain

    def replace(self, request: Request, replacement: Signature[Any]) -> None:
        """Have `replacement` take the place of the attempt: its id, its followers, its group."""
        steps = steps_of(replacement)
        _number(steps, request, ids_in(replacement))
        if not steps:
            raise ImproperlyConfigured(
                f"{request.task} can't be replaced by {replacement!r}: there is nothing in it"
            )
        last = _with_an_end(steps)
        message = request.message
        assert message is not None
        options = {
            "task_id": request.id, "group_id": request.group, "group_index": request.group_index,
            "ignore_result": message.headers.get("ignore_result"), "chord": request.chord,
        }  # fmt: skip
        last.options.update({key: value for key, value in options.items() if value is not None})
        for callback in as_list(request.callbacks):
            last.link(signature(callback))
        for step in steps:
            if not isinstance(step, Fork):
                for errback in as_list(request.errbacks):
                    step.link_error(signature(errback))
        group = message.headers.get(PART_HEADER)
        if group is not None:
            _counts_in(last, group)
        origin = {"root_id": request.root_id, "parent_id": request.id, "reply_to": request.reply_to,
                  "replaced_task_nesting": request.replaced_task_nesting + 1}  # fmt: skip
        work = Unfolded(run=request.id or "")
        self._unfold(steps, work, left=request.chain or None, origin=origin)
        self._open(work)
        self._leave(work, request)
        # Nothing follows this one any more, and not its end counts, but that of the replacement.
        message.headers.pop(PART_HEADER, None)
        request.links.clear()
        raise Ignore("replaced by another task")

    def add_to_chord(self, request: Request, call: Signature[Any]) -> AsyncResult[Any]:
        """Have the body of the chord that the attempt is a part of wait for `call` as well."""
        message = request.message
        group = message.headers.get(PART_HEADER) if message is not None else None
        if group is None:
            raise ValueError(f"{request.task}[{request.id}] is not a part of a chord's header")
        steps = steps_of(call)
        _number(steps, request, ids_in(call))
        last = _with_an_end(steps)
        _counts_in(last, group)
        last.options["group_id"] = request.group
        origin = {"root_id": request.root_id, "parent_id": request.id, "reply_to": request.reply_to}
        work = Unfolded(run=request.id or "")
        self._unfold(steps, work, origin=origin)
        backend: Any = self.app.backend
        if not insist(lambda: backend.add_member(group, last.options["task_id"]), self._deadline):
            raise ValueError(f"the body of {request.task}'s chord does not wait any more: a part has failed")
        self._open(work)
        self._leave(work, request)
        result: AsyncResult[Any] = self.result_of(steps)
        return result

    def _next(
        self, link: Mapping[str, Any], left: Sequence[Mapping[str, Any]] | None, args: Sequence[Any]
    ) -> tuple[list[Step], list[Mapping[str, Any]] | None]:
        steps = steps_of(signature(link), args)
        if left and (not steps or isinstance(steps[-1], Fork)):  # no sender of today leaves that to us
            for one in reversed(left):
                join(steps, steps_of(signature(one)))
            return steps, []
        return steps, None if left is None else list(left)

    def _leave(self, work: Unfolded, request: Request) -> None:
        """Have it leave with the outcome of the attempt."""
        for message in work.messages:
            announcing.both(self.app, message)
        request.outbox += self.app._sender.expand(work.messages)

    # -- parts -----------------------------------------------------------------------------

    def _publish(self, messages: list[Message], options: Mapping[str, Any]) -> Mapping[str, str] | None:
        """Send them; the ids of unique calls that are there already, with those of the others."""
        if not messages:
            return None
        sender = self.app._sender
        unique = next((message.task for message in messages if message.unique is not None), None)
        return sender.publish(messages, options, sender.defaults(self.app.tasks[unique]) if unique else None)

    def _open(self, work: Unfolded, attempts: int | None = None) -> None:
        if work.groups:
            insist(lambda: self._check_backend().open_groups(work.groups), self._deadline, attempts)

    @property
    def _deadline(self) -> float:
        return float(self.app.conf.task_publish_deadline)

    def _check_backend(self) -> Any:
        """The result store, if it can count.  Raises ImproperlyConfigured."""
        backend = self.app.backend
        if not hasattr(backend, "open_groups"):
            raise ImproperlyConfigured(
                f"a chord needs a result backend that can count its parts, and {_named(backend)} can't: "
                "set result_backend to a redis://, sqlite:/// or memory:// URL"
                + getattr(backend, "instead", "")
            )
        return backend

    def _drop(self, work: Unfolded) -> None:
        """What was opened has nothing to wait for: its parts could not be sent."""
        if work.groups:
            backend: Any = self.app.backend
            with contextlib.suppress(MiniCeleryError):  # else its body fails at its deadline
                backend.drop_groups([group.id for group in work.groups])

    def _unfold(
        self, steps: Sequence[Step], into: Unfolded, *, left: list[Mapping[str, Any]] | None = None,
        origin: Mapping[str, Any] | None = None, check: bool = False,
    ) -> None:  # fmt: skip
        """Add the messages of what begins; `left` are links that follow all of it, the next one last."""
        first, rest = steps[0], steps[1:]
        if not isinstance(first, Fork):
            links = [*(left or ()), *reversed(carried(rest))] if rest or left is not None else None
            into.messages.append(message_of(self.app._sender, first, links, origin, check))
            return
        parts = [part for part in first.parts if part]
        if rest and not parts:
            begin_with(rest, ([],), {})
            self._unfold(rest, into, left=left, origin=origin, check=check)
            return
        members = []
        sent = len(into.messages)
        counting = into.group_of(first) if rest else ""
        for index, part in enumerate(parts):
            if rest:
                end = _with_an_end(part)
                _counts_in(end, counting)
                members.append(end.options["task_id"])
            if not isinstance(last := part[-1], Fork) and "chord" not in last.options:
                last.options.update(group_id=first.id, group_index=index)
            self._unfold(part, into, origin=origin, check=check)
        if rest:
            _run_where(rest[0], into.messages[-1].queue)
            begins = max((message.due or 0.0 for message in into.messages[sent:]), default=0.0)
            into.groups.append(self._group(counting, members, rest, left, origin, begins))

    def _group(
        self, id: str, members: list[str], rest: Sequence[Step], left: list[Mapping[str, Any]] | None,
        origin: Mapping[str, Any] | None, begins: float,
    ) -> Group:  # fmt: skip
        """The group whose body is the first of `rest`; its last part is due at `begins`, unix seconds."""
        body = rest[0]
        assert not isinstance(body, Fork)
        options = body.options
        countdown = options.pop("countdown", None)
        headers = {**(options.get("headers") or {}), BODY_HEADER: id}
        own = self.app._sender.defaults(self.app.tasks.get(body.task)).expires
        if isinstance(lasts := options.get("expires", own), (int, float, timedelta)):
            options["expires"] = None  # not counted from now
            headers[LASTS_HEADER] = lasts.total_seconds() if isinstance(lasts, timedelta) else lasts
        options["headers"] = headers
        links = [*(left or ()), *reversed(carried(rest[1:]))] if rest[1:] or left is not None else None
        message = message_of(self.app._sender, body, links, origin, False)
        if signals.before_task_publish.receivers:
            announcing.before(self.app, message, options)
        (message, *_) = self.app._sender.expand([self._packed(message)])
        group = Group(id, members, message, not body.immutable, countdown, None, place=self.app.broker.place)
        now, seconds = time.time(), self._chord_seconds()
        last = max(now, begins) + (seconds or DAY)
        group.until = max(last, message.due or 0.0) + (countdown or 0.0)
        if seconds is not None:
            group.deadline = last
            group.ttl = group.until + DAY - now
        return group

    def _packed(self, message: Message) -> Message:
        """A message that only our workers get, compressed: it may carry most of a large composition."""
        if len(message.body) > LARGE and "compression" not in message.headers:
            self.app._sender.compress(message, "zlib")
        return message

    def _chord_seconds(self) -> float | None:
        """How long a chord may take; None: for ever, as its results are kept."""
        conf = self.app.conf
        own = conf.result_chord_deadline
        lasts = _seconds(conf.result_chord_expires if own is None else own)
        if lasts is None:
            kept = _seconds(conf.result_expires)
            lasts = kept and max(kept, DAY)
        return lasts or None

    def _is_ignored(self, call: Signature[Any]) -> bool:
        """Whether no result will be kept: of a part of a chord it is."""
        options = call.options
        if PART_HEADER in (options.get("headers") or ()):
            return False
        task = self.app.tasks.get(call.task)
        own = options.get("ignore_result")
        return bool(task.ignore_result if own is None and task is not None else own)

    def result_of(self, steps: Sequence[Step], parent: Any = None) -> Any:
        """The result that the last of the steps will have; the others are its parents."""
        for step in steps:
            if isinstance(step, Fork):
                members = [self.result_of(part) for part in step.parts if part]
                parent = GroupResult(step.id, members, parent=parent, app=self.app)
            else:
                parent = AsyncResult(step.options["task_id"], None, step.task, self.app, parent)
                parent._ignored = self._is_ignored(step)
        return parent


def go_on(self: Any) -> None:
    self.app._canvas.go_on(self.request)


def _seconds(given: Any) -> float | None:
    if given is None:
        return None
    return float(given.total_seconds() if isinstance(given, timedelta) else given)


def _opens(steps: Sequence[Step]) -> bool:
    """Whether a group has to be opened for what begins."""
    first = steps[0]
    if not isinstance(first, Fork):
        return False
    parts = [part for part in first.parts if part]
    if len(steps) > 1:
        return bool(parts) or _opens(steps[1:])
    return any(_opens(part) for part in parts)


def _counts(steps: Sequence[Step]) -> bool:
    """Whether there is a chord among the steps, now or later."""
    for at, step in enumerate(steps):
        if isinstance(step, Fork) and step.parts:
            if at + 1 < len(steps) or any(map(_counts, step.parts)):
                return True
    return False


def _with_an_end(steps: list[Step]) -> Signature[Any]:
    """The last of the steps, which is a call: where it is a fork, one that takes the results."""
    last = steps[-1]
    if isinstance(last, Fork):
        end = accumulate(last)
        steps.append(end)
        return end
    return last


def _number(steps: Sequence[Step], request: Request, given: set[str]) -> None:
    """Have the steps ids that are the same whenever the attempt is run, but for those that were given.

    What has been opened by a run that died is then the same that the next one opens.
    """
    numbers = itertools.count(1)
    name = f"{request.id}.{request.replaced_task_nesting}.{request.retries}.{len(request.outbox)}"

    def number(steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Fork):
                if step.id not in given:
                    step.id = f"{name}.{next(numbers)}"
                for part in step.parts:
                    number(part)
            elif step.options["task_id"] not in given:
                step.options["task_id"] = f"{name}.{next(numbers)}"

    number(steps)


def _run_where(step: Step, queue: str) -> None:
    """Have a call that only takes results be run where they have come from: no route names it."""
    if isinstance(step, Signature) and step.task == ACCUMULATE:
        step.options.setdefault("queue", queue)


def _counts_in(last: Signature[Any], group: str) -> None:
    last.options["headers"] = {**(last.options.get("headers") or {}), PART_HEADER: group}


def _named(backend: Any) -> str:
    url: str = getattr(backend, "url", "disabled://")
    return "no result_backend" if url == "disabled://" else url
