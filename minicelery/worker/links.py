"""What follows a task: callbacks, the next link of its chain, errbacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import announcing
from minicelery._state import request_var
from minicelery.canvas import Compound, Signature, as_list, signature
from minicelery.exceptions import EncodeError, ImproperlyConfigured, InvalidTaskError
from minicelery.message import Message
from minicelery.worker.call import Call, ExceptionInfo

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.task import Task

log = logging.getLogger(__name__)

_UNFIT = (TypeError, ValueError, KeyError, AttributeError, RecursionError, ImproperlyConfigured)
"""What a foreign signature may raise that no call can be made of."""


class Links:
    """Makes the messages that leave with a finished call's outcome."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def after_success(self, call: Call, value: Any) -> list[Message]:
        """The callbacks with `value`, and the next step of the chain.  Raises EncodeError."""
        links = call.links
        publish = list(call.request.outbox)
        for callback in as_list(links.get("callbacks")):
            publish += self._begun(call, callback, None, (value,))
        if chain := links.get("chain"):
            if not isinstance(chain, (list, tuple)):
                raise InvalidTaskError(f"chain must be a list of signatures, got {type(chain).__name__}")
            publish += self._begun(call, chain[-1], chain[:-1], (value,))
        return self.app._sender.expand(publish)

    def after_failure(self, call: Call, error: BaseException, einfo: ExceptionInfo) -> list[Message]:
        """The errbacks to send, with the failed task's id.

        One that takes (request, exc, traceback) is called here and now instead.
        """
        message = call.delivery.message
        publish = []
        for errback in as_list(call.links.get("errbacks")):
            try:
                found = signature(errback)
                task = None if isinstance(found, Compound) else self.app.tasks.get(found.task)
                if task is None or not _wants_the_exception(task, found):
                    publish += self._begun(call, errback, None, (message.id,))
                    continue
                args, kwargs, _ = found.merged((call.request, error, einfo.traceback))
                token = request_var.set(call.request)
                try:
                    task.run(*args, **kwargs)
                finally:
                    request_var.reset(token)
            except Exception:  # a user's function, or a foreign signature
                log.exception("An errback of task %s[%s] failed", message.task, message.id)
        return self.app._sender.expand(publish)

    def _begun(
        self, call: Call, link: Any, left: Sequence[Any] | None, args: tuple[Any, ...]
    ) -> list[Message]:
        """The messages with which `link` begins, called with `args`; `left` is the rest of its chain."""
        request = call.request
        origin = {
            "root_id": request.root_id,
            "parent_id": call.delivery.message.id,
            "reply_to": request.reply_to,
        }
        try:
            queue = call.delivery.message.queue
            messages, result = self.app._canvas.follow(link, left, args, origin, queue)
        except _UNFIT as error:
            if isinstance(error, EncodeError):
                raise
            raise InvalidTaskError(f"the linked call {link!r:.200} can't be made: {error}") from error
        for message in messages:
            announcing.both(self.app, message)
        if result is not None:
            request.children.append(result)
        return messages


def calls_in(link: Any) -> Iterator[Mapping[str, Any]]:
    """The options of all the calls that a link of a chain is made of, as a message carries it."""
    if not isinstance(link, Mapping):
        return
    kwargs = link.get("kwargs")
    if link.get("subtask_type") in ("chain", "group", "chord") and isinstance(kwargs, Mapping):
        for key in ("tasks", "header", "body"):
            for part in as_list(kwargs.get(key)):
                yield from calls_in(part)
    elif isinstance(options := link.get("options"), Mapping):
        yield options


def _wants_the_exception(task: Task[..., Any], signature: Signature) -> bool:
    """Whether an errback takes more than the failed task's id; Celery's rule.

    Bound and class-based tasks never do.
    """
    if getattr(task, "bound", False) or not hasattr(task, "__wrapped__"):
        return False
    left = 0 if signature.immutable else -len(signature.args)
    for name, parameter in task.__signature__.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if parameter.kind is parameter.KEYWORD_ONLY or name in signature.kwargs:
            break
        left += parameter.kind is not parameter.VAR_KEYWORD
    return left > 1
