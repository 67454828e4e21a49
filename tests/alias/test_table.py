"""The table of `install_as_celery`: all that Celery has is served or has a reason, and what is served is there."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from minicelery.alias import ROOTS
from minicelery.alias.finder import Finder, read_row
from minicelery.alias.refused import REFUSED
from minicelery.alias.table import SERVED
from tests.alias.celerys import loaded, modules, public_names

FINDER = Finder(SERVED, REFUSED)


@pytest.mark.parametrize("path", SERVED)
def test_each_name_of_a_row_is_there_in_celery_and_in_minicelery(path: str) -> None:
    theirs = importlib.import_module(path)
    places = read_row(SERVED[path])
    assert places
    for name, place in places.items():
        assert hasattr(theirs, name), f"Celery has no {path}.{name}"
        ours = getattr(importlib.import_module(place.module), place.name)
        if issubclass(type(ours), type) and not path.startswith("billiard"):
            assert callable(getattr(theirs, name)), name


def test_all_that_celery_has_is_served_or_refused_with_a_reason() -> None:
    """By its name, or by the whole module; not only by the sentence for what nobody has thought of."""
    assert len(modules()) > 200
    missing, count = [], 0
    for path in modules():
        if path not in FINDER.modules:
            assert is_refused(path), f"{path}: add a row, or a reason"
        row = read_row(SERVED.get(path, ""))
        for name in public_names(path):
            count += 1
            if (
                name not in row
                and not is_refused(f"{path}.{name}")
                and f"{path}.{name}" not in FINDER.modules
            ):
                missing.append(f"{path}.{name}")
    assert missing == [] and count > 600


def is_refused(path: str) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in REFUSED for count in range(1, len(parts) + 1))


@pytest.mark.parametrize("path", REFUSED)
def test_what_is_refused_is_there_in_celery_and_not_served(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert path in (*ROOTS, *modules()) or hasattr(importlib.import_module(module), name)
    words = FINDER.refusal(f"{path}.of_celery")
    assert words is not None and words == f"minicelery has no {path}.of_celery: {REFUSED[path]}"
    if path not in SERVED and loaded(path) is None:
        return
    left = [name for name in public_names(path) if name not in read_row(SERVED.get(path, ""))]
    is_package = any(other.startswith(f"{path}.") for other in modules())
    assert left or path not in SERVED or is_package, "all of it is served: it needs no reason"


def test_reasons_say_what_to_do_and_are_short() -> None:
    assert [why for why in REFUSED.values() if not 15 < len(why) < 120 or why.endswith(".")] == []


def test_the_rows_are_in_order() -> None:
    for table in (SERVED, REFUSED):
        assert list(table) == sorted(table)
    for path, row in SERVED.items():
        by_home: dict[str, list[str]] = {}
        for name, place in read_row(row).items():
            by_home.setdefault(place.module, []).append(name)
        for names in by_home.values():
            assert names == sorted(names), path


# -- how they are called -------------------------------------------------------------------

OTHERWISE = {
    "celery.app.control.Inspect": "made by app.control.inspect()",
    "celery.app.utils.Settings": "made by an app: app.conf",
    "celery.backends.base.DisabledBackend": "made by an app: app.backend",
    "celery.events.state.State": "its indices of tasks are found out, not given",
    "celery.events.state.heartbeat_expires": "local names as parameters",
    "celery.result.ResultSet": "ready_barrier is a promise of vine's; then() is served",
    "celery.security.setup_security": "of the current app; app.setup_security() is one of its own",
    "celery.utils.dispatch.Signal": "nothing is cached",
    "celery.utils.dispatch.signal.Signal": "nothing is cached",
}
"""What takes less than Celery's, and why nobody misses it."""


def functions() -> list[str]:
    """What is served and is a function or a class of Python's own, in Celery and here."""
    found = []
    for path, row in SERVED.items():
        if path.startswith("billiard"):
            continue
        for name in read_row(row):
            theirs = getattr(importlib.import_module(path), name, None)
            if inspect.isfunction(theirs) or inspect.isclass(theirs):
                found.append(f"{path}.{name}")
    return found


def parameters(function: Any) -> dict[str, inspect.Parameter] | None:
    try:
        given = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    return {name: one for name, one in given.items() if not name.startswith("_")}


@pytest.mark.parametrize("served", functions())
def test_what_is_served_is_called_as_in_celery(served: str) -> None:
    path, _, name = served.rpartition(".")
    place = read_row(SERVED[path])[name]
    theirs = parameters(getattr(importlib.import_module(path), name))
    ours = parameters(getattr(importlib.import_module(place.module), place.name))
    if theirs is None or ours is None:
        return
    takes_any = any(one.kind is one.VAR_KEYWORD for one in ours.values())
    missing = [
        one for one, given in list(theirs.items())[1:]  # the first one goes by its place
        if one not in ours and not takes_any and given.kind not in (given.VAR_POSITIONAL, given.VAR_KEYWORD)
    ]  # fmt: skip
    assert bool(missing) == (served in OTHERWISE), missing
