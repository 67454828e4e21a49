"""Process trees: started in their own session, measured through /proc, ended by their own ids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path


class BenchError(Exception):
    """A peer did not do what a row needs; the row stays empty for it."""


class Tree:
    """A command and all the processes it starts."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str], log: Path, pipes: bool = False):
        self.log = log
        pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=pipe,
                stdout=subprocess.PIPE if pipes else sink,
                stderr=sink,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def pids(self) -> list[int]:
        """Every living process of the session, and every descendant that left it."""
        members = {self.pid}
        table = sorted(_processes())
        grew = True
        while grew:
            size = len(members)
            members.update(pid for pid, parent, session in table if session == self.pid or parent in members)
            grew = len(members) > size
        return sorted(members)

    def cpu_seconds(self) -> float:
        """CPU time that the living processes have used."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def pss_bytes(self) -> int:
        """Memory of the tree, shared pages divided among their holders."""
        return sum(_pss_bytes(pid) for pid in self.pids())

    def check_alive(self) -> None:
        """Raise BenchError with the end of the log where the command has ended."""
        if self.process.poll() is not None:
            raise BenchError(f"exited with {self.process.returncode}: {self.log_end()}")

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-600:].strip()

    def kill(self) -> None:
        """End the whole tree at once; it holds nothing that outlives the run."""
        for pid in self.pids():
            if pid == self.pid and self.process.returncode is not None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.process.wait(10)


def cpu_seconds(pid: int) -> float:
    """CPU time of one process, summed over its threads; 0 where it is gone."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            # Nanoseconds on a core; utime and stime of `stat` are too coarse for an idle process.
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _processes() -> Iterator[tuple[int, int, int]]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            yield int(name), int(fields[1]), int(fields[3])
