"""Which code a process runs: a worker that has not heard of a change can be told from the files."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent)


def project_files() -> list[str]:
    """The files of imported modules that are neither installed nor Python's own, by their paths."""
    library = tuple(
        os.path.join(sysconfig.get_paths()[name], "")
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )
    found = set()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or not path.endswith(".py"):
            continue
        path = os.path.abspath(path)
        installed = f"{os.sep}site-packages{os.sep}" in path or f"{os.sep}dist-packages{os.sep}" in path
        if not installed and not path.startswith(library) and not path.startswith(_PACKAGE + os.sep):
            found.add(path)
    return sorted(found)


def code_version(files: Iterable[str]) -> str | None:
    """Seven digits of what stands in these files, whatever folder they are in; None where there are none."""
    digests = []
    for path in files:
        try:
            text = Path(path).read_bytes()
        except OSError:
            continue
        digests.append(hashlib.sha256(os.path.basename(path).encode() + b"\0" + text).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:7] if digests else None


def changed_since(files: Iterable[str], then: float) -> list[str]:
    """Those that were written after that time."""
    found = []
    for path in files:
        try:
            if os.stat(path).st_mtime > then:
                found.append(path)
        except OSError:
            continue
    return found
