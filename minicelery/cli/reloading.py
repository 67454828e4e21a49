"""Running a command again whenever a file of the project changes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minicelery.cli import ui

AGAIN = "MINICELERY_RELOADING"
"""Set in the process that runs the command: there it is not to be watched once more."""
EVERY = 0.5
"""Seconds between two looks at the files where `watchfiles` is not installed."""
PATIENCE = 5.0
"""Seconds that running tasks get to end before what runs is ended."""
MOST_FILES = 20_000
SUFFIXES = (".py", ".toml", ".cfg", ".ini", ".env")
PASSED_OVER = frozenset(
    {"__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist", "htmlcov"}
)

Stamps = Mapping[str, tuple[float, int]]


class Reloader:
    """Runs this very command in a process of its own, anew after each change below `folders`."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._process: subprocess.Popen[bytes] | None = None
        self._signals: list[int] = []

    def run(self) -> int:
        """Until a signal ends it; the exit code of the last process."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        before = {
            number: signal.signal(number, lambda number, _: self._pass_on(number)) for number in numbers
        }
        try:
            with watch(self.folders) as changes:
                first = True
                while True:
                    self._process = _start()
                    for number in self._signals:  # that came while it was being started
                        self._process.send_signal(number)
                    changed = self._wait(changes, ends_by_itself=(0, ui.USAGE) if first else (0,))
                    code = self._end()
                    if not changed:
                        return code if code >= 0 else 128 - code  # as shells count
                    first = False
                    ui.note(f"{', '.join(map(_shown, changed[:3]))} changed: starting again")
        finally:
            if self._process is not None:
                _kill(self._process)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self, changes: Changes, *, ends_by_itself: Sequence[int]) -> list[str]:
        """The files that have changed; [] after a signal, or once it has ended with one of these codes.

        One that fails may be mended by a change; one that was called wrongly, or was stopped by
        somebody else, is not.
        """
        assert self._process is not None
        told = False
        while not self._signals:
            if changed := changes.wait(EVERY):
                return changed
            code = self._process.poll()
            if code in ends_by_itself:
                return []
            if code is not None and not (told or self._signals):
                told = True
                ui.note("waiting for a change")
        return []

    def _end(self) -> int:
        """Have the process stop: warm, and not for long unless somebody asked for it."""
        process = self._process
        assert process is not None
        if process.poll() is None and not self._signals:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(PATIENCE)
            process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(None if self._signals else PATIENCE)
        process.kill()
        return process.wait()

    def _pass_on(self, number: int) -> None:
        self._signals.append(number)
        if self._process is not None:
            self._process.send_signal(number)


def is_reloaded() -> bool:
    """Whether this process is one that a `Reloader` has started."""
    return bool(os.environ.get(AGAIN))


def _start() -> subprocess.Popen[bytes]:
    # In a session of its own: the terminal's Ctrl-C is to come once, from here.
    return subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, AGAIN: "1"},
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _shown(path: str) -> str:
    return os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path


# -- watching ------------------------------------------------------------------------------


class Changes:
    """Changes below folders, found by looking at every file now and then."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._stamps = stamps(folders)

    def wait(self, seconds: float) -> list[str]:
        """The files that have changed by then; an editor that saves several has time to do so."""
        time.sleep(seconds)
        now = stamps(self._folders)
        changed = sorted(path for path in {*now, *self._stamps} if now.get(path) != self._stamps.get(path))
        self._stamps = now
        return changed


class Watched(Changes):
    """The same, told by the system."""

    def __init__(self, folders: Sequence[Path], watchfiles: Any) -> None:
        folders = [folder.resolve() for folder in folders]  # as it names what has changed
        super().__init__(folders)
        self._tells = False  # it begins to with the first look
        self._found = watchfiles.watch(
            *folders, watch_filter=lambda _, path: is_watched(Path(path), folders),
            rust_timeout=int(EVERY * 1000), yield_on_timeout=True, raise_interrupt=False,
        )  # fmt: skip

    def wait(self, seconds: float) -> list[str]:
        """See `Changes`; waits `EVERY` seconds."""
        changed = {path for _, path in next(self._found, ())}
        if not self._tells:
            self._tells = True
            changed.update(super().wait(0.0))
        return sorted(changed)


@contextlib.contextmanager
def watch(folders: Sequence[Path]) -> Iterator[Changes]:
    """The changes from now on: by `watchfiles` where it is installed."""
    try:
        watchfiles = importlib.import_module("watchfiles")
    except ImportError:
        yield Changes(folders)
        return
    yield Watched(folders, watchfiles)


def stamps(folders: Sequence[Path]) -> Stamps:
    """When each watched file was changed last, and its size."""
    found: dict[str, tuple[float, int]] = {}
    for folder in folders:
        for path, folders_here, names in os.walk(folder):
            folders_here[:] = [name for name in folders_here if _is_looked_into(path, name)]
            for name in names:
                if name.endswith(SUFFIXES):
                    file = os.path.join(path, name)
                    with contextlib.suppress(OSError):
                        seen = os.stat(file)
                        found[file] = (seen.st_mtime, seen.st_size)
            if len(found) > MOST_FILES:
                return found
    return found


def is_watched(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a change of the file, below one of the folders, matters; where they are does not."""
    below = [path.relative_to(folder).parts[:-1] for folder in folders if path.is_relative_to(folder)]
    return path.name.endswith(SUFFIXES) and any(
        not any(part in PASSED_OVER or part.startswith(".") for part in parts) for parts in below
    )


def _is_looked_into(folder: str, name: str) -> bool:
    if name in PASSED_OVER or name.startswith("."):
        return False
    return not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
