"""Ending the programs that a test has started."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import Any


def end(
    *processes: subprocess.Popen[Any], number: signal.Signals = signal.SIGTERM, within: float = 20.0
) -> None:
    """End them in peace, all at once: by this signal, and by SIGKILL those that live on for so many seconds."""
    for process in processes:
        process.send_signal(number)  # none to one that has ended: its pid may be another's
    until = time.monotonic() + within
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
