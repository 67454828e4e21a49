"""Parts of chords that Celery's producers have sent, and what their ends lead to.

Such a part carries the signature of the chord's body.  It is counted in the result store when
it has ended, before its outcome is applied; of the one that makes the chord complete, the body
leaves with the outcome.  Both may be repeated: see `broker.redis.celery_chords`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minicelery import announcing, record, serialization, states
from minicelery.calls import message_of
from minicelery.canvas import Signature, as_list
from minicelery.canvas.steps import ACCUMULATE
from minicelery.exceptions import (
    BackendError,
    BackendUnavailable,
    ChordError,
    EncodeError,
    ImproperlyConfigured,
    InvalidTaskError,
    MiniCeleryError,
)
from minicelery.foreign_chords import COUNT_PART, UNLOCK
from minicelery.message import Delivery, Message, Outcome, Record, new_id
from minicelery.request import Request
from minicelery.worker.call import Call, ExceptionInfo, Plan
from minicelery.worker.links import Links, calls_in
from minicelery.worker.recorder import Recorder, _seconds

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger("minicelery.worker.executor")

_UNFIT = (TypeError, ValueError, KeyError, AttributeError, RecursionError, ImproperlyConfigured, EncodeError)
_SETTLED = 60.0
"""Seconds after which an outcome is taken to be applied."""


@dataclass(slots=True)
class Following:
    """What leaves with the outcome of a part besides its own."""

    messages: list[Message] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


@dataclass(slots=True)
class Part:
    """A call whose end counts in a chord."""

    id: str
    group: str
    index: int | None
    body: Mapping[str, Any]


class ForeignChords:
    """Counts the parts of Celery's chords for one app."""

    def __init__(self, app: Celery, links: Links, recorder: Recorder) -> None:
        self.app = app
        self.links = links
        self.recorder = recorder
        self._count = getattr(app.backend, "count_part", None)
        options = app.conf.result_backend_transport_options
        self._ordered = bool(options.get("result_chord_ordered", True))
        self._group_ttl: float | None = recorder.ttl
        own = app.conf.result_chord_expires
        self._ttl: float | None = recorder.ttl if own is None else _seconds(own)
        # What this process has settled lately: when, and the key of what is kept for it.
        self._taken: dict[tuple[str, str, int | None], tuple[float, str]] = {}
        self._warned = False

    def add_to(self, outcome: Outcome, links: Any, state: str, value: Any) -> Outcome:
        """Count what has ended in `state`, with `value` or an exception; the outcome with what follows.

        That is the call itself, and of one that did not succeed the later calls of its chain.  Raises
        EncodeError or InvalidTaskError where it had a value and can't be counted; else nothing.
        """
        if not links:
            return outcome
        following = Following()
        for part in parts_of(outcome.delivery.message, links, state):
            self._end(part, state, value, outcome.delivery, following)
        if following.messages:
            outcome.publish = [*outcome.publish, *following.messages]
        if following.records:
            outcome.more = [*outcome.more, *following.records]
        return outcome

    def _end(self, part: Part, state: str, value: Any, delivery: Delivery, following: Following) -> None:
        entry = self._entry(part.id, state, value)
        message = delivery.message
        back = bool(delivery.started or delivery.deliveries or message.headers.get("redelivered"))
        # A copy of what this process has just settled: that outcome may still be in its hands.
        copy = (part.group, part.id, part.index) in self._taken
        try:
            self.count(part, entry, delivery, following, resume=True if back else False if copy else None)
        except (BackendUnavailable, BackendError) as error:
            log.warning(
                "Task %s[%s] is counted in chord %s later: %s", message.task, part.id, part.group, error
            )
            kwargs = {
                "group": part.group,
                "id": part.id,
                "index": part.index,
                "body": part.body,
                "entry": entry,
            }
            following.messages += self._hop(COUNT_PART, (), kwargs, message)
        except _UNFIT:
            log.exception(
                "Task %s[%s]: the body of chord %s makes no sense", message.task, part.id, part.group
            )

    def count(
        self, part: Part, entry: bytes, delivery: Delivery, following: Following, *, resume: bool | None
    ) -> None:
        """Count one part; where that completes its chord, add its body.

        With `resume` also where it had done so before; where that is None, if it has no record yet.
        Raises BackendUnavailable, BackendError; then nothing is added.
        """
        if self._count is None:
            if not self._warned:
                log.warning(
                    "Task %s[%s] is a part of a chord of Celery's, which are counted in a redis:// result "
                    "backend only; this one's body is called if celery.chord_unlock is sent for it",
                    delivery.message.task, part.id,
                )  # fmt: skip
            self._warned = True
            return
        found = self._count(
            part.group, part.id, part.index, entry, ordered=self._ordered, ttl=self._ttl,
            group_ttl=self._group_ttl, resume=resume, drop=self._settled(),
        )  # fmt: skip
        if found is not None:
            taken, saved, entries = found
            self._taken[part.group, part.id, part.index] = time.monotonic(), taken
            self._complete(part, saved, entries, delivery, following)

    def _settled(self) -> list[str]:
        """The key of entries that were taken for an outcome which has been applied since."""
        try:
            oldest = next(iter(self._taken.items()))
        except (StopIteration, RuntimeError):  # there is none, or another thread has just added one
            return []
        part, (since, key) = oldest
        if time.monotonic() - since < _SETTLED:
            return []
        self._taken.pop(part, None)
        return [key]

    # -- a chord is complete ---------------------------------------------------------------

    def _complete(
        self, part: Part, saved: bytes | None, entries: Sequence[bytes], delivery: Delivery, following: Following
    ) -> None:  # fmt: skip
        try:
            ended = [self._read(entry) for entry in entries]
            values = [_value_of(id, state, value) for _, id, state, value in ended]
            if saved is not None:
                _, tuples = self._read(saved)["result"]
                by_id = {id: value for (_, id, _, _), value in zip(ended, values, strict=True)}
                if any(id not in by_id for id in _ids(tuples)):
                    # Celery's size of a chord can be too small; then their records tell.
                    kwargs = {"interval": None, "max_retries": None, "result": tuples}
                    following.messages += self._hop(UNLOCK, (part.group, part.body), kwargs, delivery.message)
                    return
                values = _nested(tuples, by_id)
        except ChordError as error:
            self.fail(part.body, error, delivery, following)
        except (MiniCeleryError, *_UNFIT) as error:
            self.fail(part.body, ChordError(f"Join error: {error!r}"), delivery, following)
        else:
            self.call(part.body, values, delivery, following)

    def call(
        self, body: Mapping[str, Any], values: list[Any], delivery: Delivery, following: Following
    ) -> None:
        """Add the messages with which the body begins."""
        message = delivery.message
        properties = message.properties
        origin = {
            "root_id": message.headers.get("root_id") or message.id,
            "parent_id": message.id,
            "reply_to": properties.get("reply_to"),
        }
        try:
            messages, _ = self.app._canvas.follow(_told(body), None, (values,), origin, message.queue)
        except _UNFIT as error:
            self.fail(body, ChordError(f"Callback error: {error!r}"), delivery, following)
            return
        for one in messages:
            announcing.both(self.app, one)
        following.messages += self.app._sender.expand(messages)

    def fail(
        self, body: Mapping[str, Any], error: BaseException, delivery: Delivery, following: Following
    ) -> None:
        """Add what follows from a body that can't be called: failures, and its errbacks."""
        log.error("The body of a chord fails: %s", error)
        following.records += self.recorder.of_the_rest({"chain": [body]}, error, parent=delivery.message.id)
        for part in _parts_in(body):
            self._end(part, states.FAILURE, error, delivery, following)
        for id, name, errbacks in _first_calls(body):
            following.messages += self.links.after_failure(
                self._never_made(id, name, errbacks, delivery), error, ExceptionInfo(error)
            )

    def _never_made(self, id: str, name: str, errbacks: Sequence[Any], delivery: Delivery) -> Call:
        """The call of a body, as its errbacks see it."""
        headers = {**delivery.message.headers, "id": id, "task": name, "parent_id": delivery.message.id}
        message = Message(
            id, name, b"", headers, delivery.message.queue, properties=dict(delivery.message.properties)
        )
        task = self.app.tasks.get(name) or self.app.tasks[ACCUMULATE]
        request = Request(task, id=id, message=message)
        request.update(task=name)
        links = {"errbacks": list(errbacks)}
        return Call(Delivery(message, 0), Plan(self.app, task, (None, None)), request, [], {}, links)

    # -- asked for by messages -------------------------------------------------------------

    def count_later(self, request: Request, part: Part, entry: bytes) -> None:
        """Count a part whose end could not be counted then."""
        following = Following()
        assert request.message is not None
        self.count(part, entry, Delivery(request.message, 0), following, resume=True)
        self._leave(following, request)

    def unlock(
        self, request: Request, group: str, body: Mapping[str, Any], tuples: Sequence[Any], *, last: bool
    ) -> bool:
        """Call the body if all parts have ended, as their records tell; whether that is settled.

        With `last` it fails where they have not.
        """
        backend: Any = self.app.backend
        ids = list(_ids(tuples))
        if not hasattr(backend, "load") or self.recorder.direct:
            raise ImproperlyConfigured(
                f"celery.chord_unlock of chord {group} needs a result backend that keeps the results of its "
                "parts: set result_backend to a redis:// or sqlite:/// URL"
            )
        found = dict(zip(ids, backend.load(ids), strict=True))
        assert request.message is not None
        delivery, following = Delivery(request.message, 0), Following()
        try:
            metas = {
                id: record.read(one.document, self.app.conf) for id, one in found.items() if one is not None
            }
            missing = [id for id in ids if id not in metas or metas[id]["status"] not in states.ENDED]
            if missing and not last:
                return False
            if missing:
                raise ChordError(f"Dependency {missing[0]} has not ended in time, or its result has expired")
            by_id = {id: _value_of(id, metas[id]["status"], metas[id]["result"]) for id in ids}
        except MiniCeleryError as error:
            failed = error if isinstance(error, ChordError) else ChordError(f"Join error: {error!r}")
            self.fail(body, failed, delivery, following)
        else:
            self.call(body, _nested(tuples, by_id), delivery, following)
        self._leave(following, request)
        return True

    def _leave(self, following: Following, request: Request) -> None:
        """Have it leave with the outcome of the attempt; records are stored before."""
        if following.records:
            request.outbox += self.app.backend.store(following.records) or ()
        request.outbox += following.messages

    def _hop(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], message: Message
    ) -> list[Message]:
        options = {"task_id": new_id(), "queue": message.queue, "ignore_result": True}
        origin = {"root_id": message.headers.get("root_id"), "parent_id": message.id}
        sender = self.app._sender
        return sender.expand(
            [message_of(sender, Signature(name, args, kwargs, options), None, origin, False)]
        )

    # -- entries, as Celery's workers write them -------------------------------------------

    def _entry(self, id: str, state: str, value: Any) -> bytes:
        serializer = self.recorder.serializer
        if isinstance(value, BaseException):
            document: Any = record.exception_document(value)
            value = document if serializer == "json" else document.fit_for(serializer)
        data = serialization.dumps([1, id, state, value], serializer)[0]
        compression = self.recorder.compression
        return data if compression is None else record._compressed(data, compression)

    def _read(self, entry: bytes) -> Any:
        serializer, conf = self.recorder.serializer, self.app.conf
        if entry.startswith(record._COMPRESSED):
            compression, _, packed = entry[len(record._COMPRESSED) :].partition(b"\0")
            entry = serialization.decompress(packed, compression.decode(errors="replace"))
        names = conf.accept_content if conf.result_accept_content is None else conf.result_accept_content
        return serialization.loads(
            entry, serialization.CONTENT_TYPES.get(serializer, serializer), "utf-8",
            serialization.accepted(names),
        )  # fmt: skip


def parts_of(message: Message, links: Any, state: str) -> Iterator[Part]:
    """What has ended with the call that `message` makes: itself, and what would have followed it."""
    if not isinstance(links, Mapping):
        return
    body = links.get("chord")
    if state == states.SUCCESS and body is not None and not isinstance(body, Mapping):
        raise InvalidTaskError(f"chord must be a signature, got {type(body).__name__}")
    headers = message.headers
    given = {
        "task_id": message.id,
        "group_id": headers.get("group"),
        "group_index": headers.get("group_index"),
    }
    if part := _part({**given, "chord": body}):
        yield part
    if state != states.SUCCESS:
        for link in reversed(as_list(links.get("chain"))):
            yield from _parts_in(link)


def _parts_in(link: Any) -> Iterator[Part]:
    for options in calls_in(link):
        if part := _part(options):
            yield part


def _part(options: Mapping[str, Any]) -> Part | None:
    id, group, body = options.get("task_id"), options.get("group_id"), options.get("chord")
    if not (isinstance(id, str) and isinstance(group, str) and isinstance(body, Mapping)):
        return None
    index = options.get("group_index")
    return Part(id, group, index if type(index) is int else None, body)


def _value_of(id: str, state: str, value: Any) -> Any:
    if state in states.EXCEPTION_STATES and not isinstance(value, BaseException):
        value = record.rebuild_exception(value)
    if state in states.PROPAGATE_STATES:
        raise ChordError(f"Dependency {id} raised {value!r}") from value
    return value


def _ids(tuples: Sequence[Any]) -> Iterator[str]:
    """The ids of the calls in the members of a group's result, as tuples."""
    for (id, _), members in tuples:
        if members is None:
            yield id
        else:
            yield from _ids(members)


def _nested(tuples: Sequence[Any], by_id: Mapping[str, Any]) -> list[Any]:
    return [by_id[id] if members is None else _nested(members, by_id) for (id, _), members in tuples]


def _told(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without the options that say nothing, which would hide its origin."""
    options = body.get("options") or {}
    return {**body, "options": {key: value for key, value in options.items() if value is not None}}


def _first_calls(link: Any) -> Iterator[tuple[str, str, Sequence[Any]]]:
    """What a link begins with: id, task's name and errbacks."""
    if not isinstance(link, Mapping):
        return
    options, kwargs = link.get("options") or {}, link.get("kwargs") or {}
    kind, errbacks = link.get("subtask_type"), as_list(options.get("link_error"))
    if kind == "group":
        for member in as_list(kwargs.get("tasks")):
            for id, name, own in _first_calls(member):
                yield id, name, [*own, *errbacks]
        return
    inner: Any = None
    if kind == "chain":
        inner = next(iter(as_list(kwargs.get("tasks"))), None)
    elif kind == "chord":
        inner = kwargs.get("body")
    if inner is None or errbacks:
        yield str(options.get("task_id")), str(link.get("task")), errbacks
    else:
        yield from _first_calls(inner)
