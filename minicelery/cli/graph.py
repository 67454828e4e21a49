"""`minicelery graph`: a picture of a composition, or of what has become of one."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options
from minicelery.drawing import FORMATS, Graph, graph_of
from minicelery.exceptions import ImproperlyConfigured

_ATTRIBUTE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<path>[A-Za-z_][\w.]*)(?P<call>\(\))?")
_UNFIT = (ImproperlyConfigured, AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What a document may raise that looks like a signature and is none."""


@click.command(short_help="Draw a composition, or what has become of one.")
@click.argument("target", metavar="FILE_OR_ID")
@common_options()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write it there; .svg and .mmd say what is written.",
)  # fmt: skip
@click.option(
    "--format", "kind", type=click.Choice(["mermaid", "svg"]), help="Mermaid text (the default) or SVG."
)
@click.pass_obj
def graph(session: Session, /, *, target: str, output: Path | None, kind: str | None) -> int:
    """Draw chains, groups and chords, as Mermaid text or as SVG.

    FILE_OR_ID is a file with a signature as JSON (- for stdin), the module:name of a signature
    in your program (module:function() of what makes one), or the id of a task or of a saved group, which is drawn with the states of
    its tasks:

        minicelery graph shop.tasks:workflow -o workflow.svg
    """
    written = _kind_of(output, kind)
    drawn = _drawn(session, target)
    text = drawn.svg() if written == "svg" else drawn.mermaid()
    if output is None:
        ui.say(text, newline=False)
        return 0
    output.write_text(text, encoding="utf-8")
    session.note(f"wrote {output}")
    return 0


def _kind_of(output: Path | None, kind: str | None) -> str:
    if output is None:
        return kind or "mermaid"
    by_name = FORMATS.get(output.suffix.lower())
    if by_name is None and kind is None:
        raise ui.CommandError(
            f"-o {output}: what to write is not clear from this name",
            hint=f"let it end with {' or '.join(FORMATS)}, or add --format",
            exit_code=ui.USAGE,
        )
    if kind is not None and by_name not in (None, kind):
        raise ui.CommandError(
            f"-o {output} is a name for {by_name}, and --format says {kind}", exit_code=ui.USAGE
        )
    return kind or str(by_name)


def _drawn(session: Session, target: str) -> Graph:
    if target == "-":
        return _of_json(sys.stdin.read(), "stdin")
    if target.endswith(".json") or Path(target).is_file():
        return _of_json(_read(target), target)
    if (named := _ATTRIBUTE.fullmatch(target)) and (found := _attribute(session, **named.groupdict())):
        return found
    return _of_result(session, target)


# -- documents ---------------------------------------------------------------------------------


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as failure:
        raise ui.CommandError(f"can't read {name}: {failure.strerror}") from failure
    except UnicodeDecodeError as failure:
        raise ui.CommandError(f"{name} is not JSON: it is not even text") from failure


def _of_json(text: str, where: str) -> Graph:
    try:
        document = json.loads(text)
    except ValueError as failure:
        raise ui.CommandError(f"{where} is not JSON: {failure}") from failure
    except RecursionError as failure:
        raise ui.CommandError(f"{where} is nested too deeply") from failure
    if not isinstance(document, Mapping) or not isinstance(document.get("task"), str):
        raise ui.CommandError(
            f"{where} holds no signature but {json.dumps(document, ensure_ascii=False)[:60]}",
            hint="write one with json.dump(my_signature, file)",
        )
    try:
        return graph_of(document)
    except _UNFIT as failure:
        what = "it is nested too deeply" if isinstance(failure, RecursionError) else _words(failure)
        raise ui.CommandError(f"{where} holds no signature that could be called: {what}") from failure


# -- names -------------------------------------------------------------------------------------


def _attribute(session: Session, module: str, path: str, call: str | None) -> Graph | None:
    """The picture of a signature in a module; None where there is no such module."""
    if session.app_name is not None or session.workdir is not None:
        session.app()
    elif (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as failure:
        if failure.name and (module == failure.name or module.startswith(f"{failure.name}.")):
            return None
        raise ui.CommandError(f"can't import {module}: {_words(failure)}") from failure
    except (Exception, SystemExit) as failure:
        raise ui.CommandError(f"can't import {module}: {_words(failure)}") from failure
    for name in path.split("."):
        if not hasattr(found, name):
            near = ui.did_you_mean(name, [known for known in vars(found) if not known.startswith("_")])
            raise ui.CommandError(f"{module} has no {path!r}", hint=near, exit_code=ui.USAGE)
        found = getattr(found, name)
    if call:
        if not inspect.isroutine(found):  # to call a signature is to send it
            raise ui.CommandError(
                f"{module}:{path} is no function but {found!r:.80}",
                hint=f"without (): {module}:{path}",
                exit_code=ui.USAGE,
            )
        try:
            found = found()
        except Exception as failure:
            raise ui.CommandError(f"{module}:{path}() has failed: {_words(failure)}") from failure
    try:
        return graph_of(found)
    except TypeError as failure:
        raise ui.CommandError(
            f"{module}:{path}{call or ''} is no signature but {found!r:.80}",
            hint="give a module's attribute such as workflow = add.s(2, 2) | mul.s(4)",
            exit_code=ui.USAGE,
        ) from failure


# -- results -----------------------------------------------------------------------------------


def _of_result(session: Session, id: str) -> Graph:
    from minicelery.groups import GroupResult

    app = session.app()
    found = app.AsyncResult(id)
    if found.exists():
        return graph_of(found)
    if hasattr(app.backend, "restore_group") and (group := GroupResult.restore(id, app=app)) is not None:
        return graph_of(group)
    raise ui.CommandError(
        f"{id}: no file, no module:name, and no task or saved group with this id in the result store",
        hint="a task that nobody has begun has no result yet, and an expired one none any more",
    )


def _words(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
