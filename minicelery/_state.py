"""Which app and which request are current, and the tasks shared by every app."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.request import Request

T = TypeVar("T")

request_var: ContextVar[Request | None] = ContextVar("minicelery_request", default=None)
"""The attempt that runs in this thread or asyncio task; None outside of tasks."""


class _Apps(threading.local):
    current: Celery | None = None  # of this thread


_apps = _Apps()
_default: Celery | None = None  # for threads that have none of their own
_default_is_chosen = False
_fallback: Celery | None = None

shared: list[Callable[[Celery], Any]] = []
"""What `shared_task` has declared: each entry registers its task with the app it is given."""
finalized: list[Any] = []  # weak references to the apps that later shared tasks must reach too


def set_current(app: Celery) -> None:
    """Make `app` the current one of this thread, and the default of threads without one."""
    global _default
    _apps.current = app
    if not _default_is_chosen:
        _default = app


def set_default(app: Celery | None) -> None:
    """Make `app` the one that threads without a current app use."""
    global _default, _default_is_chosen
    _default, _default_is_chosen = app, app is not None


def is_current(app: Celery) -> bool:
    """Whether `app` is the current one of this thread."""
    return _apps.current is app


def chosen_default() -> Celery | None:
    """The app that `set_default` was called with."""
    return _default if _default_is_chosen else None


def is_fallback(app: Celery) -> bool:
    """Whether `app` is the nameless one that was made as there was no other."""
    return _fallback is app


def unset(app: Celery) -> None:
    """Forget `app` where it is current or default: it has been closed."""
    global _default, _default_is_chosen
    if _apps.current is app:
        _apps.current = None
    if _default is app:
        _default, _default_is_chosen = None, False


def get_current_app() -> Celery:
    """The current app; a nameless one is made where there is none."""
    global _default, _fallback
    app = _apps.current or _default
    if app is None:
        from minicelery.app import Celery

        app = _default = _fallback = Celery("default", set_as_current=False)
    return app


class Proxy(Generic[T]):
    """Stands for whatever `find` returns at the moment it is used."""

    __slots__ = ("__weakref__", "_find")

    def __init__(
        self, find: Callable[..., Any], args: Any = None, kwargs: Any = None, name: str | None = None
    ) -> None:
        if args or kwargs:
            find = functools.partial(find, *(args or ()), **(kwargs or {}))
        object.__setattr__(self, "_find", find)

    def _get_current_object(self) -> T:
        found: T = self._find()
        return found

    @property  # type: ignore[misc]  # isinstance(proxy, Celery) holds
    def __class__(self) -> Any:
        return self._find().__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._find(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._find(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._find()(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._find())

    def __bool__(self) -> bool:
        return bool(self._find())

    def __eq__(self, other: object) -> bool:
        return bool(self._find() == (other._find() if type(other) is Proxy else other))

    def __hash__(self) -> int:
        return hash(self._find())

    def __dir__(self) -> list[str]:
        return dir(self._find())

    def __reduce__(self) -> Any:
        return self._find().__reduce__()


def _current_task() -> Any:
    request = request_var.get()
    return None if request is None else request.task_object


current_app: Celery = Proxy(get_current_app)  # type: ignore[assignment]
"""The current app, whichever that is when it is used."""
current_task: Any = Proxy(_current_task)
"""The task that runs in this thread; None outside of tasks."""
