"""Runs of entries, and how they are handed to the broker: each at most once, and none because of another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minicelery.beat.entries import Entry, run_id
from minicelery.beat.ledger import KEPT, Ledger
from minicelery.beat.timing import following
from minicelery.exceptions import BrokerUnavailable
from minicelery.limits import ONCE
from minicelery.message import Message
from minicelery.task import Task
from minicelery.unique import mark as mark_unique

if TYPE_CHECKING:
    from minicelery.app import Celery

CLAIMED, LONGEST_CLAIM = 300.0, 86400.0
"""Seconds for which a run can't be sent again: until the next one, within these bounds."""


@dataclass(slots=True, eq=False)
class Run:
    """One run of an entry, to be sent."""

    entry: Entry
    due: float
    again: Any  # what an entry that polls has said of when to ask again
    id: str
    message: Message | None = None
    defaults: Any = None
    call: Callable[[], Any] | None = None
    """Sends the run of a task that sends itself in its own way."""

    @property
    def is_plain(self) -> bool:
        """Whether it may be sent together with others: it needs nothing that may not be there."""
        return self.message is not None and self.defaults.unique is None and not self.message.exchange


class Dispatch:
    """Makes runs, and sends them.

    `sent` is called for each run as soon as it is sent, and whether it had been before;
    `refused` for each that the broker, or the task, does not take.
    """

    def __init__(
        self, app: Celery, lead: str, ledger: Ledger, sent: Callable[[Run, bool], None],
        refused: Callable[[Run, Exception], None], *, claims: bool,
    ) -> None:  # fmt: skip
        self._app = app
        self._lead = lead
        self._ledger = ledger
        self._sent = sent
        self._refused = refused
        self._claims = claims

    def make(self, entry: Entry, due: float, again: Any, options: Mapping[str, Any]) -> Run:
        """The run that is due then.  Raises whatever the arguments do."""
        # One whose schedule is asked again and again is known by the run before it.
        after, of = (entry.last, f"{entry.name}\nafter") if entry.polls else (due, entry.name)
        run = Run(entry, due, again, run_id(self._lead, of, after))
        task = self._app.tasks.get(entry.task)
        args, kwargs = entry.arguments()
        options = {**options, "task_id": run.id}
        if task is not None and (_sends_itself(task) or self._app.conf.task_always_eager):
            run.call = functools.partial(task.apply_async, args, kwargs, **options)
            return run
        sender = self._app._sender
        run.defaults = defaults = sender.defaults(task)
        run.message = message = sender.message(entry.task, args, kwargs, options, defaults, run.id)
        if defaults.unique is not None:
            mark_unique(message, defaults.unique, args, kwargs)
        elif self._claims:
            until = CLAIMED if entry.polls else following(entry.timing, due) - due
            message.unique = f"{ONCE}{run.id}", min(max(until, CLAIMED), LONGEST_CLAIM)
        return run

    def send(self, runs: Sequence[Run], holds: Callable[[], bool]) -> None:
        """Send the runs, as long as the lead `holds`, in one trip where they may.

        Raises BrokerUnavailable: what was not sent is due still.
        """
        self._try([run for run in runs if run.is_plain], holds)
        for run in runs:
            if not run.is_plain and holds():
                self._try([run], holds)

    def _try(self, runs: Sequence[Run], holds: Callable[[], bool]) -> None:
        if not runs:
            return
        left = [run.message for run in runs if run.message is not None]
        try:
            there = self._publish(runs, left)
        except Exception as error:
            missing = {id(message) for message in left}
            rest = [run for run in runs if run.message is None or id(run.message) in missing]
            for run in runs:
                if run not in rest:
                    self._sent(run, False)
            if isinstance(error, BrokerUnavailable):
                raise
            if len(rest) == 1:
                self._refused(rest[0], error)
                return
            for run in rest:  # one of them is at fault, or all
                if holds():
                    self._try([run], holds)
            return
        for run in runs:
            self._sent(run, run.id in there)
        if not self._claims and runs[0].defaults is not None and runs[0].defaults.unique is None:
            self._ledger.is_written(run.entry for run in runs)

    def _publish(self, runs: Sequence[Run], left: list[Message]) -> Any:
        """Ids of runs that had been sent before.  `left` loses what the broker is known to have."""
        if (call := runs[0].call) is not None:
            call()
            return ()
        through = None if self._claims else functools.partial(self._publish_noted, runs, left)
        options, defaults = (runs[0].entry.options, runs[0].defaults) if len(runs) == 1 else (None, None)
        return self._app._sender.publish(list(left), options, defaults, through) or ()

    def _publish_noted(
        self, runs: Sequence[Run], left: list[Message], _: list[Message], deadline: float | None
    ) -> None:
        """Where the broker knows no claims: as the leader, and with the note that it is done."""
        records = self._ledger.records((run.entry, run.due) for run in runs)
        leads: Any = self._app.broker.leads  # type: ignore[attr-defined]
        leads.publish(self._lead, left, self._ledger.topic, records, KEPT, deadline)


def _sends_itself(task: Any) -> bool:
    return type(task).apply_async is not Task.apply_async
