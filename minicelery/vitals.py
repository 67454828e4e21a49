"""A worker's signs of life: a small file that says how it is, for probes on the same machine.

Its agent writes the file about once a second.  Reading it needs no broker, no app and no
worker's code, so a probe is as quick as Python's start.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SILENT = 20.0
"""Seconds without a word after which a worker is not taken to be alive."""
OUT_OF_REACH = 15.0
"""Seconds since the broker answered last, after which a worker is not ready."""
VARIABLE = "MINICELERY_RUN_DIR"


def run_folder() -> Path:
    """Where the files are: ``$MINICELERY_RUN_DIR``, the user's run directory, or one below /tmp."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    if (user := os.environ.get("XDG_RUNTIME_DIR")) and os.path.isdir(user):
        return Path(user, "minicelery")
    return Path(os.environ.get("TMPDIR") or "/tmp", f"minicelery-{os.getuid()}")


class Vitals:
    """Writes what one worker says of itself.  `said` is what does not change."""

    def __init__(self, pid: int, said: Mapping[str, Any]) -> None:
        self._said = {"pid": pid, "born": birth_of(pid), **said}
        self._folder = run_folder()
        self._path = self._folder / f"{pid}.json"
        self._usable = self._prepare()

    def write(self, **changing: Any) -> None:
        """Replace the file; where that fails, probes find an old one, or none."""
        if not self._usable:
            return
        text = json.dumps({**self._said, "at": time.time(), **changing}, default=str)
        draft = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, self._path)

    def remove(self) -> None:
        """The worker has stopped."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _prepare(self) -> bool:
        """Make the folder, which must be the user's own, and take dead workers' files away."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_own(self._folder):
                return False
            for path in self._folder.iterdir():
                if path.stem.isdigit() and birth_of(int(path.stem)) is None:
                    path.unlink()
        except OSError:
            return self._folder.is_dir() and is_own(self._folder)
        return True


@dataclass(frozen=True, slots=True)
class Health:
    """How one worker is, and why it is not better."""

    node: str
    pid: int
    live: bool
    ready: bool
    consuming: bool
    reasons: tuple[str, ...]
    said: Mapping[str, Any]


def read_all(folder: Path | None = None) -> list[Health]:
    """The health of every worker that has left a file, by name."""
    folder = folder or run_folder()
    found: list[Health] = []
    with contextlib.suppress(OSError):
        if is_own(folder):
            found += [health for path in folder.glob("[0-9]*.json") if (health := read(path)) is not None]
    return sorted(found, key=lambda one: (one.node, one.pid))


def read(path: Path) -> Health | None:
    """The health that a file tells of; None where it can't be read."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return health_of(said, time.time())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def health_of(said: Mapping[str, Any], now: float) -> Health:
    """What follows from what a worker has said of itself."""
    pid, age = int(said["pid"]), max(0.0, now - float(said["at"]))
    reasons = []
    if not _lives(pid, said.get("born")):
        reasons.append(f"process {pid} is gone")
    elif age > SILENT:
        reasons.append(f"it has said nothing for {age:.0f} s")
    live = not reasons
    reached = said.get("reached")
    if said.get("stopping"):
        reasons.append("it is stopping")
    if reached is None:
        reasons.append("it has not reached its broker yet")
    elif now - float(reached) > OUT_OF_REACH:
        reasons.append(f"its broker has not answered for {now - float(reached):.0f} s")
    if not said.get("children"):
        reasons.append("none of its children has begun")
    ready = not reasons
    queues, paused = list(said.get("queues") or ()), set(said.get("paused") or ())
    if queues and paused.issuperset(queues):
        reasons.append(f"its queues are paused: {', '.join(queues)}")
    return Health(str(said["node"]), pid, live, ready, not reasons, tuple(reasons), said)


def birth_of(pid: int) -> int | None:
    """When a process began, in the system's ticks, so that its number can't be taken for another's.

    None where there is no such process; 0 where the system does not tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:  # another user's
            pass
        return 0


def _lives(pid: int, born: Any) -> bool:
    now = birth_of(pid)
    return now is not None and (not born or not now or born == now)


def is_own(folder: Path) -> bool:
    """Whether nobody else can have put files there."""
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
