"""The package's front door: the names it offers, what importing it costs, and that it is described."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import minicelery
from minicelery.exceptions import ImproperlyConfigured
from tests.django_inside import use_database

PACKAGE = Path(minicelery.__file__).parent
HEAVY = ("asyncio", "click", "hiredis", "msgpack", "multiprocessing", "pika", "redis", "sqlite3")


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
PUBLIC = [name for name in FILES if not any(part.startswith("_") for part in name.split("."))]


def loaded_by(statement: str) -> set[str]:
    """Which of the heavy modules `statement` loads in a fresh interpreter."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", minicelery.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert name in dir(minicelery)
    getattr(minicelery, name)


def test_all_lists_the_names_that_are_loaded_on_demand_in_order() -> None:
    assert list(minicelery.__all__) == sorted(minicelery.__all__)
    assert set(minicelery.__all__) == set(minicelery._HOMES)


def test_type_checkers_see_the_names_that_are_loaded_on_demand() -> None:
    tree = ast.parse(FILES["minicelery"].read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == minicelery._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        minicelery.nothing  # noqa: B018 - looking it up is the test


def test_the_version_is_one() -> None:
    assert minicelery.__version__.count(".") == 2


@pytest.mark.parametrize(
    "statement",
    [
        "import minicelery",
        "from minicelery import Celery; Celery('proj', broker='redis://127.0.0.1:1/0')",
        "import minicelery.signals, minicelery.utils.log",
    ],
)
def test_importing_loads_no_client_and_no_machinery(statement: str) -> None:
    assert loaded_by(statement) == set()


@pytest.mark.parametrize("name", FILES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))), f"{name} has no docstring"


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_public_module_lists_is_there(name: str, tmp_path: Path) -> None:
    if name.startswith("minicelery.contrib.django."):
        use_database(tmp_path)
    if (
        name.startswith("minicelery.contrib.django.tasks")
        and importlib.util.find_spec("django.tasks") is None
    ):
        # tests/contrib/django/test_django_tasks.py imports it where Django has tasks of its own.
        with pytest.raises((ImproperlyConfigured, ModuleNotFoundError), match=r"django\.tasks|Django 6"):
            _resolve(name)
    else:
        _resolve(name)


def _resolve(name: str) -> None:
    module = importlib.import_module(name)
    for member in getattr(module, "__all__", ()):
        getattr(module, member)
