"""`minicelery flower`: the installed Flower, on this app.

Flower is written for Celery.  In this process minicelery stands in for it, whether Celery is
installed or not: what Flower shows, asks and orders goes through the user's own app.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from minicelery.alias import install_as_celery
from minicelery.cli import ui
from minicelery.cli.session import Session, common_options
from minicelery.exceptions import MiniCeleryError

if TYPE_CHECKING:
    from minicelery.app import Celery

HINT = 'pip install "minicelery[flower]"'


@dataclass
class Caller:
    """What Flower wants to know of the command line that it is a command of."""

    app: Celery
    quiet: bool


@click.command(short_help="Run Flower on this app.", context_settings={"ignore_unknown_options": True})
@common_options()
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION OF flower]...")
@click.pass_context
def flower(context: click.Context, /, *, words: Sequence[str]) -> None:
    """Run the installed Flower on this app, with all its options: --port=5555, --basic-auth=…

    `minicelery flower -- --help` shows them.
    """
    session: Session = context.obj
    if importlib.util.find_spec("flower") is None:
        raise ui.CommandError("Flower is not installed", hint=HINT)
    _refuse_unknown(words)
    app = session.app()
    # Before the alias: the user's modules are imported as a worker imports them.
    app.import_task_modules()
    app.set_current()
    app.set_default()
    install_as_celery(force=True)
    command = _module("flower.command").flower
    # Behind --, or the command would take an option like --help for its own.
    with command.make_context(
        "flower", ["--", *words], parent=context.parent, obj=Caller(app, session.quiet)
    ) as inner:
        try:
            command.invoke(inner)
        except (click.ClickException, MiniCeleryError, OSError):
            raise
        except Exception as error:  # Flower's own, or of what it was told: tornado says it in several ways
            raise ui.CommandError(
                f"Flower has ended with {type(error).__name__}: {error}",
                hint="options go as --name=value, see minicelery flower -- --help; "
                "MINICELERY_TRACEBACK=1 shows where it was",
            ) from error
        finally:
            # Its thread listens on, and would complain that the connections are closed under it.
            logging.getLogger("flower.events").disabled = True


def _refuse_unknown(words: Sequence[str]) -> None:
    """Raises CommandError for an option that Flower would pass over in silence."""
    known = ["--" + name.replace("_", "-") for name in _module("flower.options").options]
    for word in words:
        option = word.partition("=")[0]
        name = "--" + option.lstrip("-").replace("_", "-")
        if word.startswith("-") and name not in known:
            hint = ui.did_you_mean(name, known) or "see minicelery flower -- --help"
            raise ui.CommandError(f"Flower has no option {option!r}", hint=hint, exit_code=ui.USAGE)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ui.CommandError(f"this version of Flower can't be run: {error}", hint=HINT) from error
