"""`manage.py minicelery worker`: minicelery's command line for the project's app."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand

from minicelery.cli import main

APP = "minicelery.contrib.django.project:current_app()"
_DJANGOS = ("--settings", "--pythonpath")


class Command(BaseCommand):
    """Hands what follows to minicelery, which knows its own options."""

    help = (
        "Run minicelery for this project: worker, beat, inspect, … Options are those of `minicelery --help`."
    )
    requires_system_checks: list[str] = []  # a worker checks by itself, and says what is wrong
    suppressed_base_arguments = {"--version"}

    def run_from_argv(self, argv: list[str]) -> None:
        sys.exit(main(["-A", APP, *_without_djangos(argv[2:])]))

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs=argparse.REMAINDER)

    def handle(self, *args: Any, words: list[str] | None = None, **options: Any) -> None:
        """For `call_command("minicelery", "purge", "-f")`."""
        if code := main(["-A", APP, *(words or args)]):
            sys.exit(code)


def _without_djangos(words: Sequence[str]) -> list[str]:
    """Without the options that manage.py itself has taken: which settings to use, and where they are."""
    left, skipped = [], False
    for word in words:
        if skipped:
            skipped = False
        elif word in _DJANGOS:
            skipped = True
        elif word.partition("=")[0] not in _DJANGOS:
            left.append(word)
    return left
