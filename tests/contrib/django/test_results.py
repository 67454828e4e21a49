"""Results in the database and in the cache of a Django project."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django")

from minicelery.broker import open_backend
from minicelery.exceptions import BackendError, BackendUnavailable, ImproperlyConfigured
from minicelery.message import Group, Record
from tests.conformance.messages import call, record
from tests.contrib.django.conftest import Site
from tests.django_inside import use_database


@pytest.fixture
def store(tmp_path: Path) -> Any:
    use_database(tmp_path)
    return open_backend("django-db")


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    use_database(tmp_path)
    found = open_backend("django-cache", options={"cache": "default"})
    yield found
    found._cache.clear()


def test_a_worker_stores_results_in_the_database_with_names_and_arguments(site: Site) -> None:
    site.use_app()
    site.set('CELERY_RESULT_BACKEND = "django-db"\nCELERY_TASK_TRACK_STARTED = True')
    site.migrate()
    log = site.start_worker(
        "manage.py", "minicelery", "worker", "-l", "info", "-c", "2", "--settings=mysite.settings"
    )

    said = site.python(
        """
        import json
        from minicelery import chord, group
        from minicelery.contrib.django.models import TaskResult
        from polls.tasks import add, boom
        print(add.delay(2, y=3).get(30))
        failed = boom.delay()
        failed.get(10, propagate=False)
        print(chord([add.s(n, n) for n in range(5)], add.si(20, 1)).apply_async().get(20))
        saved = group(add.s(1, 1), add.s(2, 2)).apply_async()
        saved.save()
        print(saved.restore(saved.id).get(timeout=10))
        row = TaskResult.objects.get(task_name="polls.tasks.add", task_kwargs__contains="y")
        print(row.status, row.task_args, row.task_kwargs, row.result, row.worker.startswith("celery@"))
        print(row.date_created <= row.date_started <= row.date_done if row.date_started else "too quick")
        row = TaskResult.objects.get(task_id=failed.id)
        print(row.status, json.loads(row.result)["exc_type"], "ValueError: no" in row.traceback)
        """
    )
    lines = said.splitlines()
    assert lines[:3] == ["5", "21", "[2, 4]"]
    assert lines[3] == 'SUCCESS [2] {"y": 3} 5 True'
    assert lines[4] in ("True", "too quick")
    assert lines[5] == "FAILURE ValueError True"
    assert " results:     django-db\n" in log.read_text()


def test_a_worker_stores_results_in_the_cache(site: Site) -> None:
    site.use_app()
    site.set(
        'CELERY_RESULT_BACKEND = "django-cache"\nCELERY_CACHE_BACKEND = "files"\nCACHES = {"files": {"BACKEND": '
        '"django.core.cache.backends.filebased.FileBasedCache", "LOCATION": BASE_DIR / "cache"}}\n'
        'CACHES["default"] = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}'
    )
    site.start_worker("manage.py", "celery", "worker", "-l", "info", "-c", "1")
    assert site.python("from polls.tasks import add; print(add.delay(2, 2).get(30))") == "4\n"
    site.set("CELERY_CACHE_BACKEND = None")
    done = site.run("manage.py", "minicelery", "worker", "-q", fails=True)
    assert done.stderr == (
        "error: result_backend='django-cache': the cache 'default' is a LocMemCache, which other processes can't "
        "read\nhint: name another one by CELERY_CACHE_BACKEND, or set CACHES\n"
    )


def test_a_chord_within_a_transaction_is_refused(store: Any) -> None:
    from django.db import transaction

    body = call("body")
    with (
        transaction.atomic(),
        pytest.raises(BackendError, match=r"within a transaction of the database 'default'"),
    ):
        store.open_groups([Group("g", ["1"], body, place="here")])
    store.open_groups([Group("g", ["1"], body, place="here")])


def test_a_lost_connection_is_made_anew(store: Any) -> None:
    from django.db import connection

    store.store([record("1")])
    connection.connection.close()  # as a server does, or a proxy
    store.store([record("2")])
    connection.connection.close()
    assert None not in store.load(["1", "2"])


def test_a_coroutine_may_store_its_state(store: Any) -> None:
    async def report() -> None:
        store.store([record("1", "PROGRESS")])

    asyncio.run(report())
    assert store.load(["1"])[0].state == "PROGRESS"


def test_the_migrations_make_the_tables_of_the_models(store: Any) -> None:
    from django.core.management import call_command

    call_command("makemigrations", "minicelery", check=True, dry_run=True, verbosity=0)


def test_missing_tables_are_told_of(store: Any) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE minicelery_taskresult")
    with pytest.raises(BackendUnavailable, match=r"no such table.*; python manage.py migrate"):
        store.load(["1"])


def test_no_row_has_started_before_it_was_made(store: Any) -> None:
    from minicelery.contrib.django.models import TaskResult

    store.store([record("1", "STARTED")])
    store.store([record("1", "SUCCESS")])
    row = TaskResult.objects.get()
    assert row.date_created <= row.date_started <= row.date_done


def test_expired_results_are_removed_in_time(store: Any) -> None:
    from minicelery.contrib.django.models import GroupResult, TaskResult

    store.store([record("old", ttl=0.01), record("new", ttl=60), record("ever", ttl=None)])
    store.save_group("old", b"1", 0.01)
    store.owed_groups(time.time() + 1, "here")
    assert sorted(TaskResult.objects.values_list("task_id", flat=True)) == ["ever", "new"]
    assert not GroupResult.objects.exists()


def test_all_that_has_expired_is_removed_however_much_it_is(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minicelery.contrib.django.models import TaskResult
    from minicelery.contrib.django.results import database

    monkeypatch.setattr(database, "CHUNK", 10)
    monkeypatch.setattr(database, "CLEAN_FOR", 60.0)
    store.store([record(str(number), ttl=-1.0) for number in range(35)])
    store.owed_groups(time.time(), "here")
    assert not TaskResult.objects.exists()

    monkeypatch.setattr(database, "CLEAN_FOR", 0.0)
    store._cleaned = float("-inf")
    store.store([record(str(number), ttl=-1.0) for number in range(35)])
    for left in (25, 15, 5, 0):  # no call takes longer than it may, and the next one goes on
        store.owed_groups(time.time(), "here")
        assert TaskResult.objects.count() == left


@pytest.mark.parametrize(
    "document", [b"\x00\xff pickled", b'{"status": "SUCCESS", "result": "\\u0000"}', b"[]", b"\x00"]
)
def test_any_document_comes_back_as_it_was(store: Any, document: bytes) -> None:
    store.store([Record("1", document, "SUCCESS")])
    assert store.load(["1"])[0].document == document
    store.save_group("g", document, None)
    assert store.restore_group("g") == document


def test_documents_are_kept_once_where_the_columns_tell_all(store: Any) -> None:
    from minicelery import record as records
    from minicelery.contrib.django.models import TaskResult

    extra = {"name": "t", "args": [1, "ü"], "kwargs": {}, "worker": "w", "retries": 1, "queue": "q"}
    for number, more in enumerate((extra, None, {**extra, "args": "(1,)"})):
        made = records.encode(
            str(number), "SUCCESS", {"a": [1.5, None]}, extra=more, group_id="g", parent_id="p"
        )
        store.store([made])
        assert store.load([str(number)])[0].document == made.document
    assert list(TaskResult.objects.values_list("document", flat=True)) == [None] * 3
    assert json.loads(TaskResult.objects.get(task_id="0").meta)["queue"] == "q"


class Counting:
    """A store in which nothing happens; it notes when it is looked into."""

    def __init__(self) -> None:
        self.looks: list[float] = []

    def looking(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def news(self, ids: Collection[str], seen: Mapping[str, bytes]) -> list[Record]:
        self.looks.append(time.monotonic())
        return []

    def pauses(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.looks)]


def test_who_waits_looks_ever_more_seldom() -> None:
    from minicelery.broker.polling import PollingListener, watch

    once, again = Counting(), Counting()
    assert watch(once, ["1"], {}, 1.0) == []
    assert len(once.looks) <= 11  # fewer, where this process had to wait
    pauses = once.pauses()[:-1]  # the last ends with the time
    assert all(pause >= 0.02 * 1.5**turn * 0.99 for turn, pause in enumerate(pauses)), pauses
    listener = PollingListener(again)
    for _ in range(20):  # as the thread that hears of results does
        assert listener.wait({}, 0.05) == []
    assert 20 <= len(again.looks) <= 45


def test_a_cache_keeps_results(cache: Any) -> None:
    odd = record("grün 🐇 " + "x" * 200, result="ü")
    cache.store([record("1"), odd, replace(record("short"), ttl=0.01)])
    cache.store([record("1", "FAILURE")])
    found = cache.load(["1", "missing", odd.id])
    assert [one and one.document for one in found] == [record("1").document, None, odd.document]
    assert [one.id for one in cache.watch(["1", "2"], {}, 1)] == ["1"]
    cache.forget(["1"])
    assert cache.load(["1"]) == [None]


def test_a_cache_that_is_not_there_is_refused(cache: Any) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"cache_backend='mine': no such cache in CACHES, which has default, own"
    ):
        open_backend("django-cache", options={"cache": "mine"})
