"""Which states of a task are kept, and the records they are kept as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minicelery import record, serialization, states
from minicelery.exceptions import EncodeError
from minicelery.message import PART_HEADER, Message, Record, short_repr
from minicelery.result import DisabledBackend
from minicelery.worker.call import Call
from minicelery.worker.links import calls_in

if TYPE_CHECKING:
    from minicelery.app import Celery


class Recorder:
    """Makes the records of one app's results."""

    def __init__(self, app: Celery, hostname: str | None) -> None:
        conf = app.conf
        self.enabled = not isinstance(app.backend, DisabledBackend)
        self.direct: bool = getattr(app.backend, "direct", False)  # results go to who asked: rpc://
        self.hostname = hostname
        self.serializer: str = conf.result_serializer
        # Of what tasks return: what is compressed is a SUCCESS.  Celery's rpc:// clients read a reply's
        # content type, and have no word for a compression.
        self.compression: str | None = None if self.direct else conf.result_compression
        if self.enabled:  # a missing extra is found out before a task has run
            serialization.check_writable(self.serializer, "result_serializer")
            if self.compression is not None:
                serialization.compress(b"", self.compression)
        self.zone = conf.zone()
        self.ttl = _seconds(conf.result_expires)
        own = conf.result_failure_expires
        self.failure_ttl = self.ttl if own is None else _seconds(own)
        self.extended: bool = conf.result_extended
        self._plain = not (self.extended or self.direct or self.compression)

    def wants(self, call: Call, failure: bool = False) -> bool:
        """Whether a state of `call` is to be kept; the message's wish goes before the task's."""
        if not self.enabled:
            return False
        headers = call.delivery.message.headers
        if PART_HEADER in headers:
            return True
        asked = headers.get("ignore_result")
        ignored = call.plan.ignore_result if asked is None else asked
        return not ignored or (failure and call.plan.store_errors)

    def success(self, call: Call, value: Any) -> Record:
        """The record of a returned value.  Raises EncodeError."""
        message, children = call.delivery.message, call.request.children
        headers = message.headers
        group, parent = headers.get("group"), headers.get("parent_id")
        if self._plain and group is None and parent is None and not children:
            try:
                return record.encode(
                    message.id,
                    states.SUCCESS,
                    value,
                    serializer=self.serializer,
                    ttl=self.ttl,
                    zone=self.zone,
                )
            except EncodeError as error:
                self._check(value, message.task, error)
                raise
        options: dict[str, Any] = {
            "serializer": self.serializer, "ttl": self.ttl, "zone": self.zone, "compression": self.compression,
            "children": [child.as_tuple() for child in children] if children else (),
            "group_id": None if group is None else _text(group),
            "parent_id": None if parent is None else _text(parent),
        }  # fmt: skip
        extra = self._extra(call) if self.extended else None
        try:
            stored = record.encode(message.id, states.SUCCESS, value, extra=extra, **options)
        except EncodeError as error:
            self._check(value, message.task, error)
            extra = self._fit_extra(extra)
            stored = record.encode(message.id, states.SUCCESS, value, extra=extra, **options)
        return self._addressed(stored, message)

    def _addressed(self, stored: Record, message: Message) -> Record:
        """With where it goes besides: to who asked, and to the group that it counts in."""
        if self.direct:
            stored.reply_to = _text(message.properties.get("reply_to")) or ""
        if (group := message.headers.get(PART_HEADER)) is not None and stored.state in states.ENDED:
            stored.part_of = _text(group) or ""
        return stored

    def state(self, call: Call, state: str, value: Any, traceback: str | None) -> Record:
        """The record of another state; what can't be encoded is kept as the EncodeError."""
        message = call.delivery.message
        headers = message.headers
        ttl = self.failure_ttl if state == states.FAILURE else self.ttl
        options: dict[str, Any] = {
            "serializer": self.serializer, "ttl": ttl, "zone": self.zone,
            "traceback": traceback, "children": [child.as_tuple() for child in call.request.children],
            "group_id": _text(headers.get("group")), "parent_id": _text(headers.get("parent_id")),
        }  # fmt: skip
        extra = self._extra(call) if self.extended else None
        try:
            stored = record.encode(message.id, state, value, extra=extra, **options)
        except EncodeError as error:
            if not isinstance(value, record.ExceptionDocument) and not self._carries(value):
                value = record.exception_document(error)
            stored = record.encode(message.id, state, value, extra=self._fit_extra(extra), **options)
        return self._addressed(stored, message)

    def failure_of(self, message: Message, error: BaseException) -> Record | None:
        """The FAILURE of a message that never became a call; None where nobody can ask for it."""
        if not self.enabled or not message.id:
            return None
        if message.headers.get("ignore_result") is True and PART_HEADER not in message.headers:
            return None
        stored = record.encode(
            message.id, states.FAILURE, record.exception_document(error), serializer=self.serializer,
            ttl=self.failure_ttl, zone=self.zone,
        )  # fmt: skip
        return self._addressed(stored, message)

    def of_the_rest(
        self, links: Any, error: BaseException | None, traceback: str | None = None, parent: str = ""
    ) -> list[Record]:
        """The records of the calls that would have followed `parent` in its chain.

        They have failed for the same reason; where there is no `error` they are ignored, as it was.
        """
        chain = links.get("chain") if isinstance(links, Mapping) else None
        if not self.enabled or not isinstance(chain, (list, tuple)):
            return []
        state = states.IGNORED if error is None else states.FAILURE
        result = None if error is None else record.exception_document(error)
        found: list[Record] = []
        for link in reversed(chain):
            above = found[-1].id if found else parent
            for options in calls_in(link):
                headers = options.get("headers")
                part = _text(headers.get(PART_HEADER)) if isinstance(headers, Mapping) else None
                id = _text(options.get("task_id"))
                if id and (part or not options.get("ignore_result")):
                    stored = record.encode(
                        id, state, result, serializer=self.serializer, ttl=self.failure_ttl, zone=self.zone,
                        traceback=traceback,
                        group_id=_text(options.get("group_id")), parent_id=above or None,
                    )  # fmt: skip
                    stored.reply_to = _text(options.get("reply_to")) or ""
                    stored.part_of = part or ""
                    found.append(stored)
        return found

    def _extra(self, call: Call) -> dict[str, Any]:
        message = call.delivery.message
        extra = {
            "name": message.task, "args": call.args, "kwargs": call.kwargs, "worker": self.hostname,
            "retries": call.request.retries, "queue": message.queue,
        }  # fmt: skip
        if periodic := _text(message.headers.get("periodic_task_name")):
            extra["periodic_task_name"] = periodic
        return extra

    def _fit_extra(self, extra: dict[str, Any] | None) -> dict[str, Any] | None:
        """`extra` with the repr of arguments that came in another serializer, or that the task has changed."""
        if extra is None:
            return None
        return extra | {
            name: short_repr(extra[name]) for name in ("args", "kwargs") if not self._carries(extra[name])
        }

    def _carries(self, value: Any) -> bool:
        try:
            serialization.dumps(value, self.serializer)
        except EncodeError:
            return False
        return True

    def _check(self, value: Any, task: str, error: EncodeError) -> None:
        """Raise `error` in words if it is `value` that can't be carried."""
        if not self._carries(value):
            raise EncodeError(
                f"the result of {task} is of type {type(value).__name__}, which the {self.serializer} serializer "
                f"cannot carry ({error}); return plain data: numbers, text, lists, dicts, dates"
            ) from error


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds: float = value.total_seconds() if hasattr(value, "total_seconds") else float(value)
    return seconds or None
