"""Where beginners stumble, and what is said to them: whole texts, as they are printed.

`STUMBLES` says which test proves what.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Project, Ran
from tests.conformance.messages import record
from tests.waiting import wait_until

Run = Callable[..., Ran]
HOME = str(Path(__file__).resolve().parents[2])

STUMBLES = {
    "Flask's configuration, with CELERY_ in front of the settings": "test_settings_as_flask_has_them_are_understood",
    "old and new names of settings mixed": "test_old_and_new_names_of_settings_may_be_mixed_and_each_rename_is_said",
    "a misspelt setting": "test_a_misspelt_setting_is_answered_with_the_nearest",
    "-A app, and app is the Flask app": "test_a_flask_app_named_app_does_not_hide_the_celery_one",
    "-A app, and several are in it": "test_several_apps_in_a_module_are_listed",
    "-A with a factory only": "test_a_module_with_a_factory_only_says_how_to_name_it",
    "-A tasks, which the app's module imports": "test_modules_that_import_each_other_are_named_and_the_one_to_begin_with",
    "tasks.py that nobody imports": "test_a_worker_without_a_task_names_the_file_that_may_have_them",
    "a chain that is sent where a module is imported": "test_what_an_import_sends_is_told",
    "celery worker, for an app of minicelery's": "test_celerys_own_command_is_told_whose_app_it_is",
    "no broker runs: a caller": "test_a_broker_that_is_away_is_named_with_its_address_and_what_to_do",
    "no broker runs: a worker": "test_a_worker_without_its_broker_says_once_which_one_and_goes_on",
    "no broker is configured": "test_without_a_broker_the_default_is_named_and_one_that_needs_no_server",
    "Django: the app is not imported in __init__.py": "test_an_app_that_nothing_imports_is_told_of",
    "Django: django-db, and not in INSTALLED_APPS": "test_results_in_the_database_need_the_app",
    "Django: django-db, and no migrate": "test_results_in_the_database_need_its_tables",
    "Django: a call before the row is committed": "test_a_transaction_is_waited_for_and_a_call_within_one_is_warned_of",
    "a result without a result store": "test_a_state_that_nobody_keeps_says_which_setting_is_missing",
    "sending while only the result store is down": "test_sending_needs_no_result_store_and_reading_says_that_it_is_away",
    "a task that the worker does not know": "test_an_unknown_task_is_named_with_the_nearest",
    "a module of include that is not there": "test_a_module_that_can_not_be_imported_is_the_apps_fault_and_not_ours",
    "a settings module that is not there": "test_settings_that_are_not_there_are_named",
    "a restart is forgotten": "test_dev_runs_tasks_on_sqlite_and_starts_anew_when_a_file_changes",
    "a restart is forgotten, and dev is not used": "test_doctor_says_that_a_worker_runs_other_code_than_is_in_the_files",
    "a task that is called before it is written": "test_dev_has_messages_of_unknown_tasks_wait_unless_the_app_says_otherwise",
    "polling a task that has failed": "test_what_is_polled_can_be_sent_as_json_whatever_became_of_the_task",
    "polling it in a view": "test_a_view_can_answer_with_what_is_polled_and_not_with_its_exception",
    "an unknown id is pending for ever": "test_an_unknown_id_is_unknown_or_expired",
    "what was sent, and nobody has begun": "test_with_task_track_sent_what_waits_is_told_from_what_was_never_sent",
    "inspect, and no worker": "test_silence_says_what_was_checked_and_what_to_do",
    "inspect active, while tasks wait": "test_inspect_alone_shows_an_overview",
    "an async def task": "test_an_async_task_just_runs",
    "an object as argument": "test_an_argument_that_json_can_not_carry_is_named",
    "get() inside a task": "test_waiting_for_a_result_in_a_task_is_explained",
    "what a retry does": "test_a_retry_says_which_one_it_is_when_and_why",
    "no beat": "test_a_worker_that_hears_of_no_beat_for_a_minute_says_so_once",
    "times in UTC and here": "test_beat_says_what_runs_next_in_local_time_and_utc",
    "a link of a chain that takes no result": "test_a_link_of_a_chain_with_an_argument_too_many_is_told_of_si",
    "the same, where a class of the app's runs its tasks": "test_a_link_with_an_argument_too_many_is_told_of_si_behind_a_class_of_the_apps",
    "Flower is not installed": "test_where_flower_is_missing_the_package_is_named",
    "a worker on Windows": "test_on_windows_a_worker_is_refused_with_where_to_run_it",
    "a caller on Windows": "test_a_program_that_sends_needs_nothing_that_windows_does_not_have",
    "the worker's -A before or after": "test_an_option_before_or_after_the_command_is_accepted",
    "worker -A": "test_a_worker_starts_with_its_app_named_behind_it",
    "a visibility timeout": "test_doctor_says_what_a_visibility_timeout_is_for",
}
"""What happens to beginners, and the test of what they are told."""

TASKS = """\
from minicelery import Celery, chain

app = Celery("tasks", broker="sqlite:///queue.db", backend="sqlite:///queue.db")

@app.task
def number():
    return 1

@app.task
def alone():
    pass

class Within(app.Task):
    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)

@app.task(base=Within)
def within():
    pass

@app.task
def asks():
    return number.delay().get(timeout=1)

@app.task(bind=True, max_retries=2, default_retry_delay=60)
def tries(self):
    raise self.retry(exc=ValueError("away"))

@app.task
async def later():
    return 2
"""


def test_each_stumble_has_its_test() -> None:
    there = set()
    for path in (Path(HOME) / "tests").rglob("test_*.py"):
        there |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert {test for test in STUMBLES.values() if test not in there} == set()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a worker has logged of one run of each of these, and of a task it does not know."""
    folder = tmp_path_factory.mktemp("stumbles")
    (folder / "tasks.py").write_text(TASKS)
    (folder / "send.py").write_text(
        "from tasks import *\n"
        "chain(number.s(), alone.s()).delay(); chain(number.s(), within.s()).delay(); asks.delay(); tries.delay(); app.send_task('tasks.nubmer')\n"
        "print(later.delay().get(timeout=30))\n"
    )
    environment = {**os.environ, "PYTHONPATH": HOME}
    with open(folder / "log", "wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "minicelery", "worker", "-A", "tasks", "-c", "1", "-l", "INFO"],
            cwd=folder, stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        sent = subprocess.run(
            [sys.executable, "send.py"], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=40, check=True,
        )  # fmt: skip
        text = (folder / "log").read_text
        failures = ("TypeError: alone()", "TypeError: within()", "Never call result.get() within a task")
        wait_until(lambda: all(failure in text() for failure in failures), timeout=30)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(40)
    return text() + sent.stdout


def test_an_unknown_task_is_named_with_the_nearest(log: str) -> None:
    assert "no task named 'tasks.nubmer' is registered; did you mean 'tasks.number'" in log


def test_a_link_of_a_chain_with_an_argument_too_many_is_told_of_si(log: str) -> None:
    assert "TypeError: alone() takes 0 positional arguments but 1 was given" in log
    assert "hint: as a link of a chain it is called with the result of the one before; alone.si(…)" in log


def test_a_link_with_an_argument_too_many_is_told_of_si_behind_a_class_of_the_apps(log: str) -> None:
    assert "TypeError: within() takes 0 positional arguments but 1 was given" in log
    assert "hint: as a link of a chain it is called with the result of the one before; within.si(…)" in log


def test_a_worker_starts_with_its_app_named_behind_it(log: str) -> None:
    assert " app:         tasks\n" in log
    assert " ready\n" in log


def test_waiting_for_a_result_in_a_task_is_explained(log: str) -> None:
    assert "Never call result.get() within a task" in log
    assert "Link the tasks with a chain, or wrap the call in allow_join_result()" in log


def test_a_retry_says_which_one_it_is_when_and_why(log: str) -> None:
    assert "retry 1/2 in 60s: ValueError('away')" in log


def test_an_async_task_just_runs(log: str) -> None:
    assert log.endswith("\n2\n")


def test_an_option_before_or_after_the_command_is_accepted(project: Project, run: Run) -> None:
    project.write("tasks.py", TASKS)
    assert run("report", "-A", "tasks").code == run("-A", "tasks", "report").code == 0


def test_a_flask_app_named_app_does_not_hide_the_celery_one(project: Project, run: Run) -> None:
    pytest.importorskip("flask")
    project.write(
        "shop.py",
        "from flask import Flask\nfrom minicelery import Celery\n"
        "app = Flask(__name__)\ncelery = Celery('shop', broker='sqlite:///queue.db')\n",
    )
    assert "shop" in run("-A", "shop", "report").out


def test_several_apps_in_a_module_are_listed(project: Project, run: Run) -> None:
    project.write("many.py", "from minicelery import Celery\nred, blue = Celery('r'), Celery('b')\n")
    ran = run("-A", "many", "worker")
    assert ran.code == 2
    assert ran.err == "error: several Celery apps in 'many': red, blue\nhint: choose one: -A many:red\n"


def test_modules_that_import_each_other_are_named_and_the_one_to_begin_with(
    project: Project, run: Run
) -> None:
    project.write("site_app.py", "from minicelery import Celery\napp = Celery('t')\nfrom jobs import add\n")
    project.write("jobs.py", "from site_app import app\n@app.task\ndef add(x, y):\n    return x + y\n")
    ran = run("-A", "jobs", "report")
    assert ran.code == 1
    assert ran.err.startswith("error: importing 'jobs' failed: ImportError: cannot import name 'add'")
    assert ran.err.endswith(
        "\nhint: site_app and jobs import each other; begin with the other one: -A site_app\n"
    )
    assert run("-A", "site_app", "report").code == 0


def _ran_worker(project: Project) -> str:
    """What a worker of `app.py` says until it is ready."""
    environment = {**os.environ, "PYTHONPATH": HOME}
    with open("log", "wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "minicelery", "-A", "app", "worker", "-c", "1", "-l", "INFO"],
            stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        wait_until(lambda: " ready" in Path("log").read_text(), timeout=30)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(40)
    return Path("log").read_text()


APP = "from minicelery import Celery\napp = Celery('t', broker='sqlite:///queue.db')\n"


def test_a_worker_without_a_task_names_the_file_that_may_have_them(project: Project) -> None:
    project.write("app.py", APP)
    project.write("tasks.py", "from app import app\n@app.task\ndef add(x, y):\n    return x + y\n")
    assert (
        'warning: this worker knows no task, and nobody imports tasks.py: write Celery(…, include=["tasks"]), '
        "or start it with --include tasks\n"
    ) in _ran_worker(project)
    project.write("app.py", APP.replace("db'", "db', include=['tasks']"))
    assert "warning" not in _ran_worker(project)


def test_what_an_import_sends_is_told(project: Project, run: Run) -> None:
    project.write("app.py", APP + "@app.task(name='once')\ndef once(): ...\nonce.delay()\n")
    ran = run("-q", "-A", "app", "report")
    assert ran.code == 0
    assert ran.err == (
        "warning: importing the app has sent once; each start of a worker, of beat or of a site sends it again. "
        "Send from a function, or under: if __name__ == '__main__'\n"
    )


def test_celerys_own_command_is_told_whose_app_it_is(project: Project) -> None:
    pytest.importorskip("celery")
    project.write("app.py", APP)
    ran = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "app", "worker"],
        env={**os.environ, "PYTHONPATH": HOME}, capture_output=True, text=True, timeout=40,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.endswith("; was this started by `celery`? Start it by `minicelery`\n")


def test_doctor_says_that_a_worker_runs_other_code_than_is_in_the_files(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICELERY_RUN_DIR", str(project.path / "run"))
    environment = {**os.environ, "PYTHONPATH": HOME}
    path = project.write("tasks.py", TASKS)
    doctor = [sys.executable, "-m", "minicelery", "-A", "tasks", "doctor"]

    def examined() -> str:
        return subprocess.run(
            doctor, env=environment, capture_output=True, text=True, timeout=40, check=True
        ).stdout

    with open("log", "wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "minicelery", "-A", "tasks", "worker", "-c", "1", "-n", "w@h"],
            stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        wait_until(lambda: "w@h runs on this machine" in examined(), timeout=40)
        before = re.search(r" code: +([0-9a-f]{7})\n", Path("log").read_text())
        assert before is not None
        assert "runs code" not in examined()
        path.write_text(TASKS + "# changed\n")
        said = examined()
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(40)
    assert re.search(
        rf"w@h runs code {before[1]}, here is [0-9a-f]{{7}}: tasks\.py changed since it started\n", said
    )
    assert "restart it; minicelery worker --reload, and minicelery dev, do so by themselves" in said


def test_on_windows_a_worker_is_refused_with_where_to_run_it(
    project: Project, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("app.py", APP)
    monkeypatch.setattr(sys, "platform", "win32")
    for command in ("worker", "beat", "dev"):
        ran = run("-A", "app", command, *(["--no-reload"] if command == "dev" else []))
        assert ran.code == 1
        assert ran.err == (
            "error: workers and beat need a system with fork and signals, and Windows has none\n"
            "hint: run them in WSL or a container; programs that send tasks and read results run on Windows too\n"
        )


def test_a_program_that_sends_needs_nothing_that_windows_does_not_have(project: Project) -> None:
    project.write("app.py", APP.replace("db'", "db', backend='sqlite:///queue.db'"))
    project.write("caller.py", CALLER)
    said = subprocess.run(
        [sys.executable, "caller.py"],
        env={**os.environ, "PYTHONPATH": HOME}, capture_output=True, text=True, timeout=40,
    )  # fmt: skip
    assert (said.stdout, said.stderr) == ("PENDING, and not done within 0.1 s\n", "")


CALLER = """\
import os, select, signal, sys

for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for module, names in (
    (os, "fork getuid posix_spawn register_at_fork"),
    (select, "poll"),
    (signal, "SIGALRM SIGHUP SIGKILL SIGQUIT SIGUSR1 setitimer"),
):
    for name in names.split():
        delattr(module, name)

from app import app
from minicelery import chain, chord
from minicelery.exceptions import TimeoutError

@app.task
def add(x, y):
    return x + y

result = add.delay(1, 2)
chain(add.s(1, 2), add.s(3)).delay()
chord([add.s(1, 2)], add.s(3)).delay()
try:
    result.get(timeout=0.1)
except TimeoutError as error:
    print(f"{result.state}, and {str(error).partition('was ')[2]}")
app.close()
"""


@pytest.mark.filterwarnings("always")
def test_doctor_says_what_a_visibility_timeout_is_for(project: Project, run: Run) -> None:
    project.write(
        "app.py",
        APP.replace("db'", "db', broker_transport_options={'visibility_timeout': 3600}, task_acks_late=True"),
    )
    ran = run("-q", "-A", "app", "doctor")
    assert (
        "warning: broker_transport_options['visibility_timeout'] is accepted but not needed: a worker renews its "
        "hold on messages as long as it lives; it has no effect\n"
    ) in ran.err
    assert (
        "visibility_timeout is for workers of Celery on the same Redis: one of these keeps what it runs, however "
        "long, and holds nothing that is not due\n"
    ) in ran.out


def test_a_module_with_a_factory_only_says_how_to_name_it(project: Project, run: Run) -> None:
    project.write(
        "fac.py",
        "def create_app():\n    from minicelery import Celery\n    return Celery('f', broker='sqlite:///q.db')\n",
    )
    ran = run("-A", "fac", "report")
    assert ran.code == 2
    assert ran.err.startswith("error: no Celery app in 'fac'")
    assert 'found factory create_app(); try -A "fac:create_app()"' in ran.err


@pytest.mark.parametrize("command", ["call x", "queues", "purge -f", "dead list", "pause -Q celery"])
def test_a_broker_that_is_away_is_named_with_its_address_and_what_to_do(
    project: Project, run: Run, command: str
) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\napp = Celery('t', broker='redis://u:hunter2@127.0.0.1:1/0')\n",
    )
    ran = run("-q", "-A", "tasks", *command.split())
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "error: cannot reach Redis at redis://u:**@127.0.0.1:1/0: connection refused",
        "hint: is redis-server running there? Set broker_url / result_backend",
    ]


def test_without_a_broker_the_default_is_named_and_one_that_needs_no_server(
    project: Project, run: Run
) -> None:
    project.write("tasks.py", "from minicelery import Celery\napp = Celery('t')\n")
    project.write("conf.py", "broker_url = 'amqp://guest:guest@127.0.0.1:1//'\n")
    ran = run("-q", "--config", "conf", "-A", "tasks", "call", "x")
    assert ran.code == 1
    assert ran.err.splitlines()[0].startswith("error: cannot reach RabbitMQ at amqp://guest:**@127.0.0.1:1//")
    assert 'without a server, broker="sqlite:///queue.db" works' in ran.err


def test_a_state_that_nobody_keeps_says_which_setting_is_missing(project: Project, run: Run) -> None:
    project.write("tasks.py", "from minicelery import Celery\napp = Celery('t', broker='sqlite:///q.db')\n")
    ran = run("-q", "-A", "tasks", "result", "abc")
    assert ran.code == 78
    assert ran.err.startswith(
        "error: no result backend is configured, so the state of tasks is unknown\nhint: set result_backend"
    )


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "task_serialiser='json'",
            "warning: unknown setting 'task_serialiser'; did you mean 'task_serializer'?",
        ),
        ("borker_url='x'", "did you mean 'broker_url'"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_nearest(
    project: Project, run: Run, settings: str, said: str
) -> None:
    project.write(
        "tasks.py", f"from minicelery import Celery\napp = Celery('t', broker='sqlite:///q.db', {settings})\n"
    )
    ran = run("-q", "-A", "tasks", "report")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_settings_as_flask_has_them_are_understood(project: Project, run: Run) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\napp = Celery('t')\n"
        "app.conf.update({'CELERY_BROKER_URL': 'sqlite:///q.db', 'CELERY_TASK_TRACK_STARTED': True, 'SECRET_KEY': 'x'})\n",
    )
    ran = run("-q", "-A", "tasks", "report")
    assert (ran.code, ran.err) == (0, "")
    assert "q.db" in ran.out
    assert "task_track_started" in ran.out


@pytest.mark.filterwarnings("always")
def test_old_and_new_names_of_settings_may_be_mixed_and_each_rename_is_said(
    project: Project, run: Run
) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\napp = Celery('t')\n"
        "app.conf.update(BROKER_URL='sqlite:///q.db', CELERYD_CONCURRENCY=3, result_backend='sqlite:///q.db')\n",
    )
    ran = run("-q", "-A", "tasks", "report")
    assert ran.code == 0
    assert re.search(r"worker_concurrency +3", ran.out)
    assert ran.err.splitlines() == [
        "warning: the setting 'BROKER_URL' is now called 'broker_url'",
        "warning: the setting 'CELERYD_CONCURRENCY' is now called 'worker_concurrency'",
    ]


def test_a_worker_without_its_broker_says_once_which_one_and_goes_on(project: Project) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\napp = Celery('t', broker='redis://u:hunter2@127.0.0.1:1/0')\n",
    )
    with open("log", "wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "minicelery", "-A", "tasks", "worker", "-c", "1"],
            stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": HOME}, start_new_session=True,
        )  # fmt: skip
    try:
        said = "cannot reach Redis at redis://u:**@127.0.0.1:1/0: connection refused; is redis-server running there?"
        wait_until(lambda: said in Path("log").read_text(), timeout=40)
        assert worker.poll() is None
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(40)
    text = Path("log").read_text()
    assert "Traceback" not in text and "hunter2" not in text


def test_sending_needs_no_result_store_and_reading_says_that_it_is_away(project: Project, run: Run) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\n"
        "app = Celery('t', broker='sqlite:///q.db', backend='redis://:hunter2@127.0.0.1:1/0')\n"
        "@app.task\ndef add(x, y):\n    return x + y\n",
    )
    sent = run("-q", "-A", "tasks", "call", "tasks.add", "1", "2")
    assert (sent.code, sent.err) == (0, "")
    ran = run("-q", "-A", "tasks", "result", sent.out.strip())
    assert ran.code == 1
    assert ran.err.splitlines()[0] == (
        "error: cannot reach Redis at redis://:**@127.0.0.1:1/0: connection refused"
    )


@pytest.mark.parametrize("command", ["worker", "doctor"])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (None, "importing 'more' failed: No module named 'more'"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("1/0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_can_not_be_imported_is_the_apps_fault_and_not_ours(
    project: Project, run: Run, module: str | None, said: str, command: str
) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\napp = Celery('t', broker='sqlite:///q.db', include=['more'])\n",
    )
    if module is not None:
        project.write("more.py", module)
    ran = run("-q", "-A", "tasks", *command.split())
    text = ran.out + ran.err
    assert ran.code == 1
    assert said in text
    assert "Traceback (most" not in text and "fault in minicelery" not in text
    assert ("more.py:1: " in text) == (module is not None)
    assert (f"Modules are looked for from {project.path}" in text) == (module is None)


@pytest.mark.parametrize("command", ["worker", "queues", "doctor", "report"])
def test_settings_that_are_not_there_are_named(project: Project, run: Run, command: str) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\napp = Celery('t')\napp.config_from_object('celeryconf')\n",
    )
    ran = run("-q", "-A", "tasks", command)
    assert ran.code == (1 if command == "doctor" else 78)
    assert "can't read settings from 'celeryconf': no module is named 'celeryconf'" in ran.out + ran.err
    assert "Traceback" not in ran.err


def test_dev_has_messages_of_unknown_tasks_wait_unless_the_app_says_otherwise(project: Project) -> None:
    from minicelery import Celery
    from minicelery.cli.dev import prepare
    from minicelery.cli.session import Session

    with Celery("t", broker="memory://", set_as_current=False) as app:
        prepare(Session(app))
        assert app.conf.worker_unregistered_task == "requeue"
    with Celery("t", broker="memory://", worker_unregistered_task="dead-letter", set_as_current=False) as app:
        prepare(Session(app))
        assert app.conf.worker_unregistered_task == "dead-letter"


def test_what_is_polled_can_be_sent_as_json_whatever_became_of_the_task(project: Project, run: Run) -> None:
    from minicelery import Celery

    url = f"sqlite:///{project.path / 'q.db'}"
    with Celery("t", broker=url, backend=url, set_as_current=False) as app:
        error = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
        app.backend.store([record("failed", "FAILURE", error)])
        failed, unknown = app.AsyncResult("failed").as_dict(), app.AsyncResult("unknown").as_dict()
    assert json.loads(json.dumps(failed))["error"] == {"type": "ValueError", "message": "no"}
    assert json.loads(json.dumps(unknown))["state"] == "PENDING"


def test_a_view_can_answer_with_what_is_polled_and_not_with_its_exception(project: Project) -> None:
    flask = pytest.importorskip("flask")
    from minicelery import Celery

    url = f"sqlite:///{project.path / 'q.db'}"
    site = flask.Flask("site")
    with Celery("t", broker=url, backend=url, set_as_current=False) as app:
        error = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
        app.backend.store([record("failed", "FAILURE", error)])
        site.get("/whole/<id>")(lambda id: app.AsyncResult(id).as_dict())
        site.get("/info/<id>", endpoint="info")(lambda id: flask.jsonify(info=app.AsyncResult(id).info))
        client = site.test_client()
        answers = [client.get(f"/{path}") for path in ("whole/failed", "whole/unknown", "info/failed")]
    assert [answer.status_code for answer in answers] == [200, 200, 500]
    assert answers[0].json["error"] == {"type": "ValueError", "message": "no"}
    assert (answers[1].json["state"], answers[1].json["progress"]) == ("PENDING", None)


def test_with_task_track_sent_what_waits_is_told_from_what_was_never_sent(
    project: Project, run: Run, redis_url: str
) -> None:
    from minicelery import Celery, chain

    for module, url in (("on_sqlite", f"sqlite:///{project.path / 'q.db'}"), ("on_redis", redis_url)):
        project.write(
            f"{module}.py",
            f"from minicelery import Celery\napp = Celery('t', backend={url!r}, broker={url!r})\n",
        )
        with Celery("t", broker=url, backend=url, task_track_sent=True, set_as_current=False) as app:

            @app.task(name="add")
            def add(x: int, y: int) -> int:
                return x + y

            first = chain(add.s(1, 2), add.s(3)).delay().parent
            sent = [add.delay(1, 2), first, add.apply_async((1, 2), countdown=60)]
            ignored = add.apply_async((1, 2), ignore_result=True)
            assert [(one.state, one.known) for one in sent] == [("PENDING", True)] * 3
            assert not app.AsyncResult(ignored.id).known
            assert not app.AsyncResult("never").known
            said = run("-A", module, "result", sent[0].id)
            assert (said.code, said.err) == (0, "note: state PENDING, not done yet\n")


def test_a_result_store_that_is_away_stops_no_one_who_tracks_what_is_sent(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    from minicelery import Celery

    with Celery(
        "t", broker=f"sqlite:///{project.path / 'q.db'}", backend="redis://127.0.0.1:1/0", task_track_sent=True,
        set_as_current=False,
    ) as app:  # fmt: skip
        app.send_task("add", (1, 2))
        assert app.broker.size("celery") == 1
    assert "that 1 tasks are sent is not stored: cannot reach Redis" in caplog.text


def test_an_argument_that_json_can_not_carry_is_named(project: Project, run: Run) -> None:
    from minicelery import Celery
    from minicelery.exceptions import EncodeError

    with Celery("t", broker="memory://", set_as_current=False) as app:

        @app.task(name="feedback.send")
        def send(user: object) -> None: ...

        with pytest.raises(
            EncodeError, match=r"argument 'user' of feedback.send is a Project, which the json"
        ):
            send.delay(project)
