"""Every exception minicelery raises, in one tree.

::

    Exception
    ├─ MiniCeleryError
    │  ├─ ImproperlyConfigured            a setting, URL or option that can't work
    │  ├─ OperationalError                the broker can't be reached or refuses
    │  │  └─ BrokerUnavailable            … and the connection is gone: try again later
    │  ├─ BackendError                    the result store can't be reached or refuses
    │  │  ├─ BackendUnavailable
    │  │  ├─ BackendGetMetaError
    │  │  └─ BackendStoreError
    │  ├─ SerializationError
    │  │  ├─ EncodeError (TypeError)      a value the serializer can't carry
    │  │  ├─ DecodeError                  bytes that can't be read
    │  │  └─ ContentDisallowed            a content type outside accept_content
    │  ├─ SecurityError
    │  ├─ TaskPredicate                   raised by a task to end it in its own way
    │  │  ├─ Retry
    │  │  ├─ Ignore
    │  │  └─ Reject
    │  └─ TaskError
    │     ├─ NotRegistered (KeyError)
    │     ├─ AlreadyRegistered
    │     ├─ QueueNotFound (KeyError)
    │     ├─ InvalidTaskError
    │     ├─ IncompleteStream
    │     ├─ MaxRetriesExceededError
    │     ├─ TaskRevokedError
    │     ├─ ChordError
    │     ├─ TimeoutError (TimeoutError)  get() waited as long as it was told to
    │     ├─ TimeLimitExceeded            the hard limit
    │     ├─ WorkerLostError              the process running the task died
    │     └─ Terminated                   stopped by a cold shutdown or by revoke
    ├─ SoftTimeLimitExceeded              raised inside the task; catch it to clean up
    └─ warnings: UnknownSetting, DuplicateTaskNameWarning, DuplicateNodenameWarning, FixupWarning

On the wire each class goes by the module Celery knows it from (`WIRE_MODULES`), so
results can be read by either side.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

__all__ = [
    "AlreadyRegistered",
    "BackendError",
    "BackendGetMetaError",
    "BackendStoreError",
    "BackendUnavailable",
    "BrokerUnavailable",
    "ChordError",
    "ContentDisallowed",
    "DecodeError",
    "DuplicateNodenameWarning",
    "DuplicateTaskNameWarning",
    "EncodeError",
    "FixupWarning",
    "Ignore",
    "ImproperlyConfigured",
    "IncompleteStream",
    "InvalidTaskError",
    "MaxRetriesExceededError",
    "MiniCeleryError",
    "NotRegistered",
    "OperationalError",
    "QueueNotFound",
    "Reject",
    "Retry",
    "SecurityError",
    "SerializationError",
    "SoftTimeLimitExceeded",
    "TaskError",
    "TaskPredicate",
    "TaskRevokedError",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "UnknownSetting",
    "WorkerLostError",
]


class MiniCeleryError(Exception):
    """The root of the tree."""


class ImproperlyConfigured(MiniCeleryError):
    """A setting, URL or option that can't work; raised before anything is sent."""


class OperationalError(MiniCeleryError):
    """The broker could not be reached, or refused, within the publish deadline."""


class BrokerUnavailable(OperationalError):
    """The connection to the broker is gone; the same call may succeed later."""


class BackendError(MiniCeleryError):
    """The result store failed."""


class BackendUnavailable(BackendError):
    """The connection to the result store is gone; the same call may succeed later."""


class BackendGetMetaError(BackendError):
    """A stored result could not be read."""


class BackendStoreError(BackendError):
    """A result could not be stored."""


class SerializationError(MiniCeleryError):
    """Bytes or values that a serializer can't translate."""


class EncodeError(SerializationError, TypeError):
    """A value that the serializer can't carry; the message names it and its type."""


class DecodeError(SerializationError):
    """Bytes that are not what their content type says."""


class ContentDisallowed(SerializationError):
    """A content type that `accept_content` does not list."""


class SecurityError(MiniCeleryError):
    """Received data asked for something only trusted data may."""


class TaskPredicate(MiniCeleryError):
    """Raised by a task to end the attempt in a way of its own."""


class Retry(TaskPredicate):
    """The attempt ends here and another one has been asked for.

    `when` is the time of the next attempt: seconds from now, or an aware datetime.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, exc if exc is None or isinstance(exc, str) else repr(exc), when)
        self.message = message
        self.exc = exc if isinstance(exc, BaseException) else None
        self.excs = exc if isinstance(exc, str) else (repr(exc) if exc is not None else None)
        self.when = when
        self.is_eager = is_eager
        self.sig = sig

    def humanize(self) -> str:
        """When the next attempt starts, in words."""
        if isinstance(self.when, (int, float)):
            return f"in {self.when:g}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.excs:
            return f"Retry {self.humanize()}: {self.excs}"
        return f"Retry {self.humanize()}"


class Ignore(TaskPredicate):
    """The attempt ends and its state is left as the task has set it."""


class Reject(TaskPredicate):
    """The message is refused: to the dead letters, or with `requeue` back to its queue."""

    def __init__(self, reason: object = None, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class TaskError(MiniCeleryError):
    """Something about a task or its result."""


class NotRegistered(TaskError, KeyError):
    """No task of that name is known here."""

    __str__ = Exception.__str__


class AlreadyRegistered(TaskError):
    """Another task has that name already."""


class QueueNotFound(TaskError, KeyError):
    """The queue is not configured and `task_create_missing_queues` is off."""

    __str__ = Exception.__str__


class InvalidTaskError(TaskError):
    """A message that is not a task call."""


class IncompleteStream(TaskError):
    """A stream of states ended before its task did."""


class MaxRetriesExceededError(TaskError):
    """`retry` was called once more than `max_retries` allows."""

    def __init__(
        self,
        *args: object,
        task_args: Sequence[Any] | None = None,
        task_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(*args)
        self.task_args = list(task_args) if task_args is not None else []
        self.task_kwargs = dict(task_kwargs) if task_kwargs is not None else {}


class TaskRevokedError(TaskError):
    """The task was revoked, or expired, before it ran."""


class ChordError(TaskError):
    """A part of the chord failed, so its body was not run."""


class TimeoutError(TaskError, builtins.TimeoutError):
    """The result did not arrive in the time given to `get`."""


class TimeLimitExceeded(TaskError):
    """The task ran longer than its hard time limit, in seconds, and was stopped."""


class WorkerLostError(TaskError):
    """The process that ran the task died under it."""


class Terminated(TaskError):
    """The task was stopped while it ran: cold shutdown, or revoke with terminate."""


class SoftTimeLimitExceeded(Exception):
    """Raised inside the task when its soft time limit has passed."""


class UnknownSetting(UserWarning):
    """A setting that minicelery does not know, most likely misspelt."""


class DuplicateNodenameWarning(UserWarning):
    """Two workers go by one name."""


class FixupWarning(UserWarning):
    """Something in a Django project is not as the app needs it."""


class DuplicateTaskNameWarning(UserWarning):
    """A second, different function asked for a name that is taken; it was not registered."""


_BILLIARD = ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError", "Terminated")
_KOMBU = ("EncodeError", "DecodeError", "ContentDisallowed", "OperationalError")

WIRE_MODULES: dict[str, str] = {
    name: "billiard.exceptions"
    if name in _BILLIARD
    else "kombu.exceptions"
    if name in _KOMBU
    else "celery.exceptions"
    for name in __all__
}
"""Class name -> the module under which Celery's messages and results name it."""
