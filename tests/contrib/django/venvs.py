"""Virtual environments with another Django than the suite's own, kept from run to run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NEEDED = ("click>=8.1", "msgpack>=1.0", "pika>=1.3", "pytest>=8.0", "pytest-timeout>=2.3", "redis>=5.0")


def python_with(django: str, *versions: str) -> str:
    """An interpreter that has this Django: of the first of the Python `versions` that is found.

    Skips the test where there is none, in words that stand in the summary.
    """
    for version in versions:
        if (found := _interpreter(version)) is not None:
            return _made(found, version, django)
    wanted = " or ".join(f"python{version}" for version in versions)
    pytest.skip(
        f"DJANGO {django} IS NOT TESTED: it needs {wanted}, and none was found on PATH or among pyenv's"
    )


def run_tests(python: str, *words: str, **environment: str) -> None:
    """Run pytest with what it is told by another interpreter, in a process of its own; all must pass."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", "PYTEST_ADDOPTS": "",
        "CI": "",  # where all that the suite needs must be there; not here
        **environment,
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def _interpreter(version: str) -> str | None:
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    pyenv = sorted(home.glob(f"versions/{version}.*/bin/python{version}"))
    candidates = [*map(str, pyenv[-1:]), shutil.which(f"python{version}")]
    for candidate in candidates:
        if candidate and _works(candidate, version):
            return candidate
    return None


def _works(python: str, version: str) -> bool:
    """Whether it is one: pyenv's shims are there for versions that are not chosen too."""
    shown = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=20, check=False)
    return shown.returncode == 0 and version in shown.stdout


def _made(python: str, version: str, django: str) -> str:
    return kept(python, f"python{version}-django{django}", [f"django=={django}.*", *NEEDED])


def kept(python: str, name: str, wanted: Sequence[str], alone: Sequence[str] = ()) -> str:
    """The interpreter of a virtual environment that has what is `wanted`; made where it is not there.

    What is in `alone` comes without what it depends on.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minicelery-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / name
    with open(f"{folder}.lock", "w") as lock:  # held by one of the processes that test at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "installed"
        if not done.exists() or done.read_text().split() != [*wanted, *alone]:
            if not done.exists():
                _run([python, "-m", "venv", "--clear", str(folder)])
            install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            _run([*install, *wanted])
            if alone:
                _run([*install, "--no-deps", *alone])
            done.write_text("\n".join([*wanted, *alone]))
    return str(folder / "bin" / "python")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
