"""Apps for tests: one of the test's own, or the program's, with queues and results in memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from minicelery import _state
from minicelery.app import Celery
from minicelery.broker.memory.store import _stores
from minicelery.message import new_id

DEFAULT_TEST_CONFIG: Mapping[str, Any] = {
    "accept_content": {"json"},
    "enable_utc": True,
    "timezone": "UTC",
    "broker_url": "memory://",
    "result_backend": "cache+memory://",
}
"""What a TestApp is configured with, unless it is told otherwise."""

_NAMELESS = ("memory", "memory://", "cache", "cache+memory", "cache+memory://")


class TestApp(Celery):
    """An app with queues and results in memory that no other app shares.

    `config` are settings; arguments that `Celery` has not known are refused as there.
    """

    __test__ = False  # no class of tests, whatever its name

    def __init__(
        self,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        enable_logging: bool = False,
        set_as_current: bool = False,
        log: Any = None,
        backend: str | None = None,
        broker: str | None = None,
        **options: Any,
    ) -> None:
        settings = {**DEFAULT_TEST_CONFIG, **(config or {})}
        given = {"broker_url": broker, "result_backend": backend}
        settings.update((key, url) for key, url in given.items() if url is not None)
        self.store_name = new_id()
        for key in ("broker_url", "result_backend"):
            if settings.get(key) in _NAMELESS:
                settings[key] = f"memory://{self.store_name}"
        super().__init__(name or "celery.tests", set_as_current=set_as_current, **options)
        self.conf.update(settings)
        weakref.finalize(self, _stores.pop, self.store_name, None)


@contextmanager
def in_memory(app: Celery) -> Iterator[Celery]:
    """Have an app of the program's own keep queues and results in memory, within a ``with`` statement.

    Its other settings stay, but for `task_always_eager`, which is off: calls go to the queue.
    """
    name, conf = new_id(), app.conf
    meanwhile = {
        "broker_url": f"memory://{name}",
        "result_backend": f"memory://{name}",
        "task_always_eager": False,
    }
    before = {key: conf[key] for key in meanwhile}
    _close(app)
    conf.update(meanwhile)
    try:
        yield app
    finally:
        _close(app)
        conf.update(before)
        _stores.pop(name, None)


def _close(app: Celery) -> None:
    """Close its connections; it stays current and default where it is."""
    with _kept():
        app.close()


@contextmanager
def _kept() -> Iterator[None]:
    current, default, chosen = _state._apps.current, _state._default, _state._default_is_chosen
    try:
        yield
    finally:
        _state._apps.current, _state._default, _state._default_is_chosen = current, default, chosen


class Trap:
    """Stands for the current app, and raises RuntimeError where that is used."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") or name in (
            "_is_coroutine",
            "_is_coroutine_mark",
        ):  # asked for by inspect and mock
            raise AttributeError(name)
        raise RuntimeError(
            f"Test depends on current_app: something asks it for {name!r}; "
            "pass the app on, or use the fixture depends_on_current_app"
        )


@contextmanager
def setup_default_app(app: Celery, use_trap: bool = False) -> Iterator[None]:
    """Leave which app is current, and what is shared, as it was; closes `app` at the end."""
    shared, known = list(_state.shared), list(_state.finalized)
    with _kept():
        if use_trap:
            trap: Any = Trap()
            _state._apps.current, _state._default, _state._default_is_chosen = trap, trap, True
        try:
            yield
        finally:
            app.close()
            _state.shared[:], _state.finalized[:] = shared, known
            if isinstance(app, TestApp):
                _stores.pop(app.store_name, None)
