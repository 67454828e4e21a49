"""Children that are fresh interpreters: they share nothing with the parent but pipes and the Board.

The parent leaves one JSON document in a file in memory: how to come to the app, and the worker's
options.  Everything else a child gets is numbers on its command line.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from minicelery.broker.url import mask_url
from minicelery.exceptions import ImproperlyConfigured
from minicelery.worker import starting
from minicelery.worker.board import Board, memory_file
from minicelery.worker.starting import PARENTS_SIGNALS, Post

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.worker import Worker

AGENT = "agent"
_PACKAGE = __name__.partition(".")[0]
# Not -m: that puts the working directory before the standard library, and a project may have a
# queue.py; and it may find another minicelery than the parent's.
_PROGRAM = f"""\
import sys; sys.path[:] = filter(None, sys.path)
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location({_PACKAGE!r}, {str(Path(__file__).parents[1] / "__init__.py")!r})
sys.modules[spec.name] = package = module_from_spec(spec); spec.loader.exec_module(package)
from {__name__} import main; main()
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """How a fresh interpreter comes to the same app."""

    opener: str
    """``module:function``, which returns it."""
    arguments: Mapping[str, Any]
    """What the function is called with; of kinds that JSON knows."""


class Spawn:
    """Starts fresh interpreters, each of which makes a Worker of its own from `options`."""

    shared = True

    def __init__(self, app: Celery, hostname: str, options: Mapping[str, Any], origin: Origin | None) -> None:
        origin = origin or origin_of(app)
        asked = {
            "path": sys.path,
            "argv": sys.argv,
            "opener": origin.opener,
            "arguments": dict(origin.arguments),
            "hostname": hostname,
            "options": {**options, "hostname": hostname},
            "broker": app.conf.broker_url,
            "tasks": sorted(app.tasks),
        }
        try:
            text = json.dumps(asked).encode()
        except TypeError as error:
            raise ImproperlyConfigured(
                f"pool_start_method='spawn': an option of the worker can't be told to another process: {error}"
            ) from error
        self._asked = memory_file(len(text))
        os.pwrite(self._asked, text, 0)

    def start(self, post: Post, foreign: Iterable[int]) -> int:
        board = post.board
        assert board.fd is not None
        fds = (post.orders, post.reports, board.fd, self._asked)
        slot = AGENT if post.slot is None else str(post.slot)
        argv = [
            sys.executable, *_interpreter_options(), "-c", _PROGRAM,
            *map(str, fds), str(len(board.slots)), str(board.places), slot, post.name,
        ]  # fmt: skip
        for fd in fds:
            os.set_inheritable(fd, True)
        try:
            # Until it can say that it leaves the parent's signals to the parent.
            return os.posix_spawn(sys.executable, argv, os.environ, setsigmask=PARENTS_SIGNALS)
        finally:
            for fd in fds:
                os.set_inheritable(fd, False)


def _interpreter_options() -> list[str]:
    # As multiprocessing has them too: -W, -X, -O and so on, as this process was started with.
    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]  # not public


# -- the new process -------------------------------------------------------------------------


def main() -> None:
    """The whole life of a spawned process."""
    *numbers, place, name = sys.argv[1:]
    orders, reports, board_fd, asked_fd, size, places = map(int, numbers)
    for fd in (orders, reports, board_fd, asked_fd):
        os.set_inheritable(fd, False)
    asked = json.loads(os.pread(asked_fd, os.fstat(asked_fd).st_size, 0))
    sys.path[:], sys.argv[:] = asked["path"], asked["argv"]
    board = Board(size, places, board_fd)
    post = Post(board, orders, reports, None if place == AGENT else int(place), name)
    starting.live(
        post,
        asked["hostname"],
        lambda *args: _open_worker(asked).child_main(*args),
        lambda *args: _open_worker(asked).agent_main(*args),
    )


def _open_worker(asked: dict[str, Any]) -> Worker:
    """The parent's worker, once more."""
    from minicelery.worker import Worker

    module, _, function = asked["opener"].partition(":")
    starting.importing_app = True
    try:
        app = getattr(importlib.import_module(module), function)(**asked["arguments"])
        worker = Worker(app, **asked["options"])
        worker.prepare()
    finally:
        starting.importing_app = False
    _compare(app, asked)
    return worker


def _compare(app: Celery, asked: dict[str, Any]) -> None:
    """Refuse an app that is not what the parent has, as its module was changed after its import."""
    broker = app.conf.broker_url
    if broker != asked["broker"]:
        raise ImproperlyConfigured(
            f"a spawned child imports an app with the broker {mask_url(str(broker))}, but the worker's "
            f"is {mask_url(str(asked['broker']))}: set it where the app is made"
        )
    missing = [name for name in asked["tasks"] if name not in app.tasks]
    if missing:
        raise ImproperlyConfigured(
            f"a spawned child imports an app without the worker's tasks {', '.join(missing[:5])}: "
            "define them in modules that the app imports, outside of if __name__ == '__main__'"
        )


# -- by which name ---------------------------------------------------------------------------


def origin_of(app: Celery) -> Origin:
    """How to import an app that was found without the command line; raises ImproperlyConfigured."""
    own: Origin | None = getattr(app, "spawn_origin", None)  # of an app of another framework
    if own is not None:
        return own
    found = [
        (name, attribute, module)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] != _PACKAGE
        for attribute, value in list((getattr(module, "__dict__", None) or {}).items())
        if value is app
    ]
    found.sort(key=lambda place: place[0] == "__main__")
    for name, attribute, module in found:
        file = getattr(module, "__file__", None)
        if name == "__main__":
            spec = getattr(module, "__spec__", None)
            name = spec.name if spec is not None else Path(file).stem if file else ""
        if name:
            arguments = {"module": name, "attribute": attribute, "file": file and os.path.abspath(file)}
            return Origin(f"{__name__}:open_app", arguments)
    raise ImproperlyConfigured(
        f"pool_start_method='spawn': a new process can't import the app {app.main or '__main__'!r}, as it is "
        "no module's attribute: write app = Celery(…) at the top of a module, or start the worker with "
        "-A module:factory()"
    )


def open_app(module: str, attribute: str, file: str | None) -> Any:
    """The app that `origin_of` has found in the parent."""
    return getattr(_import(module, file), attribute)


def _import(name: str, file: str | None) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if file is None or error.name != name:
            raise
    else:
        if file is None or os.path.abspath(module.__file__ or "") == file:
            return module
    assert file is not None
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
