"""An example that is a Flask site: its README's commands, and an HTTP client for it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.examples.project import LIMIT, Example
from tests.processes import end
from tests.waiting import wait_until


class FlaskSite(Example):
    """The running example."""

    def serve(self) -> None:
        """Start the development server on a free port."""
        self.start_server(self.documented("flask --app app run", "--host 127.0.0.1 --port 0"), "Press CTRL")

    def start_and_end(self, command: str, log: Path, sign: str, then: Callable[[], object]) -> None:
        """Have it run from `sign` in its log until `then` gives something true."""
        self.start(command, log, sign)
        wait_until(then, LIMIT, 0.05)
        end(self._processes.pop())

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

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
