"""Result stores that were written for Celery, named in `result_backend`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, chord, group
from minicelery.alias.stores import CeleryStore
from minicelery.broker import Backend
from minicelery.broker.listening import open_listener
from minicelery.contrib.testing import start_worker
from minicelery.exceptions import BackendStoreError, BackendUnavailable, ImproperlyConfigured
from minicelery.message import Record
from minicelery.modules import without_celery
from minicelery.result import AsyncResult
from tests.conformance import test_backend as conformance
from tests.contrib.packages import stores

NOT_ASKED = {
    "test_a_record_is_gone_after_its_time": "how long results are kept is for the class to say",
    "test_after_an_expired_success_anything_is_stored": "the same",
}
"""Tests of the conformance suite that such a store need not pass."""
globals().update(
    {
        name: found
        for name, found in vars(conformance).items()
        if name == "listener" or (name.startswith("test_") and name not in NOT_ASKED)
    }
)

ROOT = Path(__file__).parents[3]
SHELF, ONE_BY_ONE, ROWS = (f"{stores.__name__}:{name}" for name in ("Shelf", "OneByOne", "Rows"))


@pytest.fixture(autouse=True)
def empty() -> None:
    for kept in (stores.Shelf.kept, stores.Rows.rows, stores.Rows.groups):
        kept.clear()
    stores.Rows.fails = 0


@pytest.fixture
def store_url() -> str:
    return SHELF


@pytest.fixture(params=[SHELF, ROWS])
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", backend=request.param, set_as_current=False)

    @app.task(name="shop.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="shop.boom")
    def boom() -> None:
        raise KeyError("no such order")

    @app.task(name="shop.stubborn", bind=True)
    def stubborn(self: Any) -> None:
        raise self.retry(countdown=600, exc=ValueError("not yet"))

    yield app
    app.close()


def whole(id: str, state: str = "SUCCESS", result: Any = 4, ttl: float | None = 60.0) -> Record:
    """A record with all that a worker writes: such stores keep what is in it, not its bytes."""
    done = "2026-05-13T12:00:00+00:00" if state in ("SUCCESS", "FAILURE", "REVOKED") else None
    if state in ("FAILURE", "RETRY", "REVOKED"):
        result = {"exc_type": "ValueError", "exc_message": [result], "exc_module": "builtins"}
    document = {"status": state, "result": result, "traceback": None, "children": [], "date_done": done}
    return Record(id, json.dumps({**document, "task_id": id}).encode(), state, ttl)


@pytest.fixture
def backend(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """What the conformance suite asks for."""
    app = Celery("shop", broker="memory://", backend=store_url, set_as_current=False)
    found = app.backend
    monkeypatch.setattr(conformance, "record", whole)
    monkeypatch.setattr(conformance, "open_backend", lambda _: found)
    assert isinstance(found, CeleryStore)
    return found


def test_columns_give_the_documents_that_were_stored_in_them() -> None:
    app = Celery("shop", broker="memory://", backend=ROWS, set_as_current=False)
    records = [
        whole("1", result={"a": [1]}),
        whole("2", "FAILURE", "no"),
        whole("3", "RETRY"),
        whole("4", "PROGRESS"),
    ]
    app.backend.store(records)
    found = app.backend.load(["1", "2", "3", "4", "5"])
    assert [one and one.document for one in found] == [*(one.document for one in records), None]
    assert app.backend.watch(["1"], {"1": records[0].document}, 0.05) == []
    app.backend.store([whole("1", "FAILURE")])
    (kept,) = app.backend.load(["1"])
    assert kept is not None and kept.document == records[0].document


def test_a_worker_keeps_results_failures_and_retries_in_it(app: Celery) -> None:
    with start_worker(app, perform_ping_check=False):
        result = app.tasks["shop.add"].delay(2, 2)
        assert (result.get(timeout=20), result.state) == (4, "SUCCESS")
        failed = app.tasks["shop.boom"].delay()
        with pytest.raises(KeyError, match="no such order"):
            failed.get(timeout=20)
        assert failed.traceback is not None and "in boom" in failed.traceback
        retried = app.tasks["shop.stubborn"].delay()
        conformance.wait_until(lambda: retried.state == "RETRY", 20)
        assert str(retried.result) == "not yet"
    result.forget()
    assert app.AsyncResult(result.id).state == "PENDING"


def test_a_groups_results_are_saved_and_restored(app: Celery) -> None:
    with start_worker(app, perform_ping_check=False):
        results = group(app.tasks["shop.add"].s(n, n) for n in range(3)).apply_async()
        results.save()
        restored = app.GroupResult.restore(results.id)
        assert restored is not None and restored.get(timeout=20) == [0, 2, 4]
    results.delete()
    assert app.GroupResult.restore(results.id) is None


def test_a_chord_is_refused_at_the_call(app: Celery) -> None:
    add = app.tasks["shop.add"]
    with pytest.raises(
        ImproperlyConfigured, match=r"a chord needs a result backend that can count its parts"
    ):
        chord([add.s(1, 1), add.s(2, 2)])(add.s(3))
    assert app.broker.size("celery") == 0


def test_what_celery_programs_ask_of_it_the_class_answers(app: Celery) -> None:
    theirs: Any = app.backend
    theirs.mark_as_done("1", {"a": [1]})
    assert theirs.get_task_meta("1")["result"] == {"a": [1]}
    theirs.mark_as_failure("2", ValueError("no"), traceback="Traceback …")
    assert (theirs.get_state("2"), theirs.get_traceback("2")) == ("FAILURE", "Traceback …")
    found: AsyncResult[Any] = app.AsyncResult("2")
    with pytest.raises(ValueError, match="no"):
        found.get()
    assert theirs.wait_for("1", timeout=0)["status"] == "SUCCESS"
    with pytest.raises(theirs.TimeoutError):
        theirs.wait_for("3", timeout=0.05, interval=0.01)


def test_a_store_that_is_away_loses_nothing() -> None:
    app = Celery("shop", broker="memory://", backend=ROWS, set_as_current=False)
    stores.Rows.fails = 2
    with pytest.raises(BackendUnavailable, match="ConnectionResetError: the server went away"):
        app.backend.store([whole("1")])

    @app.task(name="shop.add")
    def add(x: int, y: int) -> int:
        return x + y

    with start_worker(app, perform_ping_check=False):
        assert add.delay(1, 2).get(timeout=30) == 3
    assert stores.Rows.fails == 0
    app.close()


def test_a_result_that_it_will_never_take_becomes_a_failure() -> None:
    app = Celery("shop", broker="memory://", backend=ROWS, set_as_current=False)

    @app.task(name="shop.shout")
    def shout(text: str) -> str:
        return text

    with start_worker(app, perform_ping_check=False):
        refused, taken = shout.delay("too much"), shout.delay("enough")
        assert taken.get(timeout=30) == "enough"
        with pytest.raises(BackendStoreError, match=r"ValueError\('value too long'\)"):
            refused.get(timeout=30)
    app.close()


def test_one_without_groups_says_so() -> None:
    app = Celery("shop", broker="memory://", backend=f"{stores.__name__}:NoGroups", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match="NoGroups keeps no groups"):
        app.GroupResult("1", []).save()


def test_one_without_mget_is_asked_for_each_key() -> None:
    app = Celery("shop", broker="memory://", backend=ONE_BY_ONE, set_as_current=False)
    app.backend.store([whole("1"), whole("2", "FAILURE")])
    assert [found and found.state for found in app.backend.load(["2", "3", "1"])] == [
        "FAILURE",
        None,
        "SUCCESS",
    ]
    assert sorted(stores.Shelf.kept) == ["celery-task-meta-1", "celery-task-meta-2"]


def test_each_thread_has_an_instance_of_its_own(app: Celery) -> None:
    store: Any = app.backend
    found: list[Any] = [store.celery_backend, store.celery_backend]
    thread = threading.Thread(target=lambda: found.append(store.celery_backend))
    thread.start()
    thread.join(10)
    assert found[0] is found[1] is not found[2]


def test_the_url_after_the_class_is_given_to_it() -> None:
    app = Celery("shop", backend=f"{SHELF.replace(':', '.')}+shelf://me:secret@there/1", set_as_current=False)
    store: Any = app.backend
    assert store.celery_backend.url == "shelf://me:secret@there/1"
    assert store.celery_backend.as_uri() == "shelf://me:**@there/1"
    assert "secret" not in store.url
    assert open_listener(store) is not None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (f"{stores.__name__}:NotAStore", "expected a subclass of celery.backends.base.Backend"),
        (f"{stores.__name__}:Nothing", "has no attribute 'Nothing'; expected a URL, or module:Class"),
        ("nowhere.at.All", "No module named 'nowhere'; expected a URL, or module:Class"),
        ("celery.backends.filesystem:FilesystemBackend", r"install_as_celery\(force=True\)"),
    ],
)
def test_what_is_no_such_store_is_refused_by_name(value: str, words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        _ = Celery("shop", broker="memory://", backend=value, set_as_current=False).backend
    assert str(caught.value).startswith(f"result_backend={value!r}: ")


def test_the_daily_task_has_what_has_expired_dropped(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    store: Any = app.backend
    monkeypatch.setattr(type(store.celery_backend), "cleanup", lambda self: called.append(self))
    with start_worker(app, perform_ping_check=False):
        app.tasks["celery.backend_cleanup"].delay().get(timeout=20)
    assert len(called) == 1


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("kombu.utils", "install_as_celery()"),
        ("django_celery_results", "pip install django-celery-results, or use 'minicelery.contrib.django'"),
        (
            "django_celery_beat.schedulers",
            "pip install django-celery-beat, or use 'minicelery.contrib.django'",
        ),
    ],
)
def test_of_a_package_for_celery_that_is_missing_it_is_said_what_to_do(missing: str, words: str) -> None:
    error = ModuleNotFoundError(f"No module named {missing!r}", name=missing)
    assert words in str(without_celery(error))
    assert without_celery(ModuleNotFoundError("No module named 'shop'", name="shop")) is None
    assert without_celery(ValueError(missing)) is None


WITHOUT_ALIAS = """
import sys
sys.modules["celery"] = None  # as where it is not installed
from minicelery import Celery
open("mine.py", "w").write("from celery.backends.base import KeyValueStoreBackend")
open("plan.py", "w").write("from celery.beat import Scheduler")
sys.path.insert(0, "")
app = Celery("shop", backend="mine:Mine", broker="memory://")
for use in (lambda: app.backend, lambda: app.Beat(scheduler="plan:Plan")):
    try:
        use()
    except Exception as error:
        print(error)
"""


def test_without_the_alias_the_error_names_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ALIAS.replace('sys.modules["celery"] = None', ABSENT)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store, plan = done.stdout.splitlines()
    assert store.startswith("result_backend='mine:Mine': No module named 'celery'; ")
    assert plan.startswith("beat_scheduler='plan:Plan': No module named 'celery'; ")
    assert all(
        "'from minicelery import install_as_celery; install_as_celery()'" in one for one in (store, plan)
    )


ABSENT = """
from importlib.machinery import PathFinder
class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, *more):
        return None if name.partition(".")[0] == "celery" else super().find_spec(name, *more)
sys.meta_path[:] = [Absent if finder is PathFinder else finder for finder in sys.meta_path]
"""
