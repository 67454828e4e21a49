"""The body of a chord before it runs: the results of the parts become its argument."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Any

from minicelery import record, states
from minicelery.exceptions import (
    BackendError,
    BackendUnavailable,
    ChordError,
    MiniCeleryError,
    TaskRevokedError,
)
from minicelery.message import BODY_HEADER, COPY_HEADER, LASTS_HEADER, Outcome, Record
from minicelery.worker.call import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minicelery.app import Celery
    from minicelery.message import Group

log = logging.getLogger("minicelery.worker.executor")

AGAIN = 2.0
"""Seconds after which a body looks again for results that can't be read now; with jitter."""


class Bodies:
    """Prepares the bodies of one app's chords."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def prepare(self, call: Call) -> Outcome | ChordError | TaskRevokedError | None:
        """Put the results in front of the arguments; or the outcome without a run, or why there is none."""
        message = call.delivery.message
        id, copy = str(message.headers[BODY_HEADER]), str(message.headers.get(COPY_HEADER) or "")
        backend: Any = self.app.backend
        if not hasattr(backend, "load_group"):
            return ChordError(f"this worker's result backend can't count chords: that of {id} is elsewhere")
        try:
            if copy and not backend.claim_group(id, copy):
                log.info("Task %s[%s] was sent more than once: not run again", message.task, message.id)
                return Outcome(call.delivery)
            group: Group | None = backend.load_group(id)
            if group is None:
                return ChordError(f"the group {id} is not known any more: see result_chord_expires")
            lasts = message.headers.get(LASTS_HEADER)
            if isinstance(lasts, (int, float)) and group.sent and time.time() > group.sent + lasts:
                return TaskRevokedError("expired")
            found = backend.load(group.members)
        except (BackendUnavailable, BackendError) as error:
            log.warning("Task %s[%s] waits for its parts' results: %s", message.task, message.id, error)
            message.due = time.time() + AGAIN * random.uniform(0.5, 1.5)
            message.exchange, message.routing_key = "", message.queue
            return Outcome(call.delivery, publish=(message,))
        try:
            values = self._values(group.members, found)
        except ChordError as error:
            return error.with_traceback(None)  # where it was noticed tells nobody anything
        if group.passes:
            call.args.insert(0, values)
        return None

    def _values(self, ids: Sequence[str], found: Sequence[Record | None]) -> list[Any]:
        """What the parts have returned, in order.

        Raises ChordError naming the first part that has failed; where none has, the first that has not ended.
        """
        documents = [one.document for one in found if one is not None]
        try:
            if (
                len(documents) == len(ids)
                and (all_well := record.returned(documents, self.app.conf)) is not None
            ):
                return all_well
            metas = iter(record.read_all(documents, self.app.conf))
        except MiniCeleryError as error:
            raise ChordError(f"the result of a part can't be read: {error}") from error
        values: list[Any] = []
        missing = ""
        for id, one in zip(ids, found, strict=True):
            if one is None:
                missing = missing or f"Dependency {id} has not ended in time, or its result has expired"
                continue
            meta = next(metas)
            state = meta["status"]
            if state == states.SUCCESS:
                values.append(meta["result"])
            elif state in states.PROPAGATE_STATES:
                raise ChordError(f"Dependency {id} raised {meta['result']!r}")
            elif state == states.IGNORED:
                values.append(None)
            else:
                missing = missing or f"Dependency {id} has not ended in time: it is {state}"
        if missing:
            raise ChordError(missing)
        return values
