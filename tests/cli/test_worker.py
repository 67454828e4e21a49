from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicelery.cli.worker import pid_file
from tests.cli.conftest import Project, Ran
from tests.waiting import wait_until

Run = Callable[..., Ran]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of `Worker`, which does not run here."""
    import minicelery.worker

    options: dict[str, Any] = {}

    class Asked:
        def __init__(self, app: Any, **given: Any) -> None:
            options.update(given, app=app)

        def run(self) -> int:
            return 7

    monkeypatch.setattr(minicelery.worker, "Worker", Asked)
    return options


def test_options_reach_the_worker_and_its_exit_code_comes_back(
    project: Project, run: Run, asked: dict[str, Any]
) -> None:
    project.write_tasks()
    words = (
        "worker -A tasks -n w1@%h -l info -f w.log --log-format json -c 3 -P prefork -Q a,b -Q c -X d --purge "
        "--max-tasks-per-child 5 --max-memory-per-child 90000 --prefetch-multiplier 0 "
        "--time-limit 2.5 --soft-time-limit=1 --autoscale 2,4 --processes 3 --pool-start-method spawn -q -B --scheduler m:Class "
        "-E --heartbeat-interval 0.5 --without-heartbeat"
    )
    ran = run(*words.split())
    assert (ran.code, ran.err) == (7, "")
    assert asked.pop("app").main == "tasks"
    assert asked.pop("origin").arguments["app_name"] == "tasks"
    assert asked == {
        "hostname": "w1@%h", "loglevel": "INFO", "logfile": "w.log", "log_format": "json", "concurrency": 3, "pool": "prefork",
        "queues": ["a", "b", "c"], "exclude_queues": ["d"], "max_tasks_per_child": 5,
        "max_memory_per_child": 90000, "prefetch_multiplier": 0, "time_limit": 2.5, "soft_time_limit": 1.0,
        "autoscale": (4, 2), "processes": 3, "pool_start_method": "spawn", "purge": True, "quiet": True,
        "beat": True, "scheduler": "m:Class", "task_events": True, "heartbeat_interval": 0.5,
        "without_heartbeat": True,
    }  # fmt: skip


def test_what_is_not_given_is_left_to_the_settings(project: Project, run: Run, asked: dict[str, Any]) -> None:
    project.write_tasks()
    assert run("worker", "-A", "tasks").code == 7
    assert {name for name, value in asked.items() if value is not None} == {
        "app", "beat", "origin", "purge", "quiet", "without_heartbeat"
    }  # fmt: skip


def test_options_of_celery_that_need_no_asking_are_accepted_in_silence(
    project: Project, run: Run, asked: dict[str, Any]
) -> None:
    project.write_tasks()
    words = "--without-gossip --without-mingle -O fair -c auto -P processes"
    assert run("worker", "-A", "tasks", *words.split()) == Ran(7, "", "")
    assert (asked["concurrency"], asked["pool"]) == ("auto", "prefork")


def test_included_modules_join_those_of_the_settings(
    project: Project, run: Run, asked: dict[str, Any]
) -> None:
    project.write("app.py", "from minicelery import Celery\napp = Celery('a', include=['one'])\n")
    run("worker", "-A", "app", "-I", "two,three")
    assert list(asked["app"].conf.include) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("-c 0", "0 children can run nothing"),
        ("-c many", "'many' is neither a number nor 'auto'"),
        ("-P prefrok", "no pool named 'prefrok'"),
        ("-P gevent", "-P gevent is not part of this version"),
        ("-l loud", "'loud' is not one of DEBUG, INFO"),
        ("--autoscale many", "is not MAX,MIN"),
        ("-D", "-D/--detach is not part of this version"),
        ("--time-limit 1 --soft-time-limit 2", "--soft-time-limit 2 is longer than --time-limit 1"),
        ("--max-tasks-per-child 0", "--max-tasks-per-child"),
        ("--time-limit 0", "--time-limit"),
        ("--heartbeat-interval 0", "--heartbeat-interval"),
    ],
)
def test_an_option_that_cannot_work_is_refused_before_the_app_is_imported(
    project: Project, run: Run, words: str, error: str
) -> None:
    project.write("tasks.py", "raise RuntimeError('imported')\n")
    ran = run("worker", "-A", "tasks", *words.split())
    assert ran.code == 2
    assert error in ran.err.splitlines()[0]
    assert ran.err.splitlines()[1].startswith("hint: ")


def test_a_statedb_is_answered_and_the_worker_runs(project: Project, run: Run, asked: dict[str, Any]) -> None:
    project.write_tasks()
    ran = run("worker", "-A", "tasks", "--statedb", "state.db")
    assert ran.code == 7
    assert ran.err.splitlines() == [
        "note: --statedb is not needed: revoked tasks are remembered in the broker",
    ]


def test_the_pid_file_is_there_while_the_worker_runs_only(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid"
    with pid_file(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_the_pid_file_of_a_living_process_is_refused(
    project: Project, run: Run, asked: dict[str, Any]
) -> None:
    project.write_tasks()
    project.write("worker.pid", f"{os.getpid()}\n")
    ran = run("worker", "-A", "tasks", "--pidfile", "worker.pid")
    assert (ran.code, f"process {os.getpid()} is running already" in ran.err) == (1, True)


@pytest.mark.parametrize("text", ["", "4194304\n", "9" * 30])
def test_the_pid_file_of_a_dead_process_is_replaced(
    project: Project, run: Run, asked: dict[str, Any], text: str
) -> None:
    project.write_tasks()
    project.write("worker.pid", text)
    assert run("worker", "-A", "tasks", "--pidfile", "worker.pid").code == 7


def test_a_file_that_is_no_pid_file_is_not_thrown_away(
    project: Project, run: Run, asked: dict[str, Any]
) -> None:
    file = project.write_tasks()
    text = file.read_text()
    ran = run("worker", "-A", "tasks", "--pidfile", "tasks.py")
    assert (ran.code, "no process number in it" in ran.err, file.read_text()) == (1, True, text)


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_runs_tasks_until_it_is_stopped(project: Project, run: Run, pool: str) -> None:
    project.write_tasks()
    command = [sys.executable, "-m", "minicelery", "-A", "tasks", "worker", "-P", pool, "-c", "1"]
    home = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": home}
    ) as worker:
        try:
            ran = run("call", "-A", "tasks", "tasks.add", "2", "2", "--wait=40", "-q")
            assert ran == Ran(0, "4\n", "")
        finally:
            worker.send_signal(signal.SIGTERM)
            try:
                wait_until(lambda: worker.poll() is not None, timeout=40)
            finally:
                worker.kill()
    assert worker.returncode == 0
