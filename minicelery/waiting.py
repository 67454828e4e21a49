"""Waiting for calls to end: one subscription, however many they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from minicelery import states
from minicelery.broker.listening import WatchListener, open_listener
from minicelery.exceptions import BackendUnavailable, TimeoutError
from minicelery.lineage import AT_ONCE, calls_of
from minicelery.message import Record

if TYPE_CHECKING:
    from minicelery.result import AsyncResult

NET = 5.0
"""Seconds after which a wait reads the store again, should a notice have been lost."""
OUTAGE = 60.0
"""Seconds without the store after which a wait without a timeout gives up."""
_LOOK = 3e-6
"""Seconds to pause for each awaited call, where every look goes over all of them."""

Pending = dict[str, "list[AsyncResult[Any]]"]
OnMessage = Callable[[dict[str, Any]], Any]


def finals(
    calls: Sequence[AsyncResult[Any]], timeout: float | None, *, on_message: OnMessage | None = None,
    interval: float = NET, on_interval: Callable[[], Any] | None = None,
) -> Iterator[AsyncResult[Any]]:  # fmt: skip
    """The calls as they become final, those first that are; not those whose result is ignored.

    `on_message` is called with each document, `on_interval` about every `interval` seconds.  Raises
    TimeoutError after `timeout` seconds in all; BackendUnavailable when the store is gone for long.
    """
    end = None if timeout is None else time.monotonic() + timeout
    pending: Pending = {}
    for call in calls:
        if call._final is not None:
            yield call
        elif not call._ignored:
            pending.setdefault(call.id, []).append(call)
    if not pending:
        return
    ears = _ears(next(iter(pending.values()))[0].backend, pending)
    seen: dict[str, bytes] = {}
    outage_began: float | None = None
    next_interval = time.monotonic() + interval
    try:
        while pending:
            now = time.monotonic()
            wait = max(0.0, min(next_interval, next_interval if end is None else end) - now)
            try:
                found = ears.wait(seen, wait)
                outage_began = None
            except BackendUnavailable:
                now = time.monotonic()
                outage_began = outage_began or now
                if now - outage_began > OUTAGE:
                    raise
                found = []
                time.sleep(0.2)
            for news in found:
                if (waiting := pending.get(news.id)) is None or seen.get(news.id) == news.document:
                    continue
                seen[news.id] = news.document
                metas = [call._read(news.document) for call in waiting]
                if on_message is not None:
                    on_message(metas[0])
                if metas[0]["status"] in states.ENDED:
                    del pending[news.id], seen[news.id]
                    ears.drop(news.id)
                    yield from waiting
            now = time.monotonic()
            if pending and end is not None and now >= end:
                raise TimeoutError(late(calls, len(pending), timeout))
            if now >= next_interval:
                next_interval = now + interval
                if pending and on_interval is not None:
                    on_interval()
    finally:
        ears.close()


def late(calls: Sequence[AsyncResult[Any]], pending: int, timeout: float | None) -> str:
    """That the time is over."""
    what = f"task {calls[0].id} was" if len(calls) == 1 else f"{pending} of {len(calls)} tasks were"
    return f"{what} not done within {timeout or 0:g} s"


class _Ears(Protocol):
    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]: ...

    def drop(self, id: str) -> None: ...

    def close(self) -> None: ...


def _ears(backend: Any, pending: Pending) -> _Ears:
    if len(pending) == 1:
        return _Watching(backend, pending)
    return _Listening(backend, pending)


class _Watching:
    """Hears of a call, or of the calls in a backend that looks at all of them each time."""

    def __init__(self, backend: Any, pending: Pending) -> None:
        self._backend = backend
        self._pending = pending
        self._again = False

    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]:
        if self._again and len(self._pending) > 100:
            # So that a look finds what many calls have left: one for each would be quadratic.
            time.sleep(min(seconds, len(self._pending) * _LOOK))
        found: list[Record] = self._backend.watch(list(self._pending), seen, seconds)
        self._again = bool(found)
        return found

    def drop(self, id: str) -> None:
        """It is not in `pending` any more."""

    def close(self) -> None:
        """Nothing is open."""


class _Listening:
    """Hears of many calls: reads all of them, and then listens for what is left."""

    def __init__(self, backend: Any, pending: Pending) -> None:
        self._backend = backend
        self._pending = pending
        self._ears: Any = None
        self._is_read = False

    def wait(self, seen: Mapping[str, bytes], seconds: float) -> list[Record]:
        if self._is_read:
            if self._ears is None:
                self._ears = self._opened()
            found: list[Record] = self._ears.wait(seen, seconds)
            return found
        ids = list(self._pending)
        found = []
        for start in range(0, len(ids), AT_ONCE):
            records = self._backend.load(ids[start : start + AT_ONCE])
            found += [record for record in records if record is not None]
        self._is_read = True
        return found

    def _opened(self) -> Any:
        listener = open_listener(self._backend)
        if isinstance(listener, WatchListener):
            return _Watching(self._backend, self._pending)
        for id in self._pending:
            listener.add(id)
        return listener

    def drop(self, id: str) -> None:
        if self._ears is not None:
            self._ears.drop(id)

    def close(self) -> None:
        if self._ears is None:
            return
        if isinstance(self._ears, _Watching):
            self._ears.close()
        else:
            self._ears.close(keep=True)


class Tally:
    """Which results of a set have ended, while the calls in them do."""

    def __init__(self, results: Sequence[Any]) -> None:
        self._results = results
        self._owners: dict[int, list[int]] = {}  # places of the results that a call, by its `id()`, is in
        self._left: list[int] = []
        self.calls: list[AsyncResult[Any]] = []
        self.ended: list[Any] = []
        """Those in which there is nothing to wait for."""
        for place, result in enumerate(results):
            left = 0
            for call in calls_of(result):
                if call._final is None and not call._ignored:
                    owners = self._owners.setdefault(id(call), [])
                    owners.append(place)
                    left += 1
                    if len(owners) == 1:
                        self.calls.append(call)
            self._left.append(left)
            if not left:
                self.ended.append(result)

    def end(self, call: AsyncResult[Any]) -> list[Any]:
        """The results that have ended with this call."""
        found = []
        for place in self._owners.pop(id(call), ()):
            self._left[place] -= 1
            if not self._left[place]:
                found.append(self._results[place])
        return found
