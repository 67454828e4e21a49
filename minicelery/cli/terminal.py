"""A terminal taken over for a while: keys come one by one, and it is as before at the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # the other screen, no cursor, no wrapping of lines
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_ENDS = (signal.SIGTERM, signal.SIGHUP)


class Terminal:
    """The screen and the keys of the process's terminal."""

    def __init__(self) -> None:
        self._in = sys.stdin.fileno()
        self._out = sys.stdout.fileno()
        self._before: Any = None
        self._woken_read, self._woken_write = os.pipe()
        os.set_blocking(self._woken_write, False)

    @contextlib.contextmanager
    def taken(self) -> Iterator[Terminal]:
        """Take it over; given back however this ends, and while the process is stopped by Ctrl-Z."""
        handlers: dict[int, Any] = {}
        self._enter()
        atexit.register(self._leave)
        try:
            wanted = {
                **dict.fromkeys(_ENDS, self._end),
                signal.SIGTSTP: self._pause,
                signal.SIGCONT: self._resume,
                signal.SIGWINCH: self._wake,
            }
            for number, handler in wanted.items():
                handlers[number] = signal.signal(number, handler)
            yield self
        finally:
            for taken, before in handlers.items():
                signal.signal(taken, before)
            self._leave()
            atexit.unregister(self._leave)

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, from the top; what was there is overwritten in one go, so nothing flickers."""
        # Cleared before it is written: behind the last cell there is no place to clear from.
        body = "\r\n".join(f"\x1b[2K{line}" for line in lines)
        self._write(f"\x1b[?2026h\x1b[H{body}\x1b[J\x1b[?2026l")

    def key(self, wait: float) -> str:
        """The next key, within so many seconds; empty where there is none, or the size is another one."""
        ready, _, _ = select.select([self._in, self._woken_read], [], [], wait)
        if self._woken_read in ready:
            os.read(self._woken_read, 4096)
        if self._in not in ready:
            return ""
        try:
            data = os.read(self._in, 64)
        except OSError:
            data = b""
        return data.decode(errors="replace") if data else "q"  # its other end is gone

    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now: what the environment says of them may be old."""
        try:
            found = os.get_terminal_size(self._out)
        except OSError:  # its other end is gone
            return 80, 24
        return max(20, found.columns), max(5, found.lines)

    def _enter(self) -> None:
        if self._before is None:
            self._before = termios.tcgetattr(self._in)
            tty.setcbreak(self._in)
            self._write(_ENTER)

    def _leave(self) -> None:
        if self._before is not None:
            before, self._before = self._before, None
            with contextlib.suppress(OSError):
                self._write(_LEAVE)
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._in, termios.TCSADRAIN, before)

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._out, data) :]

    def _wake(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken_write, b"w")

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def _pause(self, number: int, frame: FrameType | None) -> None:
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _resume(self, number: int, frame: FrameType | None) -> None:
        self._enter()


def has_terminal() -> bool:
    """Whether there is one to take over."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
