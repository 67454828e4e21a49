"""Projects in folders of their own, the examples among them, and the commands that their READMEs give."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from tests.docs.blocks import code_blocks
from tests.rabbit import RabbitServer
from tests.processes import end
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
_SETTINGS = ("CELERY_", "MINICELERY_", "DJANGO_")
LIMIT = 40.0
"""Seconds that a machine may take which has much else to do."""


class Project:
    """A project on a broker; its commands are what follows ``python`` or ``python -m``."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.log = folder / "worker.log"
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
            cwd=self.folder, env=self.environment, timeout=LIMIT, capture_output=True, text=True,
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

        wait_until(has_started, LIMIT)

    def logged(self, text: str) -> str:
        """The worker's log, once it has `text`."""
        wait_until(lambda: text in self.log.read_text(), LIMIT, 0.05)
        return self.log.read_text()

    def close(self) -> None:
        """End every process."""
        end(*self._processes)

    def _arguments(self, command: str) -> list[str]:
        words = command.split()
        return [sys.executable, *([] if words[0].endswith(".py") else ["-m"]), *words]


class Example(Project):
    """An example that is a web site; its commands are lines of its README."""

    url = ""
    """Of the development server, once it runs."""

    def __init__(self, folder: Path, broker_url: str, example: str) -> None:
        super().__init__(folder, broker_url)
        self.original = ROOT / "examples" / example
        shutil.copytree(
            self.original, self.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3")
        )  # fmt: skip
        text = (self.folder / "README.md").read_text(encoding="utf-8")
        self._commands = {
            line for block in code_blocks(text) if block.language == "bash" for line in block.text.splitlines()
        }

    def replace(self, file: str, old: str, new: str) -> None:
        """Have the copy name this test's server: `old` stands in the example as the tutorial prints it."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} of the example does not say {old}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def documented(self, command: str, more: str = "") -> str:
        """What `run` and `start` take, for a command of the README and, behind it, what a test needs."""
        assert command in self._commands, f"the README says nothing of {command!r}"
        words = command.split()
        if words[0] == "python":
            del words[: 2 if words[1] == "-m" else 1]
        return " ".join([*words, more]).strip()

    def start_server(self, command: str, sign: str) -> None:
        """Start the development server, and read the port that it has chosen from its log."""
        log = self.log.with_name("web.log")
        self.start(command, log, sign)
        found = re.search(r"(?:unning on|development server at) (http://[\d.:]+)", log.read_text())
        assert found is not None, log.read_text()
        self.url = found[1]


SomeProject = TypeVar("SomeProject", bound=Project)


@contextlib.contextmanager
def on_rabbit(
    server: RabbitServer, folders: pytest.TempPathFactory, make: Callable[[Path, str], SomeProject]
) -> Iterator[SomeProject]:
    """What is made of a folder and the URL of a virtual host of its own."""
    vhost = f"example-{uuid4().hex[:8]}"
    server.add_vhost(vhost)
    project = make(folders.mktemp("example"), server.url(vhost))
    try:
        yield project
    finally:
        project.close()
        server.delete_vhost(vhost)


def took(ask: Callable[[], object]) -> float:
    """The seconds until it is answered."""
    began = time.monotonic()
    ask()
    return time.monotonic() - began


def least(rounds: Iterator[float], limit: float) -> float:
    """The least of some times, and no more rounds than it takes to come below `limit`."""
    found = float("inf")
    for seconds in rounds:
        found = min(found, seconds)
        if found < limit:
            break
    return found
