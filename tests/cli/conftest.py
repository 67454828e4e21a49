"""A project directory of its own for each test, and the command line run inside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, _state, vitals
from minicelery.cli import main
from minicelery.message import Outcome, Verdict


class Project:
    """A directory that is the working directory; modules written to it are forgotten afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)  # in one step: what watches it never sees a part of it
        return file

    def write_tasks(self) -> Path:
        """tasks.py with an app on a SQLite file, and the task tasks.add."""
        return self.write(
            "tasks.py",
            "from minicelery import Celery\n"
            'app = Celery("tasks", broker="sqlite:///queue.db", backend="sqlite:///queue.db")\n'
            "@app.task\n"
            "def add(x, y):\n"
            "    return x + y\n"
            "@app.task\n"
            "def boom():\n"
            '    raise ValueError("no")\n',
        )


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINICELERY_APP", "CELERY_APP", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("FORCE_COLOR", "MINICELERY_TRACEBACK", "CELERY_CONFIG_MODULE"):
        monkeypatch.setenv(name, "")  # so that what a command sets is undone as well
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def own_tasks() -> Iterator[None]:
    """What a test's apps share with all others is forgotten after it."""
    current, shared, finalized = _state._apps.current, list(_state.shared), list(_state.finalized)
    yield
    _state._apps.current = current
    _state.shared[:], _state.finalized[:] = shared, finalized


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield Project(tmp_path)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
            if name in before:
                sys.modules[name] = before[name]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*argv: str) -> Ran:
        code = main(argv)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(autouse=True)
def own_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the workers of this test, and no others, say how they are."""
    monkeypatch.setenv(vitals.VARIABLE, str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def app(project: Project) -> Iterator[Celery]:
    """The app of tasks.py as another process sees it."""
    project.write_tasks()
    url = f"sqlite:///{project.path / 'queue.db'}"
    with Celery("reader", broker=url, backend=url, set_as_current=False) as app:
        yield app


def send(app: Celery, name: str = "tasks.add", *args: Any, **options: Any) -> str:
    return str(app.send_task(name, args, **options).id)


def reject(app: Celery, *names: str, queue: str = "celery") -> list[str]:
    """Send a call of each, and have it rejected; their ids."""
    ids = [send(app, name, 1, 2, queue=queue) for name in names]
    consumer = app.broker.consumer([queue], "rejecting", None)
    fresh = consumer.swap([], len(names), 1)
    consumer.swap(
        [Outcome(one, Verdict.REJECT, reason=f"no good: {one.message.task}") for one in fresh], 0, 0
    )
    consumer.close()
    return ids
