"""The facts about this machine that a reader needs to place the figures."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine_facts(servers: dict[str, str]) -> dict[str, Any]:
    """Cores, CPU model, memory, kernel, and the versions of Python and the servers."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _line_of("/proc/cpuinfo", "model name") or platform.machine(),
        "memory": _line_of("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **servers,
    }


def load_average() -> float:
    """Runnable processes over the last minute; above 0.5 before a run, others share the machine."""
    return os.getloadavg()[0]


def _line_of(path: str, name: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
