"""One script under both libraries: tasks that are run at once, called, declared, or refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery", reason="real Celery is the oracle")

pytestmark = pytest.mark.timeout(180)  # the first of them runs the script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "interop" / "scripts" / "inline.py"
SCENARIOS = re.findall(r"^@scenario\ndef (\w+)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def both() -> dict[str, dict[str, Any]]:
    """What each library makes of every scenario."""
    running = {
        library: subprocess.Popen(
            [sys.executable, "-m", "tests.interop.scripts.inline", library],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for library in ("celery", "minicelery")
    }  # fmt: skip
    found = {}
    for library, process in running.items():
        output, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-4000:]
        found[library] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_both_libraries_do_the_same(both: dict[str, dict[str, Any]], scenario: str) -> None:
    original = both["celery"][scenario]
    assert original is not None and not (isinstance(original, str) and "Error" in original), original
    ours = both["minicelery"][scenario]
    if scenario == "attributes_and_their_defaults":
        # None stands for what acks_on_failure_or_timeout says, and for the app's strict_typing.
        for name in ("acks_on_failure", "acks_on_timeout", "typing"):
            assert (original[0].pop(name), ours[0].pop(name)) in ((True, None), (True, True))
    assert ours == original


def test_what_celery_finds_out_late_or_never_is_refused_at_once(both: dict[str, dict[str, Any]]) -> None:
    original, ours = both["celery"]["refusals"], both["minicelery"]["refusals"]
    assert "never" not in ours.values()
    rank = {"declared": 0, "called": 1, "never": 2}
    later = [name for name in ours if rank[ours[name].split(":")[0]] > rank[original[name].split(":")[0]]]
    assert later == []
    # Celery sends these; what they do is seen in the worker, or nowhere.
    assert {name for name, when in original.items() if when == "never"} >= {
        "soft above hard, of the call", "a limit below 0", "an option of a task misspelt",
        "an option of a call misspelt",
    }  # fmt: skip
