"""The whole suite in three processes side by side: ``python -m tests``.

Most of the time of tests with real workers and beats is spent waiting for them: two processes share
their files, and the others run meanwhile.
Arguments are pytest's; with any, one process runs what they ask for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

APART = ["tests/worker", "tests/beat"]
SHARED = ["-n", "2", "--dist", "loadfile"]


def main(arguments: list[str]) -> int:
    """Run the tests; the exit code."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.call([*pytest, *arguments])
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen([*pytest, *SHARED, *APART], stdout=output, stderr=subprocess.STDOUT)
        try:
            code = subprocess.call([*pytest, *(f"--ignore={path}" for path in APART)])
            code = beside.wait() or code
        finally:
            if beside.poll() is None:
                beside.terminate()
                beside.wait()
        output.seek(0)
        print(f"\n== {' '.join(APART)}, meanwhile", flush=True)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
