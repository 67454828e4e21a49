"""`minicelery report`: what a bug report should say."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from minicelery import __version__
from minicelery.cli import ui
from minicelery.cli.session import Session, common_options
from minicelery.exceptions import MiniCeleryError

if TYPE_CHECKING:
    from minicelery.app import Celery

_PACKAGES = ("click", "redis", "hiredis", "pika", "msgpack", "celery", "django", "flask")


@click.command(short_help="Show versions, platform and settings, for bug reports.")
@common_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def report(session: Session, /, *, as_json: bool) -> int:
    """Show versions, platform, transport and the settings that differ from their defaults.

    Passwords and keys are left out.
    """
    document = describe(session.app())
    if as_json:
        ui.say_json(document)
        return 0
    for title in ("versions", "platform", "transport", "settings"):
        ui.say(click.style(title, bold=True))
        lines = document[title]
        width = max(map(len, lines), default=0)
        for name, value in lines.items():
            ui.say(f"  {name.ljust(width)}  {value}")
        if not lines:
            ui.say("  all as by default")
    return 0


def describe(app: Celery) -> dict[str, dict[str, Any]]:
    """The report as `versions`, `platform`, `transport` and `settings`, each name to value."""
    return {
        "versions": {"minicelery": __version__, "python": platform.python_version(), **_versions()},
        "platform": {
            "implementation": platform.python_implementation(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "executable": sys.executable,
        },
        "transport": {
            "app": app.main or "(no name)",
            "broker": _server(lambda: app.broker.url),
            "results": _server(lambda: app.backend.url) if app.conf.result_backend else "disabled",
        },
        "settings": dict(sorted(app.conf.table().items())),
    }


def _server(read_url: Callable[[], str]) -> str:
    """The masked URL, or why there is none: a report is wanted most where something is wrong."""
    try:
        return read_url()
    except MiniCeleryError as failure:
        return f"not usable: {failure}"


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
