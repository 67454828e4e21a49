"""Workers as processes of their own, for the compatibility tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import TaskRevokedError
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
TIMEOUT = 30


class Shop:
    """An app on a database file, and the workers that a test has started for it."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/queue.db"
        self.app = Celery("shop", broker=self.url, backend=self.url, set_as_current=False)
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        number = len(self.workers)
        with open(self.folder / f"worker-{number}.log", "wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "minicelery", "-A", "tests.compat.project", "worker", *options],
                cwd=ROOT, env={**os.environ, "COMPAT_URL": self.url, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.workers.append(worker)
        return worker

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(name, args, **options)

    def get(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a task, and wait for its value, for as long as the workers live."""
        found = self.call(name, *args, **options)
        wait_until(lambda: found.ready() or any(one.poll() is not None for one in self.workers), TIMEOUT)
        assert found.ready(), self.log(len(self.workers) - 1)[-4000:]
        return found.get(timeout=1)

    def log(self, number: int = 0) -> str:
        return (self.folder / f"worker-{number}.log").read_text(errors="replace")

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait(5)
        self.workers.clear()


def begun(result: Any) -> None:
    wait_until(lambda: result.state == "STARTED", timeout=TIMEOUT)


def revoked(result: Any) -> bool:
    """Whether the call ends as revoked, here and for who waits."""
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    return bool(result.state == "REVOKED")
