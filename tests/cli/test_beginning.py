"""init, dev, shell and completion: what who begins asks for."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minicelery import vitals
from minicelery.cli import reloading
from tests.cli.conftest import Project, Ran
from tests.waiting import wait_until

Run = Callable[..., Ran]
HOME = str(Path(__file__).resolve().parents[2])


# -- init and dev ------------------------------------------------------------------------


def test_init_writes_an_app_that_can_be_called(project: Project, run: Run) -> None:
    ran = run("init")
    assert (ran.code, ran.err) == (0, "")
    assert "minicelery dev" in ran.out
    assert len((project.path / "tasks.py").read_text().splitlines()) <= 10
    assert run("call", "tasks.add", "1", "2").code == 0
    assert run("list", "queues").out.split()[-3:] == ["1", "0", "0"]


def test_init_writes_over_nothing_and_only_what_can_be_imported(project: Project, run: Run) -> None:
    project.write("tasks.py", "mine\n")
    assert run("init").err == (
        "error: tasks.py is there already\nhint: give another name: minicelery init app.py\n"
    )
    assert (project.path / "tasks.py").read_text() == "mine\n"
    assert run("init", "1st.py").err.endswith("hint: give a name such as tasks.py\n")
    assert run("init", "first").err.endswith("hint: give a name such as first.py\n")
    assert run("init", "sub/tasks.py").err.endswith("hint: make it first: mkdir -p sub\n")
    assert run("init", "app.py", "-b", "gopher://x").code == 78
    assert run("init", "app.py", "-b", "redis://localhost/0").code == 0
    assert (
        'broker="redis://localhost/0", backend="redis://localhost/0"' in (project.path / "app.py").read_text()
    )


@contextmanager
def running(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """A command in the working directory, and what it has printed so far."""
    with open("output", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "minicelery", *words], stdout=output, stderr=output,
            env={**os.environ, "PYTHONPATH": HOME, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    try:
        yield process, lambda: Path("output").read_text(errors="replace")
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(40)


def test_dev_runs_tasks_on_sqlite_and_starts_anew_when_a_file_changes(project: Project, run: Run) -> None:
    text = (
        "from minicelery import Celery\napp = Celery('tasks')\n@app.task\ndef add(x, y):\n    return x + y\n"
    )
    project.write("tasks.py", text)
    with running("dev", "-c", "1") as (process, output):
        wait_until(lambda: "ready" in output(), timeout=40)
        assert "no broker is configured: this worker uses sqlite:///" in output()
        broker = ["-b", "sqlite:///queue.db", "--result-backend", "sqlite:///queue.db"]
        assert run("-q", *broker, "call", "tasks.add", "2", "3", "--wait=40").out == "5\n"
        project.write("tasks.py", "def (\n")
        wait_until(lambda: "waiting for a change" in output(), timeout=40)
        project.write("tasks.py", text.replace("x + y", "x * y"))
        wait_until(lambda: output().count("ready") >= 2, timeout=40)
        assert run("-q", *broker, "call", "tasks.add", "2", "3", "--wait=40").out == "6\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0


def test_a_worker_that_reloads_ends_with_its_child_when_it_is_stopped(project: Project, run: Run) -> None:
    project.write_tasks()
    with running("worker", "--reload", "-c", "1", "-l", "INFO") as (process, output):
        wait_until(lambda: run("health").code == 0, timeout=40)
        process.terminate()
        assert process.wait(40) == 0
        assert "Warm shutdown" in output()
    wait_until(lambda: run("health").code == 69, timeout=40)


def test_options_that_can_not_be_end_dev_at_once(project: Project, run: Run) -> None:
    project.write_tasks()
    with running("dev", "--concurency=2") as (process, output):
        assert process.wait(40) == 2
        assert "did you mean '--concurrency'?" in output()


def test_a_worker_whose_reloader_is_killed_stops_too(project: Project, run: Run) -> None:
    project.write_tasks()
    with running("worker", "--reload", "-c", "1") as (process, _):
        wait_until(lambda: run("health").code == 0, timeout=40)
        process.kill()
        process.wait(40)
    wait_until(lambda: run("health").code == 69, timeout=40)


def test_the_second_ctrl_c_ends_what_runs_and_leaves_no_process(project: Project, run: Run) -> None:
    project.write(
        "tasks.py",
        "import pathlib, time\nfrom minicelery import Celery\n"
        "app = Celery('tasks', broker='sqlite:///queue.db')\n"
        "@app.task\ndef long():\n    pathlib.Path('begun').touch()\n    time.sleep(600)\n",
    )
    with running("dev", "-c", "1") as (process, output):
        wait_until(lambda: "ready" in output(), timeout=40)
        run("call", "tasks.long")
        wait_until(Path("begun").exists, timeout=40)
        (worker,) = vitals.read_all()
        children = [child["pid"] for child in worker.said["children"]]
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "Warm shutdown" in output(), timeout=40)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 1
    wait_until(lambda: not any(map(vitals.birth_of, [worker.pid, *children])), timeout=40)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_while_the_worker_is_being_started_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "600"])
        reloader._pass_on(number)  # nobody to pass it on to, yet
        return process

    monkeypatch.setattr(reloading, "_start", start)
    reloader = reloading.Reloader([tmp_path])
    assert reloader.run() == code


def test_a_change_is_seen_in_files_that_matter_only(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.py", ".git/c.py", "node_modules/d.py", "env/e.py", "data.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    changes = reloading.Changes([tmp_path])
    assert changes.wait(0.0) == []
    for name in ("a.py", "sub/b.py", ".git/c.py", "node_modules/d.py", "env/e.py", "data.txt"):
        (tmp_path / name).write_text("22")
    (tmp_path / "new.toml").write_text("")
    assert changes.wait(0.0) == [str(tmp_path / name) for name in ("a.py", "new.toml", "sub/b.py")]
    (tmp_path / "a.py").unlink()
    assert changes.wait(0.0) == [str(tmp_path / "a.py")]


def test_the_system_tells_of_the_same_changes_where_it_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    (tmp_path / "node_modules").mkdir()
    with reloading.watch([tmp_path]) as changes:
        assert isinstance(changes, reloading.Watched)
        assert changes.wait(0.0) == []
        (tmp_path / "node_modules" / "d.py").write_text("")
        (tmp_path / "data.txt").write_text("")
        (tmp_path / "a.py").write_text("")
        assert wait_until(lambda: changes.wait(0.0)) == [str(tmp_path / "a.py")]


def test_a_project_may_be_in_a_folder_that_is_passed_over_within_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("watchfiles")
    monkeypatch.chdir(tmp_path)
    folder = Path("build", ".work")
    folder.mkdir(parents=True)
    with reloading.watch([folder]) as changes:
        assert changes.wait(0.0) == []
        (folder / "a.py").write_text("")
        assert wait_until(lambda: changes.wait(0.0)) == [str(tmp_path / folder / "a.py")]


@pytest.mark.parametrize("told", [True, False])
def test_a_change_before_the_first_look_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    if told:
        pytest.importorskip("watchfiles")
    else:
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    with reloading.watch([tmp_path]) as changes:
        (tmp_path / "a.py").write_text("")
        assert changes.wait(0.0) == [str(tmp_path / "a.py")]


def test_without_watchfiles_every_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with reloading.watch([tmp_path]) as changes:
        assert type(changes) is reloading.Changes


# -- shell -------------------------------------------------------------------------------


def test_the_shell_has_the_app_and_its_tasks_by_name(
    project: Project, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_tasks()
    monkeypatch.setattr("sys.stdin", io.StringIO("print(add(2, 3), celery is app, chain.__name__)\n"))
    ran = run("-A", "tasks", "shell", "-P")
    assert ran.code == 0
    assert "5 True chain" in ran.out
    assert "app 'tasks'" in ran.err


def test_a_shell_that_is_not_installed_is_named(project: Project, run: Run) -> None:
    pytest.importorskip("code")
    project.write_tasks()
    for option, package in (("-I", "ipython"), ("-B", "bpython")):
        try:
            __import__({"ipython": "IPython"}.get(package, package))
        except ImportError:
            assert f"pip install {package}" in run("-A", "tasks", "shell", option).err


# -- completion --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --")]
)
def test_completion_prints_a_script_for_the_shell(run: Run, shell: str, sign: str) -> None:
    ran = run("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert "_MINICELERY_COMPLETE" in ran.out and sign in ran.out


def test_an_unknown_shell_is_refused_with_the_known_ones(run: Run) -> None:
    ran = run("completion", "tcsh")
    assert (ran.code, "bash" in ran.err and "zsh" in ran.err and "fish" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("minicelery pau", ["pause"]),
        ("minicelery dead re", ["replay"]),
        ("minicelery worker --reload-", ["--reload-dir"]),
        ("minicelery call tasks.b", ["tasks.boom"]),
        ("minicelery -A tasks pause -T tasks.add,tasks.b", ["tasks.add,tasks.boom"]),
        ("minicelery pause -Q c", ["celery"]),
        ("minicelery -A nothing call t", []),
    ],
)
def test_commands_options_tasks_and_queues_are_completed(
    project: Project, run: Run, monkeypatch: pytest.MonkeyPatch, words: str, offered: list[str]
) -> None:
    project.write_tasks()
    monkeypatch.setenv("_MINICELERY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    ran = run()
    assert ran.err == ""
    assert [line.partition(",")[2] for line in ran.out.splitlines() if line] == offered


def test_bash_completes_a_command_with_the_printed_script(project: Project) -> None:
    project.write_tasks()
    script = (
        f'minicelery() {{ {sys.executable} -m minicelery "$@"; }}\nexport -f minicelery\n'
        'eval "$(minicelery completion bash)"\n'
        "COMP_WORDS=(minicelery call tasks.a); COMP_CWORD=2\n"
        f"mkdir -p bin; printf '#!/bin/sh\\nexec {sys.executable} -m minicelery \"$@\"\\n' > bin/minicelery\n"
        "chmod +x bin/minicelery; PATH=$PWD/bin:$PATH\n"
        "_minicelery_completion minicelery tasks.a call; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=40, check=False,
        env={**os.environ, "PYTHONPATH": HOME},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "tasks.add", done.stderr
