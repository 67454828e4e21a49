"""The command line: one group, its commands imported when they are used.

`main` is the only place where an exception becomes lines on stderr and an exit code: 0 done,
1 failed, 2 used wrongly, 78 configured wrongly, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options
from minicelery.exceptions import (
    DuplicateTaskNameWarning,
    ImproperlyConfigured,
    MiniCeleryError,
    UnknownSetting,
)

if TYPE_CHECKING:
    from minicelery.app import Celery

COMMANDS = {
    "demo": "See tasks run: nothing to install or to configure.",
    "worker": "Run tasks.",
    "beat": "Send periodic tasks when they are due.",
    "schedule": "Show and change what beat sends.",
    "call": "Send a task, and wait for its result if asked to.",
    "result": "Show the result of a task.",
    "graph": "Draw a composition, or what has become of one.",
    "list": "Show queues, what is in them, and how they are bound.",
    "purge": "Delete the messages that wait in queues.",
    "report": "Show versions, platform and settings, for bug reports.",
}
"""Each is the attribute of its own name in the module `minicelery.cli.<name>`, but for those below."""

_ATTRIBUTES = {"list": "listing"}  # a module `list` here would hide the type from this one

RESERVED = (
    "amqp", "control", "dashboard", "dev", "doctor", "events", "flower", "health", "init", "inspect",
    "logtool", "migrate", "multi", "queues", "retry", "shell", "status",
    "tasks", "top", "upgrade",
)  # fmt: skip
"""Commands of Celery's, and of later versions, that this version does not have."""


def main(argv: Sequence[str] | None = None, *, app: Celery | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return the exit code.

    `app` is the one to work on; without it -A and the directory say which.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    ui.use_colour(None)
    try:
        with _short_warnings():
            code = group.main(arguments, prog_name="minicelery", standalone_mode=False, obj=Session(app))
        return code if isinstance(code, int) else 0
    except SystemExit as exit:  # click's own: a closed pipe, shell completion
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except (Exception, KeyboardInterrupt) as failure:
        if os.environ.get("MINICELERY_TRACEBACK", "0") not in ("", "0"):
            _print_traceback(failure)
        return _explain(failure)
    finally:
        _flush()


def _explain(failure: BaseException) -> int:
    if isinstance(failure, (KeyboardInterrupt, click.Abort)):
        interrupted = isinstance(failure, KeyboardInterrupt) or isinstance(
            failure.__context__, KeyboardInterrupt
        )
        return ui.INTERRUPTED if interrupted else 1
    if isinstance(failure, click.UsageError):
        return _explain_usage(failure)
    if isinstance(failure, click.ClickException):
        ui.error(failure.format_message())
        return failure.exit_code
    if isinstance(failure, BrokenPipeError):
        return 1
    if isinstance(failure, (MiniCeleryError, OSError)):
        ui.error(*ui.split_hint(failure))
        default = ui.CONFIGURATION if isinstance(failure, ImproperlyConfigured) else 1
        return int(getattr(failure, "exit_code", default))
    _print_traceback(failure)
    ui.error(
        f"unexpected {type(failure).__name__}: {failure}", "this is a fault in minicelery: please report it"
    )
    return 1


def _explain_usage(failure: click.UsageError) -> int:
    near: Sequence[str] | None = getattr(failure, "possibilities", None)
    # format_message names the parameter; it would also put the nearest options into the text.
    text, hint = ui.split_hint(ui.CommandError(failure.message if near else failure.format_message()))
    if near:
        hint = "did you mean " + " or ".join(repr(one) for one in sorted(near)) + "?"
    elif hint is None and failure.ctx is not None:
        hint = f"see {failure.ctx.command_path} --help"
    ui.error(text[:1].lower() + text[1:], hint)
    return failure.exit_code


def _print_traceback(failure: BaseException) -> None:
    import traceback

    traceback.print_exception(type(failure), failure, failure.__traceback__)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone; without this the interpreter complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show minicelery's own warnings as one line each; others as they are."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
        if issubclass(category, (UnknownSetting, DuplicateTaskNameWarning)):
            ui.warning(str(message))
        else:
            before(message, category, *more, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


class LazyGroup(click.Group):
    """Imports a command when it is run or asked for its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        attribute = _ATTRIBUTES.get(name, name)
        command: click.Command = getattr(importlib.import_module(f"minicelery.cli.{attribute}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            raise _unknown_command(name)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _unknown_command(name: str) -> ui.CommandError:
    if name in RESERVED:
        return ui.CommandError(
            f"'minicelery {name}' is not part of this version",
            hint="this version has " + ", ".join(COMMANDS),
            exit_code=ui.USAGE,
        )
    hint = ui.did_you_mean(name, list(COMMANDS)) or "see minicelery --help"
    return ui.CommandError(f"no such command {name!r}", hint=hint, exit_code=ui.USAGE)


def _print_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from minicelery import __version__

        ui.say(f"minicelery {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="New here?  Run: minicelery demo",
)
@common_options(after_command=False)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def group(context: click.Context) -> int | None:
    """A task queue with Celery's API."""
    if context.invoked_subcommand is None:
        ui.say(context.get_help())
        return ui.USAGE
    return None
