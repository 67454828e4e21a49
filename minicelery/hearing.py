"""Results that are awaited: one thread hears of all of them, for every event loop.

It listens for whatever is awaited of one backend, and ends when nothing is any more.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from minicelery import record, states
from minicelery.awaiting import in_thread
from minicelery.broker import Backend
from minicelery.broker.listening import open_listener
from minicelery.exceptions import BackendUnavailable, TimeoutError
from minicelery.forking import call_in_forked_children
from minicelery.lineage import read_all
from minicelery.message import Record
from minicelery.waiting import late

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.result import AsyncResult

Meta = dict[str, Any]

LINGER = 1.0
"""Seconds that the thread stays when nothing is awaited: to await one after another is usual."""
OUTAGE = 60.0
"""Seconds without the store after which who waits is told."""
_HANDED_OVER = 100
"""Documents that are read before their event loops are told."""

_lock = threading.Lock()
_watchers: dict[int, Watcher] = {}  # by their backend's id; a watcher keeps its backend


def _begin_anew() -> None:
    """A forked child has none of its parent's threads."""
    global _lock, _watchers
    _lock = threading.Lock()
    _watchers = {}


call_in_forked_children(_begin_anew)


class Documents:
    """The documents of results, one after the other, for one coroutine: ``async with``.

    They end with the final one of the last result.
    """

    __slots__ = ("_end", "_hearings", "_inbox", "_interval", "_is_read", "_late", "_loop", "_pending")

    def __init__(
        self, results: Sequence[AsyncResult[Any]], timeout: float | None, interval: float | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = None if timeout is None else self._loop.time() + max(0.0, timeout)
        self._late = partial(late, results, timeout=timeout)
        self._is_read = False
        self._interval = interval
        self._pending: dict[str, list[AsyncResult[Any]]] = {}
        for result in results:
            if result._final is None and not result._ignored:
                self._pending.setdefault(result.id, []).append(result)
        self._inbox = Inbox(self._loop, len(self._pending))
        self._hearings: list[Hearing] | None = None

    async def __aenter__(self) -> Documents:
        if not self._pending or (self._end is not None and self._end <= self._loop.time()):
            return self
        result = self._any()
        app = result.app
        backend: Any = result._backend or app._backend or await in_thread(app, lambda: result.backend)
        decode = partial(record.read, conf=app.conf)
        self._hearings = await hear(app, backend, list(self._pending), decode, self._inbox)
        return self

    def _any(self) -> AsyncResult[Any]:
        return next(iter(self._pending.values()))[0]

    async def __aexit__(self, *_: object) -> None:
        if self._hearings:
            self._hearings[0].watcher.leave(self._hearings)

    async def next(self) -> tuple[Meta | None, list[AsyncResult[Any]]]:
        """The next one, and the results that are final with it; None after each `interval` seconds.

        Raises TimeoutError when the time is over.
        """
        end = self._end
        if self._hearings is None:  # there is no time to wait
            return await self._read_once()
        until = end
        if self._interval is not None:
            now = self._loop.time()
            until = now + self._interval if end is None else min(end, now + self._interval)
        if (heard := await self._inbox.next(until)) is not None:
            id, meta = heard
            is_final = meta["status"] in states.ENDED
            calls = self._pending.pop(id, []) if is_final else []
            for call in calls:
                call._keep(meta)
            return meta, calls
        if end is not None and self._loop.time() >= end:
            raise TimeoutError(self._late(len(self._pending)))
        return None, []

    async def _read_once(self) -> tuple[Meta | None, list[AsyncResult[Any]]]:
        ended: list[AsyncResult[Any]] = []
        if not self._is_read:
            self._is_read = True
            calls = [call for calls in self._pending.values() for call in calls]
            await in_thread(self._any().app, partial(read_all, calls), BackendUnavailable)
            ended = [call for call in calls if call._final is not None]
        if not ended:
            raise TimeoutError(self._late(len(self._pending)))
        for call in ended:
            self._pending.pop(call.id, None)
        return ended[0]._final, ended


class Place(Protocol):
    """Where news are handed over: an event loop, or a thread."""

    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> object:
        """Have it called there, soon.  Raises RuntimeError where nothing is called any more."""


class Ear(Protocol):
    """Who is told."""

    @property
    def loop(self) -> Place: ...

    def put(self, id: str, news: Meta | Exception) -> None:
        """In its place: `news` of `id` have come."""


class Inbox:
    """What one coroutine hears of some tasks: each new document, decoded, in order."""

    __slots__ = ("_heard", "_loop", "_most", "_waiting")

    KEPT = 1000  # documents nobody has asked for yet; of more, the oldest are forgotten

    def __init__(self, loop: asyncio.AbstractEventLoop, tasks: int) -> None:
        self._loop = loop
        self._heard: deque[tuple[str, Meta | Exception]] = deque()
        self._most = self.KEPT + tasks
        self._waiting: asyncio.Future[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def put(self, id: str, news: Meta | Exception) -> None:
        """See `Ear.put`."""
        self._heard.append((id, news))
        if len(self._heard) > self._most:
            self._forget_one()
        self._wake()

    def _forget_one(self) -> None:
        # Each task has one final state, so that among so many there is one that is not.
        for at, (_, news) in enumerate(self._heard):
            if not isinstance(news, Exception) and news["status"] not in states.ENDED:
                del self._heard[at]
                return

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self, until: float | None) -> tuple[str, Meta] | None:
        """The next document and its id, or None when it is `until` by the event loop's clock.

        Raises what kept it from being heard.
        """
        while not self._heard:
            if until is not None and self._loop.time() >= until:
                return None
            self._waiting = self._loop.create_future()
            timer = None if until is None else self._loop.call_at(until, self._wake)
            try:
                await self._waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        id, news = self._heard.popleft()
        if isinstance(news, Exception):
            raise news
        return id, news


class Hearing:
    """That one task is listened for, on behalf of an ear."""

    __slots__ = ("began", "decode", "ear", "id", "watcher")

    def __init__(self, id: str, decode: Callable[[bytes], Meta], ear: Ear, watcher: Watcher) -> None:
        self.id = id
        self.decode = decode
        self.ear = ear
        self.watcher = watcher
        self.began = time.monotonic()


async def hear(
    app: Celery, backend: Backend, ids: Sequence[str], decode: Callable[[bytes], Meta], ear: Ear
) -> list[Hearing]:
    """Hearings of the tasks, from the documents there are on.  To be left."""
    watcher, hearings = _joined(app, backend, ids, decode, ear)
    if watcher.listener.overlooks:
        try:
            await in_thread(app, partial(watcher.look, ids), BackendUnavailable)
        except BackendUnavailable:
            pass  # the watcher will be told as well, and goes on
        except BaseException:
            watcher.leave(hearings)
            raise
    watcher.start()
    return hearings


def hear_from_thread(
    app: Celery, backend: Backend, ids: Sequence[str], decode: Callable[[bytes], Meta], ear: Ear
) -> list[Hearing]:
    """`hear`, without an event loop: it may take a trip."""
    watcher, hearings = _joined(app, backend, ids, decode, ear)
    if watcher.listener.overlooks:
        try:
            watcher.look(ids)
        except BackendUnavailable:
            pass  # as above
        except BaseException:
            watcher.leave(hearings)
            raise
    watcher.start()
    return hearings


def _joined(
    app: Celery, backend: Backend, ids: Sequence[str], decode: Callable[[bytes], Meta], ear: Ear
) -> tuple[Watcher, list[Hearing]]:
    with _lock:
        watcher = _watchers.get(id(backend))
        if watcher is None:
            watcher = _watchers[id(backend)] = Watcher(app, backend)
        hearings = [Hearing(task_id, decode, ear, watcher) for task_id in ids]
        for hearing in hearings:
            watcher.join(hearing)
    return watcher, hearings


class Watcher:
    """The thread that listens for every result a process awaits of one backend.

    Without anything to listen for it stays a little, as awaiting one after another is usual.
    """

    def __init__(self, app: Celery, backend: Backend) -> None:
        self._app = weakref.ref(app)  # which may have closed the backend before its thread has ended
        self.backend = backend
        self.listener = open_listener(backend)
        # The following are read and written under `_lock`.
        self._hearings: dict[str, list[Hearing]] = {}
        self._seen: dict[str, bytes] = {}  # the latest document of each id above
        self._again: list[tuple[Hearing, bytes]] = []  # who joined when there was one already
        self._running = False
        self._called = threading.Event()  # there is something to listen for
        self._outage_began: float | None = None  # its thread's own

    # -- for who awaits --------------------------------------------------------------------

    def join(self, hearing: Hearing) -> None:
        """Listen for the hearing's id from now on.  Under the lock."""
        hearings = self._hearings.setdefault(hearing.id, [])
        hearings.append(hearing)
        if (document := self._seen.get(hearing.id)) is not None:
            self._again.append((hearing, document))
        self.listener.add(hearing.id)
        self._called.set()

    def leave(self, hearings: Iterable[Hearing]) -> None:
        """The hearings are over; they may have been already."""
        with _lock:
            for hearing in hearings:
                self._remove(hearing)
            if self._hearings:
                return
            if not self._running:
                self._retire()
            else:
                self.listener.wake()

    def _retire(self) -> None:
        if _watchers.get(id(self.backend)) is self:
            del _watchers[id(self.backend)]

    def _remove(self, hearing: Hearing) -> None:
        hearings = self._hearings.get(hearing.id)
        if hearings is None or hearing not in hearings:
            return
        hearings.remove(hearing)
        if not hearings:
            del self._hearings[hearing.id]
            self._seen.pop(hearing.id, None)
            self.listener.drop(hearing.id)

    def look(self, ids: Sequence[str]) -> None:
        """Read what is stored of `ids` already."""
        self._repeat()
        self._hand_out([found for found in self.backend.load(ids) if found is not None])

    def start(self) -> None:
        """See that the thread runs, if there is anything to listen for."""
        with _lock:
            if self._running or not self._hearings:
                return
            # No exit waits for it.
            threading.Thread(target=self._run, name="minicelery-results", daemon=True).start()
            self._running = True

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._is_wanted():
                self._listen()
        finally:
            app = self._app()
            self.listener.close(keep=app is not None and app._backend is self.backend)

    def _is_wanted(self) -> bool:
        end = time.monotonic() + LINGER
        while True:
            with _lock:
                if self._hearings:
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    self._retire()
                    return False
                self._called.clear()
            # Meanwhile nothing is asked of the backend: it may have been closed.
            self._called.wait(left)

    def _listen(self) -> None:
        try:
            self._repeat()
            self._hand_out(self.listener.wait(self._seen, LINGER))
            self._outage_began = None
        except BackendUnavailable as error:
            now = time.monotonic()
            self._outage_began = self._outage_began or now
            with _lock:
                waiting = [hearing for hearings in self._hearings.values() for hearing in hearings]
            began = self._outage_began
            late = [hearing for hearing in waiting if now - max(began, hearing.began) > OUTAGE]
            self._tell([(hearing, BackendUnavailable(str(error))) for hearing in late])
            time.sleep(0.2)
        except Exception as error:
            self._blame(error)

    def _blame(self, error: Exception) -> None:
        """Tell who asks for what can't be heard; all, if nobody in particular is to blame."""
        with _lock:
            waiting = {id: list(hearings) for id, hearings in self._hearings.items()}
        refused: list[tuple[Hearing, Meta | Exception]] = []
        for id, hearings in waiting.items():
            try:
                self.backend.load([id])
            except BackendUnavailable:
                return
            except Exception as own:
                refused += [(hearing, own) for hearing in hearings]
        self._tell(refused or [(hearing, error) for hearings in waiting.values() for hearing in hearings])
        time.sleep(0.05)

    def _repeat(self) -> None:
        """Tell those who joined late what the others know."""
        with _lock:
            again, self._again = self._again, []
        self._tell([(hearing, self._read(hearing, document)) for hearing, document in again])

    def _hand_out(self, records: Iterable[Record]) -> None:
        read: list[tuple[Hearing, Meta | Exception]] = []
        for found in records:
            with _lock:
                hearings = list(self._hearings.get(found.id, ()))
                if not hearings or self._seen.get(found.id) == found.document:
                    continue
                self._seen[found.id] = found.document
            read += [(hearing, self._read(hearing, found.document)) for hearing in hearings]
            if len(read) >= _HANDED_OVER:
                self._tell(read)
                read = []
        self._tell(read)

    def _read(self, hearing: Hearing, document: bytes) -> Meta | Exception:
        try:
            return hearing.decode(document)
        except Exception as error:  # of one document: its reader's affair
            return error

    def _tell(self, news: list[tuple[Hearing, Meta | Exception]]) -> None:
        """Hand the news to their event loops; for whom it is the last, the hearing is over."""
        by_loop: dict[Place, list[tuple[Hearing, Meta | Exception]]] = {}
        with _lock:
            for hearing, found in news:
                by_loop.setdefault(hearing.ear.loop, []).append((hearing, found))
                if isinstance(found, Exception) or found["status"] in states.ENDED:
                    self._remove(hearing)
        for loop, share in by_loop.items():
            try:
                loop.call_soon_threadsafe(_take_all, share)
            except RuntimeError:  # it is closed
                self.leave([hearing for hearing, _ in share])


def _take_all(news: list[tuple[Hearing, Meta | Exception]]) -> None:
    for hearing, found in news:
        hearing.ear.put(hearing.id, found)
