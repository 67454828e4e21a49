"""`minicelery call`: send one task from a shell."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from minicelery.cli import ui
from minicelery.cli.completing import queue_names, task_names
from minicelery.cli.session import Session, common_options
from minicelery.exceptions import ImproperlyConfigured, TimeoutError
from minicelery.registry import OWN_TASKS

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.result import AsyncResult

_FOREVER = float("inf")
_NEGATIVE = re.compile(r"-\.?\d")
_FLAGS = frozenset({"--wait", "--json", "-C", "--no-color", "-q", "--quiet"})


class CallCommand(click.Command):
    """Takes a bare --wait, and negative numbers as arguments of the task."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _disambiguate(args))


def _disambiguate(args: Sequence[str]) -> list[str]:
    out: list[str] = []
    before = ""
    for place, word in enumerate(args):
        if word == "--":
            return [*out, *args[place:]]
        wants_value = before.startswith("-") and before not in _FLAGS and not _NEGATIVE.match(before)
        if word == "--wait" and not wants_value:
            out.append("--wait=inf")
        elif _NEGATIVE.match(word) and (not wants_value or "=" in before):
            out.append(" " + word)  # JSON allows the space, click sees no option
        else:
            out.append(word)
        before = word
    return out


def json_or_text(word: str) -> Any:
    """A word of the command line as the value it spells; as text where it is no JSON."""
    try:
        return json.loads(word)
    except ValueError:
        return word.removeprefix(" ") if _NEGATIVE.match(word[1:]) else word


def json_list(text: str) -> list[Any]:
    """A JSON list."""
    document = _json(text)
    if not isinstance(document, list):
        raise click.BadParameter(f"expected a JSON list such as '[2, 2]', got {text}")
    return document


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    document = _json(text)
    if not isinstance(document, dict):
        raise click.BadParameter(f"expected a JSON object such as '{{\"x\": 2}}', got {text}")
    return document


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as failure:
        raise click.BadParameter(f"{text!r} is not JSON: {failure}") from failure


def moment(text: str) -> datetime:
    """An ISO 8601 time; one without an offset is local time."""
    try:
        read = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not an ISO 8601 time such as 2030-01-31T07:30:00+01:00"
        ) from None
    return read.astimezone()


def seconds_or_moment(text: str) -> float | datetime:
    """Seconds from now, or a time."""
    try:
        return float(text)
    except ValueError:
        return moment(text)


@click.command(cls=CallCommand, short_help="Send a task, and wait for its result if asked to.")
@click.argument("name", metavar="NAME", shell_complete=task_names)
@click.argument("words", nargs=-1, metavar="[ARG]...")
@common_options()
@click.option("-a", "--args", type=json_list, metavar="JSON", help="Arguments, as a list.")
@click.option("-k", "--kwargs", type=json_object, metavar="JSON", help="Keyword arguments, as an object.")
@click.option("--countdown", type=float, metavar="SECONDS", help="Run it so much later.")
@click.option("--eta", type=moment, metavar="TIME", help="Run it then.")
@click.option("--expires", type=seconds_or_moment, metavar="SECONDS|TIME", help="Don't run it after that.")
@click.option("-Q", "--queue", metavar="NAME", help="Queue to send it to.", shell_complete=queue_names)
@click.option("--exchange", hidden=True)
@click.option("--routing-key", hidden=True)
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9.")
@click.option("--serializer", metavar="NAME", help="json or msgpack.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="[=SECONDS]",
    help="Wait for the result and print it as JSON.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: id, state, result.")
@click.pass_obj
def call(
    session: Session,
    /,
    *,
    name: str,
    words: tuple[str, ...],
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    wait: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Send the task NAME with these arguments, and print its id.

    Each ARG is JSON, or else text:

        minicelery call tasks.add 2 2 --wait
    """
    if args is not None and words:
        raise ui.CommandError("arguments were given both by -a and as words; choose one", exit_code=ui.USAGE)
    app = session.app()
    if wait is not None and not app.conf.result_backend:
        raise ImproperlyConfigured("--wait needs a result backend and none is configured; set result_backend")
    arguments = args if args is not None else [json_or_text(word) for word in words]
    given = {option: value for option, value in options.items() if value is not None}
    result = _send(session, app, name, arguments, kwargs or {}, given)
    if wait is not None:
        return _wait(session, result, name, None if wait == _FOREVER else wait, as_json)
    if as_json:
        ui.say_json({"id": result.id, "task": name})
    else:
        ui.say(result.id)
    return 0


def _send(
    session: Session, app: Celery, name: str, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]
) -> AsyncResult[Any]:
    if name not in app.tasks:
        app.import_task_modules()
    task = app.tasks.get(name)
    if task is None:
        own = [known for known in app.tasks if not known.startswith(OWN_TASKS)]
        near = ui.did_you_mean(name, own)
        session.note(
            f"no task {name!r} is known here{', ' + near if near else ''}; sending it by its name alone"
        )
        return app.send_task(name, args, kwargs, **options)
    try:
        task.check_arguments(args, kwargs)
    except TypeError as failure:
        raise ui.CommandError(str(failure), exit_code=ui.USAGE) from failure
    return task.apply_async(args, kwargs, **options)


def _wait(session: Session, result: AsyncResult[Any], name: str, wait: float | None, as_json: bool) -> int:
    session.note(f"sent {name}, id {result.id}")
    try:
        value = result.get(timeout=wait, propagate=False)
    except TimeoutError as failure:
        raise ui.CommandError(
            f"{name} had no result within {ui.duration(wait or 0)}; its state is {result.state}",
            hint=f"is a worker running? Later: minicelery result {result.id}",
        ) from failure
    if as_json:
        ui.say_json(result.as_dict())
        return 0 if result.successful() else 1
    if result.successful():
        ui.say(ui.json_text(value))
        return 0
    raise ui.CommandError(
        f"{name} ended as {result.state}: {type(value).__name__}: {value}",
        hint=f"minicelery result {result.id} --traceback shows where",
    )
