"""An example whose site and worker are started by its README's commands, and an HTTP client for it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser
from tests.docs.blocks import code_blocks
from tests.examples.project import Project
from tests.waiting import wait_until

LIMIT = 40.0
"""Seconds that a machine may take which has much else to do."""


class FlaskSite(Project):
    """The example's project; its commands are lines of its README."""

    url = ""
    """Of the development server, once it runs."""

    def __init__(self, folder: Path, broker_url: str, example: str) -> None:
        super().__init__(folder, broker_url, example)
        text = (self.folder / "README.md").read_text(encoding="utf-8")
        self._documented = {
            line
            for block in code_blocks(text)
            if block.language == "bash"
            for line in block.text.splitlines()
        }

    def replace(self, file: str, old: str, new: str) -> None:
        """Have the copy name this test's server: `old` stands in the example as the tutorial prints it."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} of the example does not say {old}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def documented(self, command: str, more: str = "") -> str:
        """What `run` and `start` take, for a command of the README and, behind it, what a test needs."""
        assert command in self._documented, f"the README says nothing of {command!r}"
        return f"{command} {more}".strip()

    def serve(self, command: str = "flask --app app run", sign: str = "Press CTRL") -> None:
        """Start the development server on a free port."""
        log = self.log.with_name("web.log")
        self.start(self.documented(command, "--host 127.0.0.1 --port 0"), log, sign)
        found = re.search(r"unning on (http://[\d.:]+)", log.read_text())
        assert found is not None, log.read_text()
        self.url = found[1]

    def start_and_end(self, command: str, log: Path, sign: str, then: Callable[[], object]) -> None:
        """Have it run from `sign` in its log until `then` gives something true."""
        self.start(command, log, sign)
        wait_until(then, LIMIT, 0.05)
        process = self._processes.pop()
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path))[1]

    def post(
        self, path: str, body: bytes | dict[str, Any], kind: str = "application/json"
    ) -> tuple[int, Any]:
        """The answer's code, and what it says."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url + path, data, {"Content-Type": kind}, method="POST"))

    def answers_until(self, state: str, path: str) -> list[dict[str, Any]]:
        """The answers there that differ from the one before, up to that with `state`."""
        seen: list[dict[str, Any]] = []

        def has_come() -> bool:
            found = self.get(path)
            if seen[-1:] != [found]:
                seen.append(found)
            assert found["estado"] in ("PENDING", "STARTED", "PROGRESS", "RETRY", state), found
            return bool(found["estado"] == state)

        wait_until(has_come, LIMIT, 0.02)
        return seen

    def logged(self, text: str) -> str:
        """The worker's log, once it has `text`."""
        wait_until(lambda: text in self.log.read_text(), LIMIT, 0.05)
        return self.log.read_text()

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)


def least(ask: Callable[[], object], limit: float, rounds: int = 5) -> float:
    """The least of the seconds that some rounds take, and no more rounds than it takes to come below `limit`."""
    found = float("inf")
    for _ in range(rounds):
        began = time.monotonic()
        ask()
        found = min(found, time.monotonic() - began)
        if found < limit:
            break
    return found


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A Chromium; where there is none the test is skipped, in CI it fails."""
    if not Browser.available():
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("chromium is not installed")
    with Browser() as browser:
        yield browser
