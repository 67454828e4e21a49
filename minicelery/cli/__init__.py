"""The command line: one group, its commands imported when they are used.

`main` is the only place where an exception becomes lines on stderr and an exit code: 0 done,
1 failed, 2 used wrongly, 69 nobody answers, 78 configured wrongly, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options
from minicelery.exceptions import ImproperlyConfigured, MiniCeleryError

if TYPE_CHECKING:
    from minicelery.app import Celery

COMMANDS = {
    "demo": "See tasks run: nothing to install or to configure.",
    "init": "Write a first tasks.py.",
    "dev": "Run a worker and beat, anew after each change.",
    "worker": "Run tasks.",
    "beat": "Send periodic tasks when they are due.",
    "schedule": "Show and change what beat sends.",
    "call": "Send a task, and wait for its result if asked to.",
    "result": "Show the result of a task.",
    "status": "Show which workers are there.",
    "inspect": "Ask running workers what they do.",
    "control": "Change running workers: pools, queues, limits, or stop them.",
    "flower": "Run Flower on this app.",
    "health": "Tell whether the workers of this machine are well.",
    "events": "Print what workers and clients tell, as it happens.",
    "top": "Watch workers, queues and tasks.",
    "graph": "Draw a composition, or what has become of one.",
    "queues": "Show what is in each queue, and what is paused.",
    "pause": "Have no worker fetch from a queue, or run a task.",
    "resume": "Have workers fetch from a queue, or run a task, again.",
    "dead": "List, show, replay and discard dead letters.",
    "list": "Show queues, what is in them, and how they are bound.",
    "purge": "Delete the messages that wait in queues.",
    "doctor": "Look for what is wrong, and say what to do about it.",
    "report": "Show versions, platform and settings, for bug reports.",
    "shell": "Python with the app and its tasks at hand.",
    "migrate": "Move messages from one broker to another.",
    "completion": "Print a script that completes commands, options and names.",
}
"""Each is the attribute of its own name in the module `minicelery.cli.<name>`, but for `_PLACES`."""

_PLACES = {
    "list": "listing",  # a module `list` here would hide the type from this one
    "resume": "pause:resume",
    "status": "remote:status",
    "inspect": "remote:inspect",
    "control": "remote:control",
}

ELSEWHERE = {
    "amqp": "queues and list show what is on the server; rabbitmqadmin changes it",
    "dashboard": "there are top, in a terminal, and flower",
    "logtool": "a log of JSON lines, by worker --log-format json, can be asked with jq",
    "multi": "let a service manager run each worker, or start it with: nohup … &",
    "retry": "call sends a task again; dead replay, one that was rejected",
    "tasks": "doctor counts the app's tasks; inspect registered asks workers for theirs",
    "upgrade": "settings of old names are understood as they are",
}
"""Commands of Celery's, and ones that may be thought of, which this version does not have."""


def main(argv: Sequence[str] | None = None, *, app: Celery | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return the exit code.

    `app` is the one to work on; without it -A and the directory say which.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    ui.use_colour(None)
    session = Session(app)
    try:
        with _short_warnings():
            code = group.main(arguments, prog_name="minicelery", standalone_mode=False, obj=session)
        return code if isinstance(code, int) else 0
    except SystemExit as exit:  # click's own: a closed pipe, shell completion
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except (Exception, KeyboardInterrupt) as failure:
        if os.environ.get("MINICELERY_TRACEBACK", "0") not in ("", "0"):
            _print_traceback(failure)
        return _explain(failure)
    finally:
        with suppress(MiniCeleryError, OSError):
            session.close()
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
    from minicelery.cli.find_app import fault_of_program

    if (fault := fault_of_program(failure, Path.cwd())) is not None:
        ui.error(str(fault), fault.hint)
        return fault.exit_code
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
    text = " ".join(text.split()).removesuffix(".")
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
        if category.__module__.partition(".")[0] == "minicelery":
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
        module, _, attribute = _PLACES.get(name, name).partition(":")
        found: click.Command = getattr(
            importlib.import_module(f"minicelery.cli.{module}"), attribute or module
        )
        return found

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
    if name in ELSEWHERE:
        return ui.CommandError(
            f"'minicelery {name}' is not part of this version", hint=ELSEWHERE[name], exit_code=ui.USAGE
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
    epilog="New here?  Run: minicelery demo, then: minicelery init",
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
