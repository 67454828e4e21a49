"""Does what a page says, in the working directory: run as ``python play.py PAGE``.

Files are written, Python is run in one namespace, shell commands by bash, in the page's order.
"""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def play(page: str, steps: list[dict[str, Any]]) -> None:
    """Carry out the steps; whatever fails is raised, with the page's line in its traceback."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for step in steps:
        text, line = step["text"], step["line"]
        if step["action"] == "file":
            file = Path(step["value"])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif step["action"] == "shell":
            print(f"{page}:{line}: running\n{text}", flush=True)
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
        elif text.lstrip().startswith(">>> "):
            _play_session(page, text, line, namespace)
        else:
            # Empty lines before it give the traceback the page's own line numbers.
            exec(compile("\n" * (line - 1) + text, page, "exec"), namespace)


def _play_session(page: str, text: str, line: int, namespace: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(text, namespace, page, page, line - 1)
    test.globs = namespace  # get_doctest has copied it, and later blocks go on with these names
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    if runner.run(test, clear_globs=False).failed:
        raise SystemExit(f"{page}:{line}: the session does not go as shown")


if __name__ == "__main__":
    sys.path.insert(0, "")
    play(sys.argv[1], json.load(sys.stdin))
