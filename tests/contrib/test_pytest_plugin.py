"""The pytest plugin: one file of tests on Celery's plugin and on minicelery's, and what only the latter has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contrib.project import ROOT, environment

CONFTEST = """\
import pytest

pytest_plugins = ("PACKAGE.contrib.pytest",)

@pytest.fixture(scope="session")
def celery_config():
    return {
        "broker_url": "memory://",
        "result_backend": "cache+memory://",
        "task_track_started": True,
        "broker_transport_options": {"polling_interval": 0.01},  # Celery's, which waits a second
    }

@pytest.fixture(scope="session")
def celery_parameters():
    import own
    return {"task_cls": own.Loud, "strict_typing": False}

@pytest.fixture(scope="session")
def celery_includes():
    return ["own"]

@pytest.fixture(scope="session")
def celery_class_tasks():
    import own
    return [own.Counting()]

@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"queues": ("celery", "mail"), "shutdown_timeout": 20.0}
"""

OWN = """\
from PACKAGE import Task, shared_task

class Loud(Task):
    loud = True

class Counting(Task):
    name = "own.counting"

    def run(self, n):
        return n + 1

@shared_task
def double(x):
    return 2 * x
"""

APP = """\
import pytest
from PACKAGE import current_app
import own

def test_tasks_of_the_test_shared_and_included_ones_are_run(celery_app, celery_worker):
    @celery_app.task
    def mul(x, y):
        return x * y

    @celery_app.task
    def fails():
        raise KeyError("no")

    celery_worker.reload()
    assert mul.delay(4, 4).get(timeout=10) == 16
    assert own.double.delay(3).get(timeout=10) == 6
    assert own.double.apply_async((4,), queue="mail").get(timeout=10) == 8
    assert "own.double" in celery_app.tasks
    with pytest.raises(KeyError):
        fails.delay().get(timeout=10)

@pytest.mark.celery(task_default_priority=7, result_expires=33)
def test_the_mark_changes_settings(celery_app):
    assert (celery_app.conf.task_default_priority, celery_app.conf.result_expires) == (7, 33)
    assert celery_app.conf.task_track_started

def test_without_the_mark_they_are_those_of_the_session(celery_app):
    assert celery_app.conf.task_default_priority is None
    assert (celery_app.conf.timezone, celery_app.conf.enable_utc) == ("UTC", True)
    assert celery_app.main == "celery.tests"

def test_parameters_reach_the_constructor(celery_app):
    @celery_app.task
    def plain():
        pass

    assert plain.loud
    assert celery_app.strict_typing is False

def test_an_app_is_current_only_where_it_is_asked_to_be(celery_app):
    assert current_app._get_current_object() is not celery_app

def test_the_fixture_makes_it_current(celery_app, depends_on_current_app):
    assert current_app._get_current_object() is celery_app
"""

BY_HAND = """\
import threading
from PACKAGE.contrib.testing.worker import start_worker

def test_a_worker_may_be_started_by_hand(celery_app):
    @celery_app.task
    def where():
        return threading.current_thread() is threading.main_thread()

    with start_worker(celery_app, pool="solo", perform_ping_check=False, loglevel="error") as worker:
        assert where.delay().get(timeout=10) is False
        assert worker.hostname
"""

SESSION = """\
from PACKAGE import current_app, shared_task

@shared_task
def add(x, y):
    return x + y

class TestSession:
    def test_the_session_app_is_current(self, celery_session_app, celery_session_worker):
        assert current_app._get_current_object() is celery_session_app
        assert add.delay(2, 3).get(timeout=10) == 5

    def test_class_tasks_are_registered(self, celery_session_app, celery_session_worker):
        result = celery_session_app.tasks["own.counting"].delay(4)
        assert result.get(timeout=10) == 5
"""

TRAP = """\
import pytest
from PACKAGE import current_app

@pytest.fixture(scope="session")
def use_celery_app_trap():
    return True

def test_the_current_app_is_a_trap(celery_app):
    with pytest.raises(RuntimeError, match="Test depends on current_app"):
        current_app.conf
    assert celery_app.conf.timezone == "UTC"
"""


def run_pytest(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("package", ["minicelery", pytest.param("celery", marks=pytest.mark.slow)])
def test_one_file_of_tests_passes_on_both_plugins(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    for name, text in (
        ("own.py", OWN),
        ("test_app.py", APP),
        ("test_by_hand.py", BY_HAND),
        ("test_session.py", SESSION),
        ("trapped/test_trap.py", TRAP),
        ("conftest.py", CONFTEST),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("PACKAGE", package))
    # A file each: Celery's workers take seconds to stop.
    ran = run_pytest(tmp_path, *(("-n", "4", "--dist", "loadfile") if package == "celery" else ()))
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert "10 passed" in ran.stdout


ONLY_HERE = """\
import sys

def test_nothing_is_imported_before_a_fixture_is_used(pytestconfig):
    loaded = {name for name in sys.modules if name.startswith("minicelery")}
    contrib = {"minicelery.contrib", "minicelery.contrib.pytest", "minicelery.contrib.pytest_entry"}
    assert loaded <= {"minicelery", *contrib}, loaded

def test_what_is_sent_is_in_the_outbox(celery_app, celery_outbox):
    @celery_app.task(name="mail")
    def mail(to):
        return to

    mail.delay("ana")
    celery_outbox.assert_enqueued(mail, ("ana",), times=1)
    assert [sent.name for sent in celery_outbox] == ["mail"]

def test_the_check_of_a_worker_is_no_call(celery_app, celery_outbox, celery_worker):
    assert list(celery_outbox) == []

def test_each_test_has_queues_of_its_own(celery_app):
    assert celery_app.broker.size("celery") == 0

def test_a_worker_may_be_left_out(celery_worker):
    import os
    assert (celery_worker is None) == bool(os.environ.get("NO_WORKER"))
"""


@pytest.mark.parametrize("no_worker", ["", "1"])
def test_the_plugin_loads_nothing_and_has_more(no_worker: str, tmp_path: Path) -> None:
    (tmp_path / "test_only.py").write_text(ONLY_HERE)
    ran = run_pytest(
        tmp_path, "-p", "minicelery.contrib.pytest", "-W", "error", "--strict-markers", NO_WORKER=no_worker
    )
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert "5 passed" in ran.stdout


def test_the_mark_and_the_fixtures_are_described(tmp_path: Path) -> None:
    told = run_pytest(tmp_path, "-p", "minicelery.contrib.pytest", "--markers", "--fixtures").stdout
    assert "@pytest.mark.celery(**overrides): settings of the app" in told


# -- the entry point ---------------------------------------------------------------------------

WHOSE = """\
import pytest

@pytest.fixture
def whose(request):
    try:
        return type(request.getfixturevalue("celery_app")).__module__.partition(".")[0]
    except pytest.FixtureLookupError:
        return None

def test_whose_they_are(whose, pytestconfig):
    print(f"fixtures of {whose}")
"""
OTHER = "from celery.contrib.pytest import *\n"


def whose_fixtures(folder: Path, *arguments: str, others: bool = False) -> str:
    """What pytest says in `folder` where minicelery is installed, and pytest-celery if `others`."""
    text = (ROOT / "pyproject.toml").read_text()
    table = re.search(r"^\[project\.entry-points\.pytest11\]\n(.+?)\n\n", text, re.S | re.M)
    assert table is not None
    entries = {"minicelery_here": table[1].replace('"', "")}
    if others:
        entries["pytest_celery"] = "celery = other"
    for name, entry in entries.items():
        (folder / f"{name}-1.dist-info").mkdir()
        (folder / f"{name}-1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (folder / f"{name}-1.dist-info" / "entry_points.txt").write_text(f"[pytest11]\n{entry}\n")
    (folder / "other.py").write_text(OTHER)
    (folder / "test_whose.py").write_text(WHOSE)
    path = f"{ROOT}{os.pathsep}{folder}"
    ran = run_pytest(folder, "-s", "-v", "-W", "error", "--strict-markers", *arguments, PYTHONPATH=path)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def test_where_minicelery_is_installed_the_fixtures_are_there(tmp_path: Path) -> None:
    assert "fixtures of minicelery" in whose_fixtures(tmp_path)


@pytest.mark.parametrize("left_out", ["minicelery", "minicelery.contrib.pytest"])
def test_they_can_be_left_out(left_out: str, tmp_path: Path) -> None:
    assert "fixtures of None" in whose_fixtures(tmp_path, "-p", f"no:{left_out}")


def test_naming_the_plugin_as_well_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("minicelery.contrib.pytest",)\n')
    assert "fixtures of minicelery" in whose_fixtures(tmp_path)


@pytest.mark.parametrize("name", ["celery", "celery.contrib.pytest"])
def test_where_celerys_plugin_is_there_its_fixtures_stay(name: str, tmp_path: Path) -> None:
    pytest.importorskip("celery")
    if name == "celery.contrib.pytest":
        (tmp_path / "conftest.py").write_text(f'pytest_plugins = ("{name}",)\n')
    told = whose_fixtures(tmp_path, others=name == "celery")
    assert "fixtures of celery" in told
    assert (
        f"minicelery: the fixtures celery_app, … are those of the plugin {name}; -p no:{name} gives" in told
    )


def test_minicelerys_are_there_once_the_other_plugin_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    told = whose_fixtures(tmp_path, "-p", "no:celery", others=True)
    assert "fixtures of minicelery" in told
    assert "the fixtures celery_app" not in told
