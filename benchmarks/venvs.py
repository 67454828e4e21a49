"""One virtual environment per peer, made once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import BenchError

ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = "{checkout}"
"""Stands for this checkout in a peer's requirements."""

_VERSIONS = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)


class Environments:
    """Virtual environments under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, name: str, requirements: tuple[str, ...]) -> Path:
        """The `bin` folder of the environment `name`, installed anew where anything changed."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        home = self.folder / f"{name}-{python}"
        stamp = home / "requirements.stamp"
        wanted = _fingerprint(requirements)
        if stamp.exists() and stamp.read_text() == wanted:
            return home / "bin"
        print(f"installing {name} into {home}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *_arguments(requirements)])
        stamp.write_text(wanted)
        return home / "bin"


def versions(bin_folder: Path) -> dict[str, str]:
    """Installed distributions, lower-case name to version."""
    found: dict[str, str] = json.loads(_run([str(bin_folder / "python"), "-c", _VERSIONS]))
    return {name: version for name, version in sorted(found.items()) if name not in ("pip", "setuptools")}


def _arguments(requirements: tuple[str, ...]) -> list[str]:
    arguments = []
    for requirement in requirements:
        if requirement.startswith(CHECKOUT):
            arguments += ["--editable", requirement.replace(CHECKOUT, str(ROOT))]
        else:
            arguments.append(requirement)
    return arguments


def _fingerprint(requirements: tuple[str, ...]) -> str:
    text = "\n".join(requirements) + sys.version
    if any(requirement.startswith(CHECKOUT) for requirement in requirements):
        project = ROOT / "pyproject.toml"
        text += str(ROOT) + (project.read_text() if project.exists() else "")
    return hashlib.sha256(text.encode()).hexdigest()


def _run(command: list[str]) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout
