"""Children that are fresh interpreters: all goes as with forked ones, and what can't is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import ImproperlyConfigured, TimeLimitExceeded, WorkerLostError
from minicelery.worker.spawn import Spawn, origin_of
from tests.waiting import wait_until
from tests.worker import harness
from tests.worker.harness import ROOT, Stage, WorkerProcess


class SpawningWorker(WorkerProcess):
    """A worker whose children are spawned."""

    def __init__(self, asked: dict[str, Any], log: Path, stage: Stage) -> None:
        self.log = log
        self._stage = stage
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.worker.apps.spawnable"],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1", "SPAWNABLE": json.dumps(asked)},
            )  # fmt: skip
        self.pid = self._process.pid


@pytest.fixture
def spawning(leased_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """An app on each broker with leases; its workers spawn their children."""
    monkeypatch.setattr(harness, "WorkerProcess", SpawningWorker)
    return leased_stage


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_tasks_run_in_fresh_interpreters_and_their_agent_is_one(spawning: Stage) -> None:
    worker = spawning.worker()
    results = spawning.send_many("run", [(0.002,)] * 200)
    assert spawning.wait_for(results) == {"SUCCESS": 200}
    assert set(spawning.runs().values()) == {1}
    wait_until(lambda: len(worker.children()) == 2, 20)
    for pid in (*worker.children(), worker.agent()):
        assert "minicelery.worker.spawn" in command_line(pid)
    worker.term()
    assert worker.wait() == 0
    assert not worker.processes()


def test_a_spawned_child_that_dies_in_a_task_fails_it_and_is_replaced(spawning: Stage) -> None:
    spawning.worker(concurrency=1)
    result, after = spawning.send("die", "kill"), spawning.send("run", 0.0)
    assert spawning.wait_for([result, after]) == {"FAILURE": 1, "SUCCESS": 1}
    assert isinstance(result.result, WorkerLostError)
    assert spawning.runs()[result.id] == 1


def test_time_limits_hold_in_spawned_children_even_against_c_code(spawning: Stage) -> None:
    worker = spawning.worker()
    hard = spawning.send("run", 30.0, time_limit=0.5)
    soft = spawning.send("stubborn", 30.0, soft_time_limit=0.5)
    in_c = spawning.send("run_in_c", 30.0, time_limit=0.5)
    assert spawning.wait_for([hard, soft, in_c]) == {"FAILURE": 2, "SUCCESS": 1}
    assert isinstance(hard.result, TimeLimitExceeded)
    assert isinstance(in_c.result, TimeLimitExceeded)
    assert soft.result == "cleaned up"
    assert "is lost: time limit" in worker.output()  # the parent, from the board


def test_spawned_children_are_replaced_after_their_number_of_tasks(spawning: Stage) -> None:
    spawning.worker(max_tasks_per_child=20)
    results = spawning.send_many("run", [(0.001,)] * 100)
    assert spawning.wait_for(results, 45) == {"SUCCESS": 100}
    assert set(spawning.runs().values()) == {1}
    pids = [trace.pid for trace in spawning.traces("start")]
    assert max(pids.count(pid) for pid in pids) <= 20


def test_a_signal_to_the_whole_group_stops_spawned_children_warm(spawning: Stage) -> None:
    worker = spawning.worker()
    running = spawning.send_many("run_until_told", [()] * 2)
    wait_until(lambda: len(spawning.runs()) == 2, 20)
    worker.signal_group(signal.SIGINT)
    assert worker.end_what_runs() == 0
    assert spawning.states(running) == {"SUCCESS": 2}
    assert not worker.processes()


def test_a_signal_to_the_group_while_children_are_starting_kills_none_of_them(spawning: Stage) -> None:
    worker = spawning.worker()  # ready, but its children are still being imported
    worker.signal_group(signal.SIGINT)
    assert worker.wait(20) == 0
    assert "is lost" not in worker.output()
    assert not worker.processes()


def test_spawned_children_leave_when_their_parent_is_killed(spawning: Stage) -> None:
    worker = spawning.worker()
    result = spawning.send("run", 1.0)
    wait_until(lambda: len(worker.children()) == 2 and spawning.runs()[result.id], 20)
    worker.kill()
    wait_until(lambda: not worker.processes(), timeout=15)
    assert spawning.states([result]) == {"SUCCESS": 1}


# -- the app by its name ---------------------------------------------------------------------


class Project:
    """A folder with an app, its worker on SQLite, and what that says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def start(self, *command: str) -> None:
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def said(self, text: str, timeout: float = 40.0) -> bool:
        return wait_until(lambda: text in self.output.read_text(), timeout)

    def call(self, name: str, *args: Any, app: Celery | None = None) -> Any:
        """Send a task and wait for its result."""
        app = app or Celery("producer", broker=f"sqlite:///{self.folder}/queue.db", set_as_current=False)
        app.conf.result_backend = f"sqlite:///{self.folder}/queue.db"
        with app:
            return app.send_task(name, args).get(timeout=40)

    def close(self) -> None:
        if self.output.exists():
            print(self.output.read_text())
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


APP = """\
    from minicelery import Celery

    app = Celery("tasks", broker="sqlite:///queue.db", backend="sqlite:///queue.db")

    @app.task
    def add(x, y):
        return x + y
"""


def cli(*options: str, method: str = "spawn") -> list[str]:
    return [
        "-m", "minicelery", *options, "worker", "--pool-start-method", method, "-c", "1", "-l", "INFO",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [("-A", "tasks"), ("-A", "tasks.py:app"), ()])
def test_a_spawned_child_finds_the_app_as_the_command_line_did(
    project: Project, options: tuple[str, ...]
) -> None:
    project.write("tasks.py", APP)
    project.start(*cli(*options))
    assert project.call("tasks.add", 2, 3) == 5


def test_an_app_from_a_factory_is_made_again_in_each_child(project: Project) -> None:
    project.write("shop/__init__.py", "")
    project.write(
        "shop/main.py",
        """\
        from minicelery import Celery

        def create_app():
            app = Celery("shop", broker="sqlite:///../queue.db", backend="sqlite:///../queue.db")
            app.conf.include = ["shop.tasks"]
            return app
        """,
    )
    project.write(
        "shop/tasks.py",
        """\
        from minicelery import shared_task

        @shared_task
        def add(x, y):
            return x + y
        """,
    )
    project.start(*cli("-A", "shop.main:create_app()"))
    assert project.call("shop.tasks.add", 2, 3) == 5


def test_a_module_of_the_project_does_not_shadow_the_standard_library(project: Project) -> None:
    project.write("tasks.py", APP)
    for name in ("enum", "re", "inspect"):
        project.write(f"{name}.py", "raise SystemExit('the wrong module')\n")
    # As the installed command has it: its own folder is first on the path, not the project's.
    program = "import sys; del sys.path[0]; from minicelery.cli import main; sys.exit(main())"
    project.start("-c", program, *cli("-A", "tasks")[2:])
    assert project.call("tasks.add", 2, 3) == 5


def test_a_script_that_starts_its_own_worker_is_imported_by_its_children(project: Project) -> None:
    start = """
    if __name__ == "__main__":
        app.worker_main(["worker", "--pool-start-method", "spawn", "-c", "1"])
"""
    project.write("tasks.py", APP + start)
    project.start("tasks.py")
    assert project.call("tasks.add", 2, 3) == 5


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (
            'app.worker_main(["worker", "--pool-start-method", "spawn", "-c", "1"])',
            "put what starts it below if __name__ == '__main__':",
        ),
        (
            'if __name__ == "__main__":\n'
            '        app.conf.broker_url = "sqlite:///other.db"\n'
            '        app.worker_main(["worker", "--pool-start-method", "spawn", "-c", "1"])',
            "set it where the app is made",
        ),
        (
            'if __name__ == "__main__":\n'
            "        late = app.task(lambda: 1, name='late')\n"
            '        app.worker_main(["worker", "--pool-start-method", "spawn", "-c", "1"])',
            "without the worker's tasks late: define them in modules",
        ),
    ],
    ids=["no guard", "another broker", "a task only in the parent"],
)
def test_what_a_child_would_import_differently_is_said(project: Project, ending: str, said: str) -> None:
    project.write("tasks.py", f"{APP}\n    {ending}\n")
    project.start("tasks.py")
    assert project.said(said)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_childs_first_and_last_signals_are_sent_in_the_child(project: Project, method: str) -> None:
    listening = """
    import os
    from minicelery import signals

    def say(signal, sender, **more):
        print(signal.name, os.getpid(), more, flush=True)

    for signal in (signals.worker_process_init, signals.worker_process_shutdown):
        signal.connect(say)
    signals.worker_before_create_process.connect(say)

    @app.task
    def own_pid():
        return os.getpid()
"""
    project.write("tasks.py", APP + listening)
    project.start(*cli("-A", "tasks", method=method))
    pid = project.call("tasks.own_pid")
    assert project.said(f"worker_process_init {pid} ")
    assert project.process is not None
    parent = project.process.pid
    project.process.terminate()
    assert project.process.wait(20) == 0
    assert project.said(f"worker_process_shutdown {pid} {{'pid': {pid}, 'exitcode': 0}}")
    assert project.output.read_text().count(f"worker_before_create_process {parent} ") == 2  # child and agent
    project.process = None


def test_an_app_that_no_module_holds_is_refused() -> None:
    app = Celery("hidden", broker="memory://", set_as_current=False)
    with pytest.raises(
        ImproperlyConfigured, match=r"can't import the app 'hidden'.*at the top of a module.*-A"
    ):
        Spawn(app, "w@test", {}, None)


def test_an_app_is_found_by_the_module_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("found", broker="memory://", set_as_current=False)
    monkeypatch.setattr(sys.modules[__name__], "found_app", app, raising=False)
    origin = origin_of(app)
    assert origin.opener == "minicelery.worker.spawn:open_app"
    assert origin.arguments == {"module": __name__, "attribute": "found_app", "file": __file__}


def test_children_whose_app_fails_to_import_are_tried_ever_more_slowly(project: Project) -> None:
    project.write("tasks.py", APP + "\n    import os\n    print('imported', os.getpid(), flush=True)\n")
    project.start(*cli("-A", "tasks"))
    assert project.call("tasks.add", 2, 3) == 5
    project.write("tasks.py", "raise RuntimeError('broken now')\n")
    assert project.process is not None
    parent = project.process.pid
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    assert project.said("broken now")
    time.sleep(2.0)
    # Child and agent; as fast as they can they would try some thirty times.
    assert project.output.read_text().count("RuntimeError: broken now") <= 18
    wait_until(lambda: project.output.read_text().count("RuntimeError: broken now") >= 2, 30)
    project.write("tasks.py", APP)
    assert project.call("tasks.add", 3, 4) == 7
