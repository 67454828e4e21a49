"""`minicelery inspect`, `control` and `status`: what running workers say, and what they are told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.remote.registry import CommandInfo

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT = 1.0
QUIET = 0.3
"""Seconds without a further reply after which no more are waited for, unless --timeout says otherwise."""
BRIEF = 0.1
"""The same for `inspect ping`, which asks whether somebody is there; who is there, `status` tells."""
SILENT = ("shutdown",)
"""Commands that are not answered."""


def _nodes(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    names = [name.strip() for name in (text or "").split(",")]
    return [name for name in names if name] or None


def asking(command: F) -> F:
    """Add what all three take: -t, -d, -j."""
    for option in (
        click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option(
            "-d",
            "--destination",
            metavar="LIST",
            callback=_nodes,
            help="Only these workers, comma-separated.",
        ),
        click.option(
            "-t",
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help=f"Wait so long for each further reply; {TIMEOUT:g} for the first, else {QUIET:g}.",
        ),
    ):
        command = option(command)
    return command


def listing(kind: str) -> Callable[[F], F]:
    def show(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            session = context.find_object(Session)
            assert session is not None
            with contextlib.suppress(ui.CommandError):  # without an app there are the built-in ones
                session.app().import_task_modules()
            ui.say(_list_of(kind))
            context.exit()

    return click.option(
        "--list", is_flag=True, expose_value=False, callback=show, help=f"List the {kind} commands."
    )


@click.command(short_help="Ask running workers what they do.")
@click.argument("command", required=False)
@click.argument("words", nargs=-1, metavar="[ARGUMENTS]...")
@common_options()
@listing("inspect")
@asking
@click.pass_obj
def inspect(
    session: Session, /, *, command: str | None, words: tuple[str, ...], timeout: float | None,
    destination: list[str] | None, as_json: bool,
) -> int:  # fmt: skip
    """Ask workers COMMAND, such as ping, active or stats; without one, show an overview of them."""
    app = session.app()
    ask = Asking(session, app, timeout, destination)
    if command is None:
        return _overview(ask, as_json)
    arguments = _compiled(app, "inspect", command, words)
    replies = ask(command, arguments, None if as_json else _show, BRIEF if command == "ping" else QUIET)
    if as_json:
        ui.say_json(replies)
        return 0
    _count(session, replies)
    return _code(replies)


@click.command(short_help="Change running workers: pools, queues, limits, or stop them.")
@click.argument("command")
@click.argument("words", nargs=-1, metavar="[ARGUMENTS]...")
@common_options()
@listing("control")
@asking
@click.pass_obj
def control(
    session: Session, /, *, command: str, words: tuple[str, ...], timeout: float | None,
    destination: list[str] | None, as_json: bool,
) -> int:  # fmt: skip
    """Order workers COMMAND, such as pool_grow 2, rate_limit tasks.add 10/m, or shutdown."""
    app = session.app()
    ask = Asking(session, app, timeout, destination)
    arguments = _compiled(app, "control", command, words)
    if command in SILENT:
        replies: dict[str, Any] = dict.fromkeys(ask("ping", {}))
        app.control.broadcast(command, arguments, list(replies))
        if as_json:
            ui.say_json(replies)
        else:
            for node in replies:
                ui.say(f"{_arrow(node)} told: {command}")
        return 0
    replies = ask(command, arguments, None if as_json else _show)
    if as_json:
        ui.say_json(replies)
    return _code(replies)


@click.command(short_help="Show which workers are there.")
@common_options()
@asking
@click.pass_obj
def status(
    session: Session, /, *, timeout: float | None, destination: list[str] | None, as_json: bool
) -> int:
    """Show which workers answer."""
    replies = Asking(session, session.app(), timeout, destination)("ping", {}, None if as_json else _show)
    if as_json:
        ui.say_json(replies)
    else:
        _count(session, replies)
    return 0


class Asking:
    """Asks workers, and says why where none answers."""

    def __init__(
        self, session: Session, app: Celery, timeout: float | None, destination: Sequence[str] | None
    ) -> None:
        self._session = session
        self._app = app
        self._timeout = timeout
        self.destination = destination

    def __call__(
        self,
        command: str,
        arguments: Mapping[str, Any],
        show: Callable[[Mapping[str, Any]], None] | None = None,
        quiet: float = QUIET,
    ) -> dict[str, Any]:
        """``{node: reply}``.  Raises CommandError where nobody replies."""
        from minicelery.remote import Panel

        known = Panel.meta.get(command)
        first = max(TIMEOUT, known.default_timeout if known else 0.0)
        timeout = first if self._timeout is None else self._timeout
        if command in Panel and not Panel.is_builtin(command):
            quiet = first  # nobody knows how long these take
        found = self._replies(command, arguments, self.destination, timeout, quiet, show)
        missing = [node for node in self.destination or () if node not in found]
        if not found:
            raise self._unanswered(timeout)
        if missing:
            others = [node for node in self._there(timeout) if node not in found]
            near = [ui.did_you_mean(node, others) for node in missing]
            ui.warning("; ".join([f"{', '.join(missing)} did not answer", *filter(None, near)]))
        return found

    def _replies(
        self, command: str, arguments: Mapping[str, Any], destination: Sequence[str] | None, timeout: float,
        quiet: float, show: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        from minicelery.remote import flatten_reply

        replies: Any = self._app.control.broadcast(
            command, arguments, destination, reply=True, timeout=timeout,
            quiet=quiet if self._timeout is None else None, callback=show,
        )  # fmt: skip
        return flatten_reply(replies)

    def _there(self, timeout: float) -> list[str]:
        """Who answers, of all that listen."""
        return sorted(self._replies("ping", {}, None, min(timeout, TIMEOUT), QUIET))

    def _unanswered(self, timeout: float) -> ui.CommandError:
        from minicelery.remote.silence import no_answer

        meant = f"none of {', '.join(self.destination)}" if self.destination else "no worker"
        there = self._there(timeout) if self.destination else []
        if there:
            near = [ui.did_you_mean(node, there) for node in self.destination or ()]
            more = f" and {len(there) - 10} more" if len(there) > 10 else ""
            lines = [*filter(None, near), f"those that answer are {', '.join(there[:10])}{more}"]
        else:
            lines = no_answer(self._app).splitlines()
        return ui.CommandError(
            f"{meant} answered within {ui.duration(timeout)}",
            hint="\n      ".join(map(ui.harmless, lines)),
            exit_code=ui.UNAVAILABLE,
        )


# -- what is asked -----------------------------------------------------------------------


def _commands(kind: str) -> Mapping[str, CommandInfo]:
    from minicelery.remote.steering import Panel  # with all that are built in

    return Panel.of_type(kind)


def _list_of(kind: str) -> str:
    rows = [(f"{name} {info.signature or ''}".strip(), info.help) for name, info in _commands(kind).items()]
    width = min(48, max(len(usage) for usage, _ in rows))
    return "\n".join(f"{usage.ljust(width)}  {text}".rstrip() for usage, text in rows)


def _compiled(app: Celery, kind: str, command: str, words: Sequence[str]) -> dict[str, Any]:
    """The words after a command as its arguments."""
    if command not in _commands(kind):
        app.import_task_modules()  # there may be commands of the app's own
    commands = _commands(kind)
    info = commands.get(command)
    if info is None:
        raise _unknown(kind, command, commands)
    left = list(words)
    found: dict[str, Any] = {}
    for name, convert in info.args or ():
        if left:
            word = left.pop(0)
            try:
                found[name] = word if convert is None else convert(word)
            except (ValueError, TypeError):
                raise _misused(kind, command, info, f"{name}: {word!r} is not what it takes") from None
    if info.variadic:
        found[info.variadic] = left
    elif left:
        raise _misused(kind, command, info, f"{left[0]!r} is one argument too many")
    return found


def _unknown(kind: str, command: str, commands: Mapping[str, CommandInfo]) -> ui.CommandError:
    other = "control" if kind == "inspect" else "inspect"
    if command in _commands(other):
        hint: str | None = f"that is a command of the other kind: minicelery {other} {command}"
    else:
        hint = ui.did_you_mean(command, list(commands)) or f"there are {', '.join(commands)}"
    return ui.CommandError(f"no {kind} command {command!r}", hint=hint, exit_code=ui.USAGE)


def _misused(kind: str, command: str, info: CommandInfo, what: str) -> ui.CommandError:
    usage = f"minicelery {kind} {command} {info.signature or ''}".strip()
    return ui.CommandError(f"{kind} {command}: {what}", hint=f"usage: {usage}", exit_code=ui.USAGE)


# -- what is shown -----------------------------------------------------------------------


def _arrow(node: str) -> str:
    return f"->  {click.style(ui.harmless(node), fg='cyan', bold=True)}:"


def _show(reply: Mapping[str, Any]) -> None:
    """One worker's reply, as soon as it has come."""
    for node, value in reply.items():
        failed = isinstance(value, Mapping) and "error" in value
        word = (
            click.style("ERROR", fg="red", bold=True) if failed else click.style("OK", fg="green", bold=True)
        )
        ui.say(f"{_arrow(node)} {word}")
        for line in _text(value).splitlines():
            ui.say(f"    {ui.harmless(line)}")


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and len(value) == 1 and ("ok" in value or "error" in value):
        value = next(iter(value.values()))
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if not value:
            return "- empty -"
        return "\n".join(
            f"* {one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, default=str)}"
            for one in value
        )
    return (
        "" if value is None else json.dumps(value, indent=4, sort_keys=True, ensure_ascii=False, default=str)
    )


def _count(session: Session, replies: Mapping[str, Any]) -> None:
    if not session.quiet:
        ui.say()
        ui.say(f"{len(replies)} {'node' if len(replies) == 1 else 'nodes'} online.")


def _code(replies: Mapping[str, Any]) -> int:
    failed = [isinstance(value, Mapping) and "error" in value for value in replies.values()]
    return int(all(failed))


def _overview(ask: Asking, as_json: bool) -> int:
    stats = ask("stats", {})
    ask.destination = list(stats)
    parts = {name: ask(name, {}) for name in ("active", "reserved", "scheduled", "active_queues")}
    rows = [
        _row(node, said, {name: part.get(node) for name, part in parts.items()})
        for node, said in stats.items()
    ]
    rows.sort(key=lambda row: str(row["worker"]))
    if as_json:
        ui.say_json(rows)
        return 0
    header = ("worker", "pool", "at once", "active", "reserved", "scheduled", "begun", "up", "queues")
    ui.say(ui.table(header, [[row[name.replace(" ", "_")] for name in header] for row in rows]))
    return 0


def _row(node: str, stats: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    stats = _mapping(stats)
    pool, total = _mapping(stats.get("pool")), _mapping(stats.get("total"))
    up = stats.get("uptime")
    queues = [str(queue.get("name", "?")) for queue in _list(parts["active_queues"]) if _mapping(queue)]
    return {
        "worker": ui.harmless(node),
        "pool": _pool(str(pool.get("implementation", "?"))),
        "at_once": pool.get("max-concurrency", "?"),
        **{name: len(_list(parts[name])) for name in ("active", "reserved", "scheduled")},
        "begun": sum(count for count in total.values() if isinstance(count, int)),
        "up": ui.duration(max(0.0, up)) if isinstance(up, (int, float)) else "?",
        "queues": ui.harmless(", ".join(queues)) or "-",
    }


def _pool(implementation: str) -> str:
    """``prefork`` of "minicelery.worker:prefork", and of Celery's "celery.concurrency.prefork:TaskPool"."""
    module, _, name = implementation.partition(":")
    return ui.harmless(module.rpartition(".")[2] if name == "TaskPool" else name) or "?"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
