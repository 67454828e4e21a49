"""Built-in tasks by which chords that Celery's producers have sent go on, where a part's end can't do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import BackendError, Ignore
from minicelery.unfolding import UNTIL_DONE

if TYPE_CHECKING:
    from minicelery.worker.foreign_chords import ForeignChords

COUNT_PART = "minicelery.count_part"
"""Counts a part that ended while the result store could not be reached."""
UNLOCK = "celery.chord_unlock"
"""Celery's own: looks again and again whether all parts have ended, and then calls the body."""
BUILT_IN_OPTIONS: dict[str, Any] = {
    **UNTIL_DONE, "bind": True, "autoretry_for": (*UNTIL_DONE["autoretry_for"], BackendError)
}  # fmt: skip
MOST_LOOKS = 10_000
"""Looks at a chord whose parts nothing limits in time."""


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
        raise self.retry(countdown=pause, max_retries=None)
    raise Ignore("the body is called")


def _of(task: Any) -> ForeignChords:
    from minicelery.worker.foreign_chords import ForeignChords
    from minicelery.worker.links import Links
    from minicelery.worker.recorder import Recorder

    return ForeignChords(task.app, Links(task.app), Recorder(task.app, task.request.hostname))


BUILT_IN_CHORDS: dict[str, Callable[..., Any]] = {COUNT_PART: count_part, UNLOCK: unlock}
