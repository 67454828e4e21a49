"""Fixtures for pytest, by the names of Celery's plugin, and more; `pytest --fixtures` lists them.

`pytest_entry` loads it with pytest wherever minicelery is installed, so nothing is imported
here before a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from minicelery.contrib.testing import Outbox, TestApp
    from minicelery.contrib.testing.worker import TestWorker


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers", "celery(**overrides): settings of the app that the fixture celery_app makes for this test"
    )


# -- to be overridden --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def celery_config() -> Mapping[str, Any]:
    """Settings of the test apps; override it to have your own."""
    return {}


@pytest.fixture(scope="session")
def celery_parameters() -> Mapping[str, Any]:
    """Arguments of the constructor of the test apps, such as `task_cls`; override it."""
    return {}


@pytest.fixture(scope="session")
def celery_worker_parameters() -> Mapping[str, Any]:
    """Arguments of `start_worker`, such as `queues` or `shutdown_timeout`; override it."""
    return {}


@pytest.fixture(scope="session")
def celery_worker_pool() -> str:
    """The pool of the test workers: solo, threads, asyncio or prefork; override it."""
    return "solo"


@pytest.fixture(scope="session")
def celery_includes() -> Sequence[str]:
    """Modules that are imported before a test worker starts; override it."""
    return ()


@pytest.fixture(scope="session")
def celery_class_tasks() -> Sequence[Any]:
    """Class-based tasks that are registered before a test worker starts; override it."""
    return ()


@pytest.fixture(scope="session")
def celery_enable_logging() -> bool:
    """Accepted as in Celery; logging is pytest's own in any case."""
    return False


@pytest.fixture(scope="session")
def use_celery_app_trap() -> bool:
    """Whether using the current app is an error; override it."""
    return False


# -- apps and workers --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def celery_session_app(
    request: pytest.FixtureRequest,
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[TestApp]:
    """An app in memory for all tests of the session; the current one."""
    with _made(request, celery_config, celery_parameters, celery_enable_logging, use_celery_app_trap) as app:
        if not use_celery_app_trap:
            app.set_default()
            app.set_current()
        yield app


@pytest.fixture
def celery_app(
    request: pytest.FixtureRequest,
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[TestApp]:
    """An app in memory for this test; the mark `celery` changes its settings."""
    with _made(request, celery_config, celery_parameters, celery_enable_logging, use_celery_app_trap) as app:
        yield app


@pytest.fixture(scope="session")
def celery_session_worker(
    celery_session_app: TestApp,
    celery_includes: Sequence[str],
    celery_class_tasks: Sequence[Any],
    celery_worker_pool: str,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[TestWorker | None]:
    """A worker of `celery_session_app` for all tests of the session."""
    yield from _worked(
        celery_session_app, celery_includes, celery_class_tasks, celery_worker_pool, celery_worker_parameters
    )


@pytest.fixture
def celery_worker(
    celery_app: TestApp,
    celery_includes: Sequence[str],
    celery_class_tasks: Sequence[Any],
    celery_worker_pool: str,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[TestWorker | None]:
    """A worker of `celery_app` for this test."""
    yield from _worked(
        celery_app, celery_includes, celery_class_tasks, celery_worker_pool, celery_worker_parameters
    )


@pytest.fixture
def depends_on_current_app(celery_app: TestApp) -> None:
    """Makes `celery_app` the current app."""
    celery_app.set_current()


# -- not in Celery -----------------------------------------------------------------------------


@pytest.fixture
def celery_outbox() -> Iterator[Outbox]:
    """What this test sends, in order: `celery_outbox.assert_enqueued(task, args)`."""
    import contextlib

    from minicelery.contrib.testing import Outbox

    with contextlib.closing(Outbox()) as outbox:
        yield outbox


def _made(
    request: pytest.FixtureRequest,
    config: Mapping[str, Any],
    parameters: Mapping[str, Any] | None,
    enable_logging: bool,
    use_trap: bool,
) -> AbstractContextManager[TestApp]:
    from contextlib import contextmanager

    from minicelery.contrib.testing.app import TestApp, setup_default_app

    @contextmanager
    def made() -> Iterator[TestApp]:
        mark = request.node.get_closest_marker("celery")
        settings = {**config, **(mark.kwargs if mark else {})}
        app = TestApp(
            config=settings, enable_logging=enable_logging, **{"set_as_current": False, **(parameters or {})}
        )
        with setup_default_app(app, use_trap=use_trap):
            yield app

    return made()


def _worked(
    app: TestApp, includes: Sequence[str], classes: Sequence[Any], pool: str, parameters: Mapping[str, Any]
) -> Iterator[TestWorker | None]:
    import importlib

    from minicelery.contrib.testing.worker import start_worker

    if os.environ.get("NO_WORKER"):
        yield None
        return
    for module in includes:
        importlib.import_module(module)
    for task in classes:
        app.register_task(task)
    with start_worker(app, **{"pool": pool, **parameters}) as worker:
        yield worker
