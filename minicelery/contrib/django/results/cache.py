"""Results in one of the project's caches: `result_backend="django-cache"`.

What a cache forgets is gone: it is for results that somebody waits for, or can do without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache

from minicelery.broker.listening import Listener
from minicelery.broker.polling import PollingListener, watch
from minicelery.exceptions import BackendUnavailable, ImproperlyConfigured
from minicelery.message import Message, Record
from minicelery.states import SUCCESS

PREFIX = "celery-task-meta-"


class CacheBackend:
    """The result store; see `minicelery.broker.Backend`.  It does not count, so it has no chords."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._name = options.get("cache") or "default"
        self.url = f"django-cache ({self._name})"
        known = sorted(settings.CACHES)
        if self._name not in known:
            raise ImproperlyConfigured(
                f"cache_backend={self._name!r}: no such cache in CACHES, which has {', '.join(known)}"
            )
        if isinstance(self._cache, (LocMemCache, DummyCache)):
            raise ImproperlyConfigured(
                f"result_backend='django-cache': the cache {self._name!r} is a {type(self._cache).__name__}, which "
                "other processes can't read; name another one by CELERY_CACHE_BACKEND, or set CACHES"
            )

    @property
    def _cache(self) -> Any:
        return caches[self._name]  # each thread has its own

    def store(self, records: Sequence[Record]) -> list[Message]:
        try:
            known = self._cache.get_many([_key(record.id) for record in records]) if records else {}
            for record in records:
                key = _key(record.id)
                if known.get(key, ("",))[0] != SUCCESS:
                    known[key] = (record.state, record.document)
                    self._cache.set(key, known[key], record.ttl)
        except Exception as error:  # each cache has exceptions of its own
            raise self._unavailable(error) from error
        return []

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        try:
            found = self._cache.get_many([_key(id) for id in ids]) if ids else {}
        except Exception as error:
            raise self._unavailable(error) from error
        rows = [found.get(_key(id)) for id in ids]
        return [
            None if row is None else Record(id, row[1], row[0]) for id, row in zip(ids, rows, strict=True)
        ]

    def looking(self) -> contextlib.AbstractContextManager[None]:
        """See `polling.Looker`."""
        return contextlib.nullcontext()

    def news(self, ids: Collection[str], seen: Mapping[str, bytes]) -> list[Record]:
        """See `polling.Looker`."""
        return [one for one in self.load(list(ids)) if one is not None and seen.get(one.id) != one.document]

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        return watch(self, ids, seen, wait)

    def listener(self) -> Listener:
        """Hears of many results in one thread."""
        return PollingListener(self)

    def forget(self, ids: Sequence[str]) -> None:
        try:
            if ids:
                self._cache.delete_many([_key(id) for id in ids])
        except Exception as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        self._cache.close()

    def _unavailable(self, error: Exception) -> BackendUnavailable:
        return BackendUnavailable(
            f"the results in the cache {self._name!r} can't be reached: {type(error).__name__}: {error}"
        )


def _key(id: str) -> str:
    """A key that every cache takes: memcached has no spaces, and 250 characters at most."""
    if id.isascii() and id.isprintable() and " " not in id and len(id) <= 150:
        return PREFIX + id
    import hashlib

    return PREFIX + hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()
