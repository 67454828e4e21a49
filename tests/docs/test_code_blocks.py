"""What the documentation shows works: every page's code, files and commands, in the page's order."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minicelery.cli import main
from tests.docs.blocks import Block, code_blocks, documents, make_targets, minicelery_commands, shell_commands
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PAGES = [str(page.relative_to(ROOT)) for page in documents(ROOT)]
LONGEST = 50.0
"""Seconds that all of a page may take."""


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs(page: str, tmp_path: Path) -> None:
    steps = [_step(block) for block in _blocks(page) if block.action in ("file", "python", "shell")]
    if steps:
        play(page, steps, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_exist(page: str, capfd: pytest.CaptureFixture[str]) -> None:
    for block in _blocks(page):
        if block.action == "check":
            check_commands(page, block)
    capfd.readouterr()


def check_commands(page: str, block: Block) -> None:
    for arguments in minicelery_commands(block):
        if not {"--version", "--help", "-h"} & set(arguments):
            # click reads all options before it shows the help, so a wrong one is found.
            arguments = [*arguments, "--help"]
        assert main(arguments) == 0, f"{page}:{block.line}: no such command: minicelery {' '.join(arguments)}"
    for target in make_targets(block):
        rules = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(target)}:", rules, re.M), (
            f"{page}:{block.line}: no rule for make {target}"
        )


def play(page: str, steps: list[dict[str, object]], folder: Path) -> None:
    """Carry out the page in `folder`; ends what it has left running in the background."""
    work, programs = folder / "work", folder / "bin"
    work.mkdir()
    programs.mkdir()
    for name, options in (("python", ""), ("minicelery", "-m minicelery ")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {options}"$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    output = folder / "output"
    with open(output, "wb") as file:  # not a pipe: what goes on in the background would hold it open
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("play.py")), page],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            cwd=work,
            env=environment,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(steps).encode(), timeout=LONGEST)
        finally:
            _end_group(process)
    assert process.returncode == 0, f"{page}:\n{output.read_text(encoding='utf-8')[-8000:]}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """TERM for all that is left of the process's session, then KILL."""

    def gone() -> bool:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(AssertionError):
            wait_until(gone, 5)
            break
    process.wait(5)


def _blocks(page: str) -> list[Block]:
    return code_blocks((ROOT / page).read_text(encoding="utf-8"))


def _step(block: Block) -> dict[str, object]:
    text = shell_commands(block) if block.action == "shell" else block.text
    return {"action": block.action, "text": text, "line": block.line, "value": block.value}


# -- the checks themselves -------------------------------------------------------------------

SAMPLE = """\
<!-- file: tasks.py -->

```python
ANSWER = 42
```

```python
from tasks import ANSWER
```

```python
>>> ANSWER
42
>>> again = ANSWER
```

<!-- run -->
```console
$ python -c 'import tasks; print(tasks.ANSWER)' > answer
this is what it shows
$ sleep 60 &
```

```python
assert open("answer").read().strip() == str(again)
```

<!-- skip: needs a server -->
```python
raise SystemExit("not run")
```
"""


def test_a_page_is_played_in_order_and_its_background_ends(tmp_path: Path) -> None:
    play("sample.md", [_step(block) for block in code_blocks(SAMPLE) if block.action], tmp_path)
    assert (tmp_path / "work" / "tasks.py").read_text() == "ANSWER = 42\n"


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```python\nx = 1\nx.nothing()\n```", 'sample.md", line 3'),
        ("```python\n>>> 1 + 1\n3\n```", "does not go as shown"),
        ("<!-- run -->\n```bash\nfalse\n```", "non-zero exit status"),
    ],
)
def test_what_fails_on_a_page_is_told_with_its_place(block: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        play("sample.md", [_step(one) for one in code_blocks(block)], tmp_path)


def test_commands_are_found_wherever_they_stand_in_a_line() -> None:
    block = code_blocks(
        "```bash\n"
        "cd proj && A=1 minicelery -A proj worker \\\n"
        "    -l info > out.txt 2>&1 &\n"
        "python -m minicelery report | head  # minicelery nothing\n"
        "make demo PYTHON=python3.12\n"
        "```"
    )[0]
    assert minicelery_commands(block) == [["-A", "proj", "worker", "-l", "info"], ["report"]]
    assert make_targets(block) == ["demo"]


@pytest.mark.parametrize(
    "command",
    ["minicelery wroker", "minicelery worker --no-such-option", "make nothing"],
)
def test_a_command_that_does_not_exist_is_found(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match=r"sample\.md:2"):
        check_commands("sample.md", code_blocks(f"```bash\n{command}\n```")[0])


@pytest.mark.parametrize("command", ["minicelery --version", "minicelery -A proj worker -c 2", "make test"])
def test_a_command_that_exists_is_accepted(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    check_commands("sample.md", code_blocks(f"```bash\n{command}\n```")[0])


def test_a_skip_needs_its_reason_and_a_block_its_end() -> None:
    with pytest.raises(ValueError, match="needs a value"):
        code_blocks("<!-- skip -->\n```python\n```")
    with pytest.raises(ValueError, match="line 2 has no end"):
        code_blocks("\n```python\n")
