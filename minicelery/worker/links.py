"""What follows a task: callbacks, the next link of its chain, errbacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery import announcing
from minicelery._state import request_var
from minicelery.canvas import Signature, as_list
from minicelery.exceptions import EncodeError, ImproperlyConfigured, InvalidTaskError
from minicelery.message import Message, new_id
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
        publish += [self._message(call, callback, (value,)) for callback in as_list(links.get("callbacks"))]
        if chain := links.get("chain"):
            if not isinstance(chain, (list, tuple)):
                raise InvalidTaskError(f"chain must be a list of signatures, got {type(chain).__name__}")
            publish += self._next(call, chain, value)
        if links.get("chord") is not None:
            raise EncodeError(
                "chords are not part of this version: the body of this part's chord can't be called"
            )
        return self.app._sender.expand(publish)

    def after_failure(self, call: Call, error: BaseException, einfo: ExceptionInfo) -> list[Message]:
        """The errbacks to send, with the failed task's id.

        One that takes (request, exc, traceback) is called here and now instead.
        """
        message = call.delivery.message
        publish = []
        for errback in as_list(call.links.get("errbacks")):
            try:
                signature = Signature(errback)
                task = self.app.tasks.get(signature.task)
                if task is None or not _wants_the_exception(task, signature):
                    publish.append(self._message(call, errback, (message.id,)))
                    continue
                args, kwargs, _ = signature.merged((call.request, error, einfo.traceback))
                token = request_var.set(call.request)
                try:
                    task.run(*args, **kwargs)
                finally:
                    request_var.reset(token)
            except Exception:  # a user's function, or a foreign signature
                log.exception("An errback of task %s[%s] failed", message.task, message.id)
        return self.app._sender.expand(publish)

    def _next(self, call: Call, links: Sequence[Any], value: Any) -> list[Message]:
        """The messages with which the chain goes on."""
        request = call.request
        origin = {
            "root_id": request.root_id,
            "parent_id": call.delivery.message.id,
            "reply_to": request.reply_to,
        }
        try:
            messages, result = self.app._canvas.follow(links, (value,), origin)
        except _UNFIT as error:
            if isinstance(error, EncodeError):
                raise
            raise InvalidTaskError(f"the linked call {links[-1]!r:.200} can't be made: {error}") from error
        for message in messages:
            announcing.both(self.app, message)
        request.children.append(result)
        return messages

    def _message(self, call: Call, link: Any, args: tuple[Any, ...], **options: Any) -> Message:
        try:
            return self._built(call, Signature(link), args, options)
        except _UNFIT as error:
            if isinstance(error, EncodeError):
                raise
            raise InvalidTaskError(f"the linked call {link!r:.200} can't be made: {error}") from error

    def _built(
        self, call: Call, signature: Signature, args: tuple[Any, ...], options: Mapping[str, Any]
    ) -> Message:
        if signature.get("subtask_type") or signature.task.startswith("celery."):
            raise EncodeError(f"{signature.task} is not part of this version: {signature!r} can't be called")
        new_args, new_kwargs, merged = signature.merged(args, None, **options)
        merged.setdefault("root_id", call.request.root_id)
        merged.setdefault("parent_id", call.delivery.message.id)
        merged.setdefault("reply_to", call.request.reply_to)
        sender = self.app._sender
        defaults = sender.defaults(self.app.tasks.get(signature.task))
        message = sender.message(signature.task, tuple(new_args), new_kwargs, merged, defaults, new_id())
        announcing.both(self.app, message)
        call.request.children.append(self.app.AsyncResult(message.id))
        return message


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
