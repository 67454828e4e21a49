"""The tasks of `tests.properties`, for a worker that imports this module; each run leaves its traces."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import minicelery
from tests.properties.places import add_tasks as add_quick_tasks
from tests.worker.apps.tasks import Traces

PATH = "COMPOSITIONS_TRACES"


def add_tasks(app: Any, path: Path) -> None:
    """Declare them; `path` is where they leave their traces."""
    traces = Traces(path)
    add_quick_tasks(app)
    app.tasks.unregister("say")

    @app.task(name="say", bind=True)
    def say(self: Any, *args: Any, name: str = "") -> list[Any]:
        traces.add("start", self.request.id, name)
        time.sleep(0.005)
        traces.add("end", self.request.id, name)
        return [name, *args]

    @app.task(name="total", bind=True)
    def total(self: Any, values: list[int]) -> int:
        traces.add("start", self.request.id)
        found = sum(values)
        traces.add("end", self.request.id)
        return found

    @app.task(name="same")
    def same(value: int) -> int:
        return value

    @app.task(name="told", bind=True)
    def told(self: Any, value: Any, of: str = "") -> None:
        """A callback: leaves whose it was."""
        traces.add("told", of, self.request.id)


if _path := os.environ.get(PATH):
    add_tasks(minicelery.current_app, Path(_path))
