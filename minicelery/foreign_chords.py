"""Chords that Celery's producers have sent: unfolded as Celery does, and the tasks by which they go on.

What follows from the end of a part is in `worker.foreign_chords`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.calls import message_of
from minicelery.canvas import Signature
from minicelery.canvas.steps import ACCUMULATE, Fork, Step, accumulate, begin_with, carried
from minicelery.exceptions import BackendError, BackendUnavailable, Ignore
from minicelery.message import Message

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.worker.foreign_chords import ForeignChords

COUNT_PART = "minicelery.count_part"
"""Counts a part that ended while the result store could not be reached."""
UNLOCK = "celery.chord_unlock"
"""Celery's own: looks again and again whether all parts have ended, and then calls the body."""
MOST_LOOKS = 10_000
"""Looks at a chord whose parts nothing limits in time."""


# -- the next link of a chain ----------------------------------------------------------------------


def is_foreign(link: Mapping[str, Any]) -> bool:
    """Whether a link of a chain is a chord that Celery has given its ids: its own is that of its header."""
    if link.get("subtask_type") != "chord":
        return False
    own, kwargs = link.get("options"), link.get("kwargs")
    header = kwargs.get("header") if isinstance(kwargs, Mapping) else None
    options = header.get("options") if isinstance(header, Mapping) else None
    if not isinstance(own, Mapping) or not isinstance(options, Mapping):
        return False
    return bool(own.get("task_id")) and own["task_id"] == options.get("task_id")


def unfold(
    app: Celery, steps: Sequence[Step], left: Sequence[Mapping[str, Any]], origin: Mapping[str, Any],
    queue: str,
) -> list[Message] | None:  # fmt: skip
    """What begins, its parts as Celery sends them: workers of both libraries count them.

    `left` are links that follow all of it, the next one last; in `queue` runs what only takes results.
    None, and nothing is changed, where the result store can't count them, or not now.
    """
    open_group = getattr(app.backend, "open_celery_group", None)
    if open_group is None:
        return None
    conf = app.conf
    given = conf.result_expires if conf.result_chord_expires is None else conf.result_chord_expires
    try:
        for id, size in _sizes(steps):
            open_group(id, size, given.total_seconds() if hasattr(given, "total_seconds") else given)
    except (BackendUnavailable, BackendError):
        return None
    messages: list[Message] = []
    _unfold(app, steps, left, origin, queue, messages)
    return messages


def _sizes(steps: Sequence[Step]) -> Iterator[tuple[str, int]]:
    """The groups that begin with the steps: id, and how many parts count."""
    first, rest = steps[0], steps[1:]
    if not isinstance(first, Fork):
        return
    parts = [part for part in first.parts if part]
    if rest and parts:
        yield first.id, len(parts)
    for begins in parts or ([list(rest)] if rest else []):
        yield from _sizes(begins)


def _unfold(
    app: Celery, steps: Sequence[Step], left: Sequence[Mapping[str, Any]] | None, origin: Mapping[str, Any],
    queue: str, messages: list[Message],
) -> None:  # fmt: skip
    first, rest = steps[0], steps[1:]
    for step in steps:
        if isinstance(step, Signature) and step.task == ACCUMULATE:
            step.options.setdefault("queue", queue)
    if not isinstance(first, Fork):
        links = [*(left or ()), *reversed(carried(rest))] if rest or left else None
        messages.append(message_of(app._sender, first, links, origin, False))
        return
    parts = [part for part in first.parts if part]
    if rest and not parts:
        begin_with(rest, ([],), {})
        _unfold(app, rest, left, origin, queue, messages)
        return
    body = _body([*carried(rest), *reversed(left or ())], first.id) if rest else None
    for index, part in enumerate(parts):
        last = part[-1]
        if body is not None:
            if isinstance(last, Fork):
                part.append(last := accumulate(last))
                last.options["queue"] = queue
            last.options.update(chord=body, group_id=first.id, group_index=index)
        elif not isinstance(last, Fork) and "chord" not in last.options:
            last.options.update(group_id=first.id, group_index=index)
        _unfold(app, part, None, origin, queue, messages)


def _body(links: list[Mapping[str, Any]], group: str) -> dict[str, Any]:
    """The links as one signature, which parts carry."""
    if len(links) == 1:
        (only,) = links
        return {**only, "options": {"group_id": group, **only["options"]}}
    options = {"task_id": links[-1]["options"].get("task_id")}
    return {"task": "celery.chain", "args": [], "kwargs": {"tasks": links}, "options": options,
            "subtask_type": "chain", "immutable": False}  # fmt: skip


# -- built-in tasks --------------------------------------------------------------------------------


def count_part(
    self: Any, group: str, id: str, index: int | None, body: Mapping[str, Any], entry: bytes | str
) -> None:
    from minicelery.worker.foreign_chords import Part

    data = entry.encode() if isinstance(entry, str) else entry
    _of(self).count_later(self.request, Part(id, group, index, body), data)
    raise Ignore("counted")


def unlock(
    self: Any, group_id: str, callback: Mapping[str, Any], interval: float | None = None,
    max_retries: int | None = None, result: Sequence[Any] = (), **_: Any,
) -> None:  # fmt: skip
    conf = self.app.conf
    pause = max(0.05, float(conf.result_chord_retry_interval if interval is None else interval))
    most = MOST_LOOKS if max_retries is None else max_retries
    seconds = self.app._canvas._chord_seconds()
    if seconds is not None:
        most = min(most, int(seconds / pause))
    last = self.request.retries >= most
    if not _of(self).unlock(self.request, group_id, callback, result, last=last):
        raise self.retry(countdown=pause, max_retries=most)
    raise Ignore("the body is called")


def _of(task: Any) -> ForeignChords:
    from minicelery.worker.foreign_chords import ForeignChords
    from minicelery.worker.links import Links
    from minicelery.worker.recorder import Recorder

    return ForeignChords(task.app, Links(task.app), Recorder(task.app, task.request.hostname))


BUILT_IN: dict[str, Callable[..., Any]] = {COUNT_PART: count_part, UNLOCK: unlock}
"""Functions of these tasks, which are bound, by the tasks' names."""
