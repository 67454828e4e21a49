"""The whole suite in three processes side by side: ``python -m tests``.

Most of the time of tests/worker is spent waiting for workers: two share its files, and the others
run meanwhile.
Arguments are pytest's; with any, one process runs what they ask for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

APART = "tests/worker"
SHARED = ["-n", "2", "--dist", "loadfile"]


def main(arguments: list[str]) -> int:
    """Run the tests; the exit code."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.call([*pytest, *arguments])
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen([*pytest, *SHARED, APART], stdout=output, stderr=subprocess.STDOUT)
        try:
            code = subprocess.call([*pytest, f"--ignore={APART}"])
            code = beside.wait() or code
        finally:
            if beside.poll() is None:
                beside.terminate()
                beside.wait()
        output.seek(0)
        print(f"\n== {APART}, meanwhile", flush=True)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
