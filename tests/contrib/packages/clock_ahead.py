"""Runs minicelery's command line by a clock that is as far ahead as the file `ahead` says.

Whatever asks `datetime` for the time is told so; what waits, waits as ever.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

FILE = Path("ahead")
Real = datetime.datetime


class _Kind(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Real)


class Ahead(Real, metaclass=_Kind):
    """A datetime whose `now` is ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        seconds = float(FILE.read_text()) if FILE.exists() else 0.0
        return Real.now(tz) + datetime.timedelta(seconds=seconds)


if __name__ == "__main__":
    datetime.datetime = Ahead  # type: ignore[misc]
    from minicelery.cli import main

    sys.exit(main(sys.argv[1:]))
