"""Flask: an app that reads Flask's configuration and runs its tasks in the application context."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minicelery.app import Celery
from minicelery.broker import Broker
from minicelery.exceptions import ImproperlyConfigured
from minicelery.registry import TaskRegistry
from minicelery.task import Task

if TYPE_CHECKING:
    import click
    from flask import Flask

    from minicelery.worker.spawn import Origin

EXTENSION = "celery"
"""The key in `flask_app.extensions`, where ``minicelery -A`` looks too; as Flask documents it."""


class FlaskTask(Task[..., Any]):
    """A task whose function runs in an application context of its own; all of a Minicelery's are."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function in a new application context; of `async def` tasks give the coroutine."""
        flask_app = _flask_app_of(self)
        if inspect.iscoroutinefunction(self.run):
            return _awaited(flask_app, super().__call__, args, kwargs)
        with flask_app.app_context():
            return super().__call__(*args, **kwargs)


async def _awaited(flask_app: Flask, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    # The context is pushed where the coroutine runs: in the asyncio task that nobody shares.
    with flask_app.app_context():
        return await call(*args, **kwargs)


def _flask_app_of(task: Task[..., Any]) -> Flask:
    app = task.app
    flask_app = app.flask_app if isinstance(app, Minicelery) else None
    if flask_app is None:
        raise RuntimeError(
            f"{task.name} belongs to no Flask app yet: call init_app(flask_app) of its Minicelery first"
        )
    return flask_app


class _FlaskTasks(TaskRegistry):
    """Has tasks with a base of their own run in the application context like all others."""

    def __setitem__(self, name: str, task: Task[..., Any]) -> None:
        kind = type(task)  # a class of this task alone
        if not issubclass(kind, FlaskTask):
            kind.__bases__ = (FlaskTask, *kind.__bases__)
        super().__setitem__(name, task)


class Minicelery(Celery):
    """A Celery app of a Flask app: `Minicelery(app)`, or `init_app(app)` in a factory.

    Settings are those of ``app.config["CELERY"]``, a dict, and then ``CELERY_…`` keys; arguments
    of the constructor win over both.  It is found as ``app.extensions["celery"]``.
    """

    flask_app: Flask | None = None
    """The Flask app whose context tasks run in."""
    spawn_origin: Origin | None = None
    """How a worker's child that was not forked comes to this app, where ``flask celery`` knows it."""

    def __init__(self, app: Flask | str | None = None, **options: Any) -> None:
        if isinstance(app, str):  # as Celery's own: a name
            options.setdefault("main", app)
            app = None
        options.setdefault("tasks", _FlaskTasks())
        super().__init__(**options)
        self._from_flask: set[str] = set()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> Minicelery:
        """Take the settings of `app` and run tasks in its context; returns itself.

        Called again, for another Flask app, it forgets the one before, as tests with a new
        Flask app each need it.  Raises ImproperlyConfigured for settings that can't work,
        RuntimeError where `app` has another Celery app already.
        """
        flask_app = _object_of(app)
        other = flask_app.extensions.get(EXTENSION)
        if other is not None and other is not self:
            raise RuntimeError(
                f"the Flask app {flask_app.name!r} has a Celery app already, {other!r}; "
                "make one Minicelery and call its init_app once for each Flask app"
            )
        if self.flask_app is not None:
            self._leave()
        if self.main is None:
            self.main = flask_app.name
        self._read(settings_of(flask_app.config))
        self.flask_app = flask_app
        flask_app.extensions[EXTENSION] = self
        flask_app.cli.add_command(_command(self))
        self.set_default()
        return self

    def _read(self, settings: Mapping[str, Any]) -> None:
        before = set(self.conf._explicit)
        self.config_from_object(settings, force=True)
        self._from_flask = self.conf._explicit - before

    def _leave(self) -> None:
        """Forget the Flask app of before, its settings and its servers."""
        self.close()
        self._sources.pop()
        for name in self._from_flask:
            del self.conf[name]
        self.flask_app = None

    @property
    def broker(self) -> Broker:
        """The broker that `broker_url` names; connects when it is used."""
        if self.flask_app is None and not self.conf.value_set_for("broker_url"):
            raise ImproperlyConfigured(
                "this Minicelery belongs to no Flask app, so its broker is not known; "
                "call init_app(app) in the factory before anything is sent"
            )
        return super().broker

    @property
    def Task(self) -> type[Task[..., Any]]:  # noqa: N802 - Celery's name
        """The base of this app's tasks; assign a subclass of it to change all of them."""
        base = super().Task
        if not issubclass(base, FlaskTask):
            base = self._base = type(
                base.__name__, (FlaskTask, base), {"__module__": base.__module__, "abstract": True}
            )
        return base

    @Task.setter
    def Task(self, base: type[Task[..., Any]]) -> None:  # noqa: N802
        Celery.Task.fset(self, base)  # type: ignore[attr-defined]  # of the property


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a Flask configuration says for Celery, for `Celery.config_from_object`.

    Raises ImproperlyConfigured where `config["CELERY"]` is no mapping.
    """
    own = config.get("CELERY") or {}
    if not isinstance(own, Mapping):
        raise ImproperlyConfigured(
            f"app.config['CELERY'] is of type {type(own).__name__}; expected a dict of settings, "
            "such as {'broker_url': 'redis://localhost'}"
        )
    return {**config, **{_prefixed(key): value for key, value in own.items()}}


def _prefixed(key: Any) -> str:
    """The key of a setting; in a dict of nothing else one in capitals is no other library's."""
    if not isinstance(key, str):
        raise ImproperlyConfigured(
            f"app.config['CELERY'] has the key {key!r:.80}; expected names of settings"
        )
    return f"CELERY_{key}" if key.isupper() and not key.startswith("CELERY") else key


def _object_of(app: Any) -> Flask:
    """The Flask app itself, where `current_app` is given."""
    from flask import Flask

    found = app._get_current_object() if hasattr(app, "_get_current_object") else app
    if not isinstance(found, Flask):
        raise TypeError(f"expected a Flask app, got {found!r:.80}")
    return found


def _command(queue: Minicelery) -> click.Command:
    """``flask celery …``: each command of minicelery, for this app."""
    import click

    @click.command(
        "celery",
        add_help_option=False,  # --help is one of the arguments
        context_settings={"ignore_unknown_options": True},
        short_help="Run a command of minicelery, such as worker, for this app.",
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def celery(arguments: tuple[str, ...]) -> None:
        queue.spawn_origin = _origin()
        # Flask has pushed an application context for its command line. In none of it: what a
        # handler put on its `g` would be there in the next task.
        code = contextvars.Context().run(queue.start, list(arguments))
        raise SystemExit(code)

    return celery


def _origin() -> Origin | None:
    """How Flask's command line has come to the app."""
    import click
    from flask.cli import ScriptInfo

    from minicelery.worker.spawn import Origin

    info = click.get_current_context().find_object(ScriptInfo)
    if info is None or info.create_app is not None:  # made by a program's own command
        return None
    return Origin(f"{__name__}:reopen", {"path": info.app_import_path})


def reopen(path: str | None) -> Minicelery:
    """The app of the Flask app that ``flask --app PATH`` names."""
    from flask.cli import ScriptInfo

    found: Minicelery = ScriptInfo(app_import_path=path).load_app().extensions[EXTENSION]
    return found
