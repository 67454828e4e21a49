from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from minicelery import __version__, cli
from minicelery.cli import COMMANDS, ELSEWHERE, group, ui
from minicelery.exceptions import ImproperlyConfigured, OperationalError
from tests.cli.conftest import Project, Ran

Run = Callable[..., Ran]

HEAVY = "redis pika msgpack sqlite3 asyncio multiprocessing importlib.metadata logging"
OWN = "cli cli.session cli.ui exceptions"
"""Modules of the package that --version and --help need: what they need is what they take."""


def raising(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def fail(context: click.Context) -> None:
        raise failure

    monkeypatch.setattr(group, "invoke", fail)


def test_version_is_one_line(run: Run) -> None:
    assert run("--version") == Ran(0, f"minicelery {__version__}\n", "")


def test_version_and_help_import_nothing_heavy() -> None:
    code = (
        "import sys; from minicelery.cli import main; main(['--version']); main(['--help']);"
        f"print('loaded:', *(name for name in {HEAVY!r}.split() if name in sys.modules));"
        "print(*sorted(name for name in sys.modules if name.startswith('minicelery')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    *_, heavy, own = done.stdout.splitlines()
    assert heavy == "loaded:"
    assert own.split() == ["minicelery", *(f"minicelery.{name}" for name in OWN.split())]


def test_the_bare_command_shows_its_help(run: Run) -> None:
    ran = run()
    assert ran.code == 2
    assert all(name in ran.out for name in COMMANDS)
    assert "minicelery demo" in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_begins_as_the_list_says(run: Run, name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.get_short_help_str(100) == COMMANDS[name]
    ran = run(name, "--help")
    assert ran.code == 0
    assert "--app" in ran.out


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_command_of_a_later_version_is_known_by_name(run: Run, name: str) -> None:
    ran = run(name, "-l", "INFO")
    assert ran.code == 2
    assert ran.err.startswith(f"error: 'minicelery {name}' is not part of this version\nhint: ")


def test_a_misspelt_command_is_answered_with_the_nearest(run: Run) -> None:
    ran = run("wroker")
    assert (ran.code, ran.err) == (2, "error: no such command 'wroker'\nhint: did you mean 'worker'?\n")


def test_a_misspelt_option_is_answered_with_the_nearest(run: Run) -> None:
    ran = run("worker", "--concurency=2")
    assert ran.code == 2
    assert ran.err.splitlines()[1] == "hint: did you mean '--concurrency'?"
    assert "--concurency" in ran.err.splitlines()[0]


def test_a_missing_argument_points_to_the_help_of_the_command(run: Run) -> None:
    ran = run("result")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: missing argument 'ID'\nhint: see minicelery result --help\n"


@pytest.mark.parametrize(
    ("failure", "code", "err"),
    [
        (OperationalError("cannot reach x; start it"), 1, "error: cannot reach x\nhint: start it\n"),
        (ImproperlyConfigured("bad url"), 78, "error: bad url\n"),
        (ui.CommandError("a; b", hint="c", exit_code=5), 5, "error: a; b\nhint: c\n"),
        (FileNotFoundError(2, "No such file", "x.log"), 1, "error: [Errno 2] No such file: 'x.log'\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_errors_become_two_lines_and_an_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int, err: str
) -> None:
    raising(monkeypatch, failure)
    ran = run("report")
    assert (ran.code, ran.out, ran.err.lstrip("\n")) == (code, "", err)


def test_the_traceback_is_shown_when_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICELERY_TRACEBACK", "1")
    raising(monkeypatch, OperationalError("away"))
    assert run("report").err.startswith("Traceback (most recent call last)")


def test_a_fault_of_our_own_is_shown_in_full(
    project: Project, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, AssertionError("impossible"))
    ran = run("report")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "error: unexpected AssertionError: impossible" in ran.err


def test_a_reader_that_goes_away_causes_no_noise(project: Project) -> None:
    project.write_tasks()
    command = f"{sys.executable} -m minicelery report | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    assert "Error" not in done.stderr


@pytest.mark.parametrize(
    "words", [("-A", "tasks", "report"), ("report", "-A", "tasks"), ("report", "--app=tasks")]
)
def test_the_app_may_be_named_before_and_after_the_command(
    project: Project, run: Run, words: list[str]
) -> None:
    project.write_tasks()
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("after", [False, True])
def test_broker_and_backend_of_the_command_line_win_and_start_at_the_working_directory(
    project: Project, run: Run, after: bool
) -> None:
    project.write("sub/tasks.py", project.write_tasks().read_text())
    options = ["-A", "sub/tasks.py", "-b", "sqlite:///other.db", "--result-backend", "sqlite:///third.db"]
    ran = run(*(["report", *options] if after else [*options, "report"]))
    assert str(project.path / "other.db") in ran.out
    assert str(project.path / "third.db") in ran.out


def test_without_an_app_option_the_one_that_was_found_is_named(project: Project, run: Run) -> None:
    project.write_tasks()
    assert run("report").err == "note: using the app 'tasks:app', found in tasks.py; -A chooses another\n"
    assert run("-q", "report").err == ""


def test_without_any_app_the_error_says_how_to_name_one(project: Project, run: Run) -> None:
    ran = run("worker")
    assert ran.code == 2
    assert ran.err.startswith("error: no Celery app found in ")
    assert "minicelery demo" in ran.err


def test_a_broker_alone_is_enough_for_commands_that_need_no_tasks(project: Project, run: Run) -> None:
    ran = run("-b", "sqlite:///queue.db", "purge")
    assert (ran.code, ran.out) == (0, "Nothing waits in celery.\n")


def test_workdir_is_where_modules_are_looked_for(project: Project, run: Run) -> None:
    project.write("inner/tasks.py", project.write_tasks().read_text())
    (project.path / "tasks.py").unlink()
    assert run("--workdir", "inner", "-A", "tasks", "report").code == 0
    ran = run("--workdir", "nowhere", "-A", "tasks", "report")
    assert (ran.code, ran.err) == (
        2,
        "error: can't change to --workdir 'nowhere': No such file or directory\n",
    )


def test_settings_may_come_from_a_module(project: Project, run: Run) -> None:
    project.write_tasks()
    project.write("conf.py", "task_default_queue = 'special'\n")
    assert "special" in run("--config", "conf", "-A", "tasks", "report").out


@pytest.mark.filterwarnings("always")
def test_an_unknown_setting_is_one_line_of_warning(project: Project, run: Run) -> None:
    project.write("tasks.py", "from minicelery import Celery\napp = Celery('t', task_serialiser='json')\n")
    err = run("-A", "tasks", "report").err
    assert err.startswith("warning: ")
    assert "task_serializer" in err
    assert err.count("\n") == 1


def test_an_app_can_run_the_command_line_for_itself(
    project: Project, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    from minicelery import Celery

    app = Celery("own", broker="sqlite:///queue.db", set_as_current=False)
    assert cli.main(["report"], app=app) == 0
    assert "own" in capfd.readouterr().out


def test_colours_are_for_terminals_and_for_those_who_ask(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in run("wroker").err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run("wroker").err
    assert "\x1b[" not in run("-C", "wroker").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run("wroker").err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0034, "3 ms"), (0.9999, "1 s"), (1.234, "1.23 s"), (119, "119 s"), (180, "3 minutes"), (5400, "1.5 hours"),
     (86400, "1 day"), (172800, "2 days")],
)  # fmt: skip
def test_durations_are_read_in_one_unit(seconds: float, text: str) -> None:
    assert ui.duration(seconds) == text
