"""The version of Celery whose interface minicelery has, for programs that ask."""

from __future__ import annotations

from typing import NamedTuple


class Version(NamedTuple):
    """Celery's `version_info`."""

    major: int
    minor: int
    micro: int
    releaselevel: str = ""
    serial: str = ""


VERSION = version_info = Version(5, 7, 0)
__version__ = "5.7.0"
SERIES = "minicelery"
VERSION_BANNER = f"{__version__} ({SERIES})"
