"""What a shell is offered for a word that is being typed: tasks, queues and workers by name."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from minicelery import vitals
from minicelery.cli.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

FRESH = 5.0
"""Seconds for which names are remembered: finding them may import the app."""


def task_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The tasks of the app."""
    return _offered(context, "tasks", _tasks, incomplete)


def queue_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The queues of the settings; of a list the last name is completed."""
    return _offered(context, "queues", _queues, incomplete)


def worker_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The workers of this machine."""
    names = {one.node for one in vitals.read_all() if one.live}
    return _items(name for name in sorted(names) if name.startswith(incomplete))


def _offered(
    context: click.Context, kind: str, find: Callable[[Session], list[str]], incomplete: str
) -> list[CompletionItem]:
    session = context.find_object(Session)
    if session is None:
        return []
    session.quiet = True
    before, comma, word = incomplete.rpartition(",")
    try:
        names = _remembered(session, kind, find)
    except BaseException:  # whatever the app does: a shell that waits wants no traceback
        return []
    return _items(f"{before}{comma}{name}" for name in names if name.startswith(word))


def _items(words: Iterable[str]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words]


def _remembered(session: Session, kind: str, find: Callable[[Session], list[str]]) -> list[str]:
    import hashlib

    told = f"{os.getcwd()}\0{session.app_name}\0{session.workdir}\0{kind}"
    folder = vitals.run_folder()
    path = folder / f"names-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if vitals.is_own(folder) and time.time() - path.stat().st_mtime < FRESH:
            kept: list[str] = json.loads(path.read_text(encoding="utf-8"))
            return kept
    names = sorted(find(session))
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if vitals.is_own(folder):
            for old in folder.glob("names-*.json"):
                if time.time() - old.stat().st_mtime > 86400.0:
                    old.unlink()
            path.write_text(json.dumps(names), encoding="utf-8")
    return names


def _tasks(session: Session) -> list[str]:
    from minicelery.registry import OWN_TASKS

    app: Any = session.app()
    app.import_task_modules()
    return [name for name in app.tasks if not name.startswith(OWN_TASKS)]


def _queues(session: Session) -> list[str]:
    from minicelery.cli.choosing import known_queues

    return known_queues(session.app())
