"""Scripts that run in interpreters of their own, in which packages may be hidden."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Absent(PathFinder):
    "Finds no Celery and none of what comes with it, as on a machine where they are not installed."
    @classmethod
    def find_spec(cls, name, *more):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, *more)

sys.meta_path[:] = [Absent if finder is PathFinder else finder for finder in sys.meta_path]
"""


def without(*packages: str) -> str:
    """The beginning of a script in which these can't be found."""
    return _WITHOUT.format(absent=packages)


NEITHER = without("celery", "kombu", "amqp", "vine", "billiard")
ONLY_KOMBU = without("celery")


def run(script: str, folder: Path, **env: str) -> str:
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env}, cwd=folder, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
