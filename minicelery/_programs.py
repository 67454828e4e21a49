"""The programs an app can start, named here so that the app need not import them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minicelery.app import Celery

_MAIN = "minicelery.cli:main"


def run_command(app: Celery, argv: list[str]) -> int:
    """Run the command line with `app` already found; returns the exit code."""
    module, _, name = _MAIN.partition(":")
    code: int = getattr(importlib.import_module(module), name)(argv, app=app)
    return code
