"""What holds for every command: --json where something is read, exit codes, texts of others, prompts."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from minicelery.cli import group, ui
from tests.cli.conftest import Project, Ran

Run = Callable[..., Ran]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "commands.md"

DOERS = {
    "demo", "init", "dev", "worker", "beat", "schedule add", "schedule disable", "schedule enable", "schedule remove",
    "schedule run", "flower", "dead replay", "dead discard", "purge", "shell", "completion",
    "graph",  # draws; its picture is text already
}  # fmt: skip
"""Commands that read nothing, so that they have nothing to print as JSON."""


def commands(command: click.Command = group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something by itself, with its words."""
    if isinstance(command, click.Group) and command.list_commands(click.Context(command)):
        for part in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), part)
            assert inner is not None
            yield from commands(inner, f"{name} {part}".strip())
    else:
        yield name, command


def test_every_command_that_reads_prints_json_where_it_is_asked_to() -> None:
    without = {
        name for name, command in commands() if not any("--json" in one.opts for one in command.params)
    }
    assert without == DOERS


@pytest.mark.parametrize(
    "words",
    [
        "queues", "list queues", "list bindings", "dead list", "pause", "doctor", "report",
        "call tasks.add 1 2", "migrate queue -f",
    ],
)  # fmt: skip
def test_what_is_printed_as_json_is_one_document(project: Project, run: Run, words: str) -> None:
    project.write_tasks()
    run("-A", "tasks", "call", "tasks.add", "1", "2")
    words = words.replace("queue -f", "sqlite:///queue.db sqlite:///other.db -f")
    ran = run("-q", "-A", "tasks", *words.split(), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert isinstance(json.loads(ran.out), (dict, list))


def test_exit_codes_are_those_of_the_docs() -> None:
    table = DOCS.read_text().partition("| exit code |")[2].partition("\n\n")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert documented == {0, 1, ui.USAGE, ui.UNAVAILABLE, ui.CONFIGURATION, ui.INTERRUPTED}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("-A tasks queues", 0),
        ("-A tasks result unknown", 1),
        ("-A tasks -b redis://127.0.0.1:1 queues", 1),
        ("quues", 2),
        ("-A tasks queues --jsn", 2),
        ("-A tusks queues", 2),
        ("-A tasks call tasks.add 1", 2),
        ("-A tasks status -t 0.1", 69),
        ("health", 69),
        ("-A tasks -b gopher://x queues", 78),
        ("-A tasks --config nowhere queues", 78),
    ],
)
def test_each_way_to_end_has_its_exit_code(project: Project, run: Run, words: str, code: int) -> None:
    project.write_tasks()
    ran = run(*words.split())
    assert ran.code == code
    assert ran.err.startswith("error: ") if code else not ran.err


def test_errors_of_others_can_not_command_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    ui.error("a\x1b]0;owned\x07b\nin \x9b2Jfile", "hint\x1b[0m")
    assert capfd.readouterr().err == ("error: a\\x1b]0;owned\\x07b\nin \\x9b2Jfile\nhint: hint\\x1b[0m\n")
    ui.say_json({"text": "\x1b[2J\x9b2J\x7fü\u202e"})
    out = capfd.readouterr().out
    assert json.loads(out) == {"text": "\x1b[2J\x9b2J\x7fü\u202e"}
    assert out == '{\n  "text": "\\u001b[2J\\u009b2J\\u007fü\\u202e"\n}\n'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("n\n", "note: nothing was done\n"),
        ("", "error: nobody has answered, and nothing was done\nhint: -f does it without asking\n"),
    ],
)
@pytest.mark.parametrize("words", ["purge", "migrate sqlite:///queue.db sqlite:///other.db"])
def test_who_is_asked_and_does_not_agree_hears_that_nothing_was_done(
    project: Project, run: Run, monkeypatch: pytest.MonkeyPatch, words: str, answer: str, said: str
) -> None:
    project.write_tasks()
    run("-A", "tasks", "call", "tasks.add", "1", "2")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    ran = run("-A", "tasks", *words.split())
    assert (ran.code, ran.err) == (1, said)


@pytest.mark.parametrize(
    ("known", "name", "hint"),
    [
        (["tasks.add", "tasks.boom"], "add", "did you mean 'tasks.add'?"),
        (["a.add", "b.add"], "add", "did you mean 'a.add' or 'b.add'?"),
        (["tasks.add"], "tasks.ad", "did you mean 'tasks.add'?"),
        (["celery", "mail"], "celry", "did you mean 'celery'?"),
        (["celery"], "mail", None),
    ],
)
def test_the_nearest_names_are_offered(known: list[str], name: str, hint: str | None) -> None:
    assert ui.did_you_mean(name, known) == hint
