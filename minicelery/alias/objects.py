"""Objects and mappings: Celery's `utils.objects`, `utils.collections` and `utils.serialization`."""

from __future__ import annotations

import collections
import heapq
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any


class Bunch:
    """An object with the attributes it is given."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)


def mro_lookup(cls: type, attr: str, stop: Any = None, monkey_patched: Any = None) -> Any:
    """The class, of those that `cls` inherits from, that has an attribute of that name; None from `stop` on."""
    for kind in cls.__mro__:
        if kind in (stop or ()):
            value = vars(kind).get(attr)
            patched = getattr(value, "__module__", None) not in (monkey_patched or ())
            return kind if value is not None and monkey_patched and patched else None
        if attr in vars(kind):
            return kind
    return None


class getitem_property:  # noqa: N801 - Celery's name
    """An attribute that is a key of the object, or of a mapping in it: ``getitem_property("options.queue")``."""

    def __init__(self, keypath: str, doc: str | None = None) -> None:
        path, _, self.key = keypath.rpartition(".")
        self.path = path.split(".") if path else []
        self.__doc__ = doc

    def _mapping(self, obj: Any) -> Any:
        for key in self.path:
            obj = obj[key]
        return obj

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        return owner if obj is None else self._mapping(obj).get(self.key)

    def __set__(self, obj: Any, value: Any) -> None:
        self._mapping(obj)[self.key] = value


class AttributeDictMixin:
    """A mapping whose keys are attributes too."""

    def __getattr__(self, k: str) -> Any:
        try:
            return self[k]  # type: ignore[index]  # of whatever it is mixed into
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {k!r}") from None

    def __setattr__(self, k: str, value: Any) -> None:
        self[k] = value


class AttributeDict(dict[str, Any], AttributeDictMixin):
    """A dict whose keys are attributes too."""


class DictAttribute(MutableMapping[str, Any]):
    """An object's attributes as a mapping."""

    def __init__(self, obj: Any) -> None:
        object.__setattr__(self, "obj", obj)

    obj: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.obj, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.obj, name, value)

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self.obj, key)
        except AttributeError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self.obj, key, value)

    def __delitem__(self, key: str) -> None:
        delattr(self.obj, key)

    def __iter__(self) -> Iterator[str]:
        return iter(dir(self.obj))

    def __len__(self) -> int:
        return len(dir(self.obj))


def force_mapping(m: Any) -> Any:
    """A mapping itself, anything else by its attributes."""
    return m if isinstance(m, Mapping) else DictAttribute(m)


def lpmerge(L: Any, R: Mapping[Any, Any]) -> Any:  # noqa: N803 - Celery's names
    """The left mapping with those values of the right one that are not None."""
    L.update({key: value for key, value in R.items() if value is not None})
    return L


class ChainMap(collections.ChainMap[Any, Any]):
    """`collections.ChainMap`, with a default for what none of the mappings has by its attributes."""

    def add_defaults(self, d: Any) -> None:
        """Ask `d` last."""
        self.maps.append(force_mapping(d))


class LimitedSet:
    """A set of at most `maxlen` items, from which the oldest drop out, and those older than `expires` seconds."""

    def __init__(self, maxlen: int = 0, expires: float = 0, data: Any = None, minlen: int = 0) -> None:
        self.maxlen, self.expires, self.minlen = maxlen or 0, expires or 0, minlen or 0
        if (
            self.maxlen < 0
            or self.minlen < 0
            or self.expires < 0
            or (self.maxlen and self.minlen > self.maxlen)
        ):
            raise ValueError(f"LimitedSet: minlen={minlen}, maxlen={maxlen}, expires={expires} don't fit")
        self._added: dict[Any, float] = {}
        self._heap: list[tuple[float, int, Any]] = []
        self._number = itertools.count()
        if data is not None:
            self.update(data)

    def add(self, item: Any, now: float | None = None) -> None:
        """Add it, or note that it was seen again."""
        now = now or time.monotonic()
        self._added[item] = now
        heapq.heappush(self._heap, (now, next(self._number), item))
        if len(self._heap) > 2 * len(self._added) + 16:
            self._heap = [entry for entry in self._heap if self._added.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        if self.maxlen and len(self._added) > self.maxlen:
            self.purge(now)

    def update(self, other: Any) -> None:
        """Add all of another set, a mapping of items to their times, or any items."""
        given = other._added if isinstance(other, LimitedSet) else other
        for item in given:
            self.add(item, given[item] if isinstance(given, Mapping) else None)

    def discard(self, item: Any) -> None:
        """Drop it, if it is there."""
        self._added.pop(item, None)

    pop_value = discard

    def purge(self, now: float | None = None) -> None:
        """Drop what is too old, or too much."""
        now = now or time.monotonic()
        while self._heap and len(self._added) > self.minlen:
            at, _, item = self._heap[0]
            is_news = self._added.get(item) != at
            if not (
                is_news
                or (self.maxlen and len(self._added) > self.maxlen)
                or (self.expires and at < now - self.expires)
            ):
                return
            heapq.heappop(self._heap)
            if not is_news:
                del self._added[item]

    def pop(self, default: Any = None) -> Any:
        """Take the oldest item out."""
        while self._heap:
            at, _, item = heapq.heappop(self._heap)
            if self._added.get(item) == at:
                del self._added[item]
                return item
        return default

    def clear(self) -> None:
        """Drop all."""
        self._added.clear()
        self._heap.clear()

    def as_dict(self) -> dict[Any, float]:
        """The items and when they were added."""
        return dict(self._added)

    def __contains__(self, item: object) -> bool:
        return item in self._added

    def __len__(self) -> int:
        return len(self._added)

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(self._added, key=self._added.__getitem__))

    def __eq__(self, other: object) -> bool:
        return self._added == other._added if isinstance(other, LimitedSet) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return (
            f"<LimitedSet({len(self)}): maxlen={self.maxlen}, expires={self.expires}, minlen={self.minlen}>"
        )


_WORDS: Iterable[tuple[bool, str]] = ((True, "true yes on 1"), (False, "false no off 0"))
_TRUTH = {word: value for value, words in _WORDS for word in words.split()}


def strtobool(term: Any, table: Mapping[str, bool] | None = None) -> Any:
    """The truth of a word such as yes or off; what is no text is returned as it is.  Raises TypeError."""
    if not isinstance(term, str):
        return term
    try:
        return (table or _TRUTH)[term.lower()]
    except KeyError:
        raise TypeError(f"can't tell whether {term!r} is true or false") from None
