"""What is said of the project that a command is started in: of what Python does not complain, and nobody means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicelery.cli import ui
from minicelery.registry import OWN_TASKS

if TYPE_CHECKING:
    from minicelery.app import Celery


@contextmanager
def watched_import() -> Iterator[None]:
    """Import an app in this context, and it is told that a module of it has sent tasks meanwhile."""
    from minicelery import signals

    sent: list[str] = []

    def note(sender: Any = None, **_: Any) -> None:
        sent.append(str(sender))

    signals.after_task_publish.connect(note, weak=False)
    try:
        yield
    finally:
        signals.after_task_publish.disconnect(note)
    if sent:
        names = ", ".join(dict.fromkeys(sent))
        ui.warning(
            f"importing the app has sent {names}; each start of a worker, of beat or of a site sends it again. "
            "Send from a function, or under: if __name__ == '__main__'"
        )


def refuse_without_fork() -> None:
    """Raise CommandError on a system where neither workers nor beat can run."""
    system: str = sys.platform
    if system == "win32":
        raise ui.CommandError(
            "workers and beat need a system with fork and signals, and Windows has none",
            hint="run them in WSL or a container; programs that send tasks and read results run on Windows too",
        )


def say_where_tasks_are(app: Celery, directory: Path) -> None:
    """Of an app without a task: which file may have them that nobody imports."""
    if any(not name.startswith(OWN_TASKS) for name in app.tasks):
        return
    known = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    candidates = [directory / "tasks.py", *sorted(directory.glob("*/tasks.py"))]
    found = [path for path in candidates if path.is_file() and str(path) not in known]
    if not found:
        ui.warning('this worker knows no task; name their modules: Celery(…, include=["tasks"])')
        return
    module = ".".join(found[0].relative_to(directory).with_suffix("").parts)
    ui.warning(
        f"this worker knows no task, and nobody imports {found[0].relative_to(directory)}: write "
        f'Celery(…, include=["{module}"]), or start it with --include {module}'
    )
