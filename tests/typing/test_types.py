"""Type checkers understand what users write, and find their mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT, WRONG = HERE / "program.py", HERE / "wrong_calls.py"
LONGEST = 280.0
"""Seconds a checker may take that has never seen the package."""

Found = dict[Path, dict[int, str]]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LONGEST)


def mypy(tmp_path: Path) -> Found:
    """What ``mypy --strict`` says: the errors of each line."""
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = True\npython_version = 3.10\n")
    # The cache that `make check` keeps too: a run takes seconds, and half a minute without it.
    ended = run(
        sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", ".mypy_cache/users",
        "--no-error-summary", "--no-pretty", str(RIGHT), str(WRONG),
    )  # fmt: skip
    assert ended.returncode in (0, 1) and not ended.stderr, ended.stdout + ended.stderr
    found: Found = {RIGHT: {}, WRONG: {}}
    for line in ended.stdout.splitlines():
        place = re.match(r"(.+?):(\d+): error: (.*)", line)
        if place is not None:
            found.setdefault((ROOT / place[1]).resolve(), {})[int(place[2])] = place[3]
    return found


def pyright(tmp_path: Path) -> Found:
    """What pyright's strict mode says: the errors of each line."""
    config = tmp_path / "pyrightconfig.json"
    settings = {
        "include": [str(RIGHT), str(WRONG)], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict",
        "pythonVersion": "3.10", "reportUnknownMemberType": False, "reportPrivateImportUsage": True,
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    ended = run(
        sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(config),
        "--pythonpath", sys.executable,
    )  # fmt: skip
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    found: Found = {RIGHT: {}, WRONG: {}}
    for one in json.loads(ended.stdout)["generalDiagnostics"]:
        if one["severity"] == "error":
            file = Path(one["file"].removeprefix("file://")).resolve()
            found.setdefault(file, {})[one["range"]["start"]["line"] + 1] = one["message"]
    return found


@pytest.mark.timeout(LONGEST + 10)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_checker_accepts_the_program_and_finds_every_mistake(
    checker: Callable[[Path], Found], tmp_path: Path
) -> None:
    lines = WRONG.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if "# wrong" in line}
    found = checker(tmp_path)
    assert found.pop(RIGHT) == {}
    mistakes = found.pop(WRONG)
    assert len(marked) > 30
    assert {number: lines[number - 1] for number in marked - set(mistakes)} == {}, "not found"
    assert {number: mistakes[number] for number in set(mistakes) - marked} == {}, "no mistakes"
    assert found == {}, "in the package itself"
