"""Small functions on functions and sequences: Celery's `utils.functional`, and kombu's."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

_MISSING = object()


def is_list(obj: Any, scalars: Any = (Mapping, str), iters: Any = (Iterable,)) -> bool:
    """Whether it can be walked over, and is neither text nor a mapping."""
    return isinstance(obj, iters) and not isinstance(obj, scalars or ())


def maybe_list(obj: Any, scalars: Any = (Mapping, str)) -> Any:
    """A list of it, unless it is one already, or None."""
    return obj if obj is None or is_list(obj, scalars) else [obj]


def noop(*args: Any, **kwargs: Any) -> None:
    """Nothing."""


def maybe(typ: Callable[[Any], Any], val: Any) -> Any:
    """``typ(val)``; None stays None."""
    return None if val is None else typ(val)


def first(predicate: Callable[[Any], Any] | None, it: Iterable[Any]) -> Any:
    """The first item that is accepted; without a predicate the first that is not None."""
    wanted = predicate or (lambda item: item is not None)
    return next((item for item in it if wanted(item)), None)


def firstmethod(method: str, on_call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that asks each of its first argument's items by that method, until one gives an answer."""

    def ask(it: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        for item in it:
            bound = getattr(maybe_evaluate(item), method, None)
            if bound is None:
                continue
            found = on_call(bound, *args, **kwargs) if on_call is not None else bound(*args, **kwargs)
            if found is not None:
                return found
        return None

    return ask


def chunks(it: Iterable[Any], n: int) -> Iterator[list[Any]]:
    """The items in lists of `n`; the last one may be shorter."""
    walk = iter(it)
    while part := list(itertools.islice(walk, n)):
        yield part


def padlist(container: Sequence[Any], size: int, default: Any = None) -> Iterator[Any]:
    """The first `size` items, with `default` in place of missing ones."""
    return itertools.islice(itertools.chain(container, itertools.repeat(default)), size)


def mattrgetter(*attrs: str) -> Callable[[Any], dict[str, Any]]:
    """A function that gives an object's attributes of these names, None for those it lacks."""
    return lambda obj: {attr: getattr(obj, attr, None) for attr in attrs}


def uniq(it: Iterable[Any]) -> Iterator[Any]:
    """The items, each at its first place only."""
    seen = set()
    for item in it:
        if item not in seen:
            seen.add(item)
            yield item


def dictfilter(d: Mapping[str, Any] | None = None, **kw: Any) -> dict[str, Any]:
    """The entries whose value is not None."""
    given = kw if d is None else ({**d, **kw} if kw else d)
    return {key: value for key, value in given.items() if value is not None}


class lazy:  # noqa: N801 - Celery's name
    """A call to make later, and each time it is asked for."""

    def __init__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._fun, self._args, self._kwargs = fun, args, kwargs

    def __call__(self) -> Any:
        return self.evaluate()

    def evaluate(self) -> Any:
        """What it returns now."""
        return self._fun(*self._args, **self._kwargs)

    def __str__(self) -> str:
        return str(self())

    def __repr__(self) -> str:
        return repr(self())

    def __eq__(self, other: object) -> bool:
        return bool(self() == other)

    __hash__ = object.__hash__


class mlazy(lazy):  # noqa: N801 - Celery's name
    """A call to make at the first time it is asked for, once."""

    _value: Any = _MISSING

    @property
    def evaluated(self) -> bool:
        """Whether it has been made."""
        return self._value is not _MISSING

    def evaluate(self) -> Any:
        """What it has returned."""
        if self._value is _MISSING:
            self._value = super().evaluate()
        return self._value


def maybe_evaluate(value: Any) -> Any:
    """What a lazy value stands for; any other itself."""
    return value.evaluate() if isinstance(value, lazy) else value


class _Again(list[Any]):
    """A list that is filled from an iterator as far as it is looked at."""

    def __init__(self, walk: Iterator[Any]) -> None:
        super().__init__()
        self._walk = walk

    def _upto(self, count: int | None) -> None:
        while count is None or super().__len__() < count:
            try:
                self.append(next(self._walk))
            except StopIteration:
                return

    def __iter__(self) -> Iterator[Any]:
        for index in itertools.count():
            self._upto(index + 1)
            if index >= super().__len__():
                return
            yield super().__getitem__(index)

    def __getitem__(self, index: Any) -> Any:
        self._upto(index + 1 if isinstance(index, int) and index >= 0 else None)
        return super().__getitem__(index)

    def __len__(self) -> int:
        self._upto(None)
        return super().__len__()

    def __bool__(self) -> bool:
        self._upto(1)
        return super().__len__() > 0

    def __eq__(self, other: object) -> bool:
        self._upto(None)
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, item: object) -> bool:
        return any(item == one for one in self)

    def __repr__(self) -> str:
        self._upto(None)
        return super().__repr__()

    def __reduce__(self) -> Any:
        return list, (list(self),)


def regen(it: Any) -> Any:
    """Something that can be walked over again and again; lists and tuples are returned as they are."""
    return it if isinstance(it, (list, tuple)) else _Again(iter(it))


class LRUCache(OrderedDict[Any, Any]):
    """A mapping that forgets what was used longest ago when it has more than `limit` entries."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.mutex = threading.RLock()

    def __getitem__(self, key: Hashable) -> Any:
        with self.mutex:
            value = super().__getitem__(key)
            self.move_to_end(key)
            return value

    def __setitem__(self, key: Hashable, value: Any) -> None:
        with self.mutex:
            super().__setitem__(key, value)
            self.move_to_end(key)
            while self.limit and len(self) > self.limit:
                del self[next(iter(self))]

    def incr(self, key: Hashable, delta: int = 1) -> int:
        """Add to a number that is kept."""
        with self.mutex:
            value = self[key] = int(self.pop(key)) + delta
            return value

    def __reduce__(self) -> Any:
        return type(self), (self.limit,), None, None, iter(self.items())


def memoize(
    maxsize: int | None = None,
    keyfun: Callable[..., Any] | None = None,
    Cache: Any = LRUCache,  # noqa: N803 - Celery's name
) -> Any:
    """A decorator: a function is called once for the same arguments."""

    def decorate(fun: Callable[..., Any]) -> Callable[..., Any]:
        cache = Cache(limit=maxsize)
        mutex = threading.Lock()

        @functools.wraps(fun)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            key = keyfun(args, kwargs) if keyfun is not None else (*args, _MISSING, *sorted(kwargs.items()))
            with mutex:
                if (found := cache.get(key, _MISSING)) is not _MISSING:
                    own.hits += 1
                    return found[0]
            value = fun(*args, **kwargs)
            with mutex:
                own.misses += 1
                cache[key] = (value,)
            return value

        def clear() -> None:
            cache.clear()
            own.hits = own.misses = 0

        own: Any = remembered
        own.hits, own.misses, own.clear, own.original_func = 0, 0, clear, fun
        return remembered

    return decorate


def fun_accepts_kwargs(fun: Callable[..., Any]) -> bool:
    """Whether it takes any keyword."""
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(fun).parameters.values())


class cached_property(functools.cached_property[Any]):  # noqa: N801 - kombu's name
    """A property that is found once, and can be set and deleted."""

    def __init__(self, fget: Callable[[Any], Any], fset: Any = None, fdel: Any = None) -> None:
        super().__init__(fget)
        self._set, self._deleted = fset, fdel

    def setter(self, fset: Callable[[Any, Any], Any]) -> cached_property:
        """The same with a function that says what is kept when it is set."""
        return self._with(fset, self._deleted)

    def deleter(self, fdel: Callable[[Any, Any], Any]) -> cached_property:
        """The same with a function that is told when it is deleted."""
        return self._with(self._set, fdel)

    def _with(self, fset: Any, fdel: Any) -> cached_property:
        made = type(self)(self.func, fset, fdel)
        made.attrname = self.attrname
        return made

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        if obj is not None and self.attrname in vars(obj):
            return vars(obj)[self.attrname]
        return super().__get__(obj, owner)

    def __set__(self, obj: Any, value: Any) -> None:
        vars(obj)[str(self.attrname)] = self._set(obj, value) if self._set is not None else value

    def __delete__(self, obj: Any) -> None:
        value = vars(obj).pop(str(self.attrname), _MISSING)
        if self._deleted is not None and value is not _MISSING:
            self._deleted(obj, value)
