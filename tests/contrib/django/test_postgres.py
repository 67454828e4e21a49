"""Results in PostgreSQL: what SQLite takes for granted, many at once, and a server that goes away."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("django")

from minicelery import Celery
from minicelery.broker import open_backend
from minicelery.exceptions import BackendUnavailable
from minicelery.message import Group
from tests.conformance.messages import call, record
from tests.contrib.django.conftest import Site
from tests.django_inside import _use, use_postgres
from tests.postgres import PostgresServer
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(150)  # the first tests wait for a server, its tables and a worker


@pytest.fixture
def store(postgres_server: PostgresServer) -> Iterator[Any]:
    from django.db import connections

    use_postgres(postgres_server)
    yield open_backend("django-db")
    connections.close_all()


@pytest.mark.parametrize("id", ["x" * 300, "a\0b", "a\ud800b", "grün 🐇"])
def test_any_text_is_an_id_and_a_state(store: Any, id: str) -> None:
    odd = record(id, id * 3)
    store.store([record("1"), odd])
    assert [one.document for one in store.load(["1", id])] == [record("1").document, odd.document]
    assert [one.id for one in store.watch([id], {}, 1)] == [id]
    store.forget([id])
    assert store.load([id]) == [None]
    store.save_group(id, b"1", None)
    assert store.restore_group(id) == b"1"
    store.delete_group(id)
    assert store.restore_group(id) is None


@pytest.mark.parametrize("id", ["g", "x" * 300, "a\0b"])
def test_a_chord_counts_parts_with_any_ids(store: Any, id: str) -> None:
    members = [f"{id}{number}" for number in range(3)]
    store.open_groups([Group(id, members, call("body"), place="p" * 400)])
    bodies = [store.store([replace(record(member), part_of=id)]) for member in (*members[:2], *members)]
    assert [len(found) for found in bodies] == [0, 0, 0, 0, 1]
    assert store.load_group(id).members == members
    assert len(store.owed_groups(time.time() + 60, "p" * 400)) == 1
    assert store.claim_group(id, "copy")
    assert not store.claim_group(id, "other")
    store.drop_groups([id])
    assert store.load_group(id) is None


def test_who_may_only_read_is_told_so_and_not_to_migrate(store: Any, postgres_server: PostgresServer) -> None:
    from django.db import connection

    store.store([record("1")])
    with connection.cursor() as cursor:
        cursor.execute("DROP OWNED BY reader" if _has_role(cursor, "reader") else "CREATE ROLE reader LOGIN")
        cursor.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    _use({**postgres_server.settings(), "USER": "reader"})
    assert store.load(["1"])[0].state == "SUCCESS"
    with pytest.raises(BackendUnavailable, match=r"permission denied for table minicelery_taskresult$"):
        store.store([record("2")])
    _use(postgres_server.settings("nothing"))
    with pytest.raises(BackendUnavailable, match=r'database "nothing" does not exist$'):
        store.load(["1"])


def test_tables_that_are_not_there_are_told_of(store: Any, postgres_server: PostgresServer) -> None:
    _make_database("empty")
    _use(postgres_server.settings("empty"))
    with pytest.raises(BackendUnavailable, match=r"minicelery_taskresult.*; python manage.py migrate$"):
        store.store([record("1")])


def _make_database(name: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute(f"CREATE DATABASE {name}")


def _has_role(cursor: Any, name: str) -> bool:
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
    return cursor.fetchone() is not None


@pytest.mark.parametrize(
    "narrowed",
    [{}, {"status": "FAILURE"}, {"task_name": "shop.task3"}, {"worker": "w@3"}, {"periodic_task_name": "p3"}],
)
def test_the_list_of_the_admin_reads_few_of_many_rows(store: Any, narrowed: dict[str, str]) -> None:
    from django.contrib import admin
    from django.db import connection

    from minicelery.contrib.django.models import TaskResult

    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO minicelery_taskresult (task_id, task_name, status, worker, periodic_task_name, "
            "content_type, content_encoding, date_created, date_done, version) SELECT i::text, "
            "'shop.task' || i % 50, CASE WHEN i % 50 = 0 THEN 'FAILURE' ELSE 'SUCCESS' END, 'w@' || i % 50, "
            "'p' || i % 50, '', '', now(), now() - i * interval '1 second', 1 FROM generate_series(1, 20000) i"
        )
        cursor.execute("ANALYZE minicelery_taskresult")
    rows = admin.site._registry[TaskResult].get_queryset(None).filter(**narrowed)
    plan = rows.order_by("-date_done", "-pk")[:50].explain()
    assert "Index" in plan and "Seq Scan" not in plan, plan


def test_many_who_store_the_same_results_at_once_all_get_through(store: Any) -> None:
    from minicelery.contrib.django.models import TaskResult

    ids = [str(number) for number in range(40)]
    failed: list[BaseException] = []

    def work(turn: int) -> None:
        try:
            for state in ("STARTED", "SUCCESS" if turn == 0 else "FAILURE"):
                some = ids[turn * 5 :] + ids[: turn * 5]
                store.store([record(id, state, turn) for id in some])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert TaskResult.objects.filter(status="SUCCESS").count() == 40  # which nothing overwrites


TASKS = """
from django.db import transaction
from minicelery import shared_task
from polls.models import Choice

@shared_task
def note(text):
    with open("ran", "a") as file:
        file.write(text + "\\n")
    return text

@shared_task
def leave_open():
    transaction.atomic().__enter__()
    Choice.objects.create(text="lost")
    return Choice.objects.count()

@shared_task
def count():
    return Choice.objects.count()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Site]:
    """A project in PostgreSQL, whose worker runs."""
    use_postgres(postgres_server)
    site = Site(tmp_path_factory.mktemp("site"))
    site.use_app()
    site.set(
        f"DATABASES = {{'default': {postgres_server.settings('site')!r}}}\n"
        "CELERY_RESULT_BACKEND = 'django-db'\nINSTALLED_APPS.append('django.contrib.contenttypes')"
    )
    site.write("polls/tasks.py", TASKS)
    _make_database("site")
    site.migrate()
    site.start_worker("manage.py", "minicelery", "worker", "-l", "info", "-c", "2")
    yield site
    site.close()


@pytest.fixture
def app(site: Site, postgres_server: PostgresServer) -> Iterator[Celery]:
    """Sends to that worker, and reads its results."""
    from django.db import connections

    use_postgres(postgres_server)
    _use(postgres_server.settings("site"))
    broker = f"sqlite:///{site.folder}/queue.db"
    with Celery("x", broker=broker, backend="django-db", set_as_current=False) as app:
        yield app
    connections.close_all()


def test_a_transaction_that_a_task_leaves_open_is_rolled_back_and_its_worker_goes_on(
    site: Site, app: Celery
) -> None:
    left = [app.send_task("polls.tasks.leave_open") for _ in range(4)]
    assert [one.get(timeout=20) for one in left] == [1] * 4
    assert app.send_task("polls.tasks.count").get(timeout=20) == 0
    log = site.folder / "worker0.log"
    said = f"Task polls.tasks.leave_open[{left[0].id}] has left a transaction of the database 'default' open"
    wait_until(lambda: said in log.read_text())


def test_a_worker_outlives_a_restart_of_the_database_and_no_result_is_lost(
    site: Site, app: Celery, postgres_server: PostgresServer
) -> None:
    log, ran = site.folder / "worker0.log", site.folder / "ran"
    store = open_backend("django-db")

    def send(*texts: str) -> None:
        for text in texts:
            app.send_task("polls.tasks.note", (text,), task_id=text)

    send("a", "b")
    wait_until(lambda: None not in store.load(["a", "b"]), 20)
    postgres_server.halt()
    try:
        send("c", "d", "e", "f")
        wait_until(lambda: "trying again until it is back" in log.read_text(), 20)
        assert "the results in the database 'default' can't be reached" in log.read_text()
    finally:
        postgres_server.resume()
    send("g")
    wait_until(lambda: None not in store.load(list("abcdefg")), 30)
    values = [json.loads(one.document)["result"] for one in store.load(list("abcdefg"))]
    assert values == list("abcdefg")
    assert Counter(ran.read_text().split()) == Counter("abcdefg")  # each ran once
    assert "Traceback" not in log.read_text()


def test_a_database_that_can_not_be_used_ends_a_worker_before_it_begins(site: Site) -> None:
    settings = "mysite/settings.py"
    before = (site.folder / settings).read_text()
    try:
        site.set("DATABASES['default']['PORT'] = 1")
        done = site.run("manage.py", "minicelery", "worker", "-q", fails=True)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (78, "hint: see DATABASES in the settings")
        assert "error: the database 'default' can't be reached: OperationalError" in done.stderr
        site.set("DATABASES['default'] |= {'OPTIONS': {'pool': True}, 'CONN_MAX_AGE': 5}")
        done = site.run("manage.py", "minicelery", "worker", "-q", fails=True)
        assert done.returncode == 78
        assert done.stderr.startswith("error: Django can't work with these settings: ")
        assert "Traceback" not in done.stderr
    finally:
        site.write(settings, before)
