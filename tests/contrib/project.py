"""A folder with a program in it, and processes that run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import end
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would choose another app or broker."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "MINICELERY_"))
    }
    return {
        **kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **more,
    }  # fmt: skip


@contextmanager
def running(folder: Path, command: list[str], until: str, log: str = "log", **env: str) -> Iterator[Path]:
    """`python -m` this command in `folder`, once its output has `until`; the path of that output."""
    path = folder / log
    with open(path, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder, env=environment(**env), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip

    def said() -> bool:
        assert process.poll() is None, (
            f"{command} ended with {process.returncode}:\n{path.read_text()[-3000:]}"
        )
        return until in path.read_text()

    try:
        wait_until(said, 40, 0.02)
        yield path
    finally:
        end(process)


def ran(folder: Path, *command: str, timeout: float = 30, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m` this command in `folder`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, env=environment(**env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def port_in(log: Path) -> int:
    """The port that uvicorn has chosen, as its log says."""
    found = re.search(r"running on http://[\d.]+:(\d+)", log.read_text())
    assert found is not None, log.read_text()
    return int(found[1])
