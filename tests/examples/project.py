"""An example in a folder of its own, and the commands that its README gives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.rabbit import RabbitServer
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
_SETTINGS = ("CELERY_", "MINICELERY_", "DJANGO_")


class Project:
    """A project on a broker; its commands are what follows ``python`` or ``python -m``."""

    def __init__(self, folder: Path, broker_url: str, example: str = "") -> None:
        self.folder = folder / "project"
        self.log = folder / "worker.log"
        if example:
            shutil.copytree(
                ROOT / "examples" / example,
                self.folder,
                ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3"),
            )
        else:
            self.folder.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)},
            "CELERY_BROKER_URL": broker_url,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> str:
        """What the command prints; it must end well."""
        done = subprocess.run(
            self._arguments(command),
            cwd=self.folder, env=self.environment, timeout=30, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        return done.stdout

    def start_worker(self, command: str) -> None:
        """Start the worker, and wait until it is ready."""
        self.start(command, self.log, " ready")

    def start(self, command: str, log: Path, sign: str) -> None:
        """Start what runs until `close`, and wait for `sign` in its log."""
        with open(log, "wb") as file:
            process = subprocess.Popen(
                self._arguments(command),
                cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self._processes.append(process)

        def has_started() -> bool:
            text = log.read_text()
            assert process.poll() is None, f"{command} ended with {process.returncode}:\n{text[-3000:]}"
            return sign in text

        wait_until(has_started, 30)

    def logged(self, text: str) -> str:
        """The worker's log, once it has `text`."""
        wait_until(lambda: text in self.log.read_text(), 20)
        return self.log.read_text()

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def _arguments(self, command: str) -> list[str]:
        words = command.split()
        return [sys.executable, *([] if words[0].endswith(".py") else ["-m"]), *words]


@contextlib.contextmanager
def on_rabbit(server: RabbitServer, folders: pytest.TempPathFactory, example: str = "") -> Iterator[Project]:
    """The example, or an empty project, on a virtual host of its own."""
    vhost = f"example-{uuid4().hex[:8]}"
    server.add_vhost(vhost)
    project = Project(folders.mktemp("example"), server.url(vhost), example)
    try:
        yield project
    finally:
        project.close()
        server.delete_vhost(vhost)
