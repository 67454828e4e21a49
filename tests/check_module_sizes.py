"""Fails when a module has grown past the size at which a second subject usually hides in it."""

from __future__ import annotations

import sys
from pathlib import Path

LONGEST = 500

EXCEPTIONS: dict[str, int] = {}
"""Modules that may be longer, each with its own bound; say why beside it."""

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Print each module that is too long, and each exception no longer needed."""
    sizes = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for folder in ("minicelery", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
    }
    complaints = [
        f"{name}: {size} lines, at most {EXCEPTIONS.get(name, LONGEST)}: split it by subject"
        for name, size in sizes.items()
        if size > EXCEPTIONS.get(name, LONGEST)
    ]
    complaints += [
        f"{name}: needs no exception in {Path(__file__).name} any more"
        for name in EXCEPTIONS
        if sizes.get(name, 0) <= LONGEST
    ]
    print("\n".join(complaints) or f"{len(sizes)} modules, the longest of {max(sizes.values())} lines")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
