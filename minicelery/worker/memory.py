"""How much memory this process takes, which is what `max_memory_per_child` limits."""

from __future__ import annotations

import os
import sys

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_TASK_INFO = 4  # PROC_PIDTASKINFO, of macOS' libproc
_TASK_INFO_SIZE = 96


def resident_kib() -> int:
    """What of this process is in memory at this moment, in KiB: 7 µs on Linux.

    That is its own memory, and what it shares: with its parent (a forked child has all of the
    parent's pages until one of the two writes to them), with others that use the same
    libraries, and of the worker's Board what it has touched.  Not counted is what was swapped
    out, and what its own subprocesses take.  It falls as memory is given back.  Where the
    system does not tell the present value it is the greatest so far.
    """
    try:
        with open("/proc/self/statm", "rb", buffering=0) as statm:
            return int(statm.read().split()[1]) * _PAGE_KIB
    except (OSError, ValueError, IndexError):
        pass
    return _of_macos() or _peak_kib()


def kib_of(pid: int) -> int:
    """What another process has in memory at this moment, in KiB; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            return int(statm.read().split()[1]) * _PAGE_KIB
    except (OSError, ValueError, IndexError):
        return resident_kib() if pid == os.getpid() else 0


def _of_macos() -> int:
    """The present value where libproc tells it, else 0."""
    if sys.platform != "darwin":
        return 0
    import ctypes

    try:
        libproc = ctypes.CDLL("/usr/lib/libproc.dylib")
    except OSError:
        return 0
    buffer = (ctypes.c_uint64 * (_TASK_INFO_SIZE // 8))()
    size = libproc.proc_pidinfo(os.getpid(), _TASK_INFO, ctypes.c_uint64(0), buffer, _TASK_INFO_SIZE)
    return int(buffer[1]) // 1024 if size == _TASK_INFO_SIZE else 0


def _peak_kib() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak
