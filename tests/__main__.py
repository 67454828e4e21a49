"""The whole suite in processes side by side: ``python -m tests``.

Most of the time of tests with real workers, beats, sites and Celery is spent waiting for them: what is listed in
`APART` runs in processes of its own, while the others run.
Arguments are pytest's; with any, one process runs what they ask for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack

APART = [
    ["-n", "2", "--dist", "loadfile", "tests/worker", "tests/beat"],
    ["tests/interop", "tests/examples", "tests/contrib"],
]


def main(arguments: list[str]) -> int:
    """Run the tests; the exit code."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.call([*pytest, *arguments])
    pytest += ["--durations=30", "--durations-min=3"]
    apart = [folder for group in APART for folder in group if folder.startswith("tests/")]
    with ExitStack() as stack:
        beside = []
        for group in APART:
            output = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen([*pytest, *group], stdout=output, stderr=subprocess.STDOUT)
            stack.callback(_end, process)
            beside.append((group, process, output))
        codes = [subprocess.call([*pytest, *(f"--ignore={folder}" for folder in apart)])]
        for group, process, output in beside:
            codes.append(process.wait())
            output.seek(0)
            print(f"\n== {' '.join(group)}, meanwhile", flush=True)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    return next(filter(None, codes), 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
