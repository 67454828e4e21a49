"""The options every command takes, and the app they name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minicelery.cli import ui

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.worker.spawn import Origin

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """One run of the command line: its common options, and the app once it is asked for."""

    def __init__(self, app: Celery | None = None) -> None:
        self.app_name: str | None = None
        self.broker: str | None = None
        self.result_backend: str | None = None
        self.config: str | None = None
        self.workdir: str | None = None
        self.no_color = False
        self.skip_checks = False
        self.quiet = False
        self._given = app
        self._app: Celery | None = None

    def note(self, text: str) -> None:
        """Say `text` on stderr, unless --quiet."""
        if not self.quiet:
            ui.note(text)

    def app(self) -> Celery:
        """The app that -A names or the directory offers, with the other options applied."""
        if self._app is None:
            if self.workdir is not None:
                self._enter(self.workdir)
            if self.config is not None:
                os.environ["CELERY_CONFIG_MODULE"] = self.config
            if self.skip_checks:
                os.environ["CELERY_SKIP_CHECKS"] = "true"
            from minicelery.cli.advice import watched_import

            with watched_import():
                app = self._open() if self._given is None else self._given
            self._configure(app)
            self._app = app
            from minicelery import signals

            if signals.user_preload_options.receivers and (context := click.get_current_context(silent=True)):
                signals.user_preload_options.send(sender=context.command, app=app, options=context.params)
        return self._app

    def close(self) -> None:
        """Close the connections of the app, if it is not the caller's own."""
        if self._app is not None and self._app is not self._given:
            self._app.close()

    def worker_origin(self, include: Sequence[str]) -> Origin | None:
        """How a process that was not forked comes to the app; None: by the module it stands in."""
        if self._given is not None:
            return None
        from minicelery.worker.spawn import Origin

        options = {
            "app_name": self.app_name, "broker": self.broker, "result_backend": self.result_backend,
            "config": self.config, "include": list(include),
        }  # fmt: skip
        return Origin(f"{__name__}:reopen", options)

    def _enter(self, directory: str) -> None:
        try:
            os.chdir(directory)
        except OSError as failure:
            raise ui.CommandError(
                f"can't change to --workdir {directory!r}: {failure.strerror}", exit_code=ui.USAGE
            ) from failure

    def _open(self) -> Celery:
        from minicelery.cli.find_app import find_app, guess_app, set_up_django

        directory = Path.cwd()
        if os.environ.get("DJANGO_SETTINGS_MODULE"):
            set_up_django(directory)
        if self.app_name is not None:
            return find_app(self.app_name, directory)
        if (guess := guess_app(directory, os.environ)) is not None:
            self.note(f"using the app {guess.name!r}, found {guess.where}; -A chooses another")
            return guess.app
        if self.broker is None:
            raise ui.CommandError(
                f"no Celery app found in {directory}",
                hint="name its module, e.g. -A tasks; new here? Try: minicelery demo",
                exit_code=ui.USAGE,
            )
        from minicelery.app import Celery

        if str(directory) not in sys.path:
            sys.path.insert(0, str(directory))  # for --include
        return Celery("default")

    def _configure(self, app: Celery) -> None:
        if self.config is not None:
            app.config_from_object(self.config)
        if self.broker is not None:
            app.conf.broker_url = from_here(self.broker)
        if self.result_backend is not None:
            app.conf.result_backend = from_here(self.result_backend)


def reopen(*, include: Sequence[str], **options: Any) -> Celery:
    """The app of a session with these options; of a worker's child that was not forked."""
    session = Session()
    session.quiet = True
    vars(session).update(options)
    app = session.app()
    include_modules(app, include)
    return app


def include_modules(app: Celery, modules: Sequence[str]) -> None:
    """Have the app import these with its own."""
    if modules:
        app.conf.include = [*app.conf.include, *modules]


def from_here(url: str) -> str:
    """A relative SQLite path on the command line starts where the command was given."""
    head = "sqlite:///"
    if url.startswith(head) and not url.startswith(head + "/"):
        return head + os.path.abspath(url[len(head) :])
    return url


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is None or value is False:
        return
    session = context.find_object(Session)
    assert session is not None and parameter.name is not None
    setattr(session, parameter.name, value)
    if parameter.name == "no_color":
        ui.use_colour(False)


def _common(*names: str, help: str, hidden: bool = False, **more: Any) -> Callable[[F], F]:
    return click.option(*names, help=help, hidden=hidden, expose_value=False, callback=_remember, **more)


def _options(hidden: bool) -> list[Callable[[Any], Any]]:
    return [
        _common(
            "-A", "--app", "app_name", metavar="APP", help="Module, module:attribute or file of the app."
        ),
        _common("-b", "--broker", metavar="URL", help="Broker to use in place of the app's."),
        _common("--result-backend", metavar="URL", help="Result store to use in place of the app's."),
        _common("--config", metavar="MODULE", help="Module to read the settings from.", hidden=hidden),
        _common("--workdir", metavar="DIR", help="Directory to change to first.", hidden=hidden),
        _common("-C", "--no-color", is_flag=True, help="No colours.", hidden=hidden),
        _common("--skip-checks", is_flag=True, help="Start without Django's system checks.", hidden=hidden),
        _common("-q", "--quiet", is_flag=True, help="No notes on stderr.", hidden=hidden),
    ]


def common_options(*, after_command: bool = True) -> Callable[[F], F]:
    """Add -A and its companions; after a command the rarer ones work but stay out of its help."""

    def decorate(command: F) -> F:
        for option in reversed(_options(hidden=after_command)):
            command = option(command)
        return command

    return decorate
