from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minicelery.cli.find_app import AppNotFound, configured_app, find_app, guess_app
from minicelery.cli.ui import CommandError
from tests.cli.conftest import Project

APP = "from minicelery import Celery\napp = Celery('one')\n"


def found(project: Project, spec: str) -> str | None:
    return find_app(spec, project.path).main


@pytest.mark.parametrize(
    "spec", ["tasks", "tasks:app", "tasks.app", "tasks.py", "tasks.py:app", "./tasks.py"]
)
def test_an_app_is_found_by_module_attribute_and_file(project: Project, spec: str) -> None:
    project.write("tasks.py", APP)
    assert found(project, spec) == "one"


@pytest.mark.parametrize(
    "spec", ["pkg", "pkg.celery", "pkg.celery:app", "pkg/celery.py", "pkg/", "pkg/celery"]
)
def test_a_package_means_the_app_in_its_celery_module(project: Project, spec: str) -> None:
    project.write("pkg/__init__.py", "")
    project.write("pkg/celery.py", APP)
    assert found(project, spec) == "one"
    assert "pkg.celery" in sys.modules


def test_a_package_that_imports_its_app_under_another_name_is_enough(project: Project) -> None:
    project.write("pkg/__init__.py", "from .celery import app as celery_app\n")
    project.write("pkg/celery.py", APP)
    assert found(project, "pkg") == "one"


def test_a_module_inside_a_package_given_as_a_file_keeps_its_full_name(project: Project) -> None:
    project.write("pkg/__init__.py", "")
    project.write("pkg/jobs.py", APP + "@app.task\ndef work(): ...\n")
    assert "pkg.jobs.work" in find_app("pkg/jobs.py", project.path).tasks


def test_a_factory_with_parentheses_is_called(project: Project) -> None:
    project.write("fac.py", "from minicelery import Celery\ndef create_app():\n    return Celery('made')\n")
    assert found(project, "fac:create_app()") == "made"


def test_a_module_with_only_a_factory_names_it(project: Project) -> None:
    project.write(
        "fac.py", "from minicelery import Celery\ndef create_app(name='x'):\n    return Celery(name)\n"
    )
    with pytest.raises(AppNotFound, match=r"^no Celery app in 'fac'\.$") as caught:
        find_app("fac", project.path)
    assert caught.value.hint == 'found factory create_app(); try -A "fac:create_app()"'


def test_a_function_that_returns_an_app_by_its_annotation_is_a_factory(project: Project) -> None:
    project.write(
        "fac.py",
        "from minicelery import Celery\ndef queue() -> Celery: ...\ndef other(x: int) -> Celery: ...\n",
    )
    with pytest.raises(AppNotFound) as caught:
        find_app("fac", project.path)
    assert "fac:queue()" in str(caught.value.hint)


@pytest.mark.parametrize(
    "line",
    [
        "app = Celery('t', broker='redis://u:hunter2@h/0;redis://u:hunter2@i/0')",
        "app = Celery('t', broker='gopher://x', broker_password='hunter2')",
        "app = connect('redis://u:hunter2@h/0')",
        "app = 'redis://u:hunter2@h/0' 5",
    ],
)
def test_no_password_is_shown_of_the_line_that_is_wrong(project: Project, line: str) -> None:
    project.write("secret.py", f"from minicelery import Celery\n{line}\napp.broker\n")
    with pytest.raises(CommandError, match=r"secret\.py:[23]") as caught:
        find_app("secret", project.path)
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


def test_a_task_is_not_taken_for_an_app_and_the_app_is_named(project: Project) -> None:
    project.write_tasks()
    with pytest.raises(AppNotFound, match=r"'tasks:add' is a task, not a Celery app") as caught:
        find_app("tasks:add", project.path)
    assert caught.value.hint == "of 'tasks' these are: app"


def test_a_factory_may_be_named_without_its_parentheses(project: Project) -> None:
    project.write(
        "fac.py",
        "from minicelery import Celery\n"
        "def create_app(debug=False): return Celery('made')\n"
        "def queue() -> Celery: return Celery('annotated')\n",
    )
    assert found(project, "fac:create_app") == "made"
    assert found(project, "fac.queue") == "annotated"


def test_another_function_without_parentheses_says_how_to_write_it(project: Project) -> None:
    project.write("fac.py", "def build(): ...\n")
    with pytest.raises(AppNotFound, match="is a function, not a Celery app") as caught:
        find_app("fac:build", project.path)
    assert caught.value.hint == 'it is a function; try -A "fac:build()"'


def test_a_flask_app_gives_the_app_in_its_extensions(project: Project) -> None:
    pytest.importorskip("flask")
    project.write(
        "web.py",
        "from flask import Flask\nfrom minicelery import Celery\n"
        "def create_app():\n"
        "    made = Flask('web')\n    made.extensions['celery'] = Celery('in flask')\n    return made\n"
        "app = create_app()\n",
    )
    assert found(project, "web") == "in flask"
    assert found(project, "web:create_app()") == "in flask"


def test_a_flask_app_without_a_celery_app_is_told_how_to_get_one(project: Project) -> None:
    pytest.importorskip("flask")
    project.write(
        "web.py", "from flask import Flask\ndef create_app(): return Flask('web')\napp = create_app()\n"
    )
    for spec in ("web:create_app", "web:app"):
        with pytest.raises(AppNotFound, match=f"'{spec}' is a Flask, not a Celery app") as caught:
            find_app(spec, project.path)
        assert "init_app(app) of minicelery.contrib.flask" in str(caught.value.hint)


def test_the_celery_attribute_is_taken_where_app_is_a_flask_app(project: Project) -> None:
    pytest.importorskip("flask")
    project.write(
        "app.py",
        "from flask import Flask\nfrom minicelery import Celery\napp = Flask('x')\ncelery = Celery('second')\n",
    )
    assert found(project, "app") == "second"
    assert found(project, "app.celery") == "second"


def test_a_single_app_is_found_under_any_name_and_app_wins_over_others(project: Project) -> None:
    project.write(
        "one.py", "from minicelery import Celery, current_app\nqueue = Celery('q')\nagain = queue\n"
    )
    project.write("two.py", "from minicelery import Celery\nother = Celery('o')\napp = Celery('a')\n")
    assert found(project, "one") == "q"
    assert found(project, "two") == "a"


def test_several_apps_are_listed(project: Project) -> None:
    project.write("many.py", "from minicelery import Celery\nred = Celery('r')\nblue = Celery('b')\n")
    with pytest.raises(AppNotFound, match="several Celery apps in 'many': red, blue") as caught:
        find_app("many", project.path)
    assert caught.value.hint == "choose one: -A many:red"


def test_the_current_app_imported_by_a_module_is_not_its_app(project: Project) -> None:
    project.write("empty.py", "from minicelery import current_app\n")
    with pytest.raises(AppNotFound, match="no Celery app in 'empty'"):
        find_app("empty", project.path)


def test_a_misspelt_module_or_attribute_is_answered_with_the_nearest(project: Project) -> None:
    project.write("tasks.py", "from minicelery import Celery\nqueue = Celery('q')\n")
    with pytest.raises(AppNotFound, match="no module named 'taks'") as module:
        find_app("taks", project.path)
    with pytest.raises(AppNotFound, match="module 'tasks' has no attribute 'qeue'") as attribute:
        find_app("tasks:qeue", project.path)
    assert module.value.hint == "did you mean 'tasks'?"
    assert attribute.value.hint == "did you mean 'queue'?"


def test_a_file_that_is_not_there_is_named_with_its_path(project: Project) -> None:
    with pytest.raises(AppNotFound, match=r"no file .*/missing\.py"):
        find_app("missing.py", project.path)


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("import json\nimport no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'", 2),
        ("\n\nx = 1 / 0\n", "ZeroDivisionError: division by zero", 3),
        ("def f(:\n", "SyntaxError: invalid syntax", 1),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
    ],
)
def test_a_module_that_fails_is_named_with_the_error_and_its_line(
    project: Project, text: str, error: str, line: int
) -> None:
    file = project.write("broken.py", text)
    with pytest.raises(CommandError, match="importing 'broken' failed") as caught:
        find_app("broken", project.path)
    assert error in str(caught.value)
    assert f"\n  {file}:{line}: {text.splitlines()[line - 1]}" in str(caught.value)


def test_an_error_deep_in_a_library_shows_the_line_of_the_project(project: Project) -> None:
    file = project.write("broken.py", "import json\njson.loads('{')\n")
    with pytest.raises(CommandError) as caught:
        find_app("broken", project.path)
    assert f"{file}:2: json.loads('{{')" in str(caught.value)


def test_an_import_of_celery_itself_says_what_to_write(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCelery:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "celery":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, "celery", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoCelery(), *sys.meta_path])
    project.write("old.py", "from celery import Celery\n")
    with pytest.raises(CommandError) as caught:
        find_app("old", project.path)
    assert "ModuleNotFoundError" in str(caught.value)
    hint = str(caught.value.hint)
    assert hint.startswith("write 'from minicelery import …' for 'from celery import …' in your own code; ")
    assert "'from minicelery import install_as_celery; install_as_celery()'" in hint


def test_an_app_of_celery_itself_is_recognised(project: Project) -> None:
    pytest.importorskip("celery")
    project.write("old.py", "from celery.app.base import Celery\napp = Celery('old')\n")
    with pytest.raises(AppNotFound) as caught:
        find_app("old", project.path)
    assert "app of the package celery" in str(caught.value.hint)


def test_a_module_whose_name_is_taken_by_a_library_is_found_by_its_file(project: Project) -> None:
    project.write("json.py", APP)
    assert found(project, "json.py") == "one"


def test_without_a_name_the_environment_decides_first(project: Project) -> None:
    project.write("first.py", "from minicelery import Celery\napp = Celery('first')\n")
    project.write("tasks.py", APP)
    guess = guess_app(project.path, {"CELERY_APP": "first"})
    assert guess is not None
    assert (guess.app.main, guess.where) == ("first", "in $CELERY_APP")


@pytest.mark.parametrize("quote", ["'", '"'])
def test_without_a_name_pyproject_decides_before_files(project: Project, quote: str) -> None:
    project.write(
        "pyproject.toml", f"[tool.other]\napp = 'no'\n[tool.minicelery]\napp = {quote}second:app{quote}\n"
    )
    project.write("second.py", "from minicelery import Celery\napp = Celery('second')\n")
    project.write("tasks.py", APP)
    guess = guess_app(project.path, {})
    assert guess is not None
    assert (guess.app.main, guess.name, guess.where) == ("second", "second:app", "in pyproject.toml")


def test_a_pyproject_without_the_entry_names_no_app(project: Project, tmp_path: Path) -> None:
    assert configured_app(tmp_path) is None
    project.write("pyproject.toml", "[tool.minicelery]\nother = 1\n[tool.x]\napp = 'no'\n")
    assert configured_app(tmp_path) is None


def test_without_a_name_the_usual_files_are_searched_and_others_never_imported(project: Project) -> None:
    project.write("main.py", "raise RuntimeError('imported')\n")
    project.write("tasks.py", APP)
    guess = guess_app(project.path, {})
    assert guess is not None
    assert (guess.app.main, guess.name, guess.where) == ("one", "tasks:app", "in tasks.py")


def test_a_celery_py_in_the_directory_is_found_beside_an_installed_celery(project: Project) -> None:
    project.write("celery.py", APP)
    guess = guess_app(project.path, {})
    assert guess is not None
    assert guess.name == "celery:app"


def test_an_empty_directory_offers_no_app(project: Project) -> None:
    assert guess_app(project.path, {}) is None
