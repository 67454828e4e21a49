"""health and doctor: whether all is well, and what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minicelery import Celery, vitals
from minicelery.cli import checks
from tests.cli.conftest import Project, Ran, reject, send
from tests.waiting import wait_until

Run = Callable[..., Ran]
HOME = str(Path(__file__).resolve().parents[2])


# -- health ------------------------------------------------------------------------------


def said(folder: Path, **changed: Any) -> None:
    """What a worker of this process's number has left."""
    vitals.Vitals(os.getpid(), {"node": "w1@host", "broker": "x", "queues": ["celery"]}).write(
        **{"reached": time.time(), "stopping": False, "children": [{"pid": 1}], "paused": [], **changed}
    )


@pytest.mark.parametrize(
    ("changed", "well", "reason"),
    [
        ({}, "live ready consuming", ""),
        ({"reached": None}, "live", "it has not reached its broker yet"),
        ({"reached": 1.0}, "live", "its broker has not answered for "),
        ({"children": []}, "live", "none of its children has begun"),
        ({"stopping": True}, "live", "it is stopping"),
        ({"paused": ["celery"]}, "live ready", "its queues are paused: celery"),
        ({"paused": ["other"]}, "live ready consuming", ""),
        ({"at": 1.0}, "", "it has said nothing for "),
        ({"born": 1}, "", " is gone"),
    ],
)
def test_health_follows_from_what_a_worker_has_said(
    own_run_folder: Path, run: Run, changed: dict[str, Any], well: str, reason: str
) -> None:
    said(own_run_folder, **changed)
    for check in ("live", "ready", "consuming"):
        ran = run("health", check)
        assert ran.code == (0 if check in well.split() else 1)
        assert reason in ran.err
    assert run("health").code == (0 if "ready" in well else 1)
    (document,) = json.loads(run("health", "--json").out)
    assert [check for check in ("live", "ready", "consuming") if document[check]] == well.split()


def test_a_worker_is_chosen_by_name_or_pid_file(own_run_folder: Path, run: Run, tmp_path: Path) -> None:
    said(own_run_folder)
    pid_file = tmp_path / "w.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    for words in (["-n", "w1"], ["-n", "w1@host"], ["--pidfile", str(pid_file)]):
        assert run("health", *words).code == 0
    pid_file.write_text("1\n")
    for words in (["-n", "w2"], ["--pidfile", str(pid_file)], ["--pidfile", str(tmp_path / "none")]):
        ran = run("health", *words)
        assert (ran.code, ran.err.startswith("error: ")) == (69, True)
    pid_file.write_text("no number")
    assert run("health", "--pidfile", str(pid_file)).code == 2


def test_without_a_worker_health_says_where_it_looked(own_run_folder: Path, run: Run) -> None:
    ran = run("health")
    assert ran.code == 69
    assert str(own_run_folder) in ran.err
    own_run_folder.mkdir()
    (own_run_folder / "7.json").write_text("{ no JSON")
    (own_run_folder / "8.json").write_text("[1]")
    assert run("health").code == 69


def test_a_folder_that_others_may_write_to_is_not_believed(own_run_folder: Path, run: Run) -> None:
    said(own_run_folder)
    own_run_folder.chmod(0o777)
    assert run("health").code == 69


def test_a_worker_tells_of_its_health_while_it_runs_and_no_longer(
    app: Celery, run: Run, own_run_folder: Path
) -> None:
    command = [sys.executable, "-m", "minicelery", "-A", "tasks", "worker", "-c", "1", "-n", "one@here"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": HOME}
    ) as worker:
        try:
            wait_until(lambda: run("health", "consuming", "-n", "one").code == 0, timeout=40, interval=0.05)
            assert str(worker.pid) in run("health").out
            assert "one@here runs on this machine" in run("-A", "tasks", "doctor").out
            worker.send_signal(signal.SIGTERM)
            wait_until(lambda: worker.poll() is not None, timeout=40)
        finally:
            worker.kill()
    wait_until(lambda: run("health").code == 69, timeout=40)


def test_health_needs_neither_the_app_nor_a_client_library(own_run_folder: Path) -> None:
    said(own_run_folder)
    code = (
        "import sys; from minicelery.cli import main; code = main(['health']);"
        "heavy = 'redis pika msgpack sqlite3 minicelery.app minicelery.worker minicelery.broker';"
        "print(code, [name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=40,
        env={**os.environ, "PYTHONPATH": HOME},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []"


def test_what_dead_workers_have_left_is_removed_by_the_next_one(own_run_folder: Path) -> None:
    own_run_folder.mkdir(mode=0o700)
    for name in ("4194304.json", "4194304.new", "names-abc.json", f"{os.getpid()}.json"):
        (own_run_folder / name).write_text("{}")
    vitals.Vitals(os.getpid(), {})
    assert sorted(path.name for path in own_run_folder.iterdir()) == sorted(
        ["names-abc.json", f"{os.getpid()}.json"]
    )


# -- doctor ------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_with_a_plain_app(app: Celery, run: Run) -> None:
    ran = run("-q", "-A", "tasks", "doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    # Who runs it, and how many files he may open, is not the app's.
    found = [one for one in json.loads(ran.out)["findings"] if one["subject"] not in ("user", "limits")]
    assert [one for one in found if one["level"] not in ("ok", "note")] == []
    assert {one["subject"] for one in found} >= {
        "settings",
        "tasks",
        "broker",
        "results",
        "queues",
        "workers",
    }
    assert run("-q", "-A", "tasks", "doctor").out.splitlines()[-1].startswith("no errors, ")


@pytest.mark.parametrize(
    ("trips", "level", "text"),
    [((5.0, 0.02, 7.0), "ok", "answers in 20 ms"), ((5.0, 0.2, 7.0), "warning", "answers in 200 ms")],
)
def test_one_slow_trip_does_not_make_a_server_slow(
    monkeypatch: pytest.MonkeyPatch, trips: tuple[float, ...], level: str, text: str
) -> None:
    readings = iter([at for trip in trips for at in (0.0, trip)])
    monkeypatch.setattr(checks, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    finding = checks._timed("broker", "far://away", lambda: None)
    assert (finding.level, finding.text) == (level, f"far://away {text}")


@pytest.mark.parametrize(
    ("settings", "level", "text"),
    [
        ("task_serializer='msgpack', accept_content=['json']", "error", "is not in accept_content"),
        ("task_reject_on_worker_lost=True", "warning", "without task_acks_late has no effect"),
        ("task_always_eager=True", "warning", "task_always_eager is set"),
        ("task_serialiser='json'", "warning", "there is no setting 'task_serialiser'"),
        ("accept_content=['json', 'pickle']", "warning", "pickle"),
        ("result_expires=10, task_time_limit=600", "warning", "results are kept 10 s"),
        ("task_soft_time_limit=60, task_time_limit=30", "error", "a task never hears of it"),
        (
            "broker_transport_options={'visibility_timeout': 60}",
            "note",
            "visibility_timeout is for workers of Celery",
        ),
        ("worker_pool_putlocks=False", "note", "worker_pool_putlocks has no effect"),
        (
            "beat_schedule={'a': {'task': 'x', 'schedule': 5}}",
            "warning",
            "no beat is there, for 1 periodic task",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_doctor_names_settings_that_can_not_be_meant(
    project: Project, run: Run, settings: str, level: str, text: str
) -> None:
    project.write(
        "tasks.py",
        f"from minicelery import Celery\napp = Celery('t', broker='sqlite:///queue.db', {settings})\n",
    )
    ran = run("-q", "-A", "tasks", "doctor", "--json")
    found = [one for one in json.loads(ran.out)["findings"] if text in one["text"]]
    assert [one["level"] for one in found] == [level]
    assert ran.code == (1 if level == "error" else 0)


def test_doctor_says_once_that_the_broker_is_out_of_reach(project: Project, run: Run) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\napp = Celery('t', broker='redis://u:hunter2@127.0.0.1:1/0')\n",
    )
    ran = run("-A", "tasks", "doctor")
    assert ran.code == 1
    assert ran.out.count("cannot reach") == 1
    assert "hunter2" not in ran.out + ran.err


def test_doctor_sees_what_is_paused_dead_and_waiting(app: Celery, run: Run) -> None:
    reject(app, "tasks.add")
    run("-A", "tasks", "pause", "-Q", "celery", "-T", "tasks.boom")
    out = run("-A", "tasks", "doctor").out
    for text in ("celery has 1 dead letter", "celery is paused", "the task tasks.boom is paused"):
        assert text in out


def test_doctor_asks_redis_what_it_does_when_memory_is_full(
    private_redis: Any, project: Project, run: Run
) -> None:
    for words in ("maxmemory 100mb", "maxmemory-policy allkeys-lru", "save ''", "appendonly no"):
        name, value = words.split()
        private_redis.command("CONFIG", "SET", name, value.strip("'"))
    ran = run("-b", private_redis.url(), "doctor")
    assert ran.code == 1
    assert "maxmemory-policy is allkeys-lru" in ran.out
    assert "nothing is written to disk" in ran.out


def test_doctor_finds_rabbitmq_well_and_a_queue_that_nobody_serves(
    rabbit_url: str, run: Run, project: Project
) -> None:
    with Celery("sender", broker=rabbit_url, set_as_current=False) as app:
        send(app)
        wait_until(lambda: app.broker.size("celery") == 1)
    ran = run("-b", rabbit_url, "doctor")
    assert ran.code == 0
    assert "no worker serves celery, with 1 message in it" in ran.out
