"""Calls that wait for a commit, and connections, in the tests of a Django project."""

from __future__ import annotations

import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django")

from minicelery import Celery
from minicelery.exceptions import OperationalError
from tests.django_inside import use_database


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    use_database(tmp_path)
    app = Celery(
        "x", broker=f"memory://{tmp_path.name}", set_as_current=False,
        task_cls="minicelery.contrib.django.task:DjangoTask",
    )  # fmt: skip
    with app:
        yield app


def run_case(body: Any) -> None:
    """Run `body` as the only test of a TestCase."""
    from django.test import TestCase

    class Case(TestCase):
        def test(self) -> None:
            body(self)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert result.wasSuccessful(), "".join(text for _, text in result.failures + result.errors)


def test_a_test_case_captures_calls_on_commit_and_is_not_warned(app: Celery) -> None:
    from django.db import transaction
    from django.test import override_settings

    @app.task(shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    def body(case: Any) -> None:
        with case.captureOnCommitCallbacks() as waiting, transaction.atomic():
            add.delay_on_commit(1, 2)
        assert (len(waiting), app.broker.size("celery")) == (1, 0)
        with case.captureOnCommitCallbacks(execute=True), transaction.atomic():
            add.apply_async_on_commit((1, 2), robust=True)
        assert app.broker.size("celery") == 1
        with override_settings(DEBUG=True), warnings.catch_warnings():
            warnings.simplefilter("error")
            add.delay(1, 2)

    run_case(body)


def test_in_a_test_case_tasks_leave_its_connection_and_its_transaction_alone(app: Celery) -> None:
    from django.contrib.auth.models import Group
    from django.db import connection, transaction

    from minicelery import signals
    from minicelery.contrib.django.connections import Connections

    @app.task(shared=False)
    def make(name: str) -> int:
        Group.objects.create(name=name)
        return Group.objects.count()

    around = Connections()

    def body(case: Any) -> None:
        opened = connection.connection
        assert make.apply(("a",)).get() == 1
        make.request.is_eager = False  # as in a worker that the test runs in its own thread
        around.before_task(make)
        with transaction.atomic():
            make.run("b")
        around.after_task(make)
        assert connection.connection is opened
        assert connection.in_atomic_block
        assert Group.objects.count() == 2

    signals.task_prerun.connect(around.before_task, weak=False)
    signals.task_postrun.connect(around.after_task, weak=False)
    try:
        run_case(body)
    finally:
        signals.task_prerun.disconnect(around.before_task)
        signals.task_postrun.disconnect(around.after_task)
    assert Group.objects.count() == 0


def test_a_broker_that_is_away_at_the_commit_is_told_of_by_it_unless_that_is_robust(
    app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib.auth.models import Group
    from django.db import transaction

    @app.task(shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    def fail(*args: Any, **options: Any) -> None:
        raise OperationalError("the broker is away")

    monkeypatch.setattr(app._sender, "send", fail)
    with pytest.raises(OperationalError), transaction.atomic():
        Group.objects.create(name="kept")
        add.delay_on_commit(1, 2)
    with transaction.atomic():
        add.apply_async_on_commit((1, 2), robust=True)
        transaction.on_commit(lambda: Group.objects.create(name="next"))
    assert sorted(Group.objects.values_list("name", flat=True)) == ["kept", "next"]
    assert "the broker is away" in caplog.text
