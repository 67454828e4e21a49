"""Calling back when results are there: `AsyncResult.then`.

One thread of the process calls all callbacks, one after the other; it ends when there is
nothing to call, and no exit waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from minicelery import record, states
from minicelery.exceptions import BackendUnavailable
from minicelery.forking import call_in_forked_children
from minicelery.hearing import Meta, Place, hear_from_thread
from minicelery.lineage import Result, calls_of
from minicelery.stored import has_failed

log = logging.getLogger(__name__)

LINGER = 1.0
"""Seconds that the thread stays when there is nothing to call."""
QUIET = 60.0
"""Seconds from one word about an outage to the next."""


class CallingThread:
    """Calls what it is given in one thread, in order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], object]] = deque()
        self._running = False

    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> None:
        """See `Place.call_soon_threadsafe`."""
        with self._changed:
            self._calls.append(partial(callback, *args))
            self._changed.notify()
            if not self._running:
                threading.Thread(target=self._run, name="minicelery-callbacks", daemon=True).start()
                self._running = True

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    self._changed.wait(LINGER)
                if not self._calls:
                    self._running = False
                    return
                call = self._calls.popleft()
            call()


_thread = CallingThread()


def _begin_anew() -> None:
    """A forked child has none of its parent's threads; its parent calls back."""
    global _thread
    _thread = CallingThread()


call_in_forked_children(_begin_anew)


def call_when_ready(
    result: Result,
    callback: Callable[[Any], Any],
    on_error: Callable[[BaseException], Any] | None,
    weak: bool,
) -> None:
    """See `AsyncResult.then`."""
    for name, function in (("callback", callback), ("on_error", on_error)):
        if not callable(function) and (function is not None or name == "callback"):
            raise TypeError(f"{name}={function!r:.80} of then: expected a function")
    pending = {call.id for call in calls_of(result) if call._final is None and not call._ignored}
    if not pending:
        _tell(result, callback, on_error)
        return
    _Expecting(result, callback, on_error, weak, pending).begin()


def _tell(
    result: Result, callback: Callable[[Any], Any], on_error: Callable[[BaseException], Any] | None
) -> None:
    failed = [call._final["result"] for call in calls_of(result) if has_failed(call._final) and call._final]
    if failed and on_error is not None:
        error = failed[0]
        on_error(error if isinstance(error, BaseException) else Exception(error))
    else:
        callback(result)


class _Expecting:
    """Hears of the calls of a result until all have ended."""

    def __init__(
        self, result: Result, callback: Callable[[Any], Any],
        on_error: Callable[[BaseException], Any] | None, weak: bool, pending: set[str],
    ) -> None:  # fmt: skip
        self._app = result.app
        self._backend = result.backend
        self._kept = None if weak else result
        self._result = weakref.ref(result)
        self._callback = callback
        self._on_error = on_error
        self._pending = pending
        self._hear: Callable[[list[str]], Any] = partial(
            hear_from_thread,
            self._app,
            self._backend,
            decode=partial(record.read, conf=self._app.conf),
            ear=self,
        )
        self._metas: dict[str, Meta] = {}
        self._quiet_until = float("-inf")

    @property
    def loop(self) -> Place:
        """See `Ear.loop`."""
        return _thread

    def begin(self) -> None:
        """Listen.  Raises ImproperlyConfigured where no results are stored."""
        if not hasattr(self._backend, "watch") or getattr(self._backend, "url", "") == "disabled://":
            self._backend.load(())  # says what to set
        self._hearings = self._hear(list(self._pending))

    def put(self, id: str, news: Meta | Exception) -> None:
        """See `Ear.put`; in the calling thread."""
        if id not in self._pending:
            return
        if isinstance(news, BackendUnavailable):
            self._warn(id, news)
            self._hear([id])
        elif isinstance(news, Exception):
            self._give_up(id, news)
        elif news["status"] in states.ENDED:
            self._metas[id] = news
            self._pending.discard(id)
            if not self._pending:
                self._call()

    def _warn(self, id: str, error: Exception) -> None:
        if time.monotonic() < self._quiet_until:
            return
        self._quiet_until = time.monotonic() + QUIET
        count = len(self._pending)
        log.warning("%d results, of task %s and others, are awaited for a callback: %s", count, id, error)

    def _give_up(self, id: str, error: Exception) -> None:
        self._pending.clear()
        if self._on_error is None:
            log.error("The result of task %s can't be read, so that nobody is called back: %s", id, error)
        elif self._result() is not None:
            self._safely(partial(self._on_error, error))

    def _call(self) -> None:
        result = self._result()
        if result is None:
            return  # nobody has it any more, and it was to be kept by them: weak=True
        for call in calls_of(result):
            if call._final is None and (meta := self._metas.get(call.id)) is not None:
                call._keep(meta)
        self._safely(partial(_tell, result, self._callback, self._on_error))
        self._kept = None

    def _safely(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            log.exception("A callback of then() failed")
