"""`minicelery flower`: the installed Flower with its own options, and what is said where there is none."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from tests.cli.conftest import Project, Ran
from tests.waiting import wait_until

Run = Callable[..., Ran]
ROOT = Path(__file__).parents[2]
COMMAND = ("-A", "tasks", "flower")


class Served:
    """A Flower that runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        visit = wait_until(lambda: re.search(r"Visit me at (http://\S+)", self.said()) or process.poll(), 45)
        assert not isinstance(visit, int), self.said()
        self.url = visit[1].rstrip("/")

    def said(self) -> str:
        return self.log.read_text()

    def ask(self, path: str, user: str | None = None, data: bytes | None = None) -> tuple[int, str]:
        """The answer's code, and its text."""
        request = urllib.request.Request(self.url + path, data)
        if user is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextmanager
def flower(folder: Path, *words: str, **environment: str) -> Iterator[Served]:
    log = folder / "flower.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "minicelery", *words, "--port=0", "--address=127.0.0.1"],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        yield Served(process, log)
    finally:
        process.kill()
        process.wait(10)


def test_where_flower_is_missing_the_package_is_named(
    project: Project, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flower" else find(name))
    ran = run("-A", "tasks", "flower", "--port=5555")
    assert (ran.code, ran.err) == (
        1,
        'error: Flower is not installed\nhint: pip install "minicelery[flower]"\n',
    )


@pytest.fixture
def real() -> None:
    pytest.importorskip("flower")


@pytest.mark.usefixtures("real")
def test_flower_takes_its_options_and_its_environment_and_ends_at_an_interrupt(project: Project) -> None:
    project.write_tasks()
    options = ["--basic_auth=ana:s3cret,eva:pw", "--url_prefix=panel"]
    with flower(project.path, *COMMAND, *options, FLOWER_READ_ONLY="true") as served:
        assert served.url.endswith("/panel")
        assert served.ask("/workers")[0] == 401
        assert served.ask("/workers", "ana:wrong")[0] == 401
        assert served.ask("/workers", "eva:pw")[0] == 200
        assert json.loads(served.ask("/api/task/types", "ana:s3cret")[1]) == {"task-types": []}
        code, said = served.ask("/api/task/send-task/tasks.add", "ana:s3cret", b'{"args": [1, 2]}')
        assert (code, said) == (403, "Read only mode is enabled")
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(30) == 0
        said = served.said()
        assert "'tasks.add'" in said
        assert f"Broker: sqlite:///{project.path}/queue.db" in said
        assert "s3cret" not in said and "[E " not in said and "Traceback" not in said


@pytest.mark.usefixtures("real")
def test_flower_sends_tasks_of_the_app_and_reads_their_results(project: Project) -> None:
    project.write_tasks()
    with flower(project.path, *COMMAND, FLOWER_UNAUTHENTICATED_API="1") as served:
        code, said = served.ask("/api/task/async-apply/tasks.add", data=b'{"args": [1, 2]}')
        sent: dict[str, Any] = json.loads(said)
        assert (code, sent["state"]) == (200, "PENDING")
        assert served.ask("/api/task/apply/tasks.nothing", data=b"{}") == (
            404,
            "Unknown task 'tasks.nothing'",
        )
        code, said = served.ask(f"/api/task/abort/{sent['task-id']}", data=b"")
        assert json.loads(said) == {"message": f"Aborted '{sent['task-id']}'"}
        code, said = served.ask(f"/api/task/result/{sent['task-id']}")
        assert json.loads(said) == {"task-id": sent["task-id"], "state": "ABORTED"}
        assert served.ask("/broker")[0] == 404  # Flower looks into Redis and RabbitMQ only
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0


@pytest.mark.usefixtures("real")
def test_what_flower_has_seen_is_there_after_a_restart_with_persistent(project: Project) -> None:
    project.write_tasks()
    options = ["--persistent=True", "--db=seen"]
    url = f"sqlite:///{project.path}/queue.db"
    with (
        Celery("w", broker=url, set_as_current=False) as app,
        flower(project.path, *COMMAND, *options) as served,
    ):
        dispatcher = app.events.Dispatcher(hostname="w@h")

        def seen() -> bool:
            dispatcher.send("worker-heartbeat", freq=60)
            return "w@h" in served.ask("/workers?json=1")[1]

        wait_until(seen, 30, interval=0.1)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
    with flower(project.path, *COMMAND, *options) as served:
        found = json.loads(served.ask("/workers?json=1")[1])["data"]
        assert [worker["hostname"] for worker in found] == ["w@h"]


@pytest.mark.usefixtures("real")
def test_an_option_that_flower_does_not_have_is_refused(project: Project, run: Run) -> None:
    ran = run("-A", "tasks", "flower", "--port=5555", "--url-prefx=panel")
    assert ran.code == 2
    assert ran.err == "error: Flower has no option '--url-prefx'\nhint: did you mean '--url-prefix'?\n"


@pytest.mark.usefixtures("real")
def test_a_wrong_value_of_an_option_is_told_in_a_line(project: Project) -> None:
    project.write_tasks()
    done = subprocess.run(
        [sys.executable, "-m", "minicelery", "-A", "tasks", "flower", "--port=none"],
        cwd=project.path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=45,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        "error: Flower has ended with ValueError: invalid literal for int() with base 10: 'none'"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
