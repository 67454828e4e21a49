"""`Beat`: waits for what is due, and sends it while it leads."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import queue
import random
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from minicelery import signals
from minicelery.beat import scheduler as schedulers
from minicelery.beat.choosing import open_scheduler
from minicelery.beat.dispatch import Dispatch, Run
from minicelery.beat.entries import BadEntry, Entry, Template, read_entry, unknown_tasks
from minicelery.beat.lease import Lease, lead_of
from minicelery.beat.ledger import Kept, Ledger, known, resume
from minicelery.beat.timing import following, is_elapsed, latest, run_for, taken_up
from minicelery.exceptions import BrokerUnavailable, OperationalError

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

BATCH = 500
"""Runs that are sent in one trip."""
JUMP = 0.5
"""Seconds from which on a changed clock counts as changed."""
LOOK = 3.0
"""Seconds between two looks for changed entries."""
FLUSH = 1.0
"""Seconds that how far entries have come may stay unwritten, where the broker knows of what was sent."""
FIRST_AGAIN, AGAIN = 1.0, 60.0
"""Seconds after which a run that was refused is tried again, at first and at most; the latter is also for
entries whose schedule raised an exception."""
SOONEST = 0.05
"""Seconds between two questions to a schedule that has to be asked whether it is due."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds of waiting for a broker that is away, at first and at most."""
LONGEST_SLEEP = 300.0
UNREAD = 60.0
"""Seconds after which a leader goes on without what is stored, where it can't be read though the broker is there."""
COMPLAIN = 60.0
"""Seconds between two complaints about the same fault."""


class Clock:
    """What time it is; another one is passed in where time travels."""

    def now(self) -> float:
        """Unix seconds, as clocks show."""
        return time.time()

    def steady(self) -> float:
        """Seconds that pass whatever clocks show, also while the machine is suspended."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()


class Beat:
    """Sends an app's periodic tasks.  One thread's, except `stop`."""

    def __init__(
        self,
        app: Celery,
        *,
        scheduler: str | type[Any] | None = None,
        max_interval: float | None = None,
        clock: Clock | None = None,
        embedded: bool = False,
    ) -> None:
        self.app = app
        self.scheduler = open_scheduler(app, scheduler, max_interval)
        self.max_interval = max_interval or app.conf.beat_max_loop_interval or LONGEST_SLEEP
        self.lead = lead_of(app)
        self.entries: dict[str, Entry] = {}
        self._given: Mapping[str, Any] = {}
        self.errors: list[BadEntry] = []
        """Of the entries that are left out."""
        self.lease = Lease(app.broker, self.lead)
        self._embedded = embedded
        self._clock = clock or Clock()
        # A run that is sent is known to brokers that keep unique calls, before it is written down;
        # RabbitMQ writes it down with it, in a stream.
        claims = hasattr(app.broker, "limits")
        self._ledger = Ledger(app.broker, self.lead, is_stream=not claims)
        self._dispatch = Dispatch(
            app, self.lead, self._ledger, self._note_sent, self._put_off, claims=claims
        )  # fmt: skip
        self._heap: list[tuple[float, int, Entry]] = []
        self._ask_at = math.inf  # the scheduler, for what it sends itself
        self._is_read = False  # the entries are
        self._is_ready = False  # how far they have come is known
        self._is_whole = True  # what is stored could be read
        self._flush_at = self._look_at = self._complain_at = self._unread_since = 0.0
        self._offset: float | None = None
        self._failures = 0
        self._stopped = False
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()

    # -- life ------------------------------------------------------------------------------

    def run(self) -> int:
        """Until `stop`; the exit code."""
        if self._embedded:
            signals.beat_embedded_init.send(sender=self)
        signals.beat_init.send(sender=self)
        while not self._stopped:
            try:
                pause = self.turn()
            except Exception:
                log.exception("beat")
                pause = 1.0
            with contextlib.suppress(queue.Empty):
                self._alarm.get(timeout=pause)
        self.close()
        return 0

    start = run

    def stop(self) -> None:
        """Have `run` return.  From any thread, and from a signal's handler."""
        self._stopped = True
        self._alarm.put(None)  # which a handler may do, as it takes no lock

    def close(self) -> None:
        """Write what is unwritten, and let another one lead."""
        for last in (self._ledger.flush if self._holds() and self._is_ready else None, self.lease.give_up):
            try:
                if last is not None:
                    last()
            except OperationalError as error:
                log.warning("beat: could not say goodbye, another one leads in a few seconds: %s", error)
        self.scheduler.close()

    def turn(self) -> float:
        """Send what is due, if we lead; the seconds until the next turn."""
        if not self._is_read:
            self.read()
            log.info("beat: starting with %d entries", len(self.entries))
        self._notice_jump()
        try:
            if self.lease.ask(self._clock.steady()):
                self._is_ready = False  # others may have led since
            if self.lease.leads:
                self._lead()
            else:
                self.scheduler.rest()
        except OperationalError as error:
            self._is_ready = False
            return self._wait_for_broker(error)
        if self._failures:
            log.warning("beat: the broker is back")
            self._failures = 0
        return self._pause()

    def _lead(self) -> None:
        if not self._is_ready:
            self._take_up()
            self._is_ready = True
        self._look()
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now and self._holds():
            self._send_due(now)
        self._write()
        self._ask_at = self._clock.steady() + self.scheduler.send(self._holds)

    def _holds(self) -> bool:
        return self.lease.holds(self._clock.steady())

    def _pause(self) -> float:
        ask = self.lease.ask_at - self._clock.steady()
        due = self._heap[0][0] - self._clock.now() if self._heap and self.lease.leads else ask
        again = self._ask_at - self._clock.steady() if self.lease.leads else ask
        return max(0.0, min(ask, due, again, self.max_interval))

    def _wait_for_broker(self, error: OperationalError) -> float:
        if self._failures % 60 == 0:
            log.warning("beat: waiting for the broker: %s", error)
        self._failures += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        return pause * random.uniform(0.7, 1.0)

    # -- entries ---------------------------------------------------------------------------

    def read(self) -> None:
        """Read the entries; what can't be right is logged, and left out."""
        before = self.entries
        changed = self._read()
        kept = {name: known(before[name]) for name in changed if name in before and before[name].last}
        if self._is_ready:
            self._place(kept, changed)
            return
        for name, found in kept.items():  # what is stored is not known yet
            entry = self.entries[name]
            entry.last, entry.runs, entry.ran = found.last, found.runs, found.ran

    def _read(self) -> list[str]:
        """Read the entries; the names of those that are new, or may have changed."""
        given, changed = self.scheduler.entries(), []
        self.errors, entries = [], {}
        for name, fields in given.items():
            if isinstance(fields, Template) and fields is self._given.get(name):
                entries[name] = self.entries[name]
                continue
            try:
                entries[name] = read_entry(self.app, name, fields)
            except BadEntry as error:
                self.errors.append(error)
                log.error("beat: %s; the other entries go on", error)
                continue
            changed.append(name)
        for text in unknown_tasks(self.app, [entries[name] for name in changed]):
            log.warning("beat: %s", text)
        self.entries, self._given, self._is_read = entries, given, True
        return changed

    def _read_changes(self) -> None:
        """Read what was changed while another one led.  Raises OperationalError."""
        try:
            if self.scheduler.changed():
                self._read()
        except OperationalError:
            raise
        except Exception:
            log.exception("beat: the entries are as before")

    def _known(self) -> dict[str, Kept]:
        """How far the entries have come while this beat has led."""
        return {name: known(entry) for name, entry in self.entries.items() if entry.last}

    def _look(self) -> None:
        """Take changed entries up."""
        if (steady := self._clock.steady()) >= self._look_at:
            self._look_at = steady + LOOK
            try:
                changed = self.scheduler.changed()
            except OperationalError:
                if self._is_whole:
                    raise
                return
            if changed:
                log.info("beat: the schedule has changed")
                self.read()

    def _take_up(self) -> None:
        """Begin to lead: go on from where the last leader was."""
        before, kept = self._known(), self._stored()
        for name, found in before.items():
            if name not in kept or kept[name].last < found.last:
                kept[name] = found
        log.info("beat: leading, as %s", self.lease.holder)
        self._place(kept, self.entries)
        self._ledger.note_all(self.entries.values(), self._clock.steady())
        self.scheduler.lead()

    def _stored(self) -> dict[str, Kept]:
        """What was written by who led before, and what was changed meanwhile.

        Without either, once they could not be read for long: RabbitMQ may have broken the stream.
        """
        kept: dict[str, Kept] = {}
        try:
            kept = self._ledger.load()
            self._read_changes()
        except OperationalError as error:
            steady = self._clock.steady()
            self._unread_since = self._unread_since or steady
            if steady - self._unread_since < UNREAD:
                raise
            log.error("beat: what is stored can't be read, going on without it: %s", error)
            self._ledger.usable, self._is_whole = bool(kept), False
        else:
            self._unread_since, self._is_whole = 0.0, True
        return kept

    def _place(self, kept: Mapping[str, Kept], names: Iterable[str]) -> None:
        """Set the entries `names` to how far they have come, and order all by when they are due."""
        now, fresh = round(self._clock.now(), 6), []
        for name in names:
            entry = self.entries[name]
            if resume(entry, kept.get(name), now):
                fresh.append(entry)
            self._plan(entry, now)
        self._ledger.note(fresh)
        self._order()

    def _order(self) -> None:
        self._heap = [(entry.wake, number, entry) for number, entry in enumerate(self.entries.values())]
        heapq.heapify(self._heap)

    def _plan(self, entry: Entry, now: float) -> None:
        """Set when the entry is due next."""
        if not entry.enabled:
            entry.due, entry.wake = 0.0, math.inf
            return
        if entry.polls:
            entry.wake = now
            return
        try:
            entry.due = entry.wake = following(entry.timing, entry.last)
        except Exception as error:
            self._blame(entry, error, now)

    def _blame(self, entry: Entry, error: Exception, now: float) -> None:
        log.error(
            "beat: entry %r: its schedule %r raised %r; the others go on", entry.name, entry.timing, error
        )
        entry.due, entry.wake = 0.0, now + AGAIN

    def _notice_jump(self) -> None:
        """Where the clock was changed: intervals are elapsed time, and nothing stands still until then."""
        now = self._clock.now()
        offset = now - self._clock.steady()
        jump = 0.0 if self._offset is None else offset - self._offset
        self._offset = offset
        if abs(jump) < JUMP:
            return
        log.warning("beat: the clock was changed by %+.1f s", jump)
        for entry in self.entries.values():
            if not entry.last:
                continue
            if is_elapsed(entry.timing):
                entry.last = round(entry.last + jump, 6)
            elif jump < 0:
                entry.last = taken_up(entry.timing, entry.last, round(now, 6))
            self._plan(entry, now)
        if self.lease.leads:
            self._ledger.note(self.entries.values())
        self._order()

    # -- sending ---------------------------------------------------------------------------

    def _send_due(self, now: float) -> None:
        """Send a batch of what is due.  Raises BrokerUnavailable: what was not sent is due still."""
        taken: list[tuple[float, int, Entry]] = []
        while self._heap and self._heap[0][0] <= now and len(taken) < BATCH:
            taken.append(heapq.heappop(self._heap))
        try:
            runs = [run for _, _, entry in taken if (run := self._run_of(entry, now)) is not None]
            self._dispatch.send(runs, self._holds)
        finally:
            for _, number, entry in taken:
                heapq.heappush(self._heap, (entry.wake, number, entry))

    def _run_of(self, entry: Entry, now: float) -> Run | None:
        """The run of the entry that is due; else it is looked at later."""
        try:
            due, again = self._due(entry, now)
        except Exception as error:
            self._blame(entry, error, now)
            return None
        if due is None:
            return None
        try:
            return self._dispatch.make(entry, due, again, self._options_of(entry))
        except Exception as error:
            log.error("beat: entry %r can't be sent, the others go on: %s", entry.name, error)
            self._advance(entry, due, again)
            return None

    def _options_of(self, entry: Entry) -> Mapping[str, Any]:
        find = schedulers.find_options
        return entry.options if find is None else find(self.app, entry)

    def _due(self, entry: Entry, now: float) -> tuple[float | None, Any]:
        """The due time of the run to send now, None if there is none; and what an entry that polls says next."""
        if entry.polls:
            is_due, again = entry.is_due()
            if is_due:
                # Its run is known by the one before: no two are at the same time.
                return round(max(now, entry.last + 1e-6), 6), again
            entry.wake = now + _seconds(again)
            return None, again
        if not entry.due:
            self._plan(entry, now)
            if entry.wake > now:
                return None, None
        due = run_for(entry, now, self.app.conf.beat_cron_starting_deadline)
        if due is None:
            missed = latest(entry.timing, entry.due, now)
            log.warning("beat: entry %r skips what it has missed, %.0f s ago", entry.name, now - missed)
            self._advance(entry, missed)
        return due, None

    def _note_sent(self, run: Run, before: bool) -> None:
        entry = run.entry
        if before:
            log.info("beat: %s[%s] of entry %r is there already", entry.task, run.id, entry.name)
        else:
            entry.runs += 1
            log.info("Scheduler: Sending due task %s (%s)[%s]", entry.name, entry.task, run.id)
        entry.ran = run.due
        self._advance(entry, run.due, run.again)
        self.scheduler.ran(entry)

    def _put_off(self, run: Run, error: Exception) -> None:
        """Try a run again later that was refused: it must not keep the others."""
        entry = run.entry
        pause = min(AGAIN, FIRST_AGAIN * 2.0 ** min(entry.refusals, 10))
        entry.refusals += 1
        entry.wake = self._clock.now() + pause
        self._ledger.note([entry])  # in place of the note that may have gone with the run
        log.error("beat: entry %r is not sent, and tried again in %.0f s: %s", entry.name, pause, error)

    def _advance(self, entry: Entry, due: float, again: Any = None) -> None:
        """Go on to the run after the one that was due then."""
        now = self._clock.now()
        entry.last, entry.refusals = due, 0
        if entry.polls:
            entry.wake = now + _seconds(again)
        else:
            self._plan(entry, now)
        self._ledger.note([entry])

    def _write(self) -> None:
        """Write how far the entries have come.  Raises BrokerUnavailable."""
        steady = self._clock.steady()
        if self._ledger.is_old(steady):
            self._ledger.note_all(self.entries.values(), steady)
        if steady < self._flush_at:
            return
        self._flush_at = steady + FLUSH
        try:
            self._ledger.flush()
        except BrokerUnavailable:
            raise
        except OperationalError as error:  # runs are sent all the same
            if steady >= self._complain_at:
                self._complain_at = steady + COMPLAIN
                log.error("beat: the last runs can't be written: %s", error)


def _seconds(again: Any) -> float:
    """How long to wait before a schedule is asked once more; Celery's may say None for long."""
    try:
        seconds = float(again)
    except (TypeError, ValueError):
        return LONGEST_SLEEP
    return LONGEST_SLEEP if math.isnan(seconds) else min(max(seconds, SOONEST), LONGEST_SLEEP)
